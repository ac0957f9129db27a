/* CUDA graphs: small calls are replayed, and their vectors are bit-identical to those of calls
 * without graphs. */
#include "cuda_fixture.h"
#include "encoder_fixture.h"

#include "base/memory.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* The first call of a kind runs by itself, the second records, the third only replays. */
enum { CALLS = 3 };

static const aimo_encode_options plain = {0};

/* Sequences to encode, one after another. */
typedef struct {
    int32_t *ids;
    int64_t *offsets; /* [batch + 1] */
    size_t batch;
} texts;

static texts texts_new(size_t most)
{
    texts t = {malloc(most * sizeof(int32_t)), malloc((most + 1) * sizeof(int64_t)), 0};
    t.offsets[0] = 0;
    return t;
}

static void texts_free(texts *t)
{
    free(t->ids);
    free(t->offsets);
}

static void add_text(texts *t, size_t length, uint64_t *random)
{
    const int64_t begin = t->offsets[t->batch];
    for (size_t i = 0; i < length; i++)
        t->ids[begin + (int64_t)i] = (int32_t)(test_random(random) % small.vocabulary);
    t->offsets[++t->batch] = begin + (int64_t)length;
}

/* Texts of at most `longest` tokens, `tokens` in all. */
static void add_texts(texts *t, size_t tokens, size_t longest, uint64_t *random)
{
    while (tokens > 0) {
        const size_t length = 1 + test_random(random) % (tokens < longest ? tokens : longest);
        add_text(t, length, random);
        tokens -= length;
    }
}

/* out = the vectors of texts [first, first + count), by themselves. */
static aimo_status encode_some(const aimo_encoder *encoder, const texts *t, size_t first,
                               size_t count, const aimo_encode_options *options, float *out,
                               aimo_error *err)
{
    int64_t *offsets = malloc((count + 1) * sizeof *offsets);
    for (size_t i = 0; i <= count; i++)
        offsets[i] = t->offsets[first + i] - t->offsets[first];
    const aimo_status status =
        aimo_encoder_encode(encoder, t->ids + t->offsets[first], offsets, count, options, out, err);
    free(offsets);
    return status;
}

/* One layer is enough where only the execution of a call matters. */
static aimo_status new_small_encoder(aimo_encoder **out, aimo_error *err)
{
    aimo_encoder_config config = small;
    config.layers = 1;
    return new_encoder(&config, 0, out, err);
}

/* The number of graphs launched so far, where that can be queried. */
static size_t launches(void)
{
    const cuda_shim_controls *shim = shim_controls();
    return shim != NULL ? shim->graph_launches() : 0;
}

/* Whether the texts, encoded often, have the expected vectors each time, and whether the last call
 * was replayed as it should be. */
static bool encodes_alike(const aimo_encoder *encoder, const texts *t, size_t first, size_t count,
                          const float *expected, bool replayed)
{
    const size_t bytes = count * aimo_encoder_dimension(encoder) * sizeof(float);
    float *got = malloc(bytes);
    bool good = true;
    size_t before = 0;
    for (int call = 0; call < CALLS; call++) {
        aimo_error err = {""};
        memset(got, 0xff, bytes);
        before = launches();
        good &= encode_some(encoder, t, first, count, &plain, got, &err) == AIMO_OK &&
                memcmp(got, expected, bytes) == 0;
    }
    free(got);
    return good && (shim_controls() == NULL || launches() - before == (replayed ? 1 : 0));
}

/* Whether texts of so many tokens in all are replayed as they are encoded among all the others. */
static void check_sizes(const aimo_encoder_config *config, const size_t *sizes, size_t count,
                        size_t longest)
{
    enum { REPLAYED = 512 };
    uint64_t random = 31;
    texts t = texts_new(4096);
    aimo_encoder *encoder;
    aimo_error err;
    CHECK_MSG(new_encoder(config, 0, &encoder, &err) == AIMO_OK, "%s", err.message);
    for (size_t i = 0; i < count; i++)
        add_texts(&t, sizes[i], longest, &random);
    const size_t dimension = aimo_encoder_dimension(encoder);
    float *expected = malloc(t.batch * dimension * sizeof *expected);
    bool good = encode_some(encoder, &t, 0, t.batch, &plain, expected, &err) == AIMO_OK;
    size_t first = 0, tokens = 0;
    for (size_t i = 0; i < count && good; i++) {
        size_t end = first;
        tokens += sizes[i];
        while (t.offsets[end] < (int64_t)tokens)
            end++;
        good = encodes_alike(encoder, &t, first, end - first, expected + first * dimension,
                             sizes[i] <= REPLAYED);
        if (!good)
            printf("    %zu tokens\n", sizes[i]);
        first = end;
    }
    aimo_encoder_free(encoder);
    free(expected);
    texts_free(&t);
    CHECK(good);
}

