// The fused mixture on the CPU: what backends/cpu.py calls. See grid.h for the formulas and
// cpu_kernels.h for the loops.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "activation_grid.h"
#include "attention.h"
#include "grid.h"

namespace dqa {

namespace {

enum Needs { NEEDS_MEAN = 1, NEEDS_UNIT = 2, NEEDS_KEPT = 4, NEEDS_SAMPLE = 8 };

// Weights for which it does not pay to start another thread.
const int64_t WORTH_A_THREAD = 1 << 17;
// A tensor with one range is cut into pieces of this size, whatever the number of threads is, so
// that sums do not depend on it.
const int64_t PIECE = 1 << 16;
// Numbers of several short rows that are worked on together.
const int64_t TILE = 1 << 16;
// Numbers that are copied together where the rows do not lie one after the other.
const int64_t COPIES = 1 << 18;

// The quantizers that take part for one row, with their shares already in `scale` and `offset`.
struct Active {
    int count;
    bool minmax;
    float offset;
    float scale[MAX_QUANTIZERS];
    Op op[MAX_QUANTIZERS];
    Grid grid[MAX_QUANTIZERS];
};

// Rows that go through the search for their clips together, and columns that are worked on so.
const int GROUP = 16;
// Rows for which that pays.
const int64_t WORTH_A_GROUP = 4;

// See clip_search.py; block 0: the row is its own sample, with strata = 1. Number i of row r is
// values[i * stride + r]: one row is searched alone, or GROUP rows side by side.
struct Sample {
    int64_t block;
    int64_t count;
    int strata;
    float weights[2];
    int64_t stride;
    float* values;
};

// Where the numbers of column c begin, of which each column has `many`: those of GROUP columns lie
// together, first the first number of each. So a loop over the columns goes through memory in order.
inline int64_t in_group(int64_t c, int64_t many) { return c / GROUP * GROUP * many + c % GROUP; }

struct Kernels {
    void (*extremes)(const float*, int64_t, Stats*);
    bool (*finite)(const float*, int64_t);
    void (*means)(const float*, int64_t row, int64_t size, int needs, Stats*);
    void (*take_sample)(const float*, int64_t size, float scale, const Sample&, float* values);
    float (*searched_clip)(const Sample&, const Stats&, float top);
    void (*searched_clips)(const Sample&, const Stats*, int rows, float top, float* clips);
    void (*mix)(const Active&, const float* x, float* q, int64_t n);
    void (*dots)(const Active&, const float* x, const float* dq, float* dw, bool add, int64_t n,
                 double* sums);
    void (*pass_on)(const float* dq, float* dw, bool add, int64_t n);
    void (*encode)(const Op&, const Grid&, const float* x, float* codes, int64_t n);
    void (*gather)(const float* from, int64_t outer, int64_t step, int64_t count, int64_t inner,
                   float* to);
    void (*scatter)(const float* from, int64_t outer, int64_t step, int64_t count, int64_t inner,
                    float* to);
    void (*column_extremes)(const float* x, int64_t outer, int64_t step, int64_t count, float* low,
                            float* high, float* none);
    void (*column_means)(const float* x, int64_t outer, int64_t step, int64_t count, int needs,
                         Stats* stats, float* room);
    void (*column_sample)(const float* x, int64_t outer, int64_t step, int64_t count,
                          const Stats* stats, const Sample& sample, float* values, float* room);
    void (*column_mix)(const Op* ops, const float* grids, int many, const float* x, float* q,
                       int64_t outer, int64_t step, int64_t count);
    void (*column_dots)(const Op* ops, const float* grids, int many, const float* x,
                        const float* dq, float* dw, bool add, int64_t outer, int64_t step,
                        int64_t count, float* room, double* sums);
    void (*activate)(const ActiveActivations&, const float* x, float* q, int64_t n);
    void (*activate_back)(const ActiveActivations&, const float* x, const float* dq, float* dx,
                          bool add, bool codes, int64_t n, double* sums);
};

#if defined(__GNUC__) && !defined(DQA_NO_VECTORS)
#define DQA_VECTORS
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define DQA_SHUFFLES
#endif
#endif
#endif

// Numbers in a register.
#define DQA_WIDTH 4
#define DQA_KERNELS                                                                          \
    static const Kernels kernels = {                                                         \
        extremes,        finite,       means,         take_sample,   searched_clip,          \
        searched_clips,  mix,          dots,          pass_on,       encode,     gather,     \
        scatter,         column_extremes, column_means, column_sample, column_mix,           \
        column_dots,     activate,     activate_back};

namespace plain {
#include "cpu_kernels.h"
#include "activation_loops.h"
DQA_KERNELS
}
#undef DQA_WIDTH
#define DQA_WIDTH 8

#if defined(__clang__) && defined(__x86_64__)
#define DQA_X86
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
namespace avx2 {
#include "cpu_kernels.h"
#include "activation_loops.h"
DQA_KERNELS
}
#pragma clang attribute pop
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#undef DQA_WIDTH
#define DQA_WIDTH 16
namespace avx512 {
#include "cpu_kernels.h"
#include "activation_loops.h"
DQA_KERNELS
}
#pragma clang attribute pop
#elif defined(__GNUC__) && defined(__x86_64__)
#define DQA_X86
#pragma GCC push_options
#pragma GCC target("avx2")
namespace avx2 {
#include "cpu_kernels.h"
#include "activation_loops.h"
DQA_KERNELS
}
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#undef DQA_WIDTH
#define DQA_WIDTH 16
namespace avx512 {
#include "cpu_kernels.h"
#include "activation_loops.h"
DQA_KERNELS
}
#pragma GCC pop_options
#endif

struct Choice {
    const char* name;
    bool usable;
    const Kernels* kernels;
};

// The best one first.
int choices(Choice* found) {
    int count = 0;
#ifdef DQA_X86
    __builtin_cpu_init();
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    found[count++] = {"avx512", wide, &avx512::kernels};
    found[count++] = {"avx2", __builtin_cpu_supports("avx2") != 0, &avx2::kernels};
#endif
    found[count++] = {"plain", true, &plain::kernels};
    return count;
}

Choice choose(const char* name) {
    Choice found[3];
    const int count = choices(found);
    for (int i = 0; i < count; ++i)
        if (found[i].usable && (!name || strcmp(name, found[i].name) == 0)) return found[i];
    return {nullptr, false, nullptr};
}

Choice chosen_set = choose(nullptr);

const Kernels& kernels() { return *chosen_set.kernels; }

// How another library shares out `count` tasks among its threads.
using Parallel = void (*)(void* pool, int64_t count, void (*task)(void* data, int64_t i),
                          void* data);

// Another library's threads, or null and how many of this one's own there may be.
struct Threads {
    Parallel parallel;
    void* pool;
    int own;
};

// What the threads of one call share. It outlives the call where a thread comes too late.
struct Shared {
    std::atomic<int64_t> next{0};
    std::atomic<int64_t> finished{0};
    std::mutex mutex;
    std::condition_variable all_finished;
};

// Runs task(0) .. task(count - 1) on some threads, this one included. Its own are made for the call, so that nothing is left behind that a fork could lose. Only started tasks are
// waited for: where other programs have the cores, this thread does the work alone.
template <class F>
void run(int64_t count, const Threads& threads, F task) {
    if (threads.parallel) {
        threads.parallel(threads.pool, count,
                         [](void* data, int64_t i) { (*static_cast<F*>(data))(i); }, &task);
        return;
    }
    if (threads.own < 2 || count < 2) {
        for (int64_t i = 0; i < count; ++i) task(i);
        return;
    }
    const auto shared = std::make_shared<Shared>();
    // `task` belongs to the call; it is not touched by a thread that finds nothing left to do.
    F* const own = &task;
    const auto work = [shared, own, count]() {
        for (int64_t i = shared->next++; i < count; i = shared->next++) {
            (*own)(i);
            if (++shared->finished == count) {
                std::lock_guard<std::mutex> lock(shared->mutex);
                shared->all_finished.notify_all();
            }
        }
    };
    try {
        for (int i = 1; i < threads.own && i < count; ++i) std::thread(work).detach();
    } catch (const std::system_error&) {
        // No more threads are to be had; those there are do the work.
    }
    work();
    std::unique_lock<std::mutex> lock(shared->mutex);
    shared->all_finished.wait(lock, [&]() { return shared->finished == count; });
}

int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }

int64_t next_prime(int64_t number) {
    for (;; ++number) {
        bool prime = number >= 2;
        for (int64_t i = 2; i * i <= number && prime; ++i) prime = number % i != 0;
        if (prime) return number;
    }
}

}  // namespace

