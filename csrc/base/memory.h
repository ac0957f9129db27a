/* Aligned memory: the only place in the library that calls malloc and free.
 *
 * Every block is aligned to a cache line and counted, so tests can prove that objects leak nothing;
 * they can also make the n-th allocation fail. */
#ifndef AIMO_BASE_MEMORY_H
#define AIMO_BASE_MEMORY_H

#include "base/status.h"

#include <stddef.h>

/* *out = count * size bytes, aligned to AIMO_CACHE_LINE, contents undefined; a zero size gives a
 * block that can be freed. `what` names the block in the error. */
AIMO_MUST_CHECK aimo_status aimo_memory_new(void **out, size_t count, size_t size, const char *what,
                                            aimo_error *err);
/* The same, filled with zero bytes. */
AIMO_MUST_CHECK aimo_status aimo_memory_new_zero(void **out, size_t count, size_t size,
                                                 const char *what, aimo_error *err);
/* NULL is ignored. */
void aimo_memory_free(void *block);

/* Bytes allocated here and not yet freed, process-wide. */
size_t aimo_memory_live_bytes(void);

/* For tests: every allocation after the next `count` fails; a negative count switches this off. */
void aimo_memory_fail_after(long count);

#endif
