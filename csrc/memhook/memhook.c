/* The wrapped allocators, and what happens when one of their calls meets a sample.
 *
 * Almost every call must get through at the cost of a few instructions. Two numbers decide: an
 * allocation subtracts its bytes from a countdown and becomes a sample when that falls below zero;
 * a freed block is looked up only when the filter counts a sampled block in the same 512 bytes of
 * address space (modulo the filter's reach). While the hook is off the countdown is out of reach
 * and the filter is empty, so the wrappers, which cannot always be removed (somebody may have
 * wrapped them), need no switch of their own.
 *
 * Most frees can get through at no cost at all. CPython's small-object allocator gets blocks of
 * more than 512 bytes from the RAW domain, and recognizes them by their address when they are
 * freed: if every sample is allocated as such a block, only RAW's free has to be wrapped, and few
 * frees arrive there.
 *
 * Poisson sampling: distances between sample points in the stream of allocated bytes are
 * exponential with mean R, so a block of s bytes is sampled with probability p = 1 - exp(-s / R)
 * whatever came before, and 1/p and s/p are unbiased estimates of blocks and bytes (a fixed
 * distance would resonate with loops). A sampled block contributes s^2 (1 - p) / p^2 to the
 * variance of the sum.
 *
 * The filter is indexed by plain address bits, not by a hash: blocks freed together are neighbours,
 * so their counters share a cache line; a hashed filter of this size missed the L1 cache at every
 * free. */
#include "memhook/memhook.h"

#include "memhook/memhook_sites.h"
#include "memhook/memhook_table.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

enum { FILTER_SLOTS = 1 << 18, FILTER_SHIFT = 9, FILTER_STUCK = UINT8_MAX };

#define UNLIKELY(condition) __builtin_expect(!!(condition), 0)

/* Protected by the GIL, like all static state here except what free_large reads; see memhook.h. */
static aimo_allocator below_domain[AIMO_MEMHOOK_DOMAINS];
static aimo_allocator below_large;
static int64_t bytes_left = INT64_MAX; /* to the next sample */
static _Atomic uint8_t filter[FILTER_SLOTS];

static struct {
    aimo_memhook_config config;
    bool active;
    uint64_t random;
    size_t dropped_samples, cut_stacks;
    bool probing;
    int64_t bytes_left_before_probe;
    bool samples_are_large;
    void *probed_free; /* the block whose free the probe waits for, or NULL */
} hook;

/* Set while the table or the tree changes. With the GIL held it is redundant; when a thread
 * allocates without the GIL, it turns a corrupt table into a lost sample. */
static atomic_flag changing = ATOMIC_FLAG_INIT;

/* Sampling */

static uint64_t next_random(void)
{
    hook.random ^= hook.random >> 12;
    hook.random ^= hook.random << 25;
    hook.random ^= hook.random >> 27;
    return hook.random * 0x2545f4914f6cdd1du;
}

/* Mixes any seed into a usable state: xorshift's must not be zero. */
static void seed_random(uint64_t seed)
{
    hook.random = (seed ^ seed >> 31) * 0x9e3779b97f4a7c15u | 1;
    next_random();
}

static int64_t draw_distance(void)
{
    const double uniform = (double)((next_random() >> 11) + 1) * 0x1p-53; /* in (0, 1] */
    return (int64_t)(-log(uniform) * (double)hook.config.sample_bytes);
}

static aimo_memhook_stats stats_of_sample(size_t size)
{
    const double s = (double)size;
    const double p = -expm1(-s / (double)hook.config.sample_bytes);
    return (aimo_memhook_stats){
        .bytes = s / p, .blocks = 1.0 / p, .variance = s * s * (1.0 - p) / (p * p), .samples = 1};
}

/* The countdown fell below zero with an allocation of `size` bytes: whether to sample that
 * allocation. */
static bool take_sample(size_t size)
{
    if (hook.probing) {
        hook.probing = false;
        bytes_left = hook.bytes_left_before_probe;
        return false;
    }
    if (!hook.active) {
        bytes_left = INT64_MAX;
        return false;
    }
    if (!hook.config.owner()) { /* another thread's bytes do not count */
        bytes_left += (int64_t)size;
        return false;
    }
    bytes_left = draw_distance();
    return true;
}

/* The filter */

/* Written with the GIL held, but free_large reads it without. A stale count is good enough there:
 * the blocks that it has to find are freed by threads that hold the GIL. */
