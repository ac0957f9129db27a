/* Lookups concurrent with a writer, each compared with brute force.
 *
 *   bench_cache_readers ROWS QUERIES DIM WINDOW SECONDS THREADS THRESHOLD
 *
 * ROWS and QUERIES are files of f32 [n, dim]; every second query is replaced by a row with noise,
 * so that some hit while their row is there. The writer cycles through the rows: it adds one, and
 * removes the one that was added WINDOW additions ago. A query's answers over all changes are
 * computed beforehand by brute force in f64; a lookup is right when it gives the answer of some
 * instant between its call and its return. Prints JSON; the exit status is 1 when an answer was
 * wrong. */
#include "base/cpu.h"
#include "base/memory.h"
#include "base/threads.h"
#include "cache/cache.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { QUERIES = 64, MOST_READERS = 64, MOST_TIMES = 1 << 22 };
static const double NONE = -2.0; /* the score of a lookup without a hit */

static struct {
    aimo_cache *cache;
    size_t rows, dim, window;
    double threshold;
    float *x;       /* [rows, dim] */
    float *queries; /* [QUERIES, dim] */
    double *scores; /* [QUERIES, rows], with the rows as they are stored */
    /* [QUERIES, 2 rows]: in the state after change c, answers[q][c mod 2 rows]; an even
     * change adds a row, an odd one removes one. */
    double *answers;
    int64_t *slots; /* [rows] */
    /* Changes since the window was filled; counted before and after each. */
    atomic_size_t begun, done;
    atomic_bool stop, wrong;
} run;

typedef struct {
    pthread_t thread;
    uint64_t random;
    float *seconds; /* [MOST_TIMES] */
    size_t count, hits;
} reader;

static void fail(const char *what)
{
    fprintf(stderr, "bench_cache_readers: %s\n", what);
    exit(2);
}

static void must(aimo_status status, const aimo_error *err)
{
    if (status != AIMO_OK)
        fail(err->message);
}

static void *new_array(size_t count, size_t size)
{
    void *array;
    aimo_error err;
    must(aimo_memory_new(&array, count, size, "benchmark", &err), &err);
    return array;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static float *read_vectors(const char *path, size_t *count)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0)
        fail(path);
    *count = (size_t)ftell(file) / (run.dim * sizeof(float));
    rewind(file);
    float *x = new_array(*count * run.dim, sizeof(float));
    if (fread(x, run.dim * sizeof(float), *count, file) != *count)
        fail(path);
    fclose(file);
    return x;
}

/* ---- what is right ------------------------------------------------------------------------- */

static double cosine(const float *a, const float *b)
{
    double ab = 0.0, aa = 0.0, bb = 0.0;
    for (size_t i = 0; i < run.dim; i++) {
        ab += (double)a[i] * (double)b[i];
        aa += (double)a[i] * (double)a[i];
        bb += (double)b[i] * (double)b[i];
    }
    return ab / sqrt(aa * bb);
}

/* Every second query is near a row. */
static void plant_queries(void)
{
    uint64_t random = 5;
    for (size_t q = 0; q < QUERIES; q += 2) {
        const float *row = run.x + q * (run.rows / QUERIES) * run.dim;
        for (size_t i = 0; i < run.dim; i++) {
            const double noise = (double)(next_random(&random) >> 40) * 0x1p-24 - 0.5;
            run.queries[q * run.dim + i] = row[i] + (float)(0.6 * noise / sqrt((double)run.dim));
        }
    }
}

/* Cosines with every row as the cache stores it, a thousand at a time. */
static void score_all(void)
{
    aimo_error err;
    aimo_cache *store;
    must(aimo_cache_new(&store, run.dim, AIMO_ROWS_F16, &err), &err);
    float *stored = new_array(run.dim, sizeof(float));
    for (size_t row = 0; row < run.rows; row++) {
        const int64_t context = 0;
        int64_t slot;
        must(aimo_cache_add(store, run.x + row * run.dim, &context, 1, &slot, &err), &err);
        must(aimo_cache_vector(store, slot, stored, &err), &err);
        must(aimo_cache_remove(store, slot, &err), &err);
        for (size_t q = 0; q < QUERIES; q++)
            run.scores[q * run.rows + row] = cosine(run.queries + q * run.dim, stored);
    }
    aimo_memory_free(stored);
    aimo_cache_free(store);
}

