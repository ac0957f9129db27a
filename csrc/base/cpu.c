/* CPU features from CPUID and XCR0: a feature counts only when the operating system saves its
 * registers. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "base/cpu.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if AIMO_X86_64
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

static const struct {
    const char *name;
    unsigned features;
} rows[] = {
    {"scalar", AIMO_CPU_SCALAR},
    {"avx2", AIMO_CPU_AVX2},
    {"avx512", AIMO_CPU_AVX2 | AIMO_CPU_AVX512},
    {"avx512_vnni", AIMO_CPU_AVX2 | AIMO_CPU_AVX512 | AIMO_CPU_AVX512_VNNI},
    {"avx512_bf16", AIMO_CPU_AVX2 | AIMO_CPU_AVX512 | AIMO_CPU_AVX512_VNNI | AIMO_CPU_AVX512_BF16},
    {"amx", AIMO_CPU_AVX2 | AIMO_CPU_AVX512 | AIMO_CPU_AVX512_VNNI | AIMO_CPU_AMX},
    {"neon", AIMO_CPU_NEON},
};
enum { ROW_COUNT = sizeof rows / sizeof rows[0] };

/* Written once by aimo_cpu_init, before any other thread calls the library. */
static unsigned available;
static size_t selected;

#if AIMO_X86_64
static uint64_t read_xcr0(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

/* Linux gives the 8 KiB of tile registers only to processes that ask (arch_prctl, since 5.16). Any
 * refusal (old kernel, seccomp, a small sigaltstack) counts as not having AMX. */
static bool tile_permission(void)
{
#if defined(__linux__) && defined(SYS_arch_prctl)
    const long request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}

static bool all_bits(uint64_t value, uint64_t bits) { return (value & bits) == bits; }

static bool has_avx512_bf16(void)
{
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && all_bits(a, 1u << 5);
}

/* Whether VDPBF16PS runs at twice the rate of f32 FMA, as it does on AMD's processors. Intel's run
 * it at half the rate, having AMX for the purpose; the test is for the vendor because a virtual
 * machine may hide AMX, but not the vendor. */
static bool fast_bf16(void)
{
    unsigned a, b, c, d;
    char vendor[13] = {0};
    if (!__get_cpuid(0, &a, &b, &c, &d))
        return false;
    memcpy(vendor, &b, 4);
    memcpy(vendor + 4, &d, 4);
    memcpy(vendor + 8, &c, 4);
    return strcmp(vendor, "AuthenticAMD") == 0 && has_avx512_bf16();
}

/* The tiles that the kernels are written for: palette 1, eight tiles of 16 rows of 64 bytes. They
 * also round to bf16 with AVX-512 instructions, which every processor with AMX has. */
static bool tiles_fit(void)
{
    unsigned a, b, c, d;
    const unsigned tiles = 8, row_bytes = 64, tile_rows = 16;
    return __get_cpuid_count(0x1d, 1, &a, &b, &c, &d) && b == (tiles << 16 | row_bytes) &&
           (c & 0xffff) == tile_rows && has_avx512_bf16();
}

static unsigned detect(bool may_ask_for_tiles)
{
    const unsigned osxsave = 1u << 27, fma = 1u << 12, f16c = 1u << 29, avx = 1u << 28;
    const unsigned avx2 = 1u << 5, avx512_f_dq_bw_vl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
    const unsigned vnni = 1u << 11, amx_bf16_tile_int8 = 1u << 22 | 1u << 24 | 1u << 25;
    const uint64_t ymm_state = 0x6, zmm_state = 0xe6, tile_state = 0x60000;

    unsigned a, b, c, d, leaf7_b, leaf7_c, leaf7_d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !all_bits(c, osxsave | fma | f16c | avx))
        return AIMO_CPU_SCALAR;
    const uint64_t xcr0 = read_xcr0();
    if (!__get_cpuid_count(7, 0, &a, &leaf7_b, &leaf7_c, &leaf7_d) || !all_bits(leaf7_b, avx2) ||
        !all_bits(xcr0, ymm_state))
        return AIMO_CPU_SCALAR;
#if defined(AIMO_EMULATE_ISA)
    return AIMO_CPU_AVX2 | AIMO_CPU_AVX512 | AIMO_CPU_AVX512_VNNI | AIMO_CPU_AVX512_BF16 |
           AIMO_CPU_AMX;
#endif
    unsigned features = AIMO_CPU_AVX2;
    if (!all_bits(leaf7_b, avx512_f_dq_bw_vl) || !all_bits(xcr0, zmm_state))
        return features;
    features |= AIMO_CPU_AVX512;
    if (!all_bits(leaf7_c, vnni))
        return features;
    features |= AIMO_CPU_AVX512_VNNI;
    if (fast_bf16())
        features |= AIMO_CPU_AVX512_BF16;
    if (all_bits(leaf7_d, amx_bf16_tile_int8) && all_bits(xcr0, tile_state) && tiles_fit() &&
        may_ask_for_tiles && tile_permission())
        features |= AIMO_CPU_AMX;
    return features;
}
#else
static unsigned detect(bool may_ask_for_tiles)
{
    (void)may_ask_for_tiles;
    return AIMO_AARCH64 ? AIMO_CPU_NEON : AIMO_CPU_SCALAR;
}
#endif

static size_t strongest_row(void)
{
    size_t best = 0;
    for (size_t i = 0; i < ROW_COUNT; i++)
        if ((rows[i].features & ~available) == 0)
            best = i;
    return best;
}

aimo_status aimo_cpu_init(aimo_error *err)
{
    const char *wanted = getenv("AIMO_CPU");
    const bool chosen = wanted != NULL && wanted[0] != '\0';
    available = detect(!chosen || strcmp(wanted, "amx") == 0);
    selected = strongest_row();
    if (!chosen)
        return AIMO_OK;
    for (size_t i = 0; i < ROW_COUNT; i++) {
        if (strcmp(wanted, rows[i].name) != 0)
            continue;
        if ((rows[i].features & ~available) != 0)
            return aimo_fail(err, AIMO_ERR_UNSUPPORTED,
                             "AIMO_CPU=%s: this machine offers nothing above %s", wanted,
                             rows[selected].name);
        selected = i;
        return AIMO_OK;
    }
    return aimo_fail(
        err, AIMO_ERR_ARGUMENT,
        "AIMO_CPU=%s: expected scalar, avx2, avx512, avx512_vnni, avx512_bf16, amx or neon",
        wanted);
}

unsigned aimo_cpu_enabled(void) { return rows[selected].features; }

unsigned aimo_cpu_available(void) { return available; }

const char *aimo_cpu_row(void) { return rows[selected].name; }

const char *aimo_cpu_row_name(size_t index) { return index < ROW_COUNT ? rows[index].name : NULL; }

unsigned aimo_cpu_row_features(size_t index) { return rows[index].features; }
