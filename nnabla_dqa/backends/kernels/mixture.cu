// The fused mixture on a GPU: what backends/cuda/launch.py launches. See grid.h for the formulas and
// layer.cuh for how the work is divided. scripts/compile_cuda.py makes mixture.ptx of it.
//
// Forward: statistics (, kept) (, sample, search), mix. Backward: dots, or pass_on where only the
// weights have a gradient. Activations: see activations.cuh. The block that is last to finish a row of the statistics, or the dots,
// adds up what the others left: no launch of its own, and always in the same order.

#include "activations.cuh"
#include "clip_search.cuh"
#include "layer.cuh"

namespace dqa {

__shared__ double shared_gradients[MAX_QUANTIZERS];

// Joins the threads' summaries of a row, those of other blocks included. True for the thread that
// has a row's whole one, in `summary`.
DQA_DEVICE bool join_row(const Work& work, const Place& place, Summary* summary) {
    const int32_t thread = threadIdx.x;
    const bool first = place.lane == 0 && place.row < work.rows;
    shared_summaries[thread] = *summary;
    over_lanes(work, place, shared_summaries, Join());
    *summary = shared_summaries[thread];
    if (work.pieces == 1) return first;
    Summary* own = work.summaries + place.row * work.pieces;
    if (first) own[blockIdx.x % work.pieces] = *summary;
    if (!comes_last(work.counters + row_block(work), work.pieces)) return false;
    *summary = empty_summary();
    for (int32_t i = place.lane; i < work.pieces && place.row < work.rows; i += work.lanes)
        *summary = Join()(*summary, read(own[i]));
    shared_summaries[thread] = *summary;
    over_lanes(work, place, shared_summaries, Join());
    *summary = shared_summaries[thread];
    return first;
}

DQA_DEVICE void make_grids(const Work& work, int64_t row, const Stats& stats) {
    if (!work.makes_grids) return;
    for (int k = 0; k < work.count; ++k) {
        const Op op = work.ops[k];
        const float clip = op.kind == SAWB_CLOSED && stats.finite ? closed_clip(op, stats) : 1.0f;
        work.grids[row * work.count + k] = make_grid(op, stats, clip);
    }
}

DQA_DEVICE Stats make_stats(const Work& work, const Summary& summary) {
    const double size = static_cast<double>(work.size);
    Stats stats = {summary.minimum, summary.maximum, 0, 0, 0, 0, 0, summary.finite};
    const double unit = inverse_peak(stats);
    stats.mean_magnitude = static_cast<float>(summary.magnitudes / size);
    stats.unit_mean = static_cast<float>(summary.magnitudes / size * unit);
    stats.unit_square = static_cast<float>(summary.squares / size * unit * unit);
    return stats;
}

// The codes of AT_ONCE numbers.
DQA_DEVICE void codes_of(const Op& op, const Grid& g, const float* x, float* codes) {
#define DQA_CODES(CODE) \
    _Pragma("unroll") for (int i = 0; i < AT_ONCE; ++i) codes[i] = CODE
    switch (op.kind) {
        case MINMAX: DQA_CODES(code_minmax(op, g, x[i])); break;
        case SAWB_CLOSED:
        case SAWB_SEARCH: DQA_CODES(code_sawb(op, g, x[i])); break;
        case BWN: DQA_CODES(code_bwn(x[i])); break;
        case TWN: DQA_CODES(code_twn(g, x[i])); break;
        default: DQA_CODES(x[i]); break;
    }
#undef DQA_CODES
}

}  // namespace dqa

using namespace dqa;

// Stats of each row, and its grids where no more is needed for them; the layer's coefficients.
DQA_KERNEL dqa_statistics(const Work work) {
    const Place place = place_of(work);
    Summary own = empty_summary();
    each(work, place, [&](const int64_t* positions, int n) {
        float x[AT_ONCE];
        load(work.w, positions, n, x);
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            if (i >= n) continue;
            own.minimum = smaller(x[i], own.minimum);
            own.maximum = larger(x[i], own.maximum);
            own.finite &= x[i] - x[i] == 0.0f;
            const double exact = x[i];
            if (work.needs & NEEDS_MAGNITUDES) own.magnitudes += fabs(exact);
            if (work.needs & NEEDS_SQUARES) own.squares += exact * exact;
        }
    });
    if (join_row(work, place, &own)) {
        const Stats stats = make_stats(work, own);
        work.stats[place.row] = stats;
        make_grids(work, place.row, stats);
    }
    // Last, when it needs no registers beside those of the loop.
    make_shares(work);
}

// Adds the sum and the number of what TWN keeps to the stats of each row.
DQA_KERNEL dqa_kept(const Work work) {
    const Place place = place_of(work);
    Summary own = empty_summary();
    Stats stats = {};
    if (place.row < work.rows) stats = work.stats[place.row];
    const float scale = inverse_delta(stats);
    each(work, place, [&](const int64_t* positions, int n) {
        float x[AT_ONCE];
        load(work.w, positions, n, x);
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            if (!(fabsf(x[i] * scale) > 1.0f)) continue;
            own.magnitudes += fabsf(x[i]);
            own.squares += 1.0;
        }
    });
    if (!join_row(work, place, &own)) return;
    stats.total = static_cast<float>(own.magnitudes);
    stats.count = static_cast<float>(own.squares);
    work.stats[place.row] = stats;
    make_grids(work, place.row, stats);
}

