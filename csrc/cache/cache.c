/* Changes to a cache: adding, removing and restoring rows. */
#include "cache/cache.h"

#include "base/cpu.h"
#include "base/memory.h"
#include "cache/cache_chunk.h"
#include "cache/cache_context.h"
#include "half/half.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- the store ----------------------------------------------------------------------------- */

slot_place *aimo_cache_place(const aimo_cache *cache, int64_t slot)
{
    const directory *store = atomic_load_explicit(&cache->store, memory_order_relaxed);
    return &store->chunks[slot / STORE_ROWS]->places[slot % STORE_ROWS];
}

static size_t store_chunk_bytes(const aimo_cache *cache)
{
    return sizeof(store_chunk) +
           STORE_ROWS * (sizeof(double) + sizeof(slot_place) + cache->row_bytes);
}

static aimo_status store_chunk_new(aimo_cache *cache, store_chunk **out, aimo_error *err)
{
    AIMO_TRY(aimo_cache_memory_new(cache, (void **)out, store_chunk_bytes(cache), "rows", err));
    store_chunk *s = *out;
    s->inverse_norms = (double *)(s + 1);
    s->places = (slot_place *)(s->inverse_norms + STORE_ROWS);
    s->rows = (char *)(s->places + STORE_ROWS);
    for (size_t i = 0; i < STORE_ROWS; i++)
        s->places[i] = (slot_place){.context = NO_SLOT, .position = AIMO_NO_POSITION};
    return AIMO_OK;
}

static aimo_status directory_new(aimo_cache *cache, size_t chunk_count, directory **out,
                                 aimo_error *err)
{
    const size_t bytes = sizeof(directory) + chunk_count * sizeof(store_chunk *);
    AIMO_TRY(aimo_cache_block_new(cache, (void **)out, bytes, "directory of rows", err));
    (*out)->chunk_count = chunk_count;
    return AIMO_OK;
}

/* Adds a store chunk. */
static aimo_status store_grow(aimo_cache *cache, aimo_error *err)
{
    directory *store = atomic_load_explicit(&cache->store, memory_order_relaxed), *larger;
    AIMO_TRY(directory_new(cache, store->chunk_count + 1, &larger, err));
    const aimo_status status = store_chunk_new(cache, &larger->chunks[store->chunk_count], err);
    if (status != AIMO_OK) {
        aimo_cache_block_free(cache, &larger->link);
        return status;
    }
    memcpy(larger->chunks, store->chunks, store->chunk_count * sizeof store->chunks[0]);
    atomic_store_explicit(&cache->store, larger, memory_order_release);
    aimo_cache_retire(cache, &store->link);
    return AIMO_OK;
}

static aimo_status take_slot(aimo_cache *cache, int64_t *slot, aimo_error *err)
{
    if (cache->free_slots == NO_SLOT)
        aimo_cache_reclaim_when_due(cache);
    if (cache->free_slots != NO_SLOT) {
        *slot = cache->free_slots;
        cache->free_slots = aimo_cache_place(cache, *slot)->context;
        return AIMO_OK;
    }
    if (cache->slot_count == (size_t)AIMO_NO_POSITION)
        return aimo_fail(err, AIMO_ERR_MEMORY, "cache: at most 2^32 - 1 rows fit");
    const directory *store = atomic_load_explicit(&cache->store, memory_order_relaxed);
    if (cache->slot_count == store->chunk_count * STORE_ROWS)
        AIMO_TRY(store_grow(cache, err));
    *slot = (int64_t)cache->slot_count++;
    return AIMO_OK;
}

static void give_slot_back(aimo_cache *cache, int64_t slot)
{
    aimo_cache_place(cache, slot)->context = cache->free_slots;
    cache->free_slots = slot;
}

/* ---- rows ---------------------------------------------------------------------------------- */

static void *row_of(const aimo_cache *cache, int64_t slot)
{
    const directory *store = atomic_load_explicit(&cache->store, memory_order_relaxed);
    return store->chunks[slot / STORE_ROWS]->rows + (size_t)slot % STORE_ROWS * cache->row_bytes;
}

void aimo_cache_widen(const aimo_cache *cache, const void *row, float *dst)
{
    if (cache->type == AIMO_ROWS_F16) {
        aimo_f16_to_f32(row, dst, cache->dim);
        return;
    }
    const int8_t *codes = row;
    for (size_t i = 0; i < cache->dim; i++)
        dst[i] = (float)codes[i];
}

