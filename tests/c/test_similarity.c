/* similarity: every row agrees with the scalar row, exactly where the arithmetic is exact. */
#include "test.h"

#include "half/half.h"
#include "similarity/similarity_kernels.h"

#include <stdlib.h>
#include <string.h>

enum { BLOCKS = 13, ROWS = BLOCKS * AIMO_HEAD_BLOCK, MAX_LINES = 18, QUERIES = 35 };

static bool row_runs(const aimo_similarity_kernels *row)
{
    if ((row->required & ~aimo_cpu_available()) == 0)
        return true;
    test_skip(row->isa);
    return false;
}

/* reduction: any order of n products and sums in f32 stays within n * 2^-24 * sum |q x|. */
static bool near(double got, double expected, double magnitude, size_t n, double unit)
{
    return fabs(got - expected) <= (double)(n + 2) * unit * magnitude;
}

TEST(similarity_dots_stay_within_the_rounding_of_their_type)
{
    uint64_t random = 1;
    float q[96];
    uint16_t x[96];
    int8_t codes[96];
    for (size_t r = 0; aimo_similarity_row(r) != NULL; r++) {
        const aimo_similarity_kernels *row = aimo_similarity_row(r);
        if (!row_runs(row))
            continue;
        for (size_t n = 0; n <= 67; n++) {
            for (size_t offset = 0; offset < 4; offset++) {
                double f16 = 0, f16_magnitude = 0, i8 = 0, i8_magnitude = 0;
                for (size_t i = 0; i < 96; i++) {
                    q[i] = i >= offset && i < offset + n ? test_random_normal(&random) : NAN;
                    const float value = test_random_float(&random);
                    aimo_f32_to_f16(&value, &x[i], 1);
                    float stored;
                    aimo_f16_to_f32(&x[i], &stored, 1);
                    codes[i] = (int8_t)(test_random(&random) % 255 - 127);
                    if (isnan(q[i]))
                        continue;
                    f16 += (double)q[i] * (double)stored;
                    f16_magnitude += fabs((double)q[i] * (double)stored);
                    i8 += (double)q[i] * codes[i];
                    i8_magnitude += fabs((double)q[i] * codes[i]);
                }
                const float *a = q + offset;
                const uint16_t *b = x + offset;
                const int8_t *c = codes + offset;
                CHECK_MSG(near((double)row->dot_f16(a, b, n), f16, f16_magnitude, n, 0x1p-24) &&
                              near((double)row->dot_i8(a, c, n), i8, i8_magnitude, n, 0x1p-24) &&
                              near(row->dot_f16_f64(a, b, n), f16, f16_magnitude, n, 0x1p-52) &&
                              near(row->dot_i8_f64(a, c, n), i8, i8_magnitude, n, 0x1p-52),
                          "%s: n %zu offset %zu", row->isa, n, offset);
            }
        }
    }
}

TEST(similarity_projection_is_one_dot_per_direction)
{
    uint64_t random = 2;
    static float p[19 * 67], x[67], out[20];
    for (size_t i = 0; i < 19 * 67; i++)
        p[i] = test_random_normal(&random);
    for (size_t r = 0; aimo_similarity_row(r) != NULL; r++) {
        const aimo_similarity_kernels *row = aimo_similarity_row(r);
        if (!row_runs(row))
            continue;
        for (size_t n = 0; n <= 67; n++) {
            for (size_t k = 0; k <= 19; k++) {
                for (size_t i = 0; i < 67; i++)
                    x[i] = i < n ? test_random_normal(&random) : NAN;
                out[k] = 42.0f;
                row->project(p, k, x, n, out);
                for (size_t j = 0; j < k; j++) {
                    double dot = 0, magnitude = 0;
                    for (size_t i = 0; i < n; i++) {
                        dot += (double)p[j * n + i] * (double)x[i];
                        magnitude += fabs((double)p[j * n + i] * (double)x[i]);
                    }
                    CHECK_MSG(near((double)out[j], dot, magnitude, n, 0x1p-24),
                              "%s: n %zu direction %zu of %zu", row->isa, n, j, k);
                }
                CHECK(out[k] == 42.0f);
            }
        }
    }
}

typedef struct {
    _Alignas(64) uint8_t codes[ROWS * MAX_LINES * AIMO_HEAD_GROUP];
    _Alignas(64) uint16_t rests[ROWS];
    int8_t query_codes[QUERIES][MAX_LINES * AIMO_HEAD_LINE];
    aimo_head_query queries[QUERIES];
} screen_case;

