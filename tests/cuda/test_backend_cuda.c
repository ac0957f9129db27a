/* backend cuda: embedding, pooling and downloads against the CPU's scalar row, and chunks' sizes.
 * test_linear_cuda.c and test_attention_cuda.c have the other operations. */
#include "backend_fixture.h"
#include "cuda_fixture.h"

#include <stdlib.h>
#include <string.h>

static void table_rows(aimo_dtype dtype, const float *src, size_t rows, size_t n, char *dst)
{
    for (size_t r = 0; r < rows; r++) {
        char *row = dst + r * aimo_table_row_bytes(dtype, n);
        const float scale = 0.03125f;
        for (size_t i = 0; i < n; i++) {
            if (dtype == AIMO_INT8)
                row[i] = (char)(signed char)(src[r * n + i] * 20.0f);
            else
                store_as(dtype, row + i * aimo_dtype_size(dtype), src[r * n + i]);
        }
        if (dtype == AIMO_INT8)
            memcpy(row + n, &scale, sizeof scale);
    }
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
