/* memhook: the wrappers over an allocator of the test's own, the table, the tree, the estimates. */
#include "test.h"

#include "memhook/memhook.h"
#include "memhook/memhook_table.h"

#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* The allocator below: malloc, with a failure switch and call counters. */
typedef struct {
    bool fail;
    size_t calls;
} below_state;

static void *below_malloc(void *context, size_t size)
{
    below_state *state = context;
    state->calls++;
    return state->fail ? NULL : malloc(size != 0 ? size : 1);
}

static void *below_calloc(void *context, size_t count, size_t size)
{
    below_state *state = context;
    state->calls++;
    return state->fail ? NULL : calloc(count != 0 ? count : 1, size != 0 ? size : 1);
}

static void *below_realloc(void *context, void *block, size_t size)
{
    below_state *state = context;
    state->calls++;
    return state->fail ? NULL : realloc(block, size != 0 ? size : 1);
}

static void below_free(void *context, void *block)
{
    below_state *state = context;
    state->calls++;
    free(block);
}

/* A stack and an owner that the tests set. */
static aimo_frame stack[AIMO_MEMHOOK_MAX_FRAMES];
static size_t stack_depth;
static bool is_owner;
static size_t retained;

static bool owner(void) { return is_owner; }

static size_t walk(aimo_frame *frames, size_t capacity)
{
    const size_t depth = stack_depth < capacity ? stack_depth : capacity;
    memcpy(frames, stack, depth * sizeof frames[0]);
    return depth;
}

static void retain(void *code)
{
    (void)code;
    retained++;
}

static below_state below;
static aimo_allocator hooked;

static void set_stack(uintptr_t innermost, uintptr_t outermost)
{
    stack[0] = (aimo_frame){(void *)innermost, (int32_t)innermost * 2};
    stack[1] = (aimo_frame){(void *)outermost, (int32_t)outermost * 2};
    stack_depth = 2;
}

static aimo_status start(size_t sample_bytes, size_t frames, uint64_t seed)
{
    below = (below_state){0};
    const aimo_allocator raw = {&below, below_malloc, below_calloc, below_realloc, below_free};
    hooked = aimo_memhook_wrap(0, &raw);
    is_owner = true;
    retained = 0;
    set_stack(16, 32);
    const aimo_memhook_config config = {sample_bytes, frames, seed, owner, owner, walk, retain};
    return aimo_memhook_start(&config, NULL);
}

static size_t release_all(void)
{
    size_t released = 0;
    while (aimo_memhook_next_release() != NULL)
        released++;
    return released;
}

static bool stop_releases_what_was_retained(void)
{
    aimo_memhook_stop();
    return release_all() == retained;
}

static aimo_memhook_summary summary(void)
{
    aimo_memhook_summary s;
    aimo_memhook_summarize(&s);
    return s;
}

static size_t live_samples(void) { return summary().live.samples; }

static void *hooked_malloc(size_t size) { return hooked.malloc(hooked.context, size); }

static void hooked_free(void *block) { hooked.free(hooked.context, block); }

TEST(memhook_table_agrees_with_a_plain_array_over_random_changes)
{
    enum { ADDRESSES = 4096 };
    static uint64_t present[ADDRESSES]; /* size, 0 when absent */
    memset(present, 0, sizeof present);
    uint64_t random = 7;
    size_t count = 0;
    for (int step = 0; step < 300000; step++) {
        const size_t i = test_random(&random) % ADDRESSES;
        /* 2^21 apart: many share a home, so runs are long. */
        const uintptr_t address = (uintptr_t)(i % 64 + 1) << 4 | (uintptr_t)(i / 64) << 38;
        if (present[i] == 0) {
            present[i] = 1 + test_random(&random) % 1000;
            CHECK(aimo_table_insert((aimo_live_block){address, present[i], i % 100}));
            count++;
        } else {
            const aimo_live_block block = aimo_table_remove(address);
            CHECK(block.address == address && block.size == present[i] && block.site == i % 100);
            CHECK(aimo_table_remove(address).address == 0);
            present[i] = 0;
            count--;
        }
        CHECK(aimo_table_count() == count);
    }
    aimo_table_clear();
    CHECK(aimo_table_count() == 0 && aimo_table_remove(1 << 4).address == 0);
}

