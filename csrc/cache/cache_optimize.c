/* Learning the directions: the principal directions of a sample by subspace iteration, then the
 * number of head directions by counting the rows that each choice would leave to compare, then
 * recoding chunk by chunk.
 *
 * Nothing here needs to be accurate. The bound holds for any directions; slightly wrong ones merely
 * skip a few rows fewer. */
#include "cache/cache.h"

#include "base/large_pages.h"
#include "base/memory.h"
#include "cache/cache_chunk.h"
#include "cache/cache_context.h"
#include "cache/cache_device.h"

#include <math.h>
#include <string.h>

enum {
    SAMPLE_ROWS = 2048,
    FEWEST_ROWS = 256, /* with fewer, searching row by row is as fast */
    PROBES = 64,       /* sample rows that serve as queries when the head is chosen */
    ITERATIONS = 6,
    ROWS_IN_CACHE = 16384, /* rows whose heads stay in an L2 cache of about 1 MB */
    /* With this many chunks, a processor's TLB of about 4,000 small pages no longer covers them. */
    GATHERED_CHUNKS = 64,
};

/* ---- principal directions ------------------------------------------------------------------ */

typedef struct {
    const aimo_similarity_kernels *kernels;
    size_t rows, dim, n;
    float *sample;     /* [rows, dim], norm 1 */
    float *directions; /* [n, dim] */
    float *products;   /* [rows, n] */
    float *coded;      /* [rows, AIMO_MAX_HEAD]: the products that a head's codes stand for */
    double steps[AIMO_MAX_HEAD];
} learner;

static void add_scaled(float *y, const float *x, float scale, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] += scale * x[i];
}

/* products = sample @ directions^T */
static void multiply_sample(const learner *l)
{
    for (size_t r = 0; r < l->rows; r++)
        l->kernels->project(l->directions, l->n, l->sample + r * l->dim, l->dim,
                            l->products + r * l->n);
}

/* Gram-Schmidt, twice over, because once is not enough when directions were nearly parallel. A
 * direction that vanishes is replaced by an axis. */
static void orthonormalize(const learner *l)
{
    const size_t dim = l->dim;
    for (size_t j = 0; j < l->n; j++) {
        float *p = l->directions + j * dim, overlap[AIMO_MAX_DIRECTIONS], square;
        for (int pass = 0; pass < 3; pass++) {
            l->kernels->project(p, 1, p, dim, &square);
            if (!(square > 1e-12f)) {
                memset(p, 0, dim * sizeof *p);
                p[j % dim] = 1.0f;
                square = 1.0f;
            }
            const float inverse = 1.0f / sqrtf(square);
            for (size_t i = 0; i < dim; i++)
                p[i] *= inverse;
            if (pass == 2)
                break;
            l->kernels->project(l->directions, j, p, dim, overlap);
            for (size_t i = 0; i < j; i++)
                add_scaled(p, l->directions + i * dim, -overlap[i], dim);
        }
    }
}

/* directions = sample^T (sample directions^T), the step that pulls them to the principal ones. */
static void iterate(const learner *l)
{
    multiply_sample(l);
    memset(l->directions, 0, l->n * l->dim * sizeof *l->directions);
    for (size_t r = 0; r < l->rows; r++)
        for (size_t j = 0; j < l->n; j++)
            add_scaled(l->directions + j * l->dim, l->sample + r * l->dim,
                       l->products[r * l->n + j], l->dim);
    orthonormalize(l);
}

static void find_directions(const learner *l)
{
    for (size_t j = 0; j < l->n; j++)
        memcpy(l->directions + j * l->dim, l->sample + j * (l->rows / l->n) * l->dim,
               l->dim * sizeof *l->sample);
    orthonormalize(l);
    for (int i = 0; i < ITERATIONS; i++)
        iterate(l);
    multiply_sample(l);
}

/* ---- how many directions --------------------------------------------------------------------- */

/* Steps of the directions' codes. Codes cover 2.25 times a coordinate's root mean square, so the
 * squares of the steps add up to at most 0.08 (below AIMO_MAX_STEPS). Few rows reach far beyond
 * that range, and what is beyond counts as their error. */
static void choose_steps(learner *l)
{
    for (size_t j = 0; j < l->n && j < AIMO_MAX_HEAD; j++) {
        double square = 1e-8 * (double)l->rows;
        for (size_t r = 0; r < l->rows; r++)
            square += (double)l->products[r * l->n + j] * (double)l->products[r * l->n + j];
        l->steps[j] = 2.25 / 8.0 * sqrt(square / (double)l->rows);
    }
}

