/* Large pages for memory that is read from end to end. */
#ifndef AIMO_BASE_LARGE_PAGES_H
#define AIMO_BASE_LARGE_PAGES_H

#include <stddef.h>

/* Moves the `bytes` of a block, and what lies beside them within 2 MiB, to large pages where the
 * system can; takes as long as copying them. Contents and addresses stay, other threads may read
 * and write meanwhile, and less than 2 MiB on either side may become resident. The block's owner
 * frees it as ever. Otherwise nothing happens: it is only speed. */
void aimo_large_pages_gather(const void *block, size_t bytes);

#endif
