// What Python calls; see onednn/program.py. An error is a text, and nothing is changed then.
#include <cstring>

#include "program.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace layers {

Dnnl dnnl;

void set_mixture(void* forward, void* backward);
void set_activations(void* forward, void* again, void* backward);

std::unique_ptr<Layer> make_layer(const LayerSpec& spec, Program& program) {
    switch (spec.kind) {
        case CONVOLUTION:
        case DECONVOLUTION:
        case AFFINE: return make_dense(spec, program);
        case NORMALIZATION: return make_normalization(spec, program);
        case MAX_POOLING:
        case AVERAGE_POOLING: return make_pooling(spec, program);
        case MIXTURE: return make_mixture(spec, program);
        case ACTIVATIONS: return make_activations(spec, program);
        default: return make_elementwise(spec, program);
    }
}

namespace {

template <class Call>
int guarded(char* error, size_t size, const Call& call) {
    try {
        call();
        return 0;
    } catch (const std::exception& e) {
        std::strncpy(error, e.what(), size - 1);
        error[size - 1] = 0;
        return 1;
    }
}

}  // namespace
}  // namespace layers

using namespace layers;

EXPORT int layers_load(const char* path, char* error, size_t size) {
    return guarded(error, size, [&] { dnnl.load(path); });
}

// Of the sources that this was compiled from; setup.py computes it.
EXPORT int layers_sources() { return LAYERS_SOURCES; }

EXPORT void layers_version(int* numbers) {
    const dnnl_version_t* v = dnnl.version();
    numbers[0] = v->major;
    numbers[1] = v->minor;
    numbers[2] = v->patch;
}

EXPORT void layers_set_mixture(void* forward, void* backward) { set_mixture(forward, backward); }

EXPORT void layers_set_activations(void* forward, void* again, void* backward) {
    set_activations(forward, again, backward);
}

EXPORT Program* layers_create(const TensorSpec* tensors, int tensor_count, const LayerSpec* layers,
                              int layer_count, int threads, int trains, char* error, size_t size) {
    Program* made = nullptr;
    guarded(error, size, [&] {
        made = new Program(tensors, tensor_count, layers, layer_count, threads, trains != 0);
    });
    return made;
}

EXPORT void layers_destroy(Program* program) { delete program; }

EXPORT int64_t layers_bytes(const Program* program) { return program->arena_bytes(); }

EXPORT int layers_forward(Program* program, float* const* arrays, int moves_statistics,
                          int* finite, char* error, size_t size) {
    return guarded(error, size,
                   [&] { *finite = program->forward(arrays, moves_statistics != 0); });
}

EXPORT int layers_backward(Program* program, float* const* arrays, float* const* grads,
                           const uint8_t* add, char* error, size_t size) {
    return guarded(error, size, [&] { program->backward(arrays, grads, add); });
}
