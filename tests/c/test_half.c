/* half: every row gives the scalar row's bits, and the scalar row is right. */
#include "test.h"

#include "base/memory.h"
#include "half/half.h"
#include "half/half_kernels.h"
#include "half/half_scalar.h"

#include <stdlib.h>
#include <string.h>

static bool row_runs(const aimo_half_kernels *row)
{
    if ((row->required & ~aimo_cpu_available()) == 0)
        return true;
    test_skip(row->isa);
    return false;
}

/* Interesting floats: every f16 as a float, its neighbours, the points halfway between two f16 or
 * two bf16, and their neighbours. */
static uint32_t interesting_bits(uint32_t index)
{
    const uint32_t anchor = aimo_f32_bits(aimo_f16_to_f32_one((uint16_t)index));
    static const int32_t offsets[] = {0, 1, -1, 0xfff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001};
    return anchor + (uint32_t)offsets[index / 65536];
}
enum { INTERESTING = 9 * 65536, CHUNK = 4096 };

TEST(half_round_trip_is_exact_for_all_bit_patterns)
{
    for (size_t r = 0; aimo_half_row(r) != NULL; r++) {
        const aimo_half_kernels *row = aimo_half_row(r);
        if (!row_runs(row))
            continue;
        static uint16_t halves[65536], back[65536];
        static float wide[65536];
        for (uint32_t i = 0; i < 65536; i++)
            halves[i] = (uint16_t)i;
        row->convert[AIMO_F16_TO_F32](halves, wide, 65536, false);
        row->convert[AIMO_F32_TO_F16](wide, back, 65536, false);
        for (uint32_t i = 0; i < 65536; i++) {
            const bool nan = (i & 0x7fff) > 0x7c00;
            CHECK_MSG(back[i] == (nan ? (i | 0x200) : i), "%s: f16 %04x came back as %04x",
                      row->isa, i, back[i]);
        }
        row->convert[AIMO_BF16_TO_F32](halves, wide, 65536, false);
        row->convert[AIMO_F32_TO_BF16](wide, back, 65536, false);
        for (uint32_t i = 0; i < 65536; i++) {
            const bool nan = (i & 0x7fff) > 0x7f80;
            CHECK_MSG(back[i] == (nan ? (i | 0x40) : i), "%s: bf16 %04x came back as %04x",
                      row->isa, i, back[i]);
        }
    }
}

TEST(half_rows_agree_with_scalar_on_interesting_floats)
{
    for (size_t r = 1; aimo_half_row(r) != NULL; r++) {
        const aimo_half_kernels *row = aimo_half_row(r);
        if (!row_runs(row))
            continue;
        for (uint32_t start = 0; start < INTERESTING; start += CHUNK) {
            float x[CHUNK];
            uint16_t expected[CHUNK], got[CHUNK];
            for (uint32_t i = 0; i < CHUNK; i++)
                x[i] = aimo_f32_from_bits(interesting_bits(start + i));
            aimo_f32_to_f16_scalar(x, expected, CHUNK, false);
            row->convert[AIMO_F32_TO_F16](x, got, CHUNK, false);
            CHECK_MSG(memcmp(got, expected, sizeof got) == 0, "%s: f16 near %u", row->isa, start);
            aimo_f32_to_bf16_scalar(x, expected, CHUNK, false);
            row->convert[AIMO_F32_TO_BF16](x, got, CHUNK, false);
            CHECK_MSG(memcmp(got, expected, sizeof got) == 0, "%s: bf16 near %u", row->isa, start);
        }
    }
}

