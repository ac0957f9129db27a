/* A cache's layout in memory, and the rules by which readers and writers share it.
 *
 * Rows live in the store, by slot. Each context has a list of chunks. A chunk holds positions; a
 * position names a slot and the versions in which its row exists: from `births` until `deaths`. A
 * change takes the lock, writes, and then raises the version. A search takes a pin, then the list,
 * then the version, and sees the rows that exist in that version:
 *
 *   - Positions of a chunk are only ever appended, then published by `count`. A dead one stays
 *     until its chunk is rebuilt and replaced as a whole, in a new list.
 *   - What a list, a chunk or a slot held is used again only when no search is pinned that could
 *     have seen it: every pin is at or above the version at which it was retired.
 *
 * So readers never wait for writers, and every answer is that of one version. */
#ifndef AIMO_CACHE_CACHE_INTERNAL_H
#define AIMO_CACHE_CACHE_INTERNAL_H

#include "backend/row_screen.h"
#include "cache/cache.h"
#include "cache/cache_bound.h"
#include "cache/cache_retired.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

enum {
    CHUNK_ROWS = 2048,   /* of a full chunk; smaller ones are powers of two */
    SMALLEST_CODED = 64, /* smaller chunks are searched row by row, which is cheap enough */
    STORE_ROWS = 1024,   /* of a store chunk */
    PIN_COUNT = 128,     /* concurrent searches; further ones wait for one to end */
    NO_SLOT = -1,
};
#define AIMO_ALIVE UINT64_MAX /* the death of a live row */
#define AIMO_IDLE UINT64_MAX  /* a pin that nobody holds */
#define AIMO_NO_POSITION UINT32_MAX

typedef struct {
    retired link;
    aimo_basis *basis; /* NULL: no codes */
    uint32_t capacity;
    uint32_t dead;            /* protected by lock */
    _Atomic uint32_t count;   /* positions that are published */
    _Atomic uint32_t blocks;  /* of AIMO_HEAD_BLOCK positions, coded */
    uint64_t *births;         /* [capacity] */
    _Atomic uint64_t *deaths; /* [capacity] */
    uint32_t *slots;          /* [capacity] */
    uint8_t *codes;           /* [capacity / 16, head / 8, 16, 4], as aimo_heads has it */
    uint16_t *rests;          /* [capacity] */
    aimo_tail *tails;         /* [capacity] */
} chunk;

/* A full chunk's copy on a device, see cache_device.h. The pointer to it is at the end of the
 * chunk's block. */
typedef struct device_copy {
    struct device_copy *next; /* in a generation's list of retired copies */
    aimo_screen_rows *rows;
    uint64_t since; /* serves searches of this version and later ones */
} device_copy;

/* Immutable except for `open`. A small context's only chunk is in the same block. */
typedef struct {
    retired link;
    int64_t context;
    uint32_t chunk_count;
    uint32_t open; /* the chunk that rows are appended to; protected by lock */
    chunk *chunks[];
} list;

typedef struct {
    retired link;
    size_t capacity; /* a power of two */
    size_t used;     /* lists and tombstones; protected by lock */
    _Atomic(list *) entries[];
} table;

/* The part of a slot that only writers read. */
typedef struct {
    int64_t context;   /* of a live slot; the next slot of its chain otherwise */
    uint32_t position; /* chunk index * CHUNK_ROWS + index; AIMO_NO_POSITION: not live */
} slot_place;

typedef struct {
    double *inverse_norms; /* [STORE_ROWS] */
    slot_place *places;    /* [STORE_ROWS], protected by lock */
    char *rows;            /* [STORE_ROWS, row_bytes] */
} store_chunk;

typedef struct {
    retired link;
    size_t chunk_count;
    store_chunk *chunks[];
} directory;

/* Things that were retired together; they are freed when every pin has reached the stamp. */
typedef struct {
    uint64_t stamp;
    int64_t slots; /* chained through their places */
    retired *blocks;
    device_copy *copies;
    size_t size; /* number of things in it, large blocks counting as several */
} generation;

typedef struct {
    _Alignas(AIMO_CACHE_LINE) _Atomic uint64_t version;
} pin;

