// Convolution, deconvolution and affine layers on oneDNN.
#include <algorithm>
#include <functional>
#include <map>

#include "primitive.h"
#include "program.h"
#include "vector_loops.h"

namespace layers {
namespace {

enum Input { X, W, B };
enum Number {
    SPATIAL = 0, GROUPS = 1, X_SIZE = 2, KERNEL = 5, STRIDE = 8, DILATION = 11, PAD = 14,
    PAD_AFTER = 17, Y_SIZE = 20, WEIGHTS_CHANNELS_LAST = 23
};

const double WORTH_A_CALL = 2e6;         // operations below which samples are computed together
const double WORTH_A_PART = 1e6;         // likewise, parts of the gradient of the weights
const int64_t PARTS_TOGETHER = 1 << 22;  // floats that these parts may take in all
const int64_t LARGE = 1 << 20;           // floats of weights that are not kept in two orders
const int64_t WORTH_SHARING = 1 << 16;   // floats of weights that several threads rearrange

int64_t product(const Dims& dims) {
    int64_t n = 1;
    for (int64_t d : dims) n *= d;
    return n;
}

// Copies weights from one order of theirs to another, in several parts.
class Rearrange {
public:
    Rearrange(const Desc& from, const Desc& to, const Dims& dims, int threads) {
        int64_t step = dims[0];
        if (product(dims) >= WORTH_SHARING && dims[0] % 64 == 0)
            step = std::max<int64_t>(64, dims[0] / 8 / 64 * 64);
        try {
            divide(from, to, dims, step, threads);
        } catch (const std::runtime_error&) {
            // Some orders cannot be divided there.
            parts_.clear();
            divide(from, to, dims, dims[0], threads);
        }
    }
    int64_t scratch() const {
        int64_t most = 0;
        for (auto& p : parts_) most = std::max(most, p->scratch());
        return most;
    }
    void run(Program& p, const float* from, float* to) const {
        p.pool.run(int64_t(parts_.size()), [&](int64_t i, int thread) {
            if (!parts_[i]->run(thread, {from, to}, p.of_thread(thread))) p.failed = true;
        });
    }

private:
    void divide(const Desc& from, const Desc& to, const Dims& dims, int64_t step, int threads) {
        Attributes attributes;
        for (int64_t at = 0; at < dims[0]; at += step) {
            Dims size = dims, offset(dims.size(), 0);
            size[0] = std::min(step, dims[0] - at);
            offset[0] = at;
            const Desc a = part(from, dims, size, offset), b = part(to, dims, size, offset);
            PrimitiveDesc made;
            check(dnnl.reorder_primitive_desc_create(&made.desc, a.get(), dnnl.engine, b.get(),
                                                     dnnl.engine, attributes.attr),
                  "order of weights");
            parts_.push_back(std::make_unique<Primitive>(
                made,
                std::vector<Primitive::Argument>{{DNNL_ARG_FROM, a.get()}, {DNNL_ARG_TO, b.get()}},
                threads));
        }
    }
    static Desc part(const Desc& whole, const Dims& dims, const Dims& size, const Dims& offset) {
        if (size == dims) return Desc::clone(whole.get());
        dnnl_memory_desc_t made;
        check(dnnl.memory_desc_create_submemory(&made, whole.get(), size.data(), offset.data()),
              "order of weights");
        return Desc(made);
    }
    std::vector<std::unique_ptr<Primitive>> parts_;
};

class Dense : public Layer {
public:
    Dense(const LayerSpec& spec, Program& p) : Layer(spec) {
        const Tensor& x = p.tensor(spec.inputs[X]);
        const Tensor& y = p.tensor(spec.outputs[0]);
        ic_ = x.channels;
        oc_ = y.channels;
        describe_weights();
        const int threads = p.pool.threads();
        // For a sample.
        const int64_t positions = spec.kind == CONVOLUTION ? y.positions : x.positions;
        const double operations = 2.0 * double(product(weights_dims_)) * double(positions);
        pieces_ = Pieces(x.samples, 1, samples_together(x, y, operations));
        for (int64_t n : sizes()) forward_[n] = make_forward(n, threads);
        if (!(weights_ == forward_weights_))
            to_forward_ = std::make_unique<Rearrange>(weights_, forward_weights_, weights_dims_,
                                                      threads);
        p.reserve(Program::WORK, forward_weights_.floats());
        if (p.trains()) make_backward(p, x, operations, threads);
        reserve_scratch(p, x);
    }

