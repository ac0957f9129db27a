/* cache with a device: its answers are those of a cache without one, even when the device fails. */
#include "cuda_fixture.h"

#include "base/memory.h"
#include "cache/cache.h"
#include "cache/cache_device.h"
#include "cache/cache_internal.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { DIM = 24, MOST_ROWS = 6000, QUERIES = 32, K = 3 };

/* The same rows in a cache with a device and in one without. Slots may differ: what was retired is
 * used again at another time. */
typedef struct {
    aimo_cache *with, *without;
    size_t count;
    int64_t with_slot[MOST_ROWS], without_slot[MOST_ROWS]; /* -1: removed */
    float rows[MOST_ROWS][DIM];
    double score; /* the last that was found */
    uint64_t random;
} pair;

static pair p; /* too large for the stack */

/* Few directions matter, many vectors are near each other, and some are equal. */
static void make_vector(float *x, uint64_t *random)
{
    uint64_t centre = test_random(random) % 40 * 7919 + 1;
    const float spread = test_random(random) % 8 == 0 ? 0.0f : 0.3f;
    for (size_t i = 0; i < DIM; i++)
        x[i] = (test_random_normal(&centre) + spread * test_random_normal(random)) /
               (1.0f + 0.2f * (float)i);
}

static bool pair_init(aimo_row_type type)
{
    aimo_error err = {""};
    aimo_row_screen *screen;
    p.count = 0;
    p.random = 17 + (uint64_t)type;
    const bool made = aimo_cache_new(&p.with, DIM, type, &err) == AIMO_OK &&
                      aimo_cache_new(&p.without, DIM, type, &err) == AIMO_OK &&
                      aimo_row_screen_cuda_new(0, DIM, &screen, &err) == AIMO_OK;
    if (made)
        aimo_cache_use_device(p.with, screen);
    else
        test_fail(__FILE__, __LINE__, "%s", err.message);
    return made;
}

static void pair_clear(void)
{
    aimo_cache_free(p.with);
    aimo_cache_free(p.without);
}

static aimo_cache_device device_of(const aimo_cache *cache)
{
    aimo_cache_device device;
    aimo_cache_get_device((aimo_cache *)(uintptr_t)cache, &device);
    return device;
}

/* Every eighth row belongs to another context. */
static bool pair_add(size_t n)
{
    bool good = true;
    for (size_t i = 0; good && i < n && p.count < MOST_ROWS; i++) {
        const size_t row = p.count++;
        const int64_t context = row % 8 == 7;
        make_vector(p.rows[row], &p.random);
        good =
            aimo_cache_add(p.with, p.rows[row], &context, 1, &p.with_slot[row], NULL) == AIMO_OK &&
            aimo_cache_add(p.without, p.rows[row], &context, 1, &p.without_slot[row], NULL) ==
                AIMO_OK;
    }
    return good;
}

static bool pair_remove(size_t row)
{
    if (p.with_slot[row] < 0)
        return true;
    const bool good = aimo_cache_remove(p.with, p.with_slot[row], NULL) == AIMO_OK &&
                      aimo_cache_remove(p.without, p.without_slot[row], NULL) == AIMO_OK;
    p.with_slot[row] = p.without_slot[row] = -1;
    return good;
}

static bool pair_optimize(void)
{
    return aimo_cache_optimize(p.with, NULL) == AIMO_OK &&
           aimo_cache_optimize(p.without, NULL) == AIMO_OK;
}

/* The row that a slot holds. */
static size_t row_of(const int64_t *slots, int64_t slot)
{
    size_t row = 0;
    while (row < p.count && slots[row] != slot)
        row++;
    return row;
}

static bool same_hits(const int64_t *with, const int64_t *without, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if ((with[i] < 0) != (without[i] < 0) ||
            (with[i] >= 0 && row_of(p.with_slot, with[i]) != row_of(p.without_slot, without[i])))
            return false;
    return true;
}

static bool note_score(const int64_t *slots, const double *scores)
{
    for (size_t i = 0; i < QUERIES * K; i++)
        if (slots[i] >= 0)
            p.score = scores[i];
    return true;
}