/* coded [rows, AIMO_MAX_HEAD] = what the codes of the sample's heads stand for. */
static void code_sample(const learner *l)
{
    for (size_t r = 0; r < l->rows; r++)
        for (size_t j = 0; j < l->n && j < AIMO_MAX_HEAD; j++) {
            const unsigned code = aimo_head_code((double)l->products[r * l->n + j], l->steps[j]);
            l->coded[r * AIMO_MAX_HEAD + j] = (float)(aimo_head_value(code) * l->steps[j]);
        }
}

static double distance(const float *a, const float *b, size_t n)
{
    double square = 0.0;
    for (size_t i = 0; i < n; i++)
        square += (double)(a[i] - b[i]) * (double)(a[i] - b[i]);
    return sqrt(square);
}

/* The share of sample rows that a head of k directions fails to rule out at the usual threshold. */
static double share_left(const learner *l, size_t k)
{
    const double threshold = 0.85, rounding = 0.015;
    const size_t stride = l->rows / PROBES * l->n;
    double norms[PROBES], rests[PROBES];
    for (size_t a = 0; a < PROBES; a++) {
        const double square = aimo_squared_norm(l->products + a * stride, k);
        norms[a] = sqrt(square);
        rests[a] = sqrt(fmax(0.0, 1.0 - square));
    }
    size_t left = 0;
    for (size_t r = 0; r < l->rows; r++) {
        const float *h = l->products + r * l->n, *coded = l->coded + r * AIMO_MAX_HEAD;
        const double rest = sqrt(fmax(0.0, 1.0 - aimo_squared_norm(h, k)));
        const double error = distance(h, coded, k);
        for (size_t a = 0; a < PROBES; a++) {
            float dot;
            l->kernels->project(l->products + a * stride, 1, coded, k, &dot);
            left += (double)dot + rests[a] * rest + norms[a] * error + rounding >= threshold;
        }
    }
    return (double)left / ((double)l->rows * PROBES);
}

/* Costs are in bytes of sequential reading. A row that a head cannot rule out costs a mispredicted
 * branch, when it is found in the mask, and a random read of its tail: relative to sequential bytes
 * that is cheap from memory and expensive within the L2 cache, where sequential bytes are so fast.
 * No head rules out the sample's duplicates, which therefore add the same cost to all of them.
 * Projecting a query reads the head's directions once for all `rows`, and faster than heads, which
 * take more arithmetic per byte. To save memory, a head is limited to an eighth of the row. */
static size_t choose_head(const learner *l, size_t row_bytes, size_t rows)
{
    static const size_t heads[] = {16, 24, 32, 40, 48, 56, 64, 80, AIMO_MAX_HEAD};
    const double tail_cost = rows <= ROWS_IN_CACHE ? 2000.0 : 500.0;
    const double direction_cost = 2.0 / 3.0 * (double)(l->dim * sizeof(float)) / (double)rows;
    size_t best = 0;
    double best_cost = (double)row_bytes;
    for (size_t i = 0;
         i < sizeof heads / sizeof heads[0] && heads[i] <= l->n && heads[i] * 4 <= row_bytes; i++) {
        const double cost =
            (double)heads[i] * (0.5 + direction_cost) + tail_cost * share_left(l, heads[i]);
        if (cost < best_cost) {
            best = heads[i];
            best_cost = cost;
        }
    }
    return best;
}

/* A tail code's unit: the sample's largest coordinate, plus a quarter, becomes 127. */
static double choose_tail_step(const learner *l, size_t head, size_t tail)
{
    double largest = 1e-3;
    for (size_t r = 0; r < l->rows; r++)
        largest = fmax(largest, aimo_largest(l->products + r * l->n + head, tail));
    return largest * 1.25 / 127.0;
}

/* ---- the sample ------------------------------------------------------------------------------ */

/* With the lock held: takes up to SAMPLE_ROWS live rows, spread over the slots. */
static void take_sample(const aimo_cache *cache, learner *l)
{
    const directory *store = atomic_load_explicit(&cache->store, memory_order_relaxed);
    const size_t slots = cache->slot_count;
    const size_t stride = slots > SAMPLE_ROWS ? slots / SAMPLE_ROWS : 1;
    for (size_t offset = 0; offset < stride && l->rows < SAMPLE_ROWS; offset++) {
        for (size_t slot = offset; slot < slots && l->rows < SAMPLE_ROWS; slot += stride) {
            if (aimo_cache_place(cache, (int64_t)slot)->position == AIMO_NO_POSITION)
                continue;
            float *x = l->sample + l->rows++ * l->dim;
            aimo_cache_widen(cache, aimo_store_row(cache, store, (uint32_t)slot), x);
            const float scale = (float)aimo_store_inverse_norm(store, (uint32_t)slot);
            for (size_t i = 0; i < l->dim; i++)
                x[i] *= scale;
        }
    }
}

