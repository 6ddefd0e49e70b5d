// Functions of one number, sums of two arrays, and those that only move numbers.
#include <algorithm>

#include "program.h"
#include "vector_loops.h"

namespace layers {
namespace {

enum Number { FUNCTION = 0, RELU = 0, BEFORE = 0 };
enum Real { ALPHA = 0, BETA = 1 };

class UnaryLayer : public Layer {
public:
    UnaryLayer(const LayerSpec& spec, Program& p)
        : Layer(spec),
          pieces_(p.tensor(spec.inputs[0]).samples, p.tensor(spec.inputs[0]).sample()) {}

    std::vector<int> kept() const override { return {spec.inputs[0], spec.outputs[0]}; }

    void forward(Program& p) override {
        const Tensor& x = p.tensor(spec.inputs[0]);
        const Tensor& y = p.tensor(spec.outputs[0]);
        p.pool.run(pieces_.count, [&](int64_t i, int) {
            const int64_t at = pieces_.begin(i) * x.sample();
            unary(function(), x.data + at, y.data + at, real(ALPHA), real(BETA),
                  pieces_.size(i) * x.sample());
        });
    }

    void backward(Program& p) override {
        Tensor& x = p.tensor(spec.inputs[0]);
        const Tensor& y = p.tensor(spec.outputs[0]);
        if (!y.wanted || !*y.has_grad || !x.grad) return;
        p.pool.run(pieces_.count, [&](int64_t i, int) {
            const int64_t at = pieces_.begin(i) * x.sample();
            unary_back(function(), x.data + at, y.data + at, y.grad + at, x.grad + at, *x.has_grad,
                       real(ALPHA), real(BETA), pieces_.size(i) * x.sample());
        });
        *x.has_grad = true;
    }

private:
    Unary function() const { return Unary(spec.numbers[FUNCTION]); }
    float real(Real at) const { return float(spec.reals[at]); }
    Pieces pieces_;
};

class Addition : public Layer {
public:
    Addition(const LayerSpec& spec, Program& p)
        : Layer(spec),
          pieces_(p.tensor(spec.outputs[0]).samples, p.tensor(spec.outputs[0]).sample()) {}

    std::vector<int> kept() const override {
        return relu() ? std::vector<int>{spec.outputs[0]} : std::vector<int>{};
    }

    void forward(Program& p) override {
        const Tensor& a = p.tensor(spec.inputs[0]);
        const Tensor& b = p.tensor(spec.inputs[1]);
        const Tensor& y = p.tensor(spec.outputs[0]);
        p.pool.run(pieces_.count, [&](int64_t i, int) {
            const int64_t at = pieces_.begin(i) * y.sample();
            add(a.data + at, b.data + at, y.data + at, relu(), pieces_.size(i) * y.sample());
        });
    }

    void backward(Program& p) override {
        const Tensor& y = p.tensor(spec.outputs[0]);
        if (!y.wanted || !*y.has_grad) return;
        for (int k = 0; k < 2; ++k) {
            Tensor& x = p.tensor(spec.inputs[k]);
            if (!x.grad) continue;
            p.pool.run(pieces_.count, [&](int64_t i, int) {
                const int64_t at = pieces_.begin(i) * y.sample();
                pass_back(y.grad + at, relu() ? y.data + at : nullptr, x.grad + at, *x.has_grad,
                          pieces_.size(i) * y.sample());
            });
            *x.has_grad = true;
        }
    }

private:
    bool relu() const { return spec.numbers[RELU] != 0; }
    Pieces pieces_;
};

// Copies, turns channels and positions around, or puts channels of zeros around the others.
class Move : public Layer {
public:
    Move(const LayerSpec& spec, Program& p)
        : Layer(spec),
          pieces_(p.tensor(spec.inputs[0]).samples, p.tensor(spec.inputs[0]).sample()) {}

    std::vector<int> kept() const override { return {}; }

    void forward(Program& p) override {
        const Tensor& x = p.tensor(spec.inputs[0]);
        const Tensor& y = p.tensor(spec.outputs[0]);
        each(p, [&](int64_t n) {
            move(x, x.data + n * x.sample(), y, y.data + n * y.sample(), false, false);
        });
    }

    void backward(Program& p) override {
        Tensor& x = p.tensor(spec.inputs[0]);
        const Tensor& y = p.tensor(spec.outputs[0]);
        if (!y.wanted || !*y.has_grad || !x.grad) return;
        each(p, [&](int64_t n) {
            move(y, y.grad + n * y.sample(), x, x.grad + n * x.sample(), *x.has_grad, true);
        });
        *x.has_grad = true;
    }

private:
    template <class Call>
    void each(Program& p, const Call& call) const {
        p.pool.run(pieces_.count, [&](int64_t i, int) {
            for (int64_t n = pieces_.begin(i); n < pieces_.begin(i) + pieces_.size(i); ++n) call(n);
        });
    }

    void move(const Tensor& a, const float* from, const Tensor& b, float* to, bool adds,
              bool back) const {
        if (spec.kind == PAD_CHANNELS) {
            const int64_t before = spec.numbers[BEFORE];
            if (!adds) std::fill(to, to + b.sample(), 0.0f);
            for (int64_t s = 0; s < a.positions; ++s)
                if (back)
                    add_to(from + s * a.channels + before, to + s * b.channels, b.channels);
                else
                    add_to(from + s * a.channels, to + s * b.channels + before, a.channels);
            return;
        }
        if (spec.kind == COPY) {
            pass_back(from, nullptr, to, adds, a.sample());
            return;
        }
        const bool to_last = (spec.kind == CHANNELS_LAST) != back;
        const int64_t first = to_last ? a.channels : a.positions;
        const int64_t second = to_last ? a.positions : a.channels;
        (adds ? turn_and_add : turn)(from, first, second, to);
    }

    Pieces pieces_;
};

}  // namespace

std::unique_ptr<Layer> make_elementwise(const LayerSpec& spec, Program& program) {
    switch (spec.kind) {
        case UNARY: return std::make_unique<UnaryLayer>(spec, program);
        case ADD: return std::make_unique<Addition>(spec, program);
        default: return std::make_unique<Move>(spec, program);
    }
}

}  // namespace layers