aimo_status aimo_cache_check_vectors(const float *x, size_t n, size_t dim, const char *what,
                                     aimo_error *err)
{
    for (size_t i = 0; i < n; i++) {
        const double square = aimo_squared_norm(x + i * dim, dim);
        if (!isfinite(square))
            return aimo_fail(err, AIMO_ERR_ARGUMENT, "%s %zu: not every element is finite", what,
                             i);
        if (square == 0.0)
            return aimo_fail(err, AIMO_ERR_ARGUMENT, "%s %zu: a zero vector has no direction", what,
                             i);
    }
    return AIMO_OK;
}

static void encode_f16(const float *x, size_t n, float *scratch, uint16_t *row)
{
    const double inverse = 1.0 / sqrt(aimo_squared_norm(x, n));
    for (size_t i = 0; i < n; i++)
        scratch[i] = (float)((double)x[i] * inverse);
    aimo_f32_to_f16(scratch, row, n);
}

static void encode_int8(const float *x, size_t n, int8_t *row)
{
    const double max = aimo_largest(x, n);
    for (size_t i = 0; i < n; i++)
        row[i] = (int8_t)nearbyint((double)x[i] / max * 127.0);
}

/* The norm of a stored row is never 0: with dim at most 65536, its largest element is stored as at
 * least 1 / 256. */
static void finish_row(aimo_cache *cache, int64_t slot)
{
    const directory *store = atomic_load_explicit(&cache->store, memory_order_relaxed);
    aimo_cache_widen(cache, row_of(cache, slot), cache->widened);
    store->chunks[slot / STORE_ROWS]->inverse_norms[slot % STORE_ROWS] =
        1.0 / sqrt(aimo_squared_norm(cache->widened, cache->dim));
}

/* ---- changes, with the lock held ----------------------------------------------------------- */

/* The row is in its slot already; adds it to its context. */
static aimo_status enter_row(aimo_cache *cache, int64_t slot, int64_t context, aimo_error *err)
{
    list *l;
    AIMO_TRY(aimo_context_make_room(cache, context, &l, err));
    const uint64_t birth = atomic_load_explicit(&cache->version, memory_order_relaxed) + 1;
    const uint32_t position =
        aimo_chunk_append(cache, l->chunks[l->open], (uint32_t)slot, birth, cache->widened);
    *aimo_cache_place(cache, slot) =
        (slot_place){.context = context, .position = l->open * CHUNK_ROWS + position};
    atomic_fetch_add_explicit(&cache->row_count, 1, memory_order_relaxed);
    aimo_cache_publish(cache);
    return AIMO_OK;
}

static aimo_status add_one(aimo_cache *cache, const float *x, int64_t context, int64_t *slot,
                           aimo_error *err)
{
    AIMO_TRY(take_slot(cache, slot, err));
    void *row = row_of(cache, *slot);
    if (cache->type == AIMO_ROWS_F16)
        encode_f16(x, cache->dim, cache->widened, row);
    else
        encode_int8(x, cache->dim, row);
    finish_row(cache, *slot);
    const aimo_status status = enter_row(cache, *slot, context, err);
    if (status != AIMO_OK)
        give_slot_back(cache, *slot);
    return status;
}

static bool is_live(const aimo_cache *cache, int64_t slot)
{
    return slot >= 0 && slot < (int64_t)cache->slot_count &&
           aimo_cache_place(cache, slot)->position != AIMO_NO_POSITION;
}

static void remove_live(aimo_cache *cache, int64_t slot)
{
    const slot_place place = *aimo_cache_place(cache, slot);
    list *l = aimo_cache_find(cache, place.context);
    const uint32_t index = place.position / CHUNK_ROWS;
    chunk *c = l->chunks[index];
    atomic_store_explicit(&c->deaths[place.position % CHUNK_ROWS],
                          atomic_load_explicit(&cache->version, memory_order_relaxed) + 1,
                          memory_order_release);
    c->dead++;
    atomic_fetch_sub_explicit(&cache->row_count, 1, memory_order_relaxed);
    aimo_cache_publish(cache);
    aimo_cache_retire_slot(cache, slot);
    aimo_context_tidy(cache, l, index);
    aimo_cache_reclaim_when_due(cache);
}

/* ---- public -------------------------------------------------------------------------------- */

