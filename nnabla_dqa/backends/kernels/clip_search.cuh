// SAWB's clip by search: the formulas of nnabla_dqa/quantization/clip_search.py, with the sums in
// double precision.
#pragma once

#include "layer.cuh"

namespace dqa {

__shared__ float shared_values[CANDIDATES];
__shared__ float shared_clips[CANDIDATES];
__shared__ float shared_errors[CANDIDATES];
__shared__ float shared_found[MAX_QUANTIZERS];

// The mean squared error of each candidate clip (in shared_clips) into shared_errors, in units of
// the row: the formulas of clip_error in cpu_kernels.h.
DQA_DEVICE void clip_errors(const Work& work, int64_t row, float scale, float top) {
    const int32_t thread = threadIdx.x;
    const int32_t candidate = thread % CANDIDATES;
    const float half_step = shared_clips[candidate] * static_cast<float>(2.0 / top);
    const float inverse = 1.0f / half_step;
    const float highest = (top + 1.0f) / 2.0f - 1.0f;
    const int64_t n = work.sample_block ? work.sample_count : work.size;
    float mean = 0.0f;
    for (int stratum = 0; stratum < (work.sample_block ? 2 : 1); ++stratum) {
        const float* values = work.sample + (row * 2 + stratum) * n;
        double sum = 0.0;
        for (int64_t i = thread / CANDIDATES; i < n; i += THREADS / CANDIDATES) {
            const float x =
                work.sample_block ? values[i] : fabsf(work.w[position(work, row, i)] * scale);
            const float place = x * inverse + -0.5f;
            const float deviation =
                place - smaller(round_positive(larger(place, 0.0f)), highest);
            sum += static_cast<double>(deviation * deviation);
        }
        shared_sums[thread] = sum;
        for (int32_t step = THREADS / 2; step >= CANDIDATES; step /= 2) {
            __syncthreads();
            if (thread < step) shared_sums[thread] += shared_sums[thread + step];
        }
        __syncthreads();
        const float part =
            static_cast<float>(shared_sums[candidate]) * work.sample_weights[stratum];
        mean = stratum ? mean + part : part;
        __syncthreads();
    }
    if (thread < CANDIDATES) shared_errors[thread] = mean * (half_step * half_step);
    __syncthreads();
}

// The value of the ladder start + j step whose clip has the least error, the mean of them where
// several have; exp(value) is the clip. Every thread gets it.
DQA_DEVICE float best_step(const Work& work, int64_t row, float scale, float start, float step,
                           float top, bool bounded) {
    const int32_t thread = threadIdx.x;
    if (thread < CANDIDATES) {
        float reached = step;
        for (int j = 0; j < thread; ++j) reached = reached + step;
        const float value = reached + (start + step * -1.0f);
        shared_values[thread] = bounded ? smaller(value, 0.0f) : value;
        // In double precision, so that rounding gives what the CPU's functions do.
        shared_clips[thread] =
            static_cast<float>(exp(static_cast<double>(shared_values[thread])));
    }
    __syncthreads();
    clip_errors(work, row, scale, top);
    float least = shared_errors[0], taken = 0.0f, chosen = 0.0f;
    for (int j = 1; j < CANDIDATES; ++j) least = smaller(shared_errors[j], least);
    for (int j = 0; j < CANDIDATES; ++j) {
        if (!(least - shared_errors[j] >= 0.0f)) continue;
        taken += shared_values[j];
        chosen += 1.0f;
    }
    __syncthreads();
    return taken / chosen;
}

DQA_DEVICE float searched_clip(const Work& work, int64_t row, const Stats& stats, float top) {
    const float bound = smaller(unit_rms(stats) * 0.9f, 1.0f);
    const float low = static_cast<float>(log(static_cast<double>(bound)));
    const float step = low * static_cast<float>(-1.0 / (CANDIDATES - 1));
    const float scale = inverse_peak(stats);
    const float coarse = best_step(work, row, scale, low, step, top, false);
    const float fine = step * static_cast<float>(2.0 / (CANDIDATES - 1));
    const float best = best_step(work, row, scale, coarse + step * -1.0f, fine, top, true);
    return static_cast<float>(exp(static_cast<double>(best)));
}

}  // namespace dqa

using namespace dqa;

// The two strata of clip_search.py, relative to each row's largest magnitude. 32 threads a block
// of weights.
DQA_KERNEL dqa_sample(const Work work) {
    const int32_t thread = threadIdx.x, lane = thread % 32;
    const int64_t index = blockIdx.x * static_cast<int64_t>(THREADS / 32) + thread / 32;
    const int64_t row = index / work.sample_count, number = index % work.sample_count;
    const bool some = row < work.rows;
    const int64_t begin = number * work.sample_block;
    float largest = 0.0f;
    for (int64_t i = lane; some && i < work.sample_block; i += 32) {
        // The last block is filled up from the front.
        const int64_t j = begin + i < work.size ? begin + i : begin + i - work.size;
        largest = larger(fabsf(work.w[position(work, row, j)]), largest);
    }
    shared_sums[thread] = largest;
    for (int32_t step = 16; step > 0; step /= 2) {
        __syncthreads();
        if (lane < step && shared_sums[thread + step] > shared_sums[thread])
            shared_sums[thread] = shared_sums[thread + step];
    }
    if (lane != 0 || !some) return;
    const float scale = inverse_peak(work.stats[row]);
    largest = static_cast<float>(shared_sums[thread]) * scale;
    const int64_t next = begin + 1 < work.size ? begin + 1 : begin + 1 - work.size;
    const float first = fabsf(work.w[position(work, row, begin)] * scale);
    const float second = fabsf(work.w[position(work, row, next)] * scale);
    const float is_largest = first - largest >= 0.0f ? 1.0f : 0.0f;
    float* values = work.sample + row * 2 * work.sample_count + number;
    values[0] = largest;
    values[work.sample_count] = first + is_largest * (second - first);
}

// All grids of one row a block, with SAWB's clips by search.
DQA_KERNEL dqa_search(const Work work) {
    const int64_t row = blockIdx.x;
    const Stats stats = work.stats[row];
    for (int k = 0; k < work.count; ++k) {
        const Op op = work.ops[k];
        float clip = 1.0f;
        if (op.kind == SAWB_CLOSED && stats.finite) clip = closed_clip(op, stats);
        if (op.kind == SAWB_SEARCH && stats.finite) clip = searched_clip(work, row, stats, op.top);
        if (threadIdx.x == 0) shared_found[k] = clip;
    }
    __syncthreads();
    const int k = threadIdx.x;
    if (k < work.count)
        work.grids[row * work.count + k] = make_grid(work.ops[k], stats, shared_found[k]);
}
