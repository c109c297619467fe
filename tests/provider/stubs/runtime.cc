// libcudart.so.13, as far as onnxruntime's CUDA provider asks for it, on a machine without a GPU.
//
// Device memory is host memory, and copies are done. Kernels compute nothing: each launch is one line of the log, with
// the kernel's name. While a stream is captured, what CUDA forbids there fails as it does on a GPU, and so does the end
// of that capture. Signatures are those of CUDA 13's public interface; handles are void pointers, enumerations ints.

#include "stub.h"

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cxxabi.h>
#include <map>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <thread>
#include <unordered_map>

namespace {

constexpr int OUT_OF_MEMORY = 2;           // cudaErrorMemoryAllocation
constexpr int CAPTURE_UNSUPPORTED = 900;   // cudaErrorStreamCaptureUnsupported
constexpr int CAPTURE_INVALIDATED = 901;   // cudaErrorStreamCaptureInvalidated
constexpr int CAPTURE_GLOBAL = 0;          // cudaStreamCaptureModeGlobal
constexpr int CAPTURE_RELAXED = 2;         // cudaStreamCaptureModeRelaxed
constexpr int MEMORY_HOST = 1, MEMORY_DEVICE = 2;  // cudaMemoryType; 0 is memory that is neither

struct Size3 {
    unsigned x, y, z;
};

// --- the device ------------------------------------------------------------------------------------------------------

// What decides on kernels differs by generation: T4, A100 and H200, by NVIDIA's tables of compute capabilities.
struct Device {
    int capability, multiprocessors, threads_per_multiprocessor, blocks_per_multiprocessor;
    int shared_bytes_per_multiprocessor, shared_bytes_per_block, l2_bytes;
    std::size_t total_bytes;
};

constexpr Device DEVICES[] = {
    {75, 40, 1024, 16, 64 << 10, 64 << 10, 4 << 20, std::size_t{16} << 30},
    {80, 108, 2048, 32, 164 << 10, 163 << 10, 40 << 20, std::size_t{80} << 30},
    {90, 132, 2048, 32, 228 << 10, 227 << 10, 50 << 20, std::size_t{141} << 30},
};
constexpr int WARP_SIZE = 32, THREADS_PER_BLOCK = 1024, REGISTERS = 65536, DEFAULT_SHARED_BYTES = 48 << 10;
constexpr int RESERVED_SHARED_BYTES = 1 << 10;
constexpr int MAX_GRID[3] = {2147483647, 65535, 65535};
constexpr int MAX_BLOCK[3] = {1024, 1024, 64};

// VARCO_STUB_CAPABILITY=90 chooses; another generation has the figures of the last one before it.
const Device &device() {
    static const Device chosen = [] {
        const char *text = std::getenv("VARCO_STUB_CAPABILITY");
        Device found = DEVICES[0];
        const int wanted = text ? std::atoi(text) : 90;
        for (const Device &one : DEVICES)
            if (one.capability <= wanted)
                found = one;
        found.capability = wanted;
        return found;
    }();
    return chosen;
}

// CUDA 13's cudaDeviceProp: what is set here by name, and between it what stays zero.
struct DeviceProperties {
    char name[256];
    char uuid_luid_mask[32];
    std::size_t totalGlobalMem;
    std::size_t sharedMemPerBlock;
    int regsPerBlock;
    int warpSize;
    std::size_t memPitch;
    int maxThreadsPerBlock;
    int maxThreadsDim[3];
    int maxGridSize[3];
    std::size_t totalConstMem;
    int major;
    int minor;
    std::size_t textureAlignment;
    std::size_t texturePitchAlignment;
    int multiProcessorCount;
    int textures_surfaces_bus[50];
    int unifiedAddressing;
    int memoryBusWidth;
    int l2CacheSize;
    int persistingL2CacheMaxSize;
    int maxThreadsPerMultiProcessor;
    int priorities_l1[3];
    std::size_t sharedMemPerMultiprocessor;
    int regsPerMultiprocessor;
    int managed_memory[8];
    int cooperativeLaunch;
    std::size_t sharedMemPerBlockOptin;
    int page_tables[2];
    int maxBlocksPerMultiProcessor;
    int accessPolicyMaxWindowSize;
    std::size_t reservedSharedMemPerBlock;
    int registration[4];
    int memoryPoolsSupported;
    int rdma_and_pools[6];
    int clusterLaunch;
    int rest[64];
};
static_assert(offsetof(DeviceProperties, totalGlobalMem) == 288);
static_assert(offsetof(DeviceProperties, major) == 360);
static_assert(offsetof(DeviceProperties, multiProcessorCount) == 384);
static_assert(offsetof(DeviceProperties, unifiedAddressing) == 588);
static_assert(offsetof(DeviceProperties, sharedMemPerMultiprocessor) == 624);
static_assert(offsetof(DeviceProperties, cooperativeLaunch) == 668);
static_assert(offsetof(DeviceProperties, maxBlocksPerMultiProcessor) == 688);
static_assert(offsetof(DeviceProperties, memoryPoolsSupported) == 720);
static_assert(offsetof(DeviceProperties, clusterLaunch) == 748);
static_assert(sizeof(DeviceProperties) == 1008);

// CUDA 13's cudaFuncAttributes.
struct FunctionAttributes {
    std::size_t sharedSizeBytes, constSizeBytes, localSizeBytes;
    int maxThreadsPerBlock, numRegs, ptxVersion, binaryVersion, cacheModeCA, maxDynamicSharedSizeBytes;
    int rest[24];
};
static_assert(sizeof(FunctionAttributes) == 144);

// CUDA 13's cudaPointerAttributes.
struct PointerAttributes {
    int type, device;
    void *devicePointer, *hostPointer;
    long reserved[8];
};
static_assert(sizeof(PointerAttributes) == 88);

// --- the log ---------------------------------------------------------------------------------------------------------

// One lock for everything: the provider is called from several threads.
std::recursive_mutex &lock() {
    static auto *one = new std::recursive_mutex;
    return *one;
}

using Guard = std::lock_guard<std::recursive_mutex>;

// VARCO_STUB_LOG is its path. Never closed, for libraries call in while the process ends; the last mark flushes it.
std::FILE *log_file() {
    static std::FILE *file = [] {
        const char *path = std::getenv("VARCO_STUB_LOG");
        std::FILE *opened = std::fopen(path ? path : "/dev/null", "w");
        if (!opened)
            std::abort();
        std::setvbuf(opened, nullptr, _IOFBF, 1 << 20);
        return opened;
    }();
    return file;
}

// --- captures --------------------------------------------------------------------------------------------------------

struct Capture {
    bool is_active = false, is_valid = true;
    void *stream = nullptr;
    int mode = CAPTURE_GLOBAL;
    std::thread::id thread;
};

Capture &capture() {
    static auto *one = new Capture;
    return *one;
}

bool is_captured(const void *stream) { return capture().is_active && capture().stream == stream; }

// Whether a call that waits, allocates or copies at once is forbidden now: by default, while any thread captures.
bool refused(const char *call) {
    const Guard guard(lock());
    Capture &now = capture();
    const bool is_other_thread = now.mode != CAPTURE_GLOBAL && now.thread != std::this_thread::get_id();
    if (!now.is_active || now.mode == CAPTURE_RELAXED || is_other_thread)
        return false;
    stub_log("refused", "%s", call);
    now.is_valid = false;
    return true;
}

// --- kernels ---------------------------------------------------------------------------------------------------------

// Names as they are registered, mangled, by the address that a launch names.
std::unordered_map<const void *, std::string> &kernel_names() {
    static auto *one = new std::unordered_map<const void *, std::string>;
    return *one;
}

// The kernel's number in the log. Its name, demangled, stands there before its first launch.
int kernel_number(const void *kernel) {
    static auto *numbers = new std::unordered_map<const void *, int>;
    const auto [entry, is_new] = numbers->emplace(kernel, static_cast<int>(numbers->size()));
    if (is_new) {
        const auto found = kernel_names().find(kernel);
        const std::string mangled = found == kernel_names().end() ? "unregistered kernel" : found->second;
        int status = 0;
        char *name = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status);
        stub_log("name", "%d\t%s", entry->second, status == 0 ? name : mangled.c_str());
        std::free(name);
    }
    return entry->second;
}

