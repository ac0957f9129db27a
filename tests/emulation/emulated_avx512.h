/* AVX-512 F, BW, DQ, VL, VNNI and BF16 for a machine that has AVX2: the AVX-512 rows run unchanged,
 * only slower, so their tests run everywhere (cmake -DAIMO_EMULATE_ISA=ON).
 *
 * Each emu_mm512_<name> gives the bits of the instruction: two AVX2 halves where AVX2 has the same
 * operation, GCC vectors or one lane at a time elsewhere. emulated_avx512_names.h then gives them
 * the intrinsics' names. What is not here (rcp14, rsqrt14, conflict, ...) does not compile in
 * the emulation build, so nothing runs with other semantics unseen.
 *
 * As on the processor: a masked load or store touches no memory of a lane that is off; an aligned
 * one traps when it is not; min and max give the second operand when one is NaN; fmadd rounds
 * once. */
#ifndef AIMO_EMULATED_AVX512_H
#define AIMO_EMULATED_AVX512_H

#include "base/platform.h"

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

AIMO_TARGET_BEGIN("avx2,fma,f16c")

/* --- Registers as halves and as lanes --------------------------------------------------------- */

/* t is ps, pd or si: the register type of 512 bits, its halves, and both ways between them. */
#define EMU_REGISTER(t, full, half)                                                                \
    typedef full emu_##t;                                                                          \
    typedef half emu_half_##t;                                                                     \
    typedef union {                                                                                \
        full whole;                                                                                \
        half halves[2];                                                                            \
    } emu_split_##t;                                                                               \
    AIMO_INLINE half emu_low_##t(full a) { return ((emu_split_##t){.whole = a}).halves[0]; }       \
    AIMO_INLINE half emu_high_##t(full a) { return ((emu_split_##t){.whole = a}).halves[1]; }      \
    AIMO_INLINE full emu_join_##t(half low, half high)                                             \
    {                                                                                              \
        return ((emu_split_##t){.halves = {low, high}}).whole;                                     \
    }
EMU_REGISTER(ps, __m512, __m256)
EMU_REGISTER(pd, __m512d, __m256d)
EMU_REGISTER(si, __m512i, __m256i)

/* emu_<lane>x<lanes>: a GCC vector, to be cast from and to registers of its size. */
#define EMU_LANES(lane, bits)                                                                      \
    typedef lane##bits##_t emu_##lane##bits##_128 __attribute__((vector_size(16)));                \
    typedef lane##bits##_t emu_##lane##bits##_256 __attribute__((vector_size(32)));                \
    typedef lane##bits##_t emu_##lane##bits##_512 __attribute__((vector_size(64)));
EMU_LANES(int, 8)
EMU_LANES(int, 16)
EMU_LANES(int, 32)
EMU_LANES(int, 64)
EMU_LANES(uint, 8)
EMU_LANES(uint, 16)
EMU_LANES(uint, 32)
EMU_LANES(uint, 64)
typedef float emu_f32_128 __attribute__((vector_size(16)));
typedef float emu_f32_256 __attribute__((vector_size(32)));
typedef float emu_f32_512 __attribute__((vector_size(64)));
typedef double emu_f64_128 __attribute__((vector_size(16)));
typedef double emu_f64_256 __attribute__((vector_size(32)));
typedef double emu_f64_512 __attribute__((vector_size(64)));

#define EMU_TRAP_UNLESS_ALIGNED(p, bytes)                                                          \
    do {                                                                                           \
        if ((uintptr_t)(p) % (bytes) != 0)                                                         \
            __builtin_trap();                                                                      \
    } while (0)

/* --- Masked moves, loads and stores, of every width ------------------------------------------- */

/* X(prefix, suffix, register, lane vector, lane, lanes, mask) */
#define EMU_EACH_WIDTH(X)                                                                          \
    X(mm, ps, __m128, emu_f32_128, float, 4, __mmask8)                                             \
    X(mm, pd, __m128d, emu_f64_128, double, 2, __mmask8)                                           \
    X(mm, epi8, __m128i, emu_int8_128, int8_t, 16, __mmask16)                                      \
    X(mm, epi16, __m128i, emu_int16_128, int16_t, 8, __mmask8)                                     \
    X(mm, epi32, __m128i, emu_int32_128, int32_t, 4, __mmask8)                                     \
    X(mm, epi64, __m128i, emu_int64_128, int64_t, 2, __mmask8)                                     \
    X(mm256, ps, __m256, emu_f32_256, float, 8, __mmask8)                                          \
    X(mm256, pd, __m256d, emu_f64_256, double, 4, __mmask8)                                        \
    X(mm256, epi8, __m256i, emu_int8_256, int8_t, 32, __mmask32)                                   \
    X(mm256, epi16, __m256i, emu_int16_256, int16_t, 16, __mmask16)                                \
    X(mm256, epi32, __m256i, emu_int32_256, int32_t, 8, __mmask8)                                  \
    X(mm256, epi64, __m256i, emu_int64_256, int64_t, 4, __mmask8)                                  \
    X(mm512, ps, __m512, emu_f32_512, float, 16, __mmask16)                                        \
    X(mm512, pd, __m512d, emu_f64_512, double, 8, __mmask8)                                        \
    X(mm512, epi8, __m512i, emu_int8_512, int8_t, 64, __mmask64)                                   \
    X(mm512, epi16, __m512i, emu_int16_512, int16_t, 32, __mmask32)                                \
    X(mm512, epi32, __m512i, emu_int32_512, int32_t, 16, __mmask16)                                \
    X(mm512, epi64, __m512i, emu_int64_512, int64_t, 8, __mmask8)

#define EMU_ALL_ON(m, lanes) ((uint64_t)(m) << (64 - (lanes)) == UINT64_MAX << (64 - (lanes)))

#define EMU_MOVES(prefix, suffix, reg, vector, lane, lanes, mask)                                  \
    AIMO_INLINE reg emu_##prefix##_mask_mov_##suffix(reg src, mask m, reg a)                       \
    {                                                                                              \
        vector result = (vector)src, from = (vector)a;                                             \
        for (int i = 0; i < lanes; i++)                                                            \
            if (m >> i & 1)                                                                        \
                result[i] = from[i];                                                               \
        return (reg)result;                                                                        \
    }                                                                                              \
    AIMO_INLINE reg emu_##prefix##_maskz_mov_##suffix(mask m, reg a)                               \
    {                                                                                              \
        return emu_##prefix##_mask_mov_##suffix((reg)(vector){0}, m, a);                           \
    }                                                                                              \
    AIMO_INLINE reg emu_##prefix##_mask_blend_##suffix(mask m, reg a, reg b)                       \
    {                                                                                              \
        return emu_##prefix##_mask_mov_##suffix(a, m, b);                                          \
    }                                                                                              \
    AIMO_INLINE reg emu_##prefix##_mask_loadu_##suffix(reg src, mask m, const void *p)             \
    {                                                                                              \
        vector result = (vector)src;                                                               \
        if (EMU_ALL_ON(m, lanes)) {                                                                \
            memcpy(&result, p, sizeof result);                                                     \
            return (reg)result;                                                                    \
        }                                                                                          \
        for (int i = 0; i < lanes; i++)                                                            \
            if (m >> i & 1) {                                                                      \
                lane x;                                                                            \
                memcpy(&x, (const char *)p + sizeof x * (size_t)i, sizeof x);                      \
                result[i] = x;                                                                     \
            }                                                                                      \
        return (reg)result;                                                                        \
    }                                                                                              \
    AIMO_INLINE reg emu_##prefix##_maskz_loadu_##suffix(mask m, const void *p)                     \
    {                                                                                              \
        return emu_##prefix##_mask_loadu_##suffix((reg)(vector){0}, m, p);                         \
    }                                                                                              \
    AIMO_INLINE void emu_##prefix##_mask_storeu_##suffix(void *p, mask m, reg a)                   \
    {                                                                                              \
        const vector from = (vector)a;                                                             \
        if (EMU_ALL_ON(m, lanes)) {                                                                \
            memcpy(p, &from, sizeof from);                                                         \
            return;                                                                                \
        }                                                                                          \
        for (int i = 0; i < lanes; i++)                                                            \
            if (m >> i & 1) {                                                                      \
                const lane x = from[i];                                                            \
                memcpy((char *)p + sizeof x * (size_t)i, &x, sizeof x);                            \
            }                                                                                      \
    }
EMU_EACH_WIDTH(EMU_MOVES)

/* Lanes that are on, packed to the front; and back. Bytes and words would need VBMI2. */
#define EMU_COMPRESS(prefix, suffix, reg, vector, lane, lanes, mask)                               \
    AIMO_INLINE reg emu_##prefix##_mask_compress_##suffix(reg src, mask m, reg a)                  \
    {                                                                                              \
        vector result = (vector)src, from = (vector)a;                                             \
        int count = 0;                                                                             \
        for (int i = 0; i < lanes; i++)                                                            \
            if (m >> i & 1)                                                                        \
                result[count++] = from[i];                                                         \
        return (reg)result;                                                                        \
    }                                                                                              \
    AIMO_INLINE reg emu_##prefix##_maskz_compress_##suffix(mask m, reg a)                          \
    {                                                                                              \
        return emu_##prefix##_mask_compress_##suffix((reg)(vector){0}, m, a);                      \
    }                                                                                              \
    AIMO_INLINE void emu_##prefix##_mask_compressstoreu_##suffix(void *p, mask m, reg a)           \
    {                                                                                              \
        const vector packed = (vector)emu_##prefix##_maskz_compress_##suffix(m, a);                \
        const uint64_t on = (uint64_t)m << (64 - lanes);                                           \
        memcpy(p, &packed, sizeof(lane) * (size_t)__builtin_popcountll(on));                       \
    }                                                                                              \
    AIMO_INLINE reg emu_##prefix##_maskz_expand_##suffix(mask m, reg a)                            \
    {                                                                                              \
        vector result = {0}, from = (vector)a;                                                     \
        int count = 0;                                                                             \
        for (int i = 0; i < lanes; i++)                                                            \
            if (m >> i & 1)                                                                        \
                result[i] = from[count++];                                                         \
        return (reg)result;                                                                        \
    }
EMU_COMPRESS(mm512, ps, __m512, emu_f32_512, float, 16, __mmask16)
EMU_COMPRESS(mm512, pd, __m512d, emu_f64_512, double, 8, __mmask8)
EMU_COMPRESS(mm512, epi32, __m512i, emu_int32_512, int32_t, 16, __mmask16)
EMU_COMPRESS(mm512, epi64, __m512i, emu_int64_512, int64_t, 8, __mmask8)
EMU_COMPRESS(mm256, ps, __m256, emu_f32_256, float, 8, __mmask8)
EMU_COMPRESS(mm256, epi32, __m256i, emu_int32_256, int32_t, 8, __mmask8)

/* --- Whole loads and stores ------------------------------------------------------------------- */

#define EMU_LOAD_STORE(reg, name)                                                                  \
    AIMO_INLINE reg emu_mm512_loadu_##name(const void *p)                                          \
    {                                                                                              \
        reg a;                                                                                     \
        memcpy(&a, p, sizeof a);                                                                   \
        return a;                                                                                  \
    }                                                                                              \
    AIMO_INLINE void emu_mm512_storeu_##name(void *p, reg a) { memcpy(p, &a, sizeof a); }
#define EMU_LOAD_STORE_ALIGNED(reg, name)                                                          \
    AIMO_INLINE reg emu_mm512_load_##name(const void *p)                                           \
    {                                                                                              \
        EMU_TRAP_UNLESS_ALIGNED(p, 64);                                                            \
        return emu_mm512_loadu_##name(p);                                                          \
    }                                                                                              \
    AIMO_INLINE void emu_mm512_store_##name(void *p, reg a)                                        \
    {                                                                                              \
        EMU_TRAP_UNLESS_ALIGNED(p, 64);                                                            \
        emu_mm512_storeu_##name(p, a);                                                             \
    }                                                                                              \
    AIMO_INLINE void emu_mm512_stream_##name(void *p, reg a) { emu_mm512_store_##name(p, a); }
EMU_LOAD_STORE(__m512, ps)
EMU_LOAD_STORE(__m512d, pd)
EMU_LOAD_STORE(__m512i, si512)
EMU_LOAD_STORE(__m512i, epi8)
EMU_LOAD_STORE(__m512i, epi16)
EMU_LOAD_STORE(__m512i, epi32)
EMU_LOAD_STORE(__m512i, epi64)
EMU_LOAD_STORE_ALIGNED(__m512, ps)
EMU_LOAD_STORE_ALIGNED(__m512d, pd)
EMU_LOAD_STORE_ALIGNED(__m512i, si512)

AIMO_INLINE __m512i emu_mm512_stream_load_si512(const void *p) { return emu_mm512_load_si512(p); }

/* scale is in bytes; the indices are signed. */
AIMO_INLINE __m512 emu_mm512_i32gather_ps(__m512i index, const void *base, int scale)
{
    const emu_int32_512 at = (emu_int32_512)index;
    emu_f32_512 result;
    for (int i = 0; i < 16; i++) {
        float x;
        memcpy(&x, (const char *)base + (int64_t)at[i] * scale, sizeof x);
        result[i] = x;
    }
    return (__m512)result;
}
AIMO_INLINE __m512i emu_mm512_i32gather_epi32(__m512i index, const void *base, int scale)
{
    return (__m512i)emu_mm512_i32gather_ps(index, base, scale);
}

/* --- Constants, casts, broadcasts, parts ------------------------------------------------------ */

AIMO_INLINE __m512 emu_mm512_setzero_ps(void) { return (__m512){0}; }
AIMO_INLINE __m512d emu_mm512_setzero_pd(void) { return (__m512d){0}; }
AIMO_INLINE __m512i emu_mm512_setzero_si512(void) { return (__m512i){0}; }
AIMO_INLINE __m512i emu_mm512_setzero_epi32(void) { return (__m512i){0}; }

#define EMU_SET1(t, suffix, lane)                                                                  \
    AIMO_INLINE emu_##t emu_mm512_set1_##suffix(lane x)                                            \
    {                                                                                              \
        return emu_join_##t(_mm256_set1_##suffix(x), _mm256_set1_##suffix(x));                     \
    }
EMU_SET1(ps, ps, float)
EMU_SET1(pd, pd, double)
EMU_SET1(si, epi8, char)
EMU_SET1(si, epi16, short)
EMU_SET1(si, epi32, int)
AIMO_INLINE __m512i emu_mm512_set1_epi64(long long x)
{
    return emu_join_si(_mm256_set1_epi64x(x), _mm256_set1_epi64x(x));
}

/* setr lists the lanes upwards, set downwards. */
AIMO_INLINE __m512 emu_mm512_setr_ps(float a, float b, float c, float d, float e, float f, float g,
                                     float h, float i, float j, float k, float l, float m, float n,
                                     float o, float p)
{
    return (__m512)(emu_f32_512){a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p};
}
AIMO_INLINE __m512 emu_mm512_set_ps(float p, float o, float n, float m, float l, float k, float j,
                                    float i, float h, float g, float f, float e, float d, float c,
                                    float b, float a)
{
    return (__m512)(emu_f32_512){a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p};
}
AIMO_INLINE __m512i emu_mm512_setr_epi32(int a, int b, int c, int d, int e, int f, int g, int h,
                                         int i, int j, int k, int l, int m, int n, int o, int p)
{
    return (__m512i)(emu_int32_512){a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p};
}
AIMO_INLINE __m512i emu_mm512_set_epi32(int p, int o, int n, int m, int l, int k, int j, int i,
                                        int h, int g, int f, int e, int d, int c, int b, int a)
{
    return (__m512i)(emu_int32_512){a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p};
}
AIMO_INLINE __m512i emu_mm512_setr_epi64(long long a, long long b, long long c, long long d,
                                         long long e, long long f, long long g, long long h)
{
    return (__m512i)(emu_int64_512){a, b, c, d, e, f, g, h};
}
AIMO_INLINE __m512i emu_mm512_set_epi64(long long h, long long g, long long f, long long e,
                                        long long d, long long c, long long b, long long a)
{
    return (__m512i)(emu_int64_512){a, b, c, d, e, f, g, h};
}

#define EMU_CAST(name, from, to)                                                                   \
    AIMO_INLINE to emu_mm512_cast##name(from a) { return (to)a; }
EMU_CAST(ps_si512, __m512, __m512i)
EMU_CAST(pd_si512, __m512d, __m512i)
EMU_CAST(si512_ps, __m512i, __m512)
EMU_CAST(si512_pd, __m512i, __m512d)
EMU_CAST(ps_pd, __m512, __m512d)
EMU_CAST(pd_ps, __m512d, __m512)

AIMO_INLINE __m256 emu_mm512_castps512_ps256(__m512 a) { return emu_low_ps(a); }
AIMO_INLINE __m256d emu_mm512_castpd512_pd256(__m512d a) { return emu_low_pd(a); }
AIMO_INLINE __m256i emu_mm512_castsi512_si256(__m512i a) { return emu_low_si(a); }
AIMO_INLINE __m128 emu_mm512_castps512_ps128(__m512 a)
{
    return _mm256_castps256_ps128(emu_low_ps(a));
}
AIMO_INLINE __m128i emu_mm512_castsi512_si128(__m512i a)
{
    return _mm256_castsi256_si128(emu_low_si(a));
}
AIMO_INLINE float emu_mm512_cvtss_f32(__m512 a) { return ((emu_f32_512)a)[0]; }
AIMO_INLINE double emu_mm512_cvtsd_f64(__m512d a) { return ((emu_f64_512)a)[0]; }
AIMO_INLINE int emu_mm512_cvtsi512_si32(__m512i a) { return ((emu_int32_512)a)[0]; }

AIMO_INLINE __m512 emu_mm512_zextps256_ps512(__m256 a)
{
    return emu_join_ps(a, _mm256_setzero_ps());
}
AIMO_INLINE __m512i emu_mm512_zextsi256_si512(__m256i a)
{
    return emu_join_si(a, _mm256_setzero_si256());
}
AIMO_INLINE __m512i emu_mm512_zextsi128_si512(__m128i a)
{
    return emu_mm512_zextsi256_si512(_mm256_inserti128_si256(_mm256_setzero_si256(), a, 0));
}
/* The upper half is undefined; NaN shows who reads it. */
AIMO_INLINE __m512 emu_mm512_castps256_ps512(__m256 a)
{
    return emu_join_ps(a, _mm256_castsi256_ps(_mm256_set1_epi8(-1)));
}
AIMO_INLINE __m512i emu_mm512_castsi256_si512(__m256i a)
{
    return emu_join_si(a, _mm256_set1_epi8(-1));
}

#define EMU_BROADCAST(name, to, from)                                                              \
    AIMO_INLINE to emu_mm512_##name(from a)                                                        \
    {                                                                                              \
        to result;                                                                                 \
        for (size_t i = 0; i < sizeof result; i += sizeof a)                                       \
            memcpy((char *)&result + i, &a, sizeof a);                                             \
        return result;                                                                             \
    }
EMU_BROADCAST(broadcast_f32x4, __m512, __m128)
EMU_BROADCAST(broadcast_f32x8, __m512, __m256)
EMU_BROADCAST(broadcast_f64x4, __m512d, __m256d)
EMU_BROADCAST(broadcast_i32x4, __m512i, __m128i)
EMU_BROADCAST(broadcast_i32x8, __m512i, __m256i)
EMU_BROADCAST(broadcast_i64x4, __m512i, __m256i)

#define EMU_BROADCAST_LANE(name, to, to_vector, from, from_vector)                                 \
    AIMO_INLINE to emu_mm512_##name(from a) { return (to)((to_vector){0} + ((from_vector)a)[0]); }
EMU_BROADCAST_LANE(broadcastss_ps, __m512, emu_f32_512, __m128, emu_f32_128)
EMU_BROADCAST_LANE(broadcastsd_pd, __m512d, emu_f64_512, __m128d, emu_f64_128)
EMU_BROADCAST_LANE(broadcastb_epi8, __m512i, emu_int8_512, __m128i, emu_int8_128)
EMU_BROADCAST_LANE(broadcastw_epi16, __m512i, emu_int16_512, __m128i, emu_int16_128)
EMU_BROADCAST_LANE(broadcastd_epi32, __m512i, emu_int32_512, __m128i, emu_int32_128)
EMU_BROADCAST_LANE(broadcastq_epi64, __m512i, emu_int64_512, __m128i, emu_int64_128)

/* Part `at` of a register, counted in parts. */
#define EMU_PART(kind, whole, part, extract_name, insert_name)                                     \
    AIMO_INLINE part emu_mm512_##extract_name(whole a, int at)                                     \
    {                                                                                              \
        part result;                                                                               \
        memcpy(&result, (const char *)&a + sizeof result * (size_t)at, sizeof result);             \
        return result;                                                                             \
    }                                                                                              \
    AIMO_INLINE whole emu_mm512_##insert_name(whole a, part b, int at)                             \
    {                                                                                              \
        memcpy((char *)&a + sizeof b * (size_t)at, &b, sizeof b);                                  \
        return a;                                                                                  \
    }
EMU_PART(f32x4, __m512, __m128, extractf32x4_ps, insertf32x4)
EMU_PART(f32x8, __m512, __m256, extractf32x8_ps, insertf32x8)
EMU_PART(f64x4, __m512d, __m256d, extractf64x4_pd, insertf64x4)
EMU_PART(i32x4, __m512i, __m128i, extracti32x4_epi32, inserti32x4)
EMU_PART(i32x8, __m512i, __m256i, extracti32x8_epi32, inserti32x8)
EMU_PART(i64x4, __m512i, __m256i, extracti64x4_epi64, inserti64x4)

/* --- Arithmetic: two halves ------------------------------------------------------------------- */

#define EMU_1(t, name)                                                                             \
    AIMO_INLINE emu_##t emu_mm512_##name(emu_##t a)                                                \
    {                                                                                              \
        return emu_join_##t(_mm256_##name(emu_low_##t(a)), _mm256_##name(emu_high_##t(a)));        \
    }
#define EMU_2_AS(t, name, half_name)                                                               \
    AIMO_INLINE emu_##t emu_mm512_##name(emu_##t a, emu_##t b)                                     \
    {                                                                                              \
        return emu_join_##t(_mm256_##half_name(emu_low_##t(a), emu_low_##t(b)),                    \
                            _mm256_##half_name(emu_high_##t(a), emu_high_##t(b)));                 \
    }
#define EMU_2(t, name) EMU_2_AS(t, name, name)
#define EMU_3(t, name)                                                                             \
    AIMO_INLINE emu_##t emu_mm512_##name(emu_##t a, emu_##t b, emu_##t c)                          \
    {                                                                                              \
        return emu_join_##t(_mm256_##name(emu_low_##t(a), emu_low_##t(b), emu_low_##t(c)),         \
                            _mm256_##name(emu_high_##t(a), emu_high_##t(b), emu_high_##t(c)));     \
    }
#define EMU_SHIFT(name)                                                                            \
    AIMO_INLINE __m512i emu_mm512_##name(__m512i a, unsigned count)                                \
    {                                                                                              \
        return emu_join_si(_mm256_##name(emu_low_si(a), (int)count),                               \
                           _mm256_##name(emu_high_si(a), (int)count));                             \
    }

EMU_2(ps, add_ps)
EMU_2(ps, sub_ps)
EMU_2(ps, mul_ps)
EMU_2(ps, div_ps)
EMU_2(ps, min_ps)
EMU_2(ps, max_ps)
EMU_2(ps, and_ps)
EMU_2(ps, or_ps)
EMU_2(ps, xor_ps)
EMU_2(ps, andnot_ps)
EMU_2(ps, unpacklo_ps)
EMU_2(ps, unpackhi_ps)
EMU_1(ps, sqrt_ps)
EMU_1(ps, movehdup_ps)
EMU_1(ps, moveldup_ps)
EMU_3(ps, fmadd_ps)
EMU_3(ps, fmsub_ps)
EMU_3(ps, fnmadd_ps)
EMU_3(ps, fnmsub_ps)

EMU_2(pd, add_pd)
EMU_2(pd, sub_pd)
EMU_2(pd, mul_pd)
EMU_2(pd, div_pd)
EMU_2(pd, min_pd)
EMU_2(pd, max_pd)
EMU_2(pd, and_pd)
EMU_2(pd, or_pd)
EMU_2(pd, xor_pd)
EMU_2(pd, unpacklo_pd)
EMU_2(pd, unpackhi_pd)
EMU_1(pd, sqrt_pd)
EMU_3(pd, fmadd_pd)
EMU_3(pd, fmsub_pd)
EMU_3(pd, fnmadd_pd)

EMU_2(si, add_epi8)
EMU_2(si, add_epi16)
EMU_2(si, add_epi32)
EMU_2(si, add_epi64)
EMU_2(si, sub_epi8)
EMU_2(si, sub_epi16)
EMU_2(si, sub_epi32)
EMU_2(si, sub_epi64)
EMU_2(si, adds_epi8)
EMU_2(si, adds_epu8)
EMU_2(si, adds_epi16)
EMU_2(si, adds_epu16)
EMU_2(si, subs_epi8)
EMU_2(si, subs_epu8)
EMU_2(si, subs_epi16)
EMU_2(si, subs_epu16)
EMU_2(si, mullo_epi16)
EMU_2(si, mullo_epi32)
EMU_2(si, mulhi_epi16)
EMU_2(si, mulhi_epu16)
EMU_2(si, mulhrs_epi16)
EMU_2(si, mul_epi32)
EMU_2(si, mul_epu32)
EMU_2(si, madd_epi16)
EMU_2(si, maddubs_epi16)
EMU_2(si, sad_epu8)
EMU_2(si, avg_epu8)
EMU_2(si, avg_epu16)
EMU_2(si, min_epi8)
EMU_2(si, min_epi16)
EMU_2(si, min_epi32)
EMU_2(si, min_epu8)
EMU_2(si, min_epu16)
EMU_2(si, min_epu32)
EMU_2(si, max_epi8)
EMU_2(si, max_epi16)
EMU_2(si, max_epi32)
EMU_2(si, max_epu8)
EMU_2(si, max_epu16)
EMU_2(si, max_epu32)
EMU_1(si, abs_epi8)
EMU_1(si, abs_epi16)
EMU_1(si, abs_epi32)
EMU_2_AS(si, and_si512, and_si256)
EMU_2_AS(si, and_epi32, and_si256)
EMU_2_AS(si, and_epi64, and_si256)
EMU_2_AS(si, or_si512, or_si256)
EMU_2_AS(si, or_epi32, or_si256)
EMU_2_AS(si, or_epi64, or_si256)
EMU_2_AS(si, xor_si512, xor_si256)
EMU_2_AS(si, xor_epi32, xor_si256)
EMU_2_AS(si, xor_epi64, xor_si256)
EMU_2_AS(si, andnot_si512, andnot_si256)
EMU_2_AS(si, andnot_epi32, andnot_si256)
EMU_2_AS(si, andnot_epi64, andnot_si256)
EMU_SHIFT(slli_epi16)
EMU_SHIFT(slli_epi32)
EMU_SHIFT(slli_epi64)
EMU_SHIFT(srli_epi16)
EMU_SHIFT(srli_epi32)
EMU_SHIFT(srli_epi64)
EMU_SHIFT(srai_epi16)
EMU_SHIFT(srai_epi32)
EMU_2(si, sllv_epi32)
EMU_2(si, sllv_epi64)
EMU_2(si, srlv_epi32)
EMU_2(si, srlv_epi64)
EMU_2(si, srav_epi32)
/* These work within 128-bit lanes, as their AVX2 forms do. */
EMU_2(si, packs_epi16)
EMU_2(si, packs_epi32)
EMU_2(si, packus_epi16)
EMU_2(si, packus_epi32)
EMU_2(si, shuffle_epi8)
EMU_2(si, unpacklo_epi8)
EMU_2(si, unpacklo_epi16)
EMU_2(si, unpacklo_epi32)
EMU_2(si, unpacklo_epi64)
EMU_2(si, unpackhi_epi8)
EMU_2(si, unpackhi_epi16)
EMU_2(si, unpackhi_epi32)
EMU_2(si, unpackhi_epi64)

/* --- Arithmetic that AVX2 lacks --------------------------------------------------------------- */

AIMO_INLINE __m512 emu_mm512_abs_ps(__m512 a)
{
    return emu_mm512_andnot_ps(emu_mm512_set1_ps(-0.0f), a);
}
AIMO_INLINE __m512d emu_mm512_abs_pd(__m512d a)
{
    return emu_mm512_and_pd(emu_mm512_castsi512_pd(emu_mm512_set1_epi64(INT64_MAX)), a);
}

#define EMU_LANEWISE_2(name, vector, lane_count, expression)                                       \
    AIMO_INLINE __m512i emu_mm512_##name(__m512i a, __m512i b)                                     \
    {                                                                                              \
        vector x = (vector)a, y = (vector)b;                                                       \
        for (int i = 0; i < lane_count; i++)                                                       \
            x[i] = (expression);                                                                   \
        return (__m512i)x;                                                                         \
    }
EMU_LANEWISE_2(mullo_epi64, emu_uint64_512, 8, x[i] * y[i])
EMU_LANEWISE_2(min_epi64, emu_int64_512, 8, x[i] < y[i] ? x[i] : y[i])
EMU_LANEWISE_2(max_epi64, emu_int64_512, 8, x[i] > y[i] ? x[i] : y[i])
EMU_LANEWISE_2(min_epu64, emu_uint64_512, 8, x[i] < y[i] ? x[i] : y[i])
EMU_LANEWISE_2(max_epu64, emu_uint64_512, 8, x[i] > y[i] ? x[i] : y[i])
EMU_LANEWISE_2(srav_epi64, emu_int64_512, 8, x[i] >> (((uint64_t)y[i] > 63) ? 63 : y[i]))
EMU_LANEWISE_2(sllv_epi16, emu_uint16_512, 32, y[i] > 15 ? 0 : (uint16_t)(x[i] << y[i]))
EMU_LANEWISE_2(srlv_epi16, emu_uint16_512, 32, y[i] > 15 ? 0 : (uint16_t)(x[i] >> y[i]))
EMU_LANEWISE_2(srav_epi16, emu_int16_512, 32,
               (int16_t)(x[i] >> (((uint16_t)y[i] > 15) ? 15 : y[i])))
EMU_LANEWISE_2(rolv_epi32, emu_uint32_512, 16, x[i] << (y[i] & 31) | x[i] >> (-y[i] & 31))
EMU_LANEWISE_2(rorv_epi32, emu_uint32_512, 16, x[i] >> (y[i] & 31) | x[i] << (-y[i] & 31))

AIMO_INLINE __m512i emu_mm512_abs_epi64(__m512i a)
{
    const emu_uint64_512 x = (emu_uint64_512)a;
    return emu_mm512_min_epu64(a, (__m512i)-x);
}
AIMO_INLINE __m512i emu_mm512_srai_epi64(__m512i a, unsigned count)
{
    return emu_mm512_srav_epi64(a, emu_mm512_set1_epi64(count));
}
AIMO_INLINE __m512i emu_mm512_rol_epi32(__m512i a, int count)
{
    return emu_mm512_rolv_epi32(a, emu_mm512_set1_epi32(count));
}
AIMO_INLINE __m512i emu_mm512_ror_epi32(__m512i a, int count)
{
    return emu_mm512_rorv_epi32(a, emu_mm512_set1_epi32(count));
}

/* Bit i of the table is the result for a, b, c = the bits of i. */
AIMO_INLINE __m512i emu_mm512_ternarylogic_epi32(__m512i a, __m512i b, __m512i c, int table)
{
    const emu_uint64_512 x = (emu_uint64_512)a, y = (emu_uint64_512)b, z = (emu_uint64_512)c;
    emu_uint64_512 result = {0};
    for (int i = 0; i < 8; i++)
        if (table >> i & 1)
            result |= (i & 4 ? x : ~x) & (i & 2 ? y : ~y) & (i & 1 ? z : ~z);
    return (__m512i)result;
}
AIMO_INLINE __m512i emu_mm512_ternarylogic_epi64(__m512i a, __m512i b, __m512i c, int table)
{
    return emu_mm512_ternarylogic_epi32(a, b, c, table);
}

/* a * 2^floor(b) */
AIMO_INLINE __m512 emu_mm512_scalef_ps(__m512 a, __m512 b)
{
    emu_f32_512 x = (emu_f32_512)a, y = (emu_f32_512)b;
    for (int i = 0; i < 16; i++) {
        if (isinf(y[i])) /* 0 * inf and inf * 0 are NaN here too */
            x[i] = x[i] * (y[i] > 0.0f ? INFINITY : 0.0f);
        else if (isnan(y[i]))
            x[i] = x[i] + y[i];
        else
            x[i] = ldexpf(x[i], (int)fminf(fmaxf(floorf(y[i]), -1000.0f), 1000.0f));
    }
    return (__m512)x;
}

/* --- Immediates that AVX2 also needs as constants, hence macros ------------------------------- */

#define EMU_HALVES(t, full, a, call)                                                               \
    __extension__({                                                                                \
        const full emu_a = (a);                                                                    \
        emu_half_##t emu_x = emu_low_##t(emu_a);                                                   \
        const emu_half_##t emu_first = call;                                                       \
        emu_x = emu_high_##t(emu_a);                                                               \
        emu_join_##t(emu_first, call);                                                             \
    })
#define EMU_HALVES_2(t, full, a, b, call)                                                          \
    __extension__({                                                                                \
        const full emu_a = (a), emu_b = (b);                                                       \
        emu_half_##t emu_x = emu_low_##t(emu_a), emu_y = emu_low_##t(emu_b);                       \
        const emu_half_##t emu_first = call;                                                       \
        emu_x = emu_high_##t(emu_a), emu_y = emu_high_##t(emu_b);                                  \
        emu_join_##t(emu_first, call);                                                             \
    })

/* Only whole numbers: a scale (upper four bits) has no AVX2 form. */
#define emu_mm512_roundscale_ps(a, imm)                                                            \
    EMU_HALVES(ps, __m512, a, _mm256_round_ps(emu_x, (imm) + 0 * EMU_BELOW_16(imm)))
#define emu_mm512_roundscale_pd(a, imm)                                                            \
    EMU_HALVES(pd, __m512d, a, _mm256_round_pd(emu_x, (imm) + 0 * EMU_BELOW_16(imm)))
#define EMU_BELOW_16(imm) ((int)sizeof(char[(imm) < 16 ? 1 : -1]))
#define emu_mm512_permute_ps(a, imm) EMU_HALVES(ps, __m512, a, _mm256_permute_ps(emu_x, imm))
#define emu_mm512_shuffle_epi32(a, imm) EMU_HALVES(si, __m512i, a, _mm256_shuffle_epi32(emu_x, imm))
#define emu_mm512_permutex_epi64(a, imm)                                                           \
    EMU_HALVES(si, __m512i, a, _mm256_permute4x64_epi64(emu_x, imm))
#define emu_mm512_bslli_epi128(a, imm) EMU_HALVES(si, __m512i, a, _mm256_bslli_epi128(emu_x, imm))
#define emu_mm512_bsrli_epi128(a, imm) EMU_HALVES(si, __m512i, a, _mm256_bsrli_epi128(emu_x, imm))
#define emu_mm512_shuffle_ps(a, b, imm)                                                            \
    EMU_HALVES_2(ps, __m512, a, b, _mm256_shuffle_ps(emu_x, emu_y, imm))
#define emu_mm512_alignr_epi8(a, b, imm)                                                           \
    EMU_HALVES_2(si, __m512i, a, b, _mm256_alignr_epi8(emu_x, emu_y, imm))

/* --- Masks ------------------------------------------------------------------------------------ */

#define EMU_MASK_LOGIC(bits)                                                                       \
    AIMO_INLINE __mmask##bits emu_kand_mask##bits(__mmask##bits a, __mmask##bits b)                \
    {                                                                                              \
        return (__mmask##bits)(a & b);                                                             \
    }                                                                                              \
    AIMO_INLINE __mmask##bits emu_kandn_mask##bits(__mmask##bits a, __mmask##bits b)               \
    {                                                                                              \
        return (__mmask##bits)(~a & b);                                                            \
    }                                                                                              \
    AIMO_INLINE __mmask##bits emu_kor_mask##bits(__mmask##bits a, __mmask##bits b)                 \
    {                                                                                              \
        return (__mmask##bits)(a | b);                                                             \
    }                                                                                              \
    AIMO_INLINE __mmask##bits emu_kxor_mask##bits(__mmask##bits a, __mmask##bits b)                \
    {                                                                                              \
        return (__mmask##bits)(a ^ b);                                                             \
    }                                                                                              \
    AIMO_INLINE __mmask##bits emu_knot_mask##bits(__mmask##bits a) { return (__mmask##bits) ~a; }  \
    AIMO_INLINE unsigned char emu_kortestz_mask##bits##_u8(__mmask##bits a, __mmask##bits b)       \
    {                                                                                              \
        return (a | b) == 0;                                                                       \
    }
EMU_MASK_LOGIC(8)
EMU_MASK_LOGIC(16)
EMU_MASK_LOGIC(32)
EMU_MASK_LOGIC(64)

AIMO_INLINE __mmask16 emu_mm512_kand(__mmask16 a, __mmask16 b) { return a & b; }
AIMO_INLINE __mmask16 emu_mm512_kor(__mmask16 a, __mmask16 b) { return a | b; }
AIMO_INLINE __mmask16 emu_mm512_kxor(__mmask16 a, __mmask16 b) { return a ^ b; }
AIMO_INLINE __mmask16 emu_mm512_knot(__mmask16 a) { return (__mmask16)~a; }
AIMO_INLINE int emu_mm512_kortestz(__mmask16 a, __mmask16 b) { return (a | b) == 0; }
AIMO_INLINE __mmask16 emu_mm512_kunpackb(__mmask16 a, __mmask16 b)
{
    return (__mmask16)(a << 8 | (b & 0xff));
}
AIMO_INLINE uint32_t emu_cvtmask8_u32(__mmask8 a) { return a; }
AIMO_INLINE uint32_t emu_cvtmask16_u32(__mmask16 a) { return a; }
AIMO_INLINE uint32_t emu_cvtmask32_u32(__mmask32 a) { return a; }
AIMO_INLINE uint64_t emu_cvtmask64_u64(__mmask64 a) { return a; }
AIMO_INLINE __mmask8 emu_cvtu32_mask8(uint32_t a) { return (__mmask8)a; }
AIMO_INLINE __mmask16 emu_cvtu32_mask16(uint32_t a) { return (__mmask16)a; }
AIMO_INLINE __mmask32 emu_cvtu32_mask32(uint32_t a) { return a; }
AIMO_INLINE __mmask64 emu_cvtu64_mask64(uint64_t a) { return a; }

/* The predicate has to be a constant, for AVX too. */
#define emu_mm512_cmp_ps_mask(a, b, predicate)                                                     \
    __extension__({                                                                                \
        const __m512 emu_p = (a), emu_q = (b);                                                     \
        const __m256 emu_l = _mm256_cmp_ps(emu_low_ps(emu_p), emu_low_ps(emu_q), predicate);       \
        const __m256 emu_h = _mm256_cmp_ps(emu_high_ps(emu_p), emu_high_ps(emu_q), predicate);     \
        (__mmask16)(_mm256_movemask_ps(emu_h) << 8 | _mm256_movemask_ps(emu_l));                   \
    })
#define emu_mm512_mask_cmp_ps_mask(m, a, b, predicate)                                             \
    ((__mmask16)((m)&emu_mm512_cmp_ps_mask(a, b, predicate)))
#define emu_mm512_cmp_pd_mask(a, b, predicate)                                                     \
    __extension__({                                                                                \
        const __m512d emu_p = (a), emu_q = (b);                                                    \
        const __m256d emu_l = _mm256_cmp_pd(emu_low_pd(emu_p), emu_low_pd(emu_q), predicate);      \
        const __m256d emu_h = _mm256_cmp_pd(emu_high_pd(emu_p), emu_high_pd(emu_q), predicate);    \
        (__mmask8)(_mm256_movemask_pd(emu_h) << 4 | _mm256_movemask_pd(emu_l));                    \
    })
#define emu_mm256_cmp_ps_mask(a, b, predicate)                                                     \
    ((__mmask8)_mm256_movemask_ps(_mm256_cmp_ps(a, b, predicate)))

#define EMU_COMPARE(name, operator, prefix, reg, suffix, vector, lanes, mask)                      \
    AIMO_INLINE mask emu_##prefix##_cmp##name##_##suffix##_mask(reg a, reg b)                      \
    {                                                                                              \
        const vector x = (vector)a, y = (vector)b;                                                 \
        mask result = 0;                                                                           \
        for (int i = 0; i < lanes; i++)                                                            \
            result |= (mask)((mask)(x[i] operator y[i]) << i);                                     \
        return result;                                                                             \
    }                                                                                              \
    AIMO_INLINE mask emu_##prefix##_mask_cmp##name##_##suffix##_mask(mask m, reg a, reg b)         \
    {                                                                                              \
        return m & emu_##prefix##_cmp##name##_##suffix##_mask(a, b);                               \
    }
#define EMU_COMPARES(prefix, reg, suffix, vector, lanes, mask)                                     \
    EMU_COMPARE(eq, ==, prefix, reg, suffix, vector, lanes, mask)                                  \
    EMU_COMPARE(neq, !=, prefix, reg, suffix, vector, lanes, mask)                                 \
    EMU_COMPARE(lt, <, prefix, reg, suffix, vector, lanes, mask)                                   \
    EMU_COMPARE(le, <=, prefix, reg, suffix, vector, lanes, mask)                                  \
    EMU_COMPARE(gt, >, prefix, reg, suffix, vector, lanes, mask)                                   \
    EMU_COMPARE(ge, >=, prefix, reg, suffix, vector, lanes, mask)
EMU_COMPARES(mm512, __m512i, epi8, emu_int8_512, 64, __mmask64)
EMU_COMPARES(mm512, __m512i, epu8, emu_uint8_512, 64, __mmask64)
EMU_COMPARES(mm512, __m512i, epi16, emu_int16_512, 32, __mmask32)
EMU_COMPARES(mm512, __m512i, epu16, emu_uint16_512, 32, __mmask32)
EMU_COMPARES(mm512, __m512i, epi32, emu_int32_512, 16, __mmask16)
EMU_COMPARES(mm512, __m512i, epu32, emu_uint32_512, 16, __mmask16)
EMU_COMPARES(mm512, __m512i, epi64, emu_int64_512, 8, __mmask8)
EMU_COMPARES(mm512, __m512i, epu64, emu_uint64_512, 8, __mmask8)
EMU_COMPARES(mm256, __m256i, epi8, emu_int8_256, 32, __mmask32)
EMU_COMPARES(mm256, __m256i, epi16, emu_int16_256, 16, __mmask16)
EMU_COMPARES(mm256, __m256i, epi32, emu_int32_256, 8, __mmask8)

/* A lane's sign, or whether a & b leaves a bit, as a mask; and a mask as lanes of ones. */
#define EMU_MASK_AND_LANES(suffix, vector, lanes, mask)                                            \
    AIMO_INLINE mask emu_mm512_movep##suffix##_mask(__m512i a)                                     \
    {                                                                                              \
        return emu_mm512_cmplt_ep##suffix##_mask(a, emu_mm512_setzero_si512());                    \
    }                                                                                              \
    AIMO_INLINE mask emu_mm512_test_ep##suffix##_mask(__m512i a, __m512i b)                        \
    {                                                                                              \
        return emu_mm512_cmpneq_ep##suffix##_mask(emu_mm512_and_si512(a, b),                       \
                                                  emu_mm512_setzero_si512());                      \
    }                                                                                              \
    AIMO_INLINE mask emu_mm512_testn_ep##suffix##_mask(__m512i a, __m512i b)                       \
    {                                                                                              \
        return (mask)~emu_mm512_test_ep##suffix##_mask(a, b);                                      \
    }                                                                                              \
    AIMO_INLINE __m512i emu_mm512_movm_ep##suffix(mask m)                                          \
    {                                                                                              \
        return emu_mm512_maskz_mov_ep##suffix(m, emu_mm512_set1_epi8(-1));                         \
    }
EMU_MASK_AND_LANES(i8, emu_int8_512, 64, __mmask64)
EMU_MASK_AND_LANES(i16, emu_int16_512, 32, __mmask32)
EMU_MASK_AND_LANES(i32, emu_int32_512, 16, __mmask16)
EMU_MASK_AND_LANES(i64, emu_int64_512, 8, __mmask8)

/* --- Masked arithmetic ------------------------------------------------------------------------ */

#define EMU_MASKED_1(t, mask, suffix, name, from)                                                  \
    AIMO_INLINE emu_##t emu_mm512_mask_##name(emu_##t src, mask m, from a)                         \
    {                                                                                              \
        return emu_mm512_mask_mov_##suffix(src, m, emu_mm512_##name(a));                           \
    }                                                                                              \
    AIMO_INLINE emu_##t emu_mm512_maskz_##name(mask m, from a)                                     \
    {                                                                                              \
        return emu_mm512_maskz_mov_##suffix(m, emu_mm512_##name(a));                               \
    }
#define EMU_MASKED_2(t, mask, suffix, name)                                                        \
    AIMO_INLINE emu_##t emu_mm512_mask_##name(emu_##t src, mask m, emu_##t a, emu_##t b)           \
    {                                                                                              \
        return emu_mm512_mask_mov_##suffix(src, m, emu_mm512_##name(a, b));                        \
    }                                                                                              \
    AIMO_INLINE emu_##t emu_mm512_maskz_##name(mask m, emu_##t a, emu_##t b)                       \
    {                                                                                              \
        return emu_mm512_maskz_mov_##suffix(m, emu_mm512_##name(a, b));                            \
    }
#define EMU_MASKED_FMA(t, mask, suffix, name)                                                      \
    AIMO_INLINE emu_##t emu_mm512_mask_##name(emu_##t a, mask m, emu_##t b, emu_##t c)             \
    {                                                                                              \
        return emu_mm512_mask_mov_##suffix(a, m, emu_mm512_##name(a, b, c));                       \
    }                                                                                              \
    AIMO_INLINE emu_##t emu_mm512_mask3_##name(emu_##t a, emu_##t b, emu_##t c, mask m)            \
    {                                                                                              \
        return emu_mm512_mask_mov_##suffix(c, m, emu_mm512_##name(a, b, c));                       \
    }                                                                                              \
    AIMO_INLINE emu_##t emu_mm512_maskz_##name(mask m, emu_##t a, emu_##t b, emu_##t c)            \
    {                                                                                              \
        return emu_mm512_maskz_mov_##suffix(m, emu_mm512_##name(a, b, c));                         \
    }
#define EMU_MASKED_SHIFT(mask, suffix, name)                                                       \
    AIMO_INLINE __m512i emu_mm512_mask_##name(__m512i src, mask m, __m512i a, unsigned count)      \
    {                                                                                              \
        return emu_mm512_mask_mov_##suffix(src, m, emu_mm512_##name(a, count));                    \
    }                                                                                              \
    AIMO_INLINE __m512i emu_mm512_maskz_##name(mask m, __m512i a, unsigned count)                  \
    {                                                                                              \
        return emu_mm512_maskz_mov_##suffix(m, emu_mm512_##name(a, count));                        \
    }

EMU_MASKED_2(ps, __mmask16, ps, add_ps)
EMU_MASKED_2(ps, __mmask16, ps, sub_ps)
EMU_MASKED_2(ps, __mmask16, ps, mul_ps)
EMU_MASKED_2(ps, __mmask16, ps, div_ps)
EMU_MASKED_2(ps, __mmask16, ps, min_ps)
EMU_MASKED_2(ps, __mmask16, ps, max_ps)
EMU_MASKED_2(ps, __mmask16, ps, and_ps)
EMU_MASKED_2(ps, __mmask16, ps, or_ps)
EMU_MASKED_2(ps, __mmask16, ps, xor_ps)
EMU_MASKED_FMA(ps, __mmask16, ps, fmadd_ps)
EMU_MASKED_FMA(ps, __mmask16, ps, fmsub_ps)
EMU_MASKED_FMA(ps, __mmask16, ps, fnmadd_ps)
EMU_MASKED_1(ps, __mmask16, ps, sqrt_ps, __m512)
EMU_MASKED_2(pd, __mmask8, pd, add_pd)
EMU_MASKED_2(pd, __mmask8, pd, sub_pd)
EMU_MASKED_2(pd, __mmask8, pd, mul_pd)
EMU_MASKED_FMA(pd, __mmask8, pd, fmadd_pd)
EMU_MASKED_2(si, __mmask64, epi8, add_epi8)
EMU_MASKED_2(si, __mmask64, epi8, sub_epi8)
EMU_MASKED_2(si, __mmask32, epi16, add_epi16)
EMU_MASKED_2(si, __mmask32, epi16, sub_epi16)
EMU_MASKED_2(si, __mmask16, epi32, add_epi32)
EMU_MASKED_2(si, __mmask16, epi32, sub_epi32)
EMU_MASKED_2(si, __mmask16, epi32, mullo_epi32)
EMU_MASKED_2(si, __mmask16, epi32, min_epi32)
EMU_MASKED_2(si, __mmask16, epi32, max_epi32)
EMU_MASKED_2(si, __mmask16, epi32, min_epu32)
EMU_MASKED_2(si, __mmask16, epi32, max_epu32)
EMU_MASKED_2(si, __mmask16, epi32, and_epi32)
EMU_MASKED_2(si, __mmask16, epi32, or_epi32)
EMU_MASKED_2(si, __mmask16, epi32, xor_epi32)
EMU_MASKED_2(si, __mmask16, epi32, andnot_epi32)
EMU_MASKED_2(si, __mmask8, epi64, add_epi64)
EMU_MASKED_2(si, __mmask8, epi64, sub_epi64)
EMU_MASKED_SHIFT(__mmask16, epi32, slli_epi32)
EMU_MASKED_SHIFT(__mmask16, epi32, srli_epi32)
EMU_MASKED_SHIFT(__mmask16, epi32, srai_epi32)
EMU_MASKED_1(si, __mmask64, epi8, set1_epi8, char)
EMU_MASKED_1(si, __mmask32, epi16, set1_epi16, short)
EMU_MASKED_1(si, __mmask16, epi32, set1_epi32, int)
EMU_MASKED_1(si, __mmask8, epi64, set1_epi64, long long)
EMU_MASKED_1(ps, __mmask16, ps, broadcastss_ps, __m128)

/* --- Permutations over the whole register ----------------------------------------------------- */

#define EMU_PERMUTE(suffix, reg, vector, index_vector, lanes)                                      \
    AIMO_INLINE reg emu_mm512_permutexvar_##suffix(__m512i index, reg a)                           \
    {                                                                                              \
        const vector from = (vector)a;                                                             \
        const index_vector at = (index_vector)index;                                               \
        vector result;                                                                             \
        for (int i = 0; i < lanes; i++)                                                            \
            result[i] = from[at[i] & (lanes - 1)];                                                 \
        return (reg)result;                                                                        \
    }                                                                                              \
    AIMO_INLINE reg emu_mm512_permutex2var_##suffix(reg a, __m512i index, reg b)                   \
    {                                                                                              \
        const vector x = (vector)a, y = (vector)b;                                                 \
        const index_vector at = (index_vector)index;                                               \
        vector result;                                                                             \
        for (int i = 0; i < lanes; i++)                                                            \
            result[i] = (at[i] & lanes ? y : x)[at[i] & (lanes - 1)];                              \
        return (reg)result;                                                                        \
    }
EMU_PERMUTE(ps, __m512, emu_f32_512, emu_uint32_512, 16)
EMU_PERMUTE(pd, __m512d, emu_f64_512, emu_uint64_512, 8)
EMU_PERMUTE(epi16, __m512i, emu_int16_512, emu_uint16_512, 32)
EMU_PERMUTE(epi32, __m512i, emu_int32_512, emu_uint32_512, 16)
EMU_PERMUTE(epi64, __m512i, emu_int64_512, emu_uint64_512, 8)

/* Four 128-bit parts: two of a, then two of b, chosen by two bits each. */
AIMO_INLINE __m512i emu_mm512_shuffle_i32x4(__m512i a, __m512i b, int imm)
{
    __m512i result = a;
    for (int i = 0; i < 4; i++)
        result = emu_mm512_inserti32x4(
            result, emu_mm512_extracti32x4_epi32(i < 2 ? a : b, imm >> 2 * i & 3), i);
    return result;
}
AIMO_INLINE __m512i emu_mm512_shuffle_i64x2(__m512i a, __m512i b, int imm)
{
    return emu_mm512_shuffle_i32x4(a, b, imm);
}
AIMO_INLINE __m512 emu_mm512_shuffle_f32x4(__m512 a, __m512 b, int imm)
{
    return (__m512)emu_mm512_shuffle_i32x4((__m512i)a, (__m512i)b, imm);
}
/* Lanes count .. count + 15 of b followed by a. */
AIMO_INLINE __m512i emu_mm512_alignr_epi32(__m512i a, __m512i b, int count)
{
    const emu_int32_512 x = (emu_int32_512)a, y = (emu_int32_512)b;
    emu_int32_512 result;
    for (int i = 0; i < 16; i++) {
        const int at = i + (count & 15);
        result[i] = at < 16 ? y[at] : x[at - 16];
    }
    return (__m512i)result;
}

/* --- Conversions ------------------------------------------------------------------------------ */

AIMO_INLINE __m512 emu_mm512_cvtph_ps(__m256i a)
{
    return emu_join_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(a)),
                       _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1)));
}
#define emu_mm512_cvtps_ph(a, rounding)                                                            \
    __extension__({                                                                                \
        const __m512 emu_p = (a);                                                                  \
        _mm256_set_m128i(_mm256_cvtps_ph(emu_high_ps(emu_p), (rounding)&7),                        \
                         _mm256_cvtps_ph(emu_low_ps(emu_p), (rounding)&7));                        \
    })
AIMO_INLINE __m512i emu_mm512_cvtps_epi32(__m512 a)
{
    return emu_join_si(_mm256_cvtps_epi32(emu_low_ps(a)), _mm256_cvtps_epi32(emu_high_ps(a)));
}
AIMO_INLINE __m512i emu_mm512_cvttps_epi32(__m512 a)
{
    return emu_join_si(_mm256_cvttps_epi32(emu_low_ps(a)), _mm256_cvttps_epi32(emu_high_ps(a)));
}
AIMO_INLINE __m512 emu_mm512_cvtepi32_ps(__m512i a)
{
    return emu_join_ps(_mm256_cvtepi32_ps(emu_low_si(a)), _mm256_cvtepi32_ps(emu_high_si(a)));
}
AIMO_INLINE __m512d emu_mm512_cvtps_pd(__m256 a)
{
    return emu_join_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(a)),
                       _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)));
}
AIMO_INLINE __m256 emu_mm512_cvtpd_ps(__m512d a)
{
    return _mm256_set_m128(_mm256_cvtpd_ps(emu_high_pd(a)), _mm256_cvtpd_ps(emu_low_pd(a)));
}
AIMO_INLINE __m512d emu_mm512_cvtepi32_pd(__m256i a)
{
    return emu_join_pd(_mm256_cvtepi32_pd(_mm256_castsi256_si128(a)),
                       _mm256_cvtepi32_pd(_mm256_extracti128_si256(a, 1)));
}
AIMO_INLINE __m256i emu_mm512_cvtpd_epi32(__m512d a)
{
    return _mm256_set_m128i(_mm256_cvtpd_epi32(emu_high_pd(a)), _mm256_cvtpd_epi32(emu_low_pd(a)));
}
EMU_MASKED_1(ps, __mmask16, ps, cvtph_ps, __m256i)
EMU_MASKED_1(si, __mmask16, epi32, cvtps_epi32, __m512)
EMU_MASKED_1(ps, __mmask16, ps, cvtepi32_ps, __m512i)

