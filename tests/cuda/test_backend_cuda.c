/* backend cuda: each operation against the CPU's scalar row. */
#include "cuda_fixture.h"

#include "base/cpu.h"
#include "base/memory.h"
#include "half/half_scalar.h"

#include <stdlib.h>
#include <string.h>

/* The same model part on both backends; rows lie in device memory of their own. */
typedef struct {
    aimo_backend *cpu, *cuda;
    aimo_workspace *cpu_workspace, *workspace;
    aimo_dtype dtype;   /* of the weights */
    aimo_dtype operand; /* of products */
    const void *constants[16];
    size_t constant_count;
} bench;

static bool bench_init(bench *b, aimo_dtype dtype, size_t head_dim)
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

/* Frees the device copies but the first `kept`. */
static void free_constants(bench *b, size_t kept)
{
    while (b->constant_count > kept)
        b->cuda->ops->constant_free(b->cuda, b->constants[--b->constant_count]);
}

static void bench_clear(bench *b)
{
    free_constants(b, 0);
    b->cpu->ops->workspace_return(b->cpu, b->cpu_workspace);
    b->cuda->ops->workspace_return(b->cuda, b->workspace);
    b->cpu->ops->free(b->cpu);
    b->cuda->ops->free(b->cuda);
}

/* A device copy that lives as long as the bench. */
static void *to_device(bench *b, const void *host, size_t bytes)
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

/* What a row's values are kept in. */
static aimo_dtype kept_in(const bench *b, aimo_rows_kind kind)
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

static void store_as(aimo_dtype dtype, char *at, float x)
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

/* rows [m, n] on the device, and as many bytes more as make whole floats of them; NULL data:
 * nothing that could be mistaken for a result. */
static void *rows_to_device(bench *b, aimo_rows_kind kind, const float *data, size_t m, size_t n)
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

/* out [m, n] = rows on the device, which must say the same to products; bf16 is of the value before
 * it was rounded to what is kept. */
