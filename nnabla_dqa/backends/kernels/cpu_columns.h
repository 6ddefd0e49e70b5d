// Rows that are columns of a matrix: number o of column c is x[o * step + c]. Weights whose channels
// are the last axis lie like that, and are worked on as they lie. Included by cpu_kernels.h, once for
// each instruction set.
//
// Some columns of a few rows of the matrix at a time: what belongs to the columns stays in registers
// meanwhile, and the processor follows the rows. Sums keep the order of `row_sum` for rows whose size
// is a multiple of four, which begin aligned.

// Rows of the matrix that are gone through for some columns before the next ones: the fewer, the more
// there is in registers meanwhile; the more, the more there is to take up and put down for them.
const int64_t SHALLOW = 4;
const int64_t DEEP = 8;
const int64_t DEEPER = 32;
// Numbers of a column of which the dot products are added up before they become double.
const int64_t ADDED = 64;

// f(V(), c) for the columns from c on that a V holds.
template <class F>
static inline void column_groups(int64_t count, F f) {
    const int64_t wide = sizeof(Wide) / sizeof(float);
    int64_t c = 0;
    for (; c + wide <= count; c += wide) f(Wide{}, c);
    if constexpr (sizeof(Wide) > sizeof(Eight))
        for (; c + 8 <= count; c += 8) f(Eight{}, c);
    for (; c < count; ++c) f(0.0f, c);
}

// Some rows that are read next, which the processor does not foresee; only a hint, also behind the end
// of an array.
static inline void fetch_rows(const float* x, int64_t step, int64_t rows) {
#ifdef __GNUC__
    for (int64_t r = 0; r < rows; ++r) __builtin_prefetch(x + r * step);
#endif
}

static void column_extremes(const float* x, int64_t outer, int64_t step, int64_t count,
                            float* low, float* high, float* none) {
    for (int64_t c = 0; c < count; ++c) low[c] = high[c] = x[c], none[c] = 0.0f;
    for (int64_t begin = 0; begin < outer; begin += DEEP) {
        const int64_t rows = outer - begin < DEEP ? outer - begin : DEEP;
        const float* block = x + begin * step;
        column_groups(count, [=](auto kind, int64_t c) {
            using V = decltype(kind);
            fetch_rows(block + DEEP * step + c, step, DEEP);
            V least = load<V>(low + c), most = load<V>(high + c), other = load<V>(none + c);
            for (int64_t r = 0; r < rows; ++r) {
                const V v = load<V>(block + r * step + c);
                least = least_of(v, least);
                most = most_of(v, most);
                other = other + v * 0.0f;
            }
            store(low + c, least), store(high + c, most), store(none + c, other);
        });
    }
}

// One sum of each column, f(x, scale), and with TWO another one, g(x, scale); `lanes` has room for
// 16 * count numbers.
template <bool TWO, class F, class G>
static void column_sums(const float* x, int64_t outer, int64_t step, int64_t count,
                        const float* scale, float* lanes, F f, G g, float* sum_f, float* sum_g) {
    const int64_t end8 = outer / 8 * 8;
    for (int64_t i = 0; i < 16 * count; ++i) lanes[i] = 0.0f;
    for (int64_t begin = 0; begin < end8; begin += DEEPER) {
        const int64_t end = end8 - begin < DEEPER ? end8 : begin + DEEPER;
        column_groups(count, [=](auto kind, int64_t c) {
            using V = decltype(kind);
            const int64_t width = sizeof(V) / sizeof(float);
            const V own = load<V>(scale + c);
            float* kept = lanes + 16 * c;
            V of_f[8], of_g[8];
            for (int lane = 0; lane < 8; ++lane) {
                of_f[lane] = load<V>(kept + lane * width);
                if (TWO) of_g[lane] = load<V>(kept + (8 + lane) * width);
            }
            for (int64_t o = begin; o < end; o += 8)
                for (int lane = 0; lane < 8; ++lane) {
                    const V v = load<V>(x + (o + lane) * step + c);
                    of_f[lane] = of_f[lane] + f(v, own);
                    if (TWO) of_g[lane] = of_g[lane] + g(v, own);
                }
            for (int lane = 0; lane < 8; ++lane) {
                store(kept + lane * width, of_f[lane]);
                if (TWO) store(kept + (8 + lane) * width, of_g[lane]);
            }
        });
    }
    // The first packet of each eight and the second become one; then come four that are left over.
    column_groups(count, [=](auto kind, int64_t c) {
        using V = decltype(kind);
        const int64_t width = sizeof(V) / sizeof(float);
        const V own = load<V>(scale + c);
        V of_f[4], of_g[4];
        for (int lane = 0; lane < 4; ++lane) {
            const float* kept = lanes + 16 * c + lane * width;
            of_f[lane] = load<V>(kept) + load<V>(kept + 4 * width);
            if (TWO) of_g[lane] = load<V>(kept + 8 * width) + load<V>(kept + 12 * width);
            if (end8 == outer) continue;
            const V v = load<V>(x + (end8 + lane) * step + c);
            of_f[lane] = of_f[lane] + f(v, own);
            if (TWO) of_g[lane] = of_g[lane] + g(v, own);
        }
        store(sum_f + c, (of_f[0] + of_f[2]) + (of_f[1] + of_f[3]));
        if (TWO) store(sum_g + c, (of_g[0] + of_g[2]) + (of_g[1] + of_g[3]));
    });
}

