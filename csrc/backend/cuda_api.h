/* What the core and the library with the CUDA backend know of each other. The library is loaded at
 * run time, so that nothing here depends on CUDA; both sides are built from one tree, and a version
 * that differs is refused. */
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

/* What was found, for `info`; 0 where it is missing. */
typedef struct {
    int driver, runtime; /* CUDA versions, 1000 * major + 10 * minor */
    size_t cublas;       /* cuBLASLt version */
    size_t devices;
} aimo_cuda_versions;

typedef struct {
    unsigned version;
    /* Finds driver, device and cuBLASLt; `cublas` are files to try, in this order. Nothing of CUDA
     * is touched before. May be called again, and does nothing once it has succeeded.
     * AIMO_ERR_UNSUPPORTED says what is missing, AIMO_ERR_DEVICE that the process was forked. */
    aimo_status (*start)(const char *const *cublas, size_t count, aimo_error *);
    /* After start; neither uses the devices. */
    aimo_status (*versions)(aimo_cuda_versions *, aimo_error *);
    aimo_status (*device)(int index, aimo_cuda_device *, aimo_error *);
    aimo_status (*backend_new)(int device, aimo_dtype, size_t head_dim, aimo_backend **,
                               aimo_error *);
    aimo_status (*row_screen_new)(int device, size_t dim, aimo_row_screen **, aimo_error *);
    /* Memory of a device. Freeing it waits for what is under way there, so that nothing still uses
     * it, and does nothing in a forked process, where CUDA does not work. */
    aimo_status (*memory_new)(int device, size_t bytes, void **out, aimo_error *);
    void (*memory_free)(int device, void *memory);
    /* Each of the two is memory of the device or of the host. Done when it returns. */
    aimo_status (*memory_copy)(int device, void *dst, const void *src, size_t bytes, aimo_error *);
    /* Arrays in memory of the device, as aimo_half_merge_axes leaves them, of n elements, aligned
     * and in the native byte order. After what the legacy default stream was given before; done
     * when it returns. */
    aimo_status (*half_convert)(int device, const aimo_half_arrays *, size_t n, aimo_error *);
} aimo_cuda_api;

#endif
