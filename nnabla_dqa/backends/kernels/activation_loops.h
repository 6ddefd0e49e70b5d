// The CPU's loops over activations, compiled once for each instruction set: cpu.cpp includes this
// file behind cpu_kernels.h. activation_grid.h has the formulas. No include guard.

template <int KIND>
static void add_activation_codes(const ActivationGrid g, float scale, float offset, int place,
                                 const float* __restrict x, float* __restrict q, int64_t n) {
    if (place == ONLY) {
        for (int64_t i = 0; i < n; ++i) q[i] = scale * activation_code<KIND>(g, x[i]) + offset;
    } else if (place == FIRST) {
        for (int64_t i = 0; i < n; ++i) q[i] = scale * activation_code<KIND>(g, x[i]);
    } else if (place == MIDDLE) {
        for (int64_t i = 0; i < n; ++i) q[i] = q[i] + scale * activation_code<KIND>(g, x[i]);
    } else {
        for (int64_t i = 0; i < n; ++i)
            q[i] = (q[i] + scale * activation_code<KIND>(g, x[i])) + offset;
    }
}

// Several of one range.
template <int N>
static void mix_ranges(const ActiveActivations& active, const float* __restrict x,
                       float* __restrict q, int64_t n) {
    const ActivationGrid g = active.grid[0];
    const float offset = active.offset;
    float top[N], scale[N];
    for (int k = 0; k < N; ++k) top[k] = active.grid[k].top, scale[k] = active.scale[k];
    for (int64_t i = 0; i < n; ++i) {
        const float unit = limited<RANGE>(g, x[i]);
        float sum = scale[0] * round_positive(unit * top[0]);
        for (int k = 1; k < N; ++k) sum = sum + scale[k] * round_positive(unit * top[k]);
        q[i] = sum + offset;
    }
}

#define DQA_FOR_ACTIVATION(kind, CALL) \
    switch (kind) {                    \
        case RANGE: CALL(RANGE); break; \
        case CLIP: CALL(CLIP); break;  \
        case STEP: CALL(STEP); break;  \
        case SIGN: CALL(SIGN); break;  \
        default: CALL(REAL); break;    \
    }

static void activate(const ActiveActivations& active, const float* x, float* q, int64_t n) {
    const int count = active.count;
    if (active.one_range && count == 1) return mix_ranges<1>(active, x, q, n);
    if (active.one_range && count == 2) return mix_ranges<2>(active, x, q, n);
    if (active.one_range && count == 3) return mix_ranges<3>(active, x, q, n);
    if (active.one_range && count == 4) return mix_ranges<4>(active, x, q, n);
    for (int64_t i = 0; i < n; i += BLOCK) {
        const int64_t m = n - i < BLOCK ? n - i : BLOCK;
        for (int k = 0; k < count; ++k) {
            const int place = count == 1 ? ONLY : k == 0 ? FIRST : k == count - 1 ? LAST : MIDDLE;
#define DQA_CALL(KIND)                                                                     \
    add_activation_codes<KIND>(active.grid[k], active.scale[k], active.offset, place, x + i, \
                               q + i, m)
            DQA_FOR_ACTIVATION(active.kind[k], DQA_CALL)
#undef DQA_CALL
        }
    }
}

enum Write { NOTHING, SET, ADD };

// The gradient of one quantizer to x, written or added, and sums of dq times its code, times its
// gradient to what is learned, and over what is outside of its limits.
template <int KIND, int WRITE, bool CODES>
static void back_codes(const ActivationGrid g, float share, const float* __restrict x,
                       const float* __restrict dq, float* __restrict dx, int64_t n, double* sums) {
    const bool LEARNS = KIND == CLIP || KIND == STEP;
    float codes[LANES] = {}, moves[LANES] = {}, outside[LANES] = {};
    const auto one = [&](int64_t i, int j) {
        const float v = x[i], d = dq[i];
        const bool inside = passes<KIND>(g, v);
        const float own = inside ? share * d : 0.0f;
        if (WRITE == SET) dx[i] = own;
        if (WRITE == ADD) dx[i] += own;
        if (CODES) codes[j] += d * activation_code<KIND>(g, v);
        if (LEARNS) moves[j] += d * learned<KIND>(g, v);
        if (KIND == STEP) outside[j] += inside ? 0.0f : d;
    };
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; ++j) one(i + j, j);
    for (; i < n; ++i) one(i, 0);
    for (int j = 0; j < LANES; ++j)
        sums[0] += codes[j], sums[1] += moves[j], sums[2] += outside[j];
}

