/* Chunks. Heads are stored in blocks of 16 rows that readers load whole, so a block is published
 * when it is full; until then its rows are compared one by one. */
#include "cache/cache_chunk.h"

#include "cache/cache_device.h"

#include <string.h>

static size_t round_to_line(size_t bytes)
{
    return (bytes + AIMO_CACHE_LINE - 1) / AIMO_CACHE_LINE * AIMO_CACHE_LINE;
}

static size_t position_bytes(uint32_t capacity)
{
    return capacity * (sizeof(uint64_t) + sizeof(_Atomic uint64_t) + sizeof(uint32_t));
}

/* Two codes a byte. */
static size_t head_bytes(const aimo_basis *basis) { return basis->head / 2; }

size_t aimo_chunk_bytes(uint32_t capacity, const aimo_basis *basis)
{
    const size_t positions = sizeof(chunk) + position_bytes(capacity);
    const size_t copy = capacity == CHUNK_ROWS ? sizeof(_Atomic(device_copy *)) : 0;
    if (basis == NULL)
        return positions + copy;
    return round_to_line(positions) +
           capacity * (head_bytes(basis) + sizeof(uint16_t) + sizeof(aimo_tail)) + copy;
}

chunk *aimo_chunk_init(void *block, uint32_t capacity, aimo_basis *basis)
{
    chunk *c = block;
    memset(c, 0, sizeof *c);
    c->link.bytes = aimo_chunk_bytes(capacity, basis);
    c->capacity = capacity;
    c->births = (uint64_t *)(c + 1);
    c->deaths = (_Atomic uint64_t *)(c->births + capacity);
    c->slots = (uint32_t *)(c->deaths + capacity);
    if (capacity == CHUNK_ROWS)
        atomic_init(aimo_chunk_copy(c), NULL);
    if (basis != NULL) {
        aimo_basis_hold(basis);
        c->basis = basis;
        c->tails =
            (aimo_tail *)((char *)block + round_to_line(sizeof(chunk) + position_bytes(capacity)));
        c->codes = (uint8_t *)(c->tails + capacity);
        c->rests = (uint16_t *)(c->codes + capacity * head_bytes(basis));
    }
    return c;
}

aimo_basis *aimo_chunk_basis(const aimo_cache *cache, uint32_t capacity)
{
    return capacity >= SMALLEST_CODED ? cache->basis : NULL;
}

/* A position's four bytes within a line of its block. */
static uint8_t *head_part(const chunk *c, size_t position, size_t line)
{
    const size_t block = position / AIMO_HEAD_BLOCK, row = position % AIMO_HEAD_BLOCK;
    const size_t lines = c->basis->head / AIMO_HEAD_LINE;
    return c->codes + ((block * lines + line) * AIMO_HEAD_BLOCK + row) * AIMO_HEAD_GROUP;
}

static void encode_position(const aimo_cache *cache, chunk *c, size_t position, float *widened)
{
    const directory *store = atomic_load_explicit(&cache->store, memory_order_acquire);
    const uint32_t slot = c->slots[position];
    aimo_row_codes codes;
    aimo_cache_widen(cache, aimo_store_row(cache, store, slot), widened);
    aimo_basis_encode(c->basis, cache->kernels, widened, aimo_store_inverse_norm(store, slot),
                      &codes);
    for (size_t l = 0; l < c->basis->head / AIMO_HEAD_LINE; l++) {
        const uint8_t *head = codes.head + l * AIMO_HEAD_LINE;
        uint8_t *part = head_part(c, position, l);
        for (size_t i = 0; i < AIMO_HEAD_GROUP; i++)
            part[i] = (uint8_t)(head[i] | head[i + AIMO_HEAD_GROUP] << 4);
    }
    c->rests[position] = codes.head_rest;
    c->tails[position] = codes.tail;
}

static uint32_t append_position(chunk *c, uint32_t slot, uint64_t birth)
{
    const uint32_t position = atomic_load_explicit(&c->count, memory_order_relaxed);
    c->births[position] = birth;
    atomic_store_explicit(&c->deaths[position], AIMO_ALIVE, memory_order_relaxed);
    c->slots[position] = slot;
    return position;
}

static void publish_position(chunk *c, uint32_t position)
{
    const uint32_t count = position + 1;
    atomic_store_explicit(&c->count, count, memory_order_release);
    if (c->basis != NULL && count % AIMO_HEAD_BLOCK == 0)
        atomic_store_explicit(&c->blocks, count / AIMO_HEAD_BLOCK, memory_order_release);
}

uint32_t aimo_chunk_append(const aimo_cache *cache, chunk *c, uint32_t slot, uint64_t birth,
                           float *widened)
{
    const uint32_t position = append_position(c, slot, birth);
    if (c->basis != NULL)
        encode_position(cache, c, position, widened);
    publish_position(c, position);
    return position;
}

static void copy_codes(const chunk *from, size_t source, chunk *to, size_t target)
{
    for (size_t l = 0; l < to->basis->head / AIMO_HEAD_LINE; l++)
        memcpy(head_part(to, target, l), head_part(from, source, l), AIMO_HEAD_GROUP);
    to->rests[target] = from->rests[source];
    to->tails[target] = from->tails[source];
}

uint32_t aimo_chunk_copy_live(const aimo_cache *cache, const chunk *from, chunk *to, float *widened)
{
    const uint32_t count = atomic_load_explicit(&from->count, memory_order_acquire);
    const bool same_codes = to->basis != NULL && from->basis == to->basis;
    for (uint32_t i = 0; i < count; i++) {
        if (atomic_load_explicit(&from->deaths[i], memory_order_relaxed) != AIMO_ALIVE)
            continue;
        if (!same_codes) {
            aimo_chunk_append(cache, to, from->slots[i], from->births[i], widened);
            continue;
        }
        const uint32_t position = append_position(to, from->slots[i], from->births[i]);
        copy_codes(from, i, to, position);
        publish_position(to, position);
    }
    return count;
}
