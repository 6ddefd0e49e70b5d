#include "program.h"

#include <algorithm>
#include <cstdlib>
#include <new>

namespace layers {
namespace {

const int64_t LINE = 16;  // floats of a cache line

int64_t whole_lines(int64_t floats) { return (floats + LINE - 1) / LINE * LINE; }

struct OneThread {
    int before = dnnl.omp_get_max_threads();
    OneThread() { dnnl.omp_set_num_threads(1); }
    ~OneThread() { dnnl.omp_set_num_threads(before); }
};

// Places spans so that those which overlap in time do not overlap in memory; the largest first,
// each as low as it goes.
int64_t place_spans(std::vector<std::pair<Tensor::Span*, int64_t>> wanted) {
    std::stable_sort(wanted.begin(), wanted.end(),
                     [](const auto& a, const auto& b) { return a.second > b.second; });
    std::vector<std::pair<Tensor::Span*, int64_t>> placed;
    int64_t end = 0;
    for (auto& entry : wanted) {
        Tensor::Span& span = *entry.first;
        std::vector<std::pair<int64_t, int64_t>> taken;
        for (auto& other : placed)
            if (other.first->first <= span.last && span.first <= other.first->last)
                taken.emplace_back(other.first->offset, other.first->offset + other.second);
        std::sort(taken.begin(), taken.end());
        int64_t at = 0;
        for (auto& range : taken) {
            if (range.first - at >= entry.second) break;
            at = std::max(at, range.second);
        }
        span.offset = at;
        end = std::max(end, at + entry.second);
        placed.push_back(entry);
    }
    return end;
}

}  // namespace

namespace {

int producer_of(const LayerSpec* layers, int layer_count, int tensor) {
    for (int i = 0; i < layer_count; ++i)
        for (int output : layers[i].outputs)
            if (output == tensor) return i;
    return -1;
}

}  // namespace

Pieces::Pieces(int64_t samples, int64_t floats, int64_t least) : samples(samples) {
    step = std::max<int64_t>(1, least / std::max<int64_t>(1, floats));
    step = std::min(step, std::max<int64_t>(1, samples));
    count = (samples + step - 1) / step;
}

Program::Memory Program::allocate(int64_t floats) {
    if (floats <= 0) return nullptr;
    const size_t bytes = size_t(whole_lines(floats)) * sizeof(float);
    float* memory = static_cast<float*>(std::aligned_alloc(64, bytes));
    if (!memory) throw std::bad_alloc();
    return Memory(memory);
}

Program::Program(const TensorSpec* tensors, int tensor_count, const LayerSpec* layers,
                 int layer_count, int threads, bool trains)
    : pool(threads), trains_(trains) {
    for (int i = 0; i < tensor_count; ++i) {
        Tensor t;
        t.samples = tensors[i].samples;
        t.positions = tensors[i].positions;
        t.channels = tensors[i].channels;
        t.external = tensors[i].external;
        t.wanted = trains && tensors[i].wanted;
        t.whole = tensors[i].whole;
        t.offset = tensors[i].offset;
        tensors_.push_back(t);
    }
    uses_.resize(tensors_.size(), 0);
    for (int i = 0; i < layer_count; ++i)
        for (int k : layers[i].inputs)
            if (k >= 0) ++uses_[k];
    for (const Tensor& t : tensors_)
        if (t.whole >= 0) uses_[t.whole] += 2;
    OneThread scope;
    for (int i = 0; i < layer_count; ++i) {
        layers_.push_back(make_layer(layers[i], *this));
        const int back = 2 * layer_count - 1 - i;
        const auto each = [&](const int32_t* list, int count, const auto& call) {
            for (int k = 0; k < count; ++k)
                if (list[k] >= 0) call(whole(tensors_[list[k]]));
        };
        each(layers[i].inputs, MAX_INPUTS, [&](Tensor& t) { t.data_span.use(i); });
        each(layers[i].outputs, MAX_OUTPUTS, [&](Tensor& t) { t.data_span.use(i); });
        if (!trains) continue;
        for (int k : layers_[i]->kept()) whole(tensors_[k]).data_span.use(back);
        each(layers[i].inputs, MAX_INPUTS, [&](Tensor& t) { t.grad_span.use(back); });
        each(layers[i].outputs, MAX_OUTPUTS, [&](Tensor& t) { t.grad_span.use(back); });
    }
    if (trains) {
        find_grads_over_data(layers, layer_count);
        find_what_is_computed_again(layers, layer_count);
    }
    find_small_layers(layers, layer_count);
    plan();
}

void Program::find_small_layers(const LayerSpec* layers, int layer_count) {
    std::vector<bool> taken(tensors_.size(), false);
    for (int i = 0; i < layer_count && layers_[i]->is_small(); ++i, ++side_by_side_) {
        // Two of them must not add to one gradient at once.
        bool shared = false;
        for (int k : layers[i].inputs)
            if (k >= 0 && tensors_[k].wanted) {
                shared = shared || taken[k];
                taken[k] = true;
            }
        if (shared) break;
    }
    if (side_by_side_ < 2) side_by_side_ = 0;
    // Nobody knows in which order they run: what one of them uses is theirs in all their steps.
    const int last = 2 * int(layers_.size()) - 1;
    for (Tensor& t : tensors_)
        for (Tensor::Span* span : {&t.data_span, &t.grad_span}) {
            if (span->first < 0 || side_by_side_ == 0) continue;
            if (span->first < side_by_side_) span->use(0), span->use(side_by_side_ - 1);
            if (span->last > last - side_by_side_) span->use(last), span->use(last + 1 - side_by_side_);
        }
}

void Program::find_what_is_computed_again(const LayerSpec* layers, int layer_count) {
    computed_again_.resize(layer_count);
    std::vector<int> views(tensors_.size(), 0);
    // The step at which a tensor is computed again, -1: it is kept.
    std::vector<int> again_at(tensors_.size(), -1);
    for (const Tensor& t : tensors_)
        if (t.whole >= 0) ++views[t.whole];
    // The last layers first: what is computed again may need what comes before it once more.
    for (int i = layer_count - 1; i >= 0; --i) {
        const int k = layers[i].outputs[0];
        Tensor& t = tensors_[k];
        if (!layers_[i]->is_cheap() || t.external >= 0 || t.whole >= 0 || views[k]) continue;
        if (t.grad_over_data) continue;
        const int back = 2 * layer_count - 1 - i;
        Tensor::Span forward, again;
        forward.use(i);
        for (int j = i + 1; j < layer_count; ++j) {
            for (int input : layers[j].inputs)
                if (input == k) {
                    forward.use(j);
                    const int step = again_at[layers[j].outputs[0]];
                    if (step >= 0) again.use(step);
                }
            for (int kept : layers_[j]->kept())
                if (kept == k) again.use(2 * layer_count - 1 - j);
        }
        // Where it is needed at once, or not at all, nothing is won.
        if (again.first < 0 || again.first <= forward.last + 1) continue;
        again.use(back);
        t.data_span = forward;
        t.again_span = again;
        again_at[k] = again.first;
        auto& at = computed_again_[again.first - layer_count];
        at.insert(at.begin(), i);
    }
}

void Program::find_grads_over_data(const LayerSpec* layers, int layer_count) {
    for (int i = 0; i < layer_count; ++i) {
        const int k = layers_[i]->overwrites();
        if (k < 0) continue;
        Tensor& t = tensors_[k];
        if (t.external >= 0 || t.whole >= 0 || !t.wanted || !is_used_once(k)) continue;
        // The layer that made it may read it once more, to know where its ReLU was 0.
        const int producer = producer_of(layers, layer_count, k);
        if (producer < 0) continue;
        const std::vector<int> kept = layers_[producer]->kept();
        if (std::find(kept.begin(), kept.end(), k) != kept.end()) continue;
        t.grad_over_data = true;
        t.data_span.use(t.grad_span.last);
    }
}

void Program::plan() {
    std::vector<std::pair<Tensor::Span*, int64_t>> spans;
    for (Tensor& t : tensors_) {
        if (t.external >= 0 || t.whole >= 0) continue;
        if (t.data_span.first >= 0) spans.emplace_back(&t.data_span, whole_lines(t.size()));
        if (t.again_span.first >= 0) spans.emplace_back(&t.again_span, whole_lines(t.size()));
        if (t.wanted && t.grad_span.first >= 0 && !t.grad_over_data)
            spans.emplace_back(&t.grad_span, whole_lines(t.size()));
    }
    arena_size_ = place_spans(spans);
}

void Program::reserve(Slot slot, int64_t floats) {
    slot_sizes_[slot] = std::max(slot_sizes_[slot], floats);
}

void Program::reserve_thread(int64_t floats) { thread_size_ = std::max(thread_size_, floats); }

// Not before the first call: what is built and never run takes no memory.
void Program::allocate_all() {
    if (!of_thread_.empty()) return;
    Memory arena = allocate(arena_size_);
    Memory slots[SLOTS];
    for (int i = 0; i < SLOTS; ++i) slots[i] = allocate(slot_sizes_[i]);
    std::vector<Memory> of_thread;
    for (int i = 0; i < pool.threads(); ++i) of_thread.push_back(allocate(thread_size_));
    arena_ = std::move(arena);
    for (int i = 0; i < SLOTS; ++i) slots_[i] = std::move(slots[i]);
    of_thread_ = std::move(of_thread);
}

void Program::place(float* const* arrays) {
    allocate_all();
    for (Tensor& t : tensors_) {
        if (t.external >= 0)
            t.data = arrays[t.external];
        else if (t.data_span.offset >= 0)
            t.data = arena_.get() + t.data_span.offset;
    }
    for (Tensor& t : tensors_)
        if (t.whole >= 0) t.data = tensors_[t.whole].data + t.offset;
}

bool Program::forward(float* const* arrays, bool moves_statistics) {
    OneThread scope;
    moves_statistics_ = moves_statistics;
    place(arrays);
    failed = false;
    pool.run(side_by_side_, [&](int64_t i, int) { layers_[i]->forward(*this); });
    for (size_t i = side_by_side_; i < layers_.size(); ++i) layers_[i]->forward(*this);
    if (failed) throw std::runtime_error("oneDNN could not compute a layer");
    return std::all_of(layers_.begin(), layers_.end(),
                       [](const auto& layer) { return layer->is_finite(); });
}

void Program::backward(float* const* arrays, float* const* grads, const uint8_t* add) {
    OneThread scope;
    place(arrays);
    failed = false;
    for (Tensor& t : tensors_) {
        if (t.external >= 0) {
            t.grad = grads[t.external];
            t.own_flag = t.grad && add[t.external];
        } else {
            t.grad = t.grad_over_data ? t.data
                     : t.wanted && t.grad_span.offset >= 0 ? arena_.get() + t.grad_span.offset
                                                           : nullptr;
            t.own_flag = false;
            if (t.again_span.first >= 0) t.data = arena_.get() + t.again_span.offset;
        }
    }
    for (Tensor& t : tensors_) {
        t.has_grad = &t.own_flag;
        if (t.whole >= 0) {
            Tensor& all = tensors_[t.whole];
            t.grad = t.wanted && all.grad ? all.grad + t.offset : nullptr;
            t.has_grad = &all.own_flag;
        }
    }
    for (auto& layer : layers_) layer->prepare_backward(*this);
    // A layer may have put the gradient of its output elsewhere; what lies within follows.
    for (Tensor& t : tensors_)
        if (t.whole >= 0) {
            const Tensor& all = tensors_[t.whole];
            t.grad = t.wanted && all.grad ? all.grad + t.offset : nullptr;
        }
    const int count = int(layers_.size());
    for (int step = 0; step < count - side_by_side_; ++step) {
        for (int i : computed_again_[step]) layers_[i]->again(*this);
        layers_[count - 1 - step]->backward(*this);
    }
    pool.run(side_by_side_, [&](int64_t i, int) { layers_[i]->backward(*this); });
    // Where nothing came back.
    for (Tensor& t : tensors_)
        if (t.external >= 0 && t.grad && !t.own_flag) std::fill(t.grad, t.grad + t.size(), 0.0f);
    if (failed) throw std::runtime_error("oneDNN could not compute a layer");
}

}  // namespace layers