/* Lane i of the result is lane i of a, as C converts it: widened, or cut to its low bits. */
#define EMU_CONVERT(prefix, name, from, from_vector, to, to_vector, to_lanes)                      \
    AIMO_INLINE to emu_##prefix##_cvt##name(from a)                                                \
    {                                                                                              \
        const from_vector x = (from_vector)a;                                                      \
        to_vector result = {0};                                                                    \
        for (int i = 0; i < to_lanes; i++)                                                         \
            result[i] = (__typeof__(result[0]))x[i];                                               \
        return (to)result;                                                                         \
    }
EMU_CONVERT(mm512, epu32_ps, __m512i, emu_uint32_512, __m512, emu_f32_512, 16)
EMU_CONVERT(mm512, epi64_pd, __m512i, emu_int64_512, __m512d, emu_f64_512, 8)
EMU_CONVERT(mm512, epi8_epi16, __m256i, emu_int8_256, __m512i, emu_int16_512, 32)
EMU_CONVERT(mm512, epu8_epi16, __m256i, emu_uint8_256, __m512i, emu_int16_512, 32)
EMU_CONVERT(mm512, epi8_epi32, __m128i, emu_int8_128, __m512i, emu_int32_512, 16)
EMU_CONVERT(mm512, epu8_epi32, __m128i, emu_uint8_128, __m512i, emu_int32_512, 16)
EMU_CONVERT(mm512, epi16_epi32, __m256i, emu_int16_256, __m512i, emu_int32_512, 16)
EMU_CONVERT(mm512, epu16_epi32, __m256i, emu_uint16_256, __m512i, emu_int32_512, 16)
EMU_CONVERT(mm512, epi32_epi64, __m256i, emu_int32_256, __m512i, emu_int64_512, 8)
EMU_CONVERT(mm512, epu32_epi64, __m256i, emu_uint32_256, __m512i, emu_int64_512, 8)
EMU_CONVERT(mm512, epi16_epi8, __m512i, emu_uint16_512, __m256i, emu_uint8_256, 32)
EMU_CONVERT(mm512, epi32_epi16, __m512i, emu_uint32_512, __m256i, emu_uint16_256, 16)
EMU_CONVERT(mm512, epi32_epi8, __m512i, emu_uint32_512, __m128i, emu_uint8_128, 16)
EMU_CONVERT(mm512, epi64_epi32, __m512i, emu_uint64_512, __m256i, emu_uint32_256, 8)
EMU_CONVERT(mm256, epi16_epi8, __m256i, emu_uint16_256, __m128i, emu_uint8_128, 16)
EMU_CONVERT(mm256, epi32_epi16, __m256i, emu_uint32_256, __m128i, emu_uint16_128, 8)
EMU_CONVERT(mm256, epi32_epi8, __m256i, emu_uint32_256, __m128i, emu_uint8_128, 8)
EMU_MASKED_1(si, __mmask16, epi32, cvtepi8_epi32, __m128i)
EMU_MASKED_1(si, __mmask16, epi32, cvtepu8_epi32, __m128i)
EMU_MASKED_1(si, __mmask16, epi32, cvtepi16_epi32, __m256i)
EMU_MASKED_1(si, __mmask16, epi32, cvtepu16_epi32, __m256i)

