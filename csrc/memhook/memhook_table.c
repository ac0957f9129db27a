/* Linear probing at a load of at most one half. Removal shifts the rest of the run back instead of
 * leaving tombstones, so the table does not age however many blocks come and go.
 *
 * There are four tables, each four times as large as the one before, and the blocks move to the
 * next when theirs is half full. A typical service has about a thousand sampled blocks, whose table
 * stays in the cache; in the largest table every sample would miss the cache twice. */
#include "memhook/memhook_table.h"

#include "memhook/memhook.h"

#include <string.h>

enum { LEAST_SLOTS = 1 << 11, MOST_SLOTS = 2 * AIMO_MEMHOOK_MAX_LIVE };

/* Where the table of `slots` slots begins: the sum of the sizes of those before it. */
#define START_OF(slots) (((slots)-LEAST_SLOTS) / 3)

static aimo_live_block all_slots[START_OF(4 * MOST_SLOTS)];
static aimo_live_block *slots = all_slots;
static size_t slot_count = LEAST_SLOTS; /* LEAST_SLOTS times a power of four */
static size_t count;

_Static_assert(START_OF(4 * LEAST_SLOTS) == LEAST_SLOTS &&
                   START_OF(4 * MOST_SLOTS) == START_OF(MOST_SLOTS) + MOST_SLOTS,
               "tables must follow one another");

/* Blocks are aligned to 16 bytes; the multiplication spreads neighbours over the table. */
static size_t home_of(uintptr_t address)
{
    return (size_t)(((uint64_t)address >> 4) * 0x9e3779b97f4a7c15u >> 32) & (slot_count - 1);
}

static size_t after(size_t slot) { return (slot + 1) & (slot_count - 1); }

/* The slot of `address`, or the empty slot where it would go. */
static size_t find(uintptr_t address)
{
    size_t i = home_of(address);
    while (slots[i].address != 0 && slots[i].address != address)
        i = after(i);
    return i;
}

static void use_table_of(size_t size)
{
    slot_count = size;
    slots = all_slots + START_OF(size);
}

static void move_up(void)
{
    aimo_live_block *old = slots;
    const size_t old_count = slot_count;
    use_table_of(4 * old_count);
    for (size_t i = 0; i < old_count; i++)
        if (old[i].address != 0)
            slots[find(old[i].address)] = old[i];
    memset(old, 0, old_count * sizeof *old);
}

size_t aimo_table_count(void) { return count; }

bool aimo_table_contains(uintptr_t address) { return slots[find(address)].address != 0; }

bool aimo_table_insert(aimo_live_block block)
{
    if (count == AIMO_MEMHOOK_MAX_LIVE)
        return false;
    if (2 * count == slot_count)
        move_up();
    slots[find(block.address)] = block;
    count++;
    return true;
}

/* Empties slot `hole` and moves back every later entry of its run that may fill the hole. */
static void close_hole(size_t hole)
{
    for (size_t i = after(hole); slots[i].address != 0; i = after(i)) {
        const size_t from_home = (i - home_of(slots[i].address)) & (slot_count - 1);
        const size_t from_hole = (i - hole) & (slot_count - 1);
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
        memset(slots, 0, slot_count * sizeof *slots);
    count = 0;
    use_table_of(LEAST_SLOTS);
}

size_t aimo_table_memory_bytes(void) { return sizeof all_slots; }
