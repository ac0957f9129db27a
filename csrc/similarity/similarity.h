/* The arithmetic of similarity search: inner products, projection, and two screens that bound many
 * inner products from above at once. What the bounds mean is up to the caller
 * (cache/cache_bound.h). */
#ifndef AIMO_SIMILARITY_SIMILARITY_H
#define AIMO_SIMILARITY_SIMILARITY_H

#include <stddef.h>
#include <stdint.h>

enum {
    AIMO_HEAD_BLOCK = 16,   /* rows of a block of heads */
    AIMO_HEAD_GROUP = 4,    /* directions that are stored side by side */
    AIMO_HEAD_LINE = 8,     /* directions per cache line: two groups */
    AIMO_HEAD_CODES = 16,   /* a row's head codes are 0 to 15 */
    AIMO_QUERY_LIMIT = 127, /* a query's head codes lie in [-127, 127] */
    AIMO_TAIL_CODES = 61,   /* directions of a tail */
    AIMO_TAIL_QUERY = 64,   /* codes of a query's tail, padded with zeros */
};

/* Heads of rows, in blocks of 16 rows, so that a cache line holds the same eight directions of 16
 * rows:
 *
 *   codes [blocks, lines, 16 rows, 4] u8: the code of direction i in the low four bits, that of
 *         direction i + 4 in the high ones
 *   rests [blocks, 16] u16: a row's rest * 256 + its error, each a byte
 *
 * Both arrays are aligned to 32 bytes, the codes to a cache line. */
typedef struct {
    const uint8_t *codes;
    const uint16_t *rests;
    size_t blocks;
    size_t lines;
} aimo_heads;

/* For every row, |sum code * query code + bias| < 2^15 and
 * (rest * rest_scale + error * error_scale) / 2^8 < 2^15 must hold. */
typedef struct {
    const int8_t *codes; /* [lines, 8] in [-AIMO_QUERY_LIMIT, AIMO_QUERY_LIMIT] */
    int16_t bias;        /* modulo 2^16 */
    uint16_t rest_scale, error_scale;
    int16_t bar;
} aimo_head_query;

/* One cache line per row: the codes of the directions that follow the head's. */
typedef struct {
    int8_t codes[AIMO_TAIL_CODES];
    uint8_t error;
    uint16_t rest;
} aimo_tail;

typedef struct {
    int16_t codes[AIMO_TAIL_QUERY]; /* 0 from AIMO_TAIL_CODES on */
    float head_scale, tail_scale, rest_scale, error_scale;
    float bar;
} aimo_tail_query;

typedef struct {
    const char *isa;
    unsigned required;

    /* sum q[i] * x[i], every product and sum in f32 (or fused), in an order fixed for the row. */
    float (*dot_f16)(const float *q, const uint16_t *x, size_t n);
    float (*dot_i8)(const float *q, const int8_t *x, size_t n);
    /* The same in f64, where each product is exact. */
    double (*dot_f16_f64)(const float *q, const uint16_t *x, size_t n);
    double (*dot_i8_f64)(const float *q, const int8_t *x, size_t n);

    /* out[j] = p[j] . x in f32; p [k, n], x [n], out [k]. */
    void (*project)(const float *p, size_t k, const float *x, size_t n, float *out);

    /* For each query j and row i:
     *   dots[j, i] = sum code * query code + bias
     *   bit i % 16 of masks[j, i / 16] = dots[j, i] + rest * rest_scale / 2^8
     *                                    + error * error_scale / 2^8 >= bar,
     * where each quotient is rounded down and the sum saturates at 2^15 - 1. dots [query_count,
     * blocks * 16], masks [query_count, blocks]. */
    void (*screen)(const aimo_heads *heads, const aimo_head_query *queries, size_t query_count,
                   int16_t *dots, uint16_t *masks);

    /* Keeps the candidates i (row numbers, rising) with
     *   dots[i] * head_scale + (sum code * query code) * tail_scale
     *   + rest * rest_scale + error * error_scale >= bar
     * in place and returns how many are left. Sums are in f32. */
    size_t (*refine)(const aimo_tail *tails, const int16_t *dots, const aimo_tail_query *query,
                     uint16_t *candidates, size_t count);
} aimo_similarity_kernels;

/* Row `index` of the table, NULL after the last. */
const aimo_similarity_kernels *aimo_similarity_row(size_t index);
/* The strongest row whose bits are all in `features`. */
const aimo_similarity_kernels *aimo_similarity_select(unsigned features);

#endif