int launch(const void *kernel, Size3 grid, Size3 block, std::size_t shared_bytes) {
    const Guard guard(lock());
    const int number = kernel_number(kernel);
    stub_log("kernel", "%d\t%u,%u,%u\t%u,%u,%u\t%zu", number, grid.x, grid.y, grid.z, block.x, block.y, block.z,
             shared_bytes);
    return SUCCESS;
}

// Flash attention's kernel shares `Flash_fwd_params::seqlen_k` out among the splits of its grid: the 47th of the numbers
// that the structure begins with in onnxruntime 1.31 (flash_attention/flash.h). Logged behind the launch.
constexpr int SEQLEN_K = 46;

int launch_with(const void *kernel, Size3 grid, Size3 block, void **arguments, std::size_t shared_bytes) {
    const Guard guard(lock());
    const int status = launch(kernel, grid, block, shared_bytes);
    const auto found = kernel_names().find(kernel);
    if (found != kernel_names().end() && found->second.find("flash_fwd_splitkv_kernel") != std::string::npos)
        stub_log("keys", "%d", static_cast<const int *>(arguments[0])[SEQLEN_K]);
    return status;
}

// --- memory ----------------------------------------------------------------------------------------------------------

struct Block {
    std::size_t num_bytes;
    bool is_host;
};