TEST(half_rounding_follows_the_standard)
{
    static const struct {
        float x;
        uint16_t f16;
    } cases[] = {
        {0.0f, 0x0000},         {-0.0f, 0x8000},          {1.0f, 0x3c00},
        {65504.0f, 0x7bff},     {65519.996f, 0x7bff},     {65520.0f, 0x7c00},
        {-1e30f, 0xfc00},       {0x1p-24f, 0x0001},       {0x1p-25f, 0x0000},
        {0x1.8p-25f, 0x0001},   {0x1.8p-24f, 0x0002},     {0x1.ffcp-15f, 0x0400},
        {0x1.ff8p-15f, 0x03ff}, {1.00048828125f, 0x3c00}, {1.00146484375f, 0x3c02},
        {INFINITY, 0x7c00},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const uint16_t got = aimo_f32_to_f16_one(cases[i].x);
        CHECK_MSG(got == cases[i].f16, "%a became %04x, not %04x", (double)cases[i].x, got,
                  cases[i].f16);
    }
    CHECK(aimo_f32_to_bf16_one(aimo_f32_from_bits(0x7f7fffff)) == 0x7f80); /* overflow to inf */
    CHECK(aimo_f32_to_bf16_one(aimo_f32_from_bits(0x00000001)) == 0x0000);
    CHECK(aimo_f32_to_bf16_one(aimo_f32_from_bits(0x0000ffff)) == 0x0001); /* subnormal kept */
    CHECK(aimo_f32_to_bf16_one(aimo_f32_from_bits(0xff800001)) == 0xffc0); /* NaN, sign kept */
}

/* Between two halves, at the middle and one double beside it on either side: through f32 all three
 * would look like the middle. */
TEST(half_doubles_are_rounded_once)
{
    for (size_t r = 0; aimo_half_row(r) != NULL; r++) {
        const aimo_half_kernels *row = aimo_half_row(r);
        if (!row_runs(row))
            continue;
        for (uint32_t h = 0; h + 4 <= 0x7bff; h += 4) {
            double x[32];
            uint16_t got[32];
            for (uint32_t i = 0; i < 32; i++) {
                const uint16_t lower = (uint16_t)(h + i / 8);
                const double low = (double)aimo_f16_to_f32_one(lower);
                const double high = (double)aimo_f16_to_f32_one((uint16_t)(lower + 1));
                const double middle = (low + high) / 2;
                const double near[] = {middle, nextafter(middle, low), nextafter(middle, high),
                                       low};
                x[i] = i % 8 < 4 ? near[i % 4] : -near[i % 4];
            }
            row->convert[AIMO_F64_TO_F16](x, got, 32, false);
            for (uint32_t i = 0; i < 32; i++) {
                const uint32_t lower = h + i / 8, up[] = {lower % 2, 0, 1, 0};
                const uint32_t expected = (lower + up[i % 4]) | (i % 8 < 4 ? 0 : 0x8000);
                CHECK_MSG(got[i] == expected, "%s: %a became %04x, not %04x", row->isa, x[i],
                          got[i], expected);
            }
        }
    }
}

TEST(half_doubles_beyond_f32_become_infinite_zero_or_nan)
{
    static const double x[] = {1e300,  -1e300,  65520.0,  65519.999999999993,
                               1e-300, -5e-324, INFINITY, -INFINITY,
                               0.0,    -0.0,    0x1p-25,  0x1.0000000000001p-25};
    static const uint16_t expected[] = {0x7c00, 0xfc00, 0x7c00, 0x7bff, 0x0000, 0x8000,
                                        0x7c00, 0xfc00, 0x0000, 0x8000, 0x0000, 0x0001};
    enum { COUNT = sizeof x / sizeof x[0], REPEATED = 48 };
    for (size_t r = 0; aimo_half_row(r) != NULL; r++) {
        const aimo_half_kernels *row = aimo_half_row(r);
        if (!row_runs(row))
            continue;
        double many[REPEATED];
        uint16_t got[REPEATED];
        for (size_t i = 0; i < REPEATED; i++)
            many[i] = x[i % COUNT];
        row->convert[AIMO_F64_TO_F16](many, got, REPEATED, false);
        for (size_t i = 0; i < REPEATED; i++)
            CHECK_MSG(got[i] == expected[i % COUNT], "%s: %a became %04x, not %04x", row->isa,
                      many[i], got[i], expected[i % COUNT]);
        for (uint64_t sign = 0; sign < 2; sign++) {
            const uint64_t bits = sign << 63 | 0x7ff0000000000001ull; /* payload in the last bit */
            for (size_t i = 0; i < REPEATED; i++)
                memcpy(&many[i], &bits, sizeof bits);
            row->convert[AIMO_F64_TO_F16](many, got, REPEATED, false);
            for (size_t i = 0; i < REPEATED; i++)
                CHECK_MSG(got[i] == (sign << 15 | 0x7e00), "%s: NaN became %04x", row->isa, got[i]);
        }
    }
}