// Weights of shape (outer, rows, inner): row r is [:, r, :].
struct Layer {
    int64_t outer;
    int64_t rows;
    int64_t inner;
    int32_t count;
    int32_t threads;
    const Op* ops;
    Attention attention;
    Parallel parallel;
    void* pool;
};

namespace {

int64_t size_of(const Layer& layer) { return layer.outer * layer.inner; }

Threads threads_for(const Layer& layer) {
    const int64_t worth = size_of(layer) * layer.rows / WORTH_A_THREAD + 1;
    return {layer.parallel, layer.pool, static_cast<int>(std::min<int64_t>(layer.threads, worth))};
}

int needs_of(const Layer& layer) {
    int needs = 0;
    for (int k = 0; k < layer.count; ++k) {
        const int32_t kind = layer.ops[k].kind;
        if (kind == BWN || kind == TWN) needs |= NEEDS_MEAN;
        if (kind == TWN) needs |= NEEDS_KEPT;
        if (is_sawb(kind)) needs |= NEEDS_UNIT;
        if (kind == SAWB_SEARCH) needs |= NEEDS_SAMPLE;
    }
    return needs;
}

// The sizes of clip_search.py's sample for rows of this layer.
Sample sample_of(const Layer& layer, int64_t stride) {
    const int64_t size = size_of(layer);
    const int64_t share = 1024 / layer.rows;
    const int64_t budget = share > 64 ? share : 64;
    Sample sample = {0, size, 1, {static_cast<float>(1.0 / size), 0.0f}, stride, nullptr};
    if (size > 2 * budget) {
        sample.block = next_prime(ceil_div(size, budget));
        sample.count = ceil_div(size, sample.block);
        sample.strata = 2;
        const double total = static_cast<double>(sample.count * sample.block);
        sample.weights[0] = static_cast<float>(1.0 / total);
        sample.weights[1] = static_cast<float>((sample.block - 1.0) / total);
    }
    return sample;
}

// The grids of some rows, at most GROUP, of which all is known but the clips that are searched.
void make_grids(const Layer& layer, const Sample& sample, const Stats* stats, int64_t rows,
                Grid* grids) {
    for (int k = 0; k < layer.count; ++k) {
        const Op& op = layer.ops[k];
        float clips[GROUP];
        if (op.kind == SAWB_SEARCH && sample.stride == 1)
            clips[0] = kernels().searched_clip(sample, stats[0], op.top);
        else if (op.kind == SAWB_SEARCH)
            kernels().searched_clips(sample, stats, static_cast<int>(rows), op.top, clips);
        for (int64_t r = 0; r < rows; ++r) {
            float clip = 1.0f;
            if (stats[r].finite && op.kind == SAWB_CLOSED) clip = closed_clip(op, stats[r]);
            if (stats[r].finite && op.kind == SAWB_SEARCH) clip = clips[r];
            grids[r * layer.count + k] = make_grid(op, stats[r], clip);
        }
    }
}

// What the quantizers need to know of one row, whose extremes are known; its sample begins at `values`.
void complete(const Layer& layer, int needs, int64_t row, const float* x, const Sample& sample,
              float* values, Stats* stats) {
    const int64_t size = size_of(layer);
    if (!stats->finite) return;
    kernels().means(x, row, size, needs, stats);
    if (needs & NEEDS_SAMPLE)
        kernels().take_sample(x, size, inverse_peak(*stats), sample, values);
}

Active make_active(const Layer& layer, const float* shares, const int* chosen, int count,
                   int64_t row, const Grid* grids) {
    Active active;
    active.count = count;
    active.minmax = true;
    float offsets[MAX_QUANTIZERS];
    for (int i = 0; i < count; ++i) {
        const int k = chosen[i];
        const float share = shares ? shares[k] : 1.0f;
        active.op[i] = layer.ops[k];
        active.grid[i] = grids[k];
        active.scale[i] = grids[k].scale * share;
        offsets[i] = grids[k].offset * share;
        active.minmax = active.minmax && layer.ops[k].kind == MINMAX;
    }
    active.offset = plain::row_sum(offsets, count, plain::unaligned(row, count),
                                   [](auto v) { return v; });
    return active;
}

// Rows that are worked on together. Those that have to be copied are so many that whole cache lines
// and pages are used, and that their copies fit into the cache.
int64_t rows_at_once(const Layer& layer) {
    int64_t most = TILE / (size_of(layer) + 1) + 1;
    if (layer.outer > 1) {
        most = COPIES / size_of(layer) / 16 * 16;
        most = most < 16 ? 16 : (most > 128 ? 128 : most);
    }
    return most < layer.rows ? most : layer.rows;
}

// Memory of this thread for `count` numbers. What is large is given back by `done`.
class Scratch {
  public:
    float* at_least(int64_t count) {
        if (static_cast<int64_t>(values_.size()) < count) values_.resize(count);
        return values_.data();
    }

