/* Lists and the hash table of contexts: open addressing, linear probing, tombstones for removed
 * lists.
 *
 * A small context costs one block: its list with its only chunk inside, whose capacity doubles
 * until a full chunk is needed; from then on the list points to full chunks. Once readers can see a
 * list, nothing in it changes except the chunk that rows are appended to. */
#include "cache/cache_context.h"

#include "base/memory.h"
#include "cache/cache_chunk.h"
#include "cache/cache_device.h"

#include <string.h>

enum { SMALLEST_TABLE = 64 };

static list tombstone; /* marks an entry whose list was removed; probing continues past it */

static size_t hash(int64_t context)
{
    uint64_t x = (uint64_t)context + 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return (size_t)(x ^ x >> 31);
}

static _Atomic(list *) *find_entry(table *t, int64_t context)
{
    for (size_t i = hash(context);; i++) {
        _Atomic(list *) *entry = &t->entries[i & (t->capacity - 1)];
        const list *l = atomic_load_explicit(entry, memory_order_acquire);
        if (l == NULL || (l != &tombstone && l->context == context))
            return entry;
    }
}

list *aimo_cache_find(const aimo_cache *cache, int64_t context)
{
    table *t = atomic_load_explicit(&cache->contexts, memory_order_acquire);
    return atomic_load_explicit(find_entry(t, context), memory_order_acquire);
}

static aimo_status table_new(aimo_cache *cache, size_t capacity, table **out, aimo_error *err)
{
    const size_t bytes = sizeof(table) + capacity * sizeof(_Atomic(list *));
    AIMO_TRY(aimo_cache_block_new(cache, (void **)out, bytes, "table of contexts", err));
    (*out)->capacity = capacity;
    (*out)->used = 0;
    for (size_t i = 0; i < capacity; i++)
        atomic_init(&(*out)->entries[i], NULL);
    return AIMO_OK;
}

aimo_status aimo_table_init(aimo_cache *cache, aimo_error *err)
{
    table *t;
    AIMO_TRY(table_new(cache, SMALLEST_TABLE, &t, err));
    atomic_init(&cache->contexts, t);
    return AIMO_OK;
}

/* Makes room for one more context: at most three quarters of the table may be lists and
 * tombstones. */
static aimo_status table_reserve(aimo_cache *cache, aimo_error *err)
{
    table *t = atomic_load_explicit(&cache->contexts, memory_order_relaxed), *larger;
    if ((t->used + 1) * 4 <= t->capacity * 3)
        return AIMO_OK;
    size_t capacity = SMALLEST_TABLE;
    while (capacity < cache->context_count * 2 + 2)
        capacity *= 2;
    AIMO_TRY(table_new(cache, capacity, &larger, err));
    for (size_t i = 0; i < t->capacity; i++) {
        list *l = atomic_load_explicit(&t->entries[i], memory_order_relaxed);
        if (l == NULL || l == &tombstone)
            continue;
        atomic_store_explicit(find_entry(larger, l->context), l, memory_order_relaxed);
        larger->used++;
    }
    atomic_store_explicit(&cache->contexts, larger, memory_order_release);
    aimo_cache_retire(cache, &t->link);
    return AIMO_OK;
}

/* Puts the list into the table, which must have room. */
static void table_put(aimo_cache *cache, list *l)
{
    table *t = atomic_load_explicit(&cache->contexts, memory_order_relaxed);
    _Atomic(list *) *entry = find_entry(t, l->context);
    if (atomic_load_explicit(entry, memory_order_relaxed) == NULL) {
        t->used++;
        cache->context_count++;
    }
    atomic_store_explicit(entry, l, memory_order_release);
}

static bool has_inline_chunk(const list *l)
{
    return l->chunk_count == 1 && l->chunks[0]->capacity < CHUNK_ROWS;
}

static void retire_chunk(aimo_cache *cache, chunk *c)
{
    if (c->basis != NULL)
        aimo_basis_release(cache, c->basis);
    aimo_device_retire_copy(cache, c);
    aimo_cache_retire(cache, &c->link);
}

/* Retires the list alone, including its chunk when that is inside it. */
static void retire_list(aimo_cache *cache, list *l)
{
    if (has_inline_chunk(l) && l->chunks[0]->basis != NULL)
        aimo_basis_release(cache, l->chunks[0]->basis);
    aimo_cache_retire(cache, &l->link);
}

