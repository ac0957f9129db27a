/* The CUDA backend under test. */
#include "cuda_fixture.h"

#include "half/half_scalar.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

static const char *variable_or(const char *name, const char *otherwise)
{
    const char *value = getenv(name);
    return value != NULL ? value : otherwise;
}

const char *cuda_library(void) { return variable_or("AIMO_TEST_CUDA_LIBRARY", AIMO_SHIM_LIBRARY); }

const char *cublas_library(void) { return variable_or("AIMO_TEST_CUBLAS", AIMO_SHIM_CUBLAS); }

bool cuda_is_here(void)
{
    const char *cublas = cublas_library();
    aimo_error err;
    if (aimo_cuda_load(cuda_library(), &cublas, 1, &err) == AIMO_OK)
        return true;
    if (getenv("AIMO_TEST_CUDA_LIBRARY") != NULL)
        test_skip(err.message);
    else
        test_fail(__FILE__, __LINE__, "%s", err.message);
    return false;
}

const cuda_shim_controls *shim_controls(void)
{
    /* Opened for good, as by the loader. */
    void *library = dlopen(cuda_library(), RTLD_NOW | RTLD_LOCAL);
    void *symbol = library != NULL ? dlsym(library, "cuda_shim_controls_get") : NULL;
    cuda_shim_controls_getter *get;
    memcpy(&get, &symbol, sizeof get);
    return get != NULL ? get() : NULL;
}

float rounding_of(aimo_dtype dtype)
{
    return dtype == AIMO_F32 ? 0x1p-20f : dtype == AIMO_BF16 ? 0x1p-8f : 0x1p-11f;
}

float rounded_to(aimo_dtype dtype, float x)
{
    if (dtype == AIMO_F32)
        return x;
    if (dtype == AIMO_BF16)
        return aimo_bf16_to_f32_one(aimo_f32_to_bf16_one(x));
    return aimo_f16_to_f32_one(aimo_f32_to_f16_one(x));
}
