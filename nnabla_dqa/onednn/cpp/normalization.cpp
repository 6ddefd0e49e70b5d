// Batch normalization, with an addition and a ReLU behind it where the network has them.
#include <algorithm>
#include <cmath>

#include "program.h"
#include "vector_loops.h"

namespace layers {
namespace {

enum Input { X, BETA, GAMMA, MEAN, VARIANCE, RESIDUAL };
enum Number { BATCH_STATISTICS = 0, RELU = 1 };
enum Real { DECAY = 0, EPSILON = 1 };

// Rows of fewer numbers than this are worked on together, several at a time.
const int64_t WIDE = 64;
// Rows that are added up in float32 before their sum goes on in float64.
const int64_t ROWS_OF_A_SUM = 256;

class Normalization : public Layer {
public:
    Normalization(const LayerSpec& spec, Program& p)
        : Layer(spec),
          c_(p.tensor(spec.inputs[X]).channels),
          rows_(p.tensor(spec.inputs[X]).samples * p.tensor(spec.inputs[X]).positions),
          fold_(std::max<int64_t>(1, WIDE / c_)),
          width_(c_ * fold_),
          step_(std::max<int64_t>(1, (1 << 14) / width_) * fold_),
          pieces_((rows_ + step_ - 1) / step_) {
        for (auto* list : {&mean_, &scale_, &shift_, &a_, &b_, &c_of_row_}) list->resize(width_);
        sums_.resize(size_t(pieces_ * 2 * c_));
        variance_.resize(c_);
        center_.resize(c_);
        // Of a piece: two rows of sums, and its own mean.
        p.reserve_thread(3 * width_);
    }

    std::vector<int> kept() const override {
        std::vector<int> tensors = {spec.inputs[X]};
        if (relu()) tensors.push_back(spec.outputs[0]);
        return tensors;
    }

    bool is_cheap() const override { return !has(RESIDUAL); }

    void again(Program& p) override { apply(p); }

    int overwrites() const override { return spec.inputs[X]; }

    void forward(Program& p) override {
        const Tensor& x = p.tensor(spec.inputs[X]);
        if (batch())
            measure(p, x);
        else
            for (int64_t c = 0; c < c_; ++c) {
                center_[c] = p.tensor(spec.inputs[MEAN]).data[c];
                variance_[c] = p.tensor(spec.inputs[VARIANCE]).data[c];
            }
        const float* beta = has(BETA) ? p.tensor(spec.inputs[BETA]).data : nullptr;
        const float* gamma = has(GAMMA) ? p.tensor(spec.inputs[GAMMA]).data : nullptr;
        for (int64_t c = 0; c < c_; ++c) {
            const double inverse = 1.0 / std::sqrt(variance_[c] + spec.reals[EPSILON]);
            put(mean_, c, float(center_[c]));
            put(scale_, c, float((gamma ? gamma[c] : 1.0f) * inverse));
            put(shift_, c, beta ? beta[c] : 0.0f);
        }
        apply(p);
    }

    void backward(Program& p) override {
        Tensor& x = p.tensor(spec.inputs[X]);
        const Tensor& out = p.tensor(spec.outputs[0]);
        if (!out.wanted || !*out.has_grad) return;
        const float* y = relu() ? out.data : nullptr;
        Tensor* gamma = has(GAMMA) ? &p.tensor(spec.inputs[GAMMA]) : nullptr;
        Tensor* beta = has(BETA) ? &p.tensor(spec.inputs[BETA]) : nullptr;
        const bool needs_sums =
            (gamma && gamma->grad) || (beta && beta->grad) || (batch() && x.grad);
        if (needs_sums) add_up(p, x, y, out.grad);
        for (int64_t c = 0; c < c_; ++c) {
            const double inverse = 1.0 / std::sqrt(variance_[c] + spec.reals[EPSILON]);
            double sum = 0, product = 0;
            if (needs_sums)
                for (int64_t i = 0; i < pieces_; ++i) {
                    sum += sums_[size_t((2 * i) * c_ + c)];
                    product += sums_[size_t((2 * i + 1) * c_ + c)];
                }
            if (beta && beta->grad) store(beta, c, float(sum));
            if (gamma && gamma->grad) store(gamma, c, float(product * inverse));
            const double a = (gamma ? gamma->data[c] : 1.0) * inverse;
            const double n = double(rows_);
            put(a_, c, float(a));
            put(b_, c, batch() ? float(-a * inverse * inverse * product / n) : 0.0f);
            put(c_of_row_, c, batch() ? float(-a * sum / n) : 0.0f);
        }
        if (beta && beta->grad) *beta->has_grad = true;
        if (gamma && gamma->grad) *gamma->has_grad = true;
        Tensor* residual = has(RESIDUAL) ? &p.tensor(spec.inputs[RESIDUAL]) : nullptr;
        if (residual && !residual->grad) residual = nullptr;
        p.pool.run(pieces_, [&](int64_t i, int) {
            each_run(i, [&](int64_t at, int64_t rows, int64_t width) {
                const float* mask = y ? y + at : nullptr;
                if (residual)
                    pass_back(out.grad + at, mask, residual->grad + at, *residual->has_grad,
                              rows * width);
                if (x.grad)
                    normalize_back(x.data + at, mask, out.grad + at, mean_.data(), a_.data(),
                                   b_.data(), c_of_row_.data(), x.grad + at, *x.has_grad, rows,
                                   width);
            });
        });
        if (x.grad) *x.has_grad = true;
        if (residual) *residual->has_grad = true;
    }

private:
    bool batch() const { return spec.numbers[BATCH_STATISTICS] != 0; }
    bool relu() const { return spec.numbers[RELU] != 0; }

