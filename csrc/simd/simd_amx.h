/* AMX tiles: their configuration, and the one loop that multiplies with them.
 *
 * A tile is 16 rows of 64 bytes: 16 x 16 sums of 32 bits, or the 16 *units* of 4 bytes (two bf16 or
 * four bytes along k) that 16 rows of x contribute to one *step*. A panel of packed weights is
 * [unit][16 columns][4 bytes], so 16 of its lines can be loaded as a tile directly.
 *
 * The eight tiles are 2 x 2 of sums, two of x and two of weights: a step loads four tiles for four
 * products. According to Intel's optimization manual (its chapter on AMX; nothing here was
 * measured) a product can start every 16 cycles and takes 52, which four independent sums just
 * cover, and a load takes 8, so loads fill half of the time. With 1 x 1, two loads per product
 * would fill all of it; 1 x 4 needs five loads for four products; 2 x 3 would need eleven tiles.
 *
 * Tile numbers are encoded in the instructions, so they are macros, not variables. Include inside a
 * target region, after every other header. */
#ifndef AIMO_SIMD_AMX_H
#define AIMO_SIMD_AMX_H

#define TILE_SUMS_00 0 /* rows, panel */
#define TILE_SUMS_01 1
#define TILE_SUMS_10 2
#define TILE_SUMS_11 3
#define TILE_X_0 4
#define TILE_X_1 5
#define TILE_W_0 6
#define TILE_W_1 7

enum { TILE_SIDE = 16, TILE_LINE = 64, TILE_BLOCK_ROWS = 2 * TILE_SIDE, TILE_BLOCK_PANELS = 2 };

/* What LDTILECFG reads. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

typedef uint32_t x_tile[TILE_SIDE][TILE_SIDE]; /* [row][unit] */

/* The sums of a block, int32 or f32 depending on the product: [row / 16][panel][row %
 * 16][column]. */
typedef union {
    int32_t i32[2][TILE_BLOCK_PANELS][TILE_SIDE][TILE_SIDE];
    float f32[2][TILE_BLOCK_PANELS][TILE_SIDE][TILE_SIDE];
} tile_sums;

/* Steps over k of a block of up to 32 rows and two panels. */
typedef struct {
    const x_tile *x[2];         /* [steps], of rows 0 to 15 and 16 to 31 */
    const uint32_t *weights[2]; /* [steps][units][16 columns], of each panel */
    size_t steps, units;        /* units as the tiles are configured */
    bool accumulate;            /* start from the sums instead of zero */
} tile_steps;

/* gcc's intrinsics do not tell the compiler that they read memory. */
#define TILES_READ_MEMORY() __asm__ volatile("" ::: "memory")

/* Configures the tiles for blocks of `rows` rows (1 to 32) and steps of `units` units (1 to 16),
 * and clears them. */
AIMO_INLINE void tiles_configure(size_t rows, size_t units)
{
    const uint8_t upper = (uint8_t)(rows < TILE_SIDE ? rows : TILE_SIDE);
    const uint8_t lower = (uint8_t)(rows - upper); /* 0: these tiles are not used */
    const uint16_t sums_bytes = TILE_LINE, x_bytes = (uint16_t)(4 * units);
    tile_shapes shapes = {.palette = 1};
    const struct {
        uint8_t tile, rows;
        uint16_t bytes;
    } each[] = {
        {TILE_SUMS_00, upper, sums_bytes},
        {TILE_SUMS_01, upper, sums_bytes},
        {TILE_SUMS_10, lower, sums_bytes},
        {TILE_SUMS_11, lower, sums_bytes},
        {TILE_X_0, upper, x_bytes},
        {TILE_X_1, lower, x_bytes},
        {TILE_W_0, (uint8_t)units, sums_bytes},
        {TILE_W_1, (uint8_t)units, sums_bytes},
    };
    for (size_t i = 0; i < sizeof each / sizeof each[0]; i++) {
        shapes.rows[each[i].tile] = each[i].rows;
        shapes.row_bytes[each[i].tile] = each[i].rows != 0 ? each[i].bytes : 0;
    }
    TILES_READ_MEMORY();
    _tile_loadconfig(&shapes);
}

