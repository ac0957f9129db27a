/* Bounds on cosines; cache_bound.h has the proof and the names. */
#include "cache/cache_bound.h"

#include <assert.h>
#include <math.h>
#include <string.h>

static const double SLACK = 1e-9;
/* Rests and errors as bytes: their largest values, 1 and 1.055, fit. */
static const double BYTE_STEPS = 240.0;
static const double REST_STEPS = 32768.0; /* of a tail */
/* Codes 0 to 15 stand for values from -7.5 to 7.5. */
static const double HEAD_RANGE = 7.5;
/* The largest scale of a query's head. Its codes are at most twice what they round, so rest and
 * error come to at most |u| + 1.0625 * 2 |g|, below 2.4 in cosines and 2^15 in units. */
static const double MAX_QUERY_SCALE = 13000.0;
/* The largest sum of a query's codes: times HEAD_RANGE, that is below 2^15. */
static const double MAX_QUERY_SUM = 4300.0;
/* Rounding errors of aimo_tail_query's f32 arithmetic: eight operations on numbers below 4. */
static const double TAIL_ROUNDING = 6e-6;

double aimo_dot_noise(size_t n) { return (double)(n + 8) * 0x1p-24 * 1.01; }

static double dot_f64(const float *a, const float *b, size_t n)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

void aimo_basis_measure(aimo_basis *basis)
{
    const size_t n = basis->head + basis->tail, dim = basis->dim;
    double square = 0.0;
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j <= i; j++) {
            const double g = dot_f64(basis->directions + i * dim, basis->directions + j * dim, dim);
            square += i == j ? (g - 1.0) * (g - 1.0) : 2.0 * g * g;
        }
    }
    basis->skew = sqrt(square) + SLACK;
    basis->noise = (aimo_dot_noise(dim) + 0x1p-23) * sqrt((double)n * (1.0 + basis->skew));
}

bool aimo_basis_is_usable(const aimo_basis *basis)
{
    double squares = (double)basis->tail * basis->tail_step * basis->tail_step;
    for (size_t i = 0; i < basis->head; i++)
        squares += basis->steps[i] * basis->steps[i];
    return basis->skew <= AIMO_MAX_SKEW && squares <= AIMO_MAX_STEPS;
}

/* (2): a bound on the norm of a unit vector's rest. */
static double rest_of(const aimo_basis *basis, const aimo_code_sums *s)
{
    const double sure = fmax(sqrt(s->exact) - basis->noise, 0.0);
    return sqrt(fmax(1.0 - (1.0 - basis->skew) * sure * sure, 0.0)) + SLACK;
}

static void add_code(aimo_code_sums *s, double exact, double code)
{
    s->exact += exact * exact;
    s->code += code * code;
    s->difference += (exact - code) * (exact - code);
}

static double error_of(const aimo_basis *basis, const aimo_code_sums *s)
{
    return sqrt(s->difference) + basis->noise + SLACK;
}

static double cut(double value, double limit)
{
    return value < -limit ? -limit : value > limit ? limit : value;
}

/* Rounds values within 2^51. Adding 1.5 * 2^52 leaves no bits for a fraction; nearbyint would be a
 * function call, a hundred of them for each query. */
static double nearest(double value) { return value + 0x1.8p52 - 0x1.8p52; }

unsigned aimo_head_code(double coordinate, double step)
{
    return (unsigned)(nearest(cut(coordinate / step, HEAD_RANGE) - 0.5) + 8.0);
}

double aimo_head_value(unsigned code) { return (double)code - HEAD_RANGE; }

static uint8_t byte_of(double norm)
{
    const double steps = ceil(norm * BYTE_STEPS);
    assert(steps <= 255.0);
    return (uint8_t)steps;
}

static void encode_tail(const aimo_basis *basis, const double *exact, aimo_code_sums *s,
                        aimo_tail *tail)
{
    memset(tail, 0, sizeof *tail);
    for (size_t i = 0; i < basis->tail; i++) {
        const double code = nearest(cut(exact[i] / basis->tail_step, 127.0));
        tail->codes[i] = (int8_t)code;
        add_code(s, exact[i], code * basis->tail_step);
    }
    tail->error = byte_of(error_of(basis, s));
    tail->rest = (uint16_t)ceil(rest_of(basis, s) * REST_STEPS);
}

void aimo_basis_encode(const aimo_basis *basis, const aimo_similarity_kernels *kernels,
                       const float *x, double inverse_norm, aimo_row_codes *codes)
{
    float projection[AIMO_MAX_DIRECTIONS];
    double exact[AIMO_MAX_DIRECTIONS];
    const size_t n = basis->head + basis->tail;
    kernels->project(basis->directions, n, x, basis->dim, projection);
    for (size_t i = 0; i < n; i++)
        exact[i] = (double)projection[i] * inverse_norm;
    aimo_code_sums s = {0};
    for (size_t i = 0; i < basis->head; i++) {
        const unsigned code = aimo_head_code(exact[i], basis->steps[i]);
        codes->head[i] = (uint8_t)code;
        add_code(&s, exact[i], aimo_head_value(code) * basis->steps[i]);
    }
    codes->head_rest = (uint16_t)(byte_of(rest_of(basis, &s)) << 8 | byte_of(error_of(basis, &s)));
    encode_tail(basis, exact + basis->head, &s, &codes->tail);
}