/* The same, held to the range of the result. */
#define EMU_SATURATE(prefix, name, from, from_vector, to, to_vector, to_lanes, low, high)          \
    AIMO_INLINE to emu_##prefix##_cvt##name(from a)                                                \
    {                                                                                              \
        const from_vector x = (from_vector)a;                                                      \
        to_vector result = {0};                                                                    \
        for (int i = 0; i < to_lanes; i++)                                                         \
            result[i] = x[i] < low ? low : x[i] > high ? high : (__typeof__(result[0]))x[i];       \
        return (to)result;                                                                         \
    }
EMU_SATURATE(mm512, sepi16_epi8, __m512i, emu_int16_512, __m256i, emu_int8_256, 32, -128, 127)
EMU_SATURATE(mm512, sepi32_epi8, __m512i, emu_int32_512, __m128i, emu_int8_128, 16, -128, 127)
EMU_SATURATE(mm512, sepi32_epi16, __m512i, emu_int32_512, __m256i, emu_int16_256, 16, -32768, 32767)
EMU_SATURATE(mm256, sepi32_epi8, __m256i, emu_int32_256, __m128i, emu_int8_128, 8, -128, 127)
EMU_SATURATE(mm256, sepi32_epi16, __m256i, emu_int32_256, __m128i, emu_int16_128, 8, -32768, 32767)
#define EMU_SATURATE_UNSIGNED(prefix, name, from, from_vector, to, to_vector, to_lanes, high)      \
    AIMO_INLINE to emu_##prefix##_cvt##name(from a)                                                \
    {                                                                                              \
        const from_vector x = (from_vector)a;                                                      \
        to_vector result = {0};                                                                    \
        for (int i = 0; i < to_lanes; i++)                                                         \
            result[i] = x[i] > high ? high : (__typeof__(result[0]))x[i];                          \
        return (to)result;                                                                         \
    }