/* *out = NULL when the directions came out too skewed to use. */
static aimo_status basis_new(aimo_cache *cache, const learner *l, size_t head, aimo_basis **out,
                             aimo_error *err)
{
    const size_t tail = l->n - head < AIMO_TAIL_CODES ? l->n - head : AIMO_TAIL_CODES;
    const size_t floats = (head + tail) * l->dim;
    AIMO_TRY(aimo_cache_block_new(cache, (void **)out, sizeof **out + floats * sizeof(float),
                                  "directions", err));
    aimo_basis *basis = *out;
    basis->dim = l->dim;
    basis->head = head;
    basis->tail = tail;
    memcpy(basis->steps, l->steps, sizeof basis->steps);
    basis->tail_step = choose_tail_step(l, head, tail);
    basis->users = 0;
    memcpy(basis->directions, l->directions, floats * sizeof(float));
    aimo_basis_measure(basis);
    if (!aimo_basis_is_usable(basis)) {
        aimo_cache_block_free(cache, &basis->link);
        *out = NULL;
    }
    return AIMO_OK;
}

/* *out = NULL when directions would not help. */
static aimo_status learn(aimo_cache *cache, aimo_basis **out, aimo_error *err)
{
    *out = NULL;
    const size_t dim = cache->dim;
    learner l = {.kernels = cache->kernels,
                 .dim = dim,
                 .n = dim < AIMO_MAX_DIRECTIONS ? dim : AIMO_MAX_DIRECTIONS};
    float *memory;
    const size_t floats = SAMPLE_ROWS * (dim + l.n + AIMO_MAX_HEAD) + l.n * dim;
    AIMO_TRY(aimo_memory_new((void **)&memory, floats, sizeof(float), "sample", err));
    l.sample = memory;
    l.directions = l.sample + SAMPLE_ROWS * dim;
    l.products = l.directions + l.n * dim;
    l.coded = l.products + SAMPLE_ROWS * l.n;
    pthread_mutex_lock(&cache->lock);
    take_sample(cache, &l);
    pthread_mutex_unlock(&cache->lock);
    aimo_status status = AIMO_OK;
    if (l.rows >= FEWEST_ROWS) {
        const size_t rows = aimo_cache_count(cache);
        find_directions(&l);
        choose_steps(&l);
        code_sample(&l);
        const size_t head = choose_head(&l, cache->row_bytes, rows > l.rows ? rows : l.rows);
        if (head != 0)
            status = basis_new(cache, &l, head, out, err);
    }
    aimo_memory_free(memory);
    return status;
}

/* ---- into place ------------------------------------------------------------------------------ */

/* With the lock held: applies to `to` what happened to `from` while its first `copied` positions
 * were copied. */
static void catch_up(aimo_cache *cache, const chunk *from, uint32_t copied, chunk *to)
{
    const uint32_t count = atomic_load_explicit(&from->count, memory_order_relaxed);
    const uint32_t taken = atomic_load_explicit(&to->count, memory_order_relaxed);
    uint32_t position = 0;
    for (uint32_t i = 0; i < count; i++) {
        const bool alive =
            atomic_load_explicit(&from->deaths[i], memory_order_relaxed) == AIMO_ALIVE;
        if (position < taken && to->births[position] == from->births[i]) {
            if (!alive) {
                atomic_store_explicit(&to->deaths[position], 0, memory_order_relaxed);
                to->dead++;
            }
            position++;
        } else if (alive && i >= copied) {
            aimo_chunk_append(cache, to, from->slots[i], from->births[i], cache->widened);
        }
    }
}

typedef enum { RECODED, CHANGED_MEANWHILE, NO_SUCH_CHUNK } recoding;

/* With the lock held and under a pin; releases the lock while it codes the rows. */
static aimo_status recode_full(aimo_cache *cache, list *l, uint32_t index, float *widened,
                               recoding *result, aimo_error *err)
{
    const int64_t context = l->context;
    const bool large = l->chunk_count >= GATHERED_CHUNKS;
    const chunk *from = l->chunks[index];
    chunk *to;
    AIMO_TRY(aimo_full_chunk_new(cache, &to, err));
    pthread_mutex_unlock(&cache->lock);
    const uint32_t copied = aimo_chunk_copy_live(cache, from, to, widened);
    if (large)
        aimo_large_pages_gather(to, to->link.bytes);
    pthread_mutex_lock(&cache->lock);
    list *now = aimo_cache_find(cache, context);
    *result = CHANGED_MEANWHILE;
    aimo_status status = AIMO_OK;
    if (now != NULL && index < now->chunk_count && now->chunks[index] == from) {
        catch_up(cache, from, copied, to);
        status = aimo_context_replace_chunk(cache, now, index, to, err);
        *result = RECODED;
    }
    if (status != AIMO_OK || *result != RECODED)
        aimo_full_chunk_free(cache, to);
    else
        aimo_context_tidy(cache, aimo_cache_find(cache, context), index);
    return status;
}

