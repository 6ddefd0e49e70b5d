// The CPU's loops, compiled once for each instruction set: cpu.cpp includes this file several
// times, each time within another namespace and with other target options. No include guard.
//
// Loops that add up keep the order of NNabla's F.sum (see `row_sum`), so that statistics and with
// them codes have the same bits as those of the portable graph. Everything else is free of order.

#include "cpu_vectors.h"

// The sum of a row of `size` terms, in the order in which Eigen, which NNabla uses, adds a row of
// float32: two packets of four from the first aligned element on, then what is left over. `first`
// is the number of elements before it. Terms are f(x[i]); `lanes` are the two packets' sums.
template <class F>
static float finish_sum(Eight lanes, const float* x, int64_t size, int64_t first, F f) {
    const int64_t end8 = first + (size - first) / 8 * 8;
    const int64_t end4 = first + (size - first) / 4 * 4;
    float packet[4];
    for (int j = 0; j < 4; ++j) packet[j] = lanes[j];
    if (end4 - first > 4) {
        for (int j = 0; j < 4; ++j) packet[j] += lanes[j + 4];
        if (end4 > end8)
            for (int j = 0; j < 4; ++j) packet[j] += f(x[end8 + j]);
    }
    float sum = (packet[0] + packet[2]) + (packet[1] + packet[3]);
    for (int64_t i = 0; i < first; ++i) sum += f(x[i]);
    for (int64_t i = end4; i < size; ++i) sum += f(x[i]);
    return sum;
}

template <class F>
static Eight begin_sum(const float* x, int64_t size, int64_t first, F f) {
    if (size - first >= 8) return f(eight(x + first));
    Eight lanes = {};
    for (int j = 0; j < size - first; ++j) lanes[j] = f(x[first + j]);
    return lanes;
}

template <class F>
static float row_sum(const float* x, int64_t size, int64_t first, F f) {
    if (first > size) first = size;
    if (size - first < 4) {
        float sum = f(x[0]);
        for (int64_t i = 1; i < size; ++i) sum += f(x[i]);
        return sum;
    }
    Eight lanes = begin_sum(x, size, first, f);
    for (int64_t i = first + 8; i + 8 <= size; i += 8) lanes = lanes + f(eight(x + i));
    return finish_sum(lanes, x, size, first, f);
}

// Two sums over the same numbers.
template <class F, class G>
static void row_sums(const float* x, int64_t size, int64_t first, F f, G g, float* sum_f,
                     float* sum_g) {
    if (first > size) first = size;
    if (size - first < 4) {
        *sum_f = row_sum(x, size, first, f);
        *sum_g = row_sum(x, size, first, g);
        return;
    }
    Eight lanes_f = begin_sum(x, size, first, f), lanes_g = begin_sum(x, size, first, g);
    for (int64_t i = first + 8; i + 8 <= size; i += 8) {
        const Eight v = eight(x + i);
        lanes_f = lanes_f + f(v);
        lanes_g = lanes_g + g(v);
    }
    *sum_f = finish_sum(lanes_f, x, size, first, f);
    *sum_g = finish_sum(lanes_g, x, size, first, g);
}

// Elements before the first aligned one of row `row` of a (rows, size) array.
static inline int64_t unaligned(int64_t row, int64_t size) { return (4 - row * size % 4) % 4; }

// Least and largest of x[0 .. size), and whether all are finite.
static void extremes(const float* x, int64_t size, Stats* stats) {
    const int L = 64;
    float low[L], high[L], none[L];
    for (int j = 0; j < L; ++j) low[j] = high[j] = x[0], none[j] = 0.0f;
    int64_t i = 0;
    for (; i + L <= size; i += L) {
        for (int j = 0; j < L; ++j) {
            const float v = x[i + j];
            low[j] = v < low[j] ? v : low[j];
            high[j] = v > high[j] ? v : high[j];
            // Stays 0 for finite numbers, becomes NaN by the others.
            none[j] += v * 0.0f;
        }
    }
    for (; i < size; ++i) {
        low[0] = x[i] < low[0] ? x[i] : low[0];
        high[0] = x[i] > high[0] ? x[i] : high[0];
        none[0] += x[i] * 0.0f;
    }
    for (int j = 1; j < L; ++j) {
        low[0] = low[j] < low[0] ? low[j] : low[0];
        high[0] = high[j] > high[0] ? high[j] : high[0];
        none[0] += none[j];
    }
    stats->minimum = low[0];
    stats->maximum = high[0];
    stats->finite = none[0] == 0.0f;
}