EMU_SATURATE_UNSIGNED(mm512, usepi16_epi8, __m512i, emu_uint16_512, __m256i, emu_uint8_256, 32, 255)
EMU_SATURATE_UNSIGNED(mm512, usepi32_epi8, __m512i, emu_uint32_512, __m128i, emu_uint8_128, 16, 255)
EMU_SATURATE_UNSIGNED(mm512, usepi32_epi16, __m512i, emu_uint32_512, __m256i, emu_uint16_256, 16,
                      65535)

AIMO_INLINE void emu_mm512_mask_cvtepi32_storeu_epi16(void *p, __mmask16 m, __m512i a)
{
    emu_mm256_mask_storeu_epi16(p, m, emu_mm512_cvtepi32_epi16(a));
}
AIMO_INLINE void emu_mm512_mask_cvtepi32_storeu_epi8(void *p, __mmask16 m, __m512i a)
{
    emu_mm_mask_storeu_epi8(p, m, emu_mm512_cvtepi32_epi8(a));
}
AIMO_INLINE void emu_mm512_mask_cvtsepi32_storeu_epi8(void *p, __mmask16 m, __m512i a)
{
    emu_mm_mask_storeu_epi8(p, m, emu_mm512_cvtsepi32_epi8(a));
}

/* --- Sums and extremes over the lanes, in the order of the compilers' own sequences ----------- */