TEST(memhook_refuses_values_out_of_range_and_a_second_start)
{
    CHECK(start(0, 8, 1) == AIMO_ERR_ARGUMENT);
    CHECK(start(AIMO_MEMHOOK_MAX_SAMPLE_BYTES + 1, 8, 1) == AIMO_ERR_ARGUMENT);
    CHECK(start(1, AIMO_MEMHOOK_MAX_FRAMES + 1, 1) == AIMO_ERR_ARGUMENT);
    CHECK(start(1, AIMO_MEMHOOK_MAX_FRAMES, 1) == AIMO_OK);
    CHECK(start(1, 8, 1) == AIMO_ERR_ARGUMENT);
    aimo_memhook_stop();
    aimo_memhook_stop();
    CHECK(!summary().active);
}

TEST(memhook_follows_each_block_through_all_four_calls)
{
    CHECK(start(1, 8, 3) == AIMO_OK);
    void *a = hooked_malloc(1000);
    char *b = hooked.calloc(hooked.context, 10, 100);
    CHECK(a != NULL && b != NULL && b[999] == 0);
    CHECK(live_samples() == 2 && summary().live.bytes == 2000.0);
    a = hooked.realloc(hooked.context, a, 5000);
    CHECK(live_samples() == 2 && summary().live.bytes == 6000.0);
    void *c = hooked.realloc(hooked.context, NULL, 700);
    CHECK(live_samples() == 3 && summary().live.bytes == 6700.0);
    hooked_free(b);
    hooked_free(NULL);
    hooked_free(a);
    CHECK(live_samples() == 1 && summary().live.bytes == 700.0);
    hooked_free(c);
    CHECK(live_samples() == 0 && summary().live.bytes == 0.0);
    CHECK(summary().peak_bytes == 6700.0);
    CHECK(stop_releases_what_was_retained());
}

TEST(memhook_failed_calls_change_nothing)
{
    CHECK(start(1, 8, 3) == AIMO_OK);
    void *a = hooked_malloc(1000);
    below.fail = true;
    CHECK(hooked_malloc(500) == NULL && hooked.calloc(hooked.context, 5, 100) == NULL);
    CHECK(hooked.realloc(hooked.context, a, 5000) == NULL);
    CHECK(live_samples() == 1 && summary().live.bytes == 1000.0);
    below.fail = false;
    hooked_free(a);
    CHECK(live_samples() == 0);
    CHECK(stop_releases_what_was_retained());
}

static const aimo_memhook_node *find_node(const aimo_memhook_node *nodes, size_t count,
                                          uintptr_t code, uintptr_t parent_code)
{
    for (size_t i = 1; i < count; i++)
        if ((uintptr_t)nodes[i].frame.code == code &&
            (uintptr_t)nodes[nodes[i].parent].frame.code == parent_code)
            return &nodes[i];
    return NULL;
}

static aimo_memhook_node nodes[AIMO_MEMHOOK_MAX_NODES];

TEST(memhook_gives_each_stack_its_own_site_and_its_numbers_at_the_peak)
{
    CHECK(start(1, 8, 3) == AIMO_OK);
    set_stack(16, 32);
    void *a = hooked_malloc(1000), *b = hooked_malloc(3000);
    set_stack(16, 48);
    void *c = hooked_malloc(500);
    hooked_free(b);
    void *d = hooked_malloc(600); /* the total stays below the peak of 4500 */
    const size_t count = aimo_memhook_copy_nodes(nodes, AIMO_MEMHOOK_MAX_NODES);
    const aimo_memhook_node *first = find_node(nodes, count, 16, 32);
    const aimo_memhook_node *second = find_node(nodes, count, 16, 48);
    CHECK(first != NULL && second != NULL && retained == 4);
    CHECK(first->live.bytes == 1000.0 && first->live.samples == 1);
    CHECK(first->at_peak.bytes == 4000.0 && first->at_peak.samples == 2);
    CHECK(second->live.bytes == 1100.0 && second->at_peak.bytes == 500.0);
    CHECK(summary().peak_bytes == 4500.0 && summary().live.bytes == 2100.0);
    hooked_free(a);
    hooked_free(c);
    hooked_free(d);
    CHECK(stop_releases_what_was_retained());
}

