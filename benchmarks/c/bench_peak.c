/* What one core can do at most: the rate of each row's multiplying instruction with everything in
 * registers. Prints one line of JSON, operations per second (two for each product and sum).
 *
 *   cc -O3 benchmarks/c/bench_peak.c -o bench_peak && ./bench_peak
 *
 * Stands alone, so that bench_roofline.py can compile it anywhere. */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>

enum { STEPS = 4000, ROUNDS = 200 };

/* gcc keeps arrays of __m512i sums in memory, but these in registers. */
typedef int vi256 __attribute__((vector_size(32)));
typedef int vi512 __attribute__((vector_size(64)));

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Defines a function that gives the best rate of `instruction` on `sums` chains of one. */
#define PEAK(name, isa, sums, operations, vector, start, factor, instruction)                      \
    __attribute__((target(isa))) static double name(void)                                          \
    {                                                                                              \
        vector s[sums], a = factor, b = factor;                                                    \
        for (int i = 0; i < sums; i++)                                                             \
            s[i] = start;                                                                          \
        double best = 1e9;                                                                         \
        for (int round = 0; round < ROUNDS; round++) {                                             \
            const double begin = seconds();                                                        \
            for (int step = 0; step < STEPS; step++) {                                             \
                _Pragma("GCC unroll 24") for (int i = 0; i < sums; i++)                            \
                {                                                                                  \
                    s[i] = instruction;                                                            \
                    __asm__ volatile("" : "+v"(a), "+v"(b));                                       \
                }                                                                                  \
            }                                                                                      \
            const double took = seconds() - begin;                                                 \
            best = took < best ? took : best;                                                      \
        }                                                                                          \
        for (int i = 0; i < sums; i++)                                                             \
            __asm__ volatile("" : "+v"(s[i]));                                                     \
        return (double)STEPS * sums * operations / best;                                           \
    }

PEAK(fma_avx2, "avx2,fma", 12, 16, __m256, _mm256_setzero_ps(), _mm256_set1_ps(0.5f),
     _mm256_fmadd_ps(a, b, s[i]))
PEAK(int16_avx2, "avx2,fma", 12, 32, vi256, (vi256){0}, (vi256)_mm256_set1_epi16(3),
     s[i] + (vi256)_mm256_madd_epi16((__m256i)a, (__m256i)b))
PEAK(fma_avx512, "avx512f", 24, 32, __m512, _mm512_setzero_ps(), _mm512_set1_ps(0.5f),
     _mm512_fmadd_ps(a, b, s[i]))
PEAK(dot8_avx512, "avx512f,avx512vnni", 24, 128, vi512, (vi512){0}, (vi512)_mm512_set1_epi8(1),
     (vi512)_mm512_dpbusd_epi32((__m512i)s[i], (__m512i)a, (__m512i)b))
PEAK(bf16_avx512, "avx512f,avx512bf16", 24, 64, __m512, _mm512_setzero_ps(), _mm512_set1_ps(0.5f),
     _mm512_dpbf16_ps(s[i], (__m512bh)a, (__m512bh)b))

int main(void)
{
    printf("{\"f32 avx2\": %.4g", fma_avx2());
    printf(", \"int8 avx2\": %.4g", int16_avx2());
    if (__builtin_cpu_supports("avx512f"))
        printf(", \"f32 avx512\": %.4g", fma_avx512());
    if (__builtin_cpu_supports("avx512vnni"))
        printf(", \"int8 avx512_vnni\": %.4g", dot8_avx512());
    if (__builtin_cpu_supports("avx512bf16"))
        printf(", \"bf16 avx512_bf16\": %.4g", bf16_avx512());
    printf("}\n");
    return 0;
}

#else

int main(void)
{
    printf("{}\n");
    return 0;
}

#endif
