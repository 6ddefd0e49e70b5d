// What the GPU's kernels share: a launch's arguments, which numbers a thread works on, sums over
// threads and blocks. Nothing here depends on the order in which threads or blocks run.
#pragma once

#define DQA_FN __host__ __device__ static inline
#include "activation_grid.h"
#include "attention.h"

#define DQA_DEVICE __device__ static inline
#define DQA_KERNEL extern "C" __global__ void __launch_bounds__(256)

namespace dqa {

// Threads of every block, a power of two.
const int THREADS = 256;
// Numbers a thread takes at once, so that it waits for memory once for all of them.
const int AT_ONCE = 4;

enum Needs : int32_t { NEEDS_MAGNITUDES = 1, NEEDS_SQUARES = 2 };

// Of some numbers of a row. The pass over what TWN keeps puts its sum and its number into
// `magnitudes` and `squares`.
struct Summary {
    float minimum;
    float maximum;
    double magnitudes;
    double squares;
    int32_t finite;
    int32_t unused;
};

// A launch's arguments; `KernelParams` of backends/cuda/plan.py. Weights have the shape (outer, rows,
// inner), and row r is [:, r, :]. A block has `groups` groups of `lanes` threads with a row each,
// and works on `piece` numbers of each of its rows.
struct Work {
    int64_t outer;
    int64_t rows;
    int64_t inner;
    int64_t size;   // outer * inner
    int64_t piece;
    // From a thread's number to its next one, `lanes` further along the row.
    int64_t step_at;
    int64_t step_inside;
    int64_t sample_block;  // as in clip_search.py; 0: the row is its own sample
    int64_t sample_count;
    float sample_weights[2];
    int32_t pieces;  // of a row
    int32_t lanes;
    int32_t groups;
    int32_t across;  // threads that follow each other belong to rows that do
    int32_t count;   // of quantizers
    int32_t needs;
    int32_t makes_grids;  // whether this launch is the last one of the statistics
    int32_t add_w;
    int32_t add_shares;
    float least;
    const float* w;
    float* shares;  // the coefficients; scratch memory where attention makes them
    const float* dq;
    float* q;
    float* dw;
    float* dshares;  // the gradient of the coefficients, or of alpha
    // Scratch memory. The counters are 0 between launches.
    uint32_t* counters;
    Summary* summaries;  // (rows, pieces)
    Stats* stats;        // (rows)
    Grid* grids;         // (rows, count)
    double* parts;       // (count, blocks)
    float* sample;       // (rows, 2, sample_count)
    Attention attention;
    Op ops[MAX_QUANTIZERS];
};

// The argument of dqa_finite; `FiniteParams` of backends/cuda/plan.py.
const int MAX_ARRAYS = 240;
struct Numbers {
    const float* arrays[MAX_ARRAYS];
    int64_t sizes[MAX_ARRAYS];
    float* flag;
    int64_t count;
};

// A thread's sums, one after the other: number i of them is shared_slots[i * THREADS + thread]. Of
// the mixture of weights <dq, code_k>, the sum of dq last.
extern __shared__ float shared_slots[];
__shared__ Summary shared_summaries[THREADS];
__shared__ double shared_sums[THREADS];
__shared__ bool shared_last;
__shared__ float shared_shares[MAX_QUANTIZERS];
__shared__ double shared_parts[MAX_QUANTIZERS];

DQA_DEVICE Summary empty_summary() { return {INFINITY, -INFINITY, 0.0, 0.0, 1, 0}; }

struct Join {
    __device__ Summary operator()(const Summary& x, const Summary& y) const {
        return {smaller(x.minimum, y.minimum),
                larger(x.maximum, y.maximum),
                x.magnitudes + y.magnitudes,
                x.squares + y.squares,
                x.finite & y.finite,
                0};
    }
};

DQA_DEVICE Summary read(const volatile Summary& from) {
    return {from.minimum, from.maximum, from.magnitudes, from.squares, from.finite, 0};
}

struct Place {
    int64_t row;
    int64_t begin;  // the thread's first number along the row; the next one is `lanes` further
    int64_t end;
    int32_t lane;
};

DQA_DEVICE int64_t row_block(const Work& work) { return blockIdx.x / work.pieces; }

DQA_DEVICE Place place_of(const Work& work) {
    const int32_t thread = threadIdx.x;
    const int32_t group = work.across ? thread % work.groups : thread / work.lanes;
    Place place;
    place.lane = work.across ? thread / work.groups : thread % work.lanes;
    place.row = row_block(work) * work.groups + group;
    const int64_t first = (blockIdx.x % work.pieces) * work.piece;
    const int64_t rest = work.size - first;
    place.begin = first + place.lane;
    place.end = place.row < work.rows ? first + (rest < work.piece ? rest : work.piece) : 0;
    return place;
}

// Where number `j` of a row lies.
DQA_DEVICE int64_t position(const Work& work, int64_t row, int64_t j) {
    if (work.outer == 1) return row * work.inner + j;
    return (j / work.inner * work.rows + row) * work.inner + j % work.inner;
}

// AT_ONCE numbers, of which `n` exist; 0 for the others.
DQA_DEVICE void load(const float* from, const int64_t* positions, int n, float* x) {
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) x[i] = i < n ? from[positions[i]] : 0.0f;
}

