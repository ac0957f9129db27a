/* Arrays of any shape and stride: the axes are sorted into dst's order and merged where they are
 * contiguous. A contiguous run goes straight to the kernel; everything else passes through a block
 * that stays in the L1 cache. */
#include "half/half.h"

#include "base/platform.h"
#include "base/threads.h"
#include "half/half_kernels.h"

#include <assert.h>
#include <string.h>

enum {
    BLOCK = 1024,     /* elements converted at once: 12 KB on the stack at most */
    LONG_RUN = 64,    /* elements from which a run is worth a kernel call of its own */
    PART = 64 * BLOCK /* elements that a thread takes at once */
};

static void drop_axis(aimo_half_arrays *a, size_t axis)
{
    a->ndim--;
    for (size_t i = axis; i < a->ndim; i++) {
        a->shape[i] = a->shape[i + 1];
        a->src_stride[i] = a->src_stride[i + 1];
        a->dst_stride[i] = a->dst_stride[i + 1];
    }
}

static void swap_axes(aimo_half_arrays *a, size_t i, size_t j)
{
    const size_t shape = a->shape[i];
    const ptrdiff_t src_stride = a->src_stride[i], dst_stride = a->dst_stride[i];
    a->shape[i] = a->shape[j], a->shape[j] = shape;
    a->src_stride[i] = a->src_stride[j], a->src_stride[j] = src_stride;
    a->dst_stride[i] = a->dst_stride[j], a->dst_stride[j] = dst_stride;
}

/* Axes of dst from the largest to the smallest stride, all positive, none of length 1. */
static void order_axes(aimo_half_arrays *a)
{
    for (size_t i = a->ndim; i-- > 0;) {
        const ptrdiff_t last = (ptrdiff_t)a->shape[i] - 1;
        if (last == 0) {
            drop_axis(a, i);
        } else if (a->dst_stride[i] < 0) {
            a->src = (const char *)a->src + last * a->src_stride[i];
            a->dst = (char *)a->dst + last * a->dst_stride[i];
            a->src_stride[i] = -a->src_stride[i];
            a->dst_stride[i] = -a->dst_stride[i];
        }
    }
    for (size_t i = 1; i < a->ndim; i++)
        for (size_t j = i; j > 0 && a->dst_stride[j - 1] < a->dst_stride[j]; j--)
            swap_axes(a, j - 1, j);
}

static void merge_axes(aimo_half_arrays *a)
{
    for (size_t i = a->ndim; i-- > 1;) {
        const ptrdiff_t length = (ptrdiff_t)a->shape[i];
        if (a->src_stride[i - 1] == length * a->src_stride[i] &&
            a->dst_stride[i - 1] == length * a->dst_stride[i]) {
            a->src_stride[i - 1] = a->src_stride[i];
            a->dst_stride[i - 1] = a->dst_stride[i];
            a->shape[i - 1] *= a->shape[i];
            drop_axis(a, i);
        }
    }
}

typedef struct {
    aimo_half_kernel kernel;
    const aimo_half_arrays *arrays;
    size_t n, run; /* elements in all, and of the innermost axis */
    size_t src_size, dst_size;
    bool src_direct, dst_direct; /* runs are contiguous, aligned and in the native byte order */
} plan;

static bool is_direct(const aimo_half_arrays *a, const void *data, const ptrdiff_t *stride,
                      size_t size, bool swapped)
{
    if (swapped || (uintptr_t)data % size != 0 || stride[a->ndim - 1] != (ptrdiff_t)size)
        return false;
    for (size_t i = 0; i < a->ndim; i++)
        if (stride[i] % (ptrdiff_t)size != 0)
            return false;
    return true;
}

/* The byte offset of element number `at` in dst's order. */
static ptrdiff_t offset_of(const aimo_half_arrays *a, const ptrdiff_t *stride, size_t at)
{
    ptrdiff_t offset = 0;
    for (size_t i = a->ndim; i-- > 0;) {
        offset += (ptrdiff_t)(at % a->shape[i]) * stride[i];
        at /= a->shape[i];
    }
    return offset;
}

#define COPY_ELEMENTS(type, swap)                                                                  \
    for (size_t i = 0; i < n; i++, to += to_stride, from += from_stride) {                         \
        type element;                                                                              \
        memcpy(&element, from, sizeof element);                                                    \
        if (swapped)                                                                               \
            element = swap(element);                                                               \
        memcpy(to, &element, sizeof element);                                                      \
    }                                                                                              \
    break

