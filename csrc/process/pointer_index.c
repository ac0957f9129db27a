/* Open addressing over numbers instead of pointers: four bytes a slot, and the items stay in one
 * dense array that can be walked. At most half the slots are used. */
#include "process/pointer_index.h"

#include "base/memory.h"

#include <string.h>

enum { LEAST_ROOM = 64 };

/* Objects are aligned, so their low bits carry no information; the multiplication mixes the rest
 * upwards. */
static size_t slot_of(const aimo_pointer_index *index, const void *item)
{
    const uint64_t mixed = ((uint64_t)(uintptr_t)item >> 3) * UINT64_C(0x9e3779b97f4a7c15);
    size_t slot = (size_t)(mixed >> 20) & (index->slot_count - 1);
    while (index->slots[slot] != 0 && index->items[index->slots[slot] - 1] != item)
        slot = (slot + 1) & (index->slot_count - 1);
    return slot;
}

aimo_status aimo_pointer_index_init(aimo_pointer_index *index, size_t expected, aimo_error *err)
{
    *index = (aimo_pointer_index){0};
    size_t room = LEAST_ROOM;
    while (room < expected)
        room *= 2;
    if (room > UINT32_MAX / 2)
        return aimo_fail(err, AIMO_ERR_MEMORY, "more than 2^31 objects cannot be numbered");
    void *items, *slots;
    AIMO_TRY(aimo_memory_new(&items, room, sizeof *index->items, "list of objects", err));
    const aimo_status status =
        aimo_memory_new_zero(&slots, 2 * room, sizeof *index->slots, "table of objects", err);
    if (status != AIMO_OK) {
        aimo_memory_free(items);
        return status;
    }
    index->items = items;
    index->slots = slots;
    index->room = room;
    index->slot_count = 2 * room;
    return AIMO_OK;
}

void aimo_pointer_index_clear(aimo_pointer_index *index)
{
    aimo_memory_free(index->items);
    aimo_memory_free(index->slots);
    *index = (aimo_pointer_index){0};
}

static aimo_status grow(aimo_pointer_index *index, aimo_error *err)
{
    aimo_pointer_index larger;
    AIMO_TRY(aimo_pointer_index_init(&larger, 2 * index->room, err));
    memcpy(larger.items, index->items, index->count * sizeof *index->items);
    larger.count = index->count;
    for (size_t i = 0; i < index->count; i++)
        larger.slots[slot_of(&larger, index->items[i])] = (uint32_t)i + 1;
    aimo_pointer_index_clear(index);
    *index = larger;
    return AIMO_OK;
}

aimo_status aimo_pointer_index_add(aimo_pointer_index *index, const void *item, aimo_error *err)
{
    size_t slot = slot_of(index, item);
    if (index->slots[slot] != 0)
        return AIMO_OK;
    if (index->count == index->room) {
        AIMO_TRY(grow(index, err));
        slot = slot_of(index, item);
    }
    index->items[index->count++] = item;
    index->slots[slot] = (uint32_t)index->count;
    return AIMO_OK;
}

bool aimo_pointer_index_find(const aimo_pointer_index *index, const void *item, uint32_t *number)
{
    const size_t slot = slot_of(index, item);
    if (index->slots[slot] == 0)
        return false;
    *number = index->slots[slot] - 1;
    return true;
}
