/* cache: rows that come and go, failures, snapshots, calls of many queries. test_cache_exact.c and
 * test_cache_concurrency.c have the rest. */
#include "cache_fixture.h"
#include "test.h"

#include "base/memory.h"
#include "base/threads.h"

#include <string.h>

TEST(cache_random_changes_agree_with_a_model)
{
    static model m;
    memset(&m, 0, sizeof m);
    m.dim = 64;
    uint64_t random = 5;
    aimo_cache *cache;
    CHECK(aimo_cache_new(&cache, m.dim, AIMO_ROWS_F16, NULL) == AIMO_OK);
    size_t live = 0;
    for (size_t step = 0; step < test_rounds(9000); step++) {
        float x[MAX_DIM];
        lifelike(x, m.dim, test_random(&random) % 20, &random);
        const uint64_t dice = test_random(&random) % 10;
        if (dice < 6 && m.count < MAX_ROWS) {
            /* context 0 grows large, the others stay small and vanish */
            CHECK(model_add(&m, cache, x,
                            dice < 4 ? 0 : (int64_t)(test_random(&random) % 200) - 100));
            live++;
        } else if (m.count != 0) {
            model_row *r = &m.rows[test_random(&random) % m.count];
            if (r->slot >= 0) {
                CHECK(aimo_cache_remove(cache, r->slot, NULL) == AIMO_OK);
                CHECK(aimo_cache_remove(cache, r->slot, NULL) == AIMO_ERR_ARGUMENT);
                r->slot = -1;
                live--;
            }
        }
        CHECK(aimo_cache_count(cache) == live);
        if (step % 40 == 0)
            CHECK(agrees(&m, cache, x, (int64_t)(test_random(&random) % 3), 0.6, 5));
        if (step % 2000 == 1500)
            CHECK(aimo_cache_optimize(cache, NULL) == AIMO_OK);
    }
    for (size_t i = 0; i < m.count; i++)
        if (m.rows[i].slot >= 0)
            CHECK(aimo_cache_remove(cache, m.rows[i].slot, NULL) == AIMO_OK);
    CHECK(aimo_cache_count(cache) == 0);
    aimo_cache_free(cache);
}

/* Eviction in steady state: a million rounds leave nothing behind. */
TEST(cache_memory_stays_flat_over_a_million_replacements)
{
    enum { DIM = 16, LIVE = 500 };
    aimo_cache *cache;
    CHECK(aimo_cache_new(&cache, DIM, AIMO_ROWS_INT8, NULL) == AIMO_OK);
    int64_t slots[LIVE];
    uint64_t random = 6;
    size_t settled = 0;
    for (size_t i = 0; i < test_rounds(1000000); i++) {
        float x[DIM];
        const int64_t context = i % 1000 == 0 ? i : i % 3;
        for (size_t j = 0; j < DIM; j++)
            x[j] = test_random_float(&random);
        if (i >= LIVE)
            CHECK(aimo_cache_remove(cache, slots[i % LIVE], NULL) == AIMO_OK);
        CHECK(aimo_cache_add(cache, x, &context, 1, &slots[i % LIVE], NULL) == AIMO_OK);
        if (i == 20000)
            settled = aimo_cache_bytes(cache);
    }
    CHECK_MSG(aimo_cache_bytes(cache) < settled * 3 / 2, "%zu bytes became %zu", settled,
              aimo_cache_bytes(cache));
    aimo_cache_free(cache);
}

TEST(cache_bad_arguments_change_nothing)
{
    aimo_cache *cache;
    aimo_error err;
    CHECK(aimo_cache_new(&cache, 0, AIMO_ROWS_F16, &err) == AIMO_ERR_ARGUMENT && cache == NULL);
    CHECK(aimo_cache_new(&cache, AIMO_CACHE_MAX_DIM + 1, AIMO_ROWS_F16, &err) == AIMO_ERR_ARGUMENT);
    CHECK(aimo_cache_new(&cache, 4, AIMO_ROWS_F16, &err) == AIMO_OK);
    const float good[8] = {1, 0, 0, 0, 0, 1, 0, 0}, zero[8] = {1}, infinite[4] = {INFINITY},
                nan[4] = {0, NAN};
    const int64_t contexts[2] = {0, 0};
    int64_t slots[2];
    double scores[2];
    CHECK(aimo_cache_add(cache, zero, contexts, 2, slots, &err) == AIMO_ERR_ARGUMENT);
    CHECK(aimo_cache_add(cache, infinite, contexts, 1, slots, &err) == AIMO_ERR_ARGUMENT);
    CHECK(aimo_cache_add(cache, nan, contexts, 1, slots, &err) == AIMO_ERR_ARGUMENT);
    CHECK(aimo_cache_count(cache) == 0);
    CHECK(aimo_cache_add(cache, good, contexts, 2, slots, &err) == AIMO_OK);
    CHECK(aimo_cache_search(cache, nan, contexts, 1, 0.5, 1, slots, scores, &err) ==
          AIMO_ERR_ARGUMENT);
    CHECK(aimo_cache_search(cache, good, contexts, 1, 1.5, 1, slots, scores, &err) ==
          AIMO_ERR_ARGUMENT);
    CHECK(aimo_cache_search(cache, good, contexts, 1, NAN, 1, slots, scores, &err) ==
          AIMO_ERR_ARGUMENT);
    CHECK(aimo_cache_search(cache, good, contexts, 1, 0.5, 0, slots, scores, &err) ==
          AIMO_ERR_ARGUMENT);
    CHECK(aimo_cache_remove(cache, 2, &err) == AIMO_ERR_ARGUMENT);
    CHECK(aimo_cache_remove(cache, -1, &err) == AIMO_ERR_ARGUMENT);
    CHECK(aimo_cache_search(cache, good, contexts, 2, 1.0, 1, slots, scores, &err) == AIMO_OK);
    CHECK(slots[0] == 0 && slots[1] == 1 && scores[0] == 1.0);
    aimo_cache_free(cache);
}

