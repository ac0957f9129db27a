#include "cache/cache_device.h"

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>

enum {
    /* The least chunks times queries worth a device call: it costs some tens of microseconds, which
     * is what the CPU needs for about this many. */
    LEAST_WORK = 16,
    /* Per query. With more candidates the CPU searches by itself, because its bar rises as it
     * goes. */
    CANDIDATES = 1024,
    NO_PLACE = UINT32_MAX,
};
#define NOTHING_CROWDED (-2.0) /* below every threshold */

_Static_assert((int)CHUNK_ROWS == (int)AIMO_SCREEN_ROWS_MOST,
               "positions of a chunk are those of its copy");

_Atomic(device_copy *) *aimo_chunk_copy(const chunk *c)
{
    return (_Atomic(device_copy *) *)((char *)(uintptr_t)c + c->link.bytes) - 1;
}

/* ---- what is in use, and what went wrong ------------------------------------------------------
 */

static bool in_use(const aimo_cache *cache)
{
    return cache->device.screen != NULL &&
           !atomic_load_explicit(&cache->device.lost, memory_order_relaxed);
}

void aimo_cache_use_device(aimo_cache *cache, aimo_row_screen *screen)
{
    cache->device.screen = screen;
    atomic_store(&cache->device.crowded, NOTHING_CROWDED);
}

void aimo_cache_get_device(aimo_cache *cache, aimo_cache_device *out)
{
    const device_use *d = &cache->device;
    pthread_mutex_lock(&cache->lock);
    *out = (aimo_cache_device){
        .device = d->screen != NULL ? d->screen->device : -1,
        .rows = in_use(cache) ? atomic_load_explicit(&d->rows, memory_order_relaxed) : 0,
        .searches = atomic_load_explicit(&d->searches, memory_order_relaxed),
        .failures = atomic_load_explicit(&d->failures, memory_order_relaxed),
        .lost = atomic_load_explicit(&d->lost, memory_order_relaxed),
        .error = d->error,
    };
    pthread_mutex_unlock(&cache->lock);
}

/* Memory may become available again; a device that failed, or belongs to the parent of this forked
 * process, does not. */
static void note_failure(aimo_cache *cache, aimo_status status, const aimo_error *err)
{
    device_use *d = &cache->device;
    atomic_fetch_add_explicit(&d->failures, 1, memory_order_relaxed);
    if (status != AIMO_ERR_MEMORY)
        atomic_store_explicit(&d->lost, true, memory_order_relaxed);
    pthread_mutex_lock(&cache->lock);
    d->error = *err;
    pthread_mutex_unlock(&cache->lock);
}

/* Whether searches at this threshold use the device. */
static bool helps(const aimo_cache *cache, double threshold)
{
    return in_use(cache) &&
           threshold > atomic_load_explicit(&cache->device.crowded, memory_order_relaxed);
}

bool aimo_device_has_most(const aimo_cache *cache, double threshold)
{
    return helps(cache, threshold) &&
           2 * atomic_load_explicit(&cache->device.rows, memory_order_relaxed) >
               aimo_cache_count(cache);
}

/* ---- copies ---------------------------------------------------------------------------------- */

void aimo_device_retire_copy(aimo_cache *cache, const chunk *c)
{
    device_copy *copy = atomic_load_explicit(aimo_chunk_copy(c), memory_order_relaxed);
    if (copy == NULL)
        return;
    copy->next = cache->young.copies;
    cache->young.copies = copy;
    atomic_fetch_sub_explicit(&cache->device.rows, CHUNK_ROWS, memory_order_relaxed);
}

static void copy_free(aimo_cache *cache, device_copy *copy)
{
    cache->device.screen->ops->rows_free(cache->device.screen, copy->rows);
    aimo_memory_free(copy);
}

void aimo_device_free_copies(aimo_cache *cache, generation *g)
{
    for (device_copy *copy = g->copies, *next; copy != NULL; copy = next) {
        next = copy->next;
        copy_free(cache, copy);
    }
    g->copies = NULL;
}

/* rows [CHUNK_ROWS, dim] = the chunk's rows scaled to norm 1, with zeros for dead ones, whose slots
 * may hold other rows by now. Call under a pin, so that live rows keep their slots. */