// By first address.
std::map<std::uintptr_t, Block> &blocks() {
    static auto *one = new std::map<std::uintptr_t, Block>;
    return *one;
}

std::size_t &used_bytes() {
    static std::size_t one = 0;
    return one;
}

// Zeroed pages that cost nothing before they are touched.
int allocate(void **address, std::size_t num_bytes, bool is_host, const char *call) {
    const Guard guard(lock());
    stub_log("allocate", "%s\t%zu", is_host ? "host" : "device", num_bytes);
    if (refused(call))
        return CAPTURE_UNSUPPORTED;
    if (!is_host && num_bytes > stub_free_bytes())
        return OUT_OF_MEMORY;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    *address = mmap(nullptr, num_bytes ? num_bytes : 1, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (*address == MAP_FAILED)
        return OUT_OF_MEMORY;
    blocks()[reinterpret_cast<std::uintptr_t>(*address)] = {num_bytes, is_host};
    if (!is_host)
        used_bytes() += num_bytes;
    return SUCCESS;
}

int release(void *address, const char *call) {
    const Guard guard(lock());
    const auto found = blocks().find(reinterpret_cast<std::uintptr_t>(address));
    const Block block = found == blocks().end() ? Block{0, false} : found->second;
    stub_log("free", "%s\t%zu", block.is_host ? "host" : "device", block.num_bytes);
    if (refused(call))
        return CAPTURE_UNSUPPORTED;
    if (found == blocks().end())
        return SUCCESS;
    if (!block.is_host)
        used_bytes() -= block.num_bytes;
    blocks().erase(found);
    munmap(address, block.num_bytes ? block.num_bytes : 1);
    return SUCCESS;
}

// cudaMemcpyKind in words.
const char *direction(int kind) {
    constexpr const char *NAMES[] = {"host to host", "host to device", "device to host", "device to device", "default"};
    return kind >= 0 && kind < 5 ? NAMES[kind] : "unknown";
}

// A handle that nobody looks into. Its address is its own as long as the process lives.
void *new_handle() { return std::malloc(1); }

int create(void **handle) {
    *handle = new_handle();
    return SUCCESS;
}

int wait(const char *what, const char *call) {
    const Guard guard(lock());
    stub_log("wait", "%s", what);
    return refused(call) ? CAPTURE_UNSUPPORTED : SUCCESS;
}

}  // namespace

