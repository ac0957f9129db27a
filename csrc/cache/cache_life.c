/* The lifetime of what readers may hold: counted memory, pins, retired blocks and slots, and what
 * becomes of them in a forked child. cache_internal.h has the rules. */
#include "cache/cache.h"

#include "base/memory.h"
#include "cache/cache_device.h"
#include "cache/cache_internal.h"

#include <sched.h>

enum {
    /* Looking at every pin costs as much as a small change, so it is done once per this many
     * retired things, where a large block counts as several. */
    GENERATION_SIZE = 256,
    RETIRED_THING = 4096,
};

/* ---- fork -------------------------------------------------------------------------------- */

static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static aimo_cache *caches; /* protected by registry_lock */

/* The child never sees a half-done change, because the fork handlers take every lock that writers
 * hold. An optimization may be under way: it holds no lock while it computes, and only what it had
 * not yet published is lost. */
static void before_fork(void)
{
    pthread_mutex_lock(&registry_lock);
    for (aimo_cache *c = caches; c != NULL; c = c->next)
        pthread_mutex_lock(&c->lock);
}

static void after_fork_in_parent(void)
{
    for (aimo_cache *c = caches; c != NULL; c = c->next)
        pthread_mutex_unlock(&c->lock);
    pthread_mutex_unlock(&registry_lock);
}

/* The threads that held pins do not exist in the child. */
static void after_fork_in_child(void)
{
    for (aimo_cache *c = caches; c != NULL; c = c->next) {
        pthread_mutex_init(&c->lock, NULL);
        pthread_mutex_init(&c->optimize_lock, NULL);
        for (size_t i = 0; i < PIN_COUNT; i++)
            atomic_store(&c->pins[i].version, AIMO_IDLE);
    }
    pthread_mutex_init(&registry_lock, NULL);
}