TEST(memhook_collect_retires_only_what_neither_live_nor_peak_needs)
{
    CHECK(start(1, 8, 3) == AIMO_OK);
    set_stack(16, 32);
    void *small = hooked_malloc(100);
    hooked_free(small);
    aimo_memhook_collect();
    CHECK(release_all() == 0); /* it is the peak */
    set_stack(64, 48);
    void *large = hooked_malloc(1000);
    aimo_memhook_collect();
    CHECK(release_all() == 2);
    const size_t count = aimo_memhook_copy_nodes(nodes, AIMO_MEMHOOK_MAX_NODES);
    CHECK(find_node(nodes, count, 16, 32) == NULL && find_node(nodes, count, 64, 48) != NULL);
    set_stack(16, 32); /* a retired stack can come again */
    small = hooked_malloc(100);
    CHECK(retained == 6);
    hooked_free(small);
    hooked_free(large);
    aimo_memhook_stop();
    CHECK(release_all() == 4);
}

TEST(memhook_without_frames_everything_belongs_to_the_root)
{
    CHECK(start(1, 0, 3) == AIMO_OK);
    void *a = hooked_malloc(1000);
    CHECK(aimo_memhook_copy_nodes(nodes, AIMO_MEMHOOK_MAX_NODES) >= 1);
    CHECK(nodes[0].live.bytes == 1000.0 && retained == 0);
    hooked_free(a);
    CHECK(stop_releases_what_was_retained());
}

TEST(memhook_full_tree_cuts_stacks_and_a_full_table_drops_samples)
{
    CHECK(start(1, 8, 3) == AIMO_OK);
    enum { BLOCKS = AIMO_MEMHOOK_MAX_LIVE + 1000 };
    void **blocks = malloc(BLOCKS * sizeof *blocks);
    for (size_t i = 0; i < BLOCKS; i++) {
        set_stack(16 * (i + 2), 16);
        blocks[i] = hooked_malloc(64);
    }
    const aimo_memhook_summary full = summary();
    const bool right = full.live.samples == AIMO_MEMHOOK_MAX_LIVE && full.dropped_samples == 1000 &&
                       full.cut_stacks > 0 && retained == AIMO_MEMHOOK_MAX_NODES - 1;
    for (size_t i = 0; i < BLOCKS; i++)
        hooked_free(blocks[i]);
    free(blocks);
    CHECK(right);
    CHECK(live_samples() == 0);
    CHECK(stop_releases_what_was_retained());
}

TEST(memhook_blocks_of_others_and_older_blocks_pass_through)
{
    CHECK(start(1, 8, 3) == AIMO_OK);
    is_owner = false;
    void *foreign = hooked_malloc(1000);
    CHECK(live_samples() == 0);
    is_owner = true;
    void *old = malloc(100);
    hooked_free(old);
    hooked_free(foreign);
    CHECK(live_samples() == 0);
    CHECK(stop_releases_what_was_retained());
}

TEST(memhook_stop_with_live_blocks_and_start_again_begins_empty)
{
    CHECK(start(1, 8, 3) == AIMO_OK);
    void *old = hooked_malloc(1000);
    CHECK(stop_releases_what_was_retained());
    void *unseen = hooked_malloc(1000);
    CHECK(live_samples() == 0);
    CHECK(start(1, 8, 4) == AIMO_OK);
    hooked_free(old);
    hooked_free(unseen);
    CHECK(live_samples() == 0 && summary().peak_bytes == 0.0);
    for (int cycle = 0; cycle < 10000; cycle++) {
        void *block = hooked_malloc(64);
        CHECK(stop_releases_what_was_retained());
        hooked_free(block);
        CHECK(start(1, 8, (uint64_t)cycle) == AIMO_OK);
    }
    CHECK(stop_releases_what_was_retained());
}

