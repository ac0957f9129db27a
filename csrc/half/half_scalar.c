/* Half conversion, one value at a time: the reference. */
#include "half/half_kernels.h"
#include "half/half_scalar.h"

#define CONVERSION(name, src_type, dst_type)                                                       \
    void aimo_##name##_scalar(const void *from, void *to, size_t n, bool stream)                   \
    {                                                                                              \
        const src_type *src = from;                                                                \
        dst_type *dst = to;                                                                        \
        (void)stream;                                                                              \
        for (size_t i = 0; i < n; i++)                                                             \
            dst[i] = aimo_##name##_one(src[i]);                                                    \
    }
AIMO_HALF_EACH(CONVERSION)