typedef struct {
    aimo_row_screen *screen; /* NULL: none */
    atomic_bool lost;        /* it failed and is no longer used */
    atomic_size_t rows, searches, failures;
    _Atomic double
        crowded;      /* at this threshold, and so below it, a search found too many candidates */
    aimo_error error; /* protected by lock */
} device_use;

struct aimo_cache {
    size_t dim;
    size_t row_bytes;
    aimo_row_type type;
    const aimo_similarity_kernels *kernels;

    _Atomic uint64_t version;
    _Atomic(table *) contexts;
    _Atomic(directory *) store;
    atomic_size_t row_count;
    atomic_size_t bytes;

    pthread_mutex_t lock;
    /* Protected by lock: */
    size_t slot_count; /* slots ever used */
    size_t context_count;
    int64_t free_slots; /* chained */
    generation old, young;
    aimo_basis *basis; /* for new chunks; NULL before the first aimo_cache_optimize */
    float *widened;    /* [dim], working memory */

    device_use device;
    pthread_mutex_t optimize_lock;      /* taken before lock */
    struct aimo_cache *previous, *next; /* all caches; protected by the registry's lock */
    pin pins[PIN_COUNT];
};

AIMO_INLINE const void *aimo_store_row(const aimo_cache *cache, const directory *store,
                                       uint32_t slot)
{
    return store->chunks[slot / STORE_ROWS]->rows + slot % STORE_ROWS * cache->row_bytes;
}

AIMO_INLINE double aimo_store_inverse_norm(const directory *store, uint32_t slot)
{
    return store->chunks[slot / STORE_ROWS]->inverse_norms[slot % STORE_ROWS];
}

/* The list of a context, NULL when there is none; with a pin or the lock held. */
list *aimo_cache_find(const aimo_cache *cache, int64_t context);

/* Between these two calls the fork handlers look after the cache. */
void aimo_cache_register(aimo_cache *cache);
void aimo_cache_unregister(aimo_cache *cache);

/* A pin keeps alive everything that is reachable from now on. Waits only while all pins are
 * taken. */
pin *aimo_cache_pin(aimo_cache *cache);
void aimo_cache_unpin(pin *p);

/* AIMO_ERR_ARGUMENT unless the vectors [n, dim] are finite and none is zero. */
aimo_status aimo_cache_check_vectors(const float *vectors, size_t n, size_t dim, const char *what,
                                     aimo_error *err);

/* For writers, with the lock held: */

/* Makes what was written visible to searches that start from now on. */
void aimo_cache_publish(aimo_cache *cache);
/* Takes over a `block` that was unlinked, and frees it when no search can hold it any more. */
void aimo_cache_retire(aimo_cache *cache, retired *block);
/* Frees what was retired and no search can hold any more; the second does so only when that may be
 * a lot. The caller must not use anything retired afterwards. */
void aimo_cache_reclaim(aimo_cache *cache);
void aimo_cache_reclaim_when_due(aimo_cache *cache);
/* When the cache is freed: frees everything that was retired. */
void aimo_cache_free_retired(aimo_cache *cache);
/* Takes over a slot whose row was removed; it is reused when no search can see that row any
 * more. */
void aimo_cache_retire_slot(aimo_cache *cache, int64_t slot);
/* Memory that aimo_cache_bytes counts. The last one says what the allocator really takes for
 * `bytes`. */
aimo_status aimo_cache_memory_new(aimo_cache *cache, void **out, size_t bytes, const char *what,
                                  aimo_error *err);
void aimo_cache_memory_free(aimo_cache *cache, void *block, size_t bytes);
size_t aimo_cache_held_bytes(size_t bytes);
/* A block of `bytes` that starts with its retired link, counted in cache->bytes. */
aimo_status aimo_cache_block_new(aimo_cache *cache, void **out, size_t bytes, const char *what,
                                 aimo_error *err);
/* Frees a block that no search has seen. */
void aimo_cache_block_free(aimo_cache *cache, retired *block);
void aimo_basis_release(aimo_cache *cache, aimo_basis *basis);
void aimo_basis_hold(aimo_basis *basis);

/* A slot's place. */
slot_place *aimo_cache_place(const aimo_cache *cache, int64_t slot);

/* dst [dim] = a stored row, widened to f32 without scaling. */
void aimo_cache_widen(const aimo_cache *cache, const void *row, float *dst);

#endif
