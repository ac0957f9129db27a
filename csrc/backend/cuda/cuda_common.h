/* What the files of the CUDA backend share: launching kernels and reporting errors.
 *
 * Kernels compile with nvcc, and also for the host with a C++ compiler, where tests/cuda_shim
 * stands in for cuda_runtime.h and the device; launch_kernel, SHARED_MEMORY, UNROLL and warp_mma.h
 * are the only places that know the difference. */
#ifndef AIMO_CUDA_COMMON_H
#define AIMO_CUDA_COMMON_H

extern "C" {
#include "backend/cuda_api.h"
#include "base/memory.h"
}

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define AIMO_TRY_CUDA(call, err)                                                                   \
    do {                                                                                           \
        const cudaError_t try_cuda_ = (call);                                                      \
        if (try_cuda_ != cudaSuccess)                                                              \
            return aimo_cuda_fail(try_cuda_, #call, err);                                          \
    } while (0)

/* AIMO_ERR_MEMORY when the device is out of memory, else AIMO_ERR_DEVICE, with the runtime's
 * message. `call` is cut at its first parenthesis. */
aimo_status aimo_cuda_fail(cudaError_t error, const char *call, aimo_error *err);

#ifdef __CUDACC__
/* Dynamic shared memory of the block, as elements of `type`. */
#define SHARED_MEMORY(type, name)                                                                  \
    extern __shared__ __align__(128) unsigned char aimo_shared_memory[];                           \
    type *name = reinterpret_cast<type *>(aimo_shared_memory)
/* Before a loop whose arrays must stay in registers. */
#define UNROLL _Pragma("unroll")
#else
#define SHARED_MEMORY(type, name) type *name = static_cast<type *>(cuda_shim_shared_memory())
#define UNROLL
#endif

constexpr unsigned WARP = 32;

/* One launch: a grid of blocks, each with `threads` threads and `shared` bytes. */
struct launch_shape {
    dim3 grid;
    unsigned threads;
    size_t shared;
};

/* Enqueues kernel(arguments...). An empty grid does nothing. */
template <typename... P, typename... A>
aimo_status launch_kernel(void (*kernel)(P...), const launch_shape &shape, cudaStream_t stream,
                          aimo_error *err, const A &...arguments)
{
    constexpr size_t without_asking = 48 * 1024;
    if (shape.grid.x == 0 || shape.grid.y == 0)
        return AIMO_OK;
    if (shape.shared > without_asking)
        AIMO_TRY_CUDA(cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
                                           cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           static_cast<int>(shape.shared)),
                      err);
#ifdef __CUDACC__
    kernel<<<shape.grid, shape.threads, shape.shared, stream>>>(static_cast<P>(arguments)...);
#else
    cuda_shim_launch(shape.grid, shape.threads, shape.shared, stream,
                     [=] { kernel(arguments...); });
#endif
    AIMO_TRY_CUDA(cudaGetLastError(), err);
    return AIMO_OK;
}

#endif
