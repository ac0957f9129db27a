/* Reference-counted memory of a CUDA device, owned jointly by everybody who holds an array in it: a
 * Python object, and the consumers that it was exported to by DLPack. Any thread may call any of
 * these functions. */
#ifndef AIMO_BACKEND_DEVICE_MEMORY_H
#define AIMO_BACKEND_DEVICE_MEMORY_H

#include "base/status.h"
#include "half/half.h"

#include <stddef.h>

typedef struct aimo_device_memory aimo_device_memory;

/* *out = `bytes` of memory, contents undefined, with one owner. Call after aimo_cuda_load
 * (backend/cuda_loader.h). AIMO_ERR_ARGUMENT: there is no such device; AIMO_ERR_MEMORY: the message
 * says how much is free; AIMO_ERR_DEVICE: the process was forked, or the device fails. */
AIMO_MUST_CHECK aimo_status aimo_device_memory_new(int device, size_t bytes,
                                                   aimo_device_memory **out, aimo_error *err);
/* Adds an owner. */
void aimo_device_memory_retain(aimo_device_memory *memory);
/* Removes an owner. The last one frees the memory, after all work on the device is done. NULL is
 * ignored. */
void aimo_device_memory_release(aimo_device_memory *memory);

void *aimo_device_memory_data(const aimo_device_memory *memory);
size_t aimo_device_memory_bytes(const aimo_device_memory *memory);
int aimo_device_memory_device(const aimo_device_memory *memory);

/* Copies of the whole memory, done when the call returns. */
AIMO_MUST_CHECK aimo_status aimo_device_memory_read(const aimo_device_memory *memory, void *host,
                                                    aimo_error *err);
AIMO_MUST_CHECK aimo_status aimo_device_memory_write(aimo_device_memory *memory, const void *host,
                                                     aimo_error *err);
AIMO_MUST_CHECK aimo_status aimo_device_memory_copy(const aimo_device_memory *memory,
                                                    aimo_device_memory **out, aimo_error *err);

/* aimo_half_convert_arrays for arrays in device memory, whoever owns it. Elements must be aligned
 * and in native byte order. Ordered after earlier work on the legacy default stream; done when the
 * call returns. */
AIMO_MUST_CHECK aimo_status aimo_device_half_convert(int device, aimo_half_arrays *arrays,
                                                     aimo_error *err);

#endif
