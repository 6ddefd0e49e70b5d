// oneDNN's C functions, found in the library when it is loaded: this code is compiled against its
// headers alone and works without it until then.
#pragma once
#include <dlfcn.h>
#include <oneapi/dnnl/dnnl.h>

#include <stdexcept>
#include <string>

#define DNNL_FUNCTIONS(X)                                     \
    X(version)                                                \
    X(engine_create)                                          \
    X(stream_create)                                          \
    X(stream_wait)                                            \
    X(memory_desc_create_with_tag)                            \
    X(memory_desc_create_with_strides)                        \
    X(memory_desc_create_submemory)                           \
    X(memory_desc_clone)                                      \
    X(memory_desc_destroy)                                    \
    X(memory_desc_equal)                                      \
    X(memory_desc_get_size)                                   \
    X(memory_create)                                          \
    X(memory_destroy)                                         \
    X(memory_set_data_handle)                                 \
    X(primitive_attr_create)                                  \
    X(primitive_attr_destroy)                                 \
    X(primitive_attr_set_scratchpad_mode)                     \
    X(primitive_desc_query)                                   \
    X(primitive_desc_query_md)                                \
    X(primitive_desc_destroy)                                 \
    X(primitive_create)                                       \
    X(primitive_execute)                                      \
    X(primitive_destroy)                                      \
    X(reorder_primitive_desc_create)                          \
    X(convolution_forward_primitive_desc_create)              \
    X(convolution_backward_data_primitive_desc_create)        \
    X(convolution_backward_weights_primitive_desc_create)     \
    X(deconvolution_forward_primitive_desc_create)            \
    X(deconvolution_backward_data_primitive_desc_create)      \
    X(deconvolution_backward_weights_primitive_desc_create)   \
    X(inner_product_forward_primitive_desc_create)            \
    X(inner_product_backward_data_primitive_desc_create)      \
    X(inner_product_backward_weights_primitive_desc_create)

namespace layers {

struct Dnnl {
#define DECLARE(name) decltype(&dnnl_##name) name = nullptr;
    DNNL_FUNCTIONS(DECLARE)
#undef DECLARE
    void (*omp_set_num_threads)(int) = nullptr;
    int (*omp_get_max_threads)() = nullptr;
    dnnl_engine_t engine = nullptr;

    // A second call does nothing.
    void load(const char* path) {
        if (engine) return;
        void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        if (!library) throw std::runtime_error(dlerror());
#define FIND(name) find(library, "dnnl_" #name, &name);
        DNNL_FUNCTIONS(FIND)
#undef FIND
        // Its threads are those of OpenMP; here each call has one (see pool.h).
        find(library, "omp_set_num_threads", &omp_set_num_threads);
        find(library, "omp_get_max_threads", &omp_get_max_threads);
        if (version()->major != DNNL_VERSION_MAJOR)
            throw std::runtime_error("it is oneDNN " + std::to_string(version()->major) +
                                     "; this needs version 3");
        if (engine_create(&engine, dnnl_cpu, 0) != dnnl_success)
            throw std::runtime_error("oneDNN has no engine for this CPU");
    }

private:
    template <class F>
    static void find(void* library, const char* name, F* function) {
        *function = reinterpret_cast<F>(dlsym(library, name));
        if (!*function) throw std::runtime_error(std::string("it has no function ") + name);
    }
};

extern Dnnl dnnl;

inline void check(dnnl_status_t status, const char* what) {
    if (status == dnnl_success) return;
    const char* why = status == dnnl_out_of_memory ? "out of memory" : "not supported";
    throw std::runtime_error(std::string("oneDNN: ") + what + ": " + why);
}

}  // namespace layers
