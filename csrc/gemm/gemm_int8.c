/* Packing of matrices of 8-bit integers. */
#include "gemm/gemm_int8.h"

#include "half/half_scalar.h"

#include <assert.h>

aimo_status aimo_int8_panels_size(size_t n, size_t k, size_t *bytes, aimo_error *err)
{
    if (k > AIMO_INT8_K_LIMIT)
        return aimo_fail(err, AIMO_ERR_UNSUPPORTED, "int8 matrix: at most %d inputs, got %zu",
                         AIMO_INT8_K_LIMIT, k);
    const size_t panels = (n + AIMO_PANEL_COLUMNS - 1) / AIMO_PANEL_COLUMNS;
    AIMO_TRY(aimo_size_mul(panels, aimo_int8_panel_bytes(k), bytes, "matrix", err));
    if (*bytes > SIZE_MAX - AIMO_INT8_HEADER)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "matrix: %zu x %zu is too large", n, k);
    *bytes += AIMO_INT8_HEADER;
    return AIMO_OK;
}

void aimo_panels_set_outliers(void *panels, const int32_t *channels, size_t count)
{
    assert(count <= AIMO_INT8_OUTLIERS);
    int32_t *header = panels;
    for (size_t o = 0; o < AIMO_INT8_OUTLIERS; o++)
        header[o] = o < count ? channels[o] + 1 : 0;
}

bool aimo_panels_outliers_fit(const void *panels, size_t k)
{
    for (size_t o = 0; o < AIMO_INT8_OUTLIERS; o++) {
        const int32_t channel = aimo_int8_channels(panels)[o];
        if (channel < 0 || (size_t)channel > k)
            return false;
    }
    return true;
}

static bool is_outlier(const void *panels, size_t channel)
{
    for (size_t o = 0; o < AIMO_INT8_OUTLIERS; o++)
        if (aimo_int8_channels(panels)[o] == (int32_t)channel + 1)
            return true;
    return false;
}

/* Packs one output, w [k], into column `column` of a panel. */
static void pack_output(const void *panels, size_t k, const aimo_int8_panel *panel, size_t column,
                        const float *w)
{
    int8_t *weights = (int8_t *)panel->weights + column * AIMO_INT8_GROUP;
    uint16_t *outliers = (uint16_t *)panel->outliers + column;
    float largest = 0.0f;
    for (size_t i = 0; i < k; i++)
        if (fabsf(w[i]) > largest && !is_outlier(panels, i))
            largest = fabsf(w[i]);
    const float inverse = aimo_int8_inverse_scale(largest);
    int32_t sum = 0;
    for (size_t i = 0; i < k; i++) {
        const int32_t q = is_outlier(panels, i) ? 0 : (int32_t)rintf(w[i] * inverse);
        weights[i / AIMO_INT8_GROUP * AIMO_INT8_GROUP * AIMO_PANEL_COLUMNS + i % AIMO_INT8_GROUP] =
            (int8_t)q;
        sum += q;
    }
    for (size_t o = 0; o < AIMO_INT8_OUTLIERS; o++) {
        const int32_t channel = aimo_int8_channels(panels)[o];
        outliers[o * AIMO_PANEL_COLUMNS] =
            channel != 0 ? aimo_f32_to_f16_one(w[channel - 1]) : (uint16_t)0;
    }
    ((float *)panel->scale)[column] = aimo_int8_scale(largest);
    ((int32_t *)panel->correction)[column] = AIMO_INT8_CORRECTION * sum;
}

void aimo_int8_panels_pack(size_t k, void *panels, const float *src, size_t first, size_t rows)
{
    for (size_t j = first; j < first + rows; j++) {
        const aimo_int8_panel panel = aimo_int8_panel_at(panels, k, j / AIMO_PANEL_COLUMNS);
        pack_output(panels, k, &panel, j % AIMO_PANEL_COLUMNS, src + (j - first) * k);
    }
}

void aimo_int8_panels_unpack(size_t k, const void *panels, float *dst, size_t first, size_t rows)
{
    for (size_t j = first; j < first + rows; j++) {
        const aimo_int8_panel panel = aimo_int8_panel_at(panels, k, j / AIMO_PANEL_COLUMNS);
        const size_t column = j % AIMO_PANEL_COLUMNS;
        float *w = dst + (j - first) * k;
        for (size_t i = 0; i < k; i++) {
            const size_t group = i / AIMO_INT8_GROUP * AIMO_PANEL_COLUMNS + column;
            w[i] = (float)panel.weights[group * AIMO_INT8_GROUP + i % AIMO_INT8_GROUP] *
                   panel.scale[column];
        }
        for (size_t o = 0; o < AIMO_INT8_OUTLIERS; o++)
            if (aimo_int8_channels(panels)[o] != 0)
                w[aimo_int8_channels(panels)[o] - 1] =
                    aimo_f16_to_f32_one(panel.outliers[o * AIMO_PANEL_COLUMNS + column]);
    }
}
