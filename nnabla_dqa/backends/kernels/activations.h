// Mixtures of activations on the CPU, included by cpu.cpp; activation_loops.h has the loops and
// activation_grid.h the formulas.
//
// The forward pass reads x once, and once before if a range or a clip is not set yet: then
// this mini-batch's stands in. The backward pass computes the codes again. Nothing of x's size is
// kept.
#pragma once

namespace dqa {

// ActivationArgs of backends/activation_args.py.
struct ActivationLayer {
    int64_t size;
    int32_t count;
    int32_t threads;
    int32_t arrays;
    int32_t trains;    // whether running arrays are told what a mini-batch shows
    const ActivationOp* ops;
    Attention attention;
};

namespace {

const int64_t ACTIVATION_PIECE = 1 << 14;

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

ActivationSet set_of(const ActivationLayer& layer) {
    return {layer.ops, layer.count, layer.arrays, layer.trains};
}

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
    const Unset unset = unset_arrays(set_of(layer), arrays);
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
    prepare_activations(set_of(layer), shares, arrays, unset, stats.mean_magnitude, own);
    const bool looks = layer.trains && !unset.extremes;
    activate_all(layer, threads, x, q, *own, looks ? &seen : nullptr);
    if (looks) note_extremes(seen, own);
    raise_alarm(layer, *own, q);
}

// `da` is the gradient that came to the coefficients, or null.
void activation_backward(const ActivationLayer& layer, const Threads& threads,
                         const Activated& own, const float* x, const float* dq, const float* da,
                         float* dx, bool add_x, float* dshares, bool add_shares,
                         float* const* grads, const uint8_t* add) {
    const ActiveActivations& active = own.active;
    const bool codes = wants_codes(own, dshares);
    const int width = 3 * active.count + 1;
    std::vector<double> parts(ceil_div(layer.size, ACTIVATION_PIECE) * width, 0.0);
    each_activation_piece(threads, layer.size, [&](int64_t i, int64_t begin, int64_t n) {
        kernels().activate_back(active, x + begin, dq + begin, dx ? dx + begin : nullptr, add_x,
                                codes, n, parts.data() + i * width);
    });
    std::vector<double> sums(width, 0.0);
    for (size_t i = 0; i < parts.size(); ++i) sums[i % width] += parts[i];
    GradientRoom room;
    const SmallGradients to = {dshares, add_shares, grads, add};
    finish_gradients(set_of(layer), layer.attention, own, sums.data(), da, to, &room);
}

}  // namespace
}  // namespace dqa
