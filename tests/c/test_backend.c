/* backend: the operations other than matrix products, each row of kernels against its definition in
 * double. */
#include "test.h"

#include "backend/backend.h"
#include "backend/cpu/cpu_kernels.h"
#include "half/half_scalar.h"

#include <stdlib.h>
#include <string.h>

static bool row_runs(const aimo_cpu_kernels *row)
{
    if ((row->required & ~aimo_cpu_available()) == 0)
        return true;
    test_skip(row->isa);
    return false;
}

static void fill(float *x, size_t n, uint64_t *random)
{
    for (size_t i = 0; i < n; i++)
        x[i] = test_random_normal(random);
}

/* rounding: sums of n terms in f32, and a division. */
static bool close_to(float got, double expected, size_t n)
{
    return fabs((double)got - expected) <= (double)(n + 16) * 0x1p-23 * (1.0 + fabs(expected));
}

static double layer_norm_exactly(const double *x, size_t n, size_t i, const aimo_layer_norm *norm)
{
    double mean = 0.0, variance = 0.0;
    for (size_t j = 0; j < n; j++)
        mean += x[j] / (double)n;
    for (size_t j = 0; j < n; j++)
        variance += (x[j] - mean) * (x[j] - mean) / (double)n;
    return (x[i] - mean) / sqrt(variance + (double)norm->epsilon) * (double)norm->weight[i] +
           (double)norm->bias[i];
}

TEST(backend_residual_layer_norm_matches_its_definition)
{
    enum { MOST = 130, ROWS = 3 };
    uint64_t random = 3;
    for (size_t r = 0; aimo_cpu_kernels_row(r) != NULL; r++) {
        const aimo_cpu_kernels *row = aimo_cpu_kernels_row(r);
        if (!row_runs(row))
            continue;
        for (size_t n = 1; n <= MOST; n += n < 40 ? 1 : 9) {
            float x[ROWS * MOST], residual[ROWS * MOST + 1], weight[MOST], bias[MOST];
            double sums[ROWS * MOST];
            fill(x, ROWS * n, &random);
            fill(residual, ROWS * n, &random);
            fill(weight, n, &random);
            fill(bias, n, &random);
            residual[ROWS * n] = 12345.0f; /* canary */
            for (size_t i = 0; i < ROWS * n; i++)
                sums[i] = (double)x[i] + (double)residual[i];
            const aimo_layer_norm norm = {weight, bias, 1e-5f};
            row->residual_layer_norm(x, residual, &norm, residual, ROWS, n); /* in place */
            CHECK(residual[ROWS * n] == 12345.0f);
            for (size_t i = 0; i < ROWS * n; i++) {
                const double expected = layer_norm_exactly(sums + i / n * n, n, i % n, &norm);
                CHECK_MSG(fabs((double)residual[i] - expected) <= 2e-5 * (1.0 + fabs(expected)),
                          "%s n %zu element %zu: %g, not %g", row->isa, n, i, (double)residual[i],
                          expected);
            }
        }
    }
}

/* x rounded as for tiles, or unchanged. */
static double factor(float x, bool rounded)
{
    return (double)(rounded ? aimo_bf16_to_f32_one(aimo_f32_to_bf16_one(x)) : x);
}

/* One element of the result; *size is what it would be if all values were positive. */
static double attention_exactly(const aimo_attention_args *a, bool rounded, size_t begin,
                                size_t length, size_t query, size_t column, double *size)
{
    const size_t hidden = a->heads * a->head_dim, head = column / a->head_dim * a->head_dim;
    const float *q = a->qkv + (begin + query) * 3 * hidden + head;
    const float scale = 1.0f / sqrtf((float)a->head_dim);
    double sum = 0.0, total = 0.0;
    *size = 0.0;
    for (size_t key = 0; key < length; key++) {
        const float *row = a->qkv + (begin + key) * 3 * hidden;
        double score = 0.0;
        for (size_t d = 0; d < a->head_dim; d++)
            score += factor(q[d] * scale, rounded) * factor(row[hidden + head + d], rounded);
        const double e = exp(score), value = factor(row[2 * hidden + column], rounded);
        total += e;
        sum += e * value;
        *size += e * fabs(value);
    }
    *size /= total;
    return sum / total;
}

