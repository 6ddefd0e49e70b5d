// Mixtures of activations on the CPU, included by cpu.cpp; activation_loops.h has the loops. Every
// formula keeps the order of operations of the graph that nnabla_dqa.quantization.activations
// builds, so that codes agree.
//
// The forward pass reads x once, and once before if a range or a clip is not set yet: then
// this mini-batch's stands in. The backward pass computes the codes again. Nothing of x's size is
// kept.
#pragma once

namespace dqa {

// ActivationOp of backends/activation_args.py: a quantizer. `array`, `offset` and `first` are the
// places of its arrays: the range, clip or step; LSQ+'s offset; the first values. -1: none.
struct ActivationOp {
    int32_t kind;
    float top;        // the highest code
    float below;      // n: how many codes lie below zero
    float initial;    // a step's first value relative to E|x|, 0 where a clip has a given one
    float factor;     // of a step's gradient
    int32_t array;
    int32_t offset;
    int32_t first;
};

struct ActivationLayer {
    int64_t size;
    int32_t count;
    int32_t threads;
    int32_t arrays;
    int32_t trains;    // whether running arrays are told what a mini-batch shows
    const ActivationOp* ops;
    Attention attention;
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
    int32_t first_is_set[MAX_QUANTIZERS];
    int32_t finite;
};

namespace {

const int64_t ACTIVATION_PIECE = 1 << 14;

// Where NNabla's F.max and F.min begin.
const float EXTREME = 1e8f;

template <class F>
void each_activation_piece(const Threads& threads, int64_t size, F f) {
    const int64_t count = ceil_div(size, ACTIVATION_PIECE);
    run(count, threads, [&](int64_t i) {
        const int64_t begin = i * ACTIVATION_PIECE;
        f(i, begin, std::min(ACTIVATION_PIECE, size - begin));
    });
}

int activation_threads(const ActivationLayer& layer) {
    return static_cast<int>(
        std::min<int64_t>(layer.threads, layer.size / WORTH_A_THREAD + 1));
}

void note_extremes(const std::vector<Stats>& pieces, Activated* own) {
    own->minimum = EXTREME, own->maximum = -EXTREME, own->finite = 1;
    for (const Stats& piece : pieces) {
        own->minimum = smaller(piece.minimum, own->minimum);
        own->maximum = larger(piece.maximum, own->maximum);
        own->finite = own->finite && piece.finite;
    }
}

// abs(v), at least TINY, where v is not set `initial`; and its derivative.
float positive(float v, float initial, double* sign) {
    const float used = v != 0.0f ? v : initial;
    *sign = v == 0.0f || !(fabsf(v) > TINY) ? 0.0 : v < 0.0f ? -1.0 : 1.0;
    return larger(fabsf(used), TINY);
}

bool has_first_value(const ActivationOp& op) {
    return op.kind == STEP || (op.kind == CLIP && op.initial == 0.0f);
}

ActivationGrid activation_grid(const ActivationLayer& layer, int k, const float* const* arrays,
                               Activated* own) {
    const ActivationOp& op = layer.ops[k];
    ActivationGrid g = {0.0f, 1.0f, 0.0f, op.top, op.top, op.below, 0.0f, 1.0f, 0.0f};
    const float* state = op.array < 0 ? nullptr : arrays[op.array];
    if (op.kind == RANGE) {
        float low = state[0], high = state[1];
        if (layer.trains) {
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

// Which arrays are not set, so that this mini-batch has to be looked at before.
struct Unset {
    bool extremes = false, mean = false;
    Unset(const ActivationLayer& layer, const float* const* arrays, Activated* own) {
        for (int k = 0; k < layer.count; ++k) {
            const ActivationOp& op = layer.ops[k];
            own->first_is_set[k] = op.first < 0 || arrays[op.first][1] != 0.0f;
            if (op.kind == RANGE) extremes |= layer.trains && arrays[op.array][2] != 1.0f;
            if (!has_first_value(op)) continue;
            const bool wanted = arrays[op.array][0] == 0.0f || !own->first_is_set[k];
            (op.kind == CLIP ? extremes : mean) |= wanted;
        }
    }
};

void activate_all(const ActivationLayer& layer, const Threads& threads, const float* x, float* q,
                  const Activated& own, std::vector<Stats>* seen) {
    each_activation_piece(threads, layer.size, [&](int64_t i, int64_t begin, int64_t n) {
        if (seen) kernels().extremes(x + begin, n, &(*seen)[i]);
        kernels().activate(own.active, x + begin, q + begin, n);
    });
}

// NaN or infinity in a training has to be seen in what the layer computes.
void raise_alarm(const ActivationLayer& layer, const Activated& own, float* q) {
    if (layer.trains && !own.finite) std::fill(q, q + layer.size, NAN);
}

void activation_forward(const ActivationLayer& layer, const Threads& threads, const float* x,
                        float* q, const float* shares, const float* const* arrays,
                        Activated* own) {
    const Unset unset(layer, arrays, own);
    std::vector<Stats> seen(layer.trains || unset.extremes
                                ? ceil_div(layer.size, ACTIVATION_PIECE)
                                : 0);
    Stats stats = {};
    own->finite = 1;
    if (unset.extremes) {
        each_activation_piece(threads, layer.size, [&](int64_t i, int64_t begin, int64_t n) {
            kernels().extremes(x + begin, n, &seen[i]);
        });
        note_extremes(seen, own);
    }
    if (unset.mean) kernels().means(x, 0, layer.size, NEEDS_MEAN, &stats);
    for (int k = 0; k < layer.count; ++k) {
        const ActivationOp& op = layer.ops[k];
        own->first[k] = 0.0f;
        if (!has_first_value(op)) continue;
        if (op.kind == STEP && unset.mean) own->first[k] = stats.mean_magnitude * op.initial;
        if (op.kind == CLIP && unset.extremes) own->first[k] = larger(own->maximum, 0.0f);
    }
    Layer all = {};
    all.count = layer.count;
    ActiveActivations& active = own->active;
    own->mixes = shares != nullptr;
    active.count = taking_part(all, shares, own->least, own->chosen);
    active.one_range = true;
    float offsets[MAX_QUANTIZERS];
    for (int i = 0; i < active.count; ++i) {
        const int k = own->chosen[i];
        active.share[i] = shares ? shares[k] : 1.0f;
        active.kind[i] = layer.ops[k].kind;
        active.grid[i] = activation_grid(layer, k, arrays, own);
        active.scale[i] = active.grid[i].scale * active.share[i];
        offsets[i] = active.grid[i].offset * active.share[i];
        // All EMAMinMax of a mixture have one array.
        active.one_range = active.one_range && active.kind[i] == RANGE;
    }
    active.offset = plain::row_sum(offsets, active.count, 0, [](auto v) { return v; });
    const bool looks = layer.trains && !unset.extremes;
    activate_all(layer, threads, x, q, *own, looks ? &seen : nullptr);
    if (looks) note_extremes(seen, own);
    raise_alarm(layer, *own, q);
}

void add_number(float* grad, bool add, int i, float value) {
    grad[i] = add ? grad[i] + value : value;
}

// `da` is the gradient that came to the coefficients, or null.
void activation_backward(const ActivationLayer& layer, const Threads& threads,
                         const Activated& own, const float* x, const float* dq, const float* da,
                         float* dx, bool add_x, float* dshares, bool add_shares,
                         float* const* grads, const uint8_t* add) {
    const ActiveActivations& active = own.active;
    // One quantizer alone: alpha has no gradient.
    const bool settled = own.attends && own.attended.spread.rest == 0.0;
    const bool codes = dshares && own.mixes && !settled;
    const int width = 3 * active.count + 1;
    std::vector<double> parts(ceil_div(layer.size, ACTIVATION_PIECE) * width, 0.0);
    each_activation_piece(threads, layer.size, [&](int64_t i, int64_t begin, int64_t n) {
        kernels().activate_back(active, x + begin, dq + begin, dx ? dx + begin : nullptr, add_x,
                                codes, n, parts.data() + i * width);
    });
    std::vector<double> sums(width, 0.0), totals(layer.arrays + 1, 0.0);
    for (size_t i = 0; i < parts.size(); ++i) sums[i % width] += parts[i];
    for (int i = 0; i < active.count; ++i) {
        const int k = own.chosen[i];
        const ActivationOp& op = layer.ops[k];
        const double share = active.share[i];
        if (op.kind == CLIP) totals[op.array] += share * sums[3 * i + 1] * own.sign[k];
        if (op.kind == STEP)
            totals[op.array] += share * sums[3 * i + 1] * own.sign[k] * op.factor;
        if (op.offset >= 0) totals[op.offset] += share * sums[3 * i + 2] * op.factor;
    }
    std::vector<bool> done(layer.arrays, false);
    const auto gives = [&](int at) {
        if (at < 0 || !grads[at] || done[at]) return false;
        done[at] = true;
        return true;
    };
    for (int k = 0; k < layer.count; ++k) {
        const ActivationOp& op = layer.ops[k];
        if (gives(op.offset))
            add_number(grads[op.offset], add[op.offset], 0, float(totals[op.offset]));
        if (gives(op.array)) {
            float* const grad = grads[op.array];
            const bool adds = add[op.array];
            if (op.kind == RANGE) {
                const float shown[] = {own.minimum, own.maximum, 1.0f};
                for (int i = 0; i < 3; ++i) add_number(grad, adds, i, layer.trains ? shown[i] : 0.0f);
            } else {
                add_number(grad, adds, 0, float(totals[op.array]));
            }
        }
        if (gives(op.first)) {
            add_number(grads[op.first], add[op.first], 0,
                       layer.trains && !own.first_is_set[k] ? own.first[k] : 0.0f);
            add_number(grads[op.first], add[op.first], 1, layer.trains ? 1.0f : 0.0f);
        }
    }
    if (!dshares) return;
    double all[MAX_QUANTIZERS] = {};
    if (codes) {
        double mean = 0.0, total = 0.0, own_sums[MAX_QUANTIZERS];
        for (int i = 0; i < active.count; ++i) {
            own_sums[i] = active.grid[i].scale * sums[3 * i] +
                          double(active.grid[i].offset) * sums[3 * active.count];
            mean += active.share[i] * own_sums[i];
            total += active.share[i];
        }
        // As for weights: one that was left out gets the mean of the others.
        for (int k = 0; k < layer.count; ++k) all[k] = mean / total;
        for (int i = 0; i < active.count; ++i) all[own.chosen[i]] = own_sums[i];
        if (own.attends) {
            Attention seen = layer.attention;
            seen.alpha = own.attended.alpha;
            for (int k = 0; k < layer.count && da; ++k) all[k] += da[k];
            attention_gradient(seen, own.attended.spread, layer.count, own.attended.softmax, all);
        }
    }
    for (int k = 0; k < layer.count; ++k) add_number(dshares, add_shares, k, float(all[k]));
}

}  // namespace
}  // namespace dqa
