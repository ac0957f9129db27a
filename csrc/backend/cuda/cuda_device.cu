/* The process and its devices. */
#include "backend/cuda/cuda_device.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

namespace
{

/* Written once, by cuda_start, whose caller holds a lock. */
pid_t process; /* 0 before */
cublas_lt cublas_table;
int device_count;

constexpr int OLDEST_MAJOR = 8; /* compute capability: products of bf16 */

constexpr int NOWHERE = -1; /* there is no previous device to restore */

/* Whether the device is in use in this process. Restoring a device that nobody uses would create a
 * context on it, hundreds of megabytes. The runtime cannot tell, but the driver can. */
bool has_context(int device)
{
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
    if (driver == NULL)
        return true;
    using get_function = int(int *, int);
    using state_function = int(int, unsigned *, int *);
    auto *get = reinterpret_cast<get_function *>(dlsym(driver, "cuDeviceGet"));
    auto *state = reinterpret_cast<state_function *>(dlsym(driver, "cuDevicePrimaryCtxGetState"));
    int handle, active = 1;
    unsigned flags;
    const bool known = get != NULL && state != NULL && get(&handle, device) == 0 &&
                       state(handle, &flags, &active) == 0;
    (void)dlclose(driver);
    return !known || active != 0;
}

/* Turns the runtime's error into a message that a user can act on. */
aimo_status missing(cudaError_t error, aimo_error *err)
{
    int driver = 0, runtime = 0;
    (void)cudaDriverGetVersion(&driver);
    (void)cudaRuntimeGetVersion(&runtime);
    (void)cudaGetLastError();
    if (driver == 0)
        return aimo_fail(err, AIMO_ERR_UNSUPPORTED, "CUDA: no driver is installed");
    if (error == cudaErrorInsufficientDriver)
        return aimo_fail(err, AIMO_ERR_UNSUPPORTED,
                         "CUDA: the driver supports version %d.%d, %d.%d is needed", driver / 1000,
                         driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    if (error == cudaErrorNoDevice || error == cudaSuccess)
        return aimo_fail(err, AIMO_ERR_UNSUPPORTED, "CUDA: no device is visible");
    return aimo_fail(err, AIMO_ERR_UNSUPPORTED, "CUDA: %s", cudaGetErrorString(error));
}

} // namespace

aimo_status aimo_cuda_fail(cudaError_t error, const char *call, aimo_error *err)
{
    (void)cudaGetLastError(); /* clears the runtime's last error, unless it is fatal */
    const int name = static_cast<int>(strcspn(call, "("));
    return aimo_fail(err, error == cudaErrorMemoryAllocation ? AIMO_ERR_MEMORY : AIMO_ERR_DEVICE,
                     "CUDA: %.*s: %s", name, call, cudaGetErrorString(error));
}

aimo_status cuda_start(const char *const *cublas, size_t count, aimo_error *err)
{
    if (process != 0)
        return cuda_check_process(err);
    int devices = 0;
    const cudaError_t error = cudaGetDeviceCount(&devices);
    if (error != cudaSuccess || devices == 0)
        return missing(error, err);
    AIMO_TRY(cublas_lt_load(cublas, count, &cublas_table, err));
    device_count = devices;
    process = getpid();
    return AIMO_OK;
}

const cublas_lt *cuda_cublas(void) { return &cublas_table; }

bool cuda_process_is_ours(void) { return process == getpid(); }

aimo_status cuda_check_process(aimo_error *err)
{
    if (cuda_process_is_ours())
        return AIMO_OK;
    return aimo_fail(err, AIMO_ERR_DEVICE,
                     "CUDA was started before this process was forked, and does not work in it; "
                     "start processes by spawn, or load the model in the child only");
}

aimo_status cuda_check_device(int index, aimo_error *err)
{
    if (index < 0 || index >= device_count)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "device: there is no cuda:%d, %d device%s visible",
                         index, device_count, device_count == 1 ? " is" : "s are");
    return AIMO_OK;
}

aimo_status cuda_get_versions(aimo_cuda_versions *out, aimo_error *err)
{
    AIMO_TRY(cuda_check_process(err));
    *out = {};
    AIMO_TRY_CUDA(cudaDriverGetVersion(&out->driver), err);
    AIMO_TRY_CUDA(cudaRuntimeGetVersion(&out->runtime), err);
    out->cublas = cublas_table.GetVersion();
    out->devices = static_cast<size_t>(device_count);
    return AIMO_OK;
}

aimo_status cuda_get_device(int index, aimo_cuda_device *out, aimo_error *err)
{
    AIMO_TRY(cuda_check_process(err));
    AIMO_TRY(cuda_check_device(index, err));
    cudaDeviceProp properties;
    AIMO_TRY_CUDA(cudaGetDeviceProperties(&properties, index), err);
    *out = {};
    snprintf(out->name, sizeof out->name, "%s", properties.name);
    out->major = properties.major;
    out->minor = properties.minor;
    out->memory_bytes = properties.totalGlobalMem;
    return AIMO_OK;
}

aimo_status cuda_check_usable(int index, aimo_error *err)
{
    aimo_cuda_device properties;
    AIMO_TRY(cuda_get_device(index, &properties, err));
    if (properties.major >= OLDEST_MAJOR)
        return AIMO_OK;
    return aimo_fail(err, AIMO_ERR_UNSUPPORTED,
                     "CUDA: %s has compute capability %d.%d, %d.0 is needed", properties.name,
                     properties.major, properties.minor, OLDEST_MAJOR);
}

aimo_status cuda_memory_new(void **out, size_t bytes, const char *what, aimo_error *err)
{
    *out = NULL;
    const cudaError_t error = cudaMalloc(out, bytes);
    if (error != cudaErrorMemoryAllocation)
        return error == cudaSuccess ? AIMO_OK : aimo_cuda_fail(error, "cudaMalloc", err);
    size_t available = 0, all = 0;
    (void)cudaGetLastError();
    (void)cudaMemGetInfo(&available, &all);
    return aimo_fail(err, AIMO_ERR_MEMORY,
                     "CUDA: %s: %zu bytes could not be allocated, %zu of %zu are free", what, bytes,
                     available, all);
}

aimo_status cuda_grow_device(growing_memory *m, size_t bytes, const char *what, aimo_error *err)
{
    if (m->bytes >= bytes)
        return AIMO_OK;
    (void)cudaFree(m->at);
    *m = {};
    AIMO_TRY(cuda_memory_new(&m->at, bytes, what, err));
    m->bytes = bytes;
    return AIMO_OK;
}

aimo_status cuda_grow_pinned(growing_memory *m, size_t bytes, aimo_error *err)
{
    if (m->bytes >= bytes)
        return AIMO_OK;
    (void)cudaFreeHost(m->at);
    *m = {};
    AIMO_TRY_CUDA(cudaMallocHost(&m->at, bytes), err);
    m->bytes = bytes;
    return AIMO_OK;
}

aimo_status cuda_enter_device(int device, int *previous, aimo_error *err)
{
    int current;
    *previous = NOWHERE;
    AIMO_TRY_CUDA(cudaGetDevice(&current), err);
    if (current == device)
        return AIMO_OK;
    const bool used = has_context(current);
    AIMO_TRY_CUDA(cudaSetDevice(device), err);
    if (used)
        *previous = current;
    return AIMO_OK;
}

void cuda_leave_device(int previous)
{
    if (previous != NOWHERE)
        (void)cudaSetDevice(previous);
}