/* Around what chunks are rounded up to, and beyond. */
TEST(cuda_graphs_give_the_vectors_of_large_batches)
{
    static const size_t sizes[] = {1, 15, 16, 17, 32, 33, 64, 65, 128, 129, 256, 257, 512, 513};
    aimo_encoder_config config = small;
    if (!cuda_is_here())
        return;
    config.layers = 1;
    check_sizes(&config, sizes, sizeof sizes / sizeof sizes[0], config.positions);
}

TEST(cuda_graphs_give_the_vectors_of_many_short_texts)
{
    static const size_t sizes[] = {1, 7, 8, 9, 64, 65, 512, 513};
    aimo_encoder_config config = with_head();
    if (!cuda_is_here())
        return;
    config.layers = config.heads = 1;
    check_sizes(&config, sizes, sizeof sizes / sizeof sizes[0], 1);
}

TEST(cuda_graphs_serve_every_kind_of_call)
{
    static const aimo_encode_options kinds[] = {{0},
                                                {.normalize = true},
                                                {.columns = 5},
                                                {.columns = 5, .normalize = true},
                                                {.skip = 2},
                                                {.skip = 1, .columns = 7},
                                                {.skip = 90, .normalize = true}};
    enum { KINDS = sizeof kinds / sizeof kinds[0], TEXTS = 4 };
    uint64_t random = 37;
    if (!cuda_is_here())
        return;
    for (size_t dense = 0; dense <= 2; dense++) {
        aimo_encoder_config config = with_head();
        config.layers = 1;
        config.dense_count = dense;
        float expected[KINDS][TEXTS * MOST_DIMENSION], tokens[30 * 48];
        float got[TEXTS * MOST_DIMENSION], got_tokens[30 * 48];
        texts t = texts_new(30);
        for (size_t i = 0; i < TEXTS; i++)
            add_text(&t, 1 + 4 * i, &random);
        const size_t token_bytes = (size_t)t.offsets[TEXTS] * config.hidden * sizeof(float);
        aimo_encoder *encoder;
        aimo_error err;
        CHECK_MSG(new_encoder(&config, 0, &encoder, &err) == AIMO_OK, "%s", err.message);
        const size_t dimension = aimo_encoder_dimension(encoder), before = launches();
        bool good = true;
        for (int call = 0; call < CALLS; call++) {
            for (size_t k = 0; k < KINDS; k++) {
                const size_t columns = kinds[k].columns != 0 ? kinds[k].columns : dimension;
                float *out = call == 0 ? expected[k] : got;
                good &= encode_some(encoder, &t, 0, TEXTS, &kinds[k], out, &err) == AIMO_OK;
                good &= memcmp(out, expected[k], TEXTS * columns * sizeof *out) == 0;
            }
            float *out = call == 0 ? tokens : got_tokens;
            good &=
                aimo_encoder_encode_tokens(encoder, t.ids, t.offsets, TEXTS, out, &err) == AIMO_OK;
            good &= memcmp(out, tokens, token_bytes) == 0;
        }
        aimo_encoder_free(encoder);
        texts_free(&t);
        CHECK_MSG(good, "%zu dense layers", dense);
        CHECK(shim_controls() == NULL || launches() - before == (CALLS - 1) * (KINDS + 1));
    }
}

TEST(cuda_graphs_are_few_and_go_with_the_encoder)
{
    enum { KINDS = 40, ROUNDS = 3 }; /* more than a workspace keeps */
    uint64_t random = 41;
    float expected[KINDS][48], got[48];
    aimo_encoder *encoder;
    aimo_error err;
    if (!cuda_is_here())
        return;
    const cuda_shim_controls *shim = shim_controls();
    const size_t held = shim != NULL ? shim->held() : 0;
    texts t = texts_new(9);
    add_text(&t, 9, &random);
    CHECK_MSG(new_small_encoder(&encoder, &err) == AIMO_OK, "%s", err.message);
    bool good = true;
    const size_t before = launches();
    for (int round = 0; round < ROUNDS; round++)
        for (size_t k = 0; k < KINDS; k++) {
            const aimo_encode_options options = {.columns = 1 + k};
            float *out = round == 0 ? expected[k] : got;
            good &= encode_some(encoder, &t, 0, 1, &options, out, &err) == AIMO_OK;
            good &= memcmp(out, expected[k], (1 + k) * sizeof *out) == 0;
        }
    const size_t of_rare_kinds = launches() - before;
    for (int call = 0; call < CALLS * KINDS; call++) { /* one of four kinds, which stay */
        const size_t k = (size_t)call % 4;
        const aimo_encode_options options = {.columns = 1 + k};
        good &= encode_some(encoder, &t, 0, 1, &options, got, &err) == AIMO_OK;
        good &= memcmp(got, expected[k], (1 + k) * sizeof *got) == 0;
    }
    const size_t of_four = launches() - before - of_rare_kinds;
    aimo_encoder_free(encoder);
    texts_free(&t);
    CHECK(good);
    CHECK(shim == NULL || (of_rare_kinds == 0 && of_four == CALLS * KINDS - 4));
    CHECK(shim == NULL || shim->held() == held);
}

