/* Searching: rows that the bounds cannot rule out are compared in f32, those still undecided in
 * f64, and what f64 cannot tell apart in exact arithmetic.
 *
 * A tile is a group of queries of one context that walk its chunks together, so that a chunk is
 * read from memory once for all of them. Hits that are already found raise the bar for the
 * remaining rows. */
#include "cache/cache.h"

#include "base/scratch.h"
#include "base/threads.h"
#include "cache/cache_device.h"
#include "cache/cache_exact.h"
#include "cache/cache_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    TILE_QUERIES = 128,
    SCREEN_QUERIES =
        16, /* queries of one screen: one tile for AMX, four loops for the other rows of kernels */
    CHUNK_BLOCKS = CHUNK_ROWS / AIMO_HEAD_BLOCK,
    /* Rows that a query compares outright before its tail is worth preparing, since that reads as
     * many bytes as a hundred rows. In a small cache, or far from every row, it never is. */
    OUTRIGHT_ROWS = 48,
    FETCHED_CODES = 4096, /* bytes; of a chunk before its turn */
};

typedef struct {
    double score;
    uint64_t birth;
    uint32_t slot;
} hit;

/* One query on its way through the chunks. */
typedef struct {
    const float *query; /* [dim], the caller's */
    float *unit;        /* [dim], normalised */
    double inverse_norm;
    hit *hits; /* [k], best first */
    size_t hit_count;
    size_t outright; /* rows compared without a tail */
    double bar;      /* rows that score lower are not wanted */
    aimo_query_codes codes;
} seeker;

/* The rows of a chunk that the heads could not rule out for a query. */
typedef struct {
    const chunk *chunk;
    seeker *seeker;
    const int16_t *dots;  /* [CHUNK_ROWS], in the tile's */
    uint16_t *candidates; /* [CHUNK_ROWS] */
    size_t count;
} listing;

/* What a tile's queries share. */
typedef struct {
    aimo_cache *cache;
    const directory *store;
    uint64_t version;
    double threshold;
    size_t k;
    double f32_error, f64_error;
    const aimo_basis *basis; /* that the seekers' codes belong to */
    seeker *seekers;
    size_t count;
    aimo_head_query *heads; /* [SCREEN_QUERIES] */
    int16_t *dots;          /* [SCREEN_QUERIES, CHUNK_ROWS] */
    uint16_t *masks;        /* [SCREEN_QUERIES, CHUNK_BLOCKS] */
    listing listings[2];    /* what is listed next, and what was listed last */
    size_t turn;            /* of the two, the next */
} tile;

/* ---- one row ------------------------------------------------------------------------------- */

static double cosine_f64(const tile *t, const seeker *s, const void *row, double inverse_norm)
{
    const aimo_similarity_kernels *kernels = t->cache->kernels;
    const double dot = t->cache->type == AIMO_ROWS_F16
                           ? kernels->dot_f16_f64(s->query, row, t->cache->dim)
                           : kernels->dot_i8_f64(s->query, row, t->cache->dim);
    return dot * s->inverse_norm * inverse_norm;
}

static double cosine_f32(const tile *t, const seeker *s, const void *row, double inverse_norm)
{
    const aimo_similarity_kernels *kernels = t->cache->kernels;
    const float dot = t->cache->type == AIMO_ROWS_F16
                          ? kernels->dot_f16(s->unit, row, t->cache->dim)
                          : kernels->dot_i8(s->unit, row, t->cache->dim);
    return (double)dot * inverse_norm;
}

static bool reaches_threshold(const tile *t, const seeker *s, const void *row, double score)
{
    if (fabs(score - t->threshold) > t->f64_error)
        return score > t->threshold;
    return aimo_exact_against_threshold(s->query, row, t->cache->type, t->cache->dim,
                                        t->threshold) >= 0;
}

/* Whether `a`, whose bytes are `row`, comes before `b`. */
static bool comes_before(const tile *t, const seeker *s, const hit *a, const void *row,
                         const hit *b)
{
    if (fabs(a->score - b->score) > 2.0 * t->f64_error)
        return a->score > b->score;
    const aimo_cache *cache = t->cache;
    const void *other = aimo_store_row(cache, t->store, b->slot);
    int order = 0;
    if (memcmp(row, other, cache->row_bytes) != 0)
        order = aimo_exact_order(s->query, row, other, cache->type, cache->dim);
    return order != 0 ? order > 0 : a->birth < b->birth;
}