static _Atomic uint8_t *filter_slot(uintptr_t address)
{
    return &filter[address >> FILTER_SHIFT & (FILTER_SLOTS - 1)];
}

static uint8_t filter_count(uintptr_t address)
{
    return atomic_load_explicit(filter_slot(address), memory_order_relaxed);
}

/* A counter that reaches its maximum has lost count and sticks there: a needless lookup is
 * harmless. */
static void filter_change(uintptr_t address, int by)
{
    const uint8_t count = filter_count(address);
    if (count != FILTER_STUCK)
        atomic_store_explicit(filter_slot(address), (uint8_t)(count + by), memory_order_relaxed);
}

static void filter_clear(void)
{
    for (size_t i = 0; i < FILTER_SLOTS; i++)
        atomic_store_explicit(&filter[i], 0, memory_order_relaxed);
}

/* Live blocks; `changing` is set in all of these. */

static void forget(aimo_live_block block)
{
    const aimo_memhook_stats stats = stats_of_sample(block.size);
    aimo_sites_subtract((uint32_t)block.site, &stats);
    filter_change(block.address, -1);
}

static void remember(aimo_live_block block)
{
    /* An entry with the same address belongs to a block whose free the hook did not see. */
    const aimo_live_block stale = aimo_table_remove(block.address);
    if (stale.address != 0)
        forget(stale);
    if (!aimo_table_insert(block)) {
        hook.dropped_samples++;
        return;
    }
    const aimo_memhook_stats stats = stats_of_sample(block.size);
    aimo_sites_add((uint32_t)block.site, &stats);
    filter_change(block.address, 1);
}

static void note_allocated(void *block, size_t size)
{
    aimo_frame frames[AIMO_MEMHOOK_MAX_FRAMES];
    if (atomic_flag_test_and_set_explicit(&changing, memory_order_acquire))
        return;
    const size_t depth = hook.config.frames != 0 ? hook.config.walk(frames, hook.config.frames) : 0;
    bool cut;
    const uint32_t site = aimo_sites_intern(frames, depth, hook.config.retain, &cut);
    hook.cut_stacks += cut;
    remember((aimo_live_block){.address = (uintptr_t)block, .size = size, .site = site});
    atomic_flag_clear_explicit(&changing, memory_order_release);
}

/* Removes and returns the block's entry; address 0 when there is none. Usually there is none, and
 * the block is a neighbour of a sampled one. */
static aimo_live_block note_freed(void *block)
{
    aimo_live_block known = {0};
    if (!aimo_table_contains((uintptr_t)block) || !hook.config.owner() ||
        atomic_flag_test_and_set_explicit(&changing, memory_order_acquire))
        return known;
    known = aimo_table_remove((uintptr_t)block);
    if (known.address != 0)
        forget(known);
    atomic_flag_clear_explicit(&changing, memory_order_release);
    return known;
}

static void note_not_freed(aimo_live_block known)
{
    if (known.address == 0 || atomic_flag_test_and_set_explicit(&changing, memory_order_acquire))
        return;
    remember(known);
    atomic_flag_clear_explicit(&changing, memory_order_release);
}

/* The rare cases are functions of their own, so that the common ones need no stack frame and end in
 * a jump. */

/* The size to allocate, so that the hook sees the free of a sample. */
static size_t bytes_to_ask(size_t size, bool sampled)
{
    return sampled && hook.samples_are_large && size < AIMO_MEMHOOK_LARGE ? AIMO_MEMHOOK_LARGE
                                                                          : size;
}

static __attribute__((noinline)) void *sampled_malloc(size_t domain, size_t size)
{
    const aimo_allocator *below = &below_domain[domain];
    const bool sampled = take_sample(size);
    void *block = below->malloc(below->context, bytes_to_ask(size, sampled));
    if (sampled && block != NULL)
        note_allocated(block, size);
    return block;
}

static __attribute__((noinline)) void *sampled_calloc(size_t domain, size_t count, size_t size)
{
    const aimo_allocator *below = &below_domain[domain];
    const bool sampled = take_sample(count * size);
    void *block = below->calloc(below->context, 1, bytes_to_ask(count * size, sampled));
    if (sampled && block != NULL)
        note_allocated(block, count * size);
    return block;
}

