/* The process and its devices. */
#include "backend/cuda/cuda_device.h"

#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

namespace
{

constexpr int OLDEST_MAJOR = 8; /* compute capability: products of bf16 */

/* Written once, by cuda_start, which its caller locks. */
pid_t process; /* 0 before */
cublas_lt cublas_table;
int device_count;

/* The runtime's words for what is missing, as a user can act on them. */
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
    (void)cudaGetLastError(); /* what is not fatal is forgotten */
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
    const device_scope scope(index);
    AIMO_TRY(scope.check(err));
    *out = {};
    snprintf(out->name, sizeof out->name, "%s", properties.name);
    out->major = properties.major;
    out->minor = properties.minor;
    AIMO_TRY_CUDA(cudaMemGetInfo(&out->free_bytes, &out->memory_bytes), err);
    if (out->major < OLDEST_MAJOR)
        return aimo_fail(err, AIMO_ERR_UNSUPPORTED,
                         "CUDA: %s has compute capability %d.%d, 8.0 is needed", out->name,
                         out->major, out->minor);
    return AIMO_OK;
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

device_scope::device_scope(int device) : previous_(device), error_(cudaGetDevice(&previous_))
{
    if (error_ == cudaSuccess && previous_ != device)
        error_ = cudaSetDevice(device);
    else if (error_ == cudaSuccess)
        previous_ = -1;
}

device_scope::~device_scope()
{
    if (previous_ >= 0)
        (void)cudaSetDevice(previous_);
}

aimo_status device_scope::check(aimo_error *err) const
{
    return error_ == cudaSuccess ? AIMO_OK : aimo_cuda_fail(error_, "cudaSetDevice", err);
}