// Whether all numbers are.
static bool finite(const float* x, int64_t n) {
    const int L = 64;
    float none[L] = {};
    int64_t i = 0;
    for (; i + L <= n; i += L)
        for (int j = 0; j < L; ++j) none[j] += x[i + j] * 0.0f;
    for (; i < n; ++i) none[0] += x[i] * 0.0f;
    for (int j = 1; j < L; ++j) none[0] += none[j];
    return none[0] == 0.0f;
}

// The means that the quantizers `needs` ask for; `extremes` has been here before.
static void means(const float* x, int64_t row, int64_t size, int needs, Stats* stats) {
    const int64_t first = unaligned(row, size);
    const float count = static_cast<float>(size);
    if (needs & NEEDS_MEAN) {
        const float sum = row_sum(x, size, first, [](auto v) { return magnitude(v); });
        stats->mean_magnitude = sum / count;
    }
    if (needs & NEEDS_UNIT) {
        const float scale = inverse_peak(*stats);
        float magnitudes, squares;
        row_sums(
            x, size, first, [=](auto v) { return magnitude(v * scale); },
            [=](auto v) { return (v * scale) * (v * scale); }, &magnitudes, &squares);
        stats->unit_mean = magnitudes / count;
        stats->unit_square = squares / count;
    }
    if (needs & NEEDS_KEPT) {
        const float scale = inverse_delta(*stats);
        row_sums(
            x, size, first, [=](auto v) { return over_one(magnitude(v * scale), magnitude(v)); },
            [=](auto v) { return over_one(magnitude(v * scale), v * 0.0f + 1.0f); }, &stats->total,
            &stats->count);
    }
}

#include "cpu_search.h"

template <int KIND>
static inline float code(const Op& op, const Grid& g, float x) {
    if (KIND == MINMAX) return code_minmax(op, g, x);
    if (KIND == SAWB_CLOSED) return code_sawb(op, g, x);
    if (KIND == BWN) return code_bwn(x);
    if (KIND == TWN) return code_twn(g, x);
    return x;
}

#define DQA_FOR_KIND(kind, CALL)               \
    switch (kind) {                            \
        case MINMAX: CALL(MINMAX); break;      \
        case SAWB_CLOSED:                      \
        case SAWB_SEARCH: CALL(SAWB_CLOSED); break; \
        case BWN: CALL(BWN); break;            \
        case TWN: CALL(TWN); break;            \
        default: CALL(FLOAT); break;           \
    }

enum Place { ONLY, FIRST, MIDDLE, LAST };

template <int KIND>
static void add_codes(const Op op, const Grid g, float scale, float offset, int place,
                      const float* __restrict x, float* __restrict q, int64_t n) {
    if (place == ONLY) {
        for (int64_t i = 0; i < n; ++i) q[i] = scale * code<KIND>(op, g, x[i]) + offset;
    } else if (place == FIRST) {
        for (int64_t i = 0; i < n; ++i) q[i] = scale * code<KIND>(op, g, x[i]);
    } else if (place == MIDDLE) {
        for (int64_t i = 0; i < n; ++i) q[i] = q[i] + scale * code<KIND>(op, g, x[i]);
    } else {
        for (int64_t i = 0; i < n; ++i) q[i] = (q[i] + scale * code<KIND>(op, g, x[i])) + offset;
    }
}

// All of one row's codes at once where they share their unit range.
template <int N>
static void mix_minmax(const Active& active, const float* __restrict x, float* __restrict q,
                       int64_t n) {
    const float a = active.grid[0].a, b = active.grid[0].b, offset = active.offset;
    float top[N], scale[N];
    for (int k = 0; k < N; ++k) top[k] = active.op[k].top, scale[k] = active.scale[k];
    for (int64_t i = 0; i < n; ++i) {
        const float unit = (x[i] + a) * b;
        float sum = scale[0] * round_positive(unit * top[0]);
        for (int k = 1; k < N; ++k) sum = sum + scale[k] * round_positive(unit * top[k]);
        q[i] = sum + offset;
    }
}

const int64_t BLOCK = 1024;