    void done() {
        if (values_.size() > 4 * COPIES) std::vector<float>().swap(values_);
    }

  private:
    std::vector<float> values_;
};

thread_local Scratch scratch_x, scratch_q;

// `count` zeros, from the beginning of a cache line on.
template <class T>
class Aligned {
  public:
    explicit Aligned(int64_t count) : values_(count + LINE / sizeof(T)) {
        const auto at = reinterpret_cast<uintptr_t>(values_.data());
        first_ = values_.data() + (LINE - at % LINE) % LINE / sizeof(T);
    }

    T* data() { return first_; }

  private:
    static const int LINE = 64;
    std::vector<T> values_;
    T* first_;
};

// Some rows of a layer as contiguous memory: as they lie, or copied.
class Rows {
  public:
    Rows(const Layer& layer, int64_t begin, int64_t end) : layer_(layer), begin_(begin), end_(end) {}

    const float* read(const float* array, Scratch* scratch) const {
        const float* from = array + begin_ * layer_.inner;
        if (layer_.outer == 1) return from;
        float* copy = scratch->at_least(count() * size_of(layer_));
        kernels().gather(from, layer_.outer, step(), count(), layer_.inner, copy);
        return copy;
    }

    float* place(float* array, Scratch* scratch) const {
        if (layer_.outer == 1) return array + begin_ * layer_.inner;
        return scratch->at_least(count() * size_of(layer_));
    }

