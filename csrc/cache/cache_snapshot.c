/* Saving rows. A snapshot is a pin and a list of the rows that existed when it was taken: their
 * bytes stay as long as the pin, so only the list is made under the lock. */
#include "cache/cache.h"

#include "base/memory.h"
#include "cache/cache_internal.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    uint64_t birth;
    int64_t context;
    uint32_t slot;
} entry;

struct aimo_cache_snapshot {
    aimo_cache *cache;
    pin *pin;
    const directory *store;
    size_t count;
    entry entries[];
};

static int by_birth(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    return (x->birth > y->birth) - (x->birth < y->birth);
}

/* With the lock held. */
static aimo_status collect(aimo_cache *cache, aimo_cache_snapshot **out, aimo_error *err)
{
    const size_t count = aimo_cache_count(cache);
    size_t bytes;
    AIMO_TRY(aimo_size_mul(count, sizeof(entry), &bytes, "snapshot", err));
    AIMO_TRY(aimo_memory_new((void **)out, 1, sizeof **out + bytes, "snapshot", err));
    aimo_cache_snapshot *s = *out;
    s->cache = cache;
    s->count = 0;
    s->store = atomic_load_explicit(&cache->store, memory_order_relaxed);
    for (size_t slot = 0; slot < cache->slot_count; slot++) {
        const slot_place *place = aimo_cache_place(cache, (int64_t)slot);
        if (place->position == AIMO_NO_POSITION)
            continue;
        const list *l = aimo_cache_find(cache, place->context);
        const chunk *c = l->chunks[place->position / CHUNK_ROWS];
        s->entries[s->count++] = (entry){.birth = c->births[place->position % CHUNK_ROWS],
                                         .context = place->context,
                                         .slot = (uint32_t)slot};
    }
    return AIMO_OK;
}

aimo_status aimo_cache_snapshot_open(aimo_cache *cache, aimo_cache_snapshot **out, aimo_error *err)
{
    *out = NULL;
    pin *p = aimo_cache_pin(cache);
    pthread_mutex_lock(&cache->lock);
    const aimo_status status = collect(cache, out, err);
    pthread_mutex_unlock(&cache->lock);
    if (status != AIMO_OK) {
        aimo_cache_unpin(p);
        return status;
    }
    (*out)->pin = p;
    qsort((*out)->entries, (*out)->count, sizeof(entry), by_birth);
    return AIMO_OK;
}

size_t aimo_cache_snapshot_count(const aimo_cache_snapshot *snapshot) { return snapshot->count; }

void aimo_cache_snapshot_read(const aimo_cache_snapshot *snapshot, void *rows, int64_t *slots,
                              int64_t *contexts)
{
    const aimo_cache *cache = snapshot->cache;
    for (size_t i = 0; i < snapshot->count; i++) {
        const entry *e = &snapshot->entries[i];
        memcpy((char *)rows + i * cache->row_bytes, aimo_store_row(cache, snapshot->store, e->slot),
               cache->row_bytes);
        slots[i] = (int64_t)e->slot;
        contexts[i] = e->context;
    }
}

void aimo_cache_snapshot_close(aimo_cache_snapshot *snapshot)
{
    aimo_cache_unpin(snapshot->pin);
    aimo_memory_free(snapshot);
}
