// Attention and its gradient in closed form, shared by the CPU's and the GPU's kernels:
//
//     s = softmax(alpha / sd / T),  a = (1 - sum(hard)) s + hard
//
// with the standard deviation sd, or 1 where alpha is not normalized (DQA, arXiv 2103.13322, eq. 4).
// K is small, so one thread does it, in double.
#pragma once

#include "grid.h"

namespace dqa {

const int MAX_QUANTIZERS = 32;

enum Normalize : int32_t { NOT = 0, BY_STD = 1, BY_DETACHED_STD = 2 };

// AttentionArgs of backends/kernel_args.py. Without `alpha` the coefficients are given.
struct Attention {
    const float* alpha;
    const float* temperature;
    const float* hard;
    float* a;         // the coefficients, made by the forward pass
    const float* da;  // the gradient that came to them; may be null
    double eps;       // the least standard deviation
    int32_t normalize;
    int32_t ddof;
};

// What softmax and its gradient need to know of alpha.
struct Spread {
    double largest;
    double mean;
    double deviation;
    double scale;  // 1 / (deviation * temperature)
    double rest;   // 1 - sum(hard)
    bool moves;    // whether the deviation has a gradient
};

// The softmax goes to `parts`.
DQA_FN Spread attend(const Attention& x, int count, double* parts) {
    Spread own = {x.alpha[0], 0.0, 1.0, 0.0, 1.0, false};
    for (int k = 0; k < count; ++k) {
        if (x.alpha[k] > own.largest) own.largest = x.alpha[k];
        own.mean += x.alpha[k];
        own.rest -= x.hard[k];
    }
    own.mean /= count;
    if (x.normalize != NOT) {
        double variance = 0.0;
        for (int k = 0; k < count; ++k)
            variance += (x.alpha[k] - own.mean) * (x.alpha[k] - own.mean);
        variance /= count - x.ddof;
        const bool wide = variance > x.eps * x.eps;
        own.deviation = wide ? sqrt(variance) : x.eps;
        own.moves = wide && x.normalize == BY_STD;
    }
    own.scale = 1.0 / (own.deviation * x.temperature[0]);
    double total = 0.0;
    for (int k = 0; k < count; ++k) {
        // The largest one's gap is 0 also where the scale is infinite.
        parts[k] = exp((x.alpha[k] - own.largest) * own.scale);
        total += parts[k];
    }
    for (int k = 0; k < count; ++k) parts[k] /= total;
    return own;
}

DQA_FN float coefficient(const Attention& x, const Spread& own, const double* parts, int k) {
    return static_cast<float>(parts[k] * own.rest + x.hard[k]);
}

// From dL/da to dL/dalpha, in place.
DQA_FN void attention_gradient(const Attention& x, const Spread& own, int count,
                               const double* parts, double* gradients) {
    double mean = 0.0, along = 0.0;
    for (int k = 0; k < count; ++k) mean += parts[k] * gradients[k];
    for (int k = 0; k < count; ++k) {
        gradients[k] = parts[k] * (gradients[k] - mean) * own.rest * own.scale;
        along += gradients[k] * (x.alpha[k] - own.largest);
    }
    if (!own.moves) return;
    along /= (count - x.ddof) * own.deviation * own.deviation;
    for (int k = 0; k < count; ++k) gradients[k] -= along * (x.alpha[k] - own.mean);
}

}  // namespace dqa