/* Codes at the limits of the contract: |sum| just below 2^15, single codes at 0, 15 and 127. */
static void fill_screen(screen_case *c, size_t lines, uint64_t *random)
{
    const size_t width = lines * AIMO_HEAD_LINE;
    for (size_t i = 0; i < ROWS * lines * AIMO_HEAD_GROUP; i++)
        c->codes[i] = (uint8_t)test_random(random);
    for (size_t i = 0; i < ROWS; i++)
        c->rests[i] = (uint16_t)test_random(random);
    for (size_t j = 0; j < QUERIES; j++) {
        int sum = 0, budget = 4368; /* times 7.5, the bias taken off: below 2^15 */
        for (size_t i = 0; i < width; i++) {
            const int most = budget < AIMO_QUERY_LIMIT ? budget : AIMO_QUERY_LIMIT;
            int code = j == 0 ? most : (int)(test_random(random) % (2 * (unsigned)most + 1)) - most;
            code = j == 1 ? -most : code;
            c->query_codes[j][i] = (int8_t)code;
            sum += code;
            budget -= code < 0 ? -code : code;
        }
        const unsigned rest_scale = test_random(random) % 32767;
        c->queries[j] = (aimo_head_query){
            .codes = c->query_codes[j],
            .bias = (int16_t)ceil(-7.5 * sum),
            .rest_scale = (uint16_t)rest_scale,
            .error_scale = (uint16_t)(test_random(random) % (32767 - rest_scale)),
            .bar = (int16_t)(j == 2   ? 32767
                             : j == 3 ? -32768
                                      : (int)(test_random(random) % 40000) - 10000),
        };
    }
    memset(c->codes, 255, 64);
    memset(c->codes + 64 * lines, 0, 64);
}

TEST(similarity_screen_rows_give_the_scalar_bits)
{
    static screen_case c;
    static int16_t expected_dots[QUERIES * ROWS + 1], dots[QUERIES * ROWS + 1];
    uint16_t expected_masks[QUERIES * BLOCKS + 1], masks[QUERIES * BLOCKS + 1];
    uint64_t random = 3;
    for (size_t lines = 1; lines <= MAX_LINES; lines++) {
        fill_screen(&c, lines, &random);
        const aimo_heads heads = {c.codes, c.rests, BLOCKS, lines};
        for (size_t count = 1; count <= QUERIES; count += count < 9 ? 1 : 6 + lines % 3) {
            aimo_screen_scalar(&heads, c.queries, count, expected_dots, expected_masks);
            for (size_t r = 1; aimo_similarity_row(r) != NULL; r++) {
                const aimo_similarity_kernels *row = aimo_similarity_row(r);
                if ((row->required & ~aimo_cpu_available()) != 0)
                    continue;
                memset(dots, 0xaa, sizeof dots);
                memset(masks, 0xaa, sizeof masks);
                row->screen(&heads, c.queries, count, dots, masks);
                CHECK_MSG(memcmp(dots, expected_dots, count * ROWS * sizeof *dots) == 0 &&
                              memcmp(masks, expected_masks, count * BLOCKS * sizeof *masks) == 0,
                          "%s: %zu lines, %zu queries", row->isa, lines, count);
                CHECK((uint16_t)dots[count * ROWS] == 0xaaaa && masks[count * BLOCKS] == 0xaaaa);
            }
        }
    }
}

TEST(similarity_refine_rows_keep_the_scalar_candidates)
{
    _Alignas(64) static aimo_tail tails[ROWS];
    static int16_t dots[ROWS];
    uint64_t random = 4;
    for (size_t round = 0; round < 50; round++) {
        for (size_t i = 0; i < ROWS; i++) {
            for (size_t j = 0; j < AIMO_TAIL_CODES; j++)
                tails[i].codes[j] = (int8_t)(test_random(&random) % 255 - 127);
            tails[i].error = (uint8_t)test_random(&random);
            tails[i].rest = (uint16_t)(test_random(&random) % 33000);
            dots[i] = (int16_t)(test_random(&random) % 65535 - 32767);
        }
        aimo_tail_query query = {.head_scale = 0x1p-15f,
                                 .tail_scale = 0x1p-28f,
                                 .rest_scale = 0x1p-15f,
                                 .error_scale = 0x1p-8f,
                                 .bar = test_random_float(&random)};
        for (size_t j = 0; j < AIMO_TAIL_CODES; j++)
            query.codes[j] = (int16_t)(test_random(&random) % 65535 - 32767);
        for (size_t r = 1; aimo_similarity_row(r) != NULL; r++) {
            const aimo_similarity_kernels *row = aimo_similarity_row(r);
            if ((row->required & ~aimo_cpu_available()) != 0)
                continue;
            uint16_t expected[ROWS], got[ROWS];
            size_t count = 0;
            for (size_t i = round % 3; i < ROWS; i += 1 + round % 5)
                expected[count] = got[count] = (uint16_t)i, count++;
            const size_t kept = aimo_refine_scalar(tails, dots, &query, expected, count);
            CHECK(row->refine(tails, dots, &query, got, count) == kept);
            CHECK_MSG(memcmp(got, expected, kept * sizeof *got) == 0, "%s", row->isa);
            CHECK(kept > 0 && (kept < count || query.bar < 0.0f));
        }
    }
}