static void read_rows(const aimo_cache *cache, const chunk *c, float *rows)
{
    const directory *store = atomic_load_explicit(&cache->store, memory_order_acquire);
    for (size_t i = 0; i < CHUNK_ROWS; i++) {
        float *row = rows + i * cache->dim;
        if (atomic_load_explicit(&c->deaths[i], memory_order_relaxed) != AIMO_ALIVE) {
            memset(row, 0, cache->dim * sizeof *row);
            continue;
        }
        const double inverse_norm = aimo_store_inverse_norm(store, c->slots[i]);
        aimo_cache_widen(cache, aimo_store_row(cache, store, c->slots[i]), row);
        for (size_t j = 0; j < cache->dim; j++)
            row[j] = (float)((double)row[j] * inverse_norm);
    }
}

static aimo_status copy_new(aimo_cache *cache, const float *rows, device_copy **out,
                            aimo_error *err)
{
    aimo_row_screen *screen = cache->device.screen;
    AIMO_TRY(aimo_memory_new_zero((void **)out, 1, sizeof **out, "copy of rows", err));
    const aimo_status status = screen->ops->rows_new(screen, rows, CHUNK_ROWS, &(*out)->rows, err);
    if (status != AIMO_OK)
        aimo_memory_free(*out);
    return status;
}

/* With the lock held: attaches the copy to the chunk, if the chunk is still in its context's
 * list. */
static bool enter_copy(aimo_cache *cache, int64_t context, uint32_t index, const chunk *c,
                       device_copy *copy)
{
    const list *now = aimo_cache_find(cache, context);
    if (now == NULL || index >= now->chunk_count || now->chunks[index] != c)
        return false;
    /* Every death that the copy reflects is at or below this version. */
    copy->since = atomic_load_explicit(&cache->version, memory_order_relaxed);
    atomic_store_explicit(aimo_chunk_copy(c), copy, memory_order_release);
    atomic_fetch_add_explicit(&cache->device.rows, CHUNK_ROWS, memory_order_relaxed);
    return true;
}

/* Under a pin. */
static aimo_status copy_chunk(aimo_cache *cache, int64_t context, uint32_t index, const chunk *c,
                              float *rows, aimo_error *err)
{
    device_copy *copy;
    read_rows(cache, c, rows);
    AIMO_TRY(copy_new(cache, rows, &copy, err));
    pthread_mutex_lock(&cache->lock);
    const bool entered = enter_copy(cache, context, index, c, copy);
    pthread_mutex_unlock(&cache->lock);
    if (!entered)
        copy_free(cache, copy);
    return AIMO_OK;
}

/* With the lock held: chunk `index`, or NULL with *past set when there is none. */
static const chunk *chunk_at(const aimo_cache *cache, int64_t context, uint32_t index, bool *past)
{
    const list *l = aimo_cache_find(cache, context);
    *past = l == NULL || index >= l->chunk_count;
    return *past ? NULL : l->chunks[index];
}

static bool wants_copy(const chunk *c)
{
    return c != NULL && c->capacity == CHUNK_ROWS &&
           atomic_load_explicit(&c->count, memory_order_relaxed) == CHUNK_ROWS &&
           atomic_load_explicit(aimo_chunk_copy(c), memory_order_relaxed) == NULL;
}

void aimo_device_copy_context(aimo_cache *cache, int64_t context)
{
    float *rows = NULL;
    aimo_error err;
    aimo_status status = AIMO_OK;
    bool past = false;
    atomic_store_explicit(&cache->device.crowded, NOTHING_CROWDED, memory_order_relaxed);
    pthread_mutex_lock(&cache->lock);
    aimo_cache_reclaim(cache); /* freeing the copies of replaced chunks makes room for new ones */
    pthread_mutex_unlock(&cache->lock);
    for (uint32_t index = 0; in_use(cache) && status == AIMO_OK && !past; index++) {
        pin *p = aimo_cache_pin(cache);
        pthread_mutex_lock(&cache->lock);
        const chunk *c = chunk_at(cache, context, index, &past);
        pthread_mutex_unlock(&cache->lock);
        const bool wanted = wants_copy(c);
        if (wanted && rows == NULL)
            status = aimo_memory_new((void **)&rows, CHUNK_ROWS * cache->dim, sizeof *rows,
                                     "copy of rows", &err);
        if (wanted && status == AIMO_OK)
            status = copy_chunk(cache, context, index, c, rows, &err);
        aimo_cache_unpin(p);
    }
    if (status != AIMO_OK)
        note_failure(cache, status, &err);
    aimo_memory_free(rows);
}