/* Rows that round the factors of attention, as products with such weights do. */
static bool rounds_to_bf16(const aimo_cpu_kernels *row, const aimo_attention_args *args)
{
    return strcmp(row->isa, "amx") == 0 && args->dtype != AIMO_F32 && args->head_dim <= 128;
}

static bool rounds_to_integers(const aimo_cpu_kernels *row, const aimo_attention_args *args)
{
    return strcmp(row->isa, "avx512_vnni") == 0 && args->dtype == AIMO_INT8 &&
           args->head_dim <= 128;
}

/* rounding: of the sums in f32; of each probability to bf16, after a coarse exponential; of values,
 * which are normal and below 5, to 127 steps of the largest, and of probabilities to 255. */
static bool attends_exactly(const aimo_cpu_kernels *row, const aimo_attention_args *args)
{
    const size_t *offsets = args->offsets, hidden = args->heads * args->head_dim;
    const bool bf16 = rounds_to_bf16(row, args), integers = rounds_to_integers(row, args);
    for (size_t i = 0; i < 2 * args->heads; i++)
        row->attention(args, i / args->heads, i % args->heads);
    for (size_t t = 0; t < offsets[2]; t++) {
        const size_t s = t >= offsets[1];
        for (size_t i = 0; i < hidden; i++) {
            double size;
            const double expected = attention_exactly(
                args, bf16, offsets[s], offsets[s + 1] - offsets[s], t - offsets[s], i, &size);
            const double bound =
                2e-5 + (bf16 ? (0x1p-8 + 2.2e-4) * size : 0.0) + (integers ? 5.0 / 254 : 0.0);
            if (!(fabs((double)args->out[t * hidden + i] - expected) <= bound))
                return false;
        }
    }
    return true;
}

TEST(backend_attention_matches_its_definition)
{
    static const struct {
        size_t heads, head_dim, lengths[2];
    } cases[] = {{1, 1, {1, 2}},    {3, 4, {5, 16}},     {2, 32, {17, 130}}, {1, 36, {15, 33}},
                 {1, 150, {2, 20}}, {2, 64, {128, 129}}, {5, 16, {257, 1}}};
    enum { CASES = sizeof cases / sizeof cases[0] };
    static const aimo_dtype dtypes[] = {AIMO_F32, AIMO_BF16, AIMO_INT8};
    uint64_t random = 5;
    for (size_t r = 0; aimo_cpu_kernels_row(r) != NULL; r++) {
        const aimo_cpu_kernels *row = aimo_cpu_kernels_row(r);
        if (!row_runs(row))
            continue;
        for (size_t c = 0; c < 3 * CASES; c++) {
            const size_t heads = cases[c / 3].heads, head_dim = cases[c / 3].head_dim;
            const size_t *lengths = cases[c / 3].lengths, hidden = heads * head_dim;
            const size_t offsets[] = {0, lengths[0], lengths[0] + lengths[1]};
            const size_t tokens = offsets[2], padding = 64;
            float *qkv = malloc((tokens * 3 * hidden + padding) * sizeof *qkv);
            float *out = malloc((tokens * hidden + 1) * sizeof *out);
            fill(qkv, tokens * 3 * hidden, &random);
            for (size_t i = 0; i < padding; i++)
                qkv[tokens * 3 * hidden + i] = NAN;
            out[tokens * hidden] = 12345.0f;
            const aimo_attention_args args = {qkv, offsets, 2, heads, head_dim, out, dtypes[c % 3]};
            const bool right = attends_exactly(row, &args) && out[tokens * hidden] == 12345.0f;
            free(qkv);
            free(out);
            CHECK_MSG(right, "%s %zu heads of %zu, %s", row->isa, heads, head_dim,
                      aimo_dtype_name(args.dtype));
        }
    }
}

