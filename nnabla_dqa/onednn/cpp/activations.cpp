// The mixture of what enters a layer, by the kernels of backends/kernels/activations.h, which are
// in another library: Python hands over where its functions are. They share out their work among
// the threads of this one.
#include <algorithm>

#include "program.h"

namespace layers {
namespace {

enum Input { X, COEFFICIENTS, TEMPERATURE, HARD };
enum Output { Q, A };
enum Pointer { ARGUMENTS, KEPT };
enum Number { ATTENDS, MIXES, FIRST_ARRAY, ARRAYS };
enum Real { LEAST };

using Forward = void (*)(void* layer, void* kept, const float* x, float* q, float least,
                         const float* shares, const float* alpha, const float* temperature,
                         const float* hard, float* a, const float* const* arrays,
                         Parallel parallel, void* pool);
using Again = void (*)(void* layer, void* kept, const float* x, float* q, Parallel parallel,
                       void* pool);
using Backward = void (*)(void* layer, void* kept, const float* x, const float* dq,
                          const float* da, float* dx, int add_x, float* dshares, int add_shares,
                          float* const* grads, const uint8_t* add, Parallel parallel, void* pool);

Forward activate = nullptr;
Again activate_again = nullptr;
Backward activate_back = nullptr;

class Activations : public Layer {
public:
    explicit Activations(const LayerSpec& spec) : Layer(spec) {}

    std::vector<int> kept() const override { return {spec.inputs[X]}; }

    bool is_cheap() const override { return true; }

    void again(Program& p) override {
        activate_again(spec.pointers[ARGUMENTS], spec.pointers[KEPT], at(p, X),
                       p.tensor(spec.outputs[Q]).data, on_pool, &p.pool);
    }

    void forward(Program& p) override {
        const float* given = spec.numbers[MIXES] ? at(p, COEFFICIENTS) : nullptr;
        const float* arrays[MAX_INPUTS] = {};
        for (int i = 0; i < spec.numbers[ARRAYS]; ++i) arrays[i] = array(p, i).data;
        const bool attends = spec.numbers[ATTENDS] != 0;
        activate(spec.pointers[ARGUMENTS], spec.pointers[KEPT], at(p, X),
                 p.tensor(spec.outputs[Q]).data, float(spec.reals[LEAST]),
                 attends ? nullptr : given, attends ? given : nullptr,
                 attends ? at(p, TEMPERATURE) : nullptr, attends ? at(p, HARD) : nullptr,
                 attends ? p.tensor(spec.outputs[A]).data : nullptr, arrays, on_pool, &p.pool);
    }

    void backward(Program& p) override {
        Tensor& x = p.tensor(spec.inputs[X]);
        Tensor& q = p.tensor(spec.outputs[Q]);
        const bool asked = spec.outputs[A] >= 0 && *p.tensor(spec.outputs[A]).has_grad;
        // It may be here for its coefficients alone.
        const bool is_used = q.wanted && *q.has_grad;
        if (!is_used && !asked) return;
        std::vector<float> none;
        float* dq = zeros_unless(is_used, q, &none);
        Tensor* c = spec.numbers[MIXES] ? &p.tensor(spec.inputs[COEFFICIENTS]) : nullptr;
        if (c && !c->grad) c = nullptr;
        // Where nothing uses the coefficients, no gradient comes to them.
        const Tensor* a = spec.outputs[A] < 0 ? nullptr : &p.tensor(spec.outputs[A]);
        float* grads[MAX_INPUTS] = {};
        uint8_t add[MAX_INPUTS] = {};
        for (int i = 0; i < spec.numbers[ARRAYS]; ++i) {
            Tensor& t = array(p, i);
            grads[i] = t.grad;
            add[i] = t.grad && *t.has_grad;
        }
        activate_back(spec.pointers[ARGUMENTS], spec.pointers[KEPT], x.data, dq,
                      a && *a->has_grad ? a->grad : nullptr, x.grad, x.grad && *x.has_grad,
                      c ? c->grad : nullptr, c && *c->has_grad, grads, add, on_pool, &p.pool);
        if (x.grad) *x.has_grad = true;
        if (c) *c->has_grad = true;
        for (int i = 0; i < spec.numbers[ARRAYS]; ++i)
            if (grads[i]) *array(p, i).has_grad = true;
    }

private:
    const float* at(Program& p, Input input) const { return p.tensor(spec.inputs[input]).data; }
    Tensor& array(Program& p, int i) const {
        return p.tensor(spec.inputs[spec.numbers[FIRST_ARRAY] + i]);
    }
};

}  // namespace

std::unique_ptr<Layer> make_activations(const LayerSpec& spec, Program&) {
    return std::make_unique<Activations>(spec);
}

void set_activations(void* forward, void* again, void* backward) {
    activate = reinterpret_cast<Forward>(forward);
    activate_again = reinterpret_cast<Again>(again);
    activate_back = reinterpret_cast<Backward>(backward);
}

}  // namespace layers
