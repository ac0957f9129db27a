/* Dispatch of half conversion, and the splitting of large arrays among threads. */
#include "half/half.h"

#include "base/threads.h"
#include "half/half_kernels.h"

static const aimo_half_kernels rows[] = {
#define AIMO_HALF_KERNEL(isa, required)                                                            \
    {#isa,                                                                                         \
     required,                                                                                     \
     {aimo_f32_to_f16_##isa, aimo_f16_to_f32_##isa, aimo_f32_to_bf16_##isa,                        \
      aimo_bf16_to_f32_##isa, aimo_f64_to_f16_##isa}},
#include "half/half_kernels.def"
#undef AIMO_HALF_KERNEL
};
enum { ROW_COUNT = sizeof rows / sizeof rows[0] };

enum {
    PART = 1 << 17,        /* elements per part of an array that is split */
    HUGE_PAGE = 2 << 20,   /* bytes of dst per part of a streamed array */
    SHARED_FROM = 1 << 18, /* elements from which waking a thread pays off */
    STREAMED_FROM =
        24u << 20, /* bytes of dst from which it would evict everything else from the caches */
};

const aimo_half_kernels *aimo_half_row(size_t index)
{
    return index < ROW_COUNT ? &rows[index] : NULL;
}

const aimo_half_kernels *aimo_half_select(unsigned features)
{
    const aimo_half_kernels *best = &rows[0];
    for (size_t i = 1; i < ROW_COUNT; i++)
        if ((rows[i].required & ~features) == 0)
            best = &rows[i];
    return best;
}

static const unsigned char src_sizes[] = {4, 2, 4, 2, 8}, dst_sizes[] = {2, 4, 2, 4, 2};

size_t aimo_half_src_size(aimo_half_conversion conversion) { return src_sizes[conversion]; }

size_t aimo_half_dst_size(aimo_half_conversion conversion) { return dst_sizes[conversion]; }

typedef struct {
    aimo_half_kernel kernel;
    const char *src;
    char *dst;
    size_t n, src_size, dst_size;
    size_t first, part; /* elements of the first part and of the others */
    bool stream;
} shared_work;

static void convert_part(void *context, size_t index)
{
    const shared_work *w = context;
    const size_t start = index == 0 ? 0 : w->first + (index - 1) * w->part;
    const size_t left = w->n - start, part = index == 0 ? w->first : w->part;
    w->kernel(w->src + start * w->src_size, w->dst + start * w->dst_size, left < part ? left : part,
              w->stream);
}

/* Parts begin at dst's first cache line boundary, so that they may be streamed. A streamed part is
 * one huge page of dst: when two threads first touch the same one, both clear it. */
static void convert_shared(aimo_half_kernel kernel, const char *src, char *dst, size_t n,
                           size_t src_size, size_t dst_size)
{
    const size_t head = -(uintptr_t)dst % AIMO_CACHE_LINE / dst_size;
    const bool stream = n * dst_size >= STREAMED_FROM;
    kernel(src, dst, head, false);
    shared_work w = {.kernel = kernel,
                     .src = src + head * src_size,
                     .dst = dst + head * dst_size,
                     .n = n - head,
                     .src_size = src_size,
                     .dst_size = dst_size,
                     .part = stream ? HUGE_PAGE / dst_size : PART,
                     .stream = stream};
    w.first = stream ? -(uintptr_t)w.dst % HUGE_PAGE / dst_size : PART;
    const size_t others = w.n > w.first ? w.n - w.first : 0;
    aimo_parallel_for(1 + (others + w.part - 1) / w.part, convert_part, &w);
}

void aimo_half_convert(aimo_half_conversion conversion, const void *src, void *dst, size_t n)
{
    const aimo_half_kernel kernel = aimo_half_select(aimo_cpu_enabled())->convert[conversion];
    if (n < SHARED_FROM)
        kernel(src, dst, n, false);
    else
        convert_shared(kernel, src, dst, n, src_sizes[conversion], dst_sizes[conversion]);
}

void aimo_f32_to_f16(const float *src, uint16_t *dst, size_t n)
{
    aimo_half_convert(AIMO_F32_TO_F16, src, dst, n);
}

void aimo_f16_to_f32(const uint16_t *src, float *dst, size_t n)
{
    aimo_half_convert(AIMO_F16_TO_F32, src, dst, n);
}

void aimo_f32_to_bf16(const float *src, uint16_t *dst, size_t n)
{
    aimo_half_convert(AIMO_F32_TO_BF16, src, dst, n);
}

void aimo_bf16_to_f32(const uint16_t *src, float *dst, size_t n)
{
    aimo_half_convert(AIMO_BF16_TO_F32, src, dst, n);
}

void aimo_f64_to_f16(const double *src, uint16_t *dst, size_t n)
{
    aimo_half_convert(AIMO_F64_TO_F16, src, dst, n);
}
