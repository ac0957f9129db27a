/* Call stacks form a tree, because they share their outer frames: one node per frame, interned by
 * (parent, code, instruction), so a new stack of eight frames costs a node or two, and two stacks
 * are equal when their nodes are.
 *
 * Each site's numbers at the peak are kept without copying all sites: when the total reaches a new
 * peak the epoch advances, and a site saves its numbers the first time it changes afterwards. A
 * site that has not changed since still has its peak numbers in `live`. */
#include "memhook/memhook_sites.h"

#include <string.h>

enum { BUCKETS = 2 * AIMO_MEMHOOK_MAX_NODES, ROOT = 0, NIL = 0 };

typedef struct {
    aimo_memhook_node n;
    uint32_t next;        /* in the bucket, the free list or the list of codes to release */
    uint32_t saved_epoch; /* n.at_peak holds the numbers of this epoch */
    bool needed;          /* used by aimo_sites_collect */
} node;

static node nodes[AIMO_MEMHOOK_MAX_NODES];
static uint32_t buckets[BUCKETS];
static uint32_t used = 1;  /* nodes below this index have been used at some time */
static uint32_t free_list; /* nodes to use again */
static uint32_t to_release;
static uint32_t epoch;
static aimo_memhook_stats total;
static double peak_bytes;

/* The last stack that was interned, outermost frame first. The next one usually differs in its
 * inner frames only, and the frames in common need no lookup in the tree, which is too large for
 * the cache. */
static struct {
    aimo_frame frame;
    uint32_t node;
} last[AIMO_MEMHOOK_MAX_FRAMES];
static size_t last_depth;

static uint32_t *bucket_of(uint32_t parent, aimo_frame frame)
{
    uint64_t hash = (uint64_t)(uintptr_t)frame.code >> 4;
    hash = (hash ^ (uint64_t)parent << 40 ^ (uint64_t)(uint32_t)frame.instruction << 20) *
           0x9e3779b97f4a7c15u;
    return &buckets[(hash >> 40) % BUCKETS];
}

static uint32_t find_child(uint32_t parent, aimo_frame frame)
{
    uint32_t i = *bucket_of(parent, frame);
    while (i != NIL && (nodes[i].n.parent != parent || nodes[i].n.frame.code != frame.code ||
                        nodes[i].n.frame.instruction != frame.instruction))
        i = nodes[i].next;
    return i;
}

/* NIL when there is none left. */
static uint32_t take_node(void)
{
    if (free_list != NIL) {
        const uint32_t i = free_list;
        free_list = nodes[i].next;
        return i;
    }
    return used < AIMO_MEMHOOK_MAX_NODES ? used++ : NIL;
}

static uint32_t new_child(uint32_t parent, aimo_frame frame)
{
    const uint32_t i = take_node();
    if (i == NIL)
        return NIL;
    uint32_t *bucket = bucket_of(parent, frame);
    nodes[i] = (node){.n = {.frame = frame, .parent = parent}, .next = *bucket};
    nodes[i].saved_epoch = epoch; /* it held nothing at the peak */
    *bucket = i;
    return i;
}

static bool same_frame(const aimo_frame *a, const aimo_frame *b)
{
    return a->code == b->code && a->instruction == b->instruction;
}

/* How many outer frames this stack shares with the last one. */
static size_t shared_with_last(const aimo_frame *frames, size_t depth)
{
    size_t i = 0;
    while (i < depth && i < last_depth && same_frame(&frames[depth - 1 - i], &last[i].frame))
        i++;
    return i;
}

/* NIL when it is new and there is no node left. */
static uint32_t intern_child(uint32_t parent, aimo_frame frame, void (*retain)(void *))
{
    uint32_t child = find_child(parent, frame);
    if (child == NIL && (child = new_child(parent, frame)) != NIL)
        retain(frame.code);
    return child;
}

uint32_t aimo_sites_intern(const aimo_frame *frames, size_t depth, void (*retain)(void *),
                           bool *cut)
{
    size_t i = shared_with_last(frames, depth);
    uint32_t site = i != 0 ? last[i - 1].node : ROOT;
    for (; i < depth; i++) {
        const aimo_frame frame = frames[depth - 1 - i];
        const uint32_t child = intern_child(site, frame, retain);
        if (child == NIL)
            break;
        last[i].frame = frame;
        last[i].node = child;
        site = child;
    }
    last_depth = i;
    *cut = i < depth;
    return site;
}

