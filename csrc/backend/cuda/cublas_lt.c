/* Loads cuBLASLt at run time. It is never unloaded: other libraries in the process may use it
 * too. */
#include "backend/cuda/cublas_lt.h"

#include <dlfcn.h>
#include <string.h>

static const struct {
    const char *name;
    size_t offset;
} functions[] = {
#define FUNCTION(name)                                                                             \
    {                                                                                              \
        "cublasLt" #name, offsetof(cublas_lt, name)                                                \
    }
    FUNCTION(GetVersion),
    FUNCTION(GetStatusString),
    FUNCTION(Create),
    FUNCTION(Destroy),
    FUNCTION(MatrixLayoutCreate),
    FUNCTION(MatrixLayoutDestroy),
    FUNCTION(MatmulDescCreate),
    FUNCTION(MatmulDescDestroy),
    FUNCTION(MatmulDescSetAttribute),
    FUNCTION(MatmulPreferenceCreate),
    FUNCTION(MatmulPreferenceDestroy),
    FUNCTION(MatmulPreferenceSetAttribute),
    FUNCTION(MatmulAlgoGetHeuristic),
    FUNCTION(Matmul),
#undef FUNCTION
};
enum { FUNCTION_COUNT = sizeof functions / sizeof functions[0] };

static aimo_status load(const char *file, cublas_lt *out, aimo_error *err)
{
    void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        return aimo_fail(err, AIMO_ERR_UNSUPPORTED, "CUDA: cuBLASLt is missing: %s", dlerror());
    for (size_t i = 0; i < FUNCTION_COUNT; i++) {
        void *symbol = dlsym(library, functions[i].name);
        if (symbol == NULL) {
            dlclose(library);
            return aimo_fail(err, AIMO_ERR_UNSUPPORTED, "CUDA: %s has no %s", file,
                             functions[i].name);
        }
        memcpy((char *)out + functions[i].offset, &symbol, sizeof symbol);
    }
    return AIMO_OK;
}

aimo_status cublas_lt_load(const char *const *files, size_t count, cublas_lt *out, aimo_error *err)
{
    aimo_status status = aimo_fail(err, AIMO_ERR_UNSUPPORTED, "CUDA: no cuBLASLt files were given");
    for (size_t i = 0; i < count && status != AIMO_OK; i++)
        status = load(files[i], out, err);
    return status;
}
