/* The screen of the AVX-512 rows, included within their target region. The includer defines
 *
 *   sums_add(sums, codes, query)   sums + the products of 16 rows' four codes with the query's
 *   sums_total(sums)               [16] i32: a row's sum modulo 2^16
 *
 * Blocks are processed in pairs: 32 rows fill one register of 16-bit sums. */
#ifndef AIMO_SIMILARITY_SCREEN_AVX512_H
#define AIMO_SIMILARITY_SCREEN_AVX512_H

#include "similarity/similarity_finish_avx512.h"

/* The prefetch distance in bytes: the processor's own prefetcher does not cross pages, and the
 * memory after the codes, the rests, is read next anyway. */
enum { AHEAD = 4096 };

static inline __m512i query_group(const int8_t *codes, size_t g)
{
    int32_t four;
    memcpy(&four, codes + g * AIMO_HEAD_GROUP, sizeof four);
    return _mm512_set1_epi32(four);
}

/* Screens blocks b and, when `pair` is true, b + 1 for `count` queries. */
static inline __attribute__((always_inline)) void
screen_blocks(const aimo_heads *heads, size_t b, const bool pair, const aimo_head_query *queries,
              int16_t *dots, uint16_t *masks, const size_t count)
{
    const uint8_t *first = heads->codes + b * heads->lines * 64;
    const uint8_t *second = pair ? first + heads->lines * 64 : first;
    __m512i sums[4][2];
    for (size_t j = 0; j < count; j++)
        sums[j][0] = sums[j][1] = _mm512_setzero_si512();
    for (size_t l = 0; l < heads->lines; l++) {
        _mm_prefetch((const char *)first + l * 64 + AHEAD, _MM_HINT_T0);
        _mm_prefetch((const char *)second + l * 64 + AHEAD, _MM_HINT_T0);
        const __m512i line0 = _mm512_loadu_si512(first + l * 64);
        const __m512i line1 = _mm512_loadu_si512(second + l * 64);
        const __m512i low0 = low_codes(line0), low1 = low_codes(line1);
        const __m512i high0 = high_codes(line0), high1 = high_codes(line1);
        for (size_t j = 0; j < count; j++) {
            const __m512i q0 = query_group(queries[j].codes, 2 * l);
            const __m512i q1 = query_group(queries[j].codes, 2 * l + 1);
            sums[j][0] = sums_add(sums_add(sums[j][0], low0, q0), high0, q1);
            sums[j][1] = sums_add(sums_add(sums[j][1], low1, q0), high1, q1);
        }
    }
    const uint16_t *rests = heads->rests + b * AIMO_HEAD_BLOCK;
    const __m512i both = pair ? _mm512_loadu_si512(rests)
                              : _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)rests));
    for (size_t j = 0; j < count; j++) {
        const size_t block = j * heads->blocks + b;
        const __m256i low = _mm512_cvtepi32_epi16(sums_total(sums[j][0]));
        const __m256i high = _mm512_cvtepi32_epi16(sums_total(sums[j][1]));
        __m512i dot = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
        const uint32_t mask = finish_rows(&dot, both, &queries[j]);
        if (pair)
            _mm512_storeu_si512(dots + block * AIMO_HEAD_BLOCK, dot);
        else
            _mm256_storeu_si256((__m256i *)(dots + block * AIMO_HEAD_BLOCK),
                                _mm512_castsi512_si256(dot));
        memcpy(masks + block, &mask, pair ? 4 : 2);
    }
}

/* `count` queries (1 or 4) at once: each load of a line serves them all. */
static inline __attribute__((always_inline)) void screen_some(const aimo_heads *heads,
                                                              const aimo_head_query *queries,
                                                              int16_t *dots, uint16_t *masks,
                                                              const size_t count)
{
    size_t b = 0;
    for (; b + 2 <= heads->blocks; b += 2)
        screen_blocks(heads, b, true, queries, dots, masks, count);
    if (b < heads->blocks)
        screen_blocks(heads, b, false, queries, dots, masks, count);
}

static inline void screen_all(const aimo_heads *heads, const aimo_head_query *queries,
                              size_t query_count, int16_t *dots, uint16_t *masks)
{
    size_t j = 0;
    for (; j + 4 <= query_count; j += 4)
        screen_some(heads, queries + j, dots + j * heads->blocks * AIMO_HEAD_BLOCK,
                    masks + j * heads->blocks, 4);
    for (; j < query_count; j++)
        screen_some(heads, queries + j, dots + j * heads->blocks * AIMO_HEAD_BLOCK,
                    masks + j * heads->blocks, 1);
}

#endif
