/* gemm: every row against exact sums in double; packing is lossless; sums do not depend on m. */
#include "test.h"

#include "base/memory.h"
#include "gemm/gemm.h"
#include "gemm/gemm_int8.h"
#include "gemm/gemm_kernels.h"
#include "half/half_scalar.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    size_t m, n, k;
} shape;

/* Sizes around every edge: one, tile heights, panels of 16 and 32, parts of k, blocks of rows. */
static const shape shapes[] = {
    {1, 1, 1},     {1, 16, 7},   {2, 17, 8},    {5, 33, 31},   {6, 32, 64},
    {7, 48, 255},  {12, 36, 36}, {13, 15, 256}, {24, 64, 257}, {29, 80, 96},
    {1, 100, 600}, {400, 16, 3}, {511, 36, 36}, {17, 50, 64},  {33, 20, 1101},
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

/* Two input channels of int8 matrices that are kept in 16 bits. */
static const int32_t outliers[] = {3, 0};

typedef struct {
    shape s;
    aimo_dtype dtype;
    float *x, *w, *bias, *y;
    float *stored;  /* [n, k]: w as the panels hold it */
    float *rounded; /* [m, k]: x as the row multiplies it */
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
    /* Some rows without negative numbers, and some without others. */
    for (size_t i = 0; i < s.m * s.k; i++)
        p->x[i] = i / s.k % 4 == 1 ? fabsf(p->x[i]) : i / s.k % 4 == 3 ? -fabsf(p->x[i]) : p->x[i];
    p->w = random_floats(s.n * s.k, random);
    p->bias = random_floats(s.n, random);
    p->y = malloc((s.m * s.n + 1) * sizeof *p->y);
    if (dtype == AIMO_INT8)
        aimo_panels_set_outliers(p->panels, outliers, s.k > 4 ? 2 : 0);
    const size_t half = s.n / 2; /* packed in two parts, as query, key and value are */
    aimo_panels_pack(dtype, s.n, s.k, p->panels, p->w, 0, half);
    aimo_panels_pack(dtype, s.n, s.k, p->panels, p->w + half * s.k, half, s.n - half);
    p->matrix = aimo_matrix_of(dtype, s.n, s.k, p->panels, aimo_cpu_available());
    p->stored = malloc(s.n * s.k * sizeof *p->stored);
    aimo_panels_unpack(dtype, s.n, s.k, p->panels, p->stored, 0, s.n);
    p->rounded = malloc(s.m * s.k * sizeof *p->rounded);
    return true;
}

static void product_free(product *p)
{
    aimo_memory_free(p->panels);
    free(p->x);
    free(p->w);
    free(p->bias);
    free(p->y);
    free(p->stored);
    free(p->rounded);
}

static void run(product *p, aimo_activation activation)
{
    const size_t panels = aimo_matrix_panel_count(&p->matrix), cut = panels / 2;
    aimo_gemm(&p->matrix, p->x, p->s.k, p->s.m, p->bias, activation, p->y, p->s.n, 0, cut);
    aimo_gemm(&p->matrix, p->x, p->s.k, p->s.m, p->bias, activation, p->y, p->s.n, cut, panels);
}

static bool is_outlier(const product *p, size_t channel)
{
    return p->s.k > 4 && (channel == 0 || channel == 3);
}

/* One row of x for int8 weights: 255 steps from the least to the largest that is no outlier, of
 * which one is 0. */
static void round_to_int8(const product *p, const float *x, float *out)
{
    float least = 0.0f, largest = 0.0f;
    for (size_t k = 0; k < p->s.k; k++)
        if (!is_outlier(p, k)) {
            least = fminf(least, x[k]);
            largest = fmaxf(largest, x[k]);
        }
    const aimo_int8_rounding r = aimo_int8_rounding_of(least, largest);
    for (size_t k = 0; k < p->s.k; k++) {
        const float u = fminf(fmaxf(rintf(x[k] * r.inverse) + (float)r.zero, 0.0f), 255.0f);
        out[k] = is_outlier(p, k) ? x[k] : (u - (float)r.zero) * r.scale;
    }
}

/* x as the row's instructions take it. */
static void round_x(const product *p)
{
    for (size_t i = 0; i < p->s.m; i++) {
        const float *x = p->x + i * p->s.k;
        float *out = p->rounded + i * p->s.k;
        if (p->dtype == AIMO_INT8)
            round_to_int8(p, x, out);
        else
            for (size_t k = 0; k < p->s.k; k++)
                out[k] = aimo_gemm_rounds_x(p->matrix.kernels, p->dtype) ? stored(AIMO_BF16, x[k])
                                                                         : x[k];
    }
}

/* reduction: k * 2^-24 * sum |x||w| for the products, 2^-23 more for the activation. */
static bool matches_exact_sums(const product *p, aimo_activation activation)
{
    round_x(p);
    for (size_t i = 0; i < p->s.m; i++) {
        for (size_t j = 0; j < p->s.n; j++) {
            double sum = (double)p->bias[j], size = fabs(sum);
            for (size_t k = 0; k < p->s.k; k++) {
                const double x = (double)p->rounded[i * p->s.k + k];
                const double w = (double)p->stored[j * p->s.k + k];
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

/* Whether `rows` rows at a time against `panels` panels at a time give the bits of p's y. */
static bool is_the_same_in_parts(const product *p, size_t rows, size_t panels)
{
    enum { MOST_ROWS = 5, MOST_COLUMNS = 128 };
    float part[MOST_ROWS * MOST_COLUMNS];
    const size_t all = aimo_matrix_panel_count(&p->matrix);
    bool same = rows <= MOST_ROWS && p->s.n <= MOST_COLUMNS;
    for (size_t row = 0; same && row < p->s.m; row += rows) {
        const size_t m = p->s.m - row < rows ? p->s.m - row : rows;
        for (size_t begin = 0; begin < all; begin += panels)
            aimo_gemm(&p->matrix, p->x + row * p->s.k, p->s.k, m, p->bias, AIMO_ACT_GELU, part,
                      p->s.n, begin, all - begin < panels ? all : begin + panels);
        same &= memcmp(part, p->y + row * p->s.n, m * p->s.n * sizeof *part) == 0;
    }
    return same;
}

TEST(gemm_element_depends_neither_on_m_nor_on_the_split)
{
    static const shape cut[] = {{31, 85, 300}, {45, 20, 1101}, {390, 33, 36}};
    uint64_t random = 11;
    for (size_t r = 0; aimo_gemm_row(r) != NULL; r++) {
        if ((aimo_gemm_row(r)->required & ~aimo_cpu_available()) != 0)
            continue;
        for (size_t i = 0; i < AIMO_DTYPE_COUNT * sizeof cut / sizeof cut[0]; i++) {
            const aimo_dtype dtype = (aimo_dtype)(i % AIMO_DTYPE_COUNT);
            const shape s = cut[i / AIMO_DTYPE_COUNT];
            product p;
            CHECK(product_new(&p, s, dtype, &random));
            p.matrix.kernels = aimo_gemm_row(r);
            run(&p, AIMO_ACT_GELU);
            bool same = true;
            for (size_t rows = 1; rows <= 5; rows++)
                same &= is_the_same_in_parts(&p, rows, 1) && is_the_same_in_parts(&p, rows, 6);
            product_free(&p);
            CHECK_MSG(same, "%s %s %zu x %zu x %zu", aimo_gemm_row(r)->isa, aimo_dtype_name(dtype),
                      s.m, s.n, s.k);
        }
    }
}

/* Half a step of the output's scale; outliers as f16. */
static bool is_close_in_int8(const product *p, size_t at, float back)
{
    if (is_outlier(p, at % p->s.k))
        return back == stored(AIMO_F16, p->w[at]);
    const float *row = p->w + at / p->s.k * p->s.k;
    float largest = 0.0f;
    for (size_t k = 0; k < p->s.k; k++)
        if (!is_outlier(p, k))
            largest = fmaxf(largest, fabsf(row[k]));
    return fabsf(back - p->w[at]) <= largest / 127 * 0.5001f;
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
                same &= p.dtype == AIMO_INT8 ? is_close_in_int8(&p, j, back[j])
                                             : back[j] == stored(p.dtype, p.w[j]);
            free(back);
            product_free(&p);
            CHECK(same);
        }
    }
}

/* But for the scalar row, whose last multiplications and additions are not fused. */
TEST(gemm_int8_gives_the_same_bits_on_every_vector_row)
{
    uint64_t random = 17;
    for (size_t i = 0; i < SHAPES; i++) {
        product p;
        CHECK(product_new(&p, shapes[i], AIMO_INT8, &random));
        const size_t count = p.s.m * p.s.n;
        float *expected = malloc(count * sizeof *expected);
        p.matrix.kernels = aimo_gemm_row(1);
        if ((p.matrix.kernels->required & ~aimo_cpu_available()) != 0)
            p.matrix.kernels = aimo_gemm_row(0);
        run(&p, AIMO_ACT_NONE);
        memcpy(expected, p.y, count * sizeof *expected);
        for (size_t r = 1; aimo_gemm_row(r) != NULL; r++) {
            if ((aimo_gemm_row(r)->required & ~aimo_cpu_available()) != 0)
                continue;
            p.matrix.kernels = aimo_gemm_row(r);
            run(&p, AIMO_ACT_NONE);
            CHECK_MSG(memcmp(p.y, expected, count * sizeof *expected) == 0, "%s %zu x %zu x %zu",
                      aimo_gemm_row(r)->isa, p.s.m, p.s.n, p.s.k);
        }
        free(expected);
        product_free(&p);
    }
}

/* Zeros, numbers whose scale or inverse leaves the range of f32, and rows full of the largest
 * integers must not turn into NaN; subnormal numbers count as zero or as they are. */
TEST(gemm_survives_extreme_rows)
{
    static const float extremes[] = {0.0f, 1e-44f, 1e-30f, 1.0f, -1.0f, 1e30f, 1e37f};
    uint64_t random = 19;
    for (int dtype = 0; dtype < AIMO_DTYPE_COUNT; dtype++) {
        product p;
        CHECK(product_new(&p, (shape){7, 20, 2048}, (aimo_dtype)dtype, &random));
        for (size_t i = 0; i < p.s.n * p.s.k; i++)
            p.w[i] = i / p.s.k % 2 ? 1e-3f : -1e-3f;
        aimo_panels_pack(p.dtype, p.s.n, p.s.k, p.panels, p.w, 0, p.s.n);
        for (size_t i = 0; i < p.s.m * p.s.k; i++)
            p.x[i] = extremes[i / p.s.k];
        bool right = true;
        const char *wrong = "";
        for (size_t r = 0; right && aimo_gemm_row(r) != NULL; r++) {
            if ((aimo_gemm_row(r)->required & ~aimo_cpu_available()) != 0)
                continue;
            p.matrix.kernels = aimo_gemm_row(r);
            run(&p, AIMO_ACT_NONE);
            for (size_t i = 0; i < p.s.m; i++)
                for (size_t j = 0; j < p.s.n; j++) {
                    const double sum = (double)p.s.k * (double)extremes[i] * (j % 2 ? 1e-3 : -1e-3);
                    const double y = (double)p.y[i * p.s.n + j] - (double)p.bias[j];
                    right &= fabs(y - sum) <= 1e-2 * fabs(sum) + 1e-6;
                }
            wrong = aimo_gemm_row(r)->isa;
        }
        product_free(&p);
        CHECK_MSG(right, "%s %s", wrong, aimo_dtype_name((aimo_dtype)dtype));
    }
}

/* Weights as in a broken model: zeros, the largest and subnormal numbers of the type. */
TEST(gemm_survives_extreme_weights)
{
    static const float extremes[] = {0.0f, 1e-45f, -1e-39f, 6e-8f, 60000.0f, -60000.0f};
    enum { EXTREMES = sizeof extremes / sizeof extremes[0] };
    uint64_t random = 29;
    for (int dtype = 0; dtype < AIMO_DTYPE_COUNT; dtype++) {
        product p;
        CHECK(product_new(&p, (shape){3, EXTREMES, 70}, (aimo_dtype)dtype, &random));
        for (size_t i = 0; i < p.s.n * p.s.k; i++)
            p.w[i] = extremes[i / p.s.k];
        aimo_panels_pack(p.dtype, p.s.n, p.s.k, p.panels, p.w, 0, p.s.n);
        aimo_panels_unpack(p.dtype, p.s.n, p.s.k, p.panels, p.stored, 0, p.s.n);
        bool right = true;
        const char *wrong = "";
        for (size_t r = 0; right && aimo_gemm_row(r) != NULL; r++) {
            if ((aimo_gemm_row(r)->required & ~aimo_cpu_available()) != 0)
                continue;
            p.matrix.kernels = aimo_gemm_row(r);
            run(&p, AIMO_ACT_NONE);
            right = matches_exact_sums(&p, AIMO_ACT_NONE);
            wrong = aimo_gemm_row(r)->isa;
        }
        product_free(&p);
        CHECK_MSG(right, "%s %s", wrong, aimo_dtype_name((aimo_dtype)dtype));
    }
}

TEST(gemm_refuses_sizes_that_do_not_exist)
{
    size_t bytes;
    aimo_error err;
    CHECK(aimo_panels_size(AIMO_F16, 0, 4, &bytes, &err) == AIMO_ERR_ARGUMENT);
    CHECK(aimo_panels_size(AIMO_F16, 4, 0, &bytes, &err) == AIMO_ERR_ARGUMENT);
    CHECK(aimo_panels_size(AIMO_BF16, SIZE_MAX / 4, 64, &bytes, &err) == AIMO_ERR_ARGUMENT);
    CHECK(aimo_panels_size(AIMO_INT8, 16, AIMO_INT8_K_LIMIT + 1, &bytes, &err) ==
          AIMO_ERR_UNSUPPORTED);
    CHECK(aimo_panels_size(AIMO_BF16, 17, 3, &bytes, &err) == AIMO_OK && bytes == 32 * 4 * 2);
}
