/* cache: answers during changes are those of one instant, also in forked children. */
#include "test.h"

#include "cache/cache.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* One writer changes a window of rows step by step; step s adds row s and removes row s - WINDOW
 * or another. A reader's answer must be that of some step between the one before its call began
 * and the one after it ended. */
enum { STREAM_DIM = 32, STEPS = 6000, WINDOW = 700, READERS = 3, STREAM_QUERIES = 6 };

typedef struct {
    aimo_cache *cache;
    float x[STEPS][STREAM_DIM];
    float queries[STREAM_QUERIES][STREAM_DIM];
    int removed_at[STEPS]; /* the step that removes row i; STEPS: none */
    int64_t slots[STEPS];
    atomic_int steps_begun, steps_done;
    atomic_bool failed;
    atomic_long lookups;
} stream;

static stream shared;

/* The best row for the query after `step` changes, computed in f64; the data keeps scores far
 * enough apart for that. */
static int best_at(int query, int step, const double (*scores)[STEPS])
{
    int best = -1;
    for (int i = 0; i < step && i < STEPS; i++)
        if (shared.removed_at[i] >= step && (best < 0 || scores[query][i] > scores[query][best]))
            best = i;
    return best;
}

static double stream_scores[STREAM_QUERIES][STEPS];

static void *read_stream(void *seed)
{
    uint64_t random = (uint64_t)(uintptr_t)seed;
    while (atomic_load(&shared.steps_done) < STEPS && !atomic_load(&shared.failed)) {
        const int query = (int)(test_random(&random) % STREAM_QUERIES);
        const int64_t context = 7;
        int64_t slot;
        double score;
        const int from = atomic_load(&shared.steps_done);
        if (aimo_cache_search(shared.cache, shared.queries[query], &context, 1, -1.0, 1, &slot,
                              &score, NULL) != AIMO_OK)
            atomic_store(&shared.failed, true);
        const int to = atomic_load(&shared.steps_begun);
        bool explained = false;
        /* Within a step the row is added first, then one is removed: both states are legal. */
        for (int step = from; step <= to && !explained; step++) {
            const int best = best_at(query, step, (const double(*)[STEPS])stream_scores);
            const double expected = best < 0 ? 0.0 : stream_scores[query][best];
            explained = best < 0 ? slot < 0 : slot >= 0 && fabs(score - expected) < 1e-3;
            if (!explained && step < to && step < STEPS) {
                const double added = stream_scores[query][step];
                const double both = best < 0 || added > expected ? added : expected;
                explained = slot >= 0 && fabs(score - both) < 1e-3;
            }
        }
        if (!explained)
            atomic_store(&shared.failed, true);
        atomic_fetch_add(&shared.lookups, 1);
    }
    return NULL;
}

static void *write_stream(void *unused)
{
    const int64_t context = 7;
    static int removal[STEPS]; /* the row that step s removes, -1: none */
    for (int i = 0; i < STEPS; i++)
        removal[i] = -1;
    for (int i = 0; i < STEPS; i++)
        if (shared.removed_at[i] < STEPS)
            removal[shared.removed_at[i]] = i;
    for (int s = 0; s < STEPS && !atomic_load(&shared.failed); s++) {
        atomic_store(&shared.steps_begun, s + 1);
        if (aimo_cache_add(shared.cache, shared.x[s], &context, 1, &shared.slots[s], NULL) !=
            AIMO_OK)
            atomic_store(&shared.failed, true);
        if (removal[s] >= 0 &&
            aimo_cache_remove(shared.cache, shared.slots[removal[s]], NULL) != AIMO_OK)
            atomic_store(&shared.failed, true);
        atomic_store(&shared.steps_done, s + 1);
        if (s % 16 == 0)
            sched_yield();
    }
    atomic_store(&shared.steps_done, STEPS);
    return unused;
}

static void *keep_optimizing(void *unused)
{
    while (atomic_load(&shared.steps_done) < STEPS && !atomic_load(&shared.failed)) {
        if (aimo_cache_optimize(shared.cache, NULL) != AIMO_OK)
            atomic_store(&shared.failed, true);
        aimo_cache_snapshot *snapshot;
        if (aimo_cache_snapshot_open(shared.cache, &snapshot, NULL) == AIMO_OK)
            aimo_cache_snapshot_close(snapshot);
    }
    return unused;
}

/* The rows' scores differ by steps that f16 cannot blur: query q and row i lie in one plane. */
static void prepare_stream(void)
{
    uint64_t random = 9;
    memset(&shared, 0, sizeof shared);
    for (int q = 0; q < STREAM_QUERIES; q++)
        for (size_t j = 0; j < STREAM_DIM; j++)
            shared.queries[q][j] = test_random_normal(&random);
    for (int i = 0; i < STEPS; i++) {
        for (size_t j = 0; j < STREAM_DIM; j++)
            shared.x[i][j] = test_random_normal(&random) * (j < 8 ? 3.0f : 0.3f);
        shared.removed_at[i] = STEPS;
    }
    for (int s = WINDOW; s < STEPS; s++) {
        const int row = s % 3 == 0 ? s - 1 - (int)(test_random(&random) % 20) : s - WINDOW;
        if (shared.removed_at[row] == STEPS)
            shared.removed_at[row] = s;
    }
    for (int q = 0; q < STREAM_QUERIES; q++) {
        for (int i = 0; i < STEPS; i++) {
            double dot = 0, xx = 0, qq = 0;
            for (size_t j = 0; j < STREAM_DIM; j++) {
                dot += (double)shared.queries[q][j] * (double)shared.x[i][j];
                xx += (double)shared.x[i][j] * (double)shared.x[i][j];
                qq += (double)shared.queries[q][j] * (double)shared.queries[q][j];
            }
            stream_scores[q][i] = dot / sqrt(xx * qq);
        }
    }
}

