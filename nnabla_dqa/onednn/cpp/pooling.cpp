// Max and average pooling over up to three spatial axes.
#include <algorithm>
#include <limits>

#include "program.h"
#include "vector_loops.h"

namespace layers {
namespace {

enum Number { X_SIZE = 0, Y_SIZE = 3, KERNEL = 6, STRIDE = 9, PAD = 12, INCLUDES_PAD = 15 };

struct Window {
    int64_t begin[3], end[3];
    int64_t count;   // positions of the input in it
    int64_t padded;  // with those of the padding
};

class Pooling : public Layer {
public:
    Pooling(const LayerSpec& spec, Program& p)
        : Layer(spec),
          pieces_(p.tensor(spec.inputs[0]).samples, p.tensor(spec.inputs[0]).sample()) {
        const Tensor& y = p.tensor(spec.outputs[0]);
        if (spec.kind == MAX_POOLING && p.trains() && y.wanted) places_.resize(size_t(y.size()));
    }

    std::vector<int> kept() const override { return {}; }

    void forward(Program& p) override {
        const Tensor& x = p.tensor(spec.inputs[0]);
        const Tensor& y = p.tensor(spec.outputs[0]);
        const int64_t c = x.channels;
        p.pool.run(pieces_.count, [&](int64_t i, int) {
            for (int64_t n = pieces_.begin(i); n < pieces_.begin(i) + pieces_.size(i); ++n)
                for (int64_t o = 0; o < y.positions; ++o) {
                    const Window window = window_at(o);
                    const float* from = x.data + n * x.sample();
                    float* to = y.data + n * y.sample() + o * c;
                    int32_t* place =
                        places_.empty() ? nullptr : places_.data() + n * y.sample() + o * c;
                    if (spec.kind == MAX_POOLING)
                        largest(from, window, c, to, place);
                    else
                        mean(from, window, c, to);
                }
        });
    }

    void backward(Program& p) override {
        Tensor& x = p.tensor(spec.inputs[0]);
        const Tensor& y = p.tensor(spec.outputs[0]);
        if (!y.wanted || !*y.has_grad || !x.grad) return;
        const int64_t c = x.channels;
        const bool adds = *x.has_grad;
        p.pool.run(pieces_.count, [&](int64_t i, int) {
            for (int64_t n = pieces_.begin(i); n < pieces_.begin(i) + pieces_.size(i); ++n) {
                float* to = x.grad + n * x.sample();
                if (!adds) std::fill(to, to + x.sample(), 0.0f);
                for (int64_t o = 0; o < y.positions; ++o) {
                    const int64_t at = n * y.sample() + o * c;
                    const float* from = y.grad + at;
                    if (spec.kind == MAX_POOLING) {
                        for (int64_t k = 0; k < c; ++k)
                            to[places_[size_t(at + k)] * c + k] += from[k];
                        continue;
                    }
                    const Window window = window_at(o);
                    const float part = 1.0f / float(divisor(window));
                    each(window, [&](int64_t s) {
                        for (int64_t k = 0; k < c; ++k) to[s * c + k] += from[k] * part;
                    });
                }
            }
        });
        *x.has_grad = true;
    }

private:
    int64_t number(Number at, int axis) const { return spec.numbers[at + axis]; }

    Window window_at(int64_t o) const {
        Window w;
        w.count = w.padded = 1;
        int64_t rest = o;
        for (int a = 2; a >= 0; --a) {
            const int64_t at = rest % number(Y_SIZE, a), size = number(X_SIZE, a);
            rest /= number(Y_SIZE, a);
            const int64_t begin = at * number(STRIDE, a) - number(PAD, a);
            const int64_t end = std::min(begin + number(KERNEL, a), size + number(PAD, a));
            w.padded *= end - begin;
            w.begin[a] = std::max<int64_t>(begin, 0);
            w.end[a] = std::min(end, size);
            w.count *= w.end[a] - w.begin[a];
        }
        return w;
    }

    int64_t divisor(const Window& w) const {
        return spec.numbers[INCLUDES_PAD] ? w.padded : w.count;
    }

    template <class Call>
    void each(const Window& w, const Call& call) const {
        for (int64_t a = w.begin[0]; a < w.end[0]; ++a)
            for (int64_t b = w.begin[1]; b < w.end[1]; ++b)
                for (int64_t c = w.begin[2]; c < w.end[2]; ++c)
                    call((a * number(X_SIZE, 1) + b) * number(X_SIZE, 2) + c);
    }

    void largest(const float* x, const Window& w, int64_t c, float* y, int32_t* place) const {
        bool first = true;
        each(w, [&](int64_t s) {
            const float* row = x + s * c;
            if (first) {
                std::copy(row, row + c, y);
                if (place) std::fill(place, place + c, int32_t(s));
                first = false;
            } else {
                for (int64_t k = 0; k < c; ++k) {
                    const bool more = y[k] < row[k];
                    y[k] = more ? row[k] : y[k];
                    if (place) place[k] = more ? int32_t(s) : place[k];
                }
            }
        });
    }

    void mean(const float* x, const Window& w, int64_t c, float* y) const {
        std::fill(y, y + c, 0.0f);
        each(w, [&](int64_t s) { add_to(x + s * c, y, c); });
        const float count = float(divisor(w));
        for (int64_t k = 0; k < c; ++k) y[k] /= count;
    }

    Pieces pieces_;
    std::vector<int32_t> places_;  // of each output's largest input
};

}  // namespace

std::unique_ptr<Layer> make_pooling(const LayerSpec& spec, Program& program) {
    return std::make_unique<Pooling>(spec, program);
}

}  // namespace layers