TEST(memhook_probe_tells_whether_the_wrapper_is_reached_and_is_never_sampled)
{
    CHECK(start(1, 8, 3) == AIMO_OK); /* what a stop leaves behind is the inactive wrapper */
    CHECK(stop_releases_what_was_retained());
    for (int active = 0; active < 2; active++) {
        if (active)
            CHECK(start(1, 8, 3) == AIMO_OK);
        aimo_memhook_probe_begin();
        void *block = hooked_malloc(8);
        CHECK(aimo_memhook_probe_end());
        hooked_free(block);
        aimo_memhook_probe_begin();
        CHECK(!aimo_memhook_probe_end());
        CHECK(live_samples() == 0);
    }
    void *sampled = hooked_malloc(1000);
    CHECK(live_samples() == 1);
    hooked_free(sampled);
    CHECK(stop_releases_what_was_retained());
}

/* An allocator like CPython's: small blocks come from an arena of its own and are not reused; large
 * ones come from another allocator and are recognized by their address. */
static char arena[1 << 16];
static size_t arena_used;
static aimo_allocator large;

static bool is_in_arena(const void *block)
{
    return (uintptr_t)block - (uintptr_t)arena < sizeof arena;
}

static void *small_malloc(void *context, size_t size)
{
    (void)context;
    if (size >= AIMO_MEMHOOK_LARGE)
        return large.malloc(large.context, size);
    void *block = &arena[arena_used];
    arena_used += (size + 15) / 16 * 16;
    return block;
}

static void *small_calloc(void *context, size_t count, size_t size)
{
    void *block = small_malloc(context, count * size);
    return block != NULL ? memset(block, 0, count * size) : NULL;
}

static void small_free(void *context, void *block)
{
    (void)context;
    if (!is_in_arena(block))
        large.free(large.context, block);
}

static void *small_realloc(void *context, void *block, size_t size)
{
    if (!is_in_arena(block))
        return large.realloc(large.context, block, size);
    void *moved = small_malloc(context, size);
    return moved != NULL ? memcpy(moved, block, 16) : NULL;
}

/* Like start, with every sample large and the domain's free not wrapped. */
static bool start_with_large_samples(void)
{
    if (start(1, 8, 3) != AIMO_OK)
        return false;
    const aimo_allocator raw = {&below, below_malloc, below_calloc, below_realloc, below_free};
    const aimo_allocator small = {NULL, small_malloc, small_calloc, small_realloc, small_free};
    large = aimo_memhook_wrap_large(&raw);
    hooked = aimo_memhook_wrap_but_free(0, &small);
    aimo_memhook_make_samples_large(true);
    arena_used = 0;
    return hooked.free == small_free && !aimo_memhook_wraps_free(&hooked) &&
           large.malloc == below_malloc;
}

TEST(memhook_large_samples_are_followed_through_the_large_blocks_free_alone)
{
    CHECK(start_with_large_samples() && summary().samples_are_large);
    void *a = hooked_malloc(100), *b = hooked.calloc(hooked.context, 10, 20);
    void *c = hooked_malloc(5000);
    CHECK(!is_in_arena(a) && !is_in_arena(b) && ((char *)b)[199] == 0);
    CHECK(live_samples() == 3 && summary().live.bytes == 5300.0);
    a = hooked.realloc(hooked.context, a, 120); /* stays a sample, of its new size */
    CHECK(!is_in_arena(a) && live_samples() == 3 && summary().live.bytes == 5320.0);
    hooked_free(b);
    hooked_free(c);
    CHECK(live_samples() == 1 && summary().live.bytes == 120.0);
    hooked_free(a);
    CHECK(live_samples() == 0);
    CHECK(stop_releases_what_was_retained());
}

TEST(memhook_blocks_that_are_no_samples_stay_small)
{
    CHECK(start_with_large_samples());
    is_owner = false;
    char *small = hooked_malloc(100);
    CHECK(is_in_arena(small) && live_samples() == 0);
    strcpy(small, "kept");
    is_owner = true;
    char *moved = hooked.realloc(hooked.context, small, 200); /* becomes one by growing */
    CHECK(!is_in_arena(moved) && strcmp(moved, "kept") == 0 && live_samples() == 1);
    hooked_free(moved);
    CHECK(live_samples() == 0);
    CHECK(stop_releases_what_was_retained());
    small = hooked_malloc(
        100); /* a wrapper that stays installed after a stop allocates no more than requested */
    CHECK(is_in_arena(small));
}