// Every symbol below is one that the provider links to.
extern "C" {

void stub_mark(const char *section) {
    const Guard guard(lock());
    stub_log("mark", "%s", section);
    std::fflush(log_file());
}

void stub_log(const char *kind, const char *format, ...) {
    const Guard guard(lock());
    std::fprintf(log_file(), "%s\t%d\t", kind, capture().is_active ? 1 : 0);
    va_list fields;
    va_start(fields, format);
    std::vfprintf(log_file(), format, fields);
    va_end(fields);
    std::fputc('\n', log_file());
}

int stub_capability() { return device().capability; }

std::size_t stub_free_bytes() { return device().total_bytes - used_bytes(); }

std::size_t stub_total_bytes() { return device().total_bytes; }

// --- what nvcc's generated code calls: the registration of kernels when the library is loaded, and their launch ------

void **__cudaRegisterFatBinary(void *) {
    static void *handle = nullptr;
    return &handle;
}

void __cudaRegisterFatBinaryEnd(void **) {}

void __cudaUnregisterFatBinary(void **) {}

void __cudaRegisterFunction(void **, const char *host_function, char *, const char *name, int, void *, void *, void *,
                            void *, int *) {
    const Guard guard(lock());
    kernel_names()[host_function] = name;
}

void __cudaRegisterVar(void **, char *, char *, const char *, int, std::size_t, int, int) {}

int __cudaGetKernel(const void **kernel, const void *host_function) {
    *kernel = host_function;
    return SUCCESS;
}

static thread_local struct {
    Size3 grid, block;
    std::size_t shared_bytes;
    void *stream;
} configuration;

unsigned __cudaPushCallConfiguration(Size3 grid, Size3 block, std::size_t shared_bytes, void *stream) {
    configuration = {grid, block, shared_bytes, stream};
    return 0;
}

int __cudaPopCallConfiguration(Size3 *grid, Size3 *block, std::size_t *shared_bytes, void **stream) {
    *grid = configuration.grid;
    *block = configuration.block;
    *shared_bytes = configuration.shared_bytes;
    *stream = configuration.stream;
    return SUCCESS;
}

int __cudaLaunchKernel(const void *kernel, Size3 grid, Size3 block, void **arguments, std::size_t shared_bytes, void *) {
    return launch_with(kernel, grid, block, arguments, shared_bytes);
}

int cudaLaunchKernel(const void *kernel, Size3 grid, Size3 block, void **arguments, std::size_t shared_bytes, void *) {
    return launch_with(kernel, grid, block, arguments, shared_bytes);
}

int cudaLaunchCooperativeKernel(const void *kernel, Size3 grid, Size3 block, void **, std::size_t shared_bytes,
                                void *) {
    return launch(kernel, grid, block, shared_bytes);
}

// The beginning of cudaLaunchConfig_t.
struct LaunchConfiguration {
    Size3 grid, block;
    std::size_t shared_bytes;
};

int cudaLaunchKernelExC(const LaunchConfiguration *how, const void *kernel, void **) {
    return launch(kernel, how->grid, how->block, how->shared_bytes);
}

int cudaLaunchHostFunc(void *, void (*function)(void *), void *argument) {
    stub_log("host function", "%s", "");
    function(argument);
    return SUCCESS;
}

// Kernels that come as binaries and not as code of this library.
int cudaLibraryLoadData(void **library, ...) { return create(library); }

int cudaLibraryGetKernel(void **kernel, void *, const char *name) {
    const Guard guard(lock());
    *kernel = new_handle();
    kernel_names()[*kernel] = name;
    return SUCCESS;
}

int cudaLibraryUnload(void *) { return SUCCESS; }

// --- the device ------------------------------------------------------------------------------------------------------

int cudaGetDeviceCount(int *count) {
    *count = 1;
    return SUCCESS;
}

int cudaGetDevice(int *number) {
    *number = 0;
    return SUCCESS;
}

int cudaSetDevice(int) { return SUCCESS; }

int cudaDriverGetVersion(int *version) {
    *version = CUDA_VERSION;
    return SUCCESS;
}

int cudaRuntimeGetVersion(int *version) {
    *version = CUDA_VERSION;
    return SUCCESS;
}

int cudaGetDeviceProperties(DeviceProperties *facts, int) {
    const Device &gpu = device();
    std::memset(facts, 0, sizeof *facts);
    std::snprintf(facts->name, sizeof facts->name, "Stub GPU");
    facts->totalGlobalMem = gpu.total_bytes;
    facts->sharedMemPerBlock = DEFAULT_SHARED_BYTES;
    facts->regsPerBlock = facts->regsPerMultiprocessor = REGISTERS;
    facts->warpSize = WARP_SIZE;
    facts->maxThreadsPerBlock = THREADS_PER_BLOCK;
    std::memcpy(facts->maxThreadsDim, MAX_BLOCK, sizeof MAX_BLOCK);
    std::memcpy(facts->maxGridSize, MAX_GRID, sizeof MAX_GRID);
    facts->major = gpu.capability / 10;
    facts->minor = gpu.capability % 10;
    facts->multiProcessorCount = gpu.multiprocessors;
    facts->unifiedAddressing = facts->cooperativeLaunch = facts->memoryPoolsSupported = 1;
    facts->clusterLaunch = gpu.capability >= 90;
    facts->l2CacheSize = gpu.l2_bytes;
    facts->maxThreadsPerMultiProcessor = gpu.threads_per_multiprocessor;
    facts->maxBlocksPerMultiProcessor = gpu.blocks_per_multiprocessor;
    facts->sharedMemPerMultiprocessor = gpu.shared_bytes_per_multiprocessor;
    facts->sharedMemPerBlockOptin = gpu.shared_bytes_per_block;
    facts->reservedSharedMemPerBlock = RESERVED_SHARED_BYTES;
    return SUCCESS;
}

// cudaDeviceAttr by number. What is not listed is a yes: most of the others ask whether the device can do something.
int cudaDeviceGetAttribute(int *value, int attribute, int) {
    const Device &gpu = device();
    static const std::map<int, int> values = {
        {1, THREADS_PER_BLOCK},
        {2, MAX_BLOCK[0]},
        {3, MAX_BLOCK[1]},
        {4, MAX_BLOCK[2]},
        {5, MAX_GRID[0]},
        {6, MAX_GRID[1]},
        {7, MAX_GRID[2]},
        {8, DEFAULT_SHARED_BYTES},
        {10, WARP_SIZE},
        {12, REGISTERS},
        {16, gpu.multiprocessors},
        {38, gpu.l2_bytes},
        {39, gpu.threads_per_multiprocessor},
        {75, gpu.capability / 10},
        {76, gpu.capability % 10},
        {81, gpu.shared_bytes_per_multiprocessor},
        {82, REGISTERS},
        {97, gpu.shared_bytes_per_block},
        {106, gpu.blocks_per_multiprocessor},
        {111, RESERVED_SHARED_BYTES},
        {120, gpu.capability >= 90},  // clusters
    };
    const auto found = values.find(attribute);
    *value = found == values.end() ? 1 : found->second;
    return SUCCESS;
}

int cudaDeviceSynchronize() { return wait("device", "cudaDeviceSynchronize"); }

// --- kernels' own properties: none of which this library knows, so that each fits the device -------------------------

int cudaFuncGetAttributes(FunctionAttributes *facts, const void *) {
    std::memset(facts, 0, sizeof *facts);
    facts->maxThreadsPerBlock = THREADS_PER_BLOCK;
    facts->numRegs = 64;
    facts->ptxVersion = facts->binaryVersion = device().capability;
    facts->maxDynamicSharedSizeBytes = device().shared_bytes_per_block;
    return SUCCESS;
}

int cudaFuncSetAttribute(const void *, int, int) { return SUCCESS; }

int cudaKernelSetAttributeForDevice(void *, int, int, int) { return SUCCESS; }

int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *count, const void *, int, std::size_t, unsigned) {
    *count = 2;
    return SUCCESS;
}

