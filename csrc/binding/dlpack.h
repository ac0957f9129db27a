/* The structures of DLPack, versions 0.x and 1.x (github.com/dmlc/dlpack), and tensors in them. */
#ifndef AIMO_BINDING_DLPACK_H
#define AIMO_BINDING_DLPACK_H

#include "binding/binding.h"

#include <stdbool.h>

enum { DEVICE_CPU = 1, DEVICE_CUDA = 2, DEVICE_CUDA_HOST = 3, DEVICE_ROCM_HOST = 11 };
enum { CODE_UINT = 1, CODE_FLOAT = 2, CODE_BFLOAT = 4 };
enum { MAJOR_VERSION = 1, MINOR_VERSION = 0, FLAG_READ_ONLY = 1, FLAG_IS_COPIED = 2 };

typedef struct {
    void *data;
    struct {
        int32_t type, id;
    } device;
    int32_t ndim;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape;
    int64_t *strides; /* in elements; NULL: row-major */
    uint64_t byte_offset;
} dl_tensor;

typedef struct managed {
    dl_tensor tensor;
    void *context;
    void (*deleter)(struct managed *);
} managed;

typedef struct managed_versioned {
    struct {
        uint32_t major, minor;
    } version;
    void *context;
    void (*deleter)(struct managed_versioned *);
    uint64_t flags;
    dl_tensor tensor;
} managed_versioned;

/* An array over the capsule's memory on CUDA device *device, to be used only for its type, shape,
 * strides and address. Its elements must not be accessed from the CPU, so it must not reach Python
 * code. Consumes the capsule. NULL with an exception that mentions `name`. */
PyArrayObject *aimo_py_cuda_view(PyObject *capsule, const char *name, int *device);

#endif
