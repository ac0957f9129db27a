/* Memory of arrays: plain cudaMalloc and cudaFree. The pool of cudaMallocAsync would be faster, but
 * gives memory back in the order of one stream, and those who got an array by DLPack use it on
 * streams that are not known here; cudaFree waits for all of them. */
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
    AIMO_TRY_CUDA(cudaStreamSynchronize(NULL), err); /* copies within a device are not waited for */
    return AIMO_OK;
}
