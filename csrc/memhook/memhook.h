/* Sampled tracking of a process's allocations, from inside the allocator.
 *
 * The hook wraps allocators (CPython's OBJ and MEM domains; the C tests wrap their own), draws a
 * Poisson sample over the allocated bytes, and knows the size and the allocating call stack of
 * every sampled block that is still alive. There is one hook per process, as there is one set of
 * allocators. Its memory is static and fixed: see aimo_memhook_memory_bytes.
 *
 * Threads: everything here, and every wrapped allocator, is called by one thread at a time, the
 * holder of the GIL, as CPython requires of the OBJ and MEM domains anyway. A thread that breaks
 * the rule costs a sample, never the process. Only the wrapped free of large blocks may be called
 * by any thread at any time. */
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

/* One function of a call stack: an opaque code object and the current instruction in it. */
typedef struct {
    void *code;
    int32_t instruction;
} aimo_frame;

enum {
    AIMO_MEMHOOK_DOMAINS = 2,
    AIMO_MEMHOOK_LARGE =
        513, /* bytes from which CPython's small-object allocator passes a request on */
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
     * holds_lock: whether the calling thread holds the GIL; any thread may ask.
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

/* A node of the tree of call stacks. Node 0 is the root and stands for "stack unknown"; any other
 * node's stack is its own frame followed, going outwards, by those of its ancestors. */
typedef struct {
    aimo_frame frame; /* code is NULL for the root and for nodes not in use */
    uint32_t parent;
    aimo_memhook_stats live;    /* blocks allocated exactly here and alive now */
    aimo_memhook_stats at_peak; /* the same at the moment when the total over all sites peaked */
} aimo_memhook_node;

typedef struct {
    bool active, samples_are_large;
    size_t sample_bytes, frames;
    aimo_memhook_stats live;
    double peak_bytes;
    size_t dropped_samples; /* not recorded: more than AIMO_MEMHOOK_MAX_LIVE were alive */
    size_t
        cut_stacks; /* recorded under an outer frame because AIMO_MEMHOOK_MAX_NODES were in use */
} aimo_memhook_summary;

/* An allocator that gets its blocks from `below` and tracks them. There is one wrapper per domain,
 * permanently: wrapping another allocator redirects it, so never wrap an allocator that already
 * calls the wrapper (aimo_memhook_probe_begin finds out). The wrapper adds no header to blocks, so
 * it may be installed and removed while blocks are alive. */
aimo_allocator aimo_memhook_wrap(size_t domain, const aimo_allocator *below);
/* The same, but frees go to `below` directly: for use with aimo_memhook_make_samples_large. */
aimo_allocator aimo_memhook_wrap_but_free(size_t domain, const aimo_allocator *below);
/* Whether the wrapper came from aimo_memhook_wrap, not aimo_memhook_wrap_but_free. */
bool aimo_memhook_wraps_free(const aimo_allocator *wrapper);
/* The allocator below the wrapper of `domain`. */
aimo_allocator aimo_memhook_below(size_t domain);

/* Wraps the allocator that the domains get their large blocks from: its free only, the rest is that
 * of `below`. Unlike everything else it may be called by any thread at any time. */
aimo_allocator aimo_memhook_wrap_large(const aimo_allocator *below);
/* Sets whether every sample, however small, is allocated as a large block from now on, until
 * stop. */
void aimo_memhook_make_samples_large(bool large);

/* Starts sampling with an empty table. AIMO_ERR_ARGUMENT when a value is out of range or the hook
 * is active already. */
AIMO_MUST_CHECK aimo_status aimo_memhook_start(const aimo_memhook_config *config, aimo_error *err);
/* Forgets everything; from then on the wrappers only forward calls. Release the code objects
 * afterwards (aimo_memhook_next_release). */
void aimo_memhook_stop(void);

/* Whether an allocation that the caller makes between begin and end reaches the wrapper. The
 * probing allocation is never sampled. */
void aimo_memhook_probe_begin(void);
bool aimo_memhook_probe_end(void);

/* The same for a free of `block` and the wrapper of large blocks. The hook must be active. */
void aimo_memhook_probe_free_begin(void *block);
bool aimo_memhook_probe_free_end(const void *block);

void aimo_memhook_summarize(aimo_memhook_summary *summary);
/* Copies at most the first `capacity` nodes; returns how many there are, used or not. */
size_t aimo_memhook_copy_nodes(aimo_memhook_node *out, size_t capacity);

/* Retires the nodes that neither live blocks nor the peak refer to. */
void aimo_memhook_collect(void);
/* A code object that the hook no longer refers to, for the caller to release; NULL when none is
 * left. Not to be called inside an allocation, because releasing a code object may free memory. */
void *aimo_memhook_next_release(void);

/* Bytes of all of the hook's state; it never grows. */
size_t aimo_memhook_memory_bytes(void);

#endif