aimo_status aimo_cache_new(aimo_cache **out, size_t dim, aimo_row_type type, aimo_error *err)
{
    *out = NULL;
    if (dim == 0 || dim > AIMO_CACHE_MAX_DIM)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "cache: expected dim from 1 to %d, got %zu",
                         AIMO_CACHE_MAX_DIM, dim);
    aimo_cache *cache;
    AIMO_TRY(aimo_memory_new_zero((void **)&cache, 1, sizeof *cache, "cache", err));
    cache->dim = dim;
    cache->type = type;
    cache->row_bytes = dim * (type == AIMO_ROWS_F16 ? sizeof(uint16_t) : sizeof(int8_t));
    cache->kernels = aimo_similarity_select(aimo_cpu_enabled());
    cache->free_slots = NO_SLOT;
    cache->old.slots = cache->young.slots = NO_SLOT;
    atomic_store(&cache->bytes, aimo_cache_held_bytes(sizeof *cache));
    for (size_t i = 0; i < PIN_COUNT; i++)
        atomic_init(&cache->pins[i].version, AIMO_IDLE);
    pthread_mutex_init(&cache->lock, NULL);
    pthread_mutex_init(&cache->optimize_lock, NULL);
    aimo_cache_register(cache);
    directory *store;
    aimo_status status =
        aimo_cache_memory_new(cache, (void **)&cache->widened, dim * sizeof(float), "cache", err);
    if (status == AIMO_OK && (status = directory_new(cache, 0, &store, err)) == AIMO_OK)
        atomic_init(&cache->store, store);
    if (status == AIMO_OK)
        status = aimo_table_init(cache, err);
    if (status != AIMO_OK)
        aimo_cache_free(cache);
    else
        *out = cache;
    return status;
}

static void free_contexts(aimo_cache *cache)
{
    table *t = atomic_load(&cache->contexts);
    if (t == NULL)
        return;
    aimo_table_retire_all(cache, t);
    aimo_cache_retire(cache, &t->link);
}

static void free_store(aimo_cache *cache)
{
    directory *store = atomic_load(&cache->store);
    if (store == NULL)
        return;
    for (size_t i = 0; i < store->chunk_count; i++)
        aimo_cache_memory_free(cache, store->chunks[i], store_chunk_bytes(cache));
    aimo_cache_retire(cache, &store->link);
}

void aimo_cache_free(aimo_cache *cache)
{
    if (cache == NULL)
        return;
    aimo_cache_unregister(cache);
    free_contexts(cache);
    free_store(cache);
    if (cache->basis != NULL)
        aimo_basis_release(cache, cache->basis);
    aimo_cache_free_retired(cache);
    if (cache->device.screen != NULL)
        cache->device.screen->ops->free(cache->device.screen);
    aimo_memory_free(cache->widened);
    pthread_mutex_destroy(&cache->lock);
    pthread_mutex_destroy(&cache->optimize_lock);
    aimo_memory_free(cache);
}

size_t aimo_cache_dim(const aimo_cache *cache) { return cache->dim; }

aimo_row_type aimo_cache_row_type(const aimo_cache *cache) { return cache->type; }

size_t aimo_cache_count(const aimo_cache *cache)
{
    return atomic_load_explicit(&cache->row_count, memory_order_relaxed);
}

size_t aimo_cache_bytes(const aimo_cache *cache)
{
    return atomic_load_explicit(&cache->bytes, memory_order_relaxed);
}

static void remove_all(aimo_cache *cache, const int64_t *slots, size_t n)
{
    pthread_mutex_lock(&cache->lock);
    for (size_t i = 0; i < n; i++)
        if (is_live(cache, slots[i]))
            remove_live(cache, slots[i]);
    pthread_mutex_unlock(&cache->lock);
}

aimo_status aimo_cache_add(aimo_cache *cache, const float *vectors, const int64_t *contexts,
                           size_t n, int64_t *slots, aimo_error *err)
{
    AIMO_TRY(aimo_cache_check_vectors(vectors, n, cache->dim, "vector", err));
    for (size_t i = 0; i < n; i++) {
        /* Locks row by row, so that another writer waits for one row, not for all of them. */
        pthread_mutex_lock(&cache->lock);
        const aimo_status status =
            add_one(cache, vectors + i * cache->dim, contexts[i], &slots[i], err);
        pthread_mutex_unlock(&cache->lock);
        if (status == AIMO_OK)
            continue;
        remove_all(cache, slots, i);
        return status;
    }
    return AIMO_OK;
}

aimo_status aimo_cache_remove(aimo_cache *cache, int64_t slot, aimo_error *err)
{
    pthread_mutex_lock(&cache->lock);
    const bool live = is_live(cache, slot);
    if (live)
        remove_live(cache, slot);
    pthread_mutex_unlock(&cache->lock);
    if (!live)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "slot %lld holds no row", (long long)slot);
    return AIMO_OK;
}

aimo_status aimo_cache_vector(aimo_cache *cache, int64_t slot, float *out, aimo_error *err)
{
    pthread_mutex_lock(&cache->lock);
    const bool live = is_live(cache, slot);
    if (live)
        aimo_cache_widen(cache, row_of(cache, slot), out);
    pthread_mutex_unlock(&cache->lock);
    if (!live)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "slot %lld holds no row", (long long)slot);
    if (cache->type == AIMO_ROWS_INT8)
        for (size_t i = 0; i < cache->dim; i++)
            out[i] /= 128.0f;
    return AIMO_OK;
}