void aimo_table_retire_all(aimo_cache *cache, table *t)
{
    for (size_t i = 0; i < t->capacity; i++) {
        list *l = atomic_load_explicit(&t->entries[i], memory_order_relaxed);
        if (l == NULL || l == &tombstone)
            continue;
        if (!has_inline_chunk(l))
            for (uint32_t j = 0; j < l->chunk_count; j++)
                retire_chunk(cache, l->chunks[j]);
        retire_list(cache, l);
    }
}

static size_t inline_offset(void)
{
    const size_t head = sizeof(list) + sizeof(chunk *);
    return (head + AIMO_CACHE_LINE - 1) / AIMO_CACHE_LINE * AIMO_CACHE_LINE;
}

static aimo_status inline_list_new(aimo_cache *cache, int64_t context, uint32_t capacity,
                                   list **out, aimo_error *err)
{
    aimo_basis *basis = aimo_chunk_basis(cache, capacity);
    const size_t bytes = inline_offset() + aimo_chunk_bytes(capacity, basis);
    AIMO_TRY(aimo_cache_block_new(cache, (void **)out, bytes, "context", err));
    list *l = *out;
    l->context = context;
    l->chunk_count = 1;
    l->open = 0;
    l->chunks[0] = aimo_chunk_init((char *)l + inline_offset(), capacity, basis);
    return AIMO_OK;
}

static aimo_status list_new(aimo_cache *cache, int64_t context, uint32_t chunk_count, list **out,
                            aimo_error *err)
{
    const size_t bytes = sizeof(list) + chunk_count * sizeof(chunk *);
    AIMO_TRY(aimo_cache_block_new(cache, (void **)out, bytes, "context", err));
    (*out)->context = context;
    (*out)->chunk_count = chunk_count;
    (*out)->open = 0;
    return AIMO_OK;
}

aimo_status aimo_full_chunk_new(aimo_cache *cache, chunk **out, aimo_error *err)
{
    void *block;
    aimo_basis *basis = aimo_chunk_basis(cache, CHUNK_ROWS);
    AIMO_TRY(
        aimo_cache_block_new(cache, &block, aimo_chunk_bytes(CHUNK_ROWS, basis), "chunk", err));
    *out = aimo_chunk_init(block, CHUNK_ROWS, basis);
    return AIMO_OK;
}

void aimo_full_chunk_free(aimo_cache *cache, chunk *c)
{
    if (c->basis != NULL)
        aimo_basis_release(cache, c->basis);
    aimo_cache_block_free(cache, &c->link);
}

/* Updates the places of a chunk's rows to chunk number `index`. */
static void renew_places(aimo_cache *cache, const chunk *c, uint32_t index)
{
    const uint32_t count = atomic_load_explicit(&c->count, memory_order_relaxed);
    for (uint32_t i = 0; i < count; i++)
        if (atomic_load_explicit(&c->deaths[i], memory_order_relaxed) == AIMO_ALIVE)
            aimo_cache_place(cache, c->slots[i])->position = index * CHUNK_ROWS + i;
}

static uint32_t live_rows(const chunk *c)
{
    return atomic_load_explicit(&c->count, memory_order_relaxed) - c->dead;
}

/* Replaces a small context's list by one whose chunk has room for `capacity` rows. */
static aimo_status resize_inline(aimo_cache *cache, list *l, uint32_t capacity, list **out,
                                 aimo_error *err)
{
    list *resized;
    if (capacity < CHUNK_ROWS) {
        AIMO_TRY(inline_list_new(cache, l->context, capacity, &resized, err));
    } else {
        AIMO_TRY(list_new(cache, l->context, 1, &resized, err));
        const aimo_status status = aimo_full_chunk_new(cache, &resized->chunks[0], err);
        if (status != AIMO_OK) {
            aimo_cache_block_free(cache, &resized->link);
            return status;
        }
    }
    aimo_chunk_copy_live(cache, l->chunks[0], resized->chunks[0], cache->widened);
    renew_places(cache, resized->chunks[0], 0);
    table_put(cache, resized);
    retire_list(cache, l);
    *out = resized;
    return AIMO_OK;
}

aimo_status aimo_context_recode_small(aimo_cache *cache, list *l, aimo_error *err)
{
    list *recoded;
    return resize_inline(cache, l, l->chunks[0]->capacity, &recoded, err);
}