/* The element types of x and the weights. */
typedef enum { TILE_BF16, TILE_U8_S8, TILE_S8_U8 } tile_factors;

#define TILE_DOT(factors, sums, x, w)                                                              \
    do {                                                                                           \
        if ((factors) == TILE_BF16)                                                                \
            _tile_dpbf16ps(sums, x, w);                                                            \
        else if ((factors) == TILE_U8_S8)                                                          \
            _tile_dpbusd(sums, x, w);                                                              \
        else                                                                                       \
            _tile_dpbsud(sums, x, w);                                                              \
    } while (0)

/* Starts from zero, or from the sums in memory. */
#define TILE_BEGIN(tile, accumulate, from)                                                         \
    do {                                                                                           \
        if (accumulate)                                                                            \
            _tile_loadd(tile, from, TILE_LINE);                                                    \
        else                                                                                       \
            _tile_zero(tile);                                                                      \
    } while (0)

/* sums = [sums +] x @ weights for one or two tiles of rows and panels: constants at every call, as
 * `factors` is. */
AIMO_INLINE void tiles_multiply(const tile_steps *t, tile_factors factors, const size_t row_tiles,
                                const size_t panels, tile_sums *sums)
{
    const bool two_rows = row_tiles == 2, two_panels = panels == 2;
    TILES_READ_MEMORY();
    TILE_BEGIN(TILE_SUMS_00, t->accumulate, sums->i32[0][0]);
    if (two_panels)
        TILE_BEGIN(TILE_SUMS_01, t->accumulate, sums->i32[0][1]);
    if (two_rows)
        TILE_BEGIN(TILE_SUMS_10, t->accumulate, sums->i32[1][0]);
    if (two_rows && two_panels)
        TILE_BEGIN(TILE_SUMS_11, t->accumulate, sums->i32[1][1]);
    for (size_t step = 0; step < t->steps; step++) {
        const size_t weights = step * t->units * TILE_SIDE;
        _tile_loadd(TILE_X_0, t->x[0] + step, TILE_LINE);
        _tile_loadd(TILE_W_0, t->weights[0] + weights, TILE_LINE);
        TILE_DOT(factors, TILE_SUMS_00, TILE_X_0, TILE_W_0);
        if (two_panels) {
            _tile_loadd(TILE_W_1, t->weights[1] + weights, TILE_LINE);
            TILE_DOT(factors, TILE_SUMS_01, TILE_X_0, TILE_W_1);
        }
        if (two_rows) {
            _tile_loadd(TILE_X_1, t->x[1] + step, TILE_LINE);
            TILE_DOT(factors, TILE_SUMS_10, TILE_X_1, TILE_W_0);
        }
        if (two_rows && two_panels)
            TILE_DOT(factors, TILE_SUMS_11, TILE_X_1, TILE_W_1);
    }
    _tile_stored(TILE_SUMS_00, sums->i32[0][0], TILE_LINE);
    if (two_panels)
        _tile_stored(TILE_SUMS_01, sums->i32[0][1], TILE_LINE);
    if (two_rows)
        _tile_stored(TILE_SUMS_10, sums->i32[1][0], TILE_LINE);
    if (two_rows && two_panels)
        _tile_stored(TILE_SUMS_11, sums->i32[1][1], TILE_LINE);
}

/* The same for blocks whose size is known at run time. */
AIMO_INLINE void tiles_multiply_any(const tile_steps *t, tile_factors factors, size_t row_tiles,
                                    size_t panels, tile_sums *sums)
{
    if (row_tiles == 2 && panels == 2)
        tiles_multiply(t, factors, 2, 2, sums);
    else if (row_tiles == 2)
        tiles_multiply(t, factors, 2, 1, sums);
    else if (panels == 2)
        tiles_multiply(t, factors, 1, 2, sums);
    else
        tiles_multiply(t, factors, 1, 1, sums);
}

#endif