TEST(cache_survives_every_allocation_failure)
{
    enum { DIM = 64, ROWS = 700 };
    static float x[ROWS * DIM];
    static int64_t contexts[ROWS], slots[ROWS];
    uint64_t random = 7;
    for (size_t i = 0; i < ROWS; i++) {
        lifelike(x + i * DIM, DIM, i % 10, &random);
        contexts[i] = (int64_t)(i % 5 == 0 ? i : 1);
    }
    bool complete = false;
    for (long failing = 0; !complete; failing += failing < 40 ? 1 : 23) {
        aimo_cache *cache;
        aimo_memory_fail_after(failing);
        complete = aimo_cache_new(&cache, DIM, AIMO_ROWS_F16, NULL) == AIMO_OK;
        const bool exists = complete;
        complete = complete && aimo_cache_add(cache, x, contexts, ROWS, slots, NULL) == AIMO_OK;
        if (exists && !complete)
            CHECK(aimo_cache_count(cache) == 0);
        complete = complete && aimo_cache_optimize(cache, NULL) == AIMO_OK;
        for (size_t i = 0; exists && i < ROWS && aimo_cache_count(cache) == ROWS - i; i++)
            CHECK(aimo_cache_remove(cache, slots[i], NULL) == AIMO_OK);
        aimo_memory_fail_after(-1);
        if (exists) {
            CHECK(aimo_cache_count(cache) == 0);
            CHECK(aimo_cache_add(cache, x, contexts, 1, slots, NULL) == AIMO_OK);
            aimo_cache_free(cache);
        }
    }
}

/* An optimization that runs out of memory leaves chunks coded with two different sets of
 * directions. */
TEST(cache_chunks_of_different_directions_are_searched_together)
{
    enum { DIM = 64, ROWS = 5000, QUERIES = 12 };
    static model m;
    bool complete = false;
    for (long failing = 4; !complete; failing += 2) {
        uint64_t random = 11;
        aimo_cache *cache;
        m = (model){.dim = DIM, .type = AIMO_ROWS_F16};
        CHECK(aimo_cache_new(&cache, DIM, AIMO_ROWS_F16, NULL) == AIMO_OK);
        for (size_t i = 0; i < ROWS; i++) {
            float x[DIM];
            lifelike(x, DIM, i < ROWS / 2 ? i % 10 : 30 + i % 10, &random);
            CHECK(model_add(&m, cache, x, 1));
            if (i == ROWS / 2)
                CHECK(aimo_cache_optimize(cache, NULL) == AIMO_OK);
        }
        aimo_memory_fail_after(failing);
        complete = aimo_cache_optimize(cache, NULL) == AIMO_OK;
        aimo_memory_fail_after(-1);
        for (size_t i = 0; i < QUERIES; i++) {
            float q[DIM];
            lifelike(q, DIM, i < QUERIES / 2 ? i % 10 : 30 + i % 10, &random);
            CHECK(agrees(&m, cache, q, 1, 0.3, 12));
            CHECK(agrees(&m, cache, q, 1, 0.8, 1));
        }
        aimo_cache_free(cache);
    }
}

/* Bytes of a cache whose only row was restored into the last of `count` slots; 0 on failure. */
static size_t bytes_with_slots(int64_t count)
{
    const uint16_t row[2] = {0x3c00, 0x3c00}; /* (1, 1) */
    const int64_t slot = count - 1, context = 0;
    aimo_cache *cache;
    if (aimo_cache_new(&cache, 2, AIMO_ROWS_F16, NULL) != AIMO_OK)
        return 0;
    const bool restored = aimo_cache_restore(cache, row, &slot, &context, 1, NULL) == AIMO_OK;
    const size_t bytes = restored ? aimo_cache_bytes(cache) : 0;
    aimo_cache_free(cache);
    return bytes;
}

TEST(cache_restore_keeps_no_directory_that_was_outgrown)
{
    const size_t once = bytes_with_slots(1 << 20), twice = bytes_with_slots(1 << 21);
    CHECK(once != 0 && twice > once);
    CHECK(twice - once < once + (1 << 20)); /* in proportion to the slots */
}