    void write(float* array, const float* copy) const {
        if (layer_.outer == 1) return;
        kernels().scatter(copy, layer_.outer, step(), count(), layer_.inner,
                          array + begin_ * layer_.inner);
    }

    // f(position in the tensor, length) of each stretch that belongs to these rows.
    template <class F>
    void each(F f) const {
        for (int64_t o = 0; o < layer_.outer; ++o)
            f((o * layer_.rows + begin_) * layer_.inner, count() * layer_.inner);
    }

    int64_t count() const { return end_ - begin_; }

    int64_t step() const { return layer_.rows * layer_.inner; }

  private:
    const Layer& layer_;
    int64_t begin_, end_;
};

template <class F>
void each_tile(const Layer& layer, F f) {
    const int64_t step = rows_at_once(layer);
    run(ceil_div(layer.rows, step), threads_for(layer), [&](int64_t tile) {
        const int64_t begin = tile * step;
        f(begin, begin + step < layer.rows ? begin + step : layer.rows);
        scratch_x.done();
        scratch_q.done();
    });
}

template <class F>
void each_piece(const Layer& layer, F f) {
    const int64_t size = size_of(layer);
    run(ceil_div(size, PIECE), threads_for(layer), [&](int64_t piece) {
        const int64_t begin = piece * PIECE;
        f(piece, begin, begin + PIECE < size ? PIECE : size - begin);
    });
}

// Whether all weights are finite; likewise below.
bool one_range(const Layer& layer, const float* w, Grid* grids) {
    std::vector<Stats> parts(ceil_div(size_of(layer), PIECE));
    each_piece(layer, [&](int64_t piece, int64_t begin, int64_t n) {
        kernels().extremes(w + begin, n, &parts[piece]);
    });
    Stats stats = parts[0];
    for (const Stats& part : parts) {
        stats.minimum = smaller(part.minimum, stats.minimum);
        stats.maximum = larger(part.maximum, stats.maximum);
        stats.finite = stats.finite && part.finite;
    }
    Sample sample = sample_of(layer, 1);
    const int needs = needs_of(layer);
    std::vector<float> values(needs & NEEDS_SAMPLE ? sample.strata * sample.count : 0);
    sample.values = values.data();
    complete(layer, needs, 0, w, sample, sample.values, &stats);
    make_grids(layer, sample, &stats, 1, grids);
    return stats.finite;
}

// Whether the rows are columns of a matrix, which are worked on as they lie. Where sums are wanted,
// whose order depends on how a row is aligned, their size has to be a multiple of four.
bool are_columns(const Layer& layer, int needs) {
    const bool sums = needs & (NEEDS_MEAN | NEEDS_UNIT | NEEDS_KEPT);
    return layer.inner == 1 && layer.outer > 1 && layer.rows >= 16 &&
           (!sums || layer.outer % 4 == 0);
}

template <class F>
void each_columns(const Layer& layer, F f) {
    const Threads threads = threads_for(layer);
    int64_t step = ceil_div(ceil_div(layer.rows, threads.own), 16) * 16;
    step = step < 512 ? step : 512;
    run(ceil_div(layer.rows, step), threads, [&](int64_t tile) {
        const int64_t begin = tile * step;
        f(begin, begin + step < layer.rows ? begin + step : layer.rows);
    });
}

int64_t whole_groups(int64_t columns) { return ceil_div(columns, GROUP) * GROUP; }

// The grids of columns begin .. end in the order of `in_group`: a, b and scale of each quantizer that
// takes part, then the offset of all; the shares are in them already.
class ColumnGrids {
  public:
    ColumnGrids(const Layer& layer, const float* shares, const int* chosen, int count,
                int64_t begin, int64_t end, const Grid* grids)
        : values_((3 * count + 1) * whole_groups(end - begin)) {
        for (int i = 0; i < count; ++i) ops[i] = layer.ops[chosen[i]];
        for (int64_t c = begin; c < end; ++c) {
            const Active active =
                make_active(layer, shares, chosen, count, c, grids + c * layer.count);
            float* to = values_.data() + in_group(c - begin, 3 * count + 1);
            for (int i = 0; i < count; ++i, to += 3 * GROUP) {
                to[0] = active.grid[i].a;
                to[GROUP] = active.grid[i].b;
                to[2 * GROUP] = active.scale[i];
            }
            to[0] = active.offset;
        }
    }

