/* A device of fibers: launches, barriers, shuffles, and the runtime's calls but for those on
 * streams (cuda_shim_stream.cpp). */
#include "cuda_shim_internal.h"

extern "C" {
#include "base/memory.h"
#include "cuda_shim.h"
}

#include <memory>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>
#include <vector>

using namespace cuda_shim;

thread_local dim3 threadIdx, blockIdx;

// --- Blocks and threads --------------------------------------------------------------------------

namespace
{

enum { LANES = 32, STACK_BYTES = 64 * 1024 };
enum fiber_state { READY, AT_WARP_BARRIER, AT_BLOCK_BARRIER, DONE };

struct late_copy {
    void *dst;
    const void *src;
    size_t bytes;
};

struct fiber {
    ucontext_t context;
    fiber_state state;
    std::vector<late_copy> copies;
    std::unique_ptr<char[]> stack;
};

struct warp_board {
    float values[LANES];
    const void *pointers[LANES];
};

/* The one block that runs on this thread of the host. */
struct running_block {
    std::vector<fiber> fibers;
    std::vector<warp_board> boards;
    std::vector<char> shared;
    ucontext_t scheduler;
    const std::function<void()> *kernel;
    unsigned threads;
};
thread_local running_block block;

[[noreturn]] void die(const char *what)
{
    fprintf(stderr, "cuda_shim: %s in block (%u, %u), thread %u\n", what, blockIdx.x, blockIdx.y,
            threadIdx.x);
    abort();
}

void run_fiber()
{
    (*block.kernel)();
    if (!block.fibers[threadIdx.x].copies.empty())
        die("copies that nobody waited for");
    block.fibers[threadIdx.x].state = DONE;
    swapcontext(&block.fibers[threadIdx.x].context, &block.scheduler);
}

void wait_as(fiber_state state)
{
    fiber &mine = block.fibers[threadIdx.x];
    mine.state = state;
    swapcontext(&mine.context, &block.scheduler);
}

/* Lets [first, first + count) go on when all of them are at the same barrier. */
void release(unsigned first, unsigned count, fiber_state barrier)
{
    for (unsigned i = first; i < first + count; i++)
        if (block.fibers[i].state != barrier)
            return;
    for (unsigned i = first; i < first + count; i++)
        block.fibers[i].state = READY;
}

void start_fibers()
{
    if (block.fibers.size() < block.threads) {
        block.fibers.resize(block.threads);
        block.boards.resize((block.threads + LANES - 1) / LANES);
    }
    for (unsigned i = 0; i < block.threads; i++) {
        fiber &f = block.fibers[i];
        if (f.stack == nullptr)
            f.stack.reset(new char[STACK_BYTES]);
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.get();
        f.context.uc_stack.ss_size = STACK_BYTES;
        f.context.uc_link = nullptr;
        makecontext(&f.context, run_fiber, 0);
        f.state = READY;
    }
}

void run_block()
{
    memset(block.shared.data(), 0xff, block.shared.size());
    start_fibers();
    for (;;) {
        unsigned ran = 0, done = 0;
        for (unsigned i = 0; i < block.threads; i++) {
            done += block.fibers[i].state == DONE;
            if (block.fibers[i].state != READY)
                continue;
            ran++;
            threadIdx.x = i;
            swapcontext(&block.scheduler, &block.fibers[i].context);
        }
        if (done == block.threads)
            return;
        for (unsigned i = 0; i < block.threads; i += LANES)
            release(i, LANES, AT_WARP_BARRIER);
        release(0, block.threads, AT_BLOCK_BARRIER);
        if (ran == 0)
            die("a barrier that not all threads reach");
    }
}

} // namespace

void cuda_shim_run(dim3 grid, unsigned threads, size_t shared, const std::function<void()> &kernel)
{
    if (threads == 0 || threads % LANES != 0)
        die("threads that are no whole warps");
    block.kernel = &kernel;
    block.threads = threads;
    block.shared.assign(shared + 128, 0);
    for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
        for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++)
            run_block();
}

void *cuda_shim_shared_memory()
{
    const uintptr_t at = reinterpret_cast<uintptr_t>(block.shared.data());
    return reinterpret_cast<void *>((at + 127) / 128 * 128);
}

void __syncthreads() { wait_as(AT_BLOCK_BARRIER); }

void __syncwarp() { wait_as(AT_WARP_BARRIER); }

float __shfl_xor_sync(unsigned mask, float value, unsigned distance)
{
    if (mask != 0xffffffffu)
        die("a shuffle without all lanes");
    const unsigned lane = threadIdx.x % LANES;
    warp_board &board = block.boards[threadIdx.x / LANES];
    board.values[lane] = value;
    __syncwarp();
    const float other = board.values[lane ^ distance];
    __syncwarp();
    return other;
}

void cuda_shim_exchange(const void *mine, const void *const **of_lanes)
{
    warp_board &board = block.boards[threadIdx.x / LANES];
    board.pointers[threadIdx.x % LANES] = mine;
    *of_lanes = board.pointers;
    __syncwarp();
}

void cuda_shim_copy_later(void *dst, const void *src, size_t bytes)
{
    block.fibers[threadIdx.x].copies.push_back({dst, src, bytes});
}

void cuda_shim_finish_copies()
{
    for (const late_copy &copy : block.fibers[threadIdx.x].copies)
        if (copy.src != nullptr)
            memcpy(copy.dst, copy.src, copy.bytes);
        else
            memset(copy.dst, 0, copy.bytes);
    block.fibers[threadIdx.x].copies.clear();
}

