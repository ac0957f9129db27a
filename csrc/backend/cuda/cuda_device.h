/* The process and its devices: what was found at the start, and whether this process may use it. */
#ifndef AIMO_CUDA_DEVICE_H
#define AIMO_CUDA_DEVICE_H

#include "backend/cuda/cuda_common.h"

extern "C" {
#include "backend/cuda/cublas_lt.h"
}

/* As aimo_cuda_api says. */
aimo_status cuda_start(const char *const *cublas, size_t count, aimo_error *err);
aimo_status cuda_get_versions(aimo_cuda_versions *out, aimo_error *err);
aimo_status cuda_get_device(int index, aimo_cuda_device *out, aimo_error *err);

/* After cuda_start. */
const cublas_lt *cuda_cublas(void);

/* AIMO_ERR_DEVICE in a process that was forked after cuda_start: CUDA does not work there. */
aimo_status cuda_check_process(aimo_error *err);
bool cuda_process_is_ours(void);

/* AIMO_ERR_ARGUMENT when there is no such device. */
aimo_status cuda_check_device(int index, aimo_error *err);
/* The same, but also AIMO_ERR_UNSUPPORTED when the device is too old for the kernels. */
aimo_status cuda_check_usable(int index, aimo_error *err);

/* *out = device memory; on failure the message says how much is free. */
aimo_status cuda_memory_new(void **out, size_t bytes, const char *what, aimo_error *err);

/* Memory that grows when more is requested, and never shrinks. */
struct growing_memory {
    void *at;
    size_t bytes;
};
/* Grow to at least `bytes` of device memory or of pinned host memory; growing loses the
 * contents. */
aimo_status cuda_grow_device(growing_memory *m, size_t bytes, const char *what, aimo_error *err);
aimo_status cuda_grow_pinned(growing_memory *m, size_t bytes, aimo_error *err);

/* Makes a device the thread's current one. cuda_leave_device(*previous) restores the old one, so
 * that other users of CUDA in the thread do not notice. */
aimo_status cuda_enter_device(int device, int *previous, aimo_error *err);
void cuda_leave_device(int previous);

/* The same for the rest of a block; `status` says whether it succeeded. */
struct device_scope {
    explicit device_scope(int device, aimo_error *err = NULL)
        : status(cuda_enter_device(device, &previous_, err))
    {
    }
    ~device_scope() { cuda_leave_device(previous_); }
    device_scope(const device_scope &) = delete;
    device_scope &operator=(const device_scope &) = delete;

  private:
    int previous_;

  public:
    const aimo_status status;
};

#endif
