// Mixtures of activations on a GPU: what backends/cuda/activations.py launches. activation_grid.h
// has the formulas.
//
// Forward: prepare, activate. Backward: activate_back, which computes the codes again. Prepare
// makes grids and coefficients; it reads x only where an array is not set yet, as this mini-batch's
// range or mean stands in then. Activate notes the range of x in a training. Nothing of x's size is
// kept, and sums over blocks are made by the block that comes last, always in the same order.
#pragma once

#include "layer.cuh"

namespace dqa {

// So many quantizers' sums fit into a block's shared memory.
const int MAX_ACTIVATED = 14;
const int MAX_ACTIVATION_ARRAYS = 3 * MAX_ACTIVATED;

// A launch's arguments; `ActivationParams` of backends/cuda/activations.py.
struct ActivationWork {
    int64_t size;
    int64_t piece;  // numbers of a block
    int32_t count;  // of quantizers
    int32_t many;   // arrays
    int32_t trains;
    int32_t looks;  // whether arrays may be unset
    int32_t add_x;
    int32_t add_shares;
    int32_t attends;  // whether the shares are made of attention
    float least;
    const float* x;
    const float* shares;  // null: made of attention, or there is one quantizer
    const float* dq;
    float* q;
    float* dx;
    float* dshares;
    // Scratch memory. The counter is 0 between launches.
    uint32_t* counter;
    Summary* seen;   // (blocks)
    double* parts;   // (3 * count + 1, blocks)
    Activated* own;  // from forward to backward
    Attention attention;
    ActivationOp ops[MAX_ACTIVATED];
    const float* arrays[MAX_ACTIVATION_ARRAYS];
    float* grads[MAX_ACTIVATION_ARRAYS];
    uint8_t add[MAX_ACTIVATION_ARRAYS];
};

__shared__ bool shared_extremes, shared_mean;
__shared__ double shared_totals[3 * MAX_ACTIVATED + 1];
__shared__ GradientRoom shared_room;
static_assert(4 * THREADS * (3 * MAX_ACTIVATED + 1) + sizeof shared_sums + sizeof shared_totals +
                      sizeof shared_room + sizeof shared_last <= 48 << 10,
              "more shared memory than every GPU has");
// ACTIVATED_BYTES of backends/cuda/activations.py.
static_assert(sizeof(Activated) <= 4096, "more scratch memory than there is");

DQA_DEVICE ActivationSet set_of(const ActivationWork& work) {
    return {work.ops, work.count, work.many, work.trains};
}

// f(positions, n) for the thread's numbers, AT_ONCE at a time; the last n may be less.
template <class F>
DQA_DEVICE void each_activation(const ActivationWork& work, F f) {
    const int64_t begin = blockIdx.x * work.piece;
    const int64_t rest = work.size - begin;
    const int64_t end = begin + (rest < work.piece ? rest : work.piece);
    for (int64_t j = begin + threadIdx.x; j < end; j += AT_ONCE * THREADS) {
        int64_t positions[AT_ONCE];
        int n = 0;
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            positions[i] = j + i * THREADS;
            if (positions[i] < end) n = i + 1;
        }
        f(positions, n);
    }
}

DQA_DEVICE void look_at(const float* x, int n, bool magnitudes, Summary* own) {
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) {
        if (i >= n) continue;
        own->minimum = smaller(x[i], own->minimum);
        own->maximum = larger(x[i], own->maximum);
        own->finite &= x[i] - x[i] == 0.0f;
        if (magnitudes) own->magnitudes += fabs(static_cast<double>(x[i]));
    }
}

// The summary of all threads of the block, for every one of them.
DQA_DEVICE Summary join_block(const Summary& own) {
    const int32_t thread = threadIdx.x;
    shared_summaries[thread] = own;
    for (int32_t step = THREADS / 2; step > 0; step /= 2) {
        __syncthreads();
        if (thread < step)
            shared_summaries[thread] =
                Join()(shared_summaries[thread], shared_summaries[thread + step]);
    }
    __syncthreads();
    const Summary joined = shared_summaries[0];
    __syncthreads();
    return joined;
}