    std::vector<int> kept() const override {
        std::vector<int> tensors;
        if (wants_w_) tensors.push_back(spec.inputs[X]);
        if (wants_x_) tensors.push_back(spec.inputs[W]);
        return tensors;
    }

    void forward(Program& p) override {
        const Tensor& x = p.tensor(spec.inputs[X]);
        const Tensor& y = p.tensor(spec.outputs[0]);
        const float* w = arranged(p, to_forward_.get());
        const float* b = has(B) ? p.tensor(spec.inputs[B]).data : nullptr;
        p.pool.run(pieces_.count, [&](int64_t i, int thread) {
            const int64_t at = pieces_.begin(i);
            std::vector<const float*> places = {x.data + at * x.sample(), w,
                                                y.data + at * y.sample()};
            if (b) places.push_back(b);
            run(p, *forward_.at(pieces_.size(i)), thread, places);
        });
    }

    void backward(Program& p) override {
        Tensor& x = p.tensor(spec.inputs[X]);
        const Tensor& y = p.tensor(spec.outputs[0]);
        if (!y.wanted || !*y.has_grad) return;
        Tensor* b = has(B) ? &p.tensor(spec.inputs[B]) : nullptr;
        const bool to_x = wants_x_ && x.grad;
        const bool to_w = wants_w_ && (p.tensor(spec.inputs[W]).grad || (b && b->grad));
        const float* w = to_x ? arranged(p, to_backward_.get()) : nullptr;
        const int64_t parts = to_w ? int64_t(part_begin_.size()) - 1 : 0;
        const bool adds = *x.has_grad;
        const auto gradient_of_x = [&](int64_t i, int thread) {
            const int64_t at = pieces_.begin(i), n = pieces_.size(i);
            float* target = x.grad + at * x.sample();
            float* own = adds ? p.of_thread(thread) + scratch_ : target;
            run(p, *gradient_of_x_.at(n), thread, {own, w, y.grad + at * y.sample()});
            if (adds) add_to(own, target, n * x.sample());
        };
        const auto gradient_of_w = [&](int64_t i, int thread) {
            const int64_t at = part_begin_[i], n = part_begin_[i + 1] - at;
            std::vector<const float*> places = {x.data + at * x.sample(), part(p, i),
                                                y.grad + at * y.sample()};
            if (b) places.push_back(part(p, i) + gradient_.floats());
            run(p, *gradient_of_w_.at(n), thread, places);
        };
        if (shares_memory_) {
            // One after the other, as the parts lie where the weights do.
            if (to_x) p.pool.run(pieces_.count, gradient_of_x);
            p.pool.run(parts, gradient_of_w);
        } else {
            p.pool.run(parts + (to_x ? pieces_.count : 0), [&](int64_t i, int thread) {
                if (i < parts)
                    gradient_of_w(i, thread);
                else
                    gradient_of_x(i - parts, thread);
            });
        }
        if (to_x) *x.has_grad = true;
        if (to_w) sum_parts(p, p.tensor(spec.inputs[W]), b);
    }

private:
    using Primitives = std::map<int64_t, std::unique_ptr<Primitive>>;

    int spatial() const { return int(spec.numbers[SPATIAL]); }
    const int64_t* numbers(Number at) const { return spec.numbers + at; }

    // Samples first, channels last.
    Desc describe(int64_t samples, int64_t channels, Number size) const {
        Dims dims = {samples, channels}, strides = {0, 1};
        int64_t stride = channels;
        for (int i = 0; i < spatial(); ++i) dims.push_back(numbers(size)[i]);
        strides.resize(dims.size());
        for (int i = spatial() - 1; i >= 0; --i) {
            strides[2 + i] = stride;
            stride *= dims[2 + i];
        }
        strides[0] = stride;
        return Desc::strided(dims, strides);
    }

