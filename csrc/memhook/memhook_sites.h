/* The tree of call stacks, with statistics of the live blocks at each node. Fixed capacity, no
 * allocation. */
#ifndef AIMO_MEMHOOK_SITES_H
#define AIMO_MEMHOOK_SITES_H

#include "memhook/memhook.h"

/* The node of a stack (innermost frame first), created when it is new; `retain` is called once per
 * new node. When no node is left, *cut is set and the result is the node of the outer frames that
 * are in the tree. */
uint32_t aimo_sites_intern(const aimo_frame *frames, size_t depth, void (*retain)(void *),
                           bool *cut);

/* Adds or subtracts the estimates of one sampled block at `site`. */
void aimo_sites_add(uint32_t site, const aimo_memhook_stats *block);
void aimo_sites_subtract(uint32_t site, const aimo_memhook_stats *block);

void aimo_sites_totals(aimo_memhook_stats *live, double *peak_bytes);
size_t aimo_sites_copy(aimo_memhook_node *out, size_t capacity);

/* Retires nodes that nothing refers to; with `all`, drops all statistics first. */
void aimo_sites_collect(bool all);
void *aimo_sites_next_release(void);
/* Drops everything without releasing code objects: for a forked child whose tree was caught in
 * mid-change. */
void aimo_sites_abandon(void);
size_t aimo_sites_memory_bytes(void);

#endif
