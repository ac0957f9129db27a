/* gemm: every row against exact sums in double; packing is lossless; sums do not depend on m. */
#include "test.h"

#include "base/memory.h"
#include "gemm/gemm.h"
#include "gemm/gemm_kernels.h"
#include "half/half_scalar.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    size_t m, n, k;
} shape;

/* Sizes around every edge: one, tile heights, panels of 16 and 32, parts of k. */
static const shape shapes[] = {
    {1, 1, 1},    {1, 16, 7},    {2, 17, 8},    {5, 33, 31},  {6, 32, 64},   {7, 48, 255},
    {12, 36, 36}, {13, 15, 256}, {24, 64, 257}, {29, 80, 96}, {1, 100, 600}, {400, 16, 3},
};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

static float stored(aimo_dtype dtype, float x)
{
    if (dtype == AIMO_F16)
        return aimo_f16_to_f32_one(aimo_f32_to_f16_one(x));
    if (dtype == AIMO_BF16)
        return aimo_bf16_to_f32_one(aimo_f32_to_bf16_one(x));
    return x;
}

static double activate_exactly(double x, aimo_activation activation)
{
    switch (activation) {
    case AIMO_ACT_NONE:
        return x;
    case AIMO_ACT_GELU:
        return x * 0.5 * erfc(-x * 0.70710678118654752);
    case AIMO_ACT_GELU_TANH:
        return 0.5 * x * (1.0 + tanh(0.79788456080286536 * (x + 0.044715 * x * x * x)));
    case AIMO_ACT_QUICK_GELU:
        return x / (1.0 + exp(-1.702 * x));
    case AIMO_ACT_RELU:
        return x > 0.0 ? x : 0.0;
    case AIMO_ACT_SILU:
        return x / (1.0 + exp(-x));
    case AIMO_ACT_TANH:
        return tanh(x);
    }
    return x;
}

typedef struct {
    shape s;
    aimo_dtype dtype;
    float *x, *w, *bias, *y;
    void *panels;
    aimo_matrix matrix;
} product;

static float *random_floats(size_t n, uint64_t *random)
{
    float *values = malloc(n * sizeof *values);
    for (size_t i = 0; i < n; i++)
        values[i] = test_random_float(random);
    return values;
}

static bool product_new(product *p, shape s, aimo_dtype dtype, uint64_t *random)
{
    size_t bytes;
    if (aimo_panels_size(dtype, s.n, s.k, &bytes, NULL) != AIMO_OK ||
        aimo_memory_new_zero(&p->panels, bytes, 1, "panels", NULL) != AIMO_OK)
        return false;
    p->s = s;
    p->dtype = dtype;
    p->x = random_floats(s.m * s.k, random);
    p->w = random_floats(s.n * s.k, random);
    p->bias = random_floats(s.n, random);
    p->y = malloc((s.m * s.n + 1) * sizeof *p->y);
    const size_t half = s.n / 2; /* packed in two parts, as query, key and value are */
    aimo_panels_pack(dtype, s.n, s.k, p->panels, p->w, 0, half);
    aimo_panels_pack(dtype, s.n, s.k, p->panels, p->w + half * s.k, half, s.n - half);
    p->matrix = aimo_matrix_of(dtype, s.n, s.k, p->panels, aimo_cpu_available());
    return true;
}

static void product_free(product *p)
{
    aimo_memory_free(p->panels);
    free(p->x);
    free(p->w);
    free(p->bias);
    free(p->y);
}

static void run(product *p, aimo_activation activation)
{
    const size_t panels = aimo_matrix_panel_count(&p->matrix), cut = panels / 2;
    aimo_gemm(&p->matrix, p->x, p->s.k, p->s.m, p->bias, activation, p->y, p->s.n, 0, cut);
    aimo_gemm(&p->matrix, p->x, p->s.k, p->s.m, p->bias, activation, p->y, p->s.n, cut, panels);
}

/* reduction: k * 2^-24 * sum |x||w| for the products, 2^-23 more for the activation. */
static bool matches_exact_sums(const product *p, aimo_activation activation)
{
    const bool round_x = aimo_gemm_rounds_x(p->matrix.kernels, p->dtype);
    for (size_t i = 0; i < p->s.m; i++) {
        for (size_t j = 0; j < p->s.n; j++) {
            double sum = (double)p->bias[j], size = fabs(sum);
            for (size_t k = 0; k < p->s.k; k++) {
                const double w = (double)stored(p->dtype, p->w[j * p->s.k + k]);
                const float given = p->x[i * p->s.k + k];
                const double x = (double)(round_x ? stored(AIMO_BF16, given) : given);
                sum += x * w;
                size += fabs(x * w);
            }
            const double expected = activate_exactly(sum, activation);
            const double bound = (double)(p->s.k + 4) * 0x1p-24 * size * 1.2 + 8e-7;
            if (!(fabs((double)p->y[i * p->s.n + j] - expected) <= bound))
                return false;
        }
    }
    return true;
}