/* The best score that reaches the threshold among rows [first, first + count), modulo all rows. */
static double best_of(const double *scores, size_t first, size_t count)
{
    double best = NONE;
    for (size_t i = 0; i < count; i++) {
        const double score = scores[(first + i) % run.rows];
        if (score >= run.threshold && score > best)
            best = score;
    }
    return best;
}

/* After 2 i changes the rows i to i + window - 1 are stored; after one more, row i + window as
 * well. */
static void answer_all(void)
{
    for (size_t q = 0; q < QUERIES; q++) {
        const double *scores = run.scores + q * run.rows;
        double *answers = run.answers + q * 2 * run.rows;
        double best = best_of(scores, 0, run.window);
        for (size_t i = 0; i < run.rows; i++) {
            answers[2 * i] = best;
            const double added = scores[(i + run.window) % run.rows];
            if (added >= run.threshold && added > best)
                best = added;
            answers[2 * i + 1] = best;
            if (scores[i] == best)
                best = best_of(scores, i + 1, run.window);
        }
    }
}

static bool is_right(size_t query, double score, size_t from, size_t to)
{
    const double *answers = run.answers + query * 2 * run.rows;
    if (to - from >= 2 * run.rows)
        to = from + 2 * run.rows - 1;
    for (size_t change = from; change <= to; change++)
        if (fabs(answers[change % (2 * run.rows)] - score) < 1e-9)
            return true;
    return false;
}

/* ---- threads --------------------------------------------------------------------------------- */

static void *read_on(void *argument)
{
    reader *r = argument;
    const int64_t context = 0;
    while (!atomic_load(&run.stop) && r->count < MOST_TIMES) {
        const size_t query = next_random(&r->random) % QUERIES;
        int64_t slot;
        double score;
        aimo_error err;
        const size_t from = atomic_load(&run.done);
        const double start = now();
        must(aimo_cache_search(run.cache, run.queries + query * run.dim, &context, 1, run.threshold,
                               1, &slot, &score, &err),
             &err);
        r->seconds[r->count++] = (float)(now() - start);
        const size_t to = atomic_load(&run.begun);
        r->hits += slot >= 0;
        if (!is_right(query, slot >= 0 ? score : NONE, from, to))
            atomic_store(&run.wrong, true);
    }
    return NULL;
}

static void *write_on(void *unused)
{
    const int64_t context = 0;
    aimo_error err;
    for (size_t i = 0; !atomic_load(&run.stop); i++) {
        const size_t added = (i + run.window) % run.rows;
        atomic_fetch_add(&run.begun, 1);
        must(aimo_cache_add(run.cache, run.x + added * run.dim, &context, 1, &run.slots[added],
                            &err),
             &err);
        atomic_fetch_add(&run.done, 1);
        atomic_fetch_add(&run.begun, 1);
        must(aimo_cache_remove(run.cache, run.slots[i % run.rows], &err), &err);
        atomic_fetch_add(&run.done, 1);
    }
    return unused;
}

static void pause_for(double seconds)
{
    const struct timespec time = {.tv_sec = (time_t)seconds,
                                  .tv_nsec = (long)(fmod(seconds, 1.0) * 1e9)};
    nanosleep(&time, NULL);
}