// --- memory ----------------------------------------------------------------------------------------------------------

int cudaMalloc(void **address, std::size_t num_bytes) { return allocate(address, num_bytes, false, "cudaMalloc"); }

int cudaFree(void *address) { return address ? release(address, "cudaFree") : SUCCESS; }

int cudaMallocHost(void **address, std::size_t num_bytes) {
    return allocate(address, num_bytes, true, "cudaMallocHost");
}

int cudaHostAlloc(void **address, std::size_t num_bytes, unsigned) {
    return allocate(address, num_bytes, true, "cudaHostAlloc");
}

int cudaFreeHost(void *address) { return address ? release(address, "cudaFreeHost") : SUCCESS; }

int cudaMemGetInfo(std::size_t *free_bytes, std::size_t *total_bytes) {
    const Guard guard(lock());
    *free_bytes = stub_free_bytes();
    *total_bytes = stub_total_bytes();
    return SUCCESS;
}

int cudaPointerGetAttributes(PointerAttributes *facts, const void *pointer) {
    const Guard guard(lock());
    std::memset(facts, 0, sizeof *facts);
    const auto address = reinterpret_cast<std::uintptr_t>(pointer);
    auto after = blocks().upper_bound(address);
    if (after == blocks().begin())
        return SUCCESS;
    const auto &[first, block] = *--after;
    if (address - first >= block.num_bytes)
        return SUCCESS;
    facts->type = block.is_host ? MEMORY_HOST : MEMORY_DEVICE;
    facts->devicePointer = const_cast<void *>(pointer);
    facts->hostPointer = block.is_host ? const_cast<void *>(pointer) : nullptr;
    return SUCCESS;
}