/* ---- searching ------------------------------------------------------------------------------- */

static int by_position(const void *a, const void *b)
{
    const aimo_screen_candidate *x = a, *y = b;
    if (x->position != y->position)
        return x->position < y->position ? -1 : 1;
    return (x->query > y->query) - (x->query < y->query);
}

/* Lists the copies that serve searches of this version. */
static size_t list_copies(const list *l, uint64_t version, const aimo_screen_rows **rows,
                          uint32_t *place_of)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < l->chunk_count; i++) {
        const device_copy *copy =
            l->chunks[i]->capacity == CHUNK_ROWS
                ? atomic_load_explicit(aimo_chunk_copy(l->chunks[i]), memory_order_acquire)
                : NULL;
        const bool usable = copy != NULL && copy->since <= version;
        place_of[i] = usable ? count : NO_PLACE;
        if (usable)
            rows[count++] = copy->rows;
    }
    return count;
}

/* False: the CPU has to search everything. */
static bool run_pass(device_pass *pass, aimo_cache *cache, const aimo_screen_args *args,
                     aimo_screen_candidate *candidates, size_t capacity)
{
    aimo_error err;
    aimo_row_screen *screen = cache->device.screen;
    const aimo_status status =
        screen->ops->run(screen, args, candidates, capacity, &pass->count, &err);
    if (status != AIMO_OK)
        note_failure(cache, status, &err);
    else if (pass->count > capacity && helps(cache, args->bar))
        atomic_store_explicit(&cache->device.crowded, args->bar, memory_order_relaxed);
    if (status != AIMO_OK || pass->count > capacity)
        return false;
    atomic_fetch_add_explicit(&cache->device.searches, 1, memory_order_relaxed);
    if (pass->count != 0)
        qsort(candidates, pass->count, sizeof *candidates, by_position);
    return true;
}

void aimo_device_pass_begin(device_pass *pass, aimo_cache *cache, const list *l, uint64_t version,
                            const float *const *queries, size_t n, double bar)
{
    *pass = (device_pass){0};
    if (l == NULL || !helps(cache, bar) || l->chunk_count * n < LEAST_WORK)
        return;
    const size_t candidate_bytes = n * CANDIDATES * sizeof(aimo_screen_candidate);
    const size_t rows_bytes = l->chunk_count * sizeof(aimo_screen_rows *);
    char *memory;
    if (aimo_memory_new((void **)&memory, 1,
                        candidate_bytes + rows_bytes + l->chunk_count * sizeof(uint32_t),
                        "candidates", NULL) != AIMO_OK)
        return;
    aimo_screen_candidate *candidates = (aimo_screen_candidate *)memory;
    const aimo_screen_rows **rows = (const aimo_screen_rows **)(memory + candidate_bytes);
    pass->memory = memory;
    pass->candidates = candidates;
    pass->place_of = (uint32_t *)(memory + candidate_bytes + rows_bytes);
    const aimo_screen_args args = {
        .rows = rows,
        .rows_count = list_copies(l, version, rows, pass->place_of),
        .queries = queries,
        .n = n,
        .bar = bar,
    };
    if (args.rows_count * n < LEAST_WORK ||
        !run_pass(pass, cache, &args, candidates, n * CANDIDATES))
        aimo_device_pass_end(pass);
}

bool aimo_device_pass_chunk(device_pass *pass, uint32_t index,
                            const aimo_screen_candidate **candidates, size_t *count)
{
    if (pass->memory == NULL || pass->place_of[index] == NO_PLACE)
        return false;
    const size_t first = pass->next;
    while (pass->next < pass->count &&
           pass->candidates[pass->next].position / CHUNK_ROWS == pass->place_of[index])
        pass->next++;
    *candidates = pass->candidates + first;
    *count = pass->next - first;
    return true;
}

void aimo_device_pass_end(device_pass *pass)
{
    aimo_memory_free(pass->memory);
    *pass = (device_pass){0};
}
