/* The layout of packed weights. It needs no kernels, so code that only packs and unpacks can link
 * this file alone. */
#include "gemm/gemm.h"

#include "gemm/gemm_int8.h"
#include "half/half_scalar.h"

#include <assert.h>

/* Rows of a panel: k, rounded up to what one 4-byte group holds. */
static size_t padded_k(aimo_dtype dtype, size_t k) { return dtype == AIMO_BF16 ? k + k % 2 : k; }

aimo_status aimo_panels_size(aimo_dtype dtype, size_t n, size_t k, size_t *bytes, aimo_error *err)
{
    if (n == 0 || k == 0 || n > SIZE_MAX - AIMO_PANEL_COLUMNS || k == SIZE_MAX)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "matrix: expected a positive size, got %zu x %zu",
                         n, k);
    if (dtype == AIMO_INT8)
        return aimo_int8_panels_size(n, k, bytes, err);
    const size_t columns = (n + AIMO_PANEL_COLUMNS - 1) / AIMO_PANEL_COLUMNS * AIMO_PANEL_COLUMNS;
    AIMO_TRY(aimo_size_mul(columns, padded_k(dtype, k), bytes, "matrix", err));
    return aimo_size_mul(*bytes, aimo_dtype_size(dtype), bytes, "matrix", err);
}

size_t aimo_panels_shape(aimo_dtype dtype, size_t n, size_t k, size_t shape[AIMO_PANELS_DIMENSIONS])
{
    const size_t group = dtype == AIMO_BF16 ? 2 : 1;
    if (dtype == AIMO_INT8) {
        const size_t panels = (n + AIMO_PANEL_COLUMNS - 1) / AIMO_PANEL_COLUMNS;
        shape[0] = AIMO_INT8_HEADER + panels * aimo_int8_panel_bytes(k);
        return 1;
    }
    shape[0] = (n + AIMO_PANEL_COLUMNS - 1) / AIMO_PANEL_COLUMNS;
    shape[1] = padded_k(dtype, k) / group;
    shape[2] = AIMO_PANEL_COLUMNS;
    shape[3] = group;
    return group == 1 ? 3 : 4;
}

/* The index, in elements, of matrix element (j, i). */
static size_t panel_index(aimo_dtype dtype, size_t k, size_t j, size_t i)
{
    const size_t panel = j / AIMO_PANEL_COLUMNS * padded_k(dtype, k) * AIMO_PANEL_COLUMNS;
    const size_t column = j % AIMO_PANEL_COLUMNS;
    if (dtype == AIMO_BF16)
        return panel + i / 2 * 2 * AIMO_PANEL_COLUMNS + column * 2 + i % 2;
    return panel + i * AIMO_PANEL_COLUMNS + column;
}

void aimo_panels_pack(aimo_dtype dtype, size_t n, size_t k, void *panels, const float *src,
                      size_t first, size_t row_count)
{
    assert(first + row_count <= n);
    (void)n;
    if (dtype == AIMO_INT8) {
        aimo_int8_panels_pack(k, panels, src, first, row_count);
        return;
    }
    for (size_t j = 0; j < row_count; j++) {
        for (size_t i = 0; i < k; i++) {
            const size_t at = panel_index(dtype, k, first + j, i);
            const float x = src[j * k + i];
            if (dtype == AIMO_F32)
                ((float *)panels)[at] = x;
            else
                ((uint16_t *)panels)[at] =
                    dtype == AIMO_F16 ? aimo_f32_to_f16_one(x) : aimo_f32_to_bf16_one(x);
        }
    }
}

void aimo_panels_unpack(aimo_dtype dtype, size_t n, size_t k, const void *panels, float *dst,
                        size_t first, size_t row_count)
{
    assert(first + row_count <= n);
    (void)n;
    if (dtype == AIMO_INT8) {
        aimo_int8_panels_unpack(k, panels, dst, first, row_count);
        return;
    }
    for (size_t j = 0; j < row_count; j++) {
        for (size_t i = 0; i < k; i++) {
            const size_t at = panel_index(dtype, k, first + j, i);
            if (dtype == AIMO_F32)
                dst[j * k + i] = ((const float *)panels)[at];
            else if (dtype == AIMO_F16)
                dst[j * k + i] = aimo_f16_to_f32_one(((const uint16_t *)panels)[at]);
            else
                dst[j * k + i] = aimo_bf16_to_f32_one(((const uint16_t *)panels)[at]);
        }
    }
}