TEST(memhook_large_frees_without_the_lock_are_not_looked_up)
{
    CHECK(start_with_large_samples());
    void *sample = hooked_malloc(100);
    is_owner = false; /* stands for the lock, too */
    large.free(large.context, sample);
    CHECK(live_samples() == 1);
    is_owner = true;
    CHECK(stop_releases_what_was_retained());
}

TEST(memhook_probe_tells_whether_a_large_free_is_seen)
{
    CHECK(start_with_large_samples());
    void *block = below_malloc(&below, AIMO_MEMHOOK_LARGE);
    aimo_memhook_probe_free_begin(block);
    large.free(large.context, block);
    CHECK(aimo_memhook_probe_free_end(block));
    block = below_malloc(&below, AIMO_MEMHOOK_LARGE);
    aimo_memhook_probe_free_begin(block);
    CHECK(!aimo_memhook_probe_free_end(block));
    below_free(&below, block);
    CHECK(stop_releases_what_was_retained());
}

/* Blocks of 16 bytes to 4 KiB, 20 MB in all, 400 times at R = 128 KiB: the mean must be the truth
 * within four standard errors of a mean, and the stated error must cover as often as it says. */
TEST(memhook_estimates_are_unbiased_and_their_errors_honest)
{
    enum { RUNS = 400, BLOCKS = 10000 };
    static void *blocks[BLOCKS];
    double sum = 0.0, variance = 0.0, truth = 0.0;
    int within_one = 0, within_two = 0;
    for (int run = 0; run < RUNS; run++) {
        CHECK(start(128 << 10, 8, (uint64_t)run + 1) == AIMO_OK);
        uint64_t random = 5;
        truth = 0.0;
        for (size_t i = 0; i < BLOCKS; i++) {
            const size_t size = 16 + test_random(&random) % 4080;
            truth += (double)size;
            blocks[i] = hooked_malloc(size);
        }
        const aimo_memhook_stats live = summary().live;
        const double error = fabs(live.bytes - truth), stated = sqrt(live.variance);
        within_one += error <= stated;
        within_two += error <= 2.0 * stated;
        sum += live.bytes;
        variance += live.variance;
        for (size_t i = 0; i < BLOCKS; i++)
            hooked_free(blocks[i]);
        CHECK(live_samples() == 0);
        CHECK(stop_releases_what_was_retained());
    }
    const double standard_error = sqrt(variance / RUNS / RUNS);
    CHECK_MSG(fabs(sum / RUNS - truth) <= 4.0 * standard_error, "mean %.0f, truth %.0f, sigma %.0f",
              sum / RUNS, truth, standard_error);
    /* 68.3% and 95.4% of 400; four binomial standard deviations are 37 and 17. */
    CHECK_MSG(abs(within_one - 273) <= 37, "%d of 400 within one stated error", within_one);
    CHECK_MSG(abs(within_two - 382) <= 17, "%d of 400 within two stated errors", within_two);
}

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#endif
#endif
#if !defined(__SANITIZE_THREAD__)
TEST(memhook_goes_on_in_a_forked_child)
{
    CHECK(start(1, 8, 3) == AIMO_OK);
    void *before = hooked_malloc(1000);
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        hooked_free(before);
        void *after = hooked_malloc(300);
        _exit(live_samples() == 1 && summary().live.bytes == 300.0 && after != NULL ? 0 : 1);
    }
    int status = 1;
    const bool waited = child > 0 && waitpid(child, &status, 0) == child;
    hooked_free(before);
    CHECK(stop_releases_what_was_retained());
    CHECK(waited && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}
#endif

TEST(memhook_memory_is_at_most_8_mb) { CHECK(aimo_memhook_memory_bytes() <= 8 * 1000 * 1000); }
