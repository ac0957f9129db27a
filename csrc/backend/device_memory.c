/* Reference-counted memory of a CUDA device. It keeps a pointer to the library, so that the last
 * owner need not take the loader's lock: in a forked child, that may still be locked by a thread of
 * the parent. */
#include "backend/device_memory.h"

#include "backend/cuda_loader.h"
#include "base/memory.h"

#include <stdatomic.h>

struct aimo_device_memory {
    const aimo_cuda_api *api;
    void *data;
    size_t bytes;
    int device;
    atomic_size_t owners;
};

aimo_status aimo_device_memory_new(int device, size_t bytes, aimo_device_memory **out,
                                   aimo_error *err)
{
    const aimo_cuda_api *api;
    AIMO_TRY(aimo_cuda_get_api(&api, err));
    aimo_device_memory *memory;
    AIMO_TRY(aimo_memory_new((void **)&memory, 1, sizeof *memory, "array", err));
    memory->api = api;
    memory->bytes = bytes;
    memory->device = device;
    atomic_init(&memory->owners, 1);
    /* An empty array needs an address as well. */
    const aimo_status status = api->memory_new(device, bytes != 0 ? bytes : 1, &memory->data, err);
    if (status == AIMO_OK)
        *out = memory;
    else
        aimo_memory_free(memory);
    return status;
}

void aimo_device_memory_retain(aimo_device_memory *memory)
{
    atomic_fetch_add_explicit(&memory->owners, 1, memory_order_relaxed);
}

void aimo_device_memory_release(aimo_device_memory *memory)
{
    if (memory == NULL || atomic_fetch_sub_explicit(&memory->owners, 1, memory_order_acq_rel) > 1)
        return;
    memory->api->memory_free(memory->device, memory->data);
    aimo_memory_free(memory);
}

void *aimo_device_memory_data(const aimo_device_memory *memory) { return memory->data; }
size_t aimo_device_memory_bytes(const aimo_device_memory *memory) { return memory->bytes; }
int aimo_device_memory_device(const aimo_device_memory *memory) { return memory->device; }

aimo_status aimo_device_memory_read(const aimo_device_memory *memory, void *host, aimo_error *err)
{
    return memory->api->memory_copy(memory->device, host, memory->data, memory->bytes, err);
}

aimo_status aimo_device_memory_write(aimo_device_memory *memory, const void *host, aimo_error *err)
{
    return memory->api->memory_copy(memory->device, memory->data, host, memory->bytes, err);
}

aimo_status aimo_device_memory_copy(const aimo_device_memory *memory, aimo_device_memory **out,
                                    aimo_error *err)
{
    aimo_device_memory *copy;
    AIMO_TRY(aimo_device_memory_new(memory->device, memory->bytes, &copy, err));
    const aimo_status status =
        memory->api->memory_copy(memory->device, copy->data, memory->data, memory->bytes, err);
    if (status == AIMO_OK)
        *out = copy;
    else
        aimo_device_memory_release(copy);
    return status;
}

aimo_status aimo_device_half_convert(int device, aimo_half_arrays *arrays, aimo_error *err)
{
    const aimo_cuda_api *api;
    AIMO_TRY(aimo_cuda_get_api(&api, err));
    const size_t n = aimo_half_merge_axes(arrays);
    return n == 0 ? AIMO_OK : api->half_convert(device, arrays, n, err);
}
