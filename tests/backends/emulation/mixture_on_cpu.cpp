// The kernels of nnabla_dqa/backends/kernels/mixture.cu as a library for the CPU.
#include "cuda_emulation.h"

#include "mixture.cu"

namespace dqa {
float shared_slots[(3 * MAX_ACTIVATED + 1) * THREADS];
static_assert(3 * MAX_ACTIVATED >= MAX_QUANTIZERS, "slots of both kinds of mixtures");
}

template <class T, void (*KERNEL)(const T)>
static void run(const void* work) {
    KERNEL(*static_cast<const T*>(work));
}

struct Named {
    const char* name;
    void (*run)(const void*);
};

#define KERNEL(NAME) {#NAME, run<dqa::Work, NAME>}
static const Named KERNELS[] = {
    KERNEL(dqa_statistics), KERNEL(dqa_kept), KERNEL(dqa_sample),  KERNEL(dqa_search),
    KERNEL(dqa_mix),        KERNEL(dqa_dots), KERNEL(dqa_pass_on),
    {"dqa_finite", run<dqa::Numbers, dqa_finite>},
    {"dqa_prepare", run<dqa::ActivationWork, dqa_prepare>},
    {"dqa_activate", run<dqa::ActivationWork, dqa_activate>},
    {"dqa_activate_back", run<dqa::ActivationWork, dqa_activate_back>},
};

// 0, or 1 for an unknown kernel. Shared memory beyond what was asked for is poisoned.
extern "C" int launch(const char* name, uint32_t blocks, uint32_t threads, uint32_t shared,
                      const void* work, uint32_t seed) {
    for (const Named& one : KERNELS) {
        if (strcmp(one.name, name) != 0) continue;
        memset(dqa::shared_slots, 0xff, sizeof dqa::shared_slots);
        emulated::launch(one.run, blocks, threads, work, seed);
        const char* rest = reinterpret_cast<const char*>(dqa::shared_slots);
        for (size_t i = shared; i < sizeof dqa::shared_slots; ++i)
            if (rest[i] != '\xff') return 2;
        return 0;
    }
    return 1;
}

extern "C" size_t size_of(const char* name) {
    if (strcmp(name, "Work") == 0) return sizeof(dqa::Work);
    if (strcmp(name, "Summary") == 0) return sizeof(dqa::Summary);
    if (strcmp(name, "Stats") == 0) return sizeof(dqa::Stats);
    if (strcmp(name, "Grid") == 0) return sizeof(dqa::Grid);
    if (strcmp(name, "Numbers") == 0) return sizeof(dqa::Numbers);
    if (strcmp(name, "Attention") == 0) return sizeof(dqa::Attention);
    if (strcmp(name, "ActivationWork") == 0) return sizeof(dqa::ActivationWork);
    if (strcmp(name, "Activated") == 0) return sizeof(dqa::Activated);
    return 0;
}

extern "C" size_t offset_of(const char* name) {
#define FIELD(NAME) \
    if (strcmp(name, #NAME) == 0) return offsetof(dqa::Work, NAME)
    FIELD(outer); FIELD(rows); FIELD(inner); FIELD(size); FIELD(piece); FIELD(step_at);
    FIELD(step_inside); FIELD(sample_block); FIELD(sample_count); FIELD(sample_weights);
    FIELD(pieces); FIELD(lanes); FIELD(groups); FIELD(across); FIELD(count); FIELD(needs);
    FIELD(makes_grids); FIELD(add_w); FIELD(add_shares); FIELD(least); FIELD(w); FIELD(shares);
    FIELD(dq); FIELD(q); FIELD(dw); FIELD(dshares); FIELD(counters); FIELD(summaries);
    FIELD(stats); FIELD(grids); FIELD(parts); FIELD(sample); FIELD(attention); FIELD(ops);
    return static_cast<size_t>(-1);
}

extern "C" size_t activation_offset_of(const char* name) {
#undef FIELD
#define FIELD(NAME) \
    if (strcmp(name, #NAME) == 0) return offsetof(dqa::ActivationWork, NAME)
    FIELD(size); FIELD(piece); FIELD(count); FIELD(many); FIELD(trains); FIELD(looks);
    FIELD(add_x); FIELD(add_shares); FIELD(attends); FIELD(least); FIELD(x); FIELD(shares);
    FIELD(dq); FIELD(q); FIELD(dx); FIELD(dshares); FIELD(counter); FIELD(seen); FIELD(parts);
    FIELD(own); FIELD(attention); FIELD(ops); FIELD(arrays); FIELD(grads); FIELD(add);
    return static_cast<size_t>(-1);
}