double aimo_squared_norm(const float *x, size_t n)
{
    /* Eight sums, so that an addition need not wait for the one before it. */
    double sums[8] = {0};
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t j = 0; j < 8; j++)
            sums[j] += (double)x[i + j] * (double)x[i + j];
    for (; i < n; i++)
        sums[0] += (double)x[i] * (double)x[i];
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) +
           ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

double aimo_largest(const float *x, size_t n)
{
    float max = 0.0f;
    for (size_t i = 0; i < n; i++) /* no fmax: gcc 12 for aarch64 breaks on that reduction */
        max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
    return (double)max;
}

/* The terms of (1) and (3) that are the same for every row. */
static double margin_of(const aimo_basis *basis, const aimo_code_sums *s)
{
    const double square = 1.0 + basis->skew;
    return error_of(basis, s) * sqrt(square) + basis->skew * square + SLACK;
}

/* Code units per cosine and step: the largest scale that the limits allow. */
static double choose_scale(const double *weighted, size_t n)
{
    double largest = SLACK, sum = SLACK;
    for (size_t i = 0; i < n; i++) {
        largest = fmax(largest, fabs(weighted[i]));
        sum += fabs(weighted[i]);
    }
    const double most =
        fmin((double)AIMO_QUERY_LIMIT / largest, (MAX_QUERY_SUM - 0.5 * (double)n) / sum);
    return fmin(MAX_QUERY_SCALE, most);
}

/* The scale of rest or error bytes for a query part of this `norm`: how many units of the head's
 * dot, times 2^8, one step is worth. */
static uint16_t byte_scale(double norm, double scale)
{
    return (uint16_t)ceil(norm * scale * 256.0 / BYTE_STEPS);
}

static void prepare_head(const aimo_basis *basis, const float *g, aimo_code_sums *s,
                         aimo_query_codes *codes)
{
    double weighted[AIMO_MAX_HEAD];
    for (size_t i = 0; i < basis->head; i++)
        weighted[i] = (double)g[i] * basis->steps[i];
    const double scale = choose_scale(weighted, basis->head);
    int sum = 0;
    for (size_t i = 0; i < basis->head; i++) {
        const double code = nearest(weighted[i] * scale);
        codes->head_codes[i] = (int8_t)code;
        sum += (int)code;
        add_code(s, (double)g[i], code / (scale * basis->steps[i]));
    }
    codes->head_scale = 1.0 / scale;
    codes->head_margin = margin_of(basis, s);
    codes->head.codes = codes->head_codes;
    codes->head.bias = (int16_t)ceil(-HEAD_RANGE * (double)sum);
    codes->head.rest_scale = byte_scale(rest_of(basis, s), scale);
    codes->head.error_scale = byte_scale(sqrt(s->code) + SLACK, scale);
}

static void prepare_tail(const aimo_basis *basis, const float *g, aimo_code_sums *s,
                         aimo_query_codes *codes)
{
    const double max = aimo_largest(g, basis->tail);
    const double scale = max > 0.0 ? 32767.0 / max : 1.0;
    memset(codes->tail.codes, 0, sizeof codes->tail.codes);
    for (size_t i = 0; i < basis->tail; i++) {
        const double code = nearest(cut((double)g[i] * scale, 32767.0));
        codes->tail.codes[i] = (int16_t)code;
        add_code(s, (double)g[i], code / scale);
    }
    codes->margin = margin_of(basis, s);
    codes->tail.head_scale = (float)codes->head_scale;
    codes->tail.tail_scale = (float)(basis->tail_step / scale);
    codes->tail.rest_scale = (float)(rest_of(basis, s) / REST_STEPS);
    codes->tail.error_scale = (float)((sqrt(s->code) + SLACK) / BYTE_STEPS);
}

void aimo_query_prepare(const aimo_basis *basis, const aimo_similarity_kernels *kernels,
                        const float *unit, aimo_query_codes *codes)
{
    float g[AIMO_MAX_HEAD];
    kernels->project(basis->directions, basis->head, unit, basis->dim, g);
    codes->sums = (aimo_code_sums){0};
    codes->has_tail = false;
    prepare_head(basis, g, &codes->sums, codes);
}

void aimo_query_prepare_tail(const aimo_basis *basis, const aimo_similarity_kernels *kernels,
                             const float *unit, aimo_query_codes *codes)
{
    if (codes->has_tail)
        return;
    float g[AIMO_TAIL_CODES];
    kernels->project(basis->directions + basis->head * basis->dim, basis->tail, unit, basis->dim,
                     g);
    prepare_tail(basis, g, &codes->sums, codes);
    codes->has_tail = true;
}

/* A row's rest and error are rounded down separately: together they lose less than two units. */
void aimo_query_set_head_bar(aimo_query_codes *codes, double bar)
{
    const double units = floor((bar - codes->head_margin) / codes->head_scale) - 1.0;
    codes->head.bar = (int16_t)fmax(-32768.0, fmin(32767.0, units));
}

void aimo_query_set_tail_bar(aimo_query_codes *codes, double bar)
{
    codes->tail.bar = (float)(bar - codes->margin - TAIL_ROUNDING);
}
