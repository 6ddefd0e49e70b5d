// A part of a network that is computed as one function: its layers in order, and back.
//
// Tensors are float32, samples first, channels last: (samples, positions, channels). What comes
// from and goes to NNabla has channels first; layers of their own turn it around. Memory of
// tensors is planned once: from the layer that writes one to the last that reads it, the backward
// pass counted.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "api.h"
#include "pool.h"

namespace layers {

// What Python hands over; onednn/program.py has the same.
enum Kind : int32_t {
    CONVOLUTION = 1,
    DECONVOLUTION,
    AFFINE,
    NORMALIZATION,
    MAX_POOLING,
    AVERAGE_POOLING,
    UNARY,
    ADD,
    CHANNELS_LAST,
    CHANNELS_FIRST,
    COPY,
    PAD_CHANNELS,
    MIXTURE,
    ACTIVATIONS
};

struct TensorSpec {
    int64_t samples, positions, channels;
    int32_t external;  // place among the arrays of a call, -1: memory of the program
    int32_t wanted;    // whether its gradient is
    int32_t whole;     // the tensor that it is a part of, -1: none
    int64_t offset;    // where it begins in that one
};

enum { MAX_INPUTS = 32, MAX_OUTPUTS = 2, NUMBERS = 32 };

struct LayerSpec {
    int32_t kind;
    int32_t inputs[MAX_INPUTS];  // tensors, -1: none
    int32_t outputs[MAX_OUTPUTS];
    int64_t numbers[NUMBERS];
    double reals[4];
    void* pointers[4];
};

struct Tensor {
    int64_t samples, positions, channels;
    int external;
    bool wanted;
    int whole;
    int64_t offset;
    int64_t size() const { return samples * positions * channels; }
    int64_t sample() const { return positions * channels; }

    // During a call:
    float* data = nullptr;
    float* grad = nullptr;
    // Whether something is in `grad` that others add to; views of one tensor share it.
    bool* has_grad = nullptr;
    bool own_flag = false;

    // The gradient takes the place of the data, which nobody needs then.
    bool grad_over_data = false;

    // The plan. Steps of the forward pass are 0, 1, ..., of the backward pass n, n + 1, ...
    struct Span {
        int first = -1, last = -1;
        int64_t offset = -1;
        void use(int step) {
            first = first < 0 || step < first ? step : first;
            last = step > last ? step : last;
        }
    } data_span, grad_span;
    // Where the data are computed once more in the backward pass instead of being kept.
    Span again_span;
};

// The gradient of a tensor that has one; else zeros, in its place or, without any, in `own`.
inline float* zeros_unless(bool has_one, const Tensor& t, std::vector<float>* own) {
    if (!t.grad) {
        own->assign(t.size(), 0.0f);
        return own->data();
    }
    if (!has_one) std::fill(t.grad, t.grad + t.size(), 0.0f);
    return t.grad;
}

class Program;

class Layer {
public:
    explicit Layer(const LayerSpec& spec) : spec(spec) {}
    virtual ~Layer() = default;
    // Which tensors the backward pass reads, beside the gradients of the outputs. It does nothing
    // where no gradient has come to them.
    virtual std::vector<int> kept() const = 0;
    // An input whose gradient may take the place of its data, if no other layer has the input; -1.
    virtual int overwrites() const { return -1; }
    // Whether the output costs so little that it is rather computed again than kept.
    virtual bool is_cheap() const { return false; }
    // Compute the output again, in the backward pass.
    virtual void again(Program&) {}
    // Whether it is so small that one thread computes it, beside its like on the others.
    virtual bool is_small() const { return false; }
    virtual void forward(Program& p) = 0;
    // Before any layer's backward, when it is known where gradients go.
    virtual void prepare_backward(Program&) {}
    virtual void backward(Program& p) = 0;
    // Whether the parameters were finite that the forward pass has looked at.
    virtual bool is_finite() const { return true; }

protected:
    bool has(int input) const { return spec.inputs[input] >= 0; }
    LayerSpec spec;
};

class Program {
public:
    Program(const TensorSpec* tensors, int tensor_count, const LayerSpec* layers, int layer_count,
            int threads, bool trains);

    // The backward pass uses up what the forward pass left: before another one comes another
    // forward, with the same arrays, which then moves no running statistics.
    // Returns whether the weights and coefficients of all mixtures are finite.
    bool forward(float* const* arrays, bool moves_statistics);
    void backward(float* const* arrays, float* const* grads, const uint8_t* add);

    Tensor& tensor(int i) { return tensors_[i]; }
    // Whether one layer alone uses a tensor, and no other tensor shares its memory.
    bool is_used_once(int i) const { return uses_[i] == 1; }
    bool trains() const { return trains_; }
    bool moves_statistics() const { return moves_statistics_; }
    int64_t arena_bytes() const { return int64_t(arena_size_) * sizeof(float); }

    // Memory that a layer has while it runs. A later call may move it, so all is asked for when
    // the program is made; `at(slot)` is then where it lies.
    enum Slot { WORK, PLAIN, SLOTS };
    void reserve(Slot slot, int64_t floats);
    float* at(Slot slot) { return slots_[slot].get(); }
    // Likewise for each thread.
    void reserve_thread(int64_t floats);
    float* of_thread(int thread) { return of_thread_[thread].get(); }

    Pool pool;
    std::atomic<bool> failed{false};

private:
    struct Free {
        void operator()(float* p) const { free(p); }
    };
    using Memory = std::unique_ptr<float, Free>;
    static Memory allocate(int64_t floats);

    void find_grads_over_data(const LayerSpec* layers, int layer_count);
    void find_what_is_computed_again(const LayerSpec* layers, int layer_count);
    void find_small_layers(const LayerSpec* layers, int layer_count);
    void plan();
    void place(float* const* arrays);
    Tensor& whole(Tensor& t) { return t.whole < 0 ? t : tensors_[t.whole]; }
    void allocate_all();

    std::vector<Tensor> tensors_;
    std::vector<int> uses_;  // how many layers and views have a tensor
    std::vector<std::unique_ptr<Layer>> layers_;
    bool trains_;
    bool moves_statistics_ = true;
    // The first layers that are computed side by side: the small ones before all others.
    int side_by_side_ = 0;
    // By the step of the backward pass before which it happens.
    std::vector<std::vector<int>> computed_again_;
    int64_t arena_size_ = 0;
    int64_t slot_sizes_[SLOTS] = {};
    int64_t thread_size_ = 0;
    Memory arena_;
    Memory slots_[SLOTS];
    std::vector<Memory> of_thread_;
};

// Samples that one thread works on at a time: enough of them that it pays, by shape alone.
struct Pieces {
    int64_t samples, step, count;
    Pieces(int64_t samples, int64_t floats_of_a_sample, int64_t least = 1 << 13);
    int64_t begin(int64_t i) const { return i * step; }
    int64_t size(int64_t i) const {
        return begin(i) + step > samples ? samples - begin(i) : step;
    }
};

std::unique_ptr<Layer> make_layer(const LayerSpec& spec, Program& program);
std::unique_ptr<Layer> make_dense(const LayerSpec& spec, Program& program);
std::unique_ptr<Layer> make_normalization(const LayerSpec& spec, Program& program);
std::unique_ptr<Layer> make_pooling(const LayerSpec& spec, Program& program);
std::unique_ptr<Layer> make_elementwise(const LayerSpec& spec, Program& program);
std::unique_ptr<Layer> make_mixture(const LayerSpec& spec, Program& program);
std::unique_ptr<Layer> make_activations(const LayerSpec& spec, Program& program);

}  // namespace layers
