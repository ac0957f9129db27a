/* Element types of weights and arrays. */
#ifndef AIMO_BASE_DTYPE_H
#define AIMO_BASE_DTYPE_H

#include <stddef.h>

typedef enum {
    AIMO_F32,
    AIMO_F16,
    AIMO_BF16,
    AIMO_INT8, /* with f32 scales: one per output of a matrix, one per row of a table */
} aimo_dtype;
enum { AIMO_DTYPE_COUNT = AIMO_INT8 + 1 };

/* Bytes of one element, not counting scales. */
static inline size_t aimo_dtype_size(aimo_dtype dtype)
{
    return dtype == AIMO_F32 ? 4 : dtype == AIMO_INT8 ? 1 : 2;
}

/* Bytes of one row of a table. An int8 row's elements are followed by its scale, an f32 that need
 * not be aligned. */
static inline size_t aimo_table_row_bytes(aimo_dtype dtype, size_t columns)
{
    return columns * aimo_dtype_size(dtype) + (dtype == AIMO_INT8 ? sizeof(float) : 0);
}

static inline const char *aimo_dtype_name(aimo_dtype dtype)
{
    static const char *const names[AIMO_DTYPE_COUNT] = {"f32", "f16", "bf16", "int8"};
    return names[dtype];
}

#endif