// The summary of all of x, for the block that comes last; the others get false.
DQA_DEVICE bool join_blocks(const ActivationWork& work, Summary* summary) {
    *summary = join_block(*summary);
    if (gridDim.x == 1) return true;
    if (threadIdx.x == 0) work.seen[blockIdx.x] = *summary;
    if (!comes_last(work.counter, gridDim.x)) return false;
    Summary own = empty_summary();
    for (int64_t i = threadIdx.x; i < gridDim.x; i += THREADS) own = Join()(own, read(work.seen[i]));
    *summary = join_block(own);
    return true;
}

DQA_DEVICE void note_extremes(const Summary& summary, Activated* own) {
    own->minimum = smaller(summary.minimum, EXTREME);
    own->maximum = larger(summary.maximum, -EXTREME);
    own->finite = summary.finite;
}

DQA_DEVICE void prepare_layer(const ActivationWork& work, const Unset& unset, float magnitude) {
    Activated* const own = work.own;
    own->attends = work.attends;
    own->least = work.least;
    const float* shares = work.shares;
    if (work.attends) {
        make_shares(work.attention, work.count, &own->attended);
        shares = own->attended.shares;
    }
    prepare_activations(set_of(work), shares, work.arrays, unset, magnitude, own);
}

#define DQA_FOR_ACTIVATION(kind, CALL)  \
    switch (kind) {                     \
        case RANGE: CALL(RANGE); break; \
        case CLIP: CALL(CLIP); break;   \
        case STEP: CALL(STEP); break;   \
        case SIGN: CALL(SIGN); break;   \
        default: CALL(REAL); break;     \
    }

template <int KIND>
DQA_DEVICE void activation_codes(const ActivationGrid& g, const float* x, float* codes) {
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) codes[i] = activation_code<KIND>(g, x[i]);
}

// q in the order of the CPU's loops: the sum of scale * code, then the offset.
DQA_DEVICE void mixed(const ActiveActivations& active, const float* x, float* sums) {
    float codes[AT_ONCE];
    for (int k = 0; k < active.count; ++k) {
        const ActivationGrid g = active.grid[k];
        const float scale = active.scale[k];
#define DQA_CALL(KIND) activation_codes<KIND>(g, x, codes)
        DQA_FOR_ACTIVATION(active.kind[k], DQA_CALL)
#undef DQA_CALL
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i)
            sums[i] = k == 0 ? scale * codes[i] : sums[i] + scale * codes[i];
    }
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) sums[i] = sums[i] + active.offset;
}

// One quantizer's gradient to x, which goes to `dx` or, with `adds`, is added there, or is left out;
// and its sums of a thread.
template <int KIND>
DQA_DEVICE void back_codes(const ActivationGrid& g, float share, bool codes, const float* x,
                           const float* d, bool writes, bool adds, float* dx, float* slots) {
    float by_code = 0.0f, moves = 0.0f, outside = 0.0f;
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) {
        const bool inside = passes<KIND>(g, x[i]);
        const float own = inside ? share * d[i] : 0.0f;
        if (writes) dx[i] = adds ? dx[i] + own : own;
        if (codes) by_code += d[i] * activation_code<KIND>(g, x[i]);
        if (KIND == CLIP || KIND == STEP) moves += d[i] * learned<KIND>(g, x[i]);
        if (KIND == STEP) outside += inside ? 0.0f : d[i];
    }
    if (codes) slots[0] += by_code;
    if (KIND == CLIP || KIND == STEP) slots[THREADS] += moves;
    if (KIND == STEP) slots[2 * THREADS] += outside;
}

// The sum over all blocks of a sum of each thread, for the block that comes last.
DQA_DEVICE void put_part(const ActivationWork& work, int i, double value) {
    const double sum = over_block(value);
    if (threadIdx.x == 0) work.parts[i * static_cast<int64_t>(gridDim.x) + blockIdx.x] = sum;
}

DQA_DEVICE double sum_parts(const ActivationWork& work, int i) {
    const volatile double* parts = work.parts + i * static_cast<int64_t>(gridDim.x);
    double own = 0.0;
    for (int64_t j = threadIdx.x; j < gridDim.x; j += THREADS) own += parts[j];
    return over_block(own);
}

}  // namespace dqa

using namespace dqa;

