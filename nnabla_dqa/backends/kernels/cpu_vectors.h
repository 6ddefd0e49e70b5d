// Some numbers at a time, and the same functions for one: included by cpu_kernels.h, once for each
// instruction set. `Eight` is what sums keep their order with, `Wide` what its registers hold.

#ifdef DQA_VECTORS
#define DQA_VECTOR(NAME, INTS, COUNT)                                                           \
    typedef float NAME __attribute__((vector_size(4 * COUNT), aligned(4)));                     \
    typedef int32_t INTS __attribute__((vector_size(4 * COUNT)));                               \
    static inline NAME magnitude(NAME v) { return (NAME)((INTS)v & 0x7fffffff); }               \
    static inline NAME over_one(NAME v, NAME yes) { return v > 1.0f ? yes : NAME{}; }           \
    static inline NAME at_least_zero(NAME v) { return v > 0.0f ? v : NAME{}; }                  \
    static inline NAME at_most(NAME v, float most) { return v < most ? v : NAME{} + most; }     \
    static inline NAME least_of(NAME v, NAME other) { return v < other ? v : other; }           \
    static inline NAME most_of(NAME v, NAME other) { return v > other ? v : other; }            \
    static inline NAME not_below(NAME v, NAME x) { return v >= x ? NAME{} + 1.0f : NAME{}; }    \
    static inline NAME whole(NAME v) {                                                          \
        return __builtin_convertvector(__builtin_convertvector(v + 0.49999997f, INTS), NAME);   \
    }
DQA_VECTOR(Eight, EightInts, 8)
#if DQA_WIDTH == 8
typedef Eight Wide;
#else
DQA_VECTOR(Wide, WideInts, DQA_WIDTH)
#endif
#undef DQA_VECTOR
#else
// One after the other, in the same order.
struct Eight {
    float lane[8];
    float& operator[](int j) { return lane[j]; }
    float operator[](int j) const { return lane[j]; }
};
typedef Eight Wide;
#define DQA_LANES(EXPRESSION)                              \
    Eight result;                                          \
    for (int j = 0; j < 8; ++j) result[j] = EXPRESSION;    \
    return result
static inline Eight operator+(Eight x, Eight y) { DQA_LANES(x[j] + y[j]); }
static inline Eight operator-(Eight x, Eight y) { DQA_LANES(x[j] - y[j]); }
static inline Eight operator*(Eight x, Eight y) { DQA_LANES(x[j] * y[j]); }
static inline Eight operator+(Eight x, float y) { DQA_LANES(x[j] + y); }
static inline Eight operator*(Eight x, float y) { DQA_LANES(x[j] * y); }
static inline Eight magnitude(Eight v) { DQA_LANES(fabsf(v[j])); }
static inline Eight over_one(Eight v, Eight yes) { DQA_LANES(v[j] > 1.0f ? yes[j] : 0.0f); }
static inline Eight at_least_zero(Eight v) { DQA_LANES(v[j] > 0.0f ? v[j] : 0.0f); }
static inline Eight at_most(Eight v, float most) { DQA_LANES(v[j] < most ? v[j] : most); }
static inline Eight least_of(Eight v, Eight other) { DQA_LANES(v[j] < other[j] ? v[j] : other[j]); }
static inline Eight most_of(Eight v, Eight other) { DQA_LANES(v[j] > other[j] ? v[j] : other[j]); }
static inline Eight not_below(Eight v, Eight x) { DQA_LANES(v[j] >= x[j] ? 1.0f : 0.0f); }
static inline Eight whole(Eight v) { DQA_LANES(round_positive(v[j])); }
#undef DQA_LANES
#endif

static inline float magnitude(float v) { return fabsf(v); }
static inline float over_one(float v, float yes) { return v > 1.0f ? yes : 0.0f; }
static inline float at_least_zero(float v) { return larger(v, 0.0f); }
static inline float at_most(float v, float most) { return smaller(v, most); }
static inline float least_of(float v, float other) { return smaller(v, other); }
static inline float most_of(float v, float other) { return larger(v, other); }
static inline float not_below(float v, float x) { return v >= x ? 1.0f : 0.0f; }
static inline float whole(float v) { return round_positive(v); }

template <class V>
static inline V load(const float* x) {
    V v;
    memcpy(&v, x, sizeof v);
    return v;
}

template <class V>
static inline void store(float* x, V v) {
    memcpy(x, &v, sizeof v);
}

static inline Eight eight(const float* x) { return load<Eight>(x); }