TEST(cache_restore_is_the_inverse_of_snapshot)
{
    for (int type = AIMO_ROWS_F16; type <= AIMO_ROWS_INT8; type++) {
        enum { DIM = 24, ROWS = 1500 };
        aimo_cache *cache, *copy;
        uint64_t random = 8;
        static int64_t slots[ROWS], contexts[ROWS], restored_slots[ROWS], restored_contexts[ROWS];
        static char rows[ROWS * DIM * 2], restored[ROWS * DIM * 2];
        CHECK(aimo_cache_new(&cache, DIM, (aimo_row_type)type, NULL) == AIMO_OK);
        CHECK(aimo_cache_new(&copy, DIM, (aimo_row_type)type, NULL) == AIMO_OK);
        for (size_t i = 0; i < ROWS; i++) {
            float x[DIM];
            const int64_t context = (int64_t)(i % 4);
            lifelike(x, DIM, i % 10, &random);
            CHECK(aimo_cache_add(cache, x, &context, 1, &slots[i], NULL) == AIMO_OK);
            if (i % 3 == 0)
                CHECK(aimo_cache_remove(cache, slots[i], NULL) == AIMO_OK);
        }
        aimo_cache_snapshot *snapshot;
        CHECK(aimo_cache_snapshot_open(cache, &snapshot, NULL) == AIMO_OK);
        const size_t count = aimo_cache_snapshot_count(snapshot);
        CHECK(count == ROWS - ROWS / 3);
        aimo_cache_snapshot_read(snapshot, rows, slots, contexts);
        aimo_cache_snapshot_close(snapshot);
        CHECK(aimo_cache_restore(copy, rows, slots, contexts, count, NULL) == AIMO_OK);
        CHECK(aimo_cache_restore(copy, rows, slots, contexts, count, NULL) == AIMO_ERR_ARGUMENT);
        CHECK(aimo_cache_snapshot_open(copy, &snapshot, NULL) == AIMO_OK);
        CHECK(aimo_cache_snapshot_count(snapshot) == count);
        aimo_cache_snapshot_read(snapshot, restored, restored_slots, restored_contexts);
        aimo_cache_snapshot_close(snapshot);
        CHECK(memcmp(rows, restored, count * DIM * (type == AIMO_ROWS_F16 ? 2 : 1)) == 0);
        CHECK(memcmp(slots, restored_slots, count * sizeof *slots) == 0);
        CHECK(memcmp(contexts, restored_contexts, count * sizeof *contexts) == 0);
        aimo_cache_free(copy);
        CHECK(aimo_cache_new(&copy, DIM, (aimo_row_type)type, NULL) == AIMO_OK);
        slots[1] = slots[0];
        CHECK(aimo_cache_restore(copy, rows, slots, contexts, count, NULL) == AIMO_ERR_ARGUMENT);
        memset(rows, 0, DIM * 2);
        slots[1] = slots[2];
        CHECK(aimo_cache_restore(copy, rows, slots, contexts, 1, NULL) == AIMO_ERR_ARGUMENT);
        CHECK(aimo_cache_count(copy) == 0);
        aimo_cache_free(copy);
        aimo_cache_free(cache);
    }
}

TEST(cache_many_queries_give_the_answers_of_one)
{
    enum { DIM = 64, ROWS = 5000, N = 150, K = 3 };
    static float x[ROWS * DIM], q[N * DIM];
    static int64_t contexts[ROWS], slots[ROWS], found[N * K], single[K];
    static double scores[N * K], single_scores[K];
    uint64_t random = 10;
    for (size_t i = 0; i < ROWS; i++) {
        lifelike(x + i * DIM, DIM, i % 40, &random);
        contexts[i] = (int64_t)(i % 17 % 3);
    }
    for (size_t i = 0; i < N; i++)
        lifelike(q + i * DIM, DIM, i % 50, &random);
    aimo_cache *cache;
    CHECK(aimo_cache_new(&cache, DIM, AIMO_ROWS_F16, NULL) == AIMO_OK);
    CHECK(aimo_cache_add(cache, x, contexts, ROWS, slots, NULL) == AIMO_OK);
    CHECK(aimo_cache_optimize(cache, NULL) == AIMO_OK);
    for (size_t threads = 1; threads <= 3; threads++) {
        CHECK(aimo_thread_count_set(threads, NULL) == AIMO_OK);
        CHECK(aimo_cache_search(cache, q, contexts, N, 0.8, K, found, scores, NULL) == AIMO_OK);
        for (size_t i = 0; i < N; i++) {
            CHECK(aimo_cache_search(cache, q + i * DIM, contexts + i, 1, 0.8, K, single,
                                    single_scores, NULL) == AIMO_OK);
            CHECK(memcmp(single, found + i * K, sizeof single) == 0);
            CHECK(memcmp(single_scores, scores + i * K, sizeof single_scores) == 0);
        }
    }
    CHECK(aimo_thread_count_set(0, NULL) == AIMO_OK);
    aimo_cache_free(cache);
}