/* Inserts the hit when it is among the k best; most belong at the end, so the search for its place
 * starts there. */
static void insert_hit(const tile *t, seeker *s, const hit *h, const void *row)
{
    size_t place = s->hit_count;
    while (place > 0 && comes_before(t, s, h, row, &s->hits[place - 1]))
        place--;
    if (place == t->k)
        return;
    const size_t kept = s->hit_count < t->k ? s->hit_count : t->k - 1;
    memmove(&s->hits[place + 1], &s->hits[place], (kept - place) * sizeof *h);
    s->hits[place] = *h;
    s->hit_count = kept + 1;
    if (s->hit_count == t->k)
        s->bar = fmax(t->threshold, s->hits[t->k - 1].score - 2.0 * t->f64_error);
}

static void consider(const tile *t, seeker *s, const chunk *c, size_t position)
{
    if (c->births[position] > t->version ||
        atomic_load_explicit(&c->deaths[position], memory_order_acquire) <= t->version)
        return;
    const uint32_t slot = c->slots[position];
    const void *row = aimo_store_row(t->cache, t->store, slot);
    const double inverse_norm = aimo_store_inverse_norm(t->store, slot);
    if (cosine_f32(t, s, row, inverse_norm) + t->f32_error < s->bar)
        return;
    const hit h = {
        .score = cosine_f64(t, s, row, inverse_norm), .birth = c->births[position], .slot = slot};
    if (h.score + t->f64_error >= s->bar && reaches_threshold(t, s, row, h.score))
        insert_hit(t, s, &h, row);
}

/* ---- one chunk ----------------------------------------------------------------------------- */

/* Lists the rows whose bits are set, in order, testing four masks at a time because most are empty.
 * Prefetches their tails unless `tails` is NULL. */
static size_t list_candidates(const uint16_t *masks, size_t blocks, const aimo_tail *tails,
                              uint16_t *candidates)
{
    size_t count = 0;
    for (size_t b = 0; b < blocks; b += 4) {
        const size_t left = blocks - b < 4 ? blocks - b : 4;
        uint64_t mask = 0;
        for (size_t i = 0; i < left; i++)
            mask |= (uint64_t)masks[b + i] << (AIMO_HEAD_BLOCK * i);
        for (; mask != 0; mask &= mask - 1) {
            const size_t row = b * AIMO_HEAD_BLOCK + (unsigned)__builtin_ctzll(mask);
            candidates[count++] = (uint16_t)row;
            if (tails != NULL)
                __builtin_prefetch(&tails[row]);
        }
    }
    return count;
}

/* Prefetches a row that is compared soon, since it may be anywhere in memory. A row added after the
 * tile's version may be in a store chunk that the tile's directory does not have. */
static void fetch_row(const tile *t, uint32_t slot)
{
    if (slot / STORE_ROWS >= t->store->chunk_count)
        return;
    const char *row = aimo_store_row(t->cache, t->store, slot);
    for (size_t byte = 0; byte < t->cache->row_bytes; byte += AIMO_CACHE_LINE)
        __builtin_prefetch(row + byte);
}

/* Compares the candidates whose tails may still reach the bar, or all of them when they are few. */
static void consider_candidates(const tile *t, const listing *left)
{
    const chunk *c = left->chunk;
    seeker *s = left->seeker;
    size_t count = left->count;
    if (!s->codes.has_tail && s->outright + count <= OUTRIGHT_ROWS) {
        s->outright += count;
    } else {
        aimo_query_prepare_tail(c->basis, t->cache->kernels, s->unit, &s->codes);
        aimo_query_set_tail_bar(&s->codes, s->bar);
        count = t->cache->kernels->refine(c->tails, left->dots, &s->codes.tail, left->candidates,
                                          count);
    }
    for (size_t i = 0; i < count; i++) {
        if (i + 2 < count)
            fetch_row(t, c->slots[left->candidates[i + 2]]);
        consider(t, s, c, left->candidates[i]);
    }
}

/* Candidates are compared only after the next ones have been listed: by then their prefetched tails
 * have arrived from memory. */
static void consider_last(tile *t)
{
    listing *last = &t->listings[1 - t->turn];
    if (last->count != 0)
        consider_candidates(t, last);
    last->count = 0;
}

