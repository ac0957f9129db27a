/* Chunks: positions, their lives and their codes. For writers, with the cache's lock held. */
#ifndef AIMO_CACHE_CACHE_CHUNK_H
#define AIMO_CACHE_CACHE_CHUNK_H

#include "cache/cache_internal.h"

/* Bytes of a chunk; basis may be NULL. */
size_t aimo_chunk_bytes(uint32_t capacity, const aimo_basis *basis);
/* Lays out an empty chunk in `block`, aligned to a cache line, and takes a reference to the
 * basis. */
chunk *aimo_chunk_init(void *block, uint32_t capacity, aimo_basis *basis);
/* The basis for a new chunk of this capacity; NULL when its rows are not coded. */
aimo_basis *aimo_chunk_basis(const aimo_cache *cache, uint32_t capacity);

/* Appends a position with its codes and publishes it; it becomes visible with the version that the
 * caller publishes next. widened [dim] is working memory. Returns the position. */
uint32_t aimo_chunk_append(const aimo_cache *cache, chunk *c, uint32_t slot, uint64_t birth,
                           float *widened);
/* Appends the live positions of `from` to the empty chunk `to`, which must have room; codes are
 * copied when the basis is the same. Updating the slots' places is up to the caller. Under a pin
 * the lock is not needed, but then rows may die and be appended meanwhile. Returns how many
 * positions of `from` it looked at. */
uint32_t aimo_chunk_copy_live(const aimo_cache *cache, const chunk *from, chunk *to,
                              float *widened);

#endif
