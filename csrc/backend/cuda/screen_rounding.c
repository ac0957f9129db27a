#include "backend/cuda/screen_rounding.h"

#include "half/half.h"

#include <math.h>
#include <string.h>

double screen_round(const float *x, size_t dim, size_t padded, uint16_t *out)
{
    enum { AT_ONCE = 256 };
    float rounded[AT_ONCE];
    double square = 0.0;
    aimo_f32_to_f16(x, out, dim);
    memset(out + dim, 0, (padded - dim) * sizeof *out);
    for (size_t first = 0; first < dim; first += AT_ONCE) {
        const size_t count = dim - first < AT_ONCE ? dim - first : AT_ONCE;
        aimo_f16_to_f32(out + first, rounded, count);
        for (size_t i = 0; i < count; i++) {
            const double moved = (double)x[first + i] - (double)rounded[i];
            square += moved * moved;
        }
    }
    return sqrt(square) * (1.0 + 0x1p-30); /* rounding 2^16 terms loses at most 2^-36 */
}

float screen_limit(double bar, double query_error, double row_error, size_t padded)
{
    const double a = query_error + 0x1p-22, e = row_error + 0x1p-22;
    const double noise = (double)padded * 0x1p-22 * (1.0 + a) * (1.0 + e);
    const double limit = bar - (a + (1.0 + a) * e + noise) - 0x1p-40; /* of these roundings */
    const float rounded = (float)limit;
    return (double)rounded <= limit ? rounded : nextafterf(rounded, -INFINITY);
}