#define EMU_REDUCE(name, op, t, suffix, vector, lane, lanes)                                       \
    AIMO_INLINE lane emu_mm512_reduce_##name##_##suffix(emu_##t a)                                 \
    {                                                                                              \
        vector x = (vector)a;                                                                      \
        for (int half = lanes / 2; half > 0; half /= 2)                                            \
            for (int i = 0; i < half; i++)                                                         \
                x[i] = op(x[i], x[i + half]);                                                      \
        return x[0];                                                                               \
    }
#define EMU_ADD(a, b) ((a) + (b))
#define EMU_MIN(a, b) ((a) < (b) ? (a) : (b))
#define EMU_MAX(a, b) ((a) > (b) ? (a) : (b))
EMU_REDUCE(add, EMU_ADD, ps, ps, emu_f32_512, float, 16)
EMU_REDUCE(min, EMU_MIN, ps, ps, emu_f32_512, float, 16)
EMU_REDUCE(max, EMU_MAX, ps, ps, emu_f32_512, float, 16)
EMU_REDUCE(add, EMU_ADD, pd, pd, emu_f64_512, double, 8)
EMU_REDUCE(min, EMU_MIN, pd, pd, emu_f64_512, double, 8)
EMU_REDUCE(max, EMU_MAX, pd, pd, emu_f64_512, double, 8)
EMU_REDUCE(add, EMU_ADD, si, epi32, emu_uint32_512, int, 16)
EMU_REDUCE(min, EMU_MIN, si, epi32, emu_int32_512, int, 16)
EMU_REDUCE(max, EMU_MAX, si, epi32, emu_int32_512, int, 16)
EMU_REDUCE(min, EMU_MIN, si, epu32, emu_uint32_512, unsigned, 16)
EMU_REDUCE(max, EMU_MAX, si, epu32, emu_uint32_512, unsigned, 16)
EMU_REDUCE(add, EMU_ADD, si, epi64, emu_uint64_512, long long, 8)
EMU_REDUCE(min, EMU_MIN, si, epi64, emu_int64_512, long long, 8)
EMU_REDUCE(max, EMU_MAX, si, epi64, emu_int64_512, long long, 8)

