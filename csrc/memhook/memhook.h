/* Sampled tracking of a process's allocations, from inside the allocator.
 *
 * The hook wraps allocators (CPython's OBJ and MEM domains; the C tests wrap their own), draws a
 * Poisson sample over the allocated bytes, and knows for every sampled block that is still alive
 * its size and the call stack that allocated it. There is one hook per process, as there is one set
 * of allocators. Its memory is static and fixed: see aimo_memhook_memory_bytes.
 *
 * Who may call: everything here, and every wrapped allocator, is called by one thread at a time,
 * the holder of the GIL; CPython demands that of the OBJ and MEM domains anyway. A thread that
 * breaks the rule loses a sample, never the process. The large blocks' free alone is anybody's. */
#ifndef AIMO_MEMHOOK_MEMHOOK_H
#define AIMO_MEMHOOK_MEMHOOK_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Shaped like PyMemAllocatorEx; the binding asserts it. */
typedef struct {
    void *context;
    void *(*malloc)(void *context, size_t size);
    void *(*calloc)(void *context, size_t count, size_t size);
    void *(*realloc)(void *context, void *block, size_t size);
    void (*free)(void *context, void *block);
} aimo_allocator;

/* Where one function of a call stack stands: an opaque code object and an instruction in it. */
typedef struct {
    void *code;
    int32_t instruction;
} aimo_frame;

enum {
    AIMO_MEMHOOK_DOMAINS = 2,
    AIMO_MEMHOOK_LARGE = 513, /* bytes that CPython's small-object allocator passes on */
    AIMO_MEMHOOK_MAX_FRAMES = 64,
    AIMO_MEMHOOK_MAX_NODES = 1 << 15,
    AIMO_MEMHOOK_MAX_LIVE = 1 << 16, /* sampled blocks alive at once */
};

#define AIMO_MEMHOOK_MAX_SAMPLE_BYTES ((size_t)1 << 40)

typedef struct {
    /* Mean distance of samples in allocated bytes, 1 to AIMO_MEMHOOK_MAX_SAMPLE_BYTES. */
    size_t sample_bytes;
    size_t frames; /* innermost frames kept of a stack, 0 to AIMO_MEMHOOK_MAX_FRAMES */
    uint64_t seed;
    /* Called inside an allocation: must not allocate, lock or fail.
     * owner: whether the calling thread's blocks are tracked at all.
     * holds_lock: whether the calling thread is the one that may call; asked by any thread.
     * walk: writes at most `capacity` frames, innermost first, and returns how many.
     * retain: keeps `code` valid until aimo_memhook_next_release hands it back. */
    bool (*owner)(void);
    bool (*holds_lock)(void);
    size_t (*walk)(aimo_frame *frames, size_t capacity);
    void (*retain)(void *code);
} aimo_memhook_config;

/* Estimates over the sampled blocks of one call site. */
typedef struct {
    double bytes;
    double blocks;
    double variance; /* of bytes */
    size_t samples;
} aimo_memhook_stats;

/* A node of the tree of call stacks: node 0 is the root and stands for "stack unknown"; another
 * node's stack is its own frame and then, outwards, those of its parents. */
typedef struct {
    aimo_frame frame; /* code is NULL for the root and for nodes not in use */
    uint32_t parent;
    aimo_memhook_stats live;    /* blocks allocated exactly here and alive now */
    aimo_memhook_stats at_peak; /* the same when all sites' bytes together were highest */
} aimo_memhook_node;

typedef struct {
    bool active, samples_are_large;
    size_t sample_bytes, frames;
    aimo_memhook_stats live;
    double peak_bytes;
    size_t dropped_samples; /* not recorded: more than AIMO_MEMHOOK_MAX_LIVE were alive */
    size_t cut_stacks;      /* recorded under an outer frame: AIMO_MEMHOOK_MAX_NODES were in use */
} aimo_memhook_summary;

/* The allocator that tracks blocks of `below` and gets them from it. There is one per domain, for
 * good: wrapping another allocator redirects it, so wrap only what is not reached through it
 * (aimo_memhook_probe_begin tells). The wrapper adds no header to blocks; it may be put in and
 * taken out while blocks are alive. */
aimo_allocator aimo_memhook_wrap(size_t domain, const aimo_allocator *below);
/* The same, but frees go to `below` directly: for samples that are large, see below. */
aimo_allocator aimo_memhook_wrap_but_free(size_t domain, const aimo_allocator *below);
/* Which of the two made a wrapper. */
bool aimo_memhook_wraps_free(const aimo_allocator *wrapper);
/* The allocator below the wrapper of `domain`. */
aimo_allocator aimo_memhook_below(size_t domain);

/* The allocator that the domains get their large blocks from, with its free wrapped; all else is
 * `below` itself. Unlike the rest it may be called by any thread at any time. */
aimo_allocator aimo_memhook_wrap_large(const aimo_allocator *below);
/* Whether every sample, however small, is asked for as a large block from now on. Until stop. */
void aimo_memhook_make_samples_large(bool large);

/* Begins with an empty table. AIMO_ERR_ARGUMENT for a value out of range, or when it is active. */
AIMO_MUST_CHECK aimo_status aimo_memhook_start(const aimo_memhook_config *config, aimo_error *err);
/* Forgets everything; the wrappers then only pass on. Release the codes afterwards. */
void aimo_memhook_stop(void);

/* Between begin and end, one allocation of the caller's shows whether the wrapper is reached. The
 * probing allocation itself is never sampled. */
void aimo_memhook_probe_begin(void);
bool aimo_memhook_probe_end(void);

/* The same of a block's free and the wrapper of large blocks. The hook must be active. */
void aimo_memhook_probe_free_begin(void *block);
bool aimo_memhook_probe_free_end(const void *block);

void aimo_memhook_summarize(aimo_memhook_summary *summary);
/* Copies the first `capacity` nodes at most; returns how many there are, used or not. */
size_t aimo_memhook_copy_nodes(aimo_memhook_node *out, size_t capacity);

/* Retires the nodes that neither a live block nor the peak needs. */
void aimo_memhook_collect(void);
/* A code object that the hook no longer refers to, for the caller to release; NULL when there is
 * none left. Outside of allocations only, because releasing one may free memory. */
void *aimo_memhook_next_release(void);

/* Bytes of all of the hook's state; it never grows. */
size_t aimo_memhook_memory_bytes(void);

#endif