// q = sum_k a_k Q_k(w).
DQA_KERNEL dqa_mix(const Work work) {
    const uint32_t taking_part = read_shares(work);
    const Place place = place_of(work);
    if (place.begin >= place.end) return;
    const Grid* grids = work.grids + place.row * work.count;
    float offset = 0.0f;
    for (int k = 0; k < work.count; ++k)
        if (taking_part >> k & 1) offset += grids[k].offset * shared_shares[k];
    each(work, place, [&](const int64_t* positions, int n) {
        float x[AT_ONCE], codes[AT_ONCE], sums[AT_ONCE] = {};
        load(work.w, positions, n, x);
        for (int k = 0; k < work.count; ++k) {
            if (!(taking_part >> k & 1)) continue;
            const Grid g = grids[k];
            const float scale = g.scale * shared_shares[k];
            codes_of(work.ops[k], g, x, codes);
#pragma unroll
            for (int i = 0; i < AT_ONCE; ++i) sums[i] = sums[i] + scale * codes[i];
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i)
            if (i < n) work.q[positions[i]] = sums[i] + offset;
    });
}

// dw (+)= dq and dshares_k (+)= <dq, Q_k(w)>, or what that makes of alpha's gradient.
DQA_KERNEL dqa_dots(const Work work) {
    const uint32_t taking_part = read_shares(work);
    const Place place = place_of(work);
    const int32_t thread = threadIdx.x, count = work.count;
    const Grid* grids = work.grids + place.row * count;
    float* slots = shared_slots + thread;
    for (int k = 0; k <= count; ++k) slots[k * THREADS] = 0.0f;
    each(work, place, [&](const int64_t* positions, int n) {
        float x[AT_ONCE], d[AT_ONCE], codes[AT_ONCE];
        load(work.w, positions, n, x);
        load(work.dq, positions, n, d);
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i)
            if (work.dw && i < n)
                work.dw[positions[i]] = work.add_w ? work.dw[positions[i]] + d[i] : d[i];
        for (int k = 0; k < count; ++k) {
            if (!(taking_part >> k & 1)) continue;
            codes_of(work.ops[k], grids[k], x, codes);
            slots[k * THREADS] +=
                (d[0] * codes[0] + d[1] * codes[1]) + (d[2] * codes[2] + d[3] * codes[3]);
        }
        slots[count * THREADS] += (d[0] + d[1]) + (d[2] + d[3]);
    });
    const bool first = place.lane == 0 && place.row < work.rows;
    for (int k = 0; k <= count; ++k)
        over_lanes(work, place, shared_slots + k * THREADS, [](float x, float y) { return x + y; });
    for (int k = 0; k < count; ++k) {
        if (!(taking_part >> k & 1)) continue;
        double own = 0.0;
        if (first) {
            const double sum = slots[count * THREADS];
            own = grids[k].scale * static_cast<double>(slots[k * THREADS]) + grids[k].offset * sum;
        }
        if (work.groups > 1) own = over_block(own);
        if (thread == 0) work.parts[k * static_cast<int64_t>(gridDim.x) + blockIdx.x] = own;
    }
    if (!comes_last(work.counters, gridDim.x)) return;
    double mean = 0.0, total = 0.0;
    for (int k = 0; k < count; ++k) {
        if (!(taking_part >> k & 1)) continue;
        const volatile double* parts = work.parts + k * static_cast<int64_t>(gridDim.x);
        double own = 0.0;
        for (int64_t i = thread; i < gridDim.x; i += THREADS) own += parts[i];
        own = over_block(own);
        if (thread == 0) shared_gradients[k] = own;
        mean += shared_shares[k] * own;
        total += shared_shares[k];
    }
    if (thread != 0) return;
    // A quantizer that was left out gets the mean of the others: then attention, which sees
    // differences only, is neither drawn to it nor pushed away.
    for (int k = 0; k < count; ++k)
        if (!(taking_part >> k & 1)) shared_gradients[k] = mean / total;
    if (work.attention.alpha) {
        const Spread spread = attend(work.attention, count, shared_parts);
        for (int k = 0; k < count && work.attention.da; ++k)
            shared_gradients[k] += work.attention.da[k];
        attention_gradient(work.attention, spread, count, shared_parts, shared_gradients);
    }
    for (int k = 0; k < count; ++k)
        work.dshares[k] = static_cast<float>(shared_gradients[k]) +
                          (work.add_shares ? work.dshares[k] : 0.0f);
}

// dw (+)= dq.
DQA_KERNEL dqa_pass_on(const Work work) {
    const int64_t size = work.size * work.rows;
    const int64_t first = blockIdx.x * static_cast<int64_t>(THREADS * AT_ONCE) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) {
        const int64_t j = first + i * THREADS;
        if (j < size) work.dw[j] = work.add_w ? work.dw[j] + work.dq[j] : work.dq[j];
    }
}

// Writes 1 to the flag if not all numbers are finite.
DQA_KERNEL dqa_finite(const Numbers work) {
    const int64_t first = blockIdx.x * static_cast<int64_t>(THREADS) + threadIdx.x;
    const int64_t step = gridDim.x * static_cast<int64_t>(THREADS);
    bool finite = true;
    for (int32_t a = 0; a < work.count; ++a) {
        const float* x = work.arrays[a];
#pragma unroll 4
        for (int64_t i = first; i < work.sizes[a]; i += step) finite &= x[i] - x[i] == 0.0f;
    }
    if (!finite) *work.flag = 1.0f;
}