AIMO_INLINE float emu_mm512_mask_reduce_add_ps(__mmask16 m, __m512 a)
{
    return emu_mm512_reduce_add_ps(emu_mm512_maskz_mov_ps(m, a));
}
AIMO_INLINE float emu_mm512_mask_reduce_max_ps(__mmask16 m, __m512 a)
{
    const __m512 lowest = emu_mm512_set1_ps(-INFINITY);
    return emu_mm512_reduce_max_ps(emu_mm512_mask_mov_ps(lowest, m, a));
}
AIMO_INLINE int emu_mm512_mask_reduce_add_epi32(__mmask16 m, __m512i a)
{
    return emu_mm512_reduce_add_epi32(emu_mm512_maskz_mov_epi32(m, a));
}

/* --- VNNI ------------------------------------------------------------------------------------- */

/* src + the four products of unsigned a and signed b in each 32-bit lane, wrapping. Even and odd
 * bytes apart, so that nothing saturates as vpmaddubsw does. */
AIMO_INLINE __m256i emu_mm256_dpbusd_epi32(__m256i src, __m256i a, __m256i b)
{
    const __m256i a_even = _mm256_and_si256(a, _mm256_set1_epi16(0xff));
    const __m256i b_even = _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8);
    const __m256i even = _mm256_madd_epi16(a_even, b_even);
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8));
    return _mm256_add_epi32(src, _mm256_add_epi32(even, odd));
}
AIMO_INLINE __m128i emu_mm_dpbusd_epi32(__m128i src, __m128i a, __m128i b)
{
    return _mm256_castsi256_si128(emu_mm256_dpbusd_epi32(
        _mm256_set_m128i(src, src), _mm256_set_m128i(a, a), _mm256_set_m128i(b, b)));
}
AIMO_INLINE __m512i emu_mm512_dpbusd_epi32(__m512i src, __m512i a, __m512i b)
{
    return emu_join_si(emu_mm256_dpbusd_epi32(emu_low_si(src), emu_low_si(a), emu_low_si(b)),
                       emu_mm256_dpbusd_epi32(emu_high_si(src), emu_high_si(a), emu_high_si(b)));
}
AIMO_INLINE __m512i emu_mm512_dpwssd_epi32(__m512i src, __m512i a, __m512i b)
{
    return emu_mm512_add_epi32(src, emu_mm512_madd_epi16(a, b));
}
/* The exact sum, held to the range of int32. */
AIMO_INLINE __m512i emu_mm512_dpbusds_epi32(__m512i src, __m512i a, __m512i b)
{
    const emu_uint8_512 x = (emu_uint8_512)a;
    const emu_int8_512 y = (emu_int8_512)b;
    emu_int32_512 result = (emu_int32_512)src;
    for (int i = 0; i < 16; i++) {
        int64_t sum = result[i];
        for (int j = 4 * i; j < 4 * i + 4; j++)
            sum += (int32_t)x[j] * (int32_t)y[j];
        result[i] = (int32_t)EMU_MIN(EMU_MAX(sum, INT32_MIN), INT32_MAX);
    }
    return (__m512i)result;
}
EMU_MASKED_FMA(si, __mmask16, epi32, dpbusd_epi32)

