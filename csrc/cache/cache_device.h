/* Searching with a device: full chunks have copies there, and a screen says which of their rows are
 * worth comparing. That is all it does: scores, ties and order come from the CPU as they do without
 * one, so an answer does not depend on whether, or how well, a device works.
 *
 * A copy is made by aimo_cache_optimize, of a chunk that is full and therefore changes no more but
 * for deaths, and is retired with its chunk. Rows that were dead by then are left out of it, so it
 * is right for searches from that version on. Whatever fails leaves the CPU to do the work. */
#ifndef AIMO_CACHE_CACHE_DEVICE_H
#define AIMO_CACHE_CACHE_DEVICE_H

#include "cache/cache_internal.h"

/* Queries that walk the chunks together when most rows have copies: a device looks through rows for
 * many queries as fast as for one. */
enum { DEVICE_TILE_QUERIES = 256 };

/* A full chunk's copy, NULL while it has none. */
_Atomic(device_copy *) *aimo_chunk_copy(const chunk *c);

/* With the lock held: for a full chunk that is being retired, and for copies that no search can
 * hold any more. */
void aimo_device_retire_copy(aimo_cache *cache, const chunk *c);
void aimo_device_free_copies(aimo_cache *cache, generation *g);

/* Copies those full chunks of a context that have none. */
void aimo_device_copy_context(aimo_cache *cache, int64_t context);

/* Whether most rows have copies, and searches at the threshold use them. */
bool aimo_device_has_most(const aimo_cache *cache, double threshold);

/* What a device found in the chunks of a list. */
typedef struct {
    void *memory;       /* NULL: nothing, no chunk was looked through */
    uint32_t *place_of; /* [chunk_count]: of a chunk among those that were looked through */
    const aimo_screen_candidate *candidates; /* by position, then query */
    size_t count, next;
} device_pass;

/* Under a pin: looks for rows whose cosine with a unit query [n][dim] reaches the bar. */
void aimo_device_pass_begin(device_pass *pass, aimo_cache *cache, const list *l, uint64_t version,
                            const float *const *queries, size_t n, double bar);
/* Chunks are asked for in order. False: chunk `index` was not looked through. Else *candidates
 * [*count] are all its rows that may reach the bar: positions modulo CHUNK_ROWS. */
bool aimo_device_pass_chunk(device_pass *pass, uint32_t index,
                            const aimo_screen_candidate **candidates, size_t *count);
void aimo_device_pass_end(device_pass *pass);

#endif
