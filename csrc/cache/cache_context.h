/* From a context to its list of chunks. All for writers, with the cache's lock held. */
#ifndef AIMO_CACHE_CACHE_CONTEXT_H
#define AIMO_CACHE_CACHE_CONTEXT_H

#include "cache/cache_internal.h"

AIMO_MUST_CHECK aimo_status aimo_table_init(aimo_cache *cache, aimo_error *err);

/* Retires every list and chunk, when the cache is freed. */
void aimo_table_retire_all(aimo_cache *cache, table *t);

/* *out = the context's list, with room for another row in chunk (*out)->open.
 * AIMO_ERR_MEMORY: nothing changed. */
AIMO_MUST_CHECK aimo_status aimo_context_make_room(aimo_cache *cache, int64_t context, list **out,
                                                   aimo_error *err);

/* Tidies up after a row of chunk `index` died: rebuilds the chunk, or shrinks that of a small
 * context, when many of its rows are dead, and drops a chunk or list that is empty. Without memory
 * it leaves things as they are. */
void aimo_context_tidy(aimo_cache *cache, list *l, uint32_t index);

/* Recodes, with the cache's basis, a context whose only chunk is smaller than a full one. */
AIMO_MUST_CHECK aimo_status aimo_context_recode_small(aimo_cache *cache, list *l, aimo_error *err);

/* A full chunk that no search has seen. */
AIMO_MUST_CHECK aimo_status aimo_full_chunk_new(aimo_cache *cache, chunk **out, aimo_error *err);
void aimo_full_chunk_free(aimo_cache *cache, chunk *c);

/* Replaces chunk `index` by `replacement` and updates the places of its rows. AIMO_ERR_MEMORY:
 * nothing changed, and the caller still owns the replacement. */
AIMO_MUST_CHECK aimo_status aimo_context_replace_chunk(aimo_cache *cache, list *l, uint32_t index,
                                                       chunk *replacement, aimo_error *err);

#endif