// Pools: memory like any other. The provider asks for them only where its options say so.
int cudaMemPoolCreate(void **pool, const void *) { return create(pool); }

int cudaMemPoolDestroy(void *) { return SUCCESS; }

int cudaMemPoolGetAttribute(void *, int, void *value) {
    std::memset(value, 0, sizeof(std::uint64_t));
    return SUCCESS;
}

int cudaMemPoolSetAttribute(void *, int, void *) { return SUCCESS; }

int cudaMemPoolTrimTo(void *, std::size_t) { return SUCCESS; }

int cudaMallocFromPoolAsync(void **address, std::size_t num_bytes, void *, void *) {
    return allocate(address, num_bytes, false, "cudaMallocFromPoolAsync");
}

int cudaFreeAsync(void *address, void *) { return address ? release(address, "cudaFreeAsync") : SUCCESS; }

// --- copies: done at once, except in a capture, which records them ---------------------------------------------------

int cudaMemcpy(void *target, const void *source, std::size_t num_bytes, int kind) {
    const Guard guard(lock());
    stub_log("copy", "synchronous\t%s\t%zu", direction(kind), num_bytes);
    if (refused("cudaMemcpy"))
        return CAPTURE_UNSUPPORTED;
    std::memcpy(target, source, num_bytes);
    return SUCCESS;
}

int cudaMemcpyAsync(void *target, const void *source, std::size_t num_bytes, int kind, void *stream) {
    const Guard guard(lock());
    stub_log("copy", "in a stream\t%s\t%zu", direction(kind), num_bytes);
    if (!is_captured(stream))
        std::memcpy(target, source, num_bytes);
    return SUCCESS;
}

int cudaMemcpy2DAsync(void *target, std::size_t target_pitch, const void *source, std::size_t source_pitch,
                      std::size_t width, std::size_t rows, int kind, void *stream) {
    const Guard guard(lock());
    stub_log("copy", "in a stream\t%s\t%zu", direction(kind), width * rows);
    for (std::size_t row = 0; row < rows && !is_captured(stream); ++row)
        std::memcpy(static_cast<char *>(target) + row * target_pitch,
                    static_cast<const char *>(source) + row * source_pitch, width);
    return SUCCESS;
}

// Of a device variable, which a stub has not: zeros.
int cudaMemcpyFromSymbol(void *target, const void *, std::size_t num_bytes, std::size_t, int kind) {
    const Guard guard(lock());
    stub_log("copy", "synchronous\t%s\t%zu", direction(kind), num_bytes);
    if (refused("cudaMemcpyFromSymbol"))
        return CAPTURE_UNSUPPORTED;
    std::memset(target, 0, num_bytes);
    return SUCCESS;
}

