// The threads that share the parts of a layer. A part is computed by one thread alone, oneDNN's
// functions too: their own threads wait for each other in the middle of a layer, which takes many
// times longer as soon as another process needs a core. Here a thread without a core is not
// waited for: the others take its parts.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace layers {

class Pool {
public:
    explicit Pool(int threads);
    ~Pool();
    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    // Calls task(i, thread) for all i < count, each once; returns when all have ended. Which
    // thread takes which part changes from run to run, so results must not depend on it.
    template <class Task>
    void run(int64_t count, const Task& task) {
        if (count <= 1 || workers_.empty()) {
            for (int64_t i = 0; i < count; ++i) task(i, 0);
            return;
        }
        start(count, [](const void* t, int64_t i, int thread) {
            (*static_cast<const Task*>(t))(i, thread);
        }, &task);
    }

private:
    using Function = void (*)(const void*, int64_t, int);
    void start(int64_t count, Function function, const void* task);
    void work(int thread);
    void take(int thread);

    std::vector<std::thread> workers_;
    std::mutex mutex_;
    std::condition_variable wake_;
    // The number of the round, how many parts it has, and which is next: 24, 20 and 20 bits. Who
    // takes a part changes it by comparing, so that a thread that comes late takes nothing.
    std::atomic<uint64_t> state_{0};
    std::atomic<int64_t> done_{0};
    std::atomic<int> sleepers_{0};
    std::atomic<bool> end_{false};
    std::atomic<Function> function_{nullptr};
    std::atomic<const void*> task_{nullptr};
};

// What another library is given to share out its tasks among the threads of a pool.
using Parallel = void (*)(void* pool, int64_t count, void (*task)(void* data, int64_t i),
                          void* data);
inline void on_pool(void* pool, int64_t count, void (*task)(void*, int64_t), void* data) {
    static_cast<Pool*>(pool)->run(count, [&](int64_t i, int) { task(data, i); });
}

}  // namespace layers
