/* backend cuda: products with their epilogues against the CPU's scalar row. */
#include "backend_fixture.h"
#include "cuda_fixture.h"

#include "base/memory.h"

#include <stdlib.h>

typedef struct {
    size_t m, n, k;
    bool bias, norm;
    aimo_activation activation;
    aimo_rows_kind y_kind;
} linear_case;

/* w [n, k] in panels, for aimo_memory_free; NULL, with a failure of the test, without memory. */
static void *new_panels(aimo_dtype dtype, size_t n, size_t k, const float *w)
{
    size_t bytes;
    void *panels = NULL;
    aimo_error err;
    if (aimo_panels_size(dtype, n, k, &bytes, &err) == AIMO_OK &&
        aimo_memory_new_zero(&panels, 1, bytes, "panels", &err) == AIMO_OK)
        aimo_panels_pack(dtype, n, k, panels, w, 0, n);
    else
        test_fail(__FILE__, __LINE__, "%s", err.message);
    return panels;
}

/* A random matrix on both backends; the CPU's reads the panels that are returned. NULL, with a
 * failure of the test, where there is none. int8 weights are compared as the f16 that they become.
 */
static void *new_matrix(bench *b, const linear_case *c, aimo_backend_matrix **cpu,
                        aimo_backend_matrix **cuda, uint64_t *random)
{
    aimo_error err = {""};
    float *w = random_rows(b, c->n * c->k, random);
    for (size_t i = 0; i < c->n * c->k; i++)
        w[i] = rounded_to(b->operand, w[i] / sqrtf((float)c->k));
    void *panels = new_panels(b->dtype, c->n, c->k, w), *plain = NULL;
    *cpu = *cuda = NULL;
    if (panels != NULL &&
        b->cuda->ops->matrix_new(b->cuda, b->dtype, c->n, c->k, panels, cuda, &err) == AIMO_OK) {
        aimo_panels_unpack(b->dtype, c->n, c->k, panels, w, 0, c->n);
        for (size_t i = 0; i < c->n * c->k; i++)
            w[i] = rounded_to(b->operand, w[i]);
        plain = new_panels(AIMO_F32, c->n, c->k, w);
    }
    if (plain == NULL ||
        b->cpu->ops->matrix_new(b->cpu, AIMO_F32, c->n, c->k, plain, cpu, &err) != AIMO_OK)
        test_fail(__FILE__, __LINE__, "%s", err.message);
    aimo_memory_free(panels); /* uploaded */
    free(w);
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
    bool good = cpu_w != NULL && cuda_w != NULL &&
                b.cpu->ops->linear(b.cpu, b.cpu_workspace, &args, &err) == AIMO_OK;
    args.w = cuda_w;
    args.bias = c->bias ? to_device(&b, d.bias, c->n * sizeof(float)) : NULL;
    args.x = rows_to_device(&b, x_kind, d.x, c->m, c->k);
    norm.weight = to_device(&b, d.weight, c->n * sizeof(float));
    norm.bias = to_device(&b, d.norm_bias, c->n * sizeof(float));
    args.y = rows_to_device(&b, c->y_kind, c->norm ? d.residual : NULL, c->m, c->n);
    args.residual = args.y; /* in place, as the encoder does */
    args.scratch = to_device(&b, d.scratch, c->m * c->n * sizeof(float));
    good = good && b.cuda->ops->linear(b.cuda, b.workspace, &args, &err) == AIMO_OK;
    /* Before an activation, an operand is rounded once, and after it once more. */
    const aimo_dtype rounded = kept_in(&b, c->y_kind);
    good = good && rows_from_device(&b, c->y_kind, args.y, c->m, c->n, d.got) &&
           close_to(d.got, d.expected, c->m * c->n, rounded == AIMO_F32 ? 16.0f : 3.0f,
                    rounding_of(rounded));
    if (!good)
        printf("    %s\n", err.message);
    linear_data_free(&d);
    if (cpu_w != NULL)
        b.cpu->ops->matrix_free(b.cpu, cpu_w);
    if (cuda_w != NULL)
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
    aimo_backend_matrix *matrix = NULL;
    float *w = calloc(n * K, sizeof *w), *weight = malloc(n * sizeof *weight);
    float *zeros = calloc(ROWS * n, sizeof *zeros), x[ROWS * K] = {0.0f};
    for (size_t i = 0; i < n; i++) {
        w[i * K] = i % 2 == 0 ? 60000.0f : -60000.0f;
        weight[i] = 0.5f;
    }
    x[0] = 60000.0f;
    x[K] = NAN;
    void *panels = new_panels(b->dtype, n, K, w);
    bool good = panels != NULL &&
                b->cuda->ops->matrix_new(b->cuda, b->dtype, n, K, panels, &matrix, &err) == AIMO_OK;
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
    if (matrix != NULL)
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