    const float* values() { return values_.data(); }

    Op ops[MAX_QUANTIZERS];

  private:
    Aligned<float> values_;
};

bool column_grids(const Layer& layer, int needs, const float* w, int64_t begin, int64_t end,
                  Grid* grids) {
    bool finite = true;
    const int64_t n = end - begin, step = layer.rows, outer = layer.outer;
    Aligned<float> room(22 * n);
    std::vector<float> values;
    std::vector<Stats> stats(n);
    float *low = room.data(), *high = low + n, *none = high + n, *rest = none + n;
    kernels().column_extremes(w + begin, outer, step, n, low, high, none);
    for (int64_t c = 0; c < n; ++c) {
        stats[c] = {};
        stats[c].minimum = low[c], stats[c].maximum = high[c], stats[c].finite = none[c] == 0.0f;
        finite = finite && stats[c].finite;
    }
    kernels().column_means(w + begin, outer, step, n, needs, stats.data(), rest);
    Sample sample = sample_of(layer, GROUP);
    const int64_t size = sample.strata * sample.count * GROUP;
    if (needs & NEEDS_SAMPLE) {
        values.resize(size * ceil_div(n, GROUP));
        kernels().column_sample(w + begin, outer, step, n, stats.data(), sample, values.data(),
                                rest);
    }
    for (int64_t c = 0; c < n; c += GROUP) {
        sample.values = values.data() + size * (c / GROUP);
        make_grids(layer, sample, &stats[c], n - c < GROUP ? n - c : GROUP,
                   grids + (begin + c) * layer.count);
    }
    return finite;
}

// `q` may be null: then only the grids are made. Returns whether all weights are finite.
bool forward(const Layer& layer, const float* w, const float* shares, float least, float* q,
             Grid* grids) {
    int chosen[MAX_QUANTIZERS];
    const int count = taking_part(layer.count, shares, least, chosen);
    const int64_t size = size_of(layer);
    if (layer.rows == 1) {
        const bool finite = one_range(layer, w, grids);
        const Active active = make_active(layer, shares, chosen, count, 0, grids);
        if (!q) return finite;
        each_piece(layer, [&](int64_t, int64_t begin, int64_t n) {
            kernels().mix(active, w + begin, q + begin, n);
        });
        return finite;
    }
    std::atomic<bool> finite{true};
    const int needs = needs_of(layer);
    if (are_columns(layer, needs)) {
        each_columns(layer, [&](int64_t begin, int64_t end) {
            if (!column_grids(layer, needs, w, begin, end, grids)) finite = false;
            if (!q) return;
            ColumnGrids own(layer, shares, chosen, count, begin, end, grids);
            kernels().column_mix(own.ops, own.values(), count, w + begin, q + begin, layer.outer,
                                 layer.rows, end - begin);
        });
        return finite;
    }
    each_tile(layer, [&](int64_t begin, int64_t end) {
        Rows rows(layer, begin, end);
        const float* x = rows.read(w, &scratch_x);
        float* const to = q ? rows.place(q, &scratch_q) : nullptr;
        // One row after the other stays in the smallest cache, unless clips of several are searched.
        const int64_t together = needs & NEEDS_SAMPLE && end - begin >= WORTH_A_GROUP ? GROUP : 1;
        Sample sample = sample_of(layer, together);
        std::vector<float> values(
            needs & NEEDS_SAMPLE ? sample.strata * sample.count * together : 0);
        sample.values = values.data();
        for (int64_t first = begin; first < end; first += together) {
            const int64_t many = end - first < together ? end - first : together;
            Stats stats[GROUP] = {};
            for (int64_t r = 0; r < many; ++r) {
                const float* row = x + (first + r - begin) * size;
                kernels().extremes(row, size, &stats[r]);
                if (!stats[r].finite) finite = false;
                complete(layer, needs, first + r, row, sample, sample.values + r, &stats[r]);
            }
            make_grids(layer, sample, stats, many, grids + first * layer.count);
            for (int64_t r = first; r < first + many && q; ++r) {
                const Grid* own = grids + r * layer.count;
                const Active active = make_active(layer, shares, chosen, count, r, own);
                const int64_t at = (r - begin) * size;
                kernels().mix(active, x + at, to + at, size);
            }
        }
        if (q) rows.write(q, to);
    });
    return finite;
}

void pass_all_on(const Layer& layer, const float* dq, float* dw, bool add) {
    const Layer flat = {1,  1, size_of(layer) * layer.rows, 0, layer.threads, nullptr,
                        {}, layer.parallel, layer.pool};
    each_piece(flat, [&](int64_t, int64_t begin, int64_t n) {
        kernels().pass_on(dq + begin, dw + begin, add, n);
    });
}

// What dq adds to the gradients of the shares that take part: a row of `parts` for each piece.
void share_gradients(const Layer& layer, const float* w, const float* dq, const float* shares,
                     const int* chosen, int count, const Grid* grids, float* dw, bool add,
                     std::vector<double>* parts) {
    const int64_t size = size_of(layer);
    const bool whole = layer.rows == 1;
    parts->assign((whole ? ceil_div(size, PIECE) : layer.rows) * count, 0.0);
    auto finish = [&](const Grid* own, const double* sums, double* part) {
        for (int i = 0; i < count; ++i)
            part[i] = own[chosen[i]].scale * sums[i] + own[chosen[i]].offset * sums[count];
    };
    if (whole) {
        const Active active = make_active(layer, shares, chosen, count, 0, grids);
        each_piece(layer, [&](int64_t piece, int64_t begin, int64_t n) {
            double sums[MAX_QUANTIZERS + 1] = {};
            kernels().dots(active, w + begin, dq + begin, dw ? dw + begin : nullptr, add, n, sums);
            finish(grids, sums, parts->data() + piece * count);
        });
        return;
    }
    if (are_columns(layer, 0)) {
        each_columns(layer, [&](int64_t begin, int64_t end) {
            const int64_t n = end - begin;
            ColumnGrids own(layer, shares, chosen, count, begin, end, grids);
            Aligned<double> sums((count + 1) * whole_groups(n));
            Aligned<float> room((count + 1) * whole_groups(n));
            kernels().column_dots(own.ops, own.values(), count, w + begin, dq + begin,
                                  dw ? dw + begin : nullptr, add, layer.outer, layer.rows, n,
                                  room.data(), sums.data());
            for (int64_t c = 0; c < n; ++c) {
                double of_row[MAX_QUANTIZERS + 1];
                for (int i = 0; i <= count; ++i)
                    of_row[i] = sums.data()[in_group(c, count + 1) + i * GROUP];
                finish(grids + (begin + c) * layer.count, of_row, parts->data() + (begin + c) * count);
            }
        });
        return;
    }
    each_tile(layer, [&](int64_t begin, int64_t end) {
        Rows rows(layer, begin, end);
        const float* x = rows.read(w, &scratch_x);
        const float* d = rows.read(dq, &scratch_q);
        // Where rows are copied, the gradient is handed on as it lies.
        float* to = dw && layer.outer == 1 ? dw + begin * layer.inner : nullptr;
        for (int64_t r = begin; r < end; ++r, x += size, d += size) {
            double sums[MAX_QUANTIZERS + 1] = {};
            const Grid* own = grids + r * layer.count;
            const Active active = make_active(layer, shares, chosen, count, r, own);
            kernels().dots(active, x, d, to ? to + (r - begin) * size : nullptr, add, size, sums);
            finish(own, sums, parts->data() + r * count);
        }
        if (dw && !to)
            rows.each([&](int64_t there, int64_t n) {
                kernels().pass_on(dq + there, dw + there, add, n);
            });
    });
}

// `da` is the gradient that came to the coefficients of attention, or null.
void backward(const Layer& layer, const float* w, const float* dq, const float* shares,
              float least, const Grid* grids, const Attended* attended, const float* da, float* dw,
              bool add_w, float* dshares, bool add_shares) {
    if (!dshares) {
        if (dw) pass_all_on(layer, dq, dw, add_w);
        return;
    }
    if (attended) {
        shares = attended->shares;
        if (attended->spread.rest == 0.0) {
            // One quantizer alone: alpha has no gradient.
            if (dw) pass_all_on(layer, dq, dw, add_w);
            if (!add_shares) std::fill(dshares, dshares + layer.count, 0.0f);
            return;
        }
    }
    int chosen[MAX_QUANTIZERS];
    const int count = taking_part(layer.count, shares, least, chosen);
    std::vector<double> parts;
    share_gradients(layer, w, dq, shares, chosen, count, grids, dw, add_w, &parts);
    double gradients[MAX_QUANTIZERS] = {}, mean = 0.0, total = 0.0;
    for (size_t i = 0; i < parts.size(); ++i) gradients[i % count] += parts[i];
    for (int i = 0; i < count; ++i) {
        mean += shares[chosen[i]] * gradients[i];
        total += shares[chosen[i]];
    }
    // A quantizer that was left out gets the mean of the others: then attention, which sees
    // differences only, is neither drawn to it nor pushed away.
    double all[MAX_QUANTIZERS];
    for (int k = 0; k < layer.count; ++k) all[k] = mean / total;
    for (int i = 0; i < count; ++i) all[chosen[i]] = gradients[i];
    if (attended) {
        Attention seen = layer.attention;
        seen.alpha = attended->alpha;
        for (int k = 0; k < layer.count && da; ++k) all[k] += da[k];
        attention_gradient(seen, attended->spread, layer.count, attended->softmax, all);
    }
    for (int k = 0; k < layer.count; ++k)
        dshares[k] = static_cast<float>(all[k]) + (add_shares ? dshares[k] : 0.0f);
}

bool all_finite(const float* const* arrays, const int64_t* sizes, int64_t count, int threads) {
    struct Piece {
        const float* begin;
        int64_t size;
    };
    std::vector<Piece> pieces;
    int64_t total = 0;
    for (int64_t i = 0; i < count; ++i) {
        total += sizes[i];
        for (int64_t at = 0; at < sizes[i]; at += PIECE)
            pieces.push_back({arrays[i] + at, std::min(PIECE, sizes[i] - at)});
    }
    std::atomic<bool> finite{true};
    // Numbers are only read: another thread pays later than where they are computed with.
    const int64_t worth = total / (8 * WORTH_A_THREAD) + 1;
    const Threads own = {nullptr, nullptr, static_cast<int>(std::min<int64_t>(threads, worth))};
    run(pieces.size(), own, [&](int64_t i) {
        if (finite && !kernels().finite(pieces[i].begin, pieces[i].size)) finite = false;
    });
    return finite;
}

}  // namespace
}  // namespace dqa

