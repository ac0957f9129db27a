/* A set of pointers that numbers its members in the order of their arrival, so it is a work list
 * too: walk items[0..count) while adding to it. */
#ifndef AIMO_PROCESS_POINTER_INDEX_H
#define AIMO_PROCESS_POINTER_INDEX_H

#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    const void **items; /* [count], capacity `room` */
    uint32_t *slots;    /* [slot_count], number of the item + 1, or 0; a power of two */
    size_t count, room, slot_count;
} aimo_pointer_index;

/* Room for `expected` pointers at once; it grows when more come. */
AIMO_MUST_CHECK aimo_status aimo_pointer_index_init(aimo_pointer_index *index, size_t expected,
                                                    aimo_error *err);
void aimo_pointer_index_clear(aimo_pointer_index *index);

/* Adds `item` (not NULL) unless it is there; on failure the index is unchanged. */
AIMO_MUST_CHECK aimo_status aimo_pointer_index_add(aimo_pointer_index *index, const void *item,
                                                   aimo_error *err);

/* *number = that of `item`; false when it is not there. */
bool aimo_pointer_index_find(const aimo_pointer_index *index, const void *item, uint32_t *number);

#endif
