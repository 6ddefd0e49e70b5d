#include "pool.h"

#include <stdexcept>

#include "api.h"

namespace layers {
namespace {

// Looks at a condition before a thread sleeps or gives its core away: some microseconds, less
// than it takes to wake a thread, so that short layers follow each other without sleep.
const int LOOKS = 2000;
const int BITS = 20;
const uint64_t MASK = (uint64_t(1) << BITS) - 1;

inline uint64_t round_of(uint64_t state) { return state >> (2 * BITS); }

template <class Condition>
bool soon(const Condition& condition) {
    for (int i = 0; i < LOOKS; ++i) {
        if (condition()) return true;
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
    return condition();
}

}  // namespace

Pool::Pool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back(&Pool::work, this, i);
}

Pool::~Pool() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        end_ = true;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
}

void Pool::start(int64_t count, Function function, const void* task) {
    if (count > int64_t(MASK)) throw std::runtime_error("a layer has too many parts");
    function_ = function;
    task_ = task;
    done_ = 0;
    const uint64_t round = round_of(state_) + 1;
    state_ = round << (2 * BITS) | uint64_t(count) << BITS;
    if (sleepers_ > 0) {
        std::lock_guard<std::mutex> lock(mutex_);
        wake_.notify_all();
    }
    take(0);
    while (!soon([&] { return done_ == count; })) std::this_thread::yield();
}

void Pool::take(int thread) {
    uint64_t state = state_;
    while (true) {
        const uint64_t next = state & MASK;
        if (next >= (state >> BITS & MASK)) return;
        const Function function = function_;
        const void* task = task_;
        // It succeeds only while that round has parts left, so these are that round's.
        if (!state_.compare_exchange_weak(state, state + 1)) continue;
        function(task, int64_t(next), thread);
        ++done_;
        state = state_;
    }
}

void Pool::work(int thread) {
    dnnl.omp_set_num_threads(1);
    uint64_t seen = 0;
    while (!end_) {
        const auto called = [&] { return round_of(state_) != seen || end_; };
        if (!soon(called)) {
            std::unique_lock<std::mutex> lock(mutex_);
            ++sleepers_;
            wake_.wait(lock, called);
            --sleepers_;
        }
        seen = round_of(state_);
        take(thread);
    }
}

}  // namespace layers
