/* Loads the CUDA backend into the process on demand. */
#ifndef AIMO_BACKEND_CUDA_LOADER_H
#define AIMO_BACKEND_CUDA_LOADER_H

#include "backend/cuda_api.h"

/* Once per process, before all else here: makes the rest safe in forked children. */
void aimo_cuda_loader_init(void);

/* Loads `library` and starts it with cuBLASLt from the first of `cublas` that loads. Once it has
 * succeeded, further calls do nothing. AIMO_ERR_UNSUPPORTED says what is missing: the library, the
 * driver, a device, or cuBLASLt. AIMO_ERR_DEVICE: the process was forked while or after its parent
 * did so. */
AIMO_MUST_CHECK aimo_status aimo_cuda_load(const char *library, const char *const *cublas,
                                           size_t count, aimo_error *err);

/* *out = the library's functions, valid for the life of the process. This and the functions below
 * fail with AIMO_ERR_UNSUPPORTED before aimo_cuda_load has succeeded. */
AIMO_MUST_CHECK aimo_status aimo_cuda_get_api(const aimo_cuda_api **out, aimo_error *err);
AIMO_MUST_CHECK aimo_status aimo_cuda_get_versions(aimo_cuda_versions *out, aimo_error *err);
/* AIMO_ERR_ARGUMENT when there is no such device. */
AIMO_MUST_CHECK aimo_status aimo_cuda_get_device(int index, aimo_cuda_device *out, aimo_error *err);

#endif