    // As NNabla keeps them.
    void describe_weights() {
        if (spec.kind == AFFINE) {
            weights_dims_ = {oc_, ic_};
            weights_ = Desc::strided(weights_dims_, {1, oc_});
            return;
        }
        const int64_t g = spec.numbers[GROUPS], o = oc_ / g, i = ic_ / g;
        Dims kernel(numbers(KERNEL), numbers(KERNEL) + spatial());
        const int64_t k = product(kernel);
        const bool last = spec.numbers[WEIGHTS_CHANNELS_LAST] != 0;
        const int64_t inner = turned() ? o : i;  // the maps that NNabla has second
        Dims within(kernel.size());
        int64_t stride = last ? inner : 1;
        for (int d = spatial() - 1; d >= 0; --d) {
            within[d] = stride;
            stride *= kernel[d];
        }
        const int64_t to_inner = last ? 1 : k, to_outer = inner * k;
        Dims dims = {o, i}, strides = {turned() ? to_inner : to_outer, turned() ? to_outer : to_inner};
        if (g > 1) {
            dims.insert(dims.begin(), g);
            strides.insert(strides.begin(), (turned() ? i : o) * to_outer);
        }
        dims.insert(dims.end(), kernel.begin(), kernel.end());
        strides.insert(strides.end(), within.begin(), within.end());
        weights_dims_ = dims;
        weights_ = Desc::strided(dims, strides);
    }

    int64_t samples_together(const Tensor& x, const Tensor& y, double operations) const {
        // Few positions use the weights that have just been read too seldom.
        const int64_t rows = spec.kind == AFFINE ? 16 : 64;
        const int64_t positions = std::max<int64_t>(1, std::min(x.positions, y.positions));
        const int64_t calls = int64_t(WORTH_A_CALL / std::max(1.0, operations)) + 1;
        return std::max((rows + positions - 1) / positions, calls);
    }

    std::vector<int64_t> sizes() const {
        std::vector<int64_t> found = {pieces_.size(0)};
        const int64_t last = pieces_.size(pieces_.count - 1);
        if (last != found[0]) found.push_back(last);
        return found;
    }

    Desc fixed_or_any(const Desc& known) const {
        if (spec.kind == AFFINE) return Desc::clone(weights_.get());
        return known.get() ? Desc::clone(known.get()) : Desc::any(weights_dims_);
    }

    // What all three primitives are told for so many samples.
    struct Around {
        Desc x, y, bias;
        const_dnnl_memory_desc_t b;  // null without a bias
        Dims dilates;
        dnnl_alg_kind_t algorithm;
    };

    Around around(int64_t n) const {
        Around a{describe(n, ic_, X_SIZE), describe(n, oc_, Y_SIZE), Desc::strided({oc_}, {1}),
                 nullptr, Dims(numbers(DILATION), numbers(DILATION) + spatial()),
                 turned() ? dnnl_deconvolution_direct : dnnl_convolution_direct};
        if (has(B)) a.b = a.bias.get();
        for (int64_t& v : a.dilates) v -= 1;
        return a;
    }

    bool turned() const { return spec.kind == DECONVOLUTION; }

    void describe_forward(PrimitiveDesc* made, const Around& a, const Desc& w,
                          const Attributes& attributes) const {
        const auto kind = dnnl_forward_training;
        const auto create = turned() ? dnnl.deconvolution_forward_primitive_desc_create
                                     : dnnl.convolution_forward_primitive_desc_create;
        check(spec.kind == AFFINE
                  ? dnnl.inner_product_forward_primitive_desc_create(
                        &made->desc, dnnl.engine, kind, a.x.get(), w.get(), a.b, a.y.get(),
                        attributes.attr)
                  : create(&made->desc, dnnl.engine, kind, a.algorithm, a.x.get(), w.get(), a.b,
                           a.y.get(), numbers(STRIDE), a.dilates.data(), numbers(PAD),
                           numbers(PAD_AFTER), attributes.attr),
              "forward");
        made->must_be_fast();
    }

    std::unique_ptr<Primitive> make_forward(int64_t n, int threads) {
        Attributes attributes;
        PrimitiveDesc made;
        const Around a = around(n);
        describe_forward(&made, a, fixed_or_any(forward_weights_), attributes);
        forward_weights_ = Desc::clone(made.memory(dnnl_query_weights_md));
        std::vector<Primitive::Argument> arguments = {
            {DNNL_ARG_SRC, made.memory(dnnl_query_src_md)},
            {DNNL_ARG_WEIGHTS, made.memory(dnnl_query_weights_md)},
            {DNNL_ARG_DST, made.memory(dnnl_query_dst_md)}};
        if (a.b) arguments.push_back({DNNL_ARG_BIAS, a.b});
        return std::make_unique<Primitive>(made, arguments, threads);
    }