static void screen_group(tile *t, const chunk *c, const aimo_heads *heads, seeker *group,
                         size_t count)
{
    for (size_t j = 0; j < count; j++) {
        aimo_query_set_head_bar(&group[j].codes, group[j].bar);
        t->heads[j] = group[j].codes.head;
    }
    /* Beside the last chunk's, which are still needed when the tile is one query. */
    int16_t *dots = t->count == 1 ? t->dots + t->turn * CHUNK_ROWS : t->dots;
    t->cache->kernels->screen(heads, t->heads, count, dots, t->masks);
    for (size_t j = 0; j < count; j++) {
        listing *next = &t->listings[t->turn];
        next->chunk = c;
        next->seeker = &group[j];
        next->dots = dots + j * heads->blocks * AIMO_HEAD_BLOCK;
        next->count = list_candidates(t->masks + j * heads->blocks, heads->blocks,
                                      group[j].codes.has_tail ? c->tails : NULL, next->candidates);
        consider_last(t);
        t->turn = 1 - t->turn;
    }
    if (t->count > 1)
        consider_last(t);
}

/* Screens the chunk's coded blocks; returns the first position after them. */
static size_t screen_blocks(tile *t, const chunk *c)
{
    const aimo_heads heads = {
        .codes = c->codes,
        .rests = c->rests,
        .blocks = atomic_load_explicit(&c->blocks, memory_order_acquire),
        .lines = c->basis->head / AIMO_HEAD_LINE,
    };
    if (heads.blocks == 0)
        return 0;
    if (t->basis != c->basis) {
        consider_last(t);
        t->basis = c->basis;
        for (size_t i = 0; i < t->count; i++)
            aimo_query_prepare(c->basis, t->cache->kernels, t->seekers[i].unit,
                               &t->seekers[i].codes);
    }
    for (size_t i = 0; i < t->count; i += SCREEN_QUERIES) {
        const size_t left = t->count - i;
        screen_group(t, c, &heads, &t->seekers[i], left < SCREEN_QUERIES ? left : SCREEN_QUERIES);
    }
    return heads.blocks * AIMO_HEAD_BLOCK;
}

/* Prefetches the first codes of a chunk, which may be anywhere in memory; the screen prefetches the
 * rest as it goes. */
static void fetch_codes(const chunk *c)
{
    if (c->basis == NULL)
        return;
    for (size_t byte = 0; byte < FETCHED_CODES; byte += AIMO_CACHE_LINE)
        __builtin_prefetch(c->codes + byte, 0, 2);
}

static void search_chunk(tile *t, const chunk *c)
{
    const size_t screened = c->basis != NULL ? screen_blocks(t, c) : 0;
    const size_t count = atomic_load_explicit(&c->count, memory_order_acquire);
    for (size_t position = screened; position < count; position++)
        for (size_t i = 0; i < t->count; i++)
            consider(t, &t->seekers[i], c, position);
}

/* ---- one tile ------------------------------------------------------------------------------ */

/* Takes the context's list and a version such that the list has every row that exists in that
 * version: when the list is still the same after the version was read, no chunk is missing. */
static const list *snapshot(tile *t, int64_t context)
{
    const list *before, *after = aimo_cache_find(t->cache, context);
    do {
        before = after;
        t->version = atomic_load(&t->cache->version);
        after = aimo_cache_find(t->cache, context);
    } while (after != before);
    t->store = atomic_load_explicit(&t->cache->store, memory_order_acquire);
    return after;
}

/* Asks the device, if there is one, which rows are worth comparing. */
static void ask_device(tile *t, const list *l, device_pass *pass)
{
    const float *units[DEVICE_TILE_QUERIES];
    for (size_t i = 0; i < t->count; i++)
        units[i] = t->seekers[i].unit;
    aimo_device_pass_begin(pass, t->cache, l, t->version, units, t->count, t->threshold);
}

