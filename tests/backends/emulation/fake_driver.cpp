// CUDA's driver for two GPUs that are the CPU. It has the functions that backends/cuda/driver.py
// calls, and is as strict as the real one about the current context.
#include "mixture_on_cpu.cpp"

#define DRIVER extern "C" int

enum { INVALID_VALUE = 1, INVALID_DEVICE = 101, NO_CONTEXT = 201, INVALID_PTX = 218, MISSING = 500 };
enum { MAJOR = 75, ERROR_LOG = 5 };

static int driver_version = 12020, devices = 2, capability = 90, contexts_made = 0;
static std::vector<uintptr_t> contexts;
static char failing[64];
static int failure = 0;

// The function `name` returns `code` from now on.
extern "C" void fail(const char* name, int code) {
    snprintf(failing, sizeof failing, "%s", name);
    failure = code;
}

extern "C" void describe(int version, int count, int major_and_minor) {
    driver_version = version, devices = count, capability = major_and_minor;
    failing[0] = 0;
    contexts_made = 0;
    contexts.clear();
}

extern "C" int made() { return contexts_made; }
extern "C" int depth() { return static_cast<int>(contexts.size()); }

#define MAY_FAIL \
    if (strcmp(failing, __func__) == 0) return failure

DRIVER cuInit(unsigned) {
    MAY_FAIL;
    return 0;
}
DRIVER cuDriverGetVersion(int* version) {
    MAY_FAIL;
    *version = driver_version;
    return 0;
}
DRIVER cuDeviceGetCount(int* count) {
    MAY_FAIL;
    *count = devices;
    return 0;
}
DRIVER cuDeviceGet(int* device, int ordinal) {
    MAY_FAIL;
    if (ordinal >= devices) return INVALID_DEVICE;
    *device = ordinal + 100;
    return 0;
}
DRIVER cuDeviceGetAttribute(int* value, int attribute, int device) {
    if (device < 100) return INVALID_DEVICE;
    *value = attribute == MAJOR ? capability / 10 : capability % 10;
    return 0;
}
DRIVER cuDevicePrimaryCtxRetain(uintptr_t* context, int device) {
    MAY_FAIL;
    ++contexts_made;
    *context = 4096 + device;
    return 0;
}
DRIVER cuCtxPushCurrent_v2(uintptr_t context) {
    if (context < 4096) return NO_CONTEXT;
    contexts.push_back(context);
    return 0;
}
DRIVER cuCtxPopCurrent_v2(uintptr_t* context) {
    if (contexts.empty()) return NO_CONTEXT;
    *context = contexts.back();
    contexts.pop_back();
    return 0;
}
DRIVER cuModuleLoadDataEx(uintptr_t* module, const char* ptx, unsigned count, const int* options,
                          void** values) {
    if (contexts.empty()) return NO_CONTEXT;
    if (count != 2 || options[0] != ERROR_LOG || options[1] != ERROR_LOG + 1) return INVALID_VALUE;
    if (strcmp(failing, __func__) == 0) {
        snprintf(static_cast<char*>(values[0]), reinterpret_cast<size_t>(values[1]), "line 7\nbad");
        return failure;
    }
    if (!strstr(ptx, ".entry dqa_mix(")) return INVALID_PTX;
    *module = contexts.back() + 1000;
    return 0;
}
DRIVER cuModuleGetFunction(const Named** function, uintptr_t module, const char* name) {
    if (contexts.empty() || module != contexts.back() + 1000) return NO_CONTEXT;
    for (const Named& one : KERNELS)
        if (strcmp(one.name, name) == 0) {
            *function = &one;
            return 0;
        }
    return MISSING;
}
DRIVER cuLaunchKernel(const Named* function, unsigned x, unsigned y, unsigned z, unsigned threads,
                      unsigned threads_y, unsigned threads_z, unsigned shared, void* stream,
                      void** arguments, void** extra) {
    MAY_FAIL;
    if (contexts.empty()) return NO_CONTEXT;
    if (x == 0 || y != 1 || z != 1 || threads_y != 1 || threads_z != 1) return INVALID_VALUE;
    if (stream || extra) return INVALID_VALUE;
    return launch(function->name, x, threads, shared, arguments[0], x) ? INVALID_VALUE : 0;
}
DRIVER cuGetErrorName(int code, const char** text) {
    *text = code == INVALID_DEVICE ? "CUDA_ERROR_INVALID_DEVICE"
            : code == 700          ? "CUDA_ERROR_ILLEGAL_ADDRESS"
                                   : nullptr;
    return *text ? 0 : INVALID_VALUE;
}
DRIVER cuGetErrorString(int code, const char** text) {
    *text = code == 700 ? "an illegal memory access was encountered" : nullptr;
    return *text ? 0 : INVALID_VALUE;
}
