/* Aligned memory. The block's size is kept in the cache line before it, because free() does not
 * receive it. */
#include "base/memory.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static atomic_size_t live_bytes;
static atomic_long allocations_before_failure = -1;

static bool failure_is_due(void)
{
    long left = atomic_load_explicit(&allocations_before_failure, memory_order_relaxed);
    while (left > 0) {
        if (atomic_compare_exchange_weak(&allocations_before_failure, &left, left - 1))
            return false;
    }
    return left == 0;
}

aimo_status aimo_memory_new(void **out, size_t count, size_t size, const char *what,
                            aimo_error *err)
{
    *out = NULL;
    size_t bytes;
    AIMO_TRY(aimo_size_mul(count, size, &bytes, what, err));
    if (bytes > SIZE_MAX - 2 * AIMO_CACHE_LINE)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "%s: %zu bytes do not fit in memory", what, bytes);
    const size_t padded = (bytes + AIMO_CACHE_LINE - 1) / AIMO_CACHE_LINE * AIMO_CACHE_LINE;
    char *start =
        failure_is_due() ? NULL : aligned_alloc(AIMO_CACHE_LINE, padded + AIMO_CACHE_LINE);
    if (start == NULL)
        return aimo_fail(err, AIMO_ERR_MEMORY, "%s: %zu bytes could not be allocated", what, bytes);
    *(size_t *)start = bytes;
    atomic_fetch_add_explicit(&live_bytes, bytes, memory_order_relaxed);
    *out = start + AIMO_CACHE_LINE;
    return AIMO_OK;
}

aimo_status aimo_memory_new_zero(void **out, size_t count, size_t size, const char *what,
                                 aimo_error *err)
{
    AIMO_TRY(aimo_memory_new(out, count, size, what, err));
    memset(*out, 0, count * size);
    return AIMO_OK;
}

void aimo_memory_free(void *block)
{
    if (block == NULL)
        return;
    char *start = (char *)block - AIMO_CACHE_LINE;
    atomic_fetch_sub_explicit(&live_bytes, *(size_t *)start, memory_order_relaxed);
    free(start);
}

size_t aimo_memory_live_bytes(void)
{
    return atomic_load_explicit(&live_bytes, memory_order_relaxed);
}

void aimo_memory_fail_after(long count) { atomic_store(&allocations_before_failure, count); }
