/* Arrays in device memory that belong to the caller, not to a backend. */
#ifndef AIMO_CUDA_ARRAYS_H
#define AIMO_CUDA_ARRAYS_H

#include "backend/cuda/cuda_common.h"

/* As aimo_cuda_api says. */
aimo_status cuda_array_new(int device, size_t bytes, void **out, aimo_error *err);
void cuda_array_free(int device, void *memory);
aimo_status cuda_array_copy(int device, void *dst, const void *src, size_t bytes, aimo_error *err);
aimo_status cuda_half_convert(int device, const aimo_half_arrays *arrays, size_t n,
                              aimo_error *err);

#endif