static void save_peak(node *site)
{
    if (site->saved_epoch != epoch) {
        site->n.at_peak = site->n.live;
        site->saved_epoch = epoch;
    }
}

static void stats_add(aimo_memhook_stats *sum, const aimo_memhook_stats *block)
{
    sum->bytes += block->bytes;
    sum->blocks += block->blocks;
    sum->variance += block->variance;
    sum->samples++;
}

static void stats_subtract(aimo_memhook_stats *sum, const aimo_memhook_stats *block)
{
    sum->samples--;
    if (sum->samples == 0) { /* exactly nothing, whatever rounding errors have accumulated */
        *sum = (aimo_memhook_stats){0};
        return;
    }
    sum->bytes -= block->bytes;
    sum->blocks -= block->blocks;
    sum->variance -= block->variance;
}

void aimo_sites_add(uint32_t site, const aimo_memhook_stats *block)
{
    save_peak(&nodes[site]);
    stats_add(&nodes[site].n.live, block);
    stats_add(&total, block);
    if (total.bytes > peak_bytes) {
        peak_bytes = total.bytes;
        epoch++;
    }
}

void aimo_sites_subtract(uint32_t site, const aimo_memhook_stats *block)
{
    save_peak(&nodes[site]);
    stats_subtract(&nodes[site].n.live, block);
    stats_subtract(&total, block);
}

void aimo_sites_totals(aimo_memhook_stats *live, double *peak)
{
    *live = total;
    *peak = peak_bytes;
}

size_t aimo_sites_copy(aimo_memhook_node *out, size_t capacity)
{
    for (uint32_t i = 0; i < used && i < capacity; i++) {
        out[i] = nodes[i].n;
        if (i != ROOT && nodes[i].n.parent == i)
            out[i] = (aimo_memhook_node){0}; /* waits to be released */
        if (nodes[i].saved_epoch != epoch)
            out[i].at_peak = nodes[i].n.live;
    }
    return used;
}

static void forget_statistics(void)
{
    for (uint32_t i = 0; i < used; i++) {
        nodes[i].n.live = nodes[i].n.at_peak = (aimo_memhook_stats){0};
        nodes[i].saved_epoch = 0;
    }
    total = (aimo_memhook_stats){0};
    peak_bytes = 0.0;
    epoch = 0;
}

static void mark_needed(void)
{
    for (uint32_t i = 0; i < used; i++)
        nodes[i].needed = false;
    for (uint32_t i = 1; i < used; i++) {
        save_peak(&nodes[i]);
        if (nodes[i].n.live.samples == 0 && nodes[i].n.at_peak.samples == 0)
            continue;
        for (uint32_t up = i; up != ROOT && !nodes[up].needed; up = nodes[up].n.parent)
            nodes[up].needed = true;
    }
}

static void retire(uint32_t i)
{
    uint32_t *link = bucket_of(nodes[i].n.parent, nodes[i].n.frame);
    while (*link != i)
        link = &nodes[*link].next;
    *link = nodes[i].next;
    nodes[i].next = to_release;
    to_release = i;
}

/* A node with a code object goes to to_release, one without to the free list. The frame of a
 * waiting node must not be found again, so the node becomes its own parent. */
void aimo_sites_collect(bool all)
{
    if (all)
        forget_statistics();
    mark_needed();
    last_depth = 0; /* its nodes may be retired */
    for (uint32_t i = 1; i < used; i++) {
        if (nodes[i].needed || nodes[i].n.frame.code == NULL || nodes[i].n.parent == i)
            continue;
        retire(i);
        nodes[i].n.parent = i;
    }
}

void *aimo_sites_next_release(void)
{
    const uint32_t i = to_release;
    if (i == NIL)
        return NULL;
    void *code = nodes[i].n.frame.code;
    to_release = nodes[i].next;
    nodes[i].n.frame.code = NULL;
    nodes[i].next = free_list;
    free_list = i;
    return code;
}

void aimo_sites_abandon(void)
{
    memset(buckets, 0, sizeof buckets);
    memset(nodes, 0, sizeof nodes[0]);
    used = 1;
    free_list = to_release = NIL;
    last_depth = 0;
    total = (aimo_memhook_stats){0};
    peak_bytes = 0.0;
    epoch = 0;
}

size_t aimo_sites_memory_bytes(void) { return sizeof nodes + sizeof buckets + sizeof last; }