TEST(cache_every_answer_beside_a_writer_is_that_of_one_instant)
{
    prepare_stream();
    CHECK(aimo_cache_new(&shared.cache, STREAM_DIM, AIMO_ROWS_F16, NULL) == AIMO_OK);
    pthread_t readers[READERS], writer, optimizer;
    CHECK(pthread_create(&writer, NULL, write_stream, NULL) == 0);
    CHECK(pthread_create(&optimizer, NULL, keep_optimizing, NULL) == 0);
    for (int i = 0; i < READERS; i++)
        CHECK(pthread_create(&readers[i], NULL, read_stream, (void *)(uintptr_t)(i + 1)) == 0);
    pthread_join(writer, NULL);
    pthread_join(optimizer, NULL);
    for (int i = 0; i < READERS; i++)
        pthread_join(readers[i], NULL);
    aimo_cache_free(shared.cache);
    CHECK(!atomic_load(&shared.failed));
    CHECK(atomic_load(&shared.lookups) > 10);
}

/* The store grows while rows are compared: those that come after a search began are among its
 * candidates, because all rows are alike, but lie where its own directory of rows ends. */
enum { GROWN_DIM = 32, FIRST_ROWS = 2000, GROWN_ROWS = 200000, GROWN_BATCH = 64 };

static void *grow_until_done(void *cache)
{
    static float rows[GROWN_BATCH][GROWN_DIM];
    static const int64_t contexts[GROWN_BATCH];
    int64_t slots[GROWN_BATCH];
    for (int i = 0; i < GROWN_BATCH; i++)
        rows[i][0] = 1.0f;
    for (size_t n = 0; n < test_rounds(GROWN_ROWS); n += GROWN_BATCH)
        if (aimo_cache_add(cache, rows[0], contexts, GROWN_BATCH, slots, NULL) != AIMO_OK)
            break;
    return NULL;
}

TEST(cache_grows_while_all_of_its_rows_are_candidates)
{
    const float query[GROWN_DIM] = {1.0f};
    const int64_t context = 0;
    aimo_cache *cache;
    pthread_t writer;
    int64_t slot;
    double score;
    CHECK(aimo_cache_new(&cache, GROWN_DIM, AIMO_ROWS_F16, NULL) == AIMO_OK);
    CHECK(aimo_cache_add(cache, query, &context, 1, &slot, NULL) == AIMO_OK);
    uint64_t random = 3;
    for (int i = 0; i < FIRST_ROWS; i++) { /* the directions are learnt from these */
        float x[GROWN_DIM];
        for (size_t j = 0; j < GROWN_DIM; j++)
            x[j] = test_random_normal(&random);
        CHECK(aimo_cache_add(cache, x, &context, 1, &slot, NULL) == AIMO_OK);
    }
    CHECK(aimo_cache_optimize(cache, NULL) == AIMO_OK);
    CHECK(pthread_create(&writer, NULL, grow_until_done, cache) == 0);
    bool first = true;
    while (first && aimo_cache_count(cache) <= test_rounds(GROWN_ROWS))
        first =
            aimo_cache_search(cache, query, &context, 1, 0.5, 1, &slot, &score, NULL) == AIMO_OK &&
            slot == 0 && score == 1.0;
    pthread_join(writer, NULL);
    aimo_cache_free(cache);
    CHECK(first);
}

#if !defined(__SANITIZE_THREAD__) /* TSan does not follow threads into a forked child */
TEST(cache_works_in_a_child_forked_beside_readers_and_writers)
{
    prepare_stream();
    CHECK(aimo_cache_new(&shared.cache, STREAM_DIM, AIMO_ROWS_F16, NULL) == AIMO_OK);
    aimo_cache_init();
    pthread_t reader, writer;
    CHECK(pthread_create(&writer, NULL, write_stream, NULL) == 0);
    CHECK(pthread_create(&reader, NULL, read_stream, (void *)(uintptr_t)1) == 0);
    fflush(stdout);
    bool all_well = true;
    for (int i = 0; i < 10; i++) {
        const pid_t child = fork();
        if (child == 0) {
            const int64_t context = 7;
            int64_t slot = -1, found = -1;
            double score = 0;
            bool well = true;
            for (int j = 0; j < 600 && well; j++) /* more than one generation of removals */
                well = aimo_cache_add(shared.cache, shared.x[j], &context, 1, &slot, NULL) ==
                           AIMO_OK &&
                       aimo_cache_remove(shared.cache, slot, NULL) == AIMO_OK;
            well = well && aimo_cache_search(shared.cache, shared.x[0], &context, 1, -1.0, 1,
                                             &found, &score, NULL) == AIMO_OK;
            _exit(well ? 0 : 1);
        }
        int status = 1;
        all_well = all_well && child > 0 && waitpid(child, &status, 0) == child && status == 0;
    }
    pthread_join(writer, NULL);
    pthread_join(reader, NULL);
    aimo_cache_free(shared.cache);
    CHECK(all_well && !atomic_load(&shared.failed));
}
#endif
