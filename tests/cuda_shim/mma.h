/* Stands in for CUDA's header: 16 x 16 x 16 products of a warp. Each lane holds eight elements of a
 * fragment, element 32 * e + lane of the tile; callers must not rely on which, as on a device. */
#ifndef AIMO_CUDA_SHIM_MMA_H
#define AIMO_CUDA_SHIM_MMA_H

#include "cuda_fp16.h"
#include "cuda_runtime.h"

namespace nvcuda
{
namespace wmma
{

struct matrix_a {
};
struct matrix_b {
};
struct accumulator {
};
struct row_major {
};
struct col_major {
};
enum layout_t { mem_row_major };

template <typename Use, int M, int N, int K, typename T, typename Layout = void> struct fragment {
    static_assert(M == 16 && N == 16 && K == 16, "the only shape that is used");
    T at[8];
};

inline unsigned element_of_lane(unsigned e) { return 32 * e + threadIdx.x % 32; }
inline float widen(__half x) { return __half2float(x); }

/* As on a device, where less aligned tiles are undefined. */
template <typename T> void check_tile(const T *tile, unsigned ld)
{
    if (reinterpret_cast<uintptr_t>(tile) % 32 != 0 || ld * sizeof(T) % 16 != 0)
        abort();
}

template <typename Use, typename T>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, row_major> &f, const T *src, unsigned ld)
{
    check_tile(src, ld);
    for (unsigned e = 0; e < 8; e++)
        f.at[e] = src[element_of_lane(e) / 16 * ld + element_of_lane(e) % 16];
}

template <typename Use, typename T>
void load_matrix_sync(fragment<Use, 16, 16, 16, T, col_major> &f, const T *src, unsigned ld)
{
    check_tile(src, ld);
    for (unsigned e = 0; e < 8; e++)
        f.at[e] = src[element_of_lane(e) % 16 * ld + element_of_lane(e) / 16];
}

typedef fragment<accumulator, 16, 16, 16, float> sums;

inline void store_matrix_sync(float *dst, const sums &f, unsigned ld, layout_t)
{
    check_tile(dst, ld);
    for (unsigned e = 0; e < 8; e++)
        dst[element_of_lane(e) / 16 * ld + element_of_lane(e) % 16] = f.at[e];
}

inline void fill_fragment(sums &f, float x)
{
    for (float &element : f.at)
        element = x;
}

template <typename T, typename LayoutB>
void mma_sync(sums &d, const fragment<matrix_a, 16, 16, 16, T, row_major> &a,
              const fragment<matrix_b, 16, 16, 16, T, LayoutB> &b, const sums &c)
{
    struct pair {
        const T *a, *b;
    };
    const pair mine = {a.at, b.at};
    const void *const *lanes;
    cuda_shim_exchange(&mine, &lanes);
    for (unsigned e = 0; e < 8; e++) {
        const unsigned row = element_of_lane(e) / 16, column = element_of_lane(e) % 16;
        float sum = c.at[e];
        for (unsigned k = 0; k < 16; k++) {
            const unsigned i = row * 16 + k, j = k * 16 + column;
            const T *of_a = static_cast<const pair *>(lanes[i % 32])->a;
            const T *of_b = static_cast<const pair *>(lanes[j % 32])->b;
            sum += widen(of_a[i / 32]) * widen(of_b[j / 32]);
        }
        d.at[e] = sum;
    }
    __syncwarp();
}

} // namespace wmma
} // namespace nvcuda

#endif