int cudaMemset(void *target, int value, std::size_t num_bytes) {
    const Guard guard(lock());
    stub_log("fill", "synchronous\t%zu", num_bytes);
    if (refused("cudaMemset"))
        return CAPTURE_UNSUPPORTED;
    std::memset(target, value, num_bytes);
    return SUCCESS;
}

int cudaMemsetAsync(void *target, int value, std::size_t num_bytes, void *stream) {
    const Guard guard(lock());
    stub_log("fill", "in a stream\t%zu", num_bytes);
    if (!is_captured(stream))
        std::memset(target, value, num_bytes);
    return SUCCESS;
}

// --- streams and events: everything has been done when a call returns, so there is nothing to order ------------------

int cudaStreamCreate(void **stream) { return create(stream); }

int cudaStreamCreateWithFlags(void **stream, unsigned) { return create(stream); }

int cudaStreamDestroy(void *) { return SUCCESS; }

int cudaStreamSynchronize(void *) { return wait("stream", "cudaStreamSynchronize"); }

int cudaStreamWaitEvent(void *, void *, unsigned) { return SUCCESS; }

int cudaEventCreate(void **event) { return create(event); }

int cudaEventCreateWithFlags(void **event, unsigned) { return create(event); }

int cudaEventDestroy(void *) { return SUCCESS; }

int cudaEventRecord(void *, void *) { return SUCCESS; }

int cudaEventRecordWithFlags(void *, void *, unsigned) { return SUCCESS; }

int cudaEventSynchronize(void *) { return wait("event", "cudaEventSynchronize"); }

// Always the same: whoever compares kernels by their time takes the first.
int cudaEventElapsedTime(float *milliseconds, void *, void *) {
    *milliseconds = 1.0F;
    return SUCCESS;
}

// --- graphs ----------------------------------------------------------------------------------------------------------

int cudaStreamBeginCapture(void *stream, int mode) {
    const Guard guard(lock());
    if (refused("cudaStreamBeginCapture"))  // a second one at a time, which the tests have no use for
        return CAPTURE_UNSUPPORTED;
    capture() = {true, true, stream, mode, std::this_thread::get_id()};
    stub_log("capture", "%s", "begin");
    return SUCCESS;
}

int cudaStreamEndCapture(void *, void **graph) {
    const Guard guard(lock());
    stub_log("capture", "%s", "end");
    capture().is_active = false;
    *graph = capture().is_valid ? new_handle() : nullptr;
    return capture().is_valid ? SUCCESS : CAPTURE_INVALIDATED;
}

// cudaStreamCaptureStatus: none, active, invalidated.
int cudaStreamIsCapturing(void *stream, int *status) {
    const Guard guard(lock());
    *status = !is_captured(stream) ? 0 : capture().is_valid ? 1 : 2;
    return SUCCESS;
}

int cudaGraphInstantiate(void **executable, void *, unsigned long long) { return create(executable); }

int cudaGraphLaunch(void *, void *) {
    stub_log("replay", "%s", "");
    return SUCCESS;
}

int cudaGraphDestroy(void *) { return SUCCESS; }

int cudaGraphExecDestroy(void *) { return SUCCESS; }

// --- errors and the driver -------------------------------------------------------------------------------------------

const char *cudaGetErrorName(int error) {
    switch (error) {
    case SUCCESS: return "cudaSuccess";
    case OUT_OF_MEMORY: return "cudaErrorMemoryAllocation";
    case CAPTURE_UNSUPPORTED: return "cudaErrorStreamCaptureUnsupported";
    case CAPTURE_INVALIDATED: return "cudaErrorStreamCaptureInvalidated";
    default: return "an error that the stub does not know";
    }
}

const char *cudaGetErrorString(int error) { return error == OUT_OF_MEMORY ? "out of memory" : cudaGetErrorName(error); }

int cudaGetLastError() { return SUCCESS; }

int cudaPeekAtLastError() { return SUCCESS; }

static int succeed() { return SUCCESS; }

int cudaGetDriverEntryPointByVersion(const char *, void **function, unsigned, unsigned long long, int *status) {
    *function = reinterpret_cast<void *>(succeed);
    if (status)
        *status = 0;  // cudaDriverEntryPointSuccess
    return SUCCESS;
}
}
