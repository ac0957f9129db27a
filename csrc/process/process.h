/* What the process can report about itself: the C allocator's free lists, open files, connected
 * sockets.
 *
 * Only aimo_allocator_trim changes anything; the rest only reads. None of it needs the GIL. Where
 * the platform cannot say, the functions report that instead of guessing. */
#ifndef AIMO_PROCESS_PROCESS_H
#define AIMO_PROCESS_PROCESS_H

#include <stdbool.h>
#include <stddef.h>

typedef struct {
    const char *name; /* "glibc", "jemalloc" or "unknown"; static */
    bool known;       /* false: the numbers below are zero and mean nothing */
    size_t live;      /* bytes that callers hold */
    size_t retained; /* bytes that were freed but not returned to the system; an upper bound on what
                        is resident, since the pages of a free block may be gone already */
    size_t mapped;   /* the part of `live` in blocks with a mapping of their own */
    bool can_trim;   /* aimo_allocator_trim does something */
} aimo_allocator_info;

/* Takes every arena's lock in turn and walks its free lists: microseconds in a tidy heap,
 * milliseconds in one with very many free blocks. */
void aimo_allocator_read(aimo_allocator_info *info);

/* Returns free pages to the system; takes tens of milliseconds on a large heap. True when it
 * did. */
bool aimo_allocator_trim(void);

/* *open = file descriptors in use, *connected = how many of them are internet sockets with a peer.
 * False when the system does not list them; both are then zero. */
bool aimo_process_count_files(size_t *open, size_t *connected);

#endif