static int by_value(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Runs lookups on `count` threads, and prints the timings under `name`. */
static void measure(const char *name, reader *readers, size_t count, double seconds, bool write)
{
    pthread_t writer;
    const size_t before = atomic_load(&run.done);
    atomic_store(&run.stop, false);
    const double start = now();
    if (write && pthread_create(&writer, NULL, write_on, NULL) != 0)
        fail("no thread");
    for (size_t i = 0; i < count; i++) {
        readers[i].count = readers[i].hits = 0;
        if (pthread_create(&readers[i].thread, NULL, read_on, &readers[i]) != 0)
            fail("no thread");
    }
    pause_for(seconds);
    atomic_store(&run.stop, true);
    size_t lookups = 0, hits = 0;
    for (size_t i = 0; i < count; i++)
        pthread_join(readers[i].thread, NULL);
    if (write)
        pthread_join(writer, NULL);
    const double taken = now() - start;
    for (size_t i = 0; i < count; i++) {
        lookups += readers[i].count;
        hits += readers[i].hits;
    }
    float *all = new_array(lookups + 1, sizeof(float));
    for (size_t i = 0, at = 0; i < count; at += readers[i++].count)
        memcpy(all + at, readers[i].seconds, readers[i].count * sizeof(float));
    qsort(all, lookups, sizeof *all, by_value);
    printf(" \"%s\": {\"readers\": %zu, \"seconds\": %.1f, \"lookups\": %zu, \"hits\": %zu, "
           "\"p50_us\": %.2f, \"p99_us\": %.2f, \"changes_per_s\": %.0f},\n",
           name, count, taken, lookups, hits, (double)all[lookups / 2] * 1e6,
           (double)all[lookups * 99 / 100] * 1e6,
           (double)(atomic_load(&run.done) - before) / taken);
    aimo_memory_free(all);
}

static void prepare(const char *rows, const char *queries)
{
    size_t count;
    aimo_error err;
    run.x = read_vectors(rows, &run.rows);
    run.queries = read_vectors(queries, &count);
    if (count < QUERIES || run.rows <= run.window)
        fail("too few vectors");
    run.scores = new_array(QUERIES * run.rows, sizeof(double));
    run.answers = new_array(QUERIES * 2 * run.rows, sizeof(double));
    run.slots = new_array(run.rows, sizeof *run.slots);
    plant_queries();
    score_all();
    answer_all();
    int64_t *contexts = new_array(run.window, sizeof *contexts);
    memset(contexts, 0, run.window * sizeof *contexts);
    must(aimo_cache_new(&run.cache, run.dim, AIMO_ROWS_F16, &err), &err);
    must(aimo_cache_add(run.cache, run.x, contexts, run.window, run.slots, &err), &err);
    must(aimo_cache_optimize(run.cache, &err), &err);
    aimo_memory_free(contexts);
}

int main(int argc, char **argv)
{
    if (argc != 8)
        fail("ROWS QUERIES DIM WINDOW SECONDS THREADS THRESHOLD");
    run.dim = (size_t)atol(argv[3]);
    run.window = (size_t)atol(argv[4]);
    run.threshold = atof(argv[7]);
    const double seconds = atof(argv[5]);
    const size_t threads = (size_t)atol(argv[6]);
    if (run.dim == 0 || threads < 2 || threads > MOST_READERS)
        fail("DIM must be positive, THREADS from 2 to 64");
    aimo_error err;
    must(aimo_cpu_init(&err), &err);
    must(aimo_threads_init(&err), &err);
    must(aimo_thread_count_set(1, &err), &err);
    prepare(argv[1], argv[2]);
    static reader readers[MOST_READERS];
    for (size_t i = 0; i < threads - 1; i++)
        readers[i] = (reader){.random = 77 + i, .seconds = new_array(MOST_TIMES, sizeof(float))};
    printf("{\"rows\": %zu, \"row\": \"%s\",\n", run.window, aimo_cpu_row());
    measure("quiet", readers, threads - 1, seconds / 10, false);
    measure("beside_a_writer", readers, threads - 1, seconds, true);
    const bool wrong = atomic_load(&run.wrong);
    printf(" \"every_answer_right\": %s}\n", wrong ? "false" : "true");
    aimo_cache_free(run.cache);
    return wrong ? 1 : 0;
}