/* Every 4099th float; all of them with AIMO_TEST_ALL_FLOATS set, which takes minutes. */
TEST(half_rows_agree_with_scalar_over_the_floats)
{
    const uint64_t step = getenv("AIMO_TEST_ALL_FLOATS") != NULL ? 1 : 4099;
    for (size_t r = 1; aimo_half_row(r) != NULL; r++) {
        const aimo_half_kernels *row = aimo_half_row(r);
        if (!row_runs(row))
            continue;
        for (uint64_t bits = 0; bits < 1ull << 32;) {
            float x[CHUNK];
            uint16_t expected[CHUNK], got[CHUNK];
            size_t n = 0;
            for (; n < CHUNK && bits < 1ull << 32; n++, bits += step)
                x[n] = aimo_f32_from_bits((uint32_t)bits);
            for (int c = AIMO_F32_TO_F16; c <= AIMO_F32_TO_BF16; c += 2) {
                aimo_half_row(0)->convert[c](x, expected, n, false);
                row->convert[c](x, got, n, false);
                CHECK_MSG(memcmp(got, expected, n * sizeof got[0]) == 0,
                          "%s: conversion %d before %08x", row->isa, c, (unsigned)bits);
            }
        }
    }
}

/* Bytes that are small numbers in every one of the types. */
static void fill_source(void *src, size_t n, aimo_half_conversion conversion)
{
    for (size_t i = 0; i < n; i++) {
        const float x = (float)i - 33.25f;
        if (conversion == AIMO_F64_TO_F16)
            ((double *)src)[i] = (double)x;
        else if (conversion == AIMO_F16_TO_F32)
            ((uint16_t *)src)[i] = aimo_f32_to_f16_one(x);
        else if (conversion == AIMO_BF16_TO_F32)
            ((uint16_t *)src)[i] = aimo_f32_to_bf16_one(x);
        else
            ((float *)src)[i] = x;
    }
}

/* Lengths 0..67 at offsets 0..3, stored either way: every element is converted, and nothing is
 * written past the end. */
TEST(half_tails_are_converted_and_nothing_beyond)
{
    for (size_t r = 0; aimo_half_row(r) != NULL; r++) {
        const aimo_half_kernels *row = aimo_half_row(r);
        if (!row_runs(row))
            continue;
        for (int i = 0; i < AIMO_HALF_CONVERSIONS * 68 * 5; i++) {
            const aimo_half_conversion c = (aimo_half_conversion)(i % AIMO_HALF_CONVERSIONS);
            const size_t n = (size_t)i / AIMO_HALF_CONVERSIONS % 68, place = (size_t)i / 340;
            const bool stream = place == 4;
            const size_t offset = stream ? 0 : place, size = aimo_half_dst_size(c);
            _Alignas(64) double src[80];
            _Alignas(64) unsigned char got[80 * 4], expected[80 * 4];
            fill_source(src, 80, c);
            memset(got, 0xaa, sizeof got);
            memset(expected, 0xaa, sizeof expected);
            const char *from = (const char *)src + offset * aimo_half_src_size(c);
            for (size_t k = 0; k < n; k++)
                aimo_half_row(0)->convert[c](from + k * aimo_half_src_size(c),
                                             expected + (offset + k) * size, 1, false);
            row->convert[c](from, got + offset * size, n, stream);
            CHECK_MSG(memcmp(got, expected, sizeof got) == 0,
                      "%s: conversion %d, n %zu, offset %zu", row->isa, (int)c, n, offset);
        }
    }
}