/* Looks up stored and new vectors in both; scores must be equal bit for bit. */
static bool agrees(double threshold)
{
    float queries[QUERIES * DIM];
    int64_t contexts[QUERIES], with[QUERIES * K], without[QUERIES * K];
    double with_scores[QUERIES * K], without_scores[QUERIES * K];
    for (size_t i = 0; i < QUERIES; i++) {
        contexts[i] = i % 8 == 7;
        make_vector(queries + i * DIM, &p.random);
        if (i % 3 == 0)
            memcpy(queries + i * DIM, p.rows[test_random(&p.random) % p.count], sizeof p.rows[0]);
    }
    return aimo_cache_search(p.with, queries, contexts, QUERIES, threshold, K, with, with_scores,
                             NULL) == AIMO_OK &&
           aimo_cache_search(p.without, queries, contexts, QUERIES, threshold, K, without,
                             without_scores, NULL) == AIMO_OK &&
           same_hits(with, without, QUERIES * K) &&
           memcmp(with_scores, without_scores, sizeof with_scores) == 0 &&
           note_score(without, without_scores);
}

static void check_operations(aimo_row_type type)
{
    static const double thresholds[] = {0.95, 0.85, 0.99, 1.0, 0.5, -1.0};
    CHECK(pair_add(4700) && pair_optimize());
    CHECK(device_of(p.with).rows == 2 * CHUNK_ROWS && agrees(0.95));
    CHECK(device_of(p.with).searches == 1);
    for (size_t round = 0; round < test_rounds(7); round++) {
        CHECK(pair_add(60));
        for (size_t i = 0; i < (round % 4 == 2 ? 900u : 20u); i++)
            CHECK(pair_remove(test_random(&p.random) % p.count));
        if (round % 4 == 3)
            CHECK(pair_optimize());
        /* The second time a score itself, for the same vectors. */
        const double threshold = thresholds[round % 6];
        const uint64_t random = p.random;
        CHECK_MSG(agrees(threshold), "type %d, round %zu, threshold %g", (int)type, round,
                  threshold);
        p.random = random;
        CHECK_MSG(agrees(p.score), "type %d, round %zu, threshold %.17g", (int)type, round,
                  p.score);
    }
    const aimo_cache_device d = device_of(p.with);
    CHECK_MSG(d.failures == 0 && !d.lost && d.searches > test_rounds(7), "%zu searches, %s",
              d.searches, d.error.message);
}

TEST(cuda_cache_answers_are_those_of_a_cache_without_a_device)
{
    for (int type = AIMO_ROWS_F16; type <= AIMO_ROWS_INT8; type++) {
        if (!cuda_is_here() || !pair_init((aimo_row_type)type))
            return;
        check_operations((aimo_row_type)type);
        pair_clear();
    }
}

TEST(cuda_cache_with_more_candidates_than_a_device_lists_is_searched_by_the_cpu)
{
    if (!cuda_is_here() || !pair_init(AIMO_ROWS_F16))
        return;
    CHECK(pair_add(2500) && pair_optimize() && agrees(-1.0));
    const aimo_cache_device d = device_of(p.with);
    CHECK(d.rows == CHUNK_ROWS && d.searches == 0 && d.failures == 0);
    CHECK(!aimo_device_has_most(p.with, -1.0) && aimo_device_has_most(p.with, 0.9));
    CHECK(agrees(0.9) && device_of(p.with).searches == 1);
    CHECK(pair_optimize() && aimo_device_has_most(p.with, -1.0));
    pair_clear();
}

static chunk *first_chunk(const aimo_cache *cache) { return aimo_cache_find(cache, 0)->chunks[0]; }