/* With the lock held. */
static aimo_status recode(aimo_cache *cache, int64_t context, uint32_t index, float *widened,
                          recoding *result, aimo_error *err)
{
    list *l = aimo_cache_find(cache, context);
    *result = l == NULL || index >= l->chunk_count ? NO_SUCH_CHUNK : RECODED;
    if (*result == NO_SUCH_CHUNK)
        return AIMO_OK;
    const chunk *c = l->chunks[index];
    if (c->basis == aimo_chunk_basis(cache, c->capacity))
        return AIMO_OK;
    if (c->capacity < CHUNK_ROWS)
        return aimo_context_recode_small(cache, l, err);
    return recode_full(cache, l, index, widened, result, err);
}

static aimo_status recode_context(aimo_cache *cache, int64_t context, float *widened,
                                  aimo_error *err)
{
    recoding result = RECODED;
    aimo_status status = AIMO_OK;
    for (uint32_t index = 0; status == AIMO_OK && result != NO_SUCH_CHUNK;) {
        /* Takes a pin per chunk, because a pin keeps everything that others retire. */
        pin *p = aimo_cache_pin(cache);
        pthread_mutex_lock(&cache->lock);
        aimo_cache_reclaim_when_due(cache); /* the chunks before this one, as they were */
        status = recode(cache, context, index, widened, &result, err);
        pthread_mutex_unlock(&cache->lock);
        aimo_cache_unpin(p);
        index += result == RECODED;
    }
    return status;
}

/* With the lock held: the contexts that are large enough for codes. */
static aimo_status list_contexts(const aimo_cache *cache, int64_t **contexts, size_t *count,
                                 aimo_error *err)
{
    *count = 0;
    AIMO_TRY(
        aimo_memory_new((void **)contexts, cache->context_count, sizeof(int64_t), "contexts", err));
    const table *t = atomic_load_explicit(&cache->contexts, memory_order_relaxed);
    for (size_t i = 0; i < t->capacity; i++) {
        const list *l = atomic_load_explicit(&t->entries[i], memory_order_relaxed);
        if (l != NULL && l->chunk_count != 0 && l->chunks[0]->capacity >= SMALLEST_CODED)
            (*contexts)[(*count)++] = l->context;
    }
    return AIMO_OK;
}

static aimo_status recode_all(aimo_cache *cache, aimo_error *err)
{
    int64_t *contexts;
    size_t count;
    pthread_mutex_lock(&cache->lock);
    aimo_status status = list_contexts(cache, &contexts, &count, err);
    pthread_mutex_unlock(&cache->lock);
    AIMO_TRY(status);
    float *widened;
    status = aimo_memory_new((void **)&widened, cache->dim, sizeof(float), "row", err);
    for (size_t i = 0; status == AIMO_OK && i < count; i++) {
        status = recode_context(cache, contexts[i], widened, err);
        if (status == AIMO_OK && cache->device.screen != NULL)
            aimo_device_copy_context(cache, contexts[i]);
    }
    aimo_memory_free(widened);
    aimo_memory_free(contexts);
    return status;
}

static void set_basis(aimo_cache *cache, aimo_basis *basis)
{
    pthread_mutex_lock(&cache->lock);
    aimo_basis *const previous = cache->basis;
    if (basis != NULL)
        aimo_basis_hold(basis);
    cache->basis = basis;
    if (previous != NULL)
        aimo_basis_release(cache, previous);
    pthread_mutex_unlock(&cache->lock);
}

aimo_status aimo_cache_optimize(aimo_cache *cache, aimo_error *err)
{
    pthread_mutex_lock(&cache->optimize_lock);
    aimo_basis *basis;
    aimo_status status = learn(cache, &basis, err);
    if (status == AIMO_OK) {
        set_basis(cache, basis);
        status = recode_all(cache, err);
        pthread_mutex_lock(&cache->lock);
        aimo_cache_reclaim(cache);
        pthread_mutex_unlock(&cache->lock);
    }
    pthread_mutex_unlock(&cache->optimize_lock);
    return status;
}