#include "activations.h"

#ifdef _WIN32
#define DQA_API extern "C" __declspec(dllexport)
// setuptools links extensions with this name exported.
DQA_API void* PyInit__cpu() { return nullptr; }
#else
#define DQA_API extern "C" __attribute__((visibility("default")))
#endif

#ifndef DQA_SOURCES
#define DQA_SOURCES 0
#endif

// A checksum of the sources, by which a library that is older than they are is known.
DQA_API int dqa_sources() { return DQA_SOURCES; }

DQA_API int dqa_max_quantizers() { return dqa::MAX_QUANTIZERS; }

DQA_API const char* dqa_instruction_set() { return dqa::chosen_set.name; }

// Takes the loops for "avx512", "avx2" or "plain"; 0 if this machine has no such instructions.
DQA_API int dqa_use(const char* name) {
    const dqa::Choice choice = dqa::choose(name);
    if (choice.usable) dqa::chosen_set = choice;
    return choice.usable;
}

// Bytes of what a layer with attention keeps from forward to backward.
DQA_API int dqa_attended_size() { return sizeof(dqa::Attended); }

// With `attended` the shares are made of attention and written to `a`; what backward needs of it is
// kept there. `parallel`: whose threads do the work, null: this library's own. Returns whether all
// weights are finite.
DQA_API int dqa_forward(const dqa::Layer* layer, const float* w, const float* shares, float least,
                        float* q, dqa::Grid* grids, dqa::Attended* attended, const float* alpha,
                        const float* temperature, const float* hard, float* a,
                        dqa::Parallel parallel, void* pool) {
    dqa::Layer called = *layer;
    called.parallel = parallel, called.pool = pool;
    if (attended) {
        dqa::Attention attention = layer->attention;
        attention.alpha = alpha, attention.temperature = temperature;
        attention.hard = hard, attention.a = a;
        dqa::make_shares(attention, layer->count, attended);
        shares = attended->shares;
    }
    return dqa::forward(called, w, shares, least, q, grids);
}