// q = sum_k scale_k code_k(x) + offset for a piece of a row.
static void mix(const Active& active, const float* x, float* q, int64_t n) {
    if (active.minmax && active.count == 1) return mix_minmax<1>(active, x, q, n);
    if (active.minmax && active.count == 2) return mix_minmax<2>(active, x, q, n);
    if (active.minmax && active.count == 3) return mix_minmax<3>(active, x, q, n);
    if (active.minmax && active.count == 4) return mix_minmax<4>(active, x, q, n);
    for (int64_t i = 0; i < n; i += BLOCK) {
        const int64_t m = n - i < BLOCK ? n - i : BLOCK;
        for (int k = 0; k < active.count; ++k) {
            const int place = active.count == 1       ? ONLY
                              : k == 0                ? FIRST
                              : k == active.count - 1 ? LAST
                                                      : MIDDLE;
#define DQA_CALL(KIND)                                                                        \
    add_codes<KIND>(active.op[k], active.grid[k], active.scale[k], active.offset, place, x + i, \
                    q + i, m)
            DQA_FOR_KIND(active.op[k].kind, DQA_CALL)
#undef DQA_CALL
        }
    }
}

const int LANES = 32;

template <int KIND>
static double dot_codes(const Op op, const Grid g, const float* __restrict x,
                        const float* __restrict dq, int64_t n) {
    float lanes[LANES] = {};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; ++j) lanes[j] += dq[i + j] * code<KIND>(op, g, x[i + j]);
    double sum = 0.0;
    for (; i < n; ++i) sum += dq[i] * code<KIND>(op, g, x[i]);
    for (int j = 0; j < LANES; ++j) sum += lanes[j];
    return sum;
}

// <dq, code_k> for each k and the sum of dq, and dq handed on to dw, in one pass.
template <int N, bool GIVE, bool ADD>
static void dot_minmax(const Active& active, const float* __restrict x,
                       const float* __restrict dq, float* __restrict dw, int64_t n, double* sums) {
    const float a = active.grid[0].a, b = active.grid[0].b;
    float top[N], lanes[N][LANES] = {}, plain[LANES] = {};
    for (int k = 0; k < N; ++k) top[k] = active.op[k].top;
    double whole = 0.0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (int j = 0; j < LANES; ++j) {
            const float unit = (x[i + j] + a) * b;
            const float d = dq[i + j];
            for (int k = 0; k < N; ++k) lanes[k][j] += d * round_positive(unit * top[k]);
            plain[j] += d;
            if (GIVE) dw[i + j] = ADD ? dw[i + j] + d : d;
        }
    }
    for (; i < n; ++i) {
        const float unit = (x[i] + a) * b;
        for (int k = 0; k < N; ++k) lanes[k][0] += dq[i] * round_positive(unit * top[k]);
        whole += dq[i];
        if (GIVE) dw[i] = ADD ? dw[i] + dq[i] : dq[i];
    }
    for (int j = 0; j < LANES; ++j) {
        for (int k = 0; k < N; ++k) sums[k] += lanes[k][j];
        whole += plain[j];
    }
    sums[N] += whole;
}

template <int N>
static void dot_minmax(const Active& active, const float* x, const float* dq, float* dw, bool add,
                       int64_t n, double* sums) {
    if (!dw) return dot_minmax<N, false, false>(active, x, dq, dw, n, sums);
    if (add) return dot_minmax<N, true, true>(active, x, dq, dw, n, sums);
    dot_minmax<N, true, false>(active, x, dq, dw, n, sums);
}

static double sum_of(const float* __restrict dq, int64_t n) {
    float lanes[LANES] = {};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; ++j) lanes[j] += dq[i + j];
    double sum = 0.0;
    for (; i < n; ++i) sum += dq[i];
    for (int j = 0; j < LANES; ++j) sum += lanes[j];
    return sum;
}

static void pass_on(const float* __restrict dq, float* __restrict dw, bool add, int64_t n) {
    if (add)
        for (int64_t i = 0; i < n; ++i) dw[i] += dq[i];
    else
        memcpy(dw, dq, n * sizeof(float));
}

// Adds <dq, code_k> to sums[k] and the sum of dq to sums[active.count], for a piece of a row, and
// hands dq on to dw (unless that is null) while it is in the cache.
static void dots(const Active& active, const float* x, const float* dq, float* dw, bool add,
                 int64_t n, double* sums) {
    for (int64_t i = 0; i < n; i += BLOCK) {
        const int64_t m = n - i < BLOCK ? n - i : BLOCK;
        float* to = dw ? dw + i : nullptr;
        if (active.minmax && active.count == 2) {
            dot_minmax<2>(active, x + i, dq + i, to, add, m, sums);
        } else if (active.minmax && active.count == 3) {
            dot_minmax<3>(active, x + i, dq + i, to, add, m, sums);
        } else if (active.minmax && active.count == 4) {
            dot_minmax<4>(active, x + i, dq + i, to, add, m, sums);
        } else {
            for (int k = 0; k < active.count; ++k) {
#define DQA_CALL(KIND) \
    sums[k] += dot_codes<KIND>(active.op[k], active.grid[k], x + i, dq + i, m)
                DQA_FOR_KIND(active.op[k].kind, DQA_CALL)
#undef DQA_CALL
            }
            sums[active.count] += sum_of(dq + i, m);
            if (dw) pass_on(dq + i, to, add, m);
        }
    }
}

