/* Two backends side by side, and rows between the host and the device. */
#include "backend_fixture.h"

#include "base/cpu.h"
#include "cuda_fixture.h"
#include "half/half_scalar.h"

#include <stdlib.h>
#include <string.h>

bool bench_init(bench *b, aimo_dtype dtype, size_t head_dim)
{
    aimo_error err = {""};
    *b = (bench){.dtype = dtype, .operand = dtype == AIMO_INT8 ? AIMO_F16 : dtype};
    const bool made =
        aimo_backend_cpu_new(AIMO_CPU_SCALAR, &b->cpu, &err) == AIMO_OK &&
        aimo_backend_cuda_new(0, dtype, head_dim, &b->cuda, &err) == AIMO_OK &&
        b->cpu->ops->workspace_lease(b->cpu, 64, &b->cpu_workspace, &err) == AIMO_OK &&
        b->cuda->ops->workspace_lease(b->cuda, 64, &b->workspace, &err) == AIMO_OK;
    if (!made)
        test_fail(__FILE__, __LINE__, "%s", err.message);
    return made;
}

void free_constants(bench *b, size_t kept)
{
    while (b->constant_count > kept)
        b->cuda->ops->constant_free(b->cuda, b->constants[--b->constant_count]);
}

void bench_clear(bench *b)
{
    free_constants(b, 0);
    b->cpu->ops->workspace_return(b->cpu, b->cpu_workspace);
    b->cuda->ops->workspace_return(b->cuda, b->workspace);
    b->cpu->ops->free(b->cpu);
    b->cuda->ops->free(b->cuda);
}

void *to_device(bench *b, const void *host, size_t bytes)
{
    aimo_error err;
    const void *device = NULL;
    if (b->cuda->ops->constant_new(b->cuda, host, bytes, &device, &err) != AIMO_OK)
        test_fail(__FILE__, __LINE__, "%s", err.message);
    b->constants[b->constant_count++] = device;
    return (void *)(uintptr_t)device;
}

static size_t row_bytes(const bench *b, aimo_rows_kind kind, size_t columns)
{
    return b->cuda->ops->row_bytes(b->cuda, kind, columns);
}

static uint16_t to_bits(aimo_dtype dtype, float x)
{
    return dtype == AIMO_BF16 ? aimo_f32_to_bf16_one(x) : aimo_f32_to_f16_one(x);
}

static float of_bits(aimo_dtype dtype, uint16_t bits)
{
    return dtype == AIMO_BF16 ? aimo_bf16_to_f32_one(bits) : aimo_f16_to_f32_one(bits);
}

aimo_dtype kept_in(const bench *b, aimo_rows_kind kind)
{
    const bool in_f16 = kind == AIMO_ROWS_HIDDEN && b->operand == AIMO_BF16;
    return kind == AIMO_ROWS_FULL ? AIMO_F32 : in_f16 ? AIMO_F16 : b->operand;
}

/* Where what products read of a row begins, which may be what is kept. */
static size_t operand_offset(const bench *b, aimo_rows_kind kind, size_t columns)
{
    const size_t kept = columns * aimo_dtype_size(kept_in(b, kind));
    if (kept_in(b, kind) == b->operand)
        return 0;
    return kind == AIMO_ROWS_FULL ? kept : (kept + 15) / 16 * 16;
}

void store_as(aimo_dtype dtype, char *at, float x)
{
    if (dtype == AIMO_F32)
        memcpy(at, &x, sizeof x);
    else
        memcpy(at, &(uint16_t){to_bits(dtype, x)}, sizeof(uint16_t));
}

static float load_as(aimo_dtype dtype, const char *at)
{
    float x;
    uint16_t bits;
    memcpy(&bits, at, sizeof bits);
    if (dtype != AIMO_F32)
        return of_bits(dtype, bits);
    memcpy(&x, at, sizeof x);
    return x;
}

void *rows_to_device(bench *b, aimo_rows_kind kind, const float *data, size_t m, size_t n)
{
    const aimo_dtype kept = kept_in(b, kind);
    const size_t stride = row_bytes(b, kind, n);
    char *bytes = malloc(m * stride + sizeof(float));
    memset(bytes, 0xff, m * stride + sizeof(float));
    for (size_t r = 0; data != NULL && r < m; r++) {
        char *row = bytes + r * stride, *operand = row + operand_offset(b, kind, n);
        for (size_t i = 0; i < n; i++) {
            store_as(kept, row + i * aimo_dtype_size(kept), data[r * n + i]);
            store_as(b->operand, operand + i * aimo_dtype_size(b->operand), data[r * n + i]);
        }
    }
    void *device = to_device(b, bytes, m * stride + sizeof(float));
    free(bytes);
    return device;
}

bool rows_from_device(bench *b, aimo_rows_kind kind, const void *rows, size_t m, size_t n,
                      float *out)
{
    const aimo_dtype kept = kept_in(b, kind);
    const size_t stride = row_bytes(b, kind, n), floats = (m * stride + 3) / 4;
    float *raw = malloc(floats * sizeof *raw);
    aimo_error err;
    /* One row of so many columns is plain memory. */
    bool good =
        b->cuda->ops->download(b->cuda, b->workspace, rows, 1, floats, raw, &err) == AIMO_OK;
    for (size_t r = 0; r < m; r++) {
        const char *row = (char *)raw + r * stride, *operand = row + operand_offset(b, kind, n);
        for (size_t i = 0; i < n; i++) {
            const float x = load_as(kept, row + i * aimo_dtype_size(kept));
            const float factor = load_as(b->operand, operand + i * aimo_dtype_size(b->operand));
            const bool twice = kept == AIMO_F16 && b->operand == AIMO_BF16;
            const float apart = twice ? 0x1p-7f * fabsf(x) + 0x1p-24f : 0.0f;
            good &= fabsf(factor - rounded_to(b->operand, x)) <= apart;
            out[r * n + i] = x;
        }
    }
    free(raw);
    return good;
}

float *random_rows(const bench *b, size_t count, uint64_t *random)
{
    float *data = malloc(count * sizeof *data);
    for (size_t i = 0; i < count; i++)
        data[i] = rounded_to(b->operand, test_random_normal(random));
    return data;
}

bool close_to(const float *got, const float *expected, size_t n, float steps, float rounding)
{
    for (size_t i = 0; i < n; i++)
        if (!(fabsf(got[i] - expected[i]) <= steps * rounding * (1.0f + fabsf(expected[i])))) {
            printf("    element %zu: %g, not %g\n", i, (double)got[i], (double)expected[i]);
            return false;
        }
    return true;
}

bool hold_sequences(bench *b, const int32_t *ids, const size_t *offsets, size_t batch)
{
    const aimo_sequences sequences = {ids, offsets, batch, offsets[batch], batch};
    aimo_error err;
    return b->cuda->ops->upload(b->cuda, b->workspace, &sequences, &err) == AIMO_OK;
}
