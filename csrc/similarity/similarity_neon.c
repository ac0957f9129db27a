/* Similarity on every aarch64. Nothing saturates: bytes multiply into 16 bits, whose sums may wrap
 * as in similarity_avx2.c. */
#include "similarity/similarity_kernels.h"

#include "half/half_scalar.h"
#include "simd/intrinsics.h"

#if AIMO_AARCH64
static inline float32x4_t load_f16(const uint16_t *x)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x)));
}

/* Eight codes as two vectors of floats. */
static inline void load_i8(const int8_t *x, float32x4_t out[2])
{
    const int16x8_t wide = vmovl_s8(vld1_s8(x));
    out[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
    out[1] = vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide)));
}

float aimo_dot_f16_neon(const float *q, const uint16_t *x, size_t n)
{
    float32x4_t sum[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (size_t j = 0; j < 4; j++)
            sum[j] = vfmaq_f32(sum[j], vld1q_f32(q + i + 4 * j), load_f16(x + i + 4 * j));
    float total = vaddvq_f32(vaddq_f32(vaddq_f32(sum[0], sum[1]), vaddq_f32(sum[2], sum[3])));
    for (; i < n; i++)
        total += q[i] * aimo_f16_to_f32_one(x[i]);
    return total;
}

float aimo_dot_i8_neon(const float *q, const int8_t *x, size_t n)
{
    float32x4_t sum[2] = {vdupq_n_f32(0), vdupq_n_f32(0)}, wide[2];
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        load_i8(x + i, wide);
        sum[0] = vfmaq_f32(sum[0], vld1q_f32(q + i), wide[0]);
        sum[1] = vfmaq_f32(sum[1], vld1q_f32(q + i + 4), wide[1]);
    }
    float total = vaddvq_f32(vaddq_f32(sum[0], sum[1]));
    for (; i < n; i++)
        total += q[i] * (float)x[i];
    return total;
}

/* sums += the four products of q and x, each exact in f64. */
static inline void add_products_f64(float64x2_t sums[2], const float *q, float32x4_t x)
{
    const float32x4_t v = vld1q_f32(q);
    sums[0] = vfmaq_f64(sums[0], vcvt_f64_f32(vget_low_f32(v)), vcvt_f64_f32(vget_low_f32(x)));
    sums[1] = vfmaq_f64(sums[1], vcvt_high_f64_f32(v), vcvt_high_f64_f32(x));
}

double aimo_dot_f16_f64_neon(const float *q, const uint16_t *x, size_t n)
{
    float64x2_t sums[2] = {vdupq_n_f64(0), vdupq_n_f64(0)};
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        add_products_f64(sums, q + i, load_f16(x + i));
    double total = vaddvq_f64(vaddq_f64(sums[0], sums[1]));
    for (; i < n; i++)
        total += (double)q[i] * (double)aimo_f16_to_f32_one(x[i]);
    return total;
}

double aimo_dot_i8_f64_neon(const float *q, const int8_t *x, size_t n)
{
    float64x2_t sums[2] = {vdupq_n_f64(0), vdupq_n_f64(0)};
    float32x4_t wide[2];
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        load_i8(x + i, wide);
        add_products_f64(sums, q + i, wide[0]);
        add_products_f64(sums, q + i + 4, wide[1]);
    }
    double total = vaddvq_f64(vaddq_f64(sums[0], sums[1]));
    for (; i < n; i++)
        total += (double)q[i] * (double)x[i];
    return total;
}

static inline __attribute__((always_inline)) void project_some(const float *p, const float *x,
                                                               size_t n, float *out, size_t count)
{
    float32x4_t sum[4];
    for (size_t j = 0; j < count; j++)
        sum[j] = vdupq_n_f32(0);
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        const float32x4_t v = vld1q_f32(x + i);
        for (size_t j = 0; j < count; j++)
            sum[j] = vfmaq_f32(sum[j], vld1q_f32(p + j * n + i), v);
    }
    for (size_t j = 0; j < count; j++) {
        out[j] = vaddvq_f32(sum[j]);
        for (size_t r = i; r < n; r++)
            out[j] += p[j * n + r] * x[r];
    }
}

void aimo_project_neon(const float *p, size_t k, const float *x, size_t n, float *out)
{
    size_t j = 0;
    for (; j + 4 <= k; j += 4)
        project_some(p + j * n, x, n, out + j, 4);
    for (; j < k; j++)
        project_some(p + j * n, x, n, out + j, 1);
}

/* Two partial sums for each of four rows, from a line's low or high codes. */
static inline int16x8_t four_rows(uint8x16_t codes, int8x16_t query)
{
    const int8x16_t x = vreinterpretq_s8_u8(codes);
    return vpaddq_s16(vmull_s8(vget_low_s8(x), vget_low_s8(query)), vmull_high_s8(x, query));
}

