// The mixture of a layer's weights, by the kernels of backends/kernels/cpu.cpp, which are another
// library: Python hands over where its two functions are. They share out their work among the
// threads of this one.
#include <algorithm>

#include "program.h"
#include "vector_loops.h"

namespace layers {
namespace {

enum Input { W, COEFFICIENTS, TEMPERATURE, HARD };
enum Output { Q, A };
enum Pointer { ARGUMENTS, ATTENDED, GRIDS };
enum Number { SMALL };
enum Real { LEAST };

using Forward = int (*)(void* layer, const float* w, const float* shares, float least, float* q,
                         void* grids, void* attended, const float* alpha,
                         const float* temperature, const float* hard, float* a, Parallel parallel, void* pool);
using Backward = void (*)(void* layer, const float* w, const float* dq, const float* shares,
                          float least, void* grids, void* attended, const float* da, float* dw,
                          int add_w, float* dshares, int add_shares, Parallel parallel, void* pool);

Forward mixture_forward = nullptr;
Backward mixture_backward = nullptr;

class Mixture : public Layer {
public:
    explicit Mixture(const LayerSpec& spec) : Layer(spec) {}

    std::vector<int> kept() const override {
        std::vector<int> tensors;
        for (int i : {W, COEFFICIENTS})
            if (has(i)) tensors.push_back(spec.inputs[i]);
        return tensors;
    }

    bool is_small() const override { return spec.numbers[SMALL] != 0; }

    void forward(Program& p) override {
        const bool attends = spec.pointers[ATTENDED] != nullptr;
        const float* given = at(p, COEFFICIENTS);
        float* a = spec.outputs[A] < 0 ? nullptr : p.tensor(spec.outputs[A]).data;
        is_finite_ =
            mixture_forward(spec.pointers[ARGUMENTS], at(p, W), attends ? nullptr : given, least(),
                            p.tensor(spec.outputs[Q]).data, spec.pointers[GRIDS],
                            spec.pointers[ATTENDED], attends ? given : nullptr,
                            at(p, TEMPERATURE), at(p, HARD), a, parallel(), &p.pool) != 0;
        if (given && !all_finite(given, p.tensor(spec.inputs[COEFFICIENTS]).size()))
            is_finite_ = false;
    }

    bool is_finite() const override { return is_finite_; }

    // The gradient of q is that of w: where nothing is added to it, it is put there at once.
    void prepare_backward(Program& p) override {
        const Tensor& w = p.tensor(spec.inputs[W]);
        Tensor& q = p.tensor(spec.outputs[Q]);
        in_place_ = w.grad && !*w.has_grad && p.is_used_once(spec.inputs[W]) && q.external < 0 &&
                    q.whole < 0;
        if (in_place_) q.grad = w.grad;
    }

    void backward(Program& p) override {
        Tensor& w = p.tensor(spec.inputs[W]);
        Tensor& q = p.tensor(spec.outputs[Q]);
        // Where nothing uses the coefficients, no gradient comes to them.
        const Tensor* a = spec.outputs[A] < 0 ? nullptr : &p.tensor(spec.outputs[A]);
        if (a && !*a->has_grad) a = nullptr;
        // It may be here for its coefficients alone: what it computes is used in another graph, or
        // nowhere.
        const bool is_used = q.wanted && *q.has_grad;
        if (!is_used && !a) return;
        Tensor* c = has(COEFFICIENTS) ? &p.tensor(spec.inputs[COEFFICIENTS]) : nullptr;
        if (c && !c->grad) c = nullptr;
        const bool attends = c && spec.pointers[ATTENDED];
        const bool adds = *w.has_grad;
        if (w.grad) *w.has_grad = true;
        float* dw = in_place_ ? nullptr : w.grad;
        std::vector<float> none;
        float* dq = zeros_unless(is_used, q, &none);
        if (!dw && !c) return;
        mixture_backward(spec.pointers[ARGUMENTS], c ? w.data : nullptr, dq,
                         c && !attends ? c->data : nullptr, c ? least() : 0.0f,
                         spec.pointers[GRIDS], attends ? spec.pointers[ATTENDED] : nullptr,
                         attends && a ? a->grad : nullptr, dw, adds,
                         c ? c->grad : nullptr, c && *c->has_grad, parallel(), &p.pool);
        if (c) *c->has_grad = true;
    }

private:
    bool in_place_ = false, is_finite_ = false;

    // The small ones are computed side by side, each by one thread.
    Parallel parallel() const { return is_small() ? nullptr : on_pool; }

    float least() const { return float(spec.reals[LEAST]); }

    const float* at(Program& p, Input input) const {
        return has(input) ? p.tensor(spec.inputs[input]).data : nullptr;
    }
};

}  // namespace

std::unique_ptr<Layer> make_mixture(const LayerSpec& spec, Program&) {
    return std::make_unique<Mixture>(spec);
}

void set_mixture(void* forward, void* backward) {
    mixture_forward = reinterpret_cast<Forward>(forward);
    mixture_backward = reinterpret_cast<Backward>(backward);
}

}  // namespace layers
