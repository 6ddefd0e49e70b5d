// SAWB's search for its clip (clip_search.py): included by cpu_kernels.h, once for each instruction
// set. A row alone is searched eight numbers at a time; of several rows one goes into each lane.

// The squared error of one magnitude. With h = 2 clip / top the non-negative levels are h (k + 1/2).
template <class V, class W>
static inline V squared_deviation(V v, W inverse, float highest) {
    const V position = v * inverse + -0.5f;
    const V deviation = position - at_most(whole(at_least_zero(position)), highest);
    return deviation * deviation;
}

static inline float highest_level(float top) { return (top + 1.0f) / 2.0f - 1.0f; }

// Elements before the first aligned one of a candidate's row in the graph's array of squares,
// (rows, n, CANDIDATES) summed over n. It does not depend on the row: CANDIDATES is a multiple of 4.
static inline int64_t unaligned_candidate(int candidate, int64_t n) {
    return unaligned(candidate, n);
}

// Mean squared error, in units of the tensor, of the magnitudes in `sample` for one clip.
static float clip_error(const Sample& sample, int candidate, float clip, float top) {
    const float half_step = clip * static_cast<float>(2.0 / top);
    const float inverse = 1.0f / half_step;
    const float highest = highest_level(top);
    const int64_t n = sample.count;
    const int64_t first = unaligned_candidate(candidate, n);
    float mean = 0.0f;
    for (int stratum = 0; stratum < sample.strata; ++stratum) {
        const float sum = row_sum(sample.values + stratum * n, n, first, [=](auto v) {
            return squared_deviation(v, inverse, highest);
        });
        const float part = sum * sample.weights[stratum];
        mean = stratum ? mean + part : part;
    }
    return mean * (half_step * half_step);
}

// The logarithms of the clips that are tried from `start` on.
static void ladder(float start, float step, bool bounded, float* values) {
    const float before = start + step * -1.0f;
    float reached = 0.0f;
    for (int j = 0; j < CANDIDATES; ++j) {
        reached = j ? reached + step : step;
        values[j] = reached + before;
        if (bounded) values[j] = smaller(values[j], 0.0f);
    }
}

// The value whose error is least; the mean of several.
static float of_least_error(const float* values, const float* errors) {
    float least = errors[0];
    for (int j = 1; j < CANDIDATES; ++j) least = smaller(errors[j], least);
    float chosen[CANDIDATES], taken[CANDIDATES];
    for (int j = 0; j < CANDIDATES; ++j) {
        chosen[j] = least - errors[j] >= 0.0f ? 1.0f : 0.0f;
        taken[j] = chosen[j] * values[j];
    }
    const auto same = [](auto v) { return v; };
    return row_sum(taken, CANDIDATES, 0, same) / row_sum(chosen, CANDIDATES, 0, same);
}

static inline float lowest_log_clip(const Stats& stats) {
    return logf(smaller(unit_rms(stats) * 0.9f, 1.0f));
}
static inline float coarse_step(float low) {
    return low * static_cast<float>(-1.0 / (CANDIDATES - 1));
}
static inline float fine_step(float step) {
    return step * static_cast<float>(2.0 / (CANDIDATES - 1));
}

static float best_step(const Sample& sample, float start, float step, float top, bool bounded) {
    float values[CANDIDATES], errors[CANDIDATES];
    ladder(start, step, bounded, values);
    for (int j = 0; j < CANDIDATES; ++j) errors[j] = clip_error(sample, j, expf(values[j]), top);
    return of_least_error(values, errors);
}

// SAWB's clip of one row, relative to the largest magnitude.
static float searched_clip(const Sample& sample, const Stats& stats, float top) {
    const float low = lowest_log_clip(stats);
    const float step = coarse_step(low);
    const float coarse = best_step(sample, low, step, top, false);
    return expf(best_step(sample, coarse + step * -1.0f, fine_step(step), top, true));
}

// As `row_sum` of the squared errors, for rows whose numbers lie side by side, GROUP of them.
template <class V>
static inline V lane_sum(const float* values, int64_t n, int64_t first, V inverse, float highest) {
    const auto term = [=](int64_t i) {
        return squared_deviation(load<V>(values + i * GROUP), inverse, highest);
    };
    V sum = {};
    if (first > n) first = n;
    if (n - first < 4) {
        for (int64_t i = 0; i < n; ++i) sum = sum + term(i);
        return sum;
    }
    const int64_t end8 = first + (n - first) / 8 * 8;
    const int64_t end4 = first + (n - first) / 4 * 4;
    V a = {}, b = {}, c = {}, d = {};
    if (end8 > first) {
        V e = {}, f = {}, g = {}, h = {};
        for (int64_t i = first; i < end8; i += 8) {
            a = a + term(i), b = b + term(i + 1), c = c + term(i + 2), d = d + term(i + 3);
            e = e + term(i + 4), f = f + term(i + 5), g = g + term(i + 6), h = h + term(i + 7);
        }
        a = a + e, b = b + f, c = c + g, d = d + h;
    }
    if (end4 > end8)
        a = a + term(end8), b = b + term(end8 + 1), c = c + term(end8 + 2), d = d + term(end8 + 3);
    sum = (a + c) + (b + d);
    for (int64_t i = 0; i < first; ++i) sum = sum + term(i);
    for (int64_t i = end4; i < n; ++i) sum = sum + term(i);
    return sum;
}

