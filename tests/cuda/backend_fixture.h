/* Operations under test: the CUDA backend beside the CPU's scalar row. */
#ifndef AIMO_BACKEND_FIXTURE_H
#define AIMO_BACKEND_FIXTURE_H

#include "backend/backend.h"

/* The same model part on both backends; rows lie in device memory of their own. */
typedef struct {
    aimo_backend *cpu, *cuda;
    aimo_workspace *cpu_workspace, *workspace;
    aimo_dtype dtype;   /* of the weights */
    aimo_dtype operand; /* of products */
    const void *constants[16];
    size_t constant_count;
} bench;

/* For a model whose weights are `dtype`. False, with a failure of the running test and nothing to
 * clear, when a backend cannot be created. */
bool bench_init(bench *b, aimo_dtype dtype, size_t head_dim);
void bench_clear(bench *b);

/* A device copy that lives as long as the bench, or until free_constants. */
void *to_device(bench *b, const void *host, size_t bytes);
/* Frees the device copies but the first `kept`. */
void free_constants(bench *b, size_t kept);

/* Uploads the sequences to the CUDA backend's workspace. */
bool hold_sequences(bench *b, const int32_t *ids, const size_t *offsets, size_t batch);

/* What a row's values are kept in. */
aimo_dtype kept_in(const bench *b, aimo_rows_kind kind);
/* Writes x as an f32, f16 or bf16. */
void store_as(aimo_dtype dtype, char *at, float x);

/* rows [m, n] on the device, and as many bytes more as make whole floats of them; with NULL data
 * they are filled with a pattern that cannot be mistaken for a result. */
void *rows_to_device(bench *b, aimo_rows_kind kind, const float *data, size_t m, size_t n);
/* out [m, n] = rows on the device, which must say the same to products; bf16 is of the value before
 * it was rounded to what is kept. */
bool rows_from_device(bench *b, aimo_rows_kind kind, const void *rows, size_t m, size_t n,
                      float *out);

/* Values that the operand type holds exactly, for the caller to free. */
float *random_rows(const bench *b, size_t count, uint64_t *random);

/* rounding: `steps` roundings to the type, of values about as large as the result or 1. Prints the
 * first element that is not close. */
bool close_to(const float *got, const float *expected, size_t n, float steps, float rounding);

#endif
