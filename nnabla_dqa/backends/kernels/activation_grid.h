// The formulas of the quantizers of activations, shared by the CPU's and the GPU's kernels: grids,
// codes and gradients of one number, and what is done once a layer before and after the loops. Every
// formula keeps the order of operations of the graph that nnabla_dqa.quantization.activations
// builds, so that codes agree.
#pragma once

#include "attention.h"

namespace dqa {

// RANGE is EMAMinMax, CLIP PACT, STEP LSQ; the same in backends/activation_args.py.
enum ActivationKind : int32_t { RANGE = 0, CLIP = 1, STEP = 2, SIGN = 3, REAL = 4 };

// ActivationOp of backends/activation_args.py: a quantizer. `array`, `offset` and `first` are the
// places of its arrays: the range, clip or step; LSQ+'s offset; the first values. -1: none.
struct ActivationOp {
    int32_t kind;
    float top;      // the highest code
    float below;    // n: how many codes lie below zero
    float initial;  // a step's first value relative to E|x|, 0 where a clip has a given one
    float factor;   // of a step's gradient
    int32_t array;
    int32_t offset;
    int32_t first;
};

// Q(x) = scale * code(x) + offset, with the code the whole number nearest to top * limit(v) or, for
// CLIP and STEP, to limit(v) + base; v = (x + shift) * inverse.
struct ActivationGrid {
    float shift, inverse, low, high, top, base, clip, scale, offset;
};

// The quantizers of activations that take part, with their shares in `scale` and `offset`.
struct ActiveActivations {
    int32_t count;
    bool one_range;
    float offset;
    int32_t kind[MAX_QUANTIZERS];
    float share[MAX_QUANTIZERS];
    float scale[MAX_QUANTIZERS];
    ActivationGrid grid[MAX_QUANTIZERS];
};

// What backward has to know of attention as forward has seen it.
struct Attended {
    Spread spread;
    double softmax[MAX_QUANTIZERS];
    float alpha[MAX_QUANTIZERS];
    float shares[MAX_QUANTIZERS];
};

// A layer as the formulas see it.
struct ActivationSet {
    const ActivationOp* ops;
    int32_t count;
    int32_t arrays;
    int32_t trains;  // whether running arrays are told what a mini-batch shows
};

// What the backward pass has to know of the forward pass.
struct Activated {
    Attended attended;
    ActiveActivations active;
    int32_t mixes;    // whether there are shares
    int32_t attends;  // whether they are made of attention
    float least;      // a quantizer whose share is below takes no part
    int32_t chosen[MAX_QUANTIZERS];
    double sign[MAX_QUANTIZERS];  // d(used clip or step) / d(array)
    float minimum, maximum;
    float first[MAX_QUANTIZERS];
    float offsets[MAX_QUANTIZERS];
    int32_t first_is_set[MAX_QUANTIZERS];
    int32_t finite;
};

// Where NNabla's F.max and F.min begin.
const float EXTREME = 1e8f;

template <int KIND>
DQA_FN float activation_place(const ActivationGrid& g, float x) {
    return KIND == CLIP ? x * g.inverse : (x + g.shift) * g.inverse;
}

template <int KIND>
DQA_FN float limited(const ActivationGrid& g, float x) {
    return smaller(larger(activation_place<KIND>(g, x), g.low), g.high);
}

// Halves away from zero.
DQA_FN float round_signed(float v) {
    const float whole = round_positive(fabsf(v));
    return v < 0.0f ? -whole : whole;
}

// The code of x; for REAL x itself.
template <int KIND>
DQA_FN float activation_code(const ActivationGrid& g, float x) {
    if (KIND == RANGE) return round_positive(limited<KIND>(g, x) * g.top);
    if (KIND == CLIP) return round_positive(limited<KIND>(g, x));
    if (KIND == STEP) return round_signed(limited<KIND>(g, x)) + g.base;
    if (KIND == SIGN) return x < 0.0f ? 0.0f : 1.0f;
    return x;
}

// Whether the gradient to x is 1, else it is 0; at the limits themselves as NNabla's functions say.
template <int KIND>
DQA_FN bool passes(const ActivationGrid& g, float x) {
    if (KIND == RANGE || KIND == STEP) {
        const float v = activation_place<KIND>(g, x);
        return (v > g.low) & (v < g.high);
    }
    if (KIND == CLIP) return (x > 0.0f) & !(x > g.clip);
    if (KIND == SIGN) return (x > -1.0f) & (x < 1.0f);
    return true;
}

// What the gradient to a clip or a step is for one x.
template <int KIND>
DQA_FN float learned(const ActivationGrid& g, float x) {
    if (KIND == CLIP) return x > g.clip ? 1.0f : 0.0f;
    const float v = activation_place<KIND>(g, x);
    return round_signed(limited<KIND>(g, x)) - (passes<KIND>(g, x) ? v : 0.0f);
}

// abs(v), at least TINY, where v is not set `initial`; and its derivative.
DQA_FN float positive(float v, float initial, double* sign) {
    const float used = v != 0.0f ? v : initial;
    *sign = v == 0.0f || !(fabsf(v) > TINY) ? 0.0 : v < 0.0f ? -1.0 : 1.0;
    return larger(fabsf(used), TINY);
}

DQA_FN bool has_first_value(const ActivationOp& op) {
    return op.kind == STEP || (op.kind == CLIP && op.initial == 0.0f);
}

// Which arrays are not set, so that this mini-batch has to be looked at before.
struct Unset {
    bool extremes, mean;
};

DQA_FN bool first_is_set(const ActivationOp& op, const float* const* arrays) {
    return op.first < 0 || arrays[op.first][1] != 0.0f;
}

DQA_FN Unset unset_arrays(const ActivationSet& set, const float* const* arrays) {
    Unset unset = {false, false};
    for (int k = 0; k < set.count; ++k) {
        const ActivationOp& op = set.ops[k];
        if (op.kind == RANGE) unset.extremes |= set.trains && arrays[op.array][2] != 1.0f;
        if (!has_first_value(op)) continue;
        const bool wanted = arrays[op.array][0] == 0.0f || !first_is_set(op, arrays);
        unset.extremes |= op.kind == CLIP && wanted;
        unset.mean |= op.kind == STEP && wanted;
    }
    return unset;
}

DQA_FN ActivationGrid activation_grid(const ActivationSet& set, int k, const float* const* arrays,
                                      Activated* own) {
    const ActivationOp& op = set.ops[k];
    ActivationGrid g = {0.0f, 1.0f, 0.0f, op.top, op.top, op.below, 0.0f, 1.0f, 0.0f};
    const float* state = op.array < 0 ? nullptr : arrays[op.array];
    if (op.kind == RANGE) {
        float low = state[0], high = state[1];
        if (set.trains) {
            const float unknown = 1.0f - state[2];
            if (unknown != 0.0f) low += own->minimum * unknown, high += own->maximum * unknown;
        } else {
            const float known = 1.0f / state[2];
            low *= known, high *= known;
        }
        const float width = larger(high - low, TINY);
        g.shift = low * -1.0f;
        g.inverse = 1.0f / width;
        g.high = 1.0f;
        g.scale = width * static_cast<float>(1.0 / op.top);
        g.offset = low;
    } else if (op.kind == CLIP) {
        g.clip = positive(state[0], own->first[k], &own->sign[k]);
        g.inverse = op.top / g.clip;
        g.scale = g.clip * static_cast<float>(1.0 / op.top);
        g.offset = g.clip * 0.0f;
    } else if (op.kind == STEP) {
        const float step = positive(state[0], own->first[k], &own->sign[k]);
        const float offset = op.offset < 0 ? 0.0f : arrays[op.offset][0];
        g.shift = offset * -1.0f;
        g.inverse = 1.0f / step;
        g.low = -op.below;
        g.high = op.top - op.below;
        g.scale = step;
        g.offset = step * -op.below + offset;
    } else if (op.kind == SIGN) {
        g.scale = 2.0f;
        g.offset = -1.0f;
    }
    return g;
}

// The sum of K numbers in the order of NNabla's F.sum on the CPU; see `row_sum` of cpu_kernels.h.
DQA_FN float sum_of_few(const float* x, int count) {
    if (count < 4) {
        float sum = x[0];
        for (int i = 1; i < count; ++i) sum += x[i];
        return sum;
    }
    const int end8 = count / 8 * 8, end4 = count / 4 * 4;
    float packet[4];
    for (int j = 0; j < 4; ++j) {
        float sum = x[j];
        for (int i = 8; i < end8; i += 8) sum += x[i + j];
        if (end8 > 0) {
            float other = x[4 + j];
            for (int i = 8; i < end8; i += 8) other += x[i + 4 + j];
            sum += other;
            if (end4 > end8) sum += x[end8 + j];
        }
        packet[j] = sum;
    }
    float sum = (packet[0] + packet[2]) + (packet[1] + packet[3]);
    for (int i = end4; i < count; ++i) sum += x[i];
    return sum;
}

// Makes the coefficients; `attention.a` gets them too.
DQA_FN void make_shares(const Attention& attention, int count, Attended* attended) {
    attended->spread = attend(attention, count, attended->softmax);
    for (int k = 0; k < count; ++k) {
        attended->alpha[k] = attention.alpha[k];
        attention.a[k] = attended->shares[k] =
            coefficient(attention, attended->spread, attended->softmax, k);
    }
}

// Which quantizers take part: those whose share is not below `least`, the largest one always.
DQA_FN int taking_part(int count, const float* shares, float least, int32_t* chosen) {
    if (!shares) {
        chosen[0] = 0;
        return 1;
    }
    int largest = 0, some = 0;
    for (int k = 1; k < count; ++k)
        if (shares[k] > shares[largest]) largest = k;
    for (int k = 0; k < count; ++k)
        // Written so that NaN takes part and is seen.
        if (k == largest || !(fabsf(shares[k]) < least)) chosen[some++] = k;
    return some;
}

// The grids of those that take part. Where arrays are `unset`, `own` holds this mini-batch's extremes
// and `mean_magnitude` its E|x|.
DQA_FN void prepare_activations(const ActivationSet& set, const float* shares,
                                const float* const* arrays, const Unset& unset,
                                float mean_magnitude, Activated* own) {
    for (int k = 0; k < set.count; ++k) {
        const ActivationOp& op = set.ops[k];
        own->first_is_set[k] = first_is_set(op, arrays);
        own->first[k] = 0.0f;
        if (!has_first_value(op)) continue;
        if (op.kind == STEP && unset.mean) own->first[k] = mean_magnitude * op.initial;
        if (op.kind == CLIP && unset.extremes) own->first[k] = larger(own->maximum, 0.0f);
    }
    ActiveActivations& active = own->active;
    own->mixes = shares != nullptr;
    active.count = taking_part(set.count, shares, own->least, own->chosen);
    active.one_range = true;
    for (int i = 0; i < active.count; ++i) {
        const int k = own->chosen[i];
        active.share[i] = shares ? shares[k] : 1.0f;
        active.kind[i] = set.ops[k].kind;
        active.grid[i] = activation_grid(set, k, arrays, own);
        active.scale[i] = active.grid[i].scale * active.share[i];
        own->offsets[i] = active.grid[i].offset * active.share[i];
        // All EMAMinMax of a mixture have one array.
        active.one_range = active.one_range && active.kind[i] == RANGE;
    }
    active.offset = sum_of_few(own->offsets, active.count);
}

// Whether <dq, code_k> is asked for. One quantizer alone: alpha has no gradient.
DQA_FN bool wants_codes(const Activated& own, const float* dshares) {
    const bool settled = own.attends && own.attended.spread.rest == 0.0;
    return dshares && own.mixes && !settled;
}

// Where gradients of a layer's few numbers go; null: not wanted.
struct SmallGradients {
    float* dshares;  // of the shares, or of alpha
    bool add_shares;
    float* const* arrays;
    const uint8_t* add;  // to which of the arrays' is added
};

struct GradientRoom {
    double totals[3 * MAX_QUANTIZERS];
    double own_sums[MAX_QUANTIZERS];
    double all[MAX_QUANTIZERS];
    bool done[3 * MAX_QUANTIZERS];
};

DQA_FN void add_number(float* grad, bool add, int i, float value) {
    grad[i] = add ? grad[i] + value : value;
}

DQA_FN bool gives(const SmallGradients& to, int at, GradientRoom* room) {
    if (at < 0 || !to.arrays[at] || room->done[at]) return false;
    return room->done[at] = true;
}

// The gradients of shares and arrays. `sums`: three for each quantizer that takes part, <dq, code>,
// dq times what is learned, and dq over what lies outside of its limits; then the sum of dq.
// `da` is the gradient that came to the coefficients, or null.
DQA_FN void finish_gradients(const ActivationSet& set, const Attention& attention,
                             const Activated& own, const double* sums, const float* da,
                             const SmallGradients& to, GradientRoom* room) {
    const ActiveActivations& active = own.active;
    for (int i = 0; i < set.arrays; ++i) room->totals[i] = 0.0, room->done[i] = false;
    for (int i = 0; i < active.count; ++i) {
        const int k = own.chosen[i];
        const ActivationOp& op = set.ops[k];
        const double share = active.share[i];
        if (op.kind == CLIP) room->totals[op.array] += share * sums[3 * i + 1] * own.sign[k];
        if (op.kind == STEP)
            room->totals[op.array] += share * sums[3 * i + 1] * own.sign[k] * op.factor;
        if (op.offset >= 0) room->totals[op.offset] += share * sums[3 * i + 2] * op.factor;
    }
    for (int k = 0; k < set.count; ++k) {
        const ActivationOp& op = set.ops[k];
        if (gives(to, op.offset, room))
            add_number(to.arrays[op.offset], to.add[op.offset], 0, float(room->totals[op.offset]));
        if (gives(to, op.array, room)) {
            float* const grad = to.arrays[op.array];
            const bool adds = to.add[op.array];
            if (op.kind == RANGE) {
                add_number(grad, adds, 0, set.trains ? own.minimum : 0.0f);
                add_number(grad, adds, 1, set.trains ? own.maximum : 0.0f);
                add_number(grad, adds, 2, set.trains ? 1.0f : 0.0f);
            } else {
                add_number(grad, adds, 0, float(room->totals[op.array]));
            }
        }
        if (gives(to, op.first, room)) {
            add_number(to.arrays[op.first], to.add[op.first], 0,
                       set.trains && !own.first_is_set[k] ? own.first[k] : 0.0f);
            add_number(to.arrays[op.first], to.add[op.first], 1, set.trains ? 1.0f : 0.0f);
        }
    }
    if (!to.dshares) return;
    double* const all = room->all;
    for (int k = 0; k < set.count; ++k) all[k] = 0.0;
    if (wants_codes(own, to.dshares)) {
        double mean = 0.0, total = 0.0;
        for (int i = 0; i < active.count; ++i) {
            room->own_sums[i] = active.grid[i].scale * sums[3 * i] +
                                double(active.grid[i].offset) * sums[3 * active.count];
            mean += active.share[i] * room->own_sums[i];
            total += active.share[i];
        }
        // As for weights: one that was left out gets the mean of the others.
        for (int k = 0; k < set.count; ++k) all[k] = mean / total;
        for (int i = 0; i < active.count; ++i) all[own.chosen[i]] = room->own_sums[i];
        if (own.attends) {
            Attention seen = attention;
            seen.alpha = own.attended.alpha;
            for (int k = 0; k < set.count && da; ++k) all[k] += da[k];
            attention_gradient(seen, own.attended.spread, set.count, own.attended.softmax, all);
        }
    }
    for (int k = 0; k < set.count; ++k) add_number(to.dshares, to.add_shares, k, float(all[k]));
}

}  // namespace dqa