TEST(cuda_cache_copies_are_not_for_searches_that_are_older)
{
    if (!cuda_is_here() || !pair_init(AIMO_ROWS_F16))
        return;
    CHECK(pair_add(2500) && pair_optimize());
    const float *queries[16];
    for (size_t i = 0; i < 16; i++)
        queries[i] = p.rows[i];
    const uint64_t since = atomic_load(aimo_chunk_copy(first_chunk(p.with)))->since;
    for (uint64_t version = since - 1; version <= since; version++) {
        device_pass pass;
        const aimo_screen_candidate *candidates;
        size_t count;
        /* Above every cosine, whatever the queries' norms. */
        aimo_device_pass_begin(&pass, p.with, aimo_cache_find(p.with, 0), version, queries, 16,
                               1e9);
        CHECK(aimo_device_pass_chunk(&pass, 0, &candidates, &count) == (version >= since));
        CHECK(version < since || count == 0);
        aimo_device_pass_end(&pass);
    }
    pair_clear();
}

TEST(cuda_cache_copies_are_freed_when_no_search_can_hold_them)
{
    const cuda_shim_controls *shim;
    if (!cuda_is_here() || (shim = shim_controls()) == NULL)
        return;
    const size_t before = shim->held();
    if (!pair_init(AIMO_ROWS_F16))
        return;
    CHECK(pair_add(2500) && pair_optimize());
    const size_t copied = shim->held(), copy = CHUNK_ROWS * 64 * sizeof(uint16_t);
    CHECK(copied >= before + copy);
    pin *held = aimo_cache_pin(p.with);
    for (size_t i = 0; i < p.count; i++)
        CHECK(pair_remove(i));
    CHECK(device_of(p.with).rows == 0 && shim->held() == copied);
    aimo_cache_unpin(held);
    pthread_mutex_lock(&p.with->lock);
    aimo_cache_reclaim(p.with);
    aimo_cache_reclaim(p.with);
    pthread_mutex_unlock(&p.with->lock);
    CHECK(shim->held() <= copied - copy);
    pair_clear();
    CHECK(shim->held() == before);
}

/* ---- beside writers ---------------------------------------------------------------------------
 */

static atomic_bool stop;

static void *optimize_often(void *cache)
{
    while (!atomic_load(&stop))
        if (aimo_cache_optimize(cache, NULL) != AIMO_OK)
            return cache;
    return NULL;
}

static void *add_and_remove(void *cache)
{
    uint64_t random = 5;
    while (!atomic_load(&stop)) {
        float x[DIM];
        int64_t slots[64];
        const int64_t context = 0;
        for (size_t i = 0; i < 64; i++) {
            make_vector(x, &random);
            if (aimo_cache_add(cache, x, &context, 1, &slots[i], NULL) != AIMO_OK)
                return cache;
        }
        for (size_t i = 0; i < 64; i++)
            if (aimo_cache_remove(cache, slots[i], NULL) != AIMO_OK)
                return cache;
    }
    return NULL;
}

/* Rows that stay are found by themselves at all times. */
TEST(cuda_cache_is_searched_while_rows_come_and_go)
{
    if (!cuda_is_here() || !pair_init(AIMO_ROWS_F16))
        return;
    CHECK(pair_add(2400) && pair_optimize());
    pthread_t writers[2];
    atomic_store(&stop, false);
    CHECK(pthread_create(&writers[0], NULL, optimize_often, p.with) == 0);
    CHECK(pthread_create(&writers[1], NULL, add_and_remove, p.with) == 0);
    size_t missing = 0;
    for (size_t round = 0; round < test_rounds(8); round++) {
        int64_t contexts[QUERIES], slots[QUERIES];
        double scores[QUERIES];
        const size_t first = round * 250;
        for (size_t i = 0; i < QUERIES; i++)
            contexts[i] = (first + i) % 8 == 7;
        missing += aimo_cache_search(p.with, p.rows[first], contexts, QUERIES, 0.99, 1, slots,
                                     scores, NULL) != AIMO_OK;
        for (size_t i = 0; i < QUERIES; i++)
            missing += slots[i] < 0;
    }
    atomic_store(&stop, true);
    void *failed[2];
    for (size_t i = 0; i < 2; i++)
        pthread_join(writers[i], &failed[i]);
    CHECK(missing == 0 && failed[0] == NULL && failed[1] == NULL);
    CHECK(device_of(p.with).searches != 0 && agrees(0.9));
    pair_clear();
}