static aimo_status append_chunk(aimo_cache *cache, list *l, list **out, aimo_error *err)
{
    list *longer;
    AIMO_TRY(list_new(cache, l->context, l->chunk_count + 1, &longer, err));
    const aimo_status status = aimo_full_chunk_new(cache, &longer->chunks[l->chunk_count], err);
    if (status != AIMO_OK) {
        aimo_cache_block_free(cache, &longer->link);
        return status;
    }
    memcpy(longer->chunks, l->chunks, l->chunk_count * sizeof l->chunks[0]);
    longer->open = l->chunk_count;
    table_put(cache, longer);
    retire_list(cache, l);
    *out = longer;
    return AIMO_OK;
}

static bool has_room(const chunk *c)
{
    return atomic_load_explicit(&c->count, memory_order_relaxed) < c->capacity;
}

aimo_status aimo_context_make_room(aimo_cache *cache, int64_t context, list **out, aimo_error *err)
{
    *out = aimo_cache_find(cache, context);
    if (*out == NULL) {
        AIMO_TRY(table_reserve(cache, err));
        AIMO_TRY(inline_list_new(cache, context, 1, out, err));
        table_put(cache, *out);
        return AIMO_OK;
    }
    list *l = *out;
    if (has_room(l->chunks[l->open]))
        return AIMO_OK;
    if (has_inline_chunk(l)) {
        const uint32_t capacity = l->chunks[0]->capacity;
        const bool half_dead = l->chunks[0]->dead * 2 >= capacity;
        return resize_inline(cache, l, half_dead ? capacity : capacity * 2, out, err);
    }
    for (uint32_t i = l->chunk_count; i-- > 0;) {
        if (has_room(l->chunks[i])) {
            l->open = i;
            return AIMO_OK;
        }
    }
    return append_chunk(cache, l, out, err);
}

aimo_status aimo_context_replace_chunk(aimo_cache *cache, list *l, uint32_t index,
                                       chunk *replacement, aimo_error *err)
{
    list *renewed;
    AIMO_TRY(list_new(cache, l->context, l->chunk_count, &renewed, err));
    memcpy(renewed->chunks, l->chunks, l->chunk_count * sizeof l->chunks[0]);
    renewed->chunks[index] = replacement;
    renewed->open = l->open;
    renew_places(cache, replacement, index);
    table_put(cache, renewed);
    retire_chunk(cache, l->chunks[index]);
    retire_list(cache, l);
    return AIMO_OK;
}

static void drop_list(aimo_cache *cache, list *l)
{
    table *t = atomic_load_explicit(&cache->contexts, memory_order_relaxed);
    atomic_store_explicit(find_entry(t, l->context), &tombstone, memory_order_release);
    cache->context_count--;
    if (!has_inline_chunk(l))
        retire_chunk(cache, l->chunks[0]);
    retire_list(cache, l);
}

/* The last chunk takes the place of the empty one. */
static void drop_chunk(aimo_cache *cache, list *l, uint32_t index)
{
    list *shorter;
    const uint32_t last = l->chunk_count - 1;
    if (list_new(cache, l->context, last, &shorter, NULL) != AIMO_OK)
        return;
    memcpy(shorter->chunks, l->chunks, last * sizeof l->chunks[0]);
    if (index != last) {
        shorter->chunks[index] = l->chunks[last];
        renew_places(cache, l->chunks[last], index);
    }
    table_put(cache, shorter);
    retire_chunk(cache, l->chunks[index]);
    retire_list(cache, l);
}

static void rebuild_chunk(aimo_cache *cache, list *l, uint32_t index)
{
    chunk *rebuilt;
    if (aimo_full_chunk_new(cache, &rebuilt, NULL) != AIMO_OK)
        return;
    aimo_chunk_copy_live(cache, l->chunks[index], rebuilt, cache->widened);
    if (aimo_context_replace_chunk(cache, l, index, rebuilt, NULL) != AIMO_OK)
        aimo_full_chunk_free(cache, rebuilt);
}

void aimo_context_tidy(aimo_cache *cache, list *l, uint32_t index)
{
    const chunk *c = l->chunks[index];
    const uint32_t live = live_rows(c);
    list *smaller;
    if (live == 0 && l->chunk_count == 1)
        drop_list(cache, l);
    else if (live == 0)
        drop_chunk(cache, l, index);
    else if (has_inline_chunk(l) && live * 4 <= c->capacity)
        (void)resize_inline(cache, l, c->capacity / 2, &smaller, NULL);
    else if (!has_inline_chunk(l) && c->dead * 4 >= CHUNK_ROWS)
        rebuild_chunk(cache, l, index);
}
