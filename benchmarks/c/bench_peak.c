/* The peak of one core: the rate of each row's multiplying instruction with everything in
 * registers. Prints one line of JSON, operations per second (two for each product and sum).
 *
 *   cc -O3 benchmarks/c/bench_peak.c -o bench_peak && ./bench_peak
 *
 * Self-contained, so that bench_roofline.py can compile it anywhere. */
#define _DEFAULT_SOURCE
#include <stdio.h>
#include <string.h>
#include <time.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

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

/* Defines a function that measures the best rate of `instruction` on `sums` independent chains. */
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

/* Products of four pairs of whole tiles, which share their factors; a product takes 52 cycles and
 * four are in flight. */
#define TILE_PEAK(name, isa, operations, instruction)                                              \
    __attribute__((target("amx-tile," isa))) static double name(void)                              \
    {                                                                                              \
        double best = 1e9;                                                                         \
        for (int round = 0; round < ROUNDS; round++) {                                             \
            const double begin = seconds();                                                        \
            for (int step = 0; step < STEPS; step++) {                                             \
                instruction(0, 4, 6);                                                              \
                instruction(1, 4, 7);                                                              \
                instruction(2, 5, 6);                                                              \
                instruction(3, 5, 7);                                                              \
            }                                                                                      \
            const double took = seconds() - begin;                                                 \
            best = took < best ? took : best;                                                      \
        }                                                                                          \
        return (double)STEPS * 4 * operations / best;                                              \
    }

TILE_PEAK(bf16_amx, "amx-bf16", 16 * 16 * 32 * 2, _tile_dpbf16ps)
TILE_PEAK(int8_amx, "amx-int8", 16 * 16 * 64 * 2, _tile_dpbusd)

/* Whether the CPU has AMX tiles and the system grants them; if so, configures all eight as whole
 * tiles of zeros. */
__attribute__((target("amx-tile"))) static int tiles_begin(void)
{
    enum {
        LEAF = 7,
        TILE_BITS = 1 << 24 | 1 << 22 | 1 << 25,
        REQUEST_PERMISSION = 0x1023,
        DATA = 18
    };
    unsigned a, b, c, d;
    if (!__get_cpuid_count(LEAF, 0, &a, &b, &c, &d) || (d & TILE_BITS) != TILE_BITS ||
        syscall(SYS_arch_prctl, REQUEST_PERMISSION, DATA) != 0)
        return 0;
    struct {
        unsigned char palette, start, reserved[14];
        unsigned short row_bytes[16];
        unsigned char rows[16];
    } shapes = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shapes.row_bytes[i] = 64;
        shapes.rows[i] = 16;
    }
    __asm__ volatile("" : : "r"(&shapes) : "memory");
    _tile_loadconfig(&shapes);
    return 1;
}

__attribute__((target("amx-tile"))) static void tiles_end(void) { _tile_release(); }

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
    if (tiles_begin()) {
        printf(", \"bf16 amx\": %.4g", bf16_amx());
        printf(", \"int8 amx\": %.4g", int8_amx());
        tiles_end();
    }
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
