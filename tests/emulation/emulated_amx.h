/* AMX tiles, bf16 and int8, for a machine that has AVX2: palette 1 as Intel's manual defines it
 * (volume 1, chapter 18; volume 2, LDTILECFG to TILEZERO), in plain loops.
 *
 * On the processor a wrong use is an exception; here it names itself on stderr and aborts: tiles
 * before LDTILECFG, a palette, shape or reserved byte that is not allowed, operands whose shapes do
 * not fit each other. What the configuration leaves out of a tile is zero, as there. The state
 * belongs to the thread and is one for all source files, so that tests can look at it. */
#ifndef AIMO_EMULATED_AMX_H
#define AIMO_EMULATED_AMX_H

#include "base/platform.h"

#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EMU_TILES = 8, EMU_TILE_ROWS = 16, EMU_ROW_BYTES = 64 };

typedef struct {
    uint8_t palette; /* 0: not configured */
    uint8_t rows[EMU_TILES];
    uint16_t row_bytes[EMU_TILES];
    uint8_t data[EMU_TILES][EMU_TILE_ROWS][EMU_ROW_BYTES];
} emu_tile_state;

/* Weak: every file that includes this defines it, and the linker keeps one. */
extern __attribute__((weak)) _Thread_local emu_tile_state emu_tiles;
__attribute__((weak)) _Thread_local emu_tile_state emu_tiles;

#define EMU_TILE_CHECK(condition)                                                                  \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s: #UD or #GP, not so: %s\n", __func__, #condition);                 \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* --- Configuration ---------------------------------------------------------------------------- */

AIMO_INLINE void emu_tile_release(void) { memset(&emu_tiles, 0, sizeof emu_tiles); }

/* 64 bytes: palette, start row, 14 reserved, 16 row lengths of 2 bytes, 16 numbers of rows. */
AIMO_INLINE void emu_tile_loadconfig(const void *config)
{
    uint8_t bytes[64];
    uint16_t row_bytes[16];
    memcpy(bytes, config, sizeof bytes);
    memcpy(row_bytes, bytes + 16, sizeof row_bytes);
    const uint8_t *rows = bytes + 48;
    emu_tile_release();
    if (bytes[0] == 0)
        return;
    EMU_TILE_CHECK(bytes[0] == 1);
    for (int i = 1; i < 16; i++)
        EMU_TILE_CHECK(bytes[i] == 0);
    for (int t = 0; t < 16; t++) {
        EMU_TILE_CHECK(rows[t] <= EMU_TILE_ROWS && row_bytes[t] <= EMU_ROW_BYTES);
        EMU_TILE_CHECK((rows[t] == 0) == (row_bytes[t] == 0));
        EMU_TILE_CHECK(t < EMU_TILES || rows[t] == 0);
    }
    emu_tiles.palette = 1;
    memcpy(emu_tiles.rows, rows, sizeof emu_tiles.rows);
    memcpy(emu_tiles.row_bytes, row_bytes, sizeof emu_tiles.row_bytes);
}

#define EMU_TILE_CHECK_CONFIGURED(t)                                                               \
    EMU_TILE_CHECK(emu_tiles.palette == 1 && (t) >= 0 && (t) < EMU_TILES && emu_tiles.rows[t] != 0)

/* --- Rows in and out -------------------------------------------------------------------------- */

AIMO_INLINE void emu_tile_zero(int t)
{
    EMU_TILE_CHECK_CONFIGURED(t);
    memset(emu_tiles.data[t], 0, sizeof emu_tiles.data[t]);
}

AIMO_INLINE void emu_tile_loadd(int t, const void *base, size_t stride)
{
    emu_tile_zero(t);
    for (size_t row = 0; row < emu_tiles.rows[t]; row++)
        memcpy(emu_tiles.data[t][row], (const char *)base + row * stride, emu_tiles.row_bytes[t]);
}

AIMO_INLINE void emu_tile_stored(int t, void *base, size_t stride)
{
    EMU_TILE_CHECK_CONFIGURED(t);
    for (size_t row = 0; row < emu_tiles.rows[t]; row++)
        memcpy((char *)base + row * stride, emu_tiles.data[t][row], emu_tiles.row_bytes[t]);
}

/* --- Products --------------------------------------------------------------------------------- */

AIMO_INLINE void emu_tile_check_product(int c, int a, int b)
{
    EMU_TILE_CHECK_CONFIGURED(c);
    EMU_TILE_CHECK_CONFIGURED(a);
    EMU_TILE_CHECK_CONFIGURED(b);
    EMU_TILE_CHECK(c != a && c != b && a != b);
    EMU_TILE_CHECK(emu_tiles.row_bytes[c] % 4 == 0 && emu_tiles.row_bytes[a] % 4 == 0);
    EMU_TILE_CHECK(emu_tiles.rows[c] == emu_tiles.rows[a]);
    EMU_TILE_CHECK(emu_tiles.row_bytes[c] == emu_tiles.row_bytes[b]);
    EMU_TILE_CHECK(emu_tiles.row_bytes[a] == 4 * emu_tiles.rows[b]);
}