    std::unique_ptr<Primitive> make_gradient_of_x(int64_t n, int threads) {
        Attributes attributes;
        PrimitiveDesc hint, made;
        const Around a = around(n);
        const Desc w = fixed_or_any(backward_weights_);
        describe_forward(&hint, a, fixed_or_any(Desc()), attributes);
        const auto create = turned() ? dnnl.deconvolution_backward_data_primitive_desc_create
                                     : dnnl.convolution_backward_data_primitive_desc_create;
        check(spec.kind == AFFINE
                  ? dnnl.inner_product_backward_data_primitive_desc_create(
                        &made.desc, dnnl.engine, a.x.get(), w.get(), a.y.get(), hint.desc,
                        attributes.attr)
                  : create(&made.desc, dnnl.engine, a.algorithm, a.x.get(), w.get(), a.y.get(),
                           numbers(STRIDE), a.dilates.data(), numbers(PAD), numbers(PAD_AFTER),
                           hint.desc, attributes.attr),
              "backward");
        made.must_be_fast();
        backward_weights_ = Desc::clone(made.memory(dnnl_query_weights_md));
        return std::make_unique<Primitive>(
            made,
            std::vector<Primitive::Argument>{
                {DNNL_ARG_DIFF_SRC, made.memory(dnnl_query_diff_src_md)},
                {DNNL_ARG_WEIGHTS, made.memory(dnnl_query_weights_md)},
                {DNNL_ARG_DIFF_DST, made.memory(dnnl_query_diff_dst_md)}},
            threads);
    }

    std::unique_ptr<Primitive> make_gradient_of_w(int64_t n, int threads) {
        Attributes attributes;
        PrimitiveDesc hint, made;
        const Around a = around(n);
        const Desc w = fixed_or_any(gradient_);
        describe_forward(&hint, a, fixed_or_any(Desc()), attributes);
        const auto create = turned() ? dnnl.deconvolution_backward_weights_primitive_desc_create
                                     : dnnl.convolution_backward_weights_primitive_desc_create;
        check(spec.kind == AFFINE
                  ? dnnl.inner_product_backward_weights_primitive_desc_create(
                        &made.desc, dnnl.engine, a.x.get(), w.get(), a.b, a.y.get(), hint.desc,
                        attributes.attr)
                  : create(&made.desc, dnnl.engine, a.algorithm, a.x.get(), w.get(), a.b,
                           a.y.get(), numbers(STRIDE), a.dilates.data(), numbers(PAD),
                           numbers(PAD_AFTER), hint.desc, attributes.attr),
              "backward to the weights");
        made.must_be_fast();
        gradient_ = Desc::clone(made.memory(dnnl_query_diff_weights_md));
        std::vector<Primitive::Argument> arguments = {
            {DNNL_ARG_SRC, made.memory(dnnl_query_src_md)},
            {DNNL_ARG_DIFF_WEIGHTS, made.memory(dnnl_query_diff_weights_md)},
            {DNNL_ARG_DIFF_DST, made.memory(dnnl_query_diff_dst_md)}};
        if (a.b) arguments.push_back({DNNL_ARG_DIFF_BIAS, a.b});
        return std::make_unique<Primitive>(made, arguments, threads);
    }

    void make_backward(Program& p, const Tensor& x, double operations, int threads) {
        const Tensor& w = p.tensor(spec.inputs[W]);
        wants_x_ = x.wanted;
        wants_w_ = w.wanted || (has(B) && p.tensor(spec.inputs[B]).wanted);
        if (wants_x_) {
            for (int64_t n : sizes()) gradient_of_x_[n] = make_gradient_of_x(n, threads);
            if (!(weights_ == backward_weights_))
                to_backward_ = std::make_unique<Rearrange>(weights_, backward_weights_,
                                                           weights_dims_, threads);
            if (to_backward_) arranged_size_ = (backward_weights_.floats() + 15) / 16 * 16;
            p.reserve(Program::WORK, arranged_size_);
        }
        if (!wants_w_) return;
        // The same parts whatever the number of threads is, and added up in their order, so that
        // the sums do not depend on it.
        const int64_t size = product(weights_dims_);
        int64_t parts = std::max<int64_t>(2, std::min<int64_t>(16, PARTS_TOGETHER / size));
        parts = std::min(parts, int64_t(operations * double(x.samples) / WORTH_A_PART) + 1);
        parts = std::max<int64_t>(1, std::min(parts, x.samples));
        part_begin_ = {0};
        for (int64_t i = 0; i < parts; ++i)
            part_begin_.push_back(part_begin_.back() + x.samples / parts +
                                  (i < x.samples % parts));
        for (int64_t i = 0; i < parts; ++i) {
            const int64_t n = part_begin_[i + 1] - part_begin_[i];
            if (!gradient_of_w_.count(n)) gradient_of_w_[n] = make_gradient_of_w(n, threads);
        }
        part_size_ = (gradient_.floats() + oc_ + 15) / 16 * 16;
        shares_memory_ = size >= LARGE;
        if (shares_memory_) arranged_size_ = 0;
        p.reserve(Program::WORK, arranged_size_ + parts * part_size_);
        if (!(gradient_ == weights_)) {
            from_gradient_ = std::make_unique<Rearrange>(gradient_, weights_, weights_dims_,
                                                         threads);
            p.reserve(Program::PLAIN, size);
        }
    }