/* The old block is forgotten before the call, because its address may belong to somebody else right
 * afterwards; the new block counts as a new allocation of its whole size. */
static __attribute__((noinline)) void *sampled_realloc(size_t domain, void *block, size_t size,
                                                       bool counted_out)
{
    const aimo_allocator *below = &below_domain[domain];
    const bool sampled = counted_out && take_sample(size);
    const aimo_live_block known = note_freed(block);
    void *moved = below->realloc(below->context, block, bytes_to_ask(size, sampled));
    if (moved == NULL)
        note_not_freed(known);
    else if (sampled)
        note_allocated(moved, size);
    return moved;
}

static __attribute__((noinline)) void filtered_free(size_t domain, void *block)
{
    const aimo_allocator *below = &below_domain[domain];
    note_freed(block);
    below->free(below->context, block);
}

static __attribute__((noinline)) void filtered_free_large(void *block)
{
    if (hook.config.holds_lock()) {
        if (block == hook.probed_free)
            hook.probed_free = NULL;
        else
            note_freed(block);
    }
    below_large.free(below_large.context, block);
}

/* The common cases, a few instructions before the jump to the allocator below. Each domain has its
 * own copies, in which the address of the allocator below is a compile-time constant and the
 * context argument is not needed. */

#define ALWAYS_INLINE static inline __attribute__((always_inline))

ALWAYS_INLINE void *hook_malloc(size_t domain, size_t size)
{
    const aimo_allocator *below = &below_domain[domain];
    bytes_left -= (int64_t)size;
    if (UNLIKELY(bytes_left < 0))
        return sampled_malloc(domain, size);
    return below->malloc(below->context, size);
}

ALWAYS_INLINE void *hook_calloc(size_t domain, size_t count, size_t size)
{
    const aimo_allocator *below = &below_domain[domain];
    bytes_left -= (int64_t)(count * size); /* cannot overflow: callers of calloc have checked */
    if (UNLIKELY(bytes_left < 0))
        return sampled_calloc(domain, count, size);
    return below->calloc(below->context, count, size);
}

ALWAYS_INLINE void *hook_realloc(size_t domain, void *block, size_t size)
{
    const aimo_allocator *below = &below_domain[domain];
    bytes_left -= (int64_t)size;
    const bool counted_out = bytes_left < 0;
    if (UNLIKELY(counted_out || filter_count((uintptr_t)block) != 0))
        return sampled_realloc(domain, block, size, counted_out);
    return below->realloc(below->context, block, size);
}

ALWAYS_INLINE void hook_free(size_t domain, void *block)
{
    const aimo_allocator *below = &below_domain[domain];
    if (UNLIKELY(filter_count((uintptr_t)block) != 0)) {
        filtered_free(domain, block);
        return;
    }
    below->free(below->context, block);
}

#define WRAPPER(domain)                                                                            \
    static void *malloc_##domain(void *context, size_t size)                                       \
    {                                                                                              \
        (void)context;                                                                             \
        return hook_malloc(domain, size);                                                          \
    }                                                                                              \
    static void *calloc_##domain(void *context, size_t count, size_t size)                         \
    {                                                                                              \
        (void)context;                                                                             \
        return hook_calloc(domain, count, size);                                                   \
    }                                                                                              \
    static void *realloc_##domain(void *context, void *block, size_t size)                         \
    {                                                                                              \
        (void)context;                                                                             \
        return hook_realloc(domain, block, size);                                                  \
    }                                                                                              \
    static void free_##domain(void *context, void *block)                                          \
    {                                                                                              \
        (void)context;                                                                             \
        hook_free(domain, block);                                                                  \
    }

WRAPPER(0)
WRAPPER(1)

static const aimo_allocator wrappers[AIMO_MEMHOOK_DOMAINS] = {
    {NULL, malloc_0, calloc_0, realloc_0, free_0},
    {NULL, malloc_1, calloc_1, realloc_1, free_1},
};

aimo_allocator aimo_memhook_wrap(size_t domain, const aimo_allocator *below)
{
    below_domain[domain] = *below;
    return wrappers[domain];
}

aimo_allocator aimo_memhook_wrap_but_free(size_t domain, const aimo_allocator *below)
{
    aimo_allocator wrapper = aimo_memhook_wrap(domain, below);
    wrapper.context = below->context;
    wrapper.free = below->free;
    return wrapper;
}

