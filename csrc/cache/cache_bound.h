/* Upper bounds on cosines from a few bytes per row.
 *
 * Let y be a row and q a query, both of norm 1, and P the basis: n directions, the rows of P, each
 * about orthogonal to the others. Write G = P P^T and d >= |G - I| (`skew`), g = P q, h = P y, and
 * let g', h' be any other vectors of n numbers: here the codes, rounded to few bits, times their
 * step. With the rests u = q - P^T g' and v = y - P^T h',
 *
 *     q.y = g'^T G h' + g'.(P v) + (P u).h' + u.v
 *
 * where G h' = h' + (G - I) h', P v = (h - h') - (G - I) h' and P u = (g - g') - (G - I) g'. So by
 * Cauchy and Schwarz
 *
 *     q.y <= g'.h' + |u||v| + |g'||h - h'| + |h'||g - g'| + 3 d |g'||h'|                    (1)
 *     |v|^2 = 1 - 2 h.h' + h'^T G h' <= 1 + |h - h'|^2 - |h|^2 + d |h'|^2, and so for u     (2)
 *
 * g'.h' is computed from whole numbers, without error. |v| is stored per row, rounded up ("rest"),
 * the largest |h - h'| per chunk of rows ("error"); |h'| <= |h| + |h - h'| <= sqrt(1 + d) + error.
 * h itself is computed in f32: with e = |P y| as computed minus P y, at most aimo_basis.noise,
 * |h| >= |h~| - e and |h - h'| <= |h~ - h'| + e, and so for g. The query is rounded to a unit f32
 * vector first, which moves g by less than 2^-23 sqrt(1 + d). What is left are roundings of f64
 * arithmetic on numbers near 1; SLACK covers them a thousandfold.
 *
 * (1) is used twice: with the first directions alone (the head), and with all of them (head and
 * tail). Whether P fits the data decides how much is passed over, never what is found. */
#ifndef AIMO_CACHE_CACHE_BOUND_H
#define AIMO_CACHE_CACHE_BOUND_H

#include "cache/cache_retired.h"
#include "similarity/similarity.h"

#include <stdbool.h>

enum {
    AIMO_MAX_HEAD = 96,
    AIMO_MAX_DIRECTIONS = AIMO_MAX_HEAD + AIMO_TAIL_CODES,
};

/* The most skew that a basis may have: the limits of the integer arithmetic count on it. */
#define AIMO_MAX_SKEW 1e-3

/* Immutable but for `users`. */
typedef struct {
    retired link;
    size_t dim;
    size_t head;        /* directions of the head, a multiple of AIMO_HEAD_GROUP */
    size_t tail;        /* further directions, at most AIMO_TAIL_CODES */
    double tail_step;   /* a tail code's unit; a head code's is 1 / 127 */
    double skew;        /* d above */
    double noise;       /* e above */
    size_t users;       /* chunks that are coded with it; protected by the cache's lock */
    float directions[]; /* [head + tail, dim] */
} aimo_basis;

/* Sets skew and noise from the directions. */
void aimo_basis_measure(aimo_basis *basis);

typedef struct {
    int8_t head[AIMO_MAX_HEAD];
    uint16_t head_rest;
    float head_error;
    aimo_tail tail;
    float tail_error; /* of head and tail together; 0 when the tail's rest is AIMO_REST_ALWAYS */
} aimo_row_codes;

/* Codes of row x [dim] (as stored, widened) whose norm is 1 / inverse_norm. */
void aimo_basis_encode(const aimo_basis *basis, const aimo_similarity_kernels *kernels,
                       const float *x, double inverse_norm, aimo_row_codes *codes);

/* Sums of squares over the directions so far: of a vector's coordinates, of its codes, and of what
 * lies between them. */
typedef struct {
    double exact, code, difference;
} aimo_code_sums;

/* A query as one basis sees it. */
typedef struct {
    int8_t head_codes[AIMO_MAX_HEAD];
    double head_scale; /* cosine per unit of the head's dot */
    double head_norm;  /* |g'| of the head alone */
    double head_error; /* |g - g'| */
    double head_rest;  /* |u| */
    aimo_code_sums sums;
    bool has_tail;            /* what follows is set */
    double norm, error, rest; /* of head and tail */
    aimo_head_query head;     /* points to head_codes */
    aimo_tail_query tail;
} aimo_query_codes;

/* unit [dim]: the query, normalised, rounded to f32. Sets what the head needs. */
void aimo_query_prepare(const aimo_basis *basis, const aimo_similarity_kernels *kernels,
                        const float *unit, aimo_query_codes *codes);
/* Sets the rest, when it is not set: many searches end before it is needed. */
void aimo_query_prepare_tail(const aimo_basis *basis, const aimo_similarity_kernels *kernels,
                             const float *unit, aimo_query_codes *codes);

/* Sets the head's, the tail's bar so that no row of a chunk with that error whose cosine is `bar`
 * or more falls. */
void aimo_query_set_head_bar(const aimo_basis *basis, aimo_query_codes *codes, double bar,
                             double head_error);
void aimo_query_set_tail_bar(const aimo_basis *basis, aimo_query_codes *codes, double bar,
                             double tail_error);

/* The error of a dot product of n elements in f32 divided by the norms, whatever the order. */
double aimo_dot_noise(size_t n);

/* x . x in f64, where each square is exact. */
double aimo_squared_norm(const float *x, size_t n);

/* The largest magnitude of x [n], which holds no NaN; 0 when n is 0. */
double aimo_largest(const float *x, size_t n);

#endif