// Grids and coefficients. Without unset arrays the first block alone has something to do.
DQA_KERNEL dqa_prepare(const ActivationWork work) {
    Unset unset = {false, false};
    if (work.looks) {
        if (threadIdx.x == 0) {
            unset = unset_arrays(set_of(work), work.arrays);
            shared_extremes = unset.extremes;
            shared_mean = unset.mean;
        }
        __syncthreads();
        unset.extremes = shared_extremes;
        unset.mean = shared_mean;
    }
    float magnitude = 0.0f;
    if (unset.extremes || unset.mean) {
        Summary summary = empty_summary();
        each_activation(work, [&](const int64_t* positions, int n) {
            float x[AT_ONCE];
            load(work.x, positions, n, x);
            look_at(x, n, unset.mean, &summary);
        });
        if (!join_blocks(work, &summary)) return;
        if (threadIdx.x == 0) note_extremes(summary, work.own);
        magnitude = static_cast<float>(summary.magnitudes / static_cast<double>(work.size));
    } else if (blockIdx.x != 0) {
        return;
    }
    if (threadIdx.x == 0) prepare_layer(work, unset, magnitude);
}

// q = sum_k a_k Q_k(x), and in a training the range of x. NaN or infinity has to be seen there in
// all that the layer computes.
DQA_KERNEL dqa_activate(const ActivationWork work) {
    const ActiveActivations& active = work.own->active;
    Summary summary = empty_summary();
    each_activation(work, [&](const int64_t* positions, int n) {
        float x[AT_ONCE], sums[AT_ONCE] = {};
        load(work.x, positions, n, x);
        if (work.trains) look_at(x, n, false, &summary);
        mixed(active, x, sums);
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i)
            if (i < n) work.q[positions[i]] = sums[i];
    });
    if (!work.trains || !join_blocks(work, &summary)) return;
    if (threadIdx.x == 0) note_extremes(summary, work.own);
    if (summary.finite) return;
    for (int64_t i = threadIdx.x; i < work.size; i += THREADS) work.q[i] = NAN;
}

// The gradients to x, to the shares or alpha, and to the arrays.
DQA_KERNEL dqa_activate_back(const ActivationWork work) {
    const Activated& own = *work.own;
    const ActiveActivations& active = own.active;
    const int32_t thread = threadIdx.x, count = active.count;
    const bool codes = wants_codes(own, work.dshares);
    float* const slots = shared_slots + thread;
    for (int i = 0; i <= 3 * count; ++i) slots[i * THREADS] = 0.0f;
    // As the CPU: few of one range let through the same numbers, so that their shares are added first.
    const bool together = active.one_range && count <= 4;
    float total = 0.0f;
    for (int k = 0; k < count && together; ++k)
        total = k == 0 ? active.share[0] : total + active.share[k];
    each_activation(work, [&](const int64_t* positions, int n) {
        float x[AT_ONCE], d[AT_ONCE], dx[AT_ONCE] = {};
        load(work.x, positions, n, x);
        load(work.dq, positions, n, d);
        if (work.dx && work.add_x) load(work.dx, positions, n, dx);
        for (int k = 0; k < count; ++k) {
            const ActivationGrid g = active.grid[k];
            const float share = together ? total : active.share[k];
            const bool writes = k == 0 || !together, adds = k > 0 || work.add_x;
            float* const sums = slots + 3 * k * THREADS;
#define DQA_CALL(KIND) back_codes<KIND>(g, share, codes, x, d, writes, adds, dx, sums)
            DQA_FOR_ACTIVATION(active.kind[k], DQA_CALL)
#undef DQA_CALL
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i)
            if (work.dx && i < n) work.dx[positions[i]] = dx[i];
        slots[3 * count * THREADS] += (d[0] + d[1]) + (d[2] + d[3]);
    });
    for (int i = 0; i <= 3 * count; ++i) put_part(work, i, slots[i * THREADS]);
    if (!comes_last(work.counter, gridDim.x)) return;
    for (int i = 0; i <= 3 * count; ++i) {
        const double sum = sum_parts(work, i);
        if (thread == 0) shared_totals[i] = sum;
    }
    if (thread != 0) return;
    const SmallGradients to = {work.dshares, work.add_shares != 0, work.grads, work.add};
    finish_gradients(set_of(work), work.attention, own, shared_totals, work.attention.da, to,
                     &shared_room);
}

#undef DQA_FOR_ACTIVATION