TEST(cuda_graphs_do_not_outlive_the_memory_that_they_work_in)
{
    uint64_t random = 43;
    aimo_encoder *encoder;
    aimo_error err;
    if (!cuda_is_here())
        return;
    texts t = texts_new(4096);
    add_text(&t, 11, &random);
    add_texts(&t, 3000, small.positions, &random);
    float *all = malloc(t.batch * small.hidden * sizeof *all), one[48];
    CHECK_MSG(new_small_encoder(&encoder, &err) == AIMO_OK, "%s", err.message);
    bool good = encode_some(encoder, &t, 0, 1, &plain, one, &err) == AIMO_OK;
    good &= encodes_alike(encoder, &t, 0, 1, one, true);
    /* Workspaces are replaced by larger ones, all of the old memory being overwritten. */
    good &= encode_some(encoder, &t, 0, t.batch, &plain, all, &err) == AIMO_OK;
    good &= memcmp(all, one, sizeof one) == 0;
    good &= encodes_alike(encoder, &t, 0, 1, one, true);
    aimo_encoder_free(encoder);
    free(all);
    texts_free(&t);
    CHECK(good);
}

TEST(cuda_graph_that_cannot_be_had_is_no_error)
{
    uint64_t random = 47;
    float expected[48], got[48];
    aimo_encoder *encoder;
    aimo_error err = {""};
    if (!cuda_is_here())
        return;
    const cuda_shim_controls *shim = shim_controls();
    if (shim == NULL) {
        test_skip("faults need the shim");
        return;
    }
    texts t = texts_new(9);
    add_text(&t, 9, &random);
    CHECK_MSG(new_small_encoder(&encoder, &err) == AIMO_OK, "%s", err.message);
    bool good = encode_some(encoder, &t, 0, 1, &plain, expected, &err) == AIMO_OK;
    const size_t before = launches();
    shim->fail_allocations_after(0);
    good &= encode_some(encoder, &t, 0, 1, &plain, got, &err) == AIMO_OK;
    good &= memcmp(got, expected, sizeof got) == 0;
    shim->fail_allocations_after(-1); /* and it is not tried again */
    good &= encode_some(encoder, &t, 0, 1, &plain, got, &err) == AIMO_OK;
    good &= memcmp(got, expected, sizeof got) == 0;
    aimo_encoder_free(encoder);
    texts_free(&t);
    CHECK_MSG(good, "%s", err.message);
    CHECK(launches() == before);
}

typedef struct {
    const aimo_encoder *encoder;
    const texts *t;
    const float *expected;
    size_t text;
    bool same;
} caller;

static void *encode_one_often(void *context)
{
    caller *c = context;
    float got[48];
    c->same = true;
    for (size_t i = 0; i < 12; i++) {
        const size_t text = (c->text + i) % c->t->batch;
        c->same &= encode_some(c->encoder, c->t, text, 1, &plain, got, NULL) == AIMO_OK;
        c->same &= memcmp(got, c->expected + text * small.hidden, sizeof got) == 0;
    }
    return NULL;
}

TEST(cuda_graphs_of_several_threads_do_not_meet)
{
    enum { THREADS = 4, TEXTS = 3 };
    uint64_t random = 53;
    float expected[TEXTS * 48];
    aimo_encoder *encoder;
    aimo_error err;
    if (!cuda_is_here())
        return;
    texts t = texts_new(64);
    for (size_t i = 0; i < TEXTS; i++)
        add_text(&t, 3 + 12 * i, &random);
    CHECK_MSG(new_small_encoder(&encoder, &err) == AIMO_OK, "%s", err.message);
    bool same = encode_some(encoder, &t, 0, TEXTS, &plain, expected, &err) == AIMO_OK;
    pthread_t threads[THREADS];
    caller callers[THREADS];
    for (size_t i = 0; i < THREADS; i++) {
        callers[i] = (caller){encoder, &t, expected, i, false};
        pthread_create(&threads[i], NULL, encode_one_often, &callers[i]);
    }
    for (size_t i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        same &= callers[i].same;
    }
    aimo_encoder_free(encoder);
    texts_free(&t);
    CHECK(same);
}