static void encode(const Op& op, const Grid& g, const float* x, float* codes, int64_t n) {
#define DQA_CALL(KIND) \
    for (int64_t i = 0; i < n; ++i) codes[i] = code<KIND>(op, g, x[i])
    DQA_FOR_KIND(op.kind, DQA_CALL)
#undef DQA_CALL
}

// to[c * to_step + r] = from[r * from_step + c] for 8 times 8 numbers.
static inline void transpose_eight(const float* from, int64_t from_step, float* to,
                                   int64_t to_step) {
#ifdef DQA_SHUFFLES
    Eight a[8], b[8];
    for (int j = 0; j < 8; ++j) a[j] = eight(from + j * from_step);
    for (int j = 0; j < 8; j += 2) {
        b[j] = __builtin_shufflevector(a[j], a[j + 1], 0, 8, 2, 10, 4, 12, 6, 14);
        b[j + 1] = __builtin_shufflevector(a[j], a[j + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (int j = 0; j < 8; j += 4) {
        for (int k = 0; k < 2; ++k) {
            a[j + k] = __builtin_shufflevector(b[j + k], b[j + k + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            a[j + k + 2] =
                __builtin_shufflevector(b[j + k], b[j + k + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    }
    for (int k = 0; k < 4; ++k) {
        b[k] = __builtin_shufflevector(a[k], a[k + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        b[k + 4] = __builtin_shufflevector(a[k], a[k + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
    for (int j = 0; j < 8; ++j) memcpy(to + j * to_step, &b[j], sizeof(Eight));
#else
    for (int j = 0; j < 8; ++j)
        for (int k = 0; k < 8; ++k) to[k * to_step + j] = from[j * from_step + k];
#endif
}

// to[c * to_step + r] = from[r * from_step + c], 0 <= r < rows, 0 <= c < columns.
static void transpose(const float* from, int64_t from_step, int64_t rows, int64_t columns,
                      float* to, int64_t to_step) {
    const int64_t whole_rows = rows / 8 * 8, whole_columns = columns / 8 * 8;
    for (int64_t r = 0; r < whole_rows; r += 8)
        for (int64_t c = 0; c < whole_columns; c += 8)
            transpose_eight(from + r * from_step + c, from_step, to + c * to_step + r, to_step);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c)
            to[c * to_step + r] = from[r * from_step + c];
}

// Numbers that are copied at once although fewer are wanted; what is too much is overwritten by
// what comes next.
const int64_t STRETCH = 16;

static inline void copy_stretch(float* to, const float* from, int64_t inner, bool room) {
    if (room)
        memcpy(to, from, STRETCH * sizeof(float));
    else
        memcpy(to, from, inner * sizeof(float));
}

// `count` rows of weights of shape (outer, step / inner, inner), one after the other.
static void gather(const float* from, int64_t outer, int64_t step, int64_t count, int64_t inner,
                   float* to) {
    if (inner == 1) return transpose(from, step, outer, count, to, outer);
    const int64_t size = outer * inner;
    for (int64_t o = 0; o < outer; ++o) {
        const bool room = inner <= STRETCH && step >= STRETCH && o + 1 < outer &&
                          o * inner + STRETCH <= size;
        for (int64_t r = 0; r < count; ++r)
            copy_stretch(to + r * size + o * inner, from + o * step + r * inner, inner, room);
    }
}

// The way back.
static void scatter(const float* from, int64_t outer, int64_t step, int64_t count, int64_t inner,
                    float* to) {
    if (inner == 1) return transpose(from, outer, count, outer, to, step);
    const int64_t size = outer * inner;
    for (int64_t o = 0; o < outer; ++o) {
        for (int64_t r = 0; r < count; ++r) {
            const bool room = inner <= STRETCH && r * inner + STRETCH <= count * inner &&
                              r * size + o * inner + STRETCH <= count * size;
            copy_stretch(to + o * step + r * inner, from + r * size + o * inner, inner, room);
        }
    }
}

#include "cpu_columns.h"

#undef DQA_FOR_KIND