/* ---- faults -----------------------------------------------------------------------------------
 */

TEST(cuda_cache_without_device_memory_is_searched_by_the_cpu)
{
    const cuda_shim_controls *shim;
    if (!cuda_is_here() || (shim = shim_controls()) == NULL || !pair_init(AIMO_ROWS_F16))
        return;
    CHECK(pair_add(2500));
    shim->fail_allocations_after(0);
    CHECK(pair_optimize());
    aimo_cache_device d = device_of(p.with);
    CHECK(d.rows == 0 && d.failures == 1 && !d.lost && strstr(d.error.message, "rows") != NULL);
    CHECK(agrees(0.9));
    shim->fail_allocations_after(-1);
    CHECK(pair_optimize() && device_of(p.with).rows == CHUNK_ROWS);
    shim->fail_allocations_after(0);
    CHECK(agrees(0.9));
    shim->fail_allocations_after(-1);
    d = device_of(p.with);
    CHECK(d.failures == 2 && !d.lost && d.searches == 0);
    CHECK(agrees(0.9) && device_of(p.with).searches == 1);
    pair_clear();
}

TEST(cuda_cache_whose_device_fails_goes_on_without_it)
{
    const cuda_shim_controls *shim;
    if (!cuda_is_here() || (shim = shim_controls()) == NULL || !pair_init(AIMO_ROWS_F16))
        return;
    CHECK(pair_add(2500) && pair_optimize());
    bool worked = false;
    for (long count = 0; !worked && count < 30; count++) {
        const size_t failures = device_of(p.with).failures;
        shim->fail_calls_after(count);
        const bool same = agrees(0.9);
        shim->fail_calls_after(-1);
        CHECK_MSG(same, "a fault after %ld calls", count);
        const aimo_cache_device d = device_of(p.with);
        worked = d.failures == failures;
        CHECK(d.lost == !worked && (worked || strstr(d.error.message, "CUDA") != NULL));
        CHECK(!d.lost || (agrees(0.9) && device_of(p.with).failures == failures + 1));
        atomic_store(&p.with->device.lost, false); /* for the next */
    }
    CHECK(worked);
    pair_clear();
}

TEST(cuda_cache_without_memory_of_its_own_leaks_nothing)
{
    const cuda_shim_controls *shim;
    if (!cuda_is_here() || (shim = shim_controls()) == NULL)
        return;
    const size_t held = shim->held();
    bool worked = false;
    for (long count = 0; !worked && count < 100; count++) {
        if (!pair_init(AIMO_ROWS_F16))
            return;
        CHECK(pair_add(2400));
        aimo_memory_fail_after(count);
        const aimo_status status = aimo_cache_optimize(p.with, NULL);
        aimo_memory_fail_after(-1);
        worked = status == AIMO_OK && device_of(p.with).rows == CHUNK_ROWS;
        CHECK(status == AIMO_OK || status == AIMO_ERR_MEMORY);
        CHECK(worked || count % 8 != 0 || agrees(0.9));
        pair_clear();
        CHECK_MSG(shim->held() == held, "leaks on the device after %ld", count);
    }
    CHECK(worked);
}

TEST(cuda_cache_in_a_forked_child_is_searched_by_the_cpu)
{
    if (!cuda_is_here() || !pair_init(AIMO_ROWS_F16))
        return;
    CHECK(pair_add(2500) && pair_optimize() && agrees(0.9));
    const pid_t child = fork();
    if (child == 0) {
        const bool same = agrees(0.9) && agrees(0.9);
        const aimo_cache_device d = device_of(p.with);
        const bool told = d.lost && d.failures == 1 && strstr(d.error.message, "forked") != NULL;
        const bool optimized = pair_optimize() && agrees(0.9);
        pair_clear();
        _exit(same && told && optimized ? 0 : 1);
    }
    int status;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    CHECK(agrees(0.9) && device_of(p.with).searches == 2);
    pair_clear();
}
