/* Large pages for memory that is read from end to end. */
#ifndef AIMO_BASE_LARGE_PAGES_H
#define AIMO_BASE_LARGE_PAGES_H

#include <stddef.h>

/* Moves a block of `bytes`, and its neighbourhood up to 2 MiB boundaries, to large pages where the
 * system supports that; takes as long as copying the block. Contents and addresses do not change,
 * other threads may read and write meanwhile, and up to 2 MiB on either side may become resident.
 * The block is freed as usual. Failures are ignored, since only speed is at stake. */
void aimo_large_pages_gather(const void *block, size_t bytes);

#endif
