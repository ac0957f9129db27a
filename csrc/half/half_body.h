/* The loops of one row of kernels, written once; the row's file includes this inside its target
 * region, having defined
 *
 *   ISA(name)      the row's function
 *   STEP           elements that one step converts; 32 halves fill a cache line
 *   STREAM_FENCE() after streamed stores, so that they are seen in order
 *   <name>_step(src, dst, stream)   for each conversion; `stream` is a constant there */

#define CONVERSION(name, src_type, dst_type)                                                       \
    void ISA(name)(const void *from, void *to, size_t n, bool stream)                              \
    {                                                                                              \
        const src_type *src = from;                                                                \
        dst_type *dst = to;                                                                        \
        size_t i = 0;                                                                              \
        if (stream) {                                                                              \
            for (; i + STEP <= n; i += STEP)                                                       \
                name##_step(src + i, dst + i, true);                                               \
            STREAM_FENCE();                                                                        \
        } else {                                                                                   \
            for (; i + STEP <= n; i += STEP)                                                       \
                name##_step(src + i, dst + i, false);                                              \
        }                                                                                          \
        for (; i < n; i++)                                                                         \
            dst[i] = aimo_##name##_one(src[i]);                                                    \
    }
AIMO_HALF_EACH(CONVERSION)
#undef CONVERSION
