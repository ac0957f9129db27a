/* half: every row gives the scalar row's bits, and the scalar row is right. */
#include "test.h"

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
        row->f16_to_f32(halves, wide, 65536);
        row->f32_to_f16(wide, back, 65536);
        for (uint32_t i = 0; i < 65536; i++) {
            const bool nan = (i & 0x7fff) > 0x7c00;
            CHECK_MSG(back[i] == (nan ? (i | 0x200) : i), "%s: f16 %04x came back as %04x",
                      row->isa, i, back[i]);
        }
        row->bf16_to_f32(halves, wide, 65536);
        row->f32_to_bf16(wide, back, 65536);
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
            aimo_f32_to_f16_scalar(x, expected, CHUNK);
            row->f32_to_f16(x, got, CHUNK);
            CHECK_MSG(memcmp(got, expected, sizeof got) == 0, "%s: f16 near %u", row->isa, start);
            aimo_f32_to_bf16_scalar(x, expected, CHUNK);
            row->f32_to_bf16(x, got, CHUNK);
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

/* Lengths 0..67 at offsets 0..3: nothing is written past the end, every element is converted. */
TEST(half_tails_are_converted_and_nothing_beyond)
{
    for (size_t r = 0; aimo_half_row(r) != NULL; r++) {
        const aimo_half_kernels *row = aimo_half_row(r);
        if (!row_runs(row))
            continue;
        for (size_t n = 0; n <= 67; n++) {
            for (size_t offset = 0; offset < 4; offset++) {
                float x[80], wide[80];
                uint16_t narrow[80];
                for (size_t i = 0; i < 80; i++)
                    x[i] = (float)i - 33.25f;
                for (int bf16 = 0; bf16 < 2; bf16++) {
                    memset(narrow, 0xaa, sizeof narrow);
                    memset(wide, 0xaa, sizeof wide);
                    (bf16 ? row->f32_to_bf16 : row->f32_to_f16)(x + offset, narrow + offset, n);
                    (bf16 ? row->bf16_to_f32 : row->f16_to_f32)(narrow + offset, wide + offset, n);
                    for (size_t i = 0; i < 80; i++) {
                        const bool inside = i >= offset && i < offset + n;
                        const float expected = inside ? x[i] : aimo_f32_from_bits(0xaaaaaaaa);
                        CHECK_MSG(memcmp(&wide[i], &expected, 4) == 0 &&
                                      (inside || narrow[i] == 0xaaaa),
                                  "%s: n %zu offset %zu element %zu", row->isa, n, offset, i);
                    }
                }
            }
        }
    }
}