    void apply(Program& p) const {
        const Tensor& x = p.tensor(spec.inputs[X]);
        const float* residual = has(RESIDUAL) ? p.tensor(spec.inputs[RESIDUAL]).data : nullptr;
        float* y = p.tensor(spec.outputs[0]).data;
        p.pool.run(pieces_, [&](int64_t i, int) {
            each_run(i, [&](int64_t at, int64_t rows, int64_t width) {
                normalize(x.data + at, mean_.data(), scale_.data(), shift_.data(),
                          residual ? residual + at : nullptr, relu(), y + at, rows, width);
            });
        });
    }

    // The same number for each of the rows that are worked on together.
    void put(std::vector<float>& row, int64_t c, float value) const {
        for (int64_t k = 0; k < fold_; ++k) row[size_t(k * c_ + c)] = value;
    }

    static void store(Tensor* t, int64_t c, float value) {
        t->grad[c] = *t->has_grad ? t->grad[c] + value : value;
    }

    // A piece's rows, several at a time, and those that are left over one by one.
    template <class Call>
    void each_run(int64_t piece, const Call& call) const {
        const int64_t begin = piece * step_, end = std::min(rows_, begin + step_);
        const int64_t together = (end - begin) / fold_, rest = (end - begin) % fold_;
        if (together) call(begin * c_, together, width_);
        if (rest) call((begin + together * fold_) * c_, rest, c_);
    }

    // Sums of `call(at, rows, width, sum)` over a piece, for each channel, in float64.
    template <class Call>
    void sums_of_piece(int64_t piece, float* room, int rows_of_sums, double* to,
                       const Call& call) const {
        std::fill(to, to + rows_of_sums * c_, 0.0);
        each_run(piece, [&](int64_t at, int64_t rows, int64_t width) {
            for (int64_t r = 0; r < rows; r += ROWS_OF_A_SUM) {
                const int64_t n = std::min(ROWS_OF_A_SUM, rows - r);
                std::fill(room, room + rows_of_sums * width_, 0.0f);
                call(at + r * width, n, width, room);
                for (int k = 0; k < rows_of_sums; ++k)
                    for (int64_t i = 0; i < width; ++i) to[k * c_ + i % c_] += room[k * width_ + i];
            }
        });
    }

    // Each piece by its own mean, so that nothing is lost where the mean is large; then together
    // (Chan, Golub, LeVeque 1979).
    void measure(Program& p, const Tensor& x) {
        p.pool.run(pieces_, [&](int64_t i, int thread) {
            float* room = p.of_thread(thread);
            float* own = room + 2 * width_;
            double* sum = sums_.data() + 2 * i * c_;
            double* squares = sum + c_;
            sums_of_piece(i, room, 1, sum, [&](int64_t at, int64_t rows, int64_t width, float* to) {
                sum_rows(x.data + at, rows, width, to);
            });
            const double n = double(std::min(step_, rows_ - i * step_));
            for (int64_t k = 0; k < width_; ++k) own[k] = float(sum[k % c_] / n);
            sums_of_piece(i, room, 1, squares,
                          [&](int64_t at, int64_t rows, int64_t width, float* to) {
                              sum_squares(x.data + at, own, rows, width, to);
                          });
            // The mean that was taken off is rounded; what that adds is taken out again.
            for (int64_t c = 0; c < c_; ++c) {
                const double off = sum[c] / n - double(own[c]);
                squares[c] -= n * off * off;
            }
        });
        float* running_mean = has(MEAN) ? p.tensor(spec.inputs[MEAN]).data : nullptr;
        float* running_variance = has(VARIANCE) ? p.tensor(spec.inputs[VARIANCE]).data : nullptr;
        const double all = double(rows_);
        const float keep = float(spec.reals[DECAY]);
        for (int64_t c = 0; c < c_; ++c) {
            double mean = 0, squares = 0, count = 0;
            for (int64_t i = 0; i < pieces_; ++i) {
                const double n = double(std::min(step_, rows_ - i * step_));
                const double delta = sums_[size_t(2 * i * c_ + c)] / n - mean;
                squares += sums_[size_t((2 * i + 1) * c_ + c)] +
                           delta * delta * n * count / (n + count);
                mean += delta * n / (n + count);
                count += n;
            }
            center_[c] = mean;
            variance_[c] = std::max(0.0, squares / all);
            if (!p.moves_statistics()) continue;
            if (running_mean)
                running_mean[c] = keep * running_mean[c] + (1 - keep) * float(mean);
            if (running_variance)
                running_variance[c] = keep * running_variance[c] +
                                      (1 - keep) * float(variance_[c] * all / (all - 1));
        }
    }

    void add_up(Program& p, const Tensor& x, const float* y, const float* dy) {
        p.pool.run(pieces_, [&](int64_t i, int thread) {
            sums_of_piece(i, p.of_thread(thread), 2, sums_.data() + 2 * i * c_,
                          [&](int64_t at, int64_t rows, int64_t width, float* to) {
                              normalize_sums(x.data + at, y ? y + at : nullptr, dy + at,
                                             mean_.data(), rows, width, to, to + width_);
                          });
        });
    }

    int64_t c_, rows_, fold_, width_, step_, pieces_;
    std::vector<float> mean_, scale_, shift_, a_, b_, c_of_row_;
    std::vector<double> sums_, variance_, center_;
};

}  // namespace

std::unique_ptr<Layer> make_normalization(const LayerSpec& spec, Program& program) {
    return std::make_unique<Normalization>(spec, program);
}

}  // namespace layers