static inline int8x16_t query_group(const int8_t *codes)
{
    int32_t four;
    memcpy(&four, codes, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

/* `bytes` in the high halves, times scale, divided by 2^16. */
static inline uint16x8_t scaled(uint16x8_t bytes, uint16x8_t scale)
{
    const uint16x4_t low = vshrn_n_u32(vmull_u16(vget_low_u16(bytes), vget_low_u16(scale)), 16);
    return vcombine_u16(low, vshrn_n_u32(vmull_high_u16(bytes, scale), 16));
}

/* Bound of eight rows against the bar; stores their dots. */
static inline unsigned finish_rows(int16x8_t sums, const uint16_t *rests,
                                   const aimo_head_query *query, int16_t *dots)
{
    static const uint16_t bits[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    const int16x8_t dot = vaddq_s16(sums, vdupq_n_s16(query->bias));
    const uint16x8_t both = vld1q_u16(rests);
    const uint16x8_t rest =
        scaled(vandq_u16(both, vdupq_n_u16(0xff00)), vdupq_n_u16(query->rest_scale));
    const uint16x8_t error = scaled(vshlq_n_u16(both, 8), vdupq_n_u16(query->error_scale));
    const int16x8_t above = vreinterpretq_s16_u16(vaddq_u16(rest, error));
    const uint16x8_t reaches = vcgeq_s16(vqaddq_s16(dot, above), vdupq_n_s16(query->bar));
    vst1q_s16(dots, dot);
    return vaddvq_u16(vandq_u16(reaches, vld1q_u16(bits)));
}

static void screen_one(const aimo_heads *heads, const aimo_head_query *query, int16_t *dots,
                       uint16_t *masks)
{
    const uint8_t *codes = heads->codes;
    for (size_t b = 0; b < heads->blocks; b++, dots += AIMO_HEAD_BLOCK) {
        int16x8_t sums[4] = {vdupq_n_s16(0), vdupq_n_s16(0), vdupq_n_s16(0), vdupq_n_s16(0)};
        for (size_t l = 0; l < heads->lines; l++, codes += 64) {
            const int8x16_t low = query_group(query->codes + l * AIMO_HEAD_LINE);
            const int8x16_t high = query_group(query->codes + l * AIMO_HEAD_LINE + AIMO_HEAD_GROUP);
            for (size_t r = 0; r < 4; r++) {
                const uint8x16_t both = vld1q_u8(codes + 16 * r);
                sums[r] = vaddq_s16(sums[r], four_rows(vandq_u8(both, vdupq_n_u8(15)), low));
                sums[r] = vaddq_s16(sums[r], four_rows(vshrq_n_u8(both, 4), high));
            }
        }
        const uint16_t *rests = heads->rests + b * AIMO_HEAD_BLOCK;
        const unsigned low = finish_rows(vpaddq_s16(sums[0], sums[1]), rests, query, dots);
        const unsigned high = finish_rows(vpaddq_s16(sums[2], sums[3]), rests + 8, query, dots + 8);
        masks[b] = (uint16_t)(low | high << 8);
    }
}

void aimo_screen_neon(const aimo_heads *heads, const aimo_head_query *queries, size_t query_count,
                      int16_t *dots, uint16_t *masks)
{
    for (size_t j = 0; j < query_count; j++)
        screen_one(heads, &queries[j], dots + j * heads->blocks * AIMO_HEAD_BLOCK,
                   masks + j * heads->blocks);
}

/* The query's last three codes are 0, so the error and rest bytes at the end of the line may be
 * multiplied too. */
static inline int32_t tail_dot(const aimo_tail *tail, const int16_t *query)
{
    const int8_t *codes = (const int8_t *)tail;
    int32x4_t sum = vdupq_n_s32(0);
    for (size_t i = 0; i < 64; i += 8) {
        const int16x8_t wide = vmovl_s8(vld1_s8(codes + i)), q = vld1q_s16(query + i);
        sum = vmlal_s16(sum, vget_low_s16(wide), vget_low_s16(q));
        sum = vmlal_high_s16(sum, wide, q);
    }
    return vaddvq_s32(sum);
}

size_t aimo_refine_neon(const aimo_tail *tails, const int16_t *dots, const aimo_tail_query *query,
                        uint16_t *candidates, size_t count)
{
    size_t kept = 0;
    for (size_t c = 0; c < count; c++) {
        const size_t row = candidates[c];
        const aimo_tail *tail = &tails[row];
        const float bound = (float)dots[row] * query->head_scale +
                            (float)tail_dot(tail, query->codes) * query->tail_scale +
                            (float)tail->rest * query->rest_scale +
                            (float)tail->error * query->error_scale;
        candidates[kept] = (uint16_t)row;
        kept += bound >= query->bar;
    }
    return kept;
}
#endif