static void search_tile(tile *t, int64_t context)
{
    pin *p = aimo_cache_pin(t->cache);
    const list *l = snapshot(t, context);
    device_pass pass;
    ask_device(t, l, &pass);
    for (uint32_t i = 0; l != NULL && i < l->chunk_count; i++) {
        const aimo_screen_candidate *candidates;
        size_t count;
        if (!aimo_device_pass_chunk(&pass, i, &candidates, &count)) {
            if (i + 2 < l->chunk_count)
                __builtin_prefetch(l->chunks[i + 2]);
            if (i + 1 < l->chunk_count)
                fetch_codes(l->chunks[i + 1]);
            search_chunk(t, l->chunks[i]);
            continue;
        }
        for (size_t j = 0; j < count; j++)
            consider(t, &t->seekers[candidates[j].query], l->chunks[i],
                     candidates[j].position % CHUNK_ROWS);
    }
    consider_last(t);
    aimo_device_pass_end(&pass);
    aimo_cache_unpin(p);
}

static void seeker_init(seeker *s, const float *query, size_t dim, double threshold)
{
    s->query = query;
    s->inverse_norm = 1.0 / sqrt(aimo_squared_norm(query, dim));
    for (size_t i = 0; i < dim; i++)
        s->unit[i] = (float)((double)query[i] * s->inverse_norm);
    s->hit_count = 0;
    s->outright = 0;
    s->bar = threshold;
}

/* Rounding may have put a score on the wrong side of the threshold or of its neighbour, contrary to
 * the exact decision. */
static void write_hits(const seeker *s, double threshold, size_t k, int64_t *slots, double *scores)
{
    double highest = 1.0;
    for (size_t i = 0; i < k; i++) {
        const bool there = i < s->hit_count;
        if (there)
            highest = fmax(threshold, fmin(highest, s->hits[i].score));
        slots[i] = there ? (int64_t)s->hits[i].slot : NO_SLOT;
        scores[i] = there ? highest : 0.0;
    }
}

/* ---- all queries --------------------------------------------------------------------------- */

typedef struct {
    int64_t context;
    size_t index;
} order_entry;

typedef struct {
    aimo_cache *cache;
    const float *queries;
    double threshold;
    size_t k;
    int64_t *slots;
    double *scores;
    order_entry *order; /* [n], by context, then index */
    size_t *starts;     /* [tiles + 1] into order */
    size_t tiles;
    atomic_size_t next;   /* the next tile to search */
    char *working_memory; /* [workers, tile_bytes] */
    size_t tile_queries, tile_bytes;
} job;

static size_t lines(size_t bytes)
{
    return (bytes + AIMO_CACHE_LINE - 1) / AIMO_CACHE_LINE * AIMO_CACHE_LINE;
}

/* Carves the next `bytes` from *memory. */
static void *carve(char **memory, size_t bytes)
{
    void *block = *memory;
    *memory += lines(bytes);
    return block;
}

static size_t tile_bytes(const aimo_cache *cache, size_t queries, size_t k)
{
    return lines(queries * sizeof(seeker)) + queries * lines(cache->dim * sizeof(float)) +
           queries * lines((k + 1) * sizeof(hit)) +
           lines(SCREEN_QUERIES * sizeof(aimo_head_query)) +
           lines(SCREEN_QUERIES * CHUNK_ROWS * sizeof(int16_t)) +
           lines(SCREEN_QUERIES * CHUNK_BLOCKS * sizeof(uint16_t)) +
           2 * lines(CHUNK_ROWS * sizeof(uint16_t));
}

static void run_tile(const job *j, size_t index, char *memory)
{
    aimo_cache *cache = j->cache;
    const size_t start = j->starts[index], count = j->starts[index + 1] - start;
    tile t = {
        .cache = cache,
        .threshold = j->threshold,
        .k = j->k,
        .f32_error = aimo_dot_noise(cache->dim) + 0x1p-22,
        .f64_error = (double)(2 * cache->dim + 32) * 0x1p-53,
        .count = count,
        .seekers = carve(&memory, j->tile_queries * sizeof(seeker)),
        .heads = carve(&memory, SCREEN_QUERIES * sizeof(aimo_head_query)),
        .dots = carve(&memory, SCREEN_QUERIES * CHUNK_ROWS * sizeof(int16_t)),
        .masks = carve(&memory, SCREEN_QUERIES * CHUNK_BLOCKS * sizeof(uint16_t)),
        .listings[0].candidates = carve(&memory, CHUNK_ROWS * sizeof(uint16_t)),
        .listings[1].candidates = carve(&memory, CHUNK_ROWS * sizeof(uint16_t)),
    };
    for (size_t i = 0; i < count; i++) {
        seeker *s = &t.seekers[i];
        s->unit = carve(&memory, cache->dim * sizeof(float));
        s->hits = carve(&memory, (j->k + 1) * sizeof(hit));
        seeker_init(s, j->queries + j->order[start + i].index * cache->dim, cache->dim,
                    j->threshold);
    }
    search_tile(&t, j->order[start].context);
    for (size_t i = 0; i < count; i++) {
        const size_t to = j->order[start + i].index * j->k;
        write_hits(&t.seekers[i], j->threshold, j->k, j->slots + to, j->scores + to);
    }
}