// --- The runtime ---------------------------------------------------------------------------------

thread_local int cuda_shim::current_device;
std::atomic<size_t> cuda_shim::objects;

namespace
{

constexpr size_t ALL_MEMORY = size_t{1} << 30;

std::atomic<int> device_count{2}, driver_version{13000};
std::atomic<long> allocations_left{-1}, calls_left{-1};
std::atomic<size_t> device_bytes, device_peak, pinned_bytes;
thread_local cudaError_t last_error;

/* Whether one more is due to fail. */
bool is_due(std::atomic<long> *left)
{
    long n = left->load();
    while (n > 0)
        if (left->compare_exchange_weak(n, n - 1))
            return false;
    return n == 0;
}

/* The size of a block stands before it. */
enum { BEFORE = 256 };

cudaError_t allocate(void **out, size_t bytes, std::atomic<size_t> *count)
{
    *out = nullptr;
    cudaError_t error = call_outside_capture();
    if (error == cudaSuccess)
        error = bytes > ALL_MEMORY - *count ? note(cudaErrorMemoryAllocation) : allocation();
    if (error != cudaSuccess)
        return error;
    char *memory =
        static_cast<char *>(aligned_alloc(BEFORE, (bytes + 2 * BEFORE) / BEFORE * BEFORE));
    memcpy(memory, &bytes, sizeof bytes);
    memset(memory + BEFORE, 0xff, bytes);
    *count += bytes;
    if (device_bytes > device_peak)
        device_peak = device_bytes.load();
    *out = memory + BEFORE;
    return cudaSuccess;
}

cudaError_t release(void *at, std::atomic<size_t> *count)
{
    if (at == nullptr)
        return cudaSuccess;
    if (is_capturing())
        die("memory freed while its thread captures");
    char *memory = static_cast<char *>(at) - BEFORE;
    size_t bytes;
    memcpy(&bytes, memory, sizeof bytes);
    *count -= bytes;
    free(memory);
    return cudaSuccess;
}

} // namespace

cudaError_t cuda_shim::note(cudaError_t error)
{
    if (error != cudaSuccess)
        last_error = error;
    return error;
}

cudaError_t cuda_shim::call()
{
    return is_due(&calls_left) ? note(cudaErrorLaunchFailure) : cudaSuccess;
}

cudaError_t cuda_shim::allocation()
{
    return is_due(&allocations_left) ? note(cudaErrorMemoryAllocation) : cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t error)
{
    switch (error) {
    case cudaSuccess:
        return "no error";
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorNoDevice:
        return "no CUDA-capable device is detected";
    case cudaErrorInsufficientDriver:
        return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorLaunchFailure:
        return "unspecified launch failure";
    default:
        return "invalid argument";
    }
}

cudaError_t cudaGetLastError()
{
    const cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = driver_version;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = 13000;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = 0;
    if (driver_version < 13000)
        return note(cudaErrorInsufficientDriver);
    *count = device_count;
    return note(device_count == 0 ? cudaErrorNoDevice : cudaSuccess);
}

cudaError_t cudaGetDevice(int *device)
{
    *device = current_device;
    return call();
}

cudaError_t cudaSetDevice(int device)
{
    if (device < 0 || device >= device_count)
        return note(cudaErrorInvalidDevice);
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *out, int device)
{
    if (device < 0 || device >= device_count)
        return note(cudaErrorInvalidDevice);
    snprintf(out->name, sizeof out->name, "fibers");
    out->totalGlobalMem = ALL_MEMORY;
    out->major = 8;
    out->minor = 0;
    return call();
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *all)
{
    *all = ALL_MEMORY;
    *available = ALL_MEMORY - device_bytes;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **out, size_t bytes) { return allocate(out, bytes, &device_bytes); }
cudaError_t cudaFree(void *at) { return release(at, &device_bytes); }
cudaError_t cudaMallocHost(void **out, size_t bytes) { return allocate(out, bytes, &pinned_bytes); }
cudaError_t cudaFreeHost(void *at) { return release(at, &pinned_bytes); }

cudaError_t cudaMemcpy(void *dst, const void *src, size_t bytes, cudaMemcpyKind)
{
    const cudaError_t error = call_outside_capture();
    if (error == cudaSuccess)
        memcpy(dst, src, bytes);
    return error;
}

cudaError_t cudaFuncSetAttribute(const void *, cudaFuncAttribute, int bytes)
{
    return bytes > 227 * 1024 ? note(cudaErrorInvalidValue) : call();
}

// --- What tests control --------------------------------------------------------------------------

namespace
{

void set_machine(int devices, int driver)
{
    device_count = devices;
    driver_version = driver;
}

void fail_allocations_after(long count)
{
    allocations_left = count;
    aimo_memory_fail_after(count);
}

void fail_calls_after(long count)
{
    calls_left = count;
    last_error = cudaSuccess;
}

size_t held() { return device_bytes + pinned_bytes + objects + aimo_memory_live_bytes(); }

size_t peak()
{
    const size_t bytes = device_peak;
    device_peak = device_bytes.load();
    return bytes;
}

size_t graph_launches() { return replays; }

const cuda_shim_controls controls = {set_machine, fail_allocations_after, fail_calls_after, held,
                                     peak,        graph_launches};

} // namespace

extern "C" __attribute__((visibility("default"))) const cuda_shim_controls *cuda_shim_controls_get()
{
    return &controls;
}