// As `means`; `room` is for 19 * count numbers.
static void column_means(const float* x, int64_t outer, int64_t step, int64_t count, int needs,
                         Stats* stats, float* room) {
    const float size = static_cast<float>(outer);
    float *scale = room, *one = room + count, *other = one + count, *lanes = other + count;
    if (needs & NEEDS_MEAN) {
        const auto f = [](auto v, auto) { return magnitude(v); };
        column_sums<false>(x, outer, step, count, scale, lanes, f, f, one, other);
        for (int64_t c = 0; c < count; ++c) stats[c].mean_magnitude = one[c] / size;
    }
    if (needs & NEEDS_UNIT) {
        for (int64_t c = 0; c < count; ++c) scale[c] = inverse_peak(stats[c]);
        column_sums<true>(
            x, outer, step, count, scale, lanes, [](auto v, auto s) { return magnitude(v * s); },
            [](auto v, auto s) { return (v * s) * (v * s); }, one, other);
        for (int64_t c = 0; c < count; ++c)
            stats[c].unit_mean = one[c] / size, stats[c].unit_square = other[c] / size;
    }
    if (needs & NEEDS_KEPT) {
        for (int64_t c = 0; c < count; ++c) scale[c] = inverse_delta(stats[c]);
        column_sums<true>(
            x, outer, step, count, scale, lanes,
            [](auto v, auto s) { return over_one(magnitude(v * s), magnitude(v)); },
            [](auto v, auto s) { return over_one(magnitude(v * s), v * 0.0f + 1.0f); }, one, other);
        for (int64_t c = 0; c < count; ++c) stats[c].total = one[c], stats[c].count = other[c];
    }
}

// As `take_sample` for each column; those of GROUP columns lie together, as `searched_clips` has them.
// `room` is for 2 * count numbers.
static void column_sample(const float* x, int64_t outer, int64_t step, int64_t count,
                          const Stats* stats, const Sample& sample, float* values, float* room) {
    const int64_t size = sample.strata * sample.count * GROUP;
    float *scale = room, *largest = room + count;
    for (int64_t c = 0; c < count; ++c) scale[c] = inverse_peak(stats[c]);
    for (int64_t b = 0; b < sample.count; ++b) {
        const int64_t begin = sample.block ? b * sample.block : b, end = begin + sample.block;
        // The last block is filled up from the front.
        const auto row = [=](int64_t o) { return x + (o < outer ? o : o - outer) * step; };
        for (int64_t c = 0; c < count; ++c) largest[c] = 0.0f;
        for (int64_t o = begin; o < end; o += DEEP) {
            const int64_t last = end - o < DEEP ? end : o + DEEP;
            column_groups(count, [=](auto kind, int64_t c) {
                using V = decltype(kind);
                fetch_rows(row(o) + DEEP * step + c, step, DEEP);
                V most = load<V>(largest + c);
                for (int64_t i = o; i < last; ++i)
                    most = most_of(magnitude(load<V>(row(i) + c)), most);
                store(largest + c, most);
            });
        }
        column_groups(count, [=](auto kind, int64_t c) {
            using V = decltype(kind);
            float* to = values + c / GROUP * size + b * GROUP + c % GROUP;
            const V own = load<V>(scale + c), most = load<V>(largest + c) * own;
            const V first = magnitude(load<V>(row(begin) + c) * own);
            if (!sample.block) return store(to, first);
            const V second = magnitude(load<V>(row(begin + 1) + c) * own);
            store(to, most);
            const V is_largest = not_below(first - most, V{});
            store(to + sample.count * GROUP, first + is_largest * (second - first));
        });
    }
}

// The code of grid.h for some columns.
template <int KIND, class V>
static inline V codes(const Op& op, V a, V b, V x) {
    if (KIND == MINMAX) return whole(((x + a) * b) * op.top);
    if (KIND == SAWB_CLOSED)
        return whole(at_most(at_least_zero((x * a) * b + op.top / 2.0f), op.top));
    if (KIND == BWN) return not_below(x, V{});
    if (KIND == TWN) return over_one(x * a, V{} + 1.0f) + not_below(x * a, V{} + -1.0f);
    return x;
}

// R rows of some columns, in registers.
template <int R, class V>
struct Block {
    V row[R];
    Block(const float* x, int64_t step) {
        for (int r = 0; r < R; ++r) row[r] = load<V>(x + r * step);
    }
};

