/* The sampled blocks that are alive, a map from address to size and site. Fixed capacity, no
 * allocation. */
#ifndef AIMO_MEMHOOK_TABLE_H
#define AIMO_MEMHOOK_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uintptr_t address; /* 0: no block */
    uint64_t size : 48;
    uint64_t site : 16;
} aimo_live_block;

size_t aimo_table_count(void);
bool aimo_table_contains(uintptr_t address);
/* False when the table is full; the block's address must be neither 0 nor in the table. */
bool aimo_table_insert(aimo_live_block block);
/* Removes and returns the block at `address`; one with address 0 when there is none. */
aimo_live_block aimo_table_remove(uintptr_t address);
void aimo_table_clear(void);
size_t aimo_table_memory_bytes(void);

#endif
