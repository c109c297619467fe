// libcuda.so.1, NVIDIA's driver: what varco_runtime.cuda_driver asks of it, and the one function the provider links to.

#include "stub.h"

#include <cstdint>
#include <cstdio>
#include <cstring>

extern "C" {

int cuInit(unsigned) { return SUCCESS; }

int cuDriverGetVersion(int *version) {
    *version = CUDA_VERSION;
    return SUCCESS;
}

int cuDeviceGetCount(int *count) {
    *count = 1;
    return SUCCESS;
}

int cuDeviceGet(int *device, int) {
    *device = 0;
    return SUCCESS;
}

int cuDeviceGetName(char *name, int num_bytes, int) {
    std::snprintf(name, num_bytes, "Stub GPU");
    return SUCCESS;
}

// The compute capability is all that is asked for: its major number is attribute 75, its minor number 76.
int cuDeviceGetAttribute(int *value, int attribute, int) {
    *value = attribute == 75 ? stub_capability() / 10 : stub_capability() % 10;
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void **context, int) {
    static int one;
    *context = &one;
    return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }

int cuCtxPushCurrent_v2(void *) { return SUCCESS; }

int cuCtxPopCurrent_v2(void **) { return SUCCESS; }

int cuMemGetInfo_v2(std::size_t *free_bytes, std::size_t *total_bytes) {
    *free_bytes = stub_free_bytes();
    *total_bytes = stub_total_bytes();
    return SUCCESS;
}

int cuMemcpyDtoDAsync_v2(std::uint64_t target, std::uint64_t source, std::size_t num_bytes, void *) {
    stub_log("copy", "in a stream\tdevice to device\t%zu", num_bytes);
    std::memcpy(reinterpret_cast<void *>(target), reinterpret_cast<const void *>(source), num_bytes);
    return SUCCESS;
}

int cuMemsetD8Async(std::uint64_t target, unsigned char value, std::size_t num_bytes, void *) {
    stub_log("fill", "in a stream\t%zu", num_bytes);
    std::memset(reinterpret_cast<void *>(target), value, num_bytes);
    return SUCCESS;
}

int cuStreamSynchronize(void *) {
    stub_log("wait", "stream");
    return SUCCESS;
}

int cuGetErrorString(int, const char **text) {
    *text = "an error of the stub driver";
    return SUCCESS;
}

// Describes memory to the kernels of Hopper's tensor memory accelerator.
int cuTensorMapEncodeTiled(void *, ...) { return SUCCESS; }
}