// f(positions, n) for the thread's numbers, AT_ONCE at a time; the last n may be less.
template <class F>
DQA_DEVICE void each(const Work& work, const Place& place, F f) {
    if (place.begin >= place.end) return;
    int64_t at = position(work, place.row, place.begin);
    int64_t inside = work.outer == 1 ? 0 : place.begin % work.inner;
    for (int64_t j = place.begin; j < place.end;) {
        int64_t positions[AT_ONCE];
        int n = 0;
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            positions[i] = at;
            if (j < place.end) n = i + 1;
            j += work.lanes;
            at += work.step_at;
            inside += work.step_inside;
            if (work.outer != 1 && inside >= work.inner) {
                inside -= work.inner;
                at += (work.rows - 1) * work.inner;
            }
        }
        f(positions, n);
    }
}

// Adds up values[thread] over each group, as a tree; its first lane has the result.
template <class T, class F>
DQA_DEVICE void over_lanes(const Work& work, const Place& place, T* values, F add) {
    const int32_t thread = threadIdx.x;
    const int32_t stride = work.across ? work.groups : 1;
    for (int32_t step = work.lanes / 2; step > 0; step /= 2) {
        __syncthreads();
        if (place.lane < step) values[thread] = add(values[thread], values[thread + step * stride]);
    }
    __syncthreads();
}

// The sum of `value` over all threads of the block, for every one of them.
DQA_DEVICE double over_block(double value) {
    const int32_t thread = threadIdx.x;
    shared_sums[thread] = value;
    for (int32_t step = THREADS / 2; step > 0; step /= 2) {
        __syncthreads();
        if (thread < step) shared_sums[thread] += shared_sums[thread + step];
    }
    __syncthreads();
    const double sum = shared_sums[0];
    __syncthreads();
    return sum;
}

// Whether this is the last one of `blocks` blocks to come here. It sees what the others wrote
// before they did, by way of volatile reads, and leaves the counter at 0.
DQA_DEVICE bool comes_last(uint32_t* counter, uint32_t blocks) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        shared_last = atomicAdd(counter, 1u) == blocks - 1;
        if (shared_last) *counter = 0;
    }
    __syncthreads();
    __threadfence();
    return shared_last;
}

// Makes the coefficients, for the kernels that come after; by one thread of one block.
DQA_DEVICE void make_shares(const Work& work) {
    if (!work.attention.alpha || blockIdx.x != 0 || threadIdx.x != 0) return;
    const Spread spread = attend(work.attention, work.count, shared_parts);
    for (int k = 0; k < work.count; ++k) {
        const float a = coefficient(work.attention, spread, shared_parts, k);
        work.shares[k] = a;
        work.attention.a[k] = a;
    }
}

// Which quantizers take part, a bit each: those whose share is not below `least`, the largest one
// always. The shares themselves go to shared_shares.
DQA_DEVICE uint32_t read_shares(const Work& work) {
    const int32_t thread = threadIdx.x;
    if (thread < work.count) shared_shares[thread] = work.shares ? work.shares[thread] : 1.0f;
    __syncthreads();
    int largest = 0;
    uint32_t taking_part = 0;
    for (int k = 0; k < work.count; ++k) {
        const float share = shared_shares[k];
        if (share > shared_shares[largest]) largest = k;
        // Written so that NaN takes part and is seen.
        if (!(share < work.least)) taking_part |= 1u << k;
    }
    return taking_part | 1u << largest;
}

}  // namespace dqa