/* ---- restoring ------------------------------------------------------------------------------- */

static aimo_status check_row(const aimo_cache *cache, const void *row, size_t index,
                             aimo_error *err)
{
    if (cache->type == AIMO_ROWS_F16) {
        const uint16_t *x = row;
        bool zero = true;
        for (size_t i = 0; i < cache->dim; i++) {
            if ((x[i] & 0x7fff) > 0x3c00)
                return aimo_fail(err, AIMO_ERR_ARGUMENT, "row %zu: not normalised", index);
            zero = zero && (x[i] & 0x7fff) == 0;
        }
        if (zero)
            return aimo_fail(err, AIMO_ERR_ARGUMENT, "row %zu: zero", index);
        return AIMO_OK;
    }
    const int8_t *x = row;
    int largest = 0;
    for (size_t i = 0; i < cache->dim; i++)
        largest = x[i] > largest ? x[i] : -x[i] > largest ? -x[i] : largest;
    if (largest != 127)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "row %zu: its largest code is not 127", index);
    return AIMO_OK;
}

static int by_value(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* *highest = the largest slot, or -1 when there are none. */
static aimo_status check_slots(const int64_t *slots, size_t n, int64_t *highest, aimo_error *err)
{
    int64_t *sorted;
    AIMO_TRY(aimo_memory_new((void **)&sorted, n, sizeof *slots, "slots", err));
    if (n != 0)
        memcpy(sorted, slots, n * sizeof *slots);
    qsort(sorted, n, sizeof *sorted, by_value);
    aimo_status status = AIMO_OK;
    for (size_t i = 0; i < n && status == AIMO_OK; i++)
        if (sorted[i] < 0 || sorted[i] >= (int64_t)AIMO_NO_POSITION ||
            (i != 0 && sorted[i] == sorted[i - 1]))
            status = aimo_fail(err, AIMO_ERR_ARGUMENT, "slot %lld: out of range or duplicate",
                               (long long)sorted[i]);
    *highest = n != 0 ? sorted[n - 1] : NO_SLOT;
    aimo_memory_free(sorted);
    return status;
}

/* With the lock held: creates slots 0 to highest; those without a row are free. */
static aimo_status reserve_slots(aimo_cache *cache, int64_t highest, aimo_error *err)
{
    while (((directory *)atomic_load(&cache->store))->chunk_count * STORE_ROWS <=
           (size_t)highest + (highest < 0)) {
        AIMO_TRY(store_grow(cache, err));
        aimo_cache_reclaim_when_due(cache); /* the directories before */
    }
    cache->slot_count = (size_t)(highest + 1);
    return AIMO_OK;
}

static aimo_status restore_rows(aimo_cache *cache, const void *rows, const int64_t *slots,
                                const int64_t *contexts, size_t n, aimo_error *err)
{
    for (size_t i = 0; i < n; i++) {
        memcpy(row_of(cache, slots[i]), (const char *)rows + i * cache->row_bytes,
               cache->row_bytes);
        finish_row(cache, slots[i]);
        const aimo_status status = enter_row(cache, slots[i], contexts[i], err);
        aimo_cache_reclaim_when_due(cache); /* the lists of rows before */
        if (status == AIMO_OK)
            continue;
        while (i-- > 0)
            remove_live(cache, slots[i]);
        return status;
    }
    return AIMO_OK;
}

aimo_status aimo_cache_restore(aimo_cache *cache, const void *rows, const int64_t *slots,
                               const int64_t *contexts, size_t n, aimo_error *err)
{
    int64_t highest;
    AIMO_TRY(check_slots(slots, n, &highest, err));
    for (size_t i = 0; i < n; i++)
        AIMO_TRY(check_row(cache, (const char *)rows + i * cache->row_bytes, i, err));
    if (n == 0)
        return AIMO_OK;
    pthread_mutex_lock(&cache->lock);
    aimo_status status = AIMO_OK;
    if (cache->slot_count != 0)
        status = aimo_fail(err, AIMO_ERR_ARGUMENT, "restore: the cache has been used");
    if (status == AIMO_OK)
        status = reserve_slots(cache, highest, err);
    if (status == AIMO_OK &&
        (status = restore_rows(cache, rows, slots, contexts, n, err)) == AIMO_OK)
        for (int64_t slot = highest; slot >= 0; slot--)
            if (!is_live(cache, slot))
                give_slot_back(cache, slot);
    pthread_mutex_unlock(&cache->lock);
    return status;
}