static void copy_elements(char *to, ptrdiff_t to_stride, const char *from, ptrdiff_t from_stride,
                          size_t n, size_t size, bool swapped)
{
    switch (size) {
    case 2:
        COPY_ELEMENTS(uint16_t, __builtin_bswap16);
    case 4:
        COPY_ELEMENTS(uint32_t, __builtin_bswap32);
    default:
        assert(size == 8);
        COPY_ELEMENTS(uint64_t, __builtin_bswap64);
    }
}

/* Elements [at, at + n) of src into `block`. */
static void gather(const plan *p, size_t at, size_t n, char *block)
{
    const aimo_half_arrays *a = p->arrays;
    const ptrdiff_t stride = a->src_stride[a->ndim - 1], size = (ptrdiff_t)p->src_size;
    while (n > 0) {
        const size_t left = p->run - at % p->run, take = n < left ? n : left;
        const char *from = (const char *)a->src + offset_of(a, a->src_stride, at);
        copy_elements(block, size, from, stride, take, p->src_size, a->src_swapped);
        block += take * p->src_size;
        at += take;
        n -= take;
    }
}

/* `block` into elements [at, at + n) of dst. */
static void scatter(const plan *p, size_t at, size_t n, const char *block)
{
    const aimo_half_arrays *a = p->arrays;
    const ptrdiff_t stride = a->dst_stride[a->ndim - 1], size = (ptrdiff_t)p->dst_size;
    while (n > 0) {
        const size_t left = p->run - at % p->run, take = n < left ? n : left;
        char *to = (char *)a->dst + offset_of(a, a->dst_stride, at);
        copy_elements(to, stride, block, size, take, p->dst_size, a->dst_swapped);
        block += take * p->dst_size;
        at += take;
        n -= take;
    }
}

/* Elements [at, at + n), at most BLOCK of them. */
static void convert_block(const plan *p, size_t at, size_t n)
{
    _Alignas(AIMO_CACHE_LINE) char src_block[BLOCK * sizeof(double)];
    _Alignas(AIMO_CACHE_LINE) char dst_block[BLOCK * sizeof(float)];
    const aimo_half_arrays *a = p->arrays;
    const bool one_run = at % p->run + n <= p->run;
    const void *src = src_block;
    void *dst = dst_block;
    if (one_run && p->src_direct)
        src = (const char *)a->src + offset_of(a, a->src_stride, at);
    else
        gather(p, at, n, src_block);
    if (one_run && p->dst_direct)
        dst = (char *)a->dst + offset_of(a, a->dst_stride, at);
    p->kernel(src, dst, n, false);
    if (dst == dst_block)
        scatter(p, at, n, dst_block);
}

static void convert_part(void *context, size_t index)
{
    const plan *p = context;
    const size_t start = index * PART, end = p->n - start < PART ? p->n : start + PART;
    for (size_t at = start; at < end;) {
        const size_t run_left = p->run - at % p->run;
        size_t n = end - at < BLOCK ? end - at : BLOCK;
        if (p->run >= LONG_RUN && run_left < n)
            n = run_left;
        convert_block(p, at, n);
        at += n;
    }
}

size_t aimo_half_merge_axes(aimo_half_arrays *a)
{
    assert(a->ndim <= AIMO_HALF_MAX_DIMS);
    size_t n = 1;
    for (size_t i = 0; i < a->ndim; i++)
        n *= a->shape[i];
    if (n == 0)
        return 0;
    order_axes(a);
    merge_axes(a);
    if (a->ndim == 0) { /* a single element is a run of one */
        a->ndim = 1;
        a->shape[0] = 1;
        a->src_stride[0] = (ptrdiff_t)aimo_half_src_size(a->conversion);
        a->dst_stride[0] = (ptrdiff_t)aimo_half_dst_size(a->conversion);
    }
    return n;
}

void aimo_half_convert_arrays(aimo_half_arrays *a)
{
    const size_t n = aimo_half_merge_axes(a);
    if (n == 0)
        return;
    plan p = {.arrays = a,
              .n = n,
              .src_size = aimo_half_src_size(a->conversion),
              .dst_size = aimo_half_dst_size(a->conversion)};
    p.run = a->shape[a->ndim - 1];
    p.src_direct = is_direct(a, a->src, a->src_stride, p.src_size, a->src_swapped);
    p.dst_direct = is_direct(a, a->dst, a->dst_stride, p.dst_size, a->dst_swapped);
    if (a->ndim == 1 && p.src_direct && p.dst_direct) {
        aimo_half_convert(a->conversion, a->src, a->dst, n);
        return;
    }
    p.kernel = aimo_half_select(aimo_cpu_enabled())->convert[a->conversion];
    aimo_parallel_for((n + PART - 1) / PART, convert_part, &p);
}
