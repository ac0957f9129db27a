/* Similarity in plain C: the reference for every other row. */
#include "similarity/similarity_kernels.h"

#include "half/half_scalar.h"

float aimo_dot_f16_scalar(const float *q, const uint16_t *x, size_t n)
{
    float sum = 0.0f;
    for (size_t i = 0; i < n; i++)
        sum += q[i] * aimo_f16_to_f32_one(x[i]);
    return sum;
}

float aimo_dot_i8_scalar(const float *q, const int8_t *x, size_t n)
{
    float sum = 0.0f;
    for (size_t i = 0; i < n; i++)
        sum += q[i] * (float)x[i];
    return sum;
}

double aimo_dot_f16_f64_scalar(const float *q, const uint16_t *x, size_t n)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++)
        sum += (double)q[i] * (double)aimo_f16_to_f32_one(x[i]);
    return sum;
}

double aimo_dot_i8_f64_scalar(const float *q, const int8_t *x, size_t n)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++)
        sum += (double)q[i] * (double)x[i];
    return sum;
}

void aimo_project_scalar(const float *p, size_t k, const float *x, size_t n, float *out)
{
    for (size_t j = 0; j < k; j++) {
        float sum = 0.0f;
        for (size_t i = 0; i < n; i++)
            sum += p[j * n + i] * x[i];
        out[j] = sum;
    }
}

static int head_dot(const aimo_heads *heads, const int8_t *query, size_t block, size_t row)
{
    const uint8_t *codes =
        heads->codes + (block * heads->lines * AIMO_HEAD_BLOCK + row) * AIMO_HEAD_GROUP;
    int sum = 0;
    for (size_t l = 0; l < heads->lines; l++, query += AIMO_HEAD_LINE)
        for (size_t i = 0; i < AIMO_HEAD_GROUP; i++) {
            const uint8_t pair = codes[l * AIMO_HEAD_BLOCK * AIMO_HEAD_GROUP + i];
            sum += (pair & 15) * query[i] + (pair >> 4) * query[i + AIMO_HEAD_GROUP];
        }
    return sum;
}

void aimo_screen_scalar(const aimo_heads *heads, const aimo_head_query *queries, size_t query_count,
                        int16_t *dots, uint16_t *masks)
{
    for (size_t j = 0; j < query_count; j++) {
        const aimo_head_query *query = &queries[j];
        for (size_t b = 0; b < heads->blocks; b++) {
            unsigned mask = 0;
            for (size_t r = 0; r < AIMO_HEAD_BLOCK; r++) {
                const uint32_t rest = heads->rests[b * AIMO_HEAD_BLOCK + r];
                const int16_t dot = (int16_t)(head_dot(heads, query->codes, b, r) + query->bias);
                const int bound = dot + (int)((rest >> 8) * query->rest_scale >> 8) +
                                  (int)((rest & 255) * query->error_scale >> 8);
                *dots++ = dot;
                mask |= (unsigned)((bound < 32767 ? bound : 32767) >= query->bar) << r;
            }
            *masks++ = (uint16_t)mask;
        }
    }
}

size_t aimo_refine_scalar(const aimo_tail *tails, const int16_t *dots, const aimo_tail_query *query,
                          uint16_t *candidates, size_t count)
{
    size_t kept = 0;
    for (size_t c = 0; c < count; c++) {
        const size_t row = candidates[c];
        const aimo_tail *tail = &tails[row];
        int32_t dot = 0;
        for (size_t i = 0; i < AIMO_TAIL_CODES; i++)
            dot += tail->codes[i] * query->codes[i];
        const float bound = (float)dots[row] * query->head_scale + (float)dot * query->tail_scale +
                            (float)tail->rest * query->rest_scale +
                            (float)tail->error * query->error_scale;
        candidates[kept] = (uint16_t)row;
        kept += bound >= query->bar;
    }
    return kept;
}
