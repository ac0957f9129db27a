/* The interface between the core and the library with the CUDA backend. The library is loaded at
 * run time, so that nothing else depends on CUDA; both sides are built from one tree, and a library
 * with another version number is refused. */
#ifndef AIMO_BACKEND_CUDA_API_H
#define AIMO_BACKEND_CUDA_API_H

#include "backend/backend.h"
#include "backend/row_screen.h"
#include "half/half.h"

#define AIMO_CUDA_API_VERSION 5u
/* The one symbol of the library: const aimo_cuda_api *aimo_cuda_api_get(void). */
#define AIMO_CUDA_API_SYMBOL "aimo_cuda_api_get"

typedef struct {
    char name[256];
    size_t memory_bytes;
    int major, minor; /* compute capability */
} aimo_cuda_device;

/* The versions that were found, for `info`; 0 where something is missing. */
typedef struct {
    int driver, runtime; /* CUDA versions, 1000 * major + 10 * minor */
    size_t cublas;       /* cuBLASLt version */
    size_t devices;
} aimo_cuda_versions;

typedef struct {
    unsigned version;
    /* Finds the driver, the devices and cuBLASLt; `cublas` lists files to try, in order. CUDA is
     * not touched before this call. Once it has succeeded, further calls do nothing.
     * AIMO_ERR_UNSUPPORTED says what is missing; AIMO_ERR_DEVICE when the process was forked. */
    aimo_status (*start)(const char *const *cublas, size_t count, aimo_error *);
    /* Call after start; neither creates a context on a device. */
    aimo_status (*versions)(aimo_cuda_versions *, aimo_error *);
    aimo_status (*device)(int index, aimo_cuda_device *, aimo_error *);
    aimo_status (*backend_new)(int device, aimo_dtype, size_t head_dim, aimo_backend **,
                               aimo_error *);
    aimo_status (*row_screen_new)(int device, size_t dim, aimo_row_screen **, aimo_error *);
    /* Device memory. Freeing waits for all work on the device, so that nothing still uses the
     * memory, and does nothing in a forked process, where CUDA does not work. */
    aimo_status (*memory_new)(int device, size_t bytes, void **out, aimo_error *);
    void (*memory_free)(int device, void *memory);
    /* `dst` and `src` may each be device or host memory. The copy is done when the call returns. */
    aimo_status (*memory_copy)(int device, void *dst, const void *src, size_t bytes, aimo_error *);
    /* Converts arrays of n elements in device memory, as prepared by aimo_half_merge_axes, aligned
     * and in native byte order. Ordered after earlier work on the legacy default stream; done when
     * the call returns. */
    aimo_status (*half_convert)(int device, const aimo_half_arrays *, size_t n, aimo_error *);
} aimo_cuda_api;

#endif