bool aimo_memhook_wraps_free(const aimo_allocator *wrapper)
{
    return wrapper->free == free_0 || wrapper->free == free_1;
}

static void free_large(void *context, void *block)
{
    (void)context;
    if (UNLIKELY(filter_count((uintptr_t)block) != 0)) {
        filtered_free_large(block);
        return;
    }
    below_large.free(below_large.context, block);
}

aimo_allocator aimo_memhook_wrap_large(const aimo_allocator *below)
{
    below_large = *below;
    aimo_allocator wrapper = *below;
    wrapper.free = free_large;
    return wrapper;
}

void aimo_memhook_make_samples_large(bool large) { hook.samples_are_large = large; }

aimo_allocator aimo_memhook_below(size_t domain) { return below_domain[domain]; }

/* Start, stop, fork */

/* A forked child inherits the parent's memory, so its table is correct as it is, unless a thread
 * without the GIL forked in the middle of a change. */
static void after_fork_in_child(void)
{
    if (!hook.active)
        return;
    if (atomic_flag_test_and_set(&changing)) {
        aimo_table_clear();
        aimo_sites_abandon();
        filter_clear();
    }
    atomic_flag_clear(&changing);
    seed_random(hook.random ^ (uint64_t)getpid());
}

static void install_fork_handler(void)
{
    static bool installed;
    if (!installed)
        installed = pthread_atfork(NULL, NULL, after_fork_in_child) == 0;
}

aimo_status aimo_memhook_start(const aimo_memhook_config *config, aimo_error *err)
{
    if (hook.active)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "allocation sampling has started already");
    if (config->sample_bytes < 1 || config->sample_bytes > AIMO_MEMHOOK_MAX_SAMPLE_BYTES)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "sample_bytes: expected 1 to %zu, got %zu",
                         AIMO_MEMHOOK_MAX_SAMPLE_BYTES, config->sample_bytes);
    if (config->frames > AIMO_MEMHOOK_MAX_FRAMES)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "frames: expected 0 to %d, got %zu",
                         AIMO_MEMHOOK_MAX_FRAMES, config->frames);
    install_fork_handler();
    hook.config = *config;
    hook.dropped_samples = hook.cut_stacks = 0;
    seed_random(config->seed);
    bytes_left = draw_distance();
    hook.samples_are_large = false;
    hook.active = true;
    return AIMO_OK;
}

void aimo_memhook_stop(void)
{
    if (!hook.active)
        return;
    hook.active = false;
    bytes_left = INT64_MAX;
    if (aimo_table_count() != 0)
        filter_clear();
    aimo_table_clear();
    aimo_sites_collect(true);
}

void aimo_memhook_probe_begin(void)
{
    hook.probing = true;
    hook.bytes_left_before_probe = bytes_left;
    bytes_left = -1;
}

bool aimo_memhook_probe_end(void)
{
    const bool reached = !hook.probing;
    if (!reached)
        bytes_left = hook.bytes_left_before_probe;
    hook.probing = false;
    return reached;
}

void aimo_memhook_probe_free_begin(void *block)
{
    hook.probed_free = block;
    filter_change((uintptr_t)block, 1);
}

bool aimo_memhook_probe_free_end(const void *block)
{
    filter_change((uintptr_t)block, -1);
    const bool seen = hook.probed_free == NULL;
    hook.probed_free = NULL;
    return seen;
}

void aimo_memhook_summarize(aimo_memhook_summary *summary)
{
    *summary = (aimo_memhook_summary){.active = hook.active,
                                      .samples_are_large = hook.samples_are_large,
                                      .sample_bytes = hook.config.sample_bytes,
                                      .frames = hook.config.frames,
                                      .dropped_samples = hook.dropped_samples,
                                      .cut_stacks = hook.cut_stacks};
    aimo_sites_totals(&summary->live, &summary->peak_bytes);
}

size_t aimo_memhook_copy_nodes(aimo_memhook_node *out, size_t capacity)
{
    return aimo_sites_copy(out, capacity);
}

void aimo_memhook_collect(void) { aimo_sites_collect(false); }

void *aimo_memhook_next_release(void) { return aimo_sites_next_release(); }

size_t aimo_memhook_memory_bytes(void)
{
    return sizeof filter + sizeof below_domain + sizeof below_large + sizeof hook +
           aimo_table_memory_bytes() + aimo_sites_memory_bytes();
}
