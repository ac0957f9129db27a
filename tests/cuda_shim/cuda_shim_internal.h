/* Shared by the files of the shim. */
#ifndef AIMO_CUDA_SHIM_INTERNAL_H
#define AIMO_CUDA_SHIM_INTERNAL_H

#include "cuda_runtime.h"

#include <atomic>

namespace cuda_shim
{

extern thread_local int current_device;
extern std::atomic<size_t> objects; /* live streams, events and graphs */

/* Keeps an error for cudaGetLastError, and returns it. */
cudaError_t note(cudaError_t error);

/* Counts a call; fails when a fault is due. */
cudaError_t call();
/* The same for an allocation. */
cudaError_t allocation();

/* Counts a call that is illegal while the thread captures a graph: there the call fails, and so
 * does the capture. */
cudaError_t call_outside_capture();

bool is_capturing();

template <typename T> cudaError_t create(T **out)
{
    const cudaError_t error = call_outside_capture();
    if (error != cudaSuccess)
        return error;
    *out = new T(current_device);
    objects++;
    return cudaSuccess;
}

template <typename T> cudaError_t destroy(T *object)
{
    delete object;
    objects--;
    return cudaSuccess;
}

/* Graphs launched so far. */
extern std::atomic<size_t> replays;

} // namespace cuda_shim

#endif
