/* The last step of a screen, for 32 rows at once; included within a target region. */
#ifndef AIMO_SIMILARITY_FINISH_AVX512_H
#define AIMO_SIMILARITY_FINISH_AVX512_H

/* The mask of 32 rows from their sums of products, *dots, and their rests; adds the bias to
 * *dots. */
static inline uint32_t finish_rows(__m512i *dots, __m512i rests, const aimo_head_query *query)
{
    *dots = _mm512_add_epi16(*dots, _mm512_set1_epi16(query->bias));
    const __m512i rest =
        _mm512_mulhi_epu16(_mm512_and_si512(rests, _mm512_set1_epi16((int16_t)0xff00)),
                           _mm512_set1_epi16((int16_t)query->rest_scale));
    const __m512i error = _mm512_mulhi_epu16(_mm512_slli_epi16(rests, 8),
                                             _mm512_set1_epi16((int16_t)query->error_scale));
    const __m512i bound = _mm512_adds_epi16(*dots, _mm512_add_epi16(rest, error));
    return _mm512_cmple_epi16_mask(_mm512_set1_epi16(query->bar), bound);
}

/* The codes of a line's first four directions, and of its last four. */
static inline __m512i low_codes(__m512i line)
{
    return _mm512_and_si512(line, _mm512_set1_epi8(15));
}

static inline __m512i high_codes(__m512i line) { return low_codes(_mm512_srli_epi16(line, 4)); }

#endif