static bool rows_from_device(bench *b, aimo_rows_kind kind, const void *rows, size_t m, size_t n,
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

/* Values that the operand type holds exactly. */
static float *random_rows(const bench *b, size_t count, uint64_t *random)
{
    float *data = malloc(count * sizeof *data);
    for (size_t i = 0; i < count; i++)
        data[i] = rounded_to(b->operand, test_random_normal(random));
    return data;
}

/* rounding: `steps` roundings to the type, of values about as large as the result or 1. */
static bool close_to(const float *got, const float *expected, size_t n, float steps, float rounding)
{
    for (size_t i = 0; i < n; i++)
        if (!(fabsf(got[i] - expected[i]) <= steps * rounding * (1.0f + fabsf(expected[i])))) {
            printf("    element %zu: %g, not %g\n", i, (double)got[i], (double)expected[i]);
            return false;
        }
    return true;
}

static void table_rows(aimo_dtype dtype, const float *src, size_t rows, size_t n, char *dst)
{
    for (size_t r = 0; r < rows; r++) {
        char *row = dst + r * aimo_table_row_bytes(dtype, n);
        const float scale = 0.03125f;
        for (size_t i = 0; i < n; i++) {
            if (dtype == AIMO_F32)
                memcpy(row + 4 * i, &src[r * n + i], 4);
            else if (dtype == AIMO_INT8)
                row[i] = (char)(signed char)(src[r * n + i] * 20.0f);
            else
                memcpy(row + 2 * i, &(uint16_t){to_bits(dtype, src[r * n + i])}, 2);
        }
        if (dtype == AIMO_INT8)
            memcpy(row + n, &scale, sizeof scale);
    }
}

static bool hold_sequences(bench *b, const int32_t *ids, const size_t *offsets, size_t batch)
{
    const aimo_sequences sequences = {ids, offsets, batch, offsets[batch], batch};
    aimo_error err;
    return b->cuda->ops->upload(b->cuda, b->workspace, &sequences, &err) == AIMO_OK;
}

static bool embed_matches(aimo_dtype dtype, size_t n, bool with_type, uint64_t *random)
{
    enum { WORDS = 11, TOKENS = 9 };
    static const int32_t ids[TOKENS] = {3, 10, 0, 0, 7, 1, 2, 9, 5};
    static const size_t offsets[] = {0, 1, 6, TOKENS};
    bench b;
    if (!bench_init(&b, dtype, 32))
        return false;
    const size_t bytes = WORDS * aimo_table_row_bytes(dtype, n);
    char *tables[3];
    void *device[3];
    for (size_t t = 0; t < 3; t++) {
        float *values = random_rows(&b, WORDS * n, random);
        tables[t] = malloc(bytes);
        table_rows(dtype, values, WORDS, n, tables[t]);
        device[t] = to_device(&b, tables[t], bytes);
        free(values);
    }
    float *weight = random_rows(&b, n, random), *bias = random_rows(&b, n, random);
    float *expected = malloc(TOKENS * n * sizeof(float)), *got = malloc(TOKENS * n * sizeof(float));
    aimo_embed_args args = {
        .dtype = dtype,
        .word = tables[0],
        .position = tables[1],
        .type = with_type ? tables[2] : NULL,
        .ids = ids,
        .offsets = offsets,
        .batch = 3,
        .hidden = n,
        .first_position = 2,
        .norm = {weight, bias, 1e-5f},
        .out = expected,
    };
    aimo_error err;
    bool good = b.cpu->ops->embed(b.cpu, b.cpu_workspace, &args, &err) == AIMO_OK;
    args.word = device[0];
    args.position = device[1];
    args.type = with_type ? device[2] : NULL;
    args.norm.weight = to_device(&b, weight, n * sizeof(float));
    args.norm.bias = to_device(&b, bias, n * sizeof(float));
    args.out = rows_to_device(&b, AIMO_ROWS_HIDDEN, NULL, TOKENS, n);
    good &= hold_sequences(&b, ids, offsets, 3);
    good &= b.cuda->ops->embed(b.cuda, b.workspace, &args, &err) == AIMO_OK;
    good = good && rows_from_device(&b, AIMO_ROWS_HIDDEN, args.out, TOKENS, n, got) &&
           close_to(got, expected, TOKENS * n, 8.0f, rounding_of(kept_in(&b, AIMO_ROWS_HIDDEN)));
    free(got);
    free(expected);
    free(bias);
    free(weight);
    for (size_t t = 0; t < 3; t++)
        free(tables[t]);
    bench_clear(&b);
    return good;
}

TEST(cuda_embed_matches_the_cpu)
{
    static const size_t hidden[] = {1, 31, 36, 64, 128, 256, 384, 512, 768, 1024};
    uint64_t random = 3;
    if (!cuda_is_here())
        return;
    for (int dtype = 0; dtype < AIMO_DTYPE_COUNT; dtype++)
        for (size_t i = 0; i < sizeof hidden / sizeof hidden[0]; i++)
            CHECK_MSG(embed_matches((aimo_dtype)dtype, hidden[i], i % 2 == 0, &random), "%s n %zu",
                      aimo_dtype_name((aimo_dtype)dtype), hidden[i]);
}

typedef struct {
    size_t m, n, k;
    bool bias, norm;
    aimo_activation activation;
    aimo_rows_kind y_kind;
} linear_case;

/* A packed random matrix on both backends. int8 weights are compared as the f16 that they become.
 */
static void *new_matrix(bench *b, const linear_case *c, aimo_backend_matrix **cpu,
                        aimo_backend_matrix **cuda, uint64_t *random)
{
    size_t bytes;
    aimo_error err;
    void *panels, *plain;
    float *w = random_rows(b, c->n * c->k, random);
    for (size_t i = 0; i < c->n * c->k; i++)
        w[i] = rounded_to(b->operand, w[i] / sqrtf((float)c->k));
    bool good = aimo_panels_size(b->dtype, c->n, c->k, &bytes, &err) == AIMO_OK &&
                aimo_memory_new_zero(&panels, 1, bytes, "panels", &err) == AIMO_OK;
    aimo_panels_pack(b->dtype, c->n, c->k, panels, w, 0, c->n);
    aimo_panels_unpack(b->dtype, c->n, c->k, panels, w, 0, c->n);
    for (size_t i = 0; i < c->n * c->k; i++)
        w[i] = rounded_to(b->operand, w[i]);
    good = good && aimo_panels_size(AIMO_F32, c->n, c->k, &bytes, &err) == AIMO_OK &&
           aimo_memory_new_zero(&plain, 1, bytes, "panels", &err) == AIMO_OK;
    aimo_panels_pack(AIMO_F32, c->n, c->k, plain, w, 0, c->n);
    good &= b->cpu->ops->matrix_new(b->cpu, AIMO_F32, c->n, c->k, plain, cpu, &err) == AIMO_OK;
    good &= b->cuda->ops->matrix_new(b->cuda, b->dtype, c->n, c->k, panels, cuda, &err) == AIMO_OK;
    aimo_memory_free(panels); /* uploaded */
    free(w);
    if (!good)
        test_fail(__FILE__, __LINE__, "%s", err.message);
    return plain;
}

/* What a case computes with, on both sides. */
typedef struct {
    float *x, *bias, *weight, *norm_bias, *residual, *scratch, *expected, *got;
} linear_data;

static linear_data linear_data_new(const bench *b, const linear_case *c, uint64_t *random)
{
    return (linear_data){
        random_rows(b, c->m * c->k, random), random_rows(b, c->n, random),
        random_rows(b, c->n, random),        random_rows(b, c->n, random),
        random_rows(b, c->m * c->n, random), malloc(c->m * c->n * sizeof(float)),
        malloc(c->m * c->n * sizeof(float)), malloc(c->m * c->n * sizeof(float)),
    };
}

static void linear_data_free(linear_data *d)
{
    float *const all[] = {d->x,        d->bias,    d->weight,   d->norm_bias,
                          d->residual, d->scratch, d->expected, d->got};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        free(all[i]);
}

static bool linear_matches(aimo_dtype dtype, const linear_case *c, uint64_t *random)
{
    bench b;
    if (!bench_init(&b, dtype, 32))
        return false;
    aimo_error err = {""};
    aimo_backend_matrix *cpu_w, *cuda_w;
    void *panels = new_matrix(&b, c, &cpu_w, &cuda_w, random);
    linear_data d = linear_data_new(&b, c, random);
    const aimo_rows_kind x_kind = c->norm                          ? AIMO_ROWS_OPERAND
                                  : c->y_kind == AIMO_ROWS_OPERAND ? AIMO_ROWS_HIDDEN
                                                                   : AIMO_ROWS_FULL;
    aimo_layer_norm norm = {d.weight, d.norm_bias, 1e-5f};
    aimo_linear_args args = {
        .w = cpu_w,
        .bias = c->bias ? d.bias : NULL,
        .x = d.x,
        .x_kind = x_kind,
        .m = c->m,
        .activation = c->activation,
        .norm = c->norm ? &norm : NULL,
        .residual = d.residual,
        .scratch = d.scratch,
        .y = d.expected,
        .y_kind = c->y_kind,
    };
    bool good = b.cpu->ops->linear(b.cpu, b.cpu_workspace, &args, &err) == AIMO_OK;
    args.w = cuda_w;
    args.bias = c->bias ? to_device(&b, d.bias, c->n * sizeof(float)) : NULL;
    args.x = rows_to_device(&b, x_kind, d.x, c->m, c->k);
    norm.weight = to_device(&b, d.weight, c->n * sizeof(float));
    norm.bias = to_device(&b, d.norm_bias, c->n * sizeof(float));
    args.y = rows_to_device(&b, c->y_kind, c->norm ? d.residual : NULL, c->m, c->n);
    args.residual = args.y; /* in place, as the encoder does */
    args.scratch = to_device(&b, d.scratch, c->m * c->n * sizeof(float));
    good &= b.cuda->ops->linear(b.cuda, b.workspace, &args, &err) == AIMO_OK;
    /* Before an activation, an operand is rounded once, and after it once more. */
    const aimo_dtype rounded = kept_in(&b, c->y_kind);
    good = good && rows_from_device(&b, c->y_kind, args.y, c->m, c->n, d.got) &&
           close_to(d.got, d.expected, c->m * c->n, rounded == AIMO_F32 ? 16.0f : 3.0f,
                    rounding_of(rounded));
    if (!good)
        printf("    %s\n", err.message);
    linear_data_free(&d);
    b.cpu->ops->matrix_free(b.cpu, cpu_w);
    b.cuda->ops->matrix_free(b.cuda, cuda_w);
    aimo_memory_free(panels);
    bench_clear(&b);
    return good;
}

TEST(cuda_linear_matches_the_cpu)
{
    static const linear_case cases[] = {
        {3, 128, 9, true, true, AIMO_ACT_NONE, AIMO_ROWS_HIDDEN},
        {2, 256, 9, true, true, AIMO_ACT_NONE, AIMO_ROWS_HIDDEN},
        {9, 384, 9, true, true, AIMO_ACT_NONE, AIMO_ROWS_HIDDEN},
        {3, 512, 9, false, true, AIMO_ACT_NONE, AIMO_ROWS_HIDDEN},
        {3, 768, 9, true, true, AIMO_ACT_NONE, AIMO_ROWS_HIDDEN},
        {5, 1024, 9, true, true, AIMO_ACT_NONE, AIMO_ROWS_HIDDEN},
        {5, 36, 50, true, true, AIMO_ACT_NONE, AIMO_ROWS_HIDDEN},
        {9, 64, 16, false, true, AIMO_ACT_NONE, AIMO_ROWS_HIDDEN},
        {3, 33, 10, true, true, AIMO_ACT_NONE, AIMO_ROWS_HIDDEN}, /* no epilogue for 33 */
        {3, 48, 33, true, false, AIMO_ACT_NONE, AIMO_ROWS_OPERAND},
        {3, 31, 33, false, false, AIMO_ACT_NONE, AIMO_ROWS_OPERAND},
        {4, 21, 20, true, false, AIMO_ACT_TANH, AIMO_ROWS_FULL},
        {4, 8, 7, false, false, AIMO_ACT_NONE, AIMO_ROWS_FULL},
    };
    uint64_t random = 5;
    if (!cuda_is_here())
        return;
    for (int dtype = 0; dtype < AIMO_DTYPE_COUNT; dtype++)
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
            CHECK_MSG(linear_matches((aimo_dtype)dtype, &cases[i], &random), "%s case %zu",
                      aimo_dtype_name((aimo_dtype)dtype), i);
}

/* y [2, n] = the layer norm of a product beyond f16, n / 2 times of either sign, and of one with a
 * NaN. */
static bool norm_huge_sums(bench *b, size_t n, float *y)
{
    enum { K = 8, ROWS = 2 };
    aimo_error err = {""};
    size_t bytes;
    void *panels;
    aimo_backend_matrix *matrix;
    float *w = calloc(n * K, sizeof *w), *weight = malloc(n * sizeof *weight);
    float *zeros = calloc(ROWS * n, sizeof *zeros), x[ROWS * K] = {0.0f};
    for (size_t i = 0; i < n; i++) {
        w[i * K] = i % 2 == 0 ? 60000.0f : -60000.0f;
        weight[i] = 0.5f;
    }
    x[0] = 60000.0f;
    x[K] = NAN;
    bool good = aimo_panels_size(b->dtype, n, K, &bytes, &err) == AIMO_OK &&
                aimo_memory_new_zero(&panels, 1, bytes, "panels", &err) == AIMO_OK;
    aimo_panels_pack(b->dtype, n, K, panels, w, 0, n);
    good =
        good && b->cuda->ops->matrix_new(b->cuda, b->dtype, n, K, panels, &matrix, &err) == AIMO_OK;
    const aimo_layer_norm norm = {to_device(b, weight, n * sizeof *weight),
                                  to_device(b, zeros, n * sizeof *zeros), 1e-12f};
    const aimo_linear_args args = {
        .w = matrix,
        .bias = norm.bias,
        .x = rows_to_device(b, AIMO_ROWS_OPERAND, x, ROWS, K),
        .x_kind = AIMO_ROWS_OPERAND,
        .m = ROWS,
        .norm = &norm,
        .residual = rows_to_device(b, AIMO_ROWS_HIDDEN, zeros, ROWS, n),
        .scratch = to_device(b, zeros, ROWS * n * sizeof *zeros),
        .y = rows_to_device(b, AIMO_ROWS_HIDDEN, NULL, ROWS, n),
        .y_kind = AIMO_ROWS_HIDDEN,
    };
    good = good && b->cuda->ops->linear(b->cuda, b->workspace, &args, &err) == AIMO_OK;
    (void)rows_from_device(b, AIMO_ROWS_HIDDEN, args.y, ROWS, n, y); /* NaN differs from NaN */
    b->cuda->ops->matrix_free(b->cuda, matrix);
    aimo_memory_free(panels);
    free(zeros);
    free(weight);
    free(w);
    return good;
}

TEST(cuda_sums_beyond_f16_end_at_its_largest_value_and_nan_stays)
{
    static const size_t hidden[] = {36, 128, 768};
    float y[2 * 768];
    if (!cuda_is_here())
        return;
    for (int dtype = 0; dtype <= AIMO_BF16; dtype++)
        for (size_t h = 0; h < sizeof hidden / sizeof hidden[0]; h++) {
            const size_t n = hidden[h];
            bench b;
            CHECK(bench_init(&b, (aimo_dtype)dtype, 32));
            bool good = norm_huge_sums(&b, n, y);
            bench_clear(&b);
            for (size_t i = 0; i < n; i++)
                good &= fabsf(y[i] - (i % 2 == 0 ? 0.5f : -0.5f)) < 1e-3f && isnan(y[n + i]);
            CHECK_MSG(good, "%s n %zu", aimo_dtype_name((aimo_dtype)dtype), n);
        }
}

TEST(cuda_activations_match_the_cpu)
{
    uint64_t random = 7;
    if (!cuda_is_here())
        return;
    for (int activation = 0; activation < AIMO_ACTIVATION_COUNT; activation++)
        for (int variant = 0; variant < 8; variant++) {
            const linear_case c = {
                .m = 17,
                .n = variant & 1 ? 40 : 33, /* 33: cuBLASLt has no product with an epilogue */
                .k = 24,
                .bias = (variant & 2) != 0,
                .activation = (aimo_activation)activation,
                .y_kind = variant & 4 ? AIMO_ROWS_FULL : AIMO_ROWS_OPERAND,
            };
            for (int dtype = 0; dtype <= AIMO_BF16; dtype++)
                CHECK_MSG(linear_matches((aimo_dtype)dtype, &c, &random), "activation %d %s",
                          activation, aimo_dtype_name((aimo_dtype)dtype));
        }
}

/* out [tokens, hidden] = attention of qkv [tokens, 3 * hidden], both on the host. */
static bool attend_on_cuda(bench *b, aimo_attention_args args, const float *qkv, float *out)
{
    const size_t kept = b->constant_count, n = args.heads * args.head_dim;
    const size_t tokens = args.offsets[args.batch];
    int32_t *ids = calloc(tokens, sizeof *ids);
    aimo_error err = {""};
    args.qkv = rows_to_device(b, AIMO_ROWS_OPERAND, qkv, tokens, 3 * n);
    args.out = rows_to_device(b, AIMO_ROWS_OPERAND, NULL, tokens, n);
    const bool good = hold_sequences(b, ids, args.offsets, args.batch) &&
                      b->cuda->ops->attention(b->cuda, b->workspace, &args, &err) == AIMO_OK &&
                      rows_from_device(b, AIMO_ROWS_OPERAND, args.out, tokens, n, out);
    free_constants(b, kept);
    free(ids);
    return good;
}

enum { MOST_SEQUENCES = 7 };

typedef struct {
    size_t heads, head_dim, lengths[MOST_SEQUENCES]; /* up to the first 0 */
    bool keys_grow; /* so that the highest score of a query comes late */
} attention_case;

/* Every 64 tokens keys double, up to four times what they are. */
static void grow_keys(const attention_case *c, size_t tokens, float *qkv)
{
    const size_t n = c->heads * c->head_dim;
    for (size_t t = 0; t < tokens; t++)
        for (size_t i = 0; i < n; i++)
            qkv[t * 3 * n + n + i] *= (float)(1u << t / 64 % 3);
}

/* What the CPU computes, and the same bits for each sequence alone. */
static bool attention_matches(aimo_dtype dtype, const attention_case *c, uint64_t *random)
{
    bench b;
    if (!bench_init(&b, dtype, c->head_dim))
        return false;
    const size_t n = c->heads * c->head_dim;
    size_t offsets[MOST_SEQUENCES + 1] = {0}, batch = 0;
    for (; batch < MOST_SEQUENCES && c->lengths[batch] != 0; batch++)
        offsets[batch + 1] = offsets[batch] + c->lengths[batch];
    const size_t tokens = offsets[batch];
    float *qkv = random_rows(&b, tokens * 3 * n, random);
    if (c->keys_grow)
        grow_keys(c, tokens, qkv);
    float *expected = malloc((tokens * n + 64) * sizeof(float));
    float *got = malloc(tokens * n * sizeof(float)), *alone = malloc(tokens * n * sizeof(float));
    float *row = calloc(tokens * 3 * n + 64, sizeof(float)); /* tiles read past the last row */
    memcpy(row, qkv, tokens * 3 * n * sizeof(float));
    aimo_attention_args args = {
        .qkv = row,
        .offsets = offsets,
        .batch = batch,
        .heads = c->heads,
        .head_dim = c->head_dim,
        .out = expected,
    };
    aimo_error err = {""};
    bool good = b.cpu->ops->attention(b.cpu, b.cpu_workspace, &args, &err) == AIMO_OK &&
                attend_on_cuda(&b, args, qkv, got) &&
                close_to(got, expected, tokens * n, 4.0f, rounding_of(b.operand));
    for (size_t i = 0; i < batch && batch > 1 && good; i++) {
        const size_t one[] = {0, c->lengths[i]};
        args.offsets = one;
        args.batch = 1;
        good = attend_on_cuda(&b, args, qkv + offsets[i] * 3 * n, alone) &&
               memcmp(alone, got + offsets[i] * n, c->lengths[i] * n * sizeof *alone) == 0;
        if (!good)
            printf("    sequence %zu alone\n", i);
    }
    free(row);
    free(alone);
    free(got);
    free(expected);
    free(qkv);
    bench_clear(&b);
    return good;
}

TEST(cuda_attention_matches_the_cpu_and_does_not_depend_on_the_batch)
{
    static const attention_case cases[] = {
        {1, 1, {1, 2}, false},
        {3, 4, {5, 16, 70}, false},
        {3, 32, {1, 130, 17, 2, 16, 15, 33}, false}, /* short and long ones take turns */
        {1, 36, {15, 33, 64}, false},
        {1, 128, {2, 20, 65, 31}, false},
        {2, 64, {64, 65, 63, 32}, false},
        {2, 96, {128, 9}, false},
        {1, 80, {48, 3}, false},
        {1, 16, {1, 511, 512}, false},
        {1, 8, {1027}, false},
        {1, 32, {300, 130, 70}, true},
        {1, 64, {129, 161}, true},
        {2, 128, {97, 64}, true},
        {1, 36, {140}, true},
    };
    uint64_t random = 11;
    if (!cuda_is_here())
        return;
    for (int dtype = 0; dtype <= AIMO_BF16; dtype++)
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
            CHECK_MSG(attention_matches((aimo_dtype)dtype, &cases[i], &random), "%s case %zu",
                      aimo_dtype_name((aimo_dtype)dtype), i);
}

enum { POOL_N = 37, POOL_TOKENS = 23, POOL_MOST = 2 * POOL_N };

static bool pool_matches(bench *b, aimo_pool_args args, const float *x, const void *const *device_x)
{
    const size_t tokens = args.offsets != NULL ? POOL_TOKENS : args.batch;
    float expected[POOL_TOKENS * POOL_MOST], got[POOL_TOKENS * POOL_MOST];
    aimo_error err;
    const size_t kept = b->constant_count, columns = args.columns;
    args.x = x;
    args.out = expected;
    bool good = tokens <= POOL_TOKENS &&
                b->cpu->ops->pool(b->cpu, b->cpu_workspace, &args, &err) == AIMO_OK;
    args.x = device_x[args.x_kind];
    args.out = rows_to_device(b, AIMO_ROWS_FULL, NULL, args.batch, columns);
    good = good && b->cuda->ops->pool(b->cuda, b->workspace, &args, &err) == AIMO_OK &&
           rows_from_device(b, AIMO_ROWS_FULL, args.out, args.batch, columns, got) &&
           close_to(got, expected, args.batch * columns, 8.0f, rounding_of(AIMO_F32));
    free_constants(b, kept);
    return good;
}

TEST(cuda_pooling_matches_the_cpu)
{
    static const size_t columns[] = {POOL_MOST, POOL_N, 5, POOL_N + 9}, skips[] = {0, 1, 6, 40};
    static const size_t offsets[] = {0, 1, 9, POOL_TOKENS};
    static const int32_t ids[POOL_TOKENS];
    uint64_t random = 9;
    if (!cuda_is_here())
        return;
    for (int dtype = 0; dtype <= AIMO_BF16; dtype++) {
        bench b;
        CHECK(bench_init(&b, (aimo_dtype)dtype, 32));
        float *x = random_rows(&b, POOL_TOKENS * POOL_N, &random);
        const void *const device_x[] = {
            [AIMO_ROWS_FULL] = rows_to_device(&b, AIMO_ROWS_FULL, x, POOL_TOKENS, POOL_N),
            [AIMO_ROWS_HIDDEN] = rows_to_device(&b, AIMO_ROWS_HIDDEN, x, POOL_TOKENS, POOL_N),
        };
        bool good = hold_sequences(&b, ids, offsets, 3);
        for (int c = 0; c < AIMO_POOLING_COUNT * 2 * 4 && good; c++) {
            const aimo_pooling first = (aimo_pooling)(c % AIMO_POOLING_COUNT);
            const aimo_pooling poolings[] = {first, (aimo_pooling)((first + 1) % 6)};
            good = pool_matches(&b,
                                (aimo_pool_args){
                                    .x_kind = c / 3 % 2 ? AIMO_ROWS_FULL : AIMO_ROWS_HIDDEN,
                                    .offsets = c % 5 != 4 ? offsets : NULL,
                                    .batch = 3,
                                    .hidden = POOL_N,
                                    .poolings = poolings,
                                    .skip = skips[c / 8 % 4],
                                    .columns = columns[c / 2 % 4],
                                    .normalize = c % 2 != 0,
                                },
                                x, device_x);
            if (!good)
                printf("    %s case %d\n", aimo_dtype_name((aimo_dtype)dtype), c);
        }
        free(x);
        bench_clear(&b);
        CHECK(good);
    }
}

TEST(cuda_two_workspaces_and_a_sequence_more_in_each_stay_below_256_mb)
{
    const size_t limit = 256u << 20, products = 4u << 20;
    if (!cuda_is_here())
        return;
    bench b;
    CHECK(bench_init(&b, AIMO_F16, 32));
    bool below = true, all_used = true;
    for (size_t bytes = 100; bytes < 400000; bytes += 100) {
        const size_t tokens = b.cuda->ops->chunk_tokens(b.cuda, 1u << 30, bytes);
        below &= 2 * (tokens * 5 / 4 * bytes + products) <= limit;
        all_used &= 3 * tokens * bytes > limit;
    }
    const size_t few = b.cuda->ops->chunk_tokens(b.cuda, 300, 5000);
    const size_t one = b.cuda->ops->chunk_tokens(b.cuda, 17000, 5000);
    const size_t half = b.cuda->ops->chunk_tokens(b.cuda, 30000, 5000);
    bench_clear(&b);
    CHECK(below && all_used);
    CHECK(few == 512 && one >= 17000);
    CHECK(half >= 15000 && half < 17000);
}

TEST(cuda_download_brings_more_rows_than_its_buffers_hold)
{
    enum { ROWS = 9000, COLUMNS = 130 };
    uint64_t random = 13;
    if (!cuda_is_here())
        return;
    bench b;
    CHECK(bench_init(&b, AIMO_F16, 32));
    float *x = random_rows(&b, ROWS * COLUMNS, &random);
    float *got = malloc(ROWS * COLUMNS * sizeof *got);
    const void *rows = rows_to_device(&b, AIMO_ROWS_FULL, x, ROWS, COLUMNS);
    aimo_error err;
    const aimo_status status =
        b.cuda->ops->download(b.cuda, b.workspace, rows, ROWS, COLUMNS, got, &err);
    const bool same = memcmp(x, got, ROWS * COLUMNS * sizeof *got) == 0;
    free(got);
    free(x);
    bench_clear(&b);
    CHECK(status == AIMO_OK && same);
}
