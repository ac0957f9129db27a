/* Searching with a device: full chunks have copies there, and a screen says which of their rows are
 * worth comparing. It does nothing else: scores, ties and order come from the CPU, as without a
 * device, so an answer never depends on whether, or how well, the device works.
 *
 * aimo_cache_optimize makes the copies. A copied chunk is full, so nothing in it changes any more
 * except that rows die; the copy is retired with its chunk. Rows that were already dead are left
 * out, so a copy serves searches of that version and later ones. When anything fails, the CPU does
 * the work. */
#ifndef AIMO_CACHE_CACHE_DEVICE_H
#define AIMO_CACHE_CACHE_DEVICE_H

#include "cache/cache_internal.h"

/* Queries that walk the chunks together when most rows have copies: a device screens rows for many
 * queries as fast as for one. */
enum { DEVICE_TILE_QUERIES = 256 };

/* A full chunk's copy, NULL while it has none. */
_Atomic(device_copy *) *aimo_chunk_copy(const chunk *c);

/* With the lock held. The first is for a full chunk that is being retired, the second for copies
 * that no search can hold any more. */
void aimo_device_retire_copy(aimo_cache *cache, const chunk *c);
void aimo_device_free_copies(aimo_cache *cache, generation *g);

/* Copies the full chunks of a context that have no copy yet. */
void aimo_device_copy_context(aimo_cache *cache, int64_t context);

/* Whether most rows have copies, and searches at the threshold use them. */
bool aimo_device_has_most(const aimo_cache *cache, double threshold);

/* What a device found in the chunks of a list. */
typedef struct {
    void *memory;       /* NULL: no chunk was screened */
    uint32_t *place_of; /* [chunk_count]: a chunk's index among those that were screened */
    const aimo_screen_candidate *candidates; /* by position, then query */
    size_t count, next;
} device_pass;

/* Under a pin: screens for rows whose cosine with a unit query [n][dim] reaches the bar. */
void aimo_device_pass_begin(device_pass *pass, aimo_cache *cache, const list *l, uint64_t version,
                            const float *const *queries, size_t n, double bar);
/* Call for the chunks in order. False: chunk `index` was not screened. Otherwise *candidates
 * [*count] are all its rows that may reach the bar: positions modulo CHUNK_ROWS. */
bool aimo_device_pass_chunk(device_pass *pass, uint32_t index,
                            const aimo_screen_candidate **candidates, size_t *count);
void aimo_device_pass_end(device_pass *pass);

#endif