/* Just below, at and above the sizes where threads and streaming begin, from any address. */
TEST(half_large_arrays_equal_their_elements)
{
    static const size_t sizes[] = {(1 << 18) - 1, (1 << 18) + 37, (6 << 20) + 77};
    const size_t most = sizes[2] + 8;
    void *src, *dst;
    CHECK(aimo_memory_new_zero(&src, most, 4, "src", NULL) == AIMO_OK);
    CHECK(aimo_memory_new_zero(&dst, most, 4, "dst", NULL) == AIMO_OK);
    for (size_t i = 0; i < most; i++)
        ((uint16_t *)src)[i] = (uint16_t)(i * 2654435761u >> 7 & 0x7bff);
    bool right = true;
    for (size_t s = 0; s < 3; s++) {
        const uint16_t *from = (const uint16_t *)src + s;
        float *to = (float *)dst + 3 * s + 1;
        aimo_f16_to_f32(from, to, sizes[s]);
        for (size_t i = 0; i < sizes[s]; i++)
            right = right && to[i] == aimo_f16_to_f32_one(from[i]);
        right = right && to[-1] == 0.0f && to[sizes[s]] == 0.0f;
        memset(dst, 0, most * 4);
    }
    aimo_memory_free(src);
    aimo_memory_free(dst);
    CHECK(right);
}

/* A 3-d array of halves with random strides, signs and byte order on both sides. */
TEST(half_strided_arrays_equal_their_elements)
{
    uint64_t random = 5;
    const size_t rounds = test_rounds(400);
    enum { BYTES = 1 << 16 };
    void *src, *dst;
    CHECK(aimo_memory_new_zero(&src, 2 * BYTES, 1, "src", NULL) == AIMO_OK);
    CHECK(aimo_memory_new_zero(&dst, 4 * BYTES, 1, "dst", NULL) == AIMO_OK);
    for (size_t i = 0; i < 2 * BYTES; i++)
        ((unsigned char *)src)[i] = (unsigned char)(test_random(&random) & 0x3b);
    size_t wrong = 0;
    for (size_t round = 0; round < rounds; round++) {
        aimo_half_arrays a = {.conversion = AIMO_F16_TO_F32, .ndim = 3};
        const char *from = (const char *)src + BYTES + round % 2;
        char *to = (char *)dst + 2 * BYTES + round % 3;
        a.src = from;
        a.dst = to;
        a.src_swapped = test_random(&random) % 2;
        a.dst_swapped = test_random(&random) % 2;
        ptrdiff_t span = 4;
        for (size_t i = 0; i < 3; i++) {
            const size_t axis = (i + round) % 3;
            a.shape[axis] = 1 + test_random(&random) % (round % 5 == 0 ? 90 : 12);
            if (i == 2 && span > 2000)
                a.shape[axis] = 3;
            a.src_stride[axis] = (ptrdiff_t)(test_random(&random) % 64) - 32;
            a.dst_stride[axis] = span + (ptrdiff_t)(test_random(&random) % 3) * 2;
            span = a.dst_stride[axis] * (ptrdiff_t)a.shape[axis];
            if (test_random(&random) % 2)
                a.dst_stride[axis] = -a.dst_stride[axis];
        }
        if (span > 2 * BYTES)
            continue;
        const aimo_half_arrays b = a; /* converting reorders the axes */
        aimo_half_convert_arrays(&a);
        for (size_t i = 0; i < b.shape[0] * b.shape[1] * b.shape[2]; i++) {
            const ptrdiff_t at[] = {(ptrdiff_t)(i / b.shape[2] / b.shape[1]),
                                    (ptrdiff_t)(i / b.shape[2] % b.shape[1]),
                                    (ptrdiff_t)(i % b.shape[2])};
            const char *x = from;
            const char *y = to;
            for (int k = 0; k < 3; k++)
                x += at[k] * b.src_stride[k], y += at[k] * b.dst_stride[k];
            uint16_t half;
            uint32_t got;
            memcpy(&half, x, 2);
            memcpy(&got, y, 4);
            half = b.src_swapped ? __builtin_bswap16(half) : half;
            got = b.dst_swapped ? __builtin_bswap32(got) : got;
            wrong += got != aimo_f32_bits(aimo_f16_to_f32_one(half));
        }
    }
    aimo_memory_free(src);
    aimo_memory_free(dst);
    CHECK_MSG(wrong == 0, "%zu elements are wrong", wrong);
}