void aimo_cache_init(void)
{
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

void aimo_cache_register(aimo_cache *cache)
{
    pthread_mutex_lock(&registry_lock);
    cache->previous = NULL;
    cache->next = caches;
    if (caches != NULL)
        caches->previous = cache;
    caches = cache;
    pthread_mutex_unlock(&registry_lock);
}

void aimo_cache_unregister(aimo_cache *cache)
{
    pthread_mutex_lock(&registry_lock);
    if (cache->previous != NULL)
        cache->previous->next = cache->next;
    else
        caches = cache->next;
    if (cache->next != NULL)
        cache->next->previous = cache->previous;
    pthread_mutex_unlock(&registry_lock);
}

/* ---- pins and reclamation ---------------------------------------------------------------- */

/* Different threads start looking for a free pin at different places. */
static size_t first_pin(void)
{
    static atomic_size_t threads;
    static _Thread_local size_t mine;
    if (mine == 0)
        mine = atomic_fetch_add_explicit(&threads, 1, memory_order_relaxed) + 1;
    return mine % PIN_COUNT;
}

pin *aimo_cache_pin(aimo_cache *cache)
{
    for (size_t i = first_pin(), tried = 1;; i = (i + 1) % PIN_COUNT, tried++) {
        uint64_t idle = AIMO_IDLE;
        pin *p = &cache->pins[i];
        if (atomic_load_explicit(&p->version, memory_order_relaxed) == AIMO_IDLE &&
            atomic_compare_exchange_strong(&p->version, &idle, atomic_load(&cache->version))) {
            /* A writer that did not see this pin had raised the version before it looked at the
             * pins, and whoever reads that version also sees everything that was unlinked before.
             * Without re-reading the version here, a processor that reorders an acquire load before
             * the store of the pin could still find what was unlinked. */
            (void)atomic_load(&cache->version);
            return p;
        }
        if (tried % PIN_COUNT == 0)
            sched_yield();
    }
}

void aimo_cache_unpin(pin *p) { atomic_store(&p->version, AIMO_IDLE); }

void aimo_cache_publish(aimo_cache *cache) { atomic_fetch_add(&cache->version, 1); }

static uint64_t lowest_pin(const aimo_cache *cache)
{
    uint64_t lowest = UINT64_MAX;
    for (size_t i = 0; i < PIN_COUNT; i++) {
        const uint64_t version = atomic_load(&cache->pins[i].version);
        lowest = version < lowest ? version : lowest;
    }
    return lowest;
}

/* What the allocator really takes: a header line, and whole lines. */
size_t aimo_cache_held_bytes(size_t bytes)
{
    return (bytes + 2 * AIMO_CACHE_LINE - 1) / AIMO_CACHE_LINE * AIMO_CACHE_LINE;
}

aimo_status aimo_cache_memory_new(aimo_cache *cache, void **out, size_t bytes, const char *what,
                                  aimo_error *err)
{
    AIMO_TRY(aimo_memory_new(out, 1, bytes, what, err));
    atomic_fetch_add_explicit(&cache->bytes, aimo_cache_held_bytes(bytes), memory_order_relaxed);
    return AIMO_OK;
}

void aimo_cache_memory_free(aimo_cache *cache, void *block, size_t bytes)
{
    aimo_memory_free(block);
    atomic_fetch_sub_explicit(&cache->bytes, aimo_cache_held_bytes(bytes), memory_order_relaxed);
}

aimo_status aimo_cache_block_new(aimo_cache *cache, void **out, size_t bytes, const char *what,
                                 aimo_error *err)
{
    AIMO_TRY(aimo_cache_memory_new(cache, out, bytes, what, err));
    *(retired *)*out = (retired){.bytes = bytes};
    return AIMO_OK;
}

void aimo_cache_block_free(aimo_cache *cache, retired *block)
{
    aimo_cache_memory_free(cache, block, block->bytes);
}

static void free_blocks(aimo_cache *cache, generation *g)
{
    for (retired *block = g->blocks, *next; block != NULL; block = next) {
        next = block->next;
        aimo_cache_block_free(cache, block);
    }
    g->blocks = NULL;
    aimo_device_free_copies(cache, g);
}

static void free_generation(aimo_cache *cache, generation *g)
{
    free_blocks(cache, g);
    while (g->slots != NO_SLOT) {
        slot_place *place = aimo_cache_place(cache, g->slots);
        const int64_t slot = g->slots;
        g->slots = place->context;
        place->context = cache->free_slots;
        cache->free_slots = slot;
    }
    g->size = 0;
}

/* A search whose pin is not below the stamp has seen every change up to it, so it can reach nothing
 * that was retired before. */
void aimo_cache_reclaim(aimo_cache *cache)
{
    if (cache->old.size != 0 && lowest_pin(cache) < cache->old.stamp)
        return;
    free_generation(cache, &cache->old);
    if (cache->young.size == 0)
        return;
    aimo_cache_publish(cache);
    cache->old = cache->young;
    cache->old.stamp = atomic_load(&cache->version);
    cache->young = (generation){.slots = NO_SLOT};
    if (lowest_pin(cache) >= cache->old.stamp)
        free_generation(cache, &cache->old);
}

void aimo_cache_free_retired(aimo_cache *cache)
{
    free_blocks(cache, &cache->old);
    free_blocks(cache, &cache->young);
}

void aimo_cache_reclaim_when_due(aimo_cache *cache)
{
    if (cache->young.size >= GENERATION_SIZE)
        aimo_cache_reclaim(cache);
}

void aimo_cache_retire(aimo_cache *cache, retired *block)
{
    block->next = cache->young.blocks;
    cache->young.blocks = block;
    cache->young.size += 1 + block->bytes / RETIRED_THING;
}

void aimo_cache_retire_slot(aimo_cache *cache, int64_t slot)
{
    slot_place *place = aimo_cache_place(cache, slot);
    place->position = AIMO_NO_POSITION;
    place->context = cache->young.slots;
    cache->young.slots = slot;
    cache->young.size++;
}

void aimo_basis_hold(aimo_basis *basis) { basis->users++; }

void aimo_basis_release(aimo_cache *cache, aimo_basis *basis)
{
    if (--basis->users == 0)
        aimo_cache_retire(cache, &basis->link);
}