/* Over the tokens [skip, length). */
static double pool_exactly(const float *x, size_t skip, size_t length, size_t n, size_t i,
                           aimo_pooling pooling)
{
    double sum = 0.0, weights = 0.0, most = -INFINITY;
    for (size_t t = skip; t < length; t++) {
        const double weight = pooling == AIMO_POOL_WEIGHTED_MEAN ? (double)(t + 1) : 1.0;
        sum += weight * (double)x[t * n + i];
        weights += weight;
        most = fmax(most, (double)x[t * n + i]);
    }
    switch (pooling) {
    case AIMO_POOL_CLS:
        return (double)x[skip * n + i];
    case AIMO_POOL_LAST_TOKEN:
        return (double)x[(length - 1) * n + i];
    case AIMO_POOL_MAX:
        return most;
    case AIMO_POOL_MEAN_SQRT_LEN:
        return sum / sqrt((double)(length - skip));
    default:
        return sum / weights;
    }
}

enum { POOL_N = 37, POOL_TOKENS = 23, POOL_MOST = 2 * POOL_N };

/* Whether the row pools sequence s as defined, and writes nothing behind it. */
static bool pools_exactly(const aimo_cpu_kernels *row, const aimo_pool_args *args, size_t s)
{
    const size_t begin = args->offsets[s], length = args->offsets[s + 1] - begin;
    const size_t skip = args->skip < length ? args->skip : length - 1;
    float *out = args->out + s * args->columns;
    double expected[POOL_MOST], squares = 0.0;
    out[args->columns] = 12345.0f;
    row->pool(args, s);
    for (size_t i = 0; i < args->columns; i++) {
        expected[i] = pool_exactly(args->x + begin * POOL_N, skip, length, POOL_N, i % POOL_N,
                                   args->poolings[i / POOL_N]);
        squares += expected[i] * expected[i];
    }
    bool right = out[args->columns] == 12345.0f;
    for (size_t i = 0; i < args->columns; i++)
        right &= close_to(out[i], expected[i] / (args->normalize ? sqrt(squares) : 1.0), POOL_MOST);
    return right;
}

TEST(backend_pooling_matches_its_definition)
{
    static const size_t columns[] = {POOL_MOST, POOL_N, 5, POOL_N + 9}, skips[] = {0, 1, 6, 40};
    uint64_t random = 9;
    const size_t offsets[] = {0, 1, 9, POOL_TOKENS};
    float x[POOL_TOKENS * POOL_N], out[3 * POOL_MOST + 1];
    fill(x, POOL_TOKENS * POOL_N, &random);
    for (size_t r = 0; aimo_cpu_kernels_row(r) != NULL; r++) {
        const aimo_cpu_kernels *row = aimo_cpu_kernels_row(r);
        if (!row_runs(row))
            continue;
        for (int c = 0; c < AIMO_POOLING_COUNT * 2 * 16; c++) {
            const aimo_pooling first = (aimo_pooling)(c % AIMO_POOLING_COUNT);
            const aimo_pooling poolings[] = {
                first, (aimo_pooling)((first + 1 + c / 32) % AIMO_POOLING_COUNT)};
            const aimo_pool_args args = {
                .x = x,
                .offsets = offsets,
                .batch = 3,
                .hidden = POOL_N,
                .poolings = poolings,
                .skip = skips[c / 8 % 4],
                .columns = columns[c / 2 % 4],
                .normalize = c % 2 != 0,
                .out = out,
            };
            for (size_t s = 0; s < 3; s++)
                CHECK_MSG(pools_exactly(row, &args, s), "%s case %d sequence %zu", row->isa, c, s);
        }
    }
}

TEST(backend_pooling_of_zeros_stays_zero)
{
    const float x[20] = {0.0f};
    float out[20];
    const size_t offsets[] = {0, 1};
    const aimo_pooling mean = AIMO_POOL_MEAN;
    const aimo_pool_args args = {x, AIMO_ROWS_FULL, offsets, 1, 20, &mean, 0, 20, true, out};
    for (size_t r = 0; aimo_cpu_kernels_row(r) != NULL; r++) {
        if (!row_runs(aimo_cpu_kernels_row(r)))
            continue;
        aimo_cpu_kernels_row(r)->pool(&args, 0);
        for (size_t i = 0; i < 20; i++)
            CHECK(out[i] == 0.0f);
    }
}