/* --- bf16: rounds to nearest even, flushes subnormals, adds the odd product before the even ----
 */

AIMO_INLINE float emu_flush(float x) { return fabsf(x) < 0x1p-126f ? 0.0f : x; }
AIMO_INLINE float emu_bf16_value(uint16_t bits)
{
    const uint32_t wide = (uint32_t)bits << 16;
    float x;
    memcpy(&x, &wide, sizeof x);
    return emu_flush(x);
}
AIMO_INLINE __m256bh emu_mm512_cvtneps_pbh(__m512 a)
{
    emu_uint16_256 result;
    for (int i = 0; i < 16; i++) {
        uint32_t bits;
        const float x = ((emu_f32_512)a)[i], flushed = x != x ? x : emu_flush(x);
        memcpy(&bits, &flushed, sizeof bits);
        bits = x != x ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1);
        result[i] = (uint16_t)(bits >> 16);
    }
    return (__m256bh)result;
}
AIMO_INLINE __m512 emu_mm512_dpbf16_ps(__m512 src, __m512bh a, __m512bh b)
{
    const emu_uint16_512 x = (emu_uint16_512)a, y = (emu_uint16_512)b;
    emu_f32_512 result = (emu_f32_512)src;
    for (int i = 0; i < 16; i++)
        for (int j = 2 * i + 1; j >= 2 * i; j--)
            result[i] = emu_flush(fmaf(emu_bf16_value(x[j]), emu_bf16_value(y[j]), result[i]));
    return (__m512)result;
}

AIMO_TARGET_END

#include "emulated_avx512_names.h"

#endif
