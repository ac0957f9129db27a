/* Loads the CUDA backend. The core does not link to any part of CUDA: the library is opened by
 * path, and never closed, because CUDA drivers do not support being unloaded. */
#include "backend/cuda_loader.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const aimo_cuda_api *opened; /* protected by lock */
static const aimo_cuda_api *started;
static atomic_bool loading;
static bool was_loading; /* when this process was forked */

/* What another thread had begun is left half done here, in the dynamic linker and the driver as
 * well, and may hold their locks. The fork does not wait for it: a driver that starts may fork, to
 * load its kernel module, and may register handlers of its own, for which older C libraries need
 * the lock that a fork holds. */
static void after_fork_in_child(void)
{
    pthread_mutex_init(&lock, NULL);
    was_loading |= atomic_exchange(&loading, false);
}

void aimo_cuda_loader_init(void) { pthread_atfork(NULL, NULL, after_fork_in_child); }

static aimo_status open_library(const char *library, aimo_error *err)
{
    if (opened != NULL)
        return AIMO_OK;
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL)
        return aimo_fail(err, AIMO_ERR_UNSUPPORTED, "CUDA: %s", dlerror());
    const aimo_cuda_api *(*get)(void);
    void *symbol = dlsym(handle, AIMO_CUDA_API_SYMBOL);
    memcpy(&get, &symbol, sizeof get); /* ISO C has no cast from object to function pointer */
    if (get == NULL || get()->version != AIMO_CUDA_API_VERSION) {
        dlclose(handle);
        return aimo_fail(err, AIMO_ERR_UNSUPPORTED,
                         "CUDA: %s was built for another version of this package", library);
    }
    opened = get();
    return AIMO_OK;
}

aimo_status aimo_cuda_load(const char *library, const char *const *cublas, size_t count,
                           aimo_error *err)
{
    if (was_loading)
        return aimo_fail(err, AIMO_ERR_DEVICE,
                         "CUDA was being started when this process was forked, and does not work "
                         "in it; start processes by spawn, or load the model in the child only");
    pthread_mutex_lock(&lock);
    atomic_store(&loading, true);
    aimo_status status = open_library(library, err);
    if (status == AIMO_OK)
        status = opened->start(cublas, count, err);
    if (status == AIMO_OK)
        started = opened;
    atomic_store(&loading, false);
    pthread_mutex_unlock(&lock);
    return status;
}

aimo_status aimo_cuda_get_api(const aimo_cuda_api **out, aimo_error *err)
{
    pthread_mutex_lock(&lock);
    *out = started;
    pthread_mutex_unlock(&lock);
    if (*out == NULL)
        return aimo_fail(err, AIMO_ERR_UNSUPPORTED, "CUDA was not loaded");
    return AIMO_OK;
}

aimo_status aimo_cuda_get_versions(aimo_cuda_versions *out, aimo_error *err)
{
    const aimo_cuda_api *api;
    AIMO_TRY(aimo_cuda_get_api(&api, err));
    return api->versions(out, err);
}

aimo_status aimo_cuda_get_device(int index, aimo_cuda_device *out, aimo_error *err)
{
    const aimo_cuda_api *api;
    AIMO_TRY(aimo_cuda_get_api(&api, err));
    return api->device(index, out, err);
}

aimo_status aimo_backend_cuda_new(int device, aimo_dtype dtype, size_t head_dim, aimo_backend **out,
                                  aimo_error *err)
{
    const aimo_cuda_api *api;
    AIMO_TRY(aimo_cuda_get_api(&api, err));
    return api->backend_new(device, dtype, head_dim, out, err);
}

aimo_status aimo_row_screen_cuda_new(int device, size_t dim, aimo_row_screen **out, aimo_error *err)
{
    const aimo_cuda_api *api;
    AIMO_TRY(aimo_cuda_get_api(&api, err));
    return api->row_screen_new(device, dim, out, err);
}