    void reserve_scratch(Program& p, const Tensor& x) {
        for (const Primitives* list : {&forward_, &gradient_of_x_, &gradient_of_w_})
            for (const auto& entry : *list) scratch_ = std::max(scratch_, entry.second->scratch());
        for (const Rearrange* r : {to_forward_.get(), to_backward_.get(), from_gradient_.get()})
            if (r) scratch_ = std::max(scratch_, r->scratch());
        scratch_ = (scratch_ + 15) / 16 * 16;
        p.reserve_thread(scratch_ + (wants_x_ ? pieces_.step * x.sample() : 0));
    }

    const float* arranged(Program& p, const Rearrange* order) const {
        const float* w = p.tensor(spec.inputs[W]).data;
        if (!order) return w;
        order->run(p, w, p.at(Program::WORK));
        return p.at(Program::WORK);
    }

    float* part(Program& p, int64_t i) const { 
        return p.at(Program::WORK) + arranged_size_ + i * part_size_;
    }

    void run(Program& p, const Primitive& primitive, int thread,
             const std::vector<const float*>& places) const {
        if (!primitive.run(thread, places, p.of_thread(thread))) p.failed = true;
    }

    void sum_parts(Program& p, Tensor& w, Tensor* b) {
        const int64_t parts = int64_t(part_begin_.size()) - 1;
        if (w.grad) {
            // Where the orders are the same the sum goes to its place at once.
            float* sum = from_gradient_ ? part(p, 0) : w.grad;
            const bool adds = !from_gradient_ && *w.has_grad;
            const int64_t size = gradient_.floats(), step = 1 << 14;
            p.pool.run((size + step - 1) / step, [&](int64_t i, int) {
                const int64_t at = i * step, n = std::min(step, size - at);
                for (int64_t k = 1; k < parts; ++k) add_to(part(p, k) + at, part(p, 0) + at, n);
                if (sum == part(p, 0)) return;
                if (adds)
                    add_to(part(p, 0) + at, sum + at, n);
                else
                    std::copy(part(p, 0) + at, part(p, 0) + at + n, sum + at);
            });
            if (from_gradient_) {
                float* plain = *w.has_grad ? p.at(Program::PLAIN) : w.grad;
                from_gradient_->run(p, sum, plain);
                if (*w.has_grad) add_to(plain, w.grad, w.size());
            }
            *w.has_grad = true;
        }
        if (b && b->grad) {
            const int64_t at = gradient_.floats();
            for (int64_t k = 1; k < parts; ++k) add_to(part(p, k) + at, part(p, 0) + at, oc_);
            if (*b->has_grad)
                add_to(part(p, 0) + at, b->grad, oc_);
            else
                std::copy(part(p, 0) + at, part(p, 0) + at + oc_, b->grad);
            *b->has_grad = true;
        }
    }

    int64_t ic_, oc_;
    Dims weights_dims_;
    Desc weights_, forward_weights_, backward_weights_, gradient_;
    Pieces pieces_{0, 1};
    Primitives forward_, gradient_of_x_, gradient_of_w_;
    std::unique_ptr<Rearrange> to_forward_, to_backward_, from_gradient_;
    bool wants_x_ = false, wants_w_ = false;
    std::vector<int64_t> part_begin_;
    // The arranged weights lie before the parts of the gradient, or where they are.
    bool shares_memory_ = false;
    int64_t arranged_size_ = 0, part_size_ = 0, scratch_ = 0;
};

}  // namespace

std::unique_ptr<Layer> make_dense(const LayerSpec& spec, Program& program) {
    return std::make_unique<Dense>(spec, program);
}

}  // namespace layers