template <int N, int WRITE, bool CODES>
static void back_ranges(const ActiveActivations& active, const float* __restrict x,
                        const float* __restrict dq, float* __restrict dx, int64_t n,
                        double* sums) {
    const ActivationGrid g = active.grid[0];
    float top[N], total = active.share[0], codes[N][LANES] = {};
    for (int k = 0; k < N; ++k) top[k] = active.grid[k].top;
    for (int k = 1; k < N; ++k) total += active.share[k];
    const auto one = [&](int64_t i, int j) {
        const float v = activation_place<RANGE>(g, x[i]), d = dq[i];
        const float own = (v > g.low) & (v < g.high) ? total * d : 0.0f;
        if (WRITE == SET) dx[i] = own;
        if (WRITE == ADD) dx[i] += own;
        if (!CODES) return;
        const float unit = smaller(larger(v, g.low), g.high);
        for (int k = 0; k < N; ++k) codes[k][j] += d * round_positive(unit * top[k]);
    };
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; ++j) one(i + j, j);
    for (; i < n; ++i) one(i, 0);
    for (int k = 0; CODES && k < N; ++k)
        for (int j = 0; j < LANES; ++j) sums[3 * k] += codes[k][j];
}

#define DQA_BY_WRITE(NAME, FIRST_ARGUMENT, ...)                           \
    if (write == NOTHING && codes) NAME<FIRST_ARGUMENT, NOTHING, true>(__VA_ARGS__);  \
    if (write == NOTHING && !codes) NAME<FIRST_ARGUMENT, NOTHING, false>(__VA_ARGS__); \
    if (write == SET && codes) NAME<FIRST_ARGUMENT, SET, true>(__VA_ARGS__);          \
    if (write == SET && !codes) NAME<FIRST_ARGUMENT, SET, false>(__VA_ARGS__);        \
    if (write == ADD && codes) NAME<FIRST_ARGUMENT, ADD, true>(__VA_ARGS__);          \
    if (write == ADD && !codes) NAME<FIRST_ARGUMENT, ADD, false>(__VA_ARGS__)

// `sums`: three for each quantizer that takes part, as of `back_codes`, then the sum of dq. Those
// with codes are wanted where `codes` is.
static void activate_back(const ActiveActivations& active, const float* x, const float* dq,
                          float* dx, bool add, bool codes, int64_t n, double* sums) {
    for (int64_t i = 0; i < n; i += BLOCK) {
        const int64_t m = n - i < BLOCK ? n - i : BLOCK;
        float* to = dx ? dx + i : nullptr;
        int write = !dx ? NOTHING : add ? ADD : SET;
        if (codes) sums[3 * active.count] += sum_of(dq + i, m);
        if (active.one_range && active.count <= 4) {
#define DQA_CALL(N) DQA_BY_WRITE(back_ranges, N, active, x + i, dq + i, to, m, sums)
            switch (active.count) {
                case 1: DQA_CALL(1); break;
                case 2: DQA_CALL(2); break;
                case 3: DQA_CALL(3); break;
                default: DQA_CALL(4); break;
            }
#undef DQA_CALL
            continue;
        }
        for (int k = 0; k < active.count; ++k) {
#define DQA_CALL(KIND)                                                                       \
    DQA_BY_WRITE(back_codes, KIND, active.grid[k], active.share[k], x + i, dq + i, to, m, \
                 sums + 3 * k)
            DQA_FOR_ACTIVATION(active.kind[k], DQA_CALL)
#undef DQA_CALL
            if (write == SET) write = ADD;
        }
    }
}

#undef DQA_BY_WRITE
#undef DQA_FOR_ACTIVATION
