/* Bounds on cosines; cache_bound.h has the proof and the names. */
#include "cache/cache_bound.h"

#include <math.h>
#include <string.h>

static const double SLACK = 1e-9;
static const double HEAD_STEPS = 127.0;
static const double REST_STEPS = 32768.0;
/* A tail whose codes are so wrong (a coordinate out of range) would spoil its chunk's bound. */
static const double WORST_TAIL_ERROR = 0.05;
/* The most that a query's head may be scaled: cosines and rests up to 1.05 fit 16 bits. */
static const double MAX_QUERY_SCALE = 240.0;
/* |query codes| |row codes| < 2^15, the latter at most 127 (sqrt(1 + d) + error) < 132.3: a
 * head code is off by half a step, and more only by the 0.0005 that h may exceed 1. */
static const double MAX_QUERY_NORM = 247.0;
/* Roundings of aimo_tail_query's f32 arithmetic: six operations on numbers below 4. */
static const double TAIL_ROUNDING = 4e-6;

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

/* (2): the norm of what the coded directions leave of a vector of norm 1. */
static double rest_norm(const aimo_basis *basis, double exact_norm, double code_norm, double error)
{
    const double sure = fmax(exact_norm - basis->noise, 0.0);
    const double square = 1.0 + error * error - sure * sure + basis->skew * code_norm * code_norm;
    return sqrt(fmax(square, 0.0)) + SLACK;
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

static double rest_of(const aimo_basis *basis, const aimo_code_sums *s)
{
    return rest_norm(basis, sqrt(s->exact), sqrt(s->code), error_of(basis, s));
}

/* Rounded and cut to [-limit, limit], limit < 2^51. Adding 1.5 * 2^52 leaves no bits for a
 * fraction; nearbyint, fmin and fmax would be calls, a hundred for each query. */
static double code_of(double value, double limit)
{
    const double cut = value < -limit ? -limit : value > limit ? limit : value;
    return cut + 0x1.8p52 - 0x1.8p52;
}

/* The next f32 that is not below x. */
static float round_up(double x) { return nextafterf((float)x, INFINITY); }

static void encode_tail(const aimo_basis *basis, const double *exact, aimo_code_sums *s,
                        aimo_tail *tail, float *error)
{
    memset(tail, 0, sizeof *tail);
    for (size_t i = 0; i < basis->tail; i++) {
        const double code = code_of(exact[i] / basis->tail_step, 127.0);
        tail->codes[i] = (int8_t)code;
        add_code(s, exact[i], code * basis->tail_step);
    }
    const bool wrong = error_of(basis, s) > WORST_TAIL_ERROR;
    tail->rest = wrong ? AIMO_REST_ALWAYS : (uint16_t)ceil(rest_of(basis, s) * REST_STEPS);
    *error = wrong ? 0.0f : round_up(error_of(basis, s));
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
        const double code = code_of(exact[i] * HEAD_STEPS, HEAD_STEPS);
        codes->head[i] = (int8_t)code;
        add_code(&s, exact[i], code / HEAD_STEPS);
    }
    codes->head_error = round_up(error_of(basis, &s));
    codes->head_rest = (uint16_t)ceil(rest_of(basis, &s) * REST_STEPS);
    encode_tail(basis, exact + basis->head, &s, &codes->tail, &codes->tail_error);
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

static void prepare_head(const aimo_basis *basis, const float *g, aimo_code_sums *s,
                         aimo_query_codes *codes)
{
    const double norm = sqrt(dot_f64(g, g, basis->head));
    const double half_step = 0.5 * sqrt((double)basis->head);
    const double scale =
        fmin(MAX_QUERY_SCALE, fmin(AIMO_HEAD_LIMIT / (aimo_largest(g, basis->head) + SLACK),
                                   (MAX_QUERY_NORM - half_step) / (norm + SLACK)));
    int sum = 0;
    for (size_t i = 0; i < basis->head; i++) {
        const double code = code_of((double)g[i] * scale, AIMO_HEAD_LIMIT);
        codes->head_codes[i] = (int8_t)code;
        sum += (int)code;
        add_code(s, (double)g[i], code / scale);
    }
    codes->head_scale = 1.0 / (scale * HEAD_STEPS);
    codes->head_norm = sqrt(s->code) + SLACK;
    codes->head_error = error_of(basis, s);
    codes->head_rest = rest_of(basis, s);
    codes->head.codes = codes->head_codes;
    codes->head.bias = (int16_t)(uint16_t)(-128 * sum);
    /* Rests come in 2^-15; the screen divides by 2^16. */
    codes->head.rest_scale = (uint16_t)ceil(codes->head_rest * 2.0 / codes->head_scale);
}

static void prepare_tail(const aimo_basis *basis, const float *g, aimo_code_sums *s,
                         aimo_query_codes *codes)
{
    const double max = aimo_largest(g, basis->tail);
    const double scale = max > 0.0 ? 32767.0 / max : 1.0;
    memset(codes->tail.codes, 0, sizeof codes->tail.codes);
    for (size_t i = 0; i < basis->tail; i++) {
        const double code = code_of((double)g[i] * scale, 32767.0);
        codes->tail.codes[i] = (int16_t)code;
        add_code(s, (double)g[i], code / scale);
    }
    codes->norm = sqrt(s->code) + SLACK;
    codes->error = error_of(basis, s);
    codes->rest = rest_of(basis, s);
    codes->tail.head_scale = (float)codes->head_scale;
    codes->tail.tail_scale = (float)(basis->tail_step / scale);
    codes->tail.rest_scale = (float)(codes->rest / REST_STEPS);
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

/* The terms of (1) after |u||v|. */
static double margin(const aimo_basis *basis, double query_norm, double query_error,
                     double row_error)
{
    const double row_norm = sqrt(1.0 + basis->skew) + row_error;
    return query_norm * row_error + row_norm * query_error +
           3.0 * basis->skew * query_norm * row_norm;
}

void aimo_query_set_head_bar(const aimo_basis *basis, aimo_query_codes *codes, double bar,
                             double head_error)
{
    const double head_bar =
        bar - margin(basis, codes->head_norm, codes->head_error, head_error) - SLACK;
    codes->head.bar = (int16_t)fmax(-32768.0, fmin(32767.0, floor(head_bar / codes->head_scale)));
}

void aimo_query_set_tail_bar(const aimo_basis *basis, aimo_query_codes *codes, double bar,
                             double tail_error)
{
    const double tail_bar = bar - margin(basis, codes->norm, codes->error, tail_error);
    codes->tail.bar = (float)(tail_bar - TAIL_ROUNDING);
}
