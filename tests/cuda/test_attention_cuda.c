/* backend cuda: attention against the CPU's scalar row, of texts together and alone. */
#include "backend_fixture.h"
#include "cuda_fixture.h"

#include <stdlib.h>
#include <string.h>

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
