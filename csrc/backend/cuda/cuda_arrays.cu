/* Memory of arrays: plain cudaMalloc and cudaFree. cudaMallocAsync's pool would be faster, but it
 * frees in the order of one stream, and consumers of an array exported by DLPack use it on streams
 * that are unknown here; cudaFree waits for all of them. */
#include "backend/cuda/cuda_arrays.h"

#include "backend/cuda/cuda_device.h"

aimo_status cuda_array_new(int device, size_t bytes, void **out, aimo_error *err)
{
    AIMO_TRY(cuda_check_process(err));
    AIMO_TRY(cuda_check_device(device, err));
    const device_scope scope(device, err);
    AIMO_TRY(scope.status);
    return cuda_memory_new(out, bytes, "array", err);
}

void cuda_array_free(int device, void *memory)
{
    if (!cuda_process_is_ours())
        return;
    const device_scope scope(device);
    (void)cudaFree(memory);
}

aimo_status cuda_array_copy(int device, void *dst, const void *src, size_t bytes, aimo_error *err)
{
    AIMO_TRY(cuda_check_process(err));
    const device_scope scope(device, err);
    AIMO_TRY(scope.status);
    AIMO_TRY_CUDA(cudaMemcpy(dst, src, bytes, cudaMemcpyDefault), err);
    AIMO_TRY_CUDA(cudaStreamSynchronize(NULL),
                  err); /* cudaMemcpy does not wait for copies within a device */
    return AIMO_OK;
}