/* Whether the bytes of either factor are signed is a constant at every call. */
AIMO_INLINE void emu_tile_dot_bytes(int c, int a, int b, int a_signed, int b_signed)
{
    emu_tile_check_product(c, a, b);
    for (size_t m = 0; m < emu_tiles.rows[c]; m++) {
        int32_t sums[EMU_ROW_BYTES / 4];
        memcpy(sums, emu_tiles.data[c][m], sizeof sums);
        for (size_t k = 0; k < emu_tiles.rows[b]; k++) {
            for (size_t n = 0; n < emu_tiles.row_bytes[c] / 4u; n++)
                for (size_t i = 0; i < 4; i++) {
                    const uint8_t x = emu_tiles.data[a][m][4 * k + i];
                    const uint8_t y = emu_tiles.data[b][k][4 * n + i];
                    const int32_t product = (a_signed ? (int8_t)x : x) * (b_signed ? (int8_t)y : y);
                    sums[n] = (int32_t)((uint32_t)sums[n] + (uint32_t)product); /* wraps */
                }
        }
        memcpy(emu_tiles.data[c][m], sums, sizeof sums);
    }
}

AIMO_INLINE void emu_tile_dpbssd(int c, int a, int b) { emu_tile_dot_bytes(c, a, b, 1, 1); }
AIMO_INLINE void emu_tile_dpbsud(int c, int a, int b) { emu_tile_dot_bytes(c, a, b, 1, 0); }
AIMO_INLINE void emu_tile_dpbusd(int c, int a, int b) { emu_tile_dot_bytes(c, a, b, 0, 1); }
AIMO_INLINE void emu_tile_dpbuud(int c, int a, int b) { emu_tile_dot_bytes(c, a, b, 0, 0); }

AIMO_TARGET_BEGIN("avx2,fma,f16c")

/* The even and the odd elements of k are summed apart over the tile, each product fused with its
 * sum, then both and the old sum are added; as the caller's MXCSR says. */
static __attribute__((noinline, unused)) void emu_tile_dot_bf16(int c, int a, int b)
{
    const size_t bytes = emu_tiles.row_bytes[c];
    const __m256i odd_half = _mm256_set1_epi32((int)0xffff0000);
    for (size_t m = 0; m < emu_tiles.rows[c]; m++) {
        float sums[EMU_ROW_BYTES / 4];
        memcpy(sums, emu_tiles.data[c][m], sizeof sums);
        for (size_t half = 0; half < 2; half++) {
            __m256 even = _mm256_setzero_ps(), odd = _mm256_setzero_ps();
            for (size_t k = 0; k < emu_tiles.rows[b]; k++) {
                int32_t pair;
                memcpy(&pair, emu_tiles.data[a][m] + 4 * k, sizeof pair);
                const __m256i x = _mm256_set1_epi32(pair);
                const __m256i y = _mm256_loadu_si256(
                    (const __m256i *)(const void *)(emu_tiles.data[b][k] + 32 * half));
                even = _mm256_fmadd_ps((__m256)_mm256_slli_epi32(x, 16),
                                       (__m256)_mm256_slli_epi32(y, 16), even);
                odd = _mm256_fmadd_ps((__m256)_mm256_and_si256(x, odd_half),
                                      (__m256)_mm256_and_si256(y, odd_half), odd);
            }
            _mm256_storeu_ps(sums + 8 * half, _mm256_add_ps(_mm256_loadu_ps(sums + 8 * half),
                                                            _mm256_add_ps(even, odd)));
        }
        memcpy(emu_tiles.data[c][m], sums, bytes);
    }
}

/* TDPBF16PS rounds to nearest even, takes subnormals for zero and gives none, whatever MXCSR says;
 * so MXCSR is made to say that. */
AIMO_INLINE void emu_tile_dpbf16ps(int c, int a, int b)
{
    const unsigned before = _mm_getcsr(), masked = 0x1f80, flush_and_zero = 0x8040;
    emu_tile_check_product(c, a, b);
    _mm_setcsr(masked | flush_and_zero);
    emu_tile_dot_bf16(c, a, b);
    _mm_setcsr(before);
}

AIMO_TARGET_END

/* --- The intrinsics' names -------------------------------------------------------------------- */

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#undef _tile_dpbsud
#undef _tile_dpbusd
#undef _tile_dpbuud
#define _tile_loadconfig emu_tile_loadconfig
#define _tile_release emu_tile_release
#define _tile_loadd emu_tile_loadd
#define _tile_stored emu_tile_stored
#define _tile_zero emu_tile_zero
#define _tile_dpbf16ps emu_tile_dpbf16ps
#define _tile_dpbssd emu_tile_dpbssd
#define _tile_dpbsud emu_tile_dpbsud
#define _tile_dpbusd emu_tile_dpbusd
#define _tile_dpbuud emu_tile_dpbuud

#endif