// As `clip_error`, with a clip for each row.
static void lane_errors(const Sample& sample, int candidate, const float* clips, float top,
                        float* __restrict errors) {
    const float highest = highest_level(top);
    const int64_t n = sample.count;
    const int64_t first = unaligned_candidate(candidate, n);
    float half_step[GROUP], inverse[GROUP];
    for (int l = 0; l < GROUP; ++l) {
        half_step[l] = clips[l] * static_cast<float>(2.0 / top);
        inverse[l] = 1.0f / half_step[l];
    }
    for (size_t l = 0; l < GROUP; l += sizeof(Wide) / sizeof(float)) {
        Wide mean = {};
        for (int stratum = 0; stratum < sample.strata; ++stratum) {
            const float* values = sample.values + stratum * n * GROUP + l;
            const Wide sum = lane_sum(values, n, first, load<Wide>(inverse + l), highest);
            const Wide part = sum * sample.weights[stratum];
            mean = stratum ? mean + part : part;
        }
        const Wide half = load<Wide>(half_step + l);
        store(errors + l, mean * (half * half));
    }
}

static void lane_best_steps(const Sample& sample, int rows, const float* start, const float* step,
                            float top, bool bounded, float* best) {
    float values[GROUP][CANDIDATES], errors[GROUP][CANDIDATES];
    float clips[GROUP], found[GROUP];
    for (int l = 0; l < rows; ++l) ladder(start[l], step[l], bounded, values[l]);
    for (int j = 0; j < CANDIDATES; ++j) {
        for (int l = 0; l < GROUP; ++l) clips[l] = l < rows ? expf(values[l][j]) : 1.0f;
        lane_errors(sample, j, clips, top, found);
        for (int l = 0; l < rows; ++l) errors[l][j] = found[l];
    }
    for (int l = 0; l < rows; ++l) best[l] = of_least_error(values[l], errors[l]);
}

// As `searched_clip` for at most GROUP rows; number i of row l is sample.values[i * GROUP + l].
static void searched_clips(const Sample& sample, const Stats* stats, int rows, float top,
                           float* clips) {
    float start[GROUP] = {}, step[GROUP] = {}, best[GROUP] = {};
    for (int l = 0; l < rows; ++l) {
        start[l] = lowest_log_clip(stats[l]);
        step[l] = coarse_step(start[l]);
    }
    lane_best_steps(sample, rows, start, step, top, false, best);
    for (int l = 0; l < rows; ++l) {
        start[l] = best[l] + step[l] * -1.0f;
        step[l] = fine_step(step[l]);
    }
    lane_best_steps(sample, rows, start, step, top, true, best);
    for (int l = 0; l < rows; ++l) clips[l] = expf(best[l]);
}

static float largest_magnitude(const float* x, int64_t n) {
    const int64_t width = sizeof(Wide) / sizeof(float);
    float largest = 0.0f;
    if (n < width) {
        for (int64_t i = 0; i < n; ++i) largest = larger(fabsf(x[i]), largest);
        return largest;
    }
    // The last numbers once more rather than one by one.
    const Wide last = magnitude(load<Wide>(x + n - width));
    Wide a = last, b = last, c = last, d = last;
    int64_t i = 0;
    for (; i + 4 * width <= n; i += 4 * width) {
        a = most_of(magnitude(load<Wide>(x + i)), a);
        b = most_of(magnitude(load<Wide>(x + i + width)), b);
        c = most_of(magnitude(load<Wide>(x + i + 2 * width)), c);
        d = most_of(magnitude(load<Wide>(x + i + 3 * width)), d);
    }
    for (; i + width <= n; i += width) a = most_of(magnitude(load<Wide>(x + i)), a);
    float lanes[width];
    store(lanes, most_of(most_of(a, b), most_of(c, d)));
    for (int64_t half = width / 2; half > 0; half /= 2)
        for (int64_t j = 0; j < half; ++j) lanes[j] = larger(lanes[j + half], lanes[j]);
    return lanes[0];
}

// The two strata of clip_search.py of a row of `size` numbers, relative to 1 / scale, from `values` on.
static void take_sample(const float* x, int64_t size, float scale, const Sample& sample,
                        float* values) {
    const int64_t block = sample.block, stride = sample.stride;
    if (block == 0) {
        for (int64_t i = 0; i < size; ++i) values[i * stride] = fabsf(x[i] * scale);
        return;
    }
    for (int64_t b = 0; b < sample.count; ++b) {
        // The last block is filled up from the front.
        const int64_t begin = b * block;
        const int64_t inside = begin + block < size ? block : size - begin;
        float largest = largest_magnitude(x + begin, inside);
        if (inside < block) largest = larger(largest_magnitude(x, block - inside), largest);
        largest *= scale;
        const float first = fabsf(x[begin] * scale);
        const float second = fabsf(x[begin + 1 < size ? begin + 1 : begin + 1 - size] * scale);
        const float is_largest = first - largest >= 0.0f ? 1.0f : 0.0f;
        values[b * stride] = largest;
        values[(sample.count + b) * stride] = first + is_largest * (second - first);
    }
}
