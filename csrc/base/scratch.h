/* Working memory that is leased instead of allocated, so that the hot path never grows the heap.
 *
 * There is one bounded pool per process. A lease takes the smallest idle block that is large
 * enough, or replaces one that is too small, so the pool's size settles at (concurrent leases) x
 * (largest request). */
#ifndef AIMO_BASE_SCRATCH_H
#define AIMO_BASE_SCRATCH_H

#include "base/status.h"

#include <stddef.h>

/* *out = at least `bytes` bytes aligned to AIMO_CACHE_LINE, contents undefined. Blocks while the
 * maximum number of leases is out, so never take a second lease while holding one: that can
 * deadlock. AIMO_ERR_MEMORY when a block cannot be allocated; nothing is leased then. */
AIMO_MUST_CHECK aimo_status aimo_scratch_lease(void **out, size_t bytes, aimo_error *err);

/* Returns a leased block to the pool. */
void aimo_scratch_return(void *block);

/* Installs the fork handlers; call once. */
void aimo_scratch_init(void);

/* Frees the idle blocks. */
void aimo_scratch_trim(void);

/* Bytes of all blocks, leased and idle. */
size_t aimo_scratch_bytes(void);

#endif
