/* Memory from malloc gets small pages, wherever it is first touched. Collapsing them afterwards
 * needs no allocator of our own: blocks are still freed like all others. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "base/large_pages.h"

#if defined(__linux__)
#include <errno.h>
#include <stdint.h>
#include <sys/mman.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* since Linux 6.1; before, an error */
#endif

#define LARGE_PAGE ((uintptr_t)2 << 20)

/* Page by page, so that one that cannot be collapsed, as at the end of the heap, does not stop the
 * others. */
void aimo_large_pages_gather(const void *block, size_t bytes)
{
    const int before = errno;
    const uintptr_t start = (uintptr_t)block, end = start + bytes;
    for (uintptr_t page = start / LARGE_PAGE * LARGE_PAGE; page < end; page += LARGE_PAGE)
        (void)madvise((void *)page, LARGE_PAGE, MADV_COLLAPSE);
    errno = before;
}
#else
void aimo_large_pages_gather(const void *block, size_t bytes)
{
    (void)block;
    (void)bytes;
}
#endif
