// The mixture of a layer's weights, by the kernels of backends/kernels/cpu.cpp, which are another
// library: Python hands over where its two functions are.
#include "program.h"

namespace layers {
namespace {

enum Input { W, COEFFICIENTS, TEMPERATURE, HARD };
enum Output { Q, A };
enum Pointer { ARGUMENTS, ATTENTION, GRIDS };
enum Real { LEAST };

// Of backends/kernel_args.py.
struct Attention {
    const float *alpha, *temperature, *hard;
    float* a;
    const float* da;
};

using Forward = void (*)(void*, const float*, const float*, float, float*, void*);
using Backward = void (*)(void*, const float*, const float*, const float*, float, void*, float*,
                          int, float*, int);

Forward mixture_forward = nullptr;
Backward mixture_backward = nullptr;

class Mixture : public Layer {
public:
    explicit Mixture(const LayerSpec& spec) : Layer(spec) {}

    std::vector<int> kept() const override {
        std::vector<int> tensors;
        for (int i : {W, COEFFICIENTS, TEMPERATURE, HARD})
            if (has(i)) tensors.push_back(spec.inputs[i]);
        return tensors;
    }

    void forward(Program& p) override {
        const float* shares = attend(p, spec.outputs[A] < 0 ? nullptr
                                                            : p.tensor(spec.outputs[A]).data,
                                     nullptr);
        mixture_forward(spec.pointers[ARGUMENTS], p.tensor(spec.inputs[W]).data, shares, least(),
                        p.tensor(spec.outputs[Q]).data, spec.pointers[GRIDS]);
    }

    void backward(Program& p) override {
        Tensor& w = p.tensor(spec.inputs[W]);
        const Tensor& q = p.tensor(spec.outputs[Q]);
        if (!q.wanted || !*q.has_grad) return;
        Tensor* c = has(COEFFICIENTS) ? &p.tensor(spec.inputs[COEFFICIENTS]) : nullptr;
        if (c && !c->grad) c = nullptr;
        const Tensor* a = spec.outputs[A] < 0 ? nullptr : &p.tensor(spec.outputs[A]);
        // Where nothing uses the coefficients, no gradient comes to them.
        const float* shares = attend(p, nullptr, a && *a->has_grad ? a->grad : nullptr);
        mixture_backward(spec.pointers[ARGUMENTS], c ? w.data : nullptr, q.grad,
                         c ? shares : nullptr, c ? least() : 0.0f, spec.pointers[GRIDS], w.grad,
                         *w.has_grad, c ? c->grad : nullptr, c && *c->has_grad);
        if (w.grad) *w.has_grad = true;
        if (c) *c->has_grad = true;
    }

private:
    float least() const { return float(spec.reals[LEAST]); }

    // The coefficients where they are given; else it says where attention lies.
    const float* attend(Program& p, float* a, const float* da) const {
        if (!has(COEFFICIENTS)) return nullptr;
        const float* coefficients = p.tensor(spec.inputs[COEFFICIENTS]).data;
        auto* attention = static_cast<Attention*>(spec.pointers[ATTENTION]);
        if (!attention) return coefficients;
        *attention = {coefficients, p.tensor(spec.inputs[TEMPERATURE]).data,
                      p.tensor(spec.inputs[HARD]).data, a, da};
        return nullptr;
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