static void run_worker(void *context, size_t worker)
{
    job *j = context;
    size_t index;
    while ((index = atomic_fetch_add_explicit(&j->next, 1, memory_order_relaxed)) < j->tiles)
        run_tile(j, index, j->working_memory + worker * j->tile_bytes);
}

static int by_context(const void *a, const void *b)
{
    const order_entry *x = a, *y = b;
    if (x->context != y->context)
        return x->context < y->context ? -1 : 1;
    return (x->index > y->index) - (x->index < y->index);
}

/* Cuts the sorted queries into tiles of one context each; returns how many. */
static size_t cut_tiles(const order_entry *order, size_t n, size_t most, size_t *starts)
{
    size_t tiles = 0;
    for (size_t i = 0; i < n; i++)
        if (i == 0 || order[i].context != order[i - 1].context || i - starts[tiles - 1] == most)
            starts[tiles++] = i;
    starts[tiles] = n;
    return tiles;
}

/* One tile per thread, unless a device does most of the work; fewer queries per tile when many hits
 * are wanted. */
static size_t queries_per_tile(const aimo_cache *cache, double threshold, size_t n, size_t k)
{
    const bool on_device = aimo_device_has_most(cache, threshold);
    const size_t threads = on_device ? 1 : aimo_thread_count();
    const size_t largest = on_device ? DEVICE_TILE_QUERIES : TILE_QUERIES;
    size_t most = (n + threads - 1) / threads;
    if (most > largest)
        most = largest;
    while (most > 1 && most * k > 65536)
        most /= 2;
    return most;
}

static aimo_status check_arguments(const aimo_cache *cache, const float *queries, size_t n,
                                   double threshold, size_t k, aimo_error *err)
{
    if (!(threshold >= -1.0 && threshold <= 1.0))
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "threshold: expected -1 to 1, got %g", threshold);
    if (k == 0 || k > UINT32_MAX)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "k: expected 1 to 2^32 - 1, got %zu", k);
    return aimo_cache_check_vectors(queries, n, cache->dim, "query", err);
}

aimo_status aimo_cache_search(aimo_cache *cache, const float *queries, const int64_t *contexts,
                              size_t n, double threshold, size_t k, int64_t *slots, double *scores,
                              aimo_error *err)
{
    AIMO_TRY(check_arguments(cache, queries, n, threshold, k, err));
    if (n == 0)
        return AIMO_OK;
    const size_t threads = aimo_thread_count(), workers = n < threads ? n : threads;
    job j = {.cache = cache,
             .queries = queries,
             .threshold = threshold,
             .k = k,
             .slots = slots,
             .scores = scores,
             .tile_queries = queries_per_tile(cache, threshold, n, k)};
    j.tile_bytes = tile_bytes(cache, j.tile_queries, k);
    const size_t order_bytes = lines(n * sizeof(order_entry));
    const size_t starts_bytes = lines((n + 1) * sizeof(size_t));
    char *memory;
    AIMO_TRY(aimo_scratch_lease((void **)&memory,
                                order_bytes + starts_bytes + workers * j.tile_bytes, err));
    void *const leased = memory;
    j.order = carve(&memory, order_bytes);
    j.starts = carve(&memory, starts_bytes);
    j.working_memory = memory;
    for (size_t i = 0; i < n; i++)
        j.order[i] = (order_entry){.context = contexts[i], .index = i};
    if (n > 1)
        qsort(j.order, n, sizeof *j.order, by_context);
    j.tiles = cut_tiles(j.order, n, j.tile_queries, j.starts);
    aimo_parallel_for(j.tiles < workers ? j.tiles : workers, run_worker, &j);
    aimo_scratch_return(leased);
    return AIMO_OK;
}
