// The quantizers' formulas, shared by the CPU's and the GPU's kernels.
//
// A layer's weights are `rows` rows of `size` numbers with a range each. Every formula keeps the
// order of operations of the graph that nnabla_dqa.quantization builds, so that codes agree.
#pragma once

#include <math.h>
#include <stdint.h>

#ifndef DQA_FN
#define DQA_FN static inline
#endif

namespace dqa {

enum Kind : int32_t { MINMAX = 0, SAWB_CLOSED = 1, SAWB_SEARCH = 2, BWN = 3, TWN = 4, FLOAT = 5 };

// A quantizer. `top` is the highest code; c1 and c2 are SAWB's coefficients.
struct Op {
    int32_t kind;
    float top;
    float c1;
    float c2;
};

// A quantizer's grid for one row: Q(x) = scale * code(x) + offset; `a` and `b` make the code.
struct Grid {
    float a;
    float b;
    float scale;
    float offset;
};

// What the quantizers of one row need to know about it; only what they ask for is filled in.
struct Stats {
    float minimum;
    float maximum;
    float mean_magnitude;  // E|x|
    float unit_mean;       // E|x| / max|x|
    float unit_square;     // E[x^2] / max|x|^2
    float total;           // sum of |x| where TWN keeps x
    float count;           // their number
    int32_t finite;
};

const float TINY = 1e-30f;
const int CANDIDATES = 16;

DQA_FN float larger(float x, float y) { return x > y ? x : y; }
DQA_FN float smaller(float x, float y) { return x < y ? x : y; }

DQA_FN bool is_sawb(int32_t kind) { return kind == SAWB_CLOSED || kind == SAWB_SEARCH; }

DQA_FN float peak_of(const Stats& s) { return larger(-s.minimum, s.maximum); }
DQA_FN float inverse_peak(const Stats& s) { return 1.0f / larger(peak_of(s), TINY); }
DQA_FN float unit_rms(const Stats& s) { return sqrtf(larger(s.unit_square, TINY)); }
DQA_FN float inverse_delta(const Stats& s) {
    return 1.0f / larger(s.mean_magnitude * 0.7f, TINY);
}
DQA_FN float closed_clip(const Op& op, const Stats& s) {
    return unit_rms(s) * op.c1 + s.unit_mean * op.c2;
}

// Whole numbers, halves away from zero, of 0 <= x < 2^23. Adding a true half would round up
// what lies just below it.
DQA_FN float round_positive(float x) {
    return static_cast<float>(static_cast<int32_t>(x + 0.49999997f));
}

// `clip` is SAWB's, relative to max|x|.
DQA_FN Grid make_grid(const Op& op, const Stats& s, float clip) {
    Grid g = {0.0f, 0.0f, 1.0f, 0.0f};
    if (op.kind == MINMAX) {
        const float range = larger(s.maximum - s.minimum, TINY);
        g.a = s.minimum * -1.0f;
        g.b = 1.0f / range;
        g.scale = range * static_cast<float>(1.0 / op.top);
        g.offset = s.minimum;
    } else if (is_sawb(op.kind)) {
        const float bounded = larger(clip, 1e-6f);
        const float alpha = bounded * peak_of(s);
        g.a = inverse_peak(s);
        g.b = (op.top / 2.0f) / bounded;
        g.scale = alpha * static_cast<float>(2.0 / op.top);
        g.offset = alpha * -1.0f;
    } else if (op.kind == BWN) {
        g.scale = s.mean_magnitude * 2.0f;
        g.offset = s.mean_magnitude * -1.0f;
    } else if (op.kind == TWN) {
        g.a = inverse_delta(s);
        g.scale = s.total / larger(s.count, 1.0f);
        g.offset = g.scale * -1.0f;
    }
    if (!s.finite) {
        // NaN or infinity has to be seen in what the layer computes.
        g = {0.0f, 0.0f, NAN, NAN};
    }
    return g;
}

DQA_FN float code_minmax(const Op& op, const Grid& g, float x) {
    return round_positive(((x + g.a) * g.b) * op.top);
}
DQA_FN float code_sawb(const Op& op, const Grid& g, float x) {
    const float position = (x * g.a) * g.b + op.top / 2.0f;
    return round_positive(smaller(larger(position, 0.0f), op.top));
}
DQA_FN float code_bwn(float x) { return x >= 0.0f ? 1.0f : 0.0f; }
DQA_FN float code_twn(const Grid& g, float x) {
    const float v = x * g.a;
    return (v > 1.0f ? 2.0f : (v < -1.0f ? 0.0f : 1.0f));
}

// The code of x; for FLOAT x itself.
DQA_FN float code_of(const Op& op, const Grid& g, float x) {
    switch (op.kind) {
        case MINMAX: return code_minmax(op, g, x);
        case SAWB_CLOSED:
        case SAWB_SEARCH: return code_sawb(op, g, x);
        case BWN: return code_bwn(x);
        case TWN: return code_twn(g, x);
        default: return x;
    }
}

}  // namespace dqa
