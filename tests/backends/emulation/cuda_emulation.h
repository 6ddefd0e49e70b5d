// Enough of CUDA to run its kernels on a CPU, block by block: a thread is a coroutine that runs
// until it comes to a barrier. Threads and blocks take their turns in an order drawn anew each
// time, so that what depends on the order shows.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __shared__
#define __launch_bounds__(threads)
#define __syncthreads emulated::wait
#define __threadfence() __sync_synchronize()

struct Index {
    uint32_t x;
};
static Index threadIdx, blockIdx, gridDim;

static inline uint32_t atomicAdd(uint32_t* address, uint32_t value) {
    const uint32_t before = *address;
    *address += value;
    return before;
}

namespace emulated {

const size_t STACK = 32768;

struct Thread {
    ucontext_t context;
    bool ended;
};

static ucontext_t scheduler;
static std::vector<Thread> threads;
static std::vector<char> stacks;
static void (*kernel)(const void*);
static const void* argument;

static void wait() {
    Thread& own = threads[threadIdx.x];
    swapcontext(&own.context, &scheduler);
}

static void begin() {
    kernel(argument);
    threads[threadIdx.x].ended = true;
}

static std::vector<uint32_t> shuffled(uint32_t count, std::mt19937* random) {
    std::vector<uint32_t> order(count);
    std::iota(order.begin(), order.end(), 0u);
    std::shuffle(order.begin(), order.end(), *random);
    return order;
}

// Every thread from one barrier to the next. All have to come to it, or all to end.
static bool advance(std::mt19937* random) {
    size_t ended = 0;
    for (uint32_t number : shuffled(threads.size(), random)) {
        threadIdx.x = number;
        swapcontext(&scheduler, &threads[number].context);
        ended += threads[number].ended;
    }
    if (ended != 0 && ended != threads.size()) {
        fprintf(stderr, "a barrier that not all threads come to\n");
        abort();
    }
    return ended == 0;
}

static void launch(void (*function)(const void*), uint32_t blocks, uint32_t count,
                   const void* work, uint32_t seed) {
    std::mt19937 random(seed);
    kernel = function;
    argument = work;
    gridDim.x = blocks;
    threads.resize(count);
    stacks.resize(count * STACK);
    for (uint32_t block : shuffled(blocks, &random)) {
        blockIdx.x = block;
        for (uint32_t i = 0; i < count; ++i) {
            Thread& thread = threads[i];
            thread.ended = false;
            getcontext(&thread.context);
            thread.context.uc_stack.ss_sp = stacks.data() + i * STACK;
            thread.context.uc_stack.ss_size = STACK;
            thread.context.uc_link = &scheduler;
            makecontext(&thread.context, begin, 0);
        }
        while (advance(&random)) {
        }
    }
}

}  // namespace emulated
