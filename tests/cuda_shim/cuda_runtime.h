/* Stands in for CUDA's header when kernels are compiled for the host: tests only.
 *
 * A launch runs block after block on the calling thread; the threads of a block are fibers, which
 * change at barriers and shuffles. Device memory is host memory, filled with NaN when it is new,
 * and everything is done when a call returns, but for what a stream captures. cuda_shim.cpp and
 * cuda_shim_stream.cpp have the code; what the backend does not use is not there. */
#ifndef AIMO_CUDA_SHIM_RUNTIME_H
#define AIMO_CUDA_SHIM_RUNTIME_H

#include <functional>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
    unsigned x, y, z;
    explicit dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
extern thread_local dim3 threadIdx, blockIdx;

typedef struct cuda_shim_stream *cudaStream_t;
typedef struct cuda_shim_event *cudaEvent_t;
typedef struct cuda_shim_graph *cudaGraph_t;
typedef struct cuda_shim_graph_exec *cudaGraphExec_t;

/* Enqueues a kernel, which holds its arguments; cudaGetLastError says whether that failed. */
void cuda_shim_launch(dim3 grid, unsigned threads, size_t shared, cudaStream_t stream,
                      std::function<void()> kernel);
/* Runs a kernel; the dynamic shared memory of each block begins as NaN. */
void cuda_shim_run(dim3 grid, unsigned threads, size_t shared, const std::function<void()> &kernel);
void *cuda_shim_shared_memory();

/* All threads of the block, or of the warp, must arrive; anything else ends the process. */
void __syncthreads();
void __syncwarp();
/* The blocks of a launch run one at a time, and their fibers change at barriers only. */
template <typename T> T atomicAdd(T *at, T value)
{
    const T before = *at;
    *at += value;
    return before;
}
float __shfl_xor_sync(unsigned mask, float value, unsigned distance);
/* Hands the warp's lanes each other's pointers: *of_lanes [32], valid until the next barrier. */
void cuda_shim_exchange(const void *mine, const void *const **of_lanes);
/* Copies, or fills with zeros without a source, when the thread finishes its copies. */
void cuda_shim_copy_later(void *dst, const void *src, size_t bytes);
void cuda_shim_finish_copies();

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorNotReady = 600,
    cudaErrorLaunchFailure = 719,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901,
};

struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem;
    int major, minor;
};

enum cudaMemcpyKind {
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault
};
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum { cudaStreamNonBlocking = 1, cudaEventBlockingSync = 1, cudaEventDisableTiming = 2 };

const char *cudaGetErrorString(cudaError_t);
cudaError_t cudaGetLastError();
cudaError_t cudaDriverGetVersion(int *);
cudaError_t cudaRuntimeGetVersion(int *);
cudaError_t cudaGetDeviceCount(int *);
cudaError_t cudaGetDevice(int *);
cudaError_t cudaSetDevice(int);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *, int);
cudaError_t cudaMemGetInfo(size_t *available, size_t *all);
cudaError_t cudaMalloc(void **, size_t);
cudaError_t cudaFree(void *);
cudaError_t cudaMallocHost(void **, size_t);
cudaError_t cudaFreeHost(void *);
cudaError_t cudaMemcpy(void *, const void *, size_t, cudaMemcpyKind);
cudaError_t cudaMemcpyAsync(void *, const void *, size_t, cudaMemcpyKind, cudaStream_t);
cudaError_t cudaMemcpy2DAsync(void *, size_t, const void *, size_t, size_t, size_t, cudaMemcpyKind,
                              cudaStream_t);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *, unsigned);
cudaError_t cudaStreamDestroy(cudaStream_t);
cudaError_t cudaStreamSynchronize(cudaStream_t);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *, unsigned);
cudaError_t cudaEventDestroy(cudaEvent_t);
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t);
cudaError_t cudaEventQuery(cudaEvent_t);
cudaError_t cudaEventSynchronize(cudaEvent_t);
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode);
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *, cudaGraph_t, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t);
cudaError_t cudaGraphDestroy(cudaGraph_t);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t);
cudaError_t cudaFuncSetAttribute(const void *, cudaFuncAttribute, int);

#endif
