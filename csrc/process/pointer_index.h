/* A set of pointers that numbers its members in insertion order, so it doubles as a work list: walk
 * items[0..count) while adding to it. */
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

/* Reserves room for `expected` pointers; the index grows beyond that as needed. */
AIMO_MUST_CHECK aimo_status aimo_pointer_index_init(aimo_pointer_index *index, size_t expected,
                                                    aimo_error *err);
void aimo_pointer_index_clear(aimo_pointer_index *index);

/* Adds `item` (not NULL) unless it is present; on failure the index is unchanged. */
AIMO_MUST_CHECK aimo_status aimo_pointer_index_add(aimo_pointer_index *index, const void *item,
                                                   aimo_error *err);

/* *number = the number of `item`; false when it is absent. */
bool aimo_pointer_index_find(const aimo_pointer_index *index, const void *item, uint32_t *number);

#endif