DQA_API void dqa_backward(const dqa::Layer* layer, const float* w, const float* dq,
                          const float* shares, float least, const dqa::Grid* grids,
                          const dqa::Attended* attended, const float* da, float* dw, int add_w,
                          float* dshares, int add_shares, dqa::Parallel parallel, void* pool) {
    dqa::Layer called = *layer;
    called.parallel = parallel, called.pool = pool;
    dqa::backward(called, w, dq, shares, least, grids, attended, da, dw, add_w != 0, dshares,
                  add_shares != 0);
}

DQA_API int dqa_finite(const float* const* arrays, const int64_t* sizes, int64_t count,
                       int threads) {
    return dqa::all_finite(arrays, sizes, count, threads);
}

DQA_API void dqa_encode(const dqa::Op* op, const dqa::Grid* grid, const float* x, float* codes,
                        int64_t n) {
    dqa::kernels().encode(*op, *grid, x, codes, n);
}

// Bytes of what a mixture of activations keeps from forward to backward.
DQA_API int dqa_activated_size() { return sizeof(dqa::Activated); }

// `shares` are given, or null: then they are made of attention and written to `a`, if there is
// one; `arrays` are the quantizers' own.
DQA_API void dqa_activate(const dqa::ActivationLayer* layer, dqa::Activated* own, const float* x,
                          float* q, float least, const float* shares, const float* alpha,
                          const float* temperature, const float* hard, float* a,
                          const float* const* arrays, dqa::Parallel parallel, void* pool) {
    own->attends = a != nullptr;
    own->least = least;
    if (a) {
        dqa::Attention attention = layer->attention;
        attention.alpha = alpha, attention.temperature = temperature;
        attention.hard = hard, attention.a = a;
        dqa::make_shares(attention, layer->count, &own->attended);
        shares = own->attended.shares;
    }
    const dqa::Threads threads = {parallel, pool, dqa::activation_threads(*layer)};
    dqa::activation_forward(*layer, threads, x, q, shares, arrays, own);
}

// The same q once more.
DQA_API void dqa_activate_again(const dqa::ActivationLayer* layer, const dqa::Activated* own,
                                const float* x, float* q, dqa::Parallel parallel, void* pool) {
    const dqa::Threads threads = {parallel, pool, dqa::activation_threads(*layer)};
    dqa::activate_all(*layer, threads, x, q, *own, nullptr);
    dqa::raise_alarm(*layer, *own, q);
}

// `dshares` are the gradients of the shares or of alpha, `grads` those of the arrays; what is null
// is left out, and `add` says to which of them is added.
DQA_API void dqa_activate_back(const dqa::ActivationLayer* layer, const dqa::Activated* own,
                               const float* x, const float* dq, const float* da, float* dx,
                               int add_x, float* dshares, int add_shares, float* const* grads,
                               const uint8_t* add, dqa::Parallel parallel, void* pool) {
    const dqa::Threads threads = {parallel, pool, dqa::activation_threads(*layer)};
    dqa::activation_backward(*layer, threads, *own, x, dq, da, dx, add_x != 0, dshares,
                             add_shares != 0, grads, add);
}