// sums[r] (+)= scale * code for R rows of the columns whose grid stands at g.
template <int KIND, int R, class V>
static inline void add_codes_of(const Op& op, const float* g, bool add, const float* x,
                                int64_t step, V* sums) {
    const V a = load<V>(g), b = load<V>(g + GROUP), scale = load<V>(g + 2 * GROUP);
    for (int r = 0; r < R; ++r) {
        const V own = scale * codes<KIND>(op, a, b, load<V>(x + r * step));
        sums[r] = add ? sums[r] + own : own;
    }
}

template <int R, class V>
static inline void mix_group(const Op* ops, const float* g, int many, const float* x, float* q,
                             int64_t step) {
    V sums[R] = {};
    if (R > 1) fetch_rows(x + R * step, step, R);
    for (int k = 0; k < many; ++k, g += 3 * GROUP) {
#define DQA_CALL(KIND) add_codes_of<KIND, R>(ops[k], g, k > 0, x, step, sums)
        DQA_FOR_KIND(ops[k].kind, DQA_CALL)
#undef DQA_CALL
    }
    const V offset = load<V>(g);
    for (int r = 0; r < R; ++r) store(q + r * step, sums[r] + offset);
}

// See ColumnGrids for the order of `grids`.
static void column_mix(const Op* ops, const float* grids, int many, const float* x, float* q,
                       int64_t outer, int64_t step, int64_t count) {
    // Of one quantizer there is little to keep in registers, and memory is fastest row by row.
    const int64_t deep = many > 1 ? DEEP : 1;
    for (int64_t o = 0; o < outer; o += deep, x += deep * step, q += deep * step) {
        const int64_t rows = outer - o < deep ? outer - o : deep;
        column_groups(count, [=](auto kind, int64_t c) {
            using V = decltype(kind);
            const float* g = grids + in_group(c, 3 * many + 1);
            if (rows == DEEP) return mix_group<DEEP, V>(ops, g, many, x + c, q + c, step);
            for (int64_t at = c; at < c + rows * step; at += step)
                mix_group<1, V>(ops, g, many, x + at, q + at, step);
        });
    }
}

template <int KIND, int R, class V>
static inline V add_dots_of(const Op& op, const float* g, const Block<R, V>& x,
                            const Block<R, V>& dq, V sums) {
    const V a = load<V>(g), b = load<V>(g + GROUP);
    for (int r = 0; r < R; ++r) sums = sums + dq.row[r] * codes<KIND>(op, a, b, x.row[r]);
    return sums;
}

// Adds <dq, code_k> and the sum of dq to what stands in `room`, and hands dq on.
template <int R, class V>
static inline void dots_of_group(const Op* ops, const float* g, int many, const float* x,
                                 const float* dq, float* dw, bool add, int64_t step, float* room) {
    const Block<R, V> block(x, step), d(dq, step);
    if (R > 1) fetch_rows(x + R * step, step, R), fetch_rows(dq + R * step, step, R);
    for (int k = 0; k < many; ++k, g += 3 * GROUP, room += GROUP) {
        V own = load<V>(room);
#define DQA_CALL(KIND) own = add_dots_of<KIND>(ops[k], g, block, d, own)
        DQA_FOR_KIND(ops[k].kind, DQA_CALL)
#undef DQA_CALL
        store(room, own);
    }
    V total = load<V>(room);
    for (int r = 0; r < R; ++r) {
        total = total + d.row[r];
        if (dw) store(dw + r * step, add ? load<V>(dw + r * step) + d.row[r] : d.row[r]);
    }
    store(room, total);
}

// <dq, code_k> of each column, then the sum of dq, to sums[in_group(c, many + 1) + k * GROUP], and dq
// handed on to dw, unless that is null; `room` is as large as `sums`.
static void column_dots(const Op* ops, const float* grids, int many, const float* x,
                        const float* dq, float* dw, bool add, int64_t outer, int64_t step,
                        int64_t count, float* room, double* sums) {
    const int64_t all = (count + GROUP - 1) / GROUP * GROUP * (many + 1);
    for (int64_t i = 0; i < all; ++i) sums[i] = 0.0;
    for (int64_t begin = 0; begin < outer; begin += ADDED) {
        const int64_t end = outer - begin < ADDED ? outer : begin + ADDED;
        for (int64_t i = 0; i < all; ++i) room[i] = 0.0f;
        for (int64_t o = begin; o < end; o += SHALLOW) {
            const int64_t rows = end - o < SHALLOW ? end - o : SHALLOW;
            column_groups(count, [=](auto kind, int64_t c) {
                using V = decltype(kind);
                const float* g = grids + in_group(c, 3 * many + 1);
                float* own = room + in_group(c, many + 1);
                const int64_t first = o * step + c;
                if (rows == SHALLOW)
                    return dots_of_group<SHALLOW, V>(ops, g, many, x + first, dq + first,
                                                  dw ? dw + first : dw, add, step, own);
                for (int64_t at = first; at < first + rows * step; at += step)
                    dots_of_group<1, V>(ops, g, many, x + at, dq + at, dw ? dw + at : dw, add,
                                        step, own);
            });
        }
        for (int64_t i = 0; i < all; ++i) sums[i] += room[i];
    }
}