TEST(gemm_rows_match_exact_sums_for_every_shape_dtype_and_activation)
{
    uint64_t random = 7;
    for (size_t r = 0; aimo_gemm_row(r) != NULL; r++) {
        if ((aimo_gemm_row(r)->required & ~aimo_cpu_available()) != 0) {
            test_skip(aimo_gemm_row(r)->isa);
            continue;
        }
        for (int dtype = 0; dtype < AIMO_DTYPE_COUNT; dtype++) {
            for (size_t i = 0; i < SHAPES; i++) {
                const aimo_activation activation = (aimo_activation)(i % AIMO_ACTIVATION_COUNT);
                product p;
                CHECK(product_new(&p, shapes[i], (aimo_dtype)dtype, &random));
                p.matrix.kernels = aimo_gemm_row(r);
                p.y[p.s.m * p.s.n] = 12345.0f; /* canary */
                run(&p, activation);
                const bool right = matches_exact_sums(&p, activation);
                const bool canary = p.y[p.s.m * p.s.n] == 12345.0f;
                product_free(&p);
                CHECK_MSG(right && canary, "%s %s %zu x %zu x %zu activation %d",
                          aimo_gemm_row(r)->isa, aimo_dtype_name((aimo_dtype)dtype), shapes[i].m,
                          shapes[i].n, shapes[i].k, (int)activation);
            }
        }
    }
}

TEST(gemm_element_depends_neither_on_m_nor_on_the_split)
{
    uint64_t random = 11;
    for (size_t r = 0; aimo_gemm_row(r) != NULL; r++) {
        if ((aimo_gemm_row(r)->required & ~aimo_cpu_available()) != 0)
            continue;
        for (int dtype = 0; dtype < AIMO_DTYPE_COUNT; dtype++) {
            product p;
            CHECK(product_new(&p, (shape){31, 85, 300}, (aimo_dtype)dtype, &random));
            p.matrix.kernels = aimo_gemm_row(r);
            run(&p, AIMO_ACT_GELU);
            float one[85];
            bool same = true;
            for (size_t row = 0; row < p.s.m; row++) {
                for (size_t panel = 0; panel < aimo_matrix_panel_count(&p.matrix); panel++)
                    aimo_gemm(&p.matrix, p.x + row * p.s.k, p.s.k, 1, p.bias, AIMO_ACT_GELU, one,
                              p.s.n, panel, panel + 1);
                same &= memcmp(one, p.y + row * p.s.n, sizeof one) == 0;
            }
            product_free(&p);
            CHECK_MSG(same, "%s %s", aimo_gemm_row(r)->isa, aimo_dtype_name((aimo_dtype)dtype));
        }
    }
}

TEST(gemm_packing_round_trips)
{
    uint64_t random = 13;
    for (int dtype = 0; dtype < AIMO_DTYPE_COUNT; dtype++) {
        for (size_t i = 0; i < SHAPES; i++) {
            product p;
            CHECK(product_new(&p, shapes[i], (aimo_dtype)dtype, &random));
            const size_t count = p.s.n * p.s.k;
            float *back = malloc(count * sizeof *back);
            aimo_panels_unpack(p.dtype, p.s.n, p.s.k, p.panels, back, 0, p.s.n);
            bool same = true;
            for (size_t j = 0; j < count; j++)
                same &= back[j] == stored(p.dtype, p.w[j]);
            free(back);
            product_free(&p);
            CHECK(same);
        }
    }
}

TEST(gemm_refuses_sizes_that_do_not_exist)
{
    size_t bytes;
    aimo_error err;
    CHECK(aimo_panels_size(AIMO_F16, 0, 4, &bytes, &err) == AIMO_ERR_ARGUMENT);
    CHECK(aimo_panels_size(AIMO_F16, 4, 0, &bytes, &err) == AIMO_ERR_ARGUMENT);
    CHECK(aimo_panels_size(AIMO_BF16, SIZE_MAX / 4, 64, &bytes, &err) == AIMO_ERR_ARGUMENT);
    CHECK(aimo_panels_size(AIMO_BF16, 17, 3, &bytes, &err) == AIMO_OK && bytes == 32 * 4 * 2);
}
