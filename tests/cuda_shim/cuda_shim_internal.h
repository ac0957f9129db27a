/* What the files of the shim share. */
#ifndef AIMO_CUDA_SHIM_INTERNAL_H
#define AIMO_CUDA_SHIM_INTERNAL_H

#include "cuda_runtime.h"

#include <atomic>

namespace cuda_shim
{

extern thread_local int current_device;
extern std::atomic<size_t> objects; /* that are held: streams, events, graphs */

/* Keeps an error for cudaGetLastError, and returns it. */
cudaError_t note(cudaError_t error);

/* One more call: fails when it is due to. */
cudaError_t call();
/* One more allocation: the same. */
cudaError_t allocation();

/* One more call of a kind that must not be made by a thread that captures: it fails there, and so
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
