/* Linear probing at a load of at most one half. Removal shifts the rest of the run back instead of
 * leaving tombstones, so the table does not age however many blocks come and go. */
#include "memhook/memhook_table.h"

#include "memhook/memhook.h"

#include <string.h>

enum { SLOTS = 2 * AIMO_MEMHOOK_MAX_LIVE };

static aimo_live_block slots[SLOTS];
static size_t count;

/* Blocks are aligned to 16 bytes; the multiplication spreads neighbours over the table. */
static size_t home_of(uintptr_t address)
{
    return (size_t)(((uint64_t)address >> 4) * 0x9e3779b97f4a7c15u >> 32) % SLOTS;
}

/* The slot of `address`, or the empty slot where it would go. */
static size_t find(uintptr_t address)
{
    size_t i = home_of(address);
    while (slots[i].address != 0 && slots[i].address != address)
        i = (i + 1) % SLOTS;
    return i;
}

size_t aimo_table_count(void) { return count; }

bool aimo_table_insert(aimo_live_block block)
{
    if (count == AIMO_MEMHOOK_MAX_LIVE)
        return false;
    slots[find(block.address)] = block;
    count++;
    return true;
}

/* Empties slot `hole` and moves back every later member of its run that may stand there. */
static void close_hole(size_t hole)
{
    for (size_t i = (hole + 1) % SLOTS; slots[i].address != 0; i = (i + 1) % SLOTS) {
        const size_t from_home = (i + SLOTS - home_of(slots[i].address)) % SLOTS;
        const size_t from_hole = (i + SLOTS - hole) % SLOTS;
        if (from_home < from_hole)
            continue;
        slots[hole] = slots[i];
        hole = i;
    }
    slots[hole] = (aimo_live_block){0};
}

aimo_live_block aimo_table_remove(uintptr_t address)
{
    const size_t i = find(address);
    const aimo_live_block block = slots[i];
    if (block.address != 0) {
        close_hole(i);
        count--;
    }
    return block;
}

void aimo_table_clear(void)
{
    if (count != 0)
        memset(slots, 0, sizeof slots);
    count = 0;
}

size_t aimo_table_memory_bytes(void) { return sizeof slots; }
