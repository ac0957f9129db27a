/* Products of 16 x 16 tiles by one warp, all in shared memory: on tensor cores for 16-bit types,
 * plain for float. A warp that calls this must call it with all its lanes. */
#ifndef AIMO_CUDA_WARP_PRODUCT_H
#define AIMO_CUDA_WARP_PRODUCT_H

#include "backend/cuda/cuda_rows.h"

#include <mma.h>

constexpr unsigned TILE = 16;

/* How b lies: rows of [n][k], as keys do, or of [k][n], as values do. */
enum b_layout { B_ROWS_ARE_COLUMNS, B_ROWS_ARE_ROWS };

/* c [16][16] (ldc) = [c +] a [16][k] (lda) @ b, for k a multiple of 16. Leading dimensions are
 * multiples of 16 bytes, tiles begin at multiples of 32 bytes. */
template <typename T, b_layout LAYOUT> struct warp_product {
    __device__ static void run(const T *a, unsigned lda, const T *b, unsigned ldb, unsigned k,
                               float *c, unsigned ldc, bool accumulate)
    {
        using namespace nvcuda;
        using order = typename std::conditional<LAYOUT == B_ROWS_ARE_COLUMNS, wmma::col_major,
                                                wmma::row_major>::type;
        wmma::fragment<wmma::matrix_a, TILE, TILE, TILE, T, wmma::row_major> a_part;
        wmma::fragment<wmma::matrix_b, TILE, TILE, TILE, T, order> b_part;
        wmma::fragment<wmma::accumulator, TILE, TILE, TILE, float> sum;
        if (accumulate)
            wmma::load_matrix_sync(sum, c, ldc, wmma::mem_row_major);
        else
            wmma::fill_fragment(sum, 0.0f);
        for (unsigned i = 0; i < k; i += TILE) {
            wmma::load_matrix_sync(a_part, a + i, lda);
            wmma::load_matrix_sync(b_part, b + (LAYOUT == B_ROWS_ARE_COLUMNS ? i : i * ldb), ldb);
            wmma::mma_sync(sum, a_part, b_part, sum);
        }
        wmma::store_matrix_sync(c, sum, ldc, wmma::mem_row_major);
        __syncwarp();
    }
};

/* Each lane has half a row of c. */
template <b_layout LAYOUT> struct warp_product<float, LAYOUT> {
    __device__ static void run(const float *a, unsigned lda, const float *b, unsigned ldb,
                               unsigned k, float *c, unsigned ldc, bool accumulate)
    {
        const unsigned lane = threadIdx.x % WARP, row = lane / 2, first = lane % 2 * (TILE / 2);
        for (unsigned column = first; column < first + TILE / 2; column++) {
            float sum = accumulate ? c[row * ldc + column] : 0.0f;
            for (unsigned i = 0; i < k; i++)
                sum += a[row * lda + i] *
                       b[LAYOUT == B_ROWS_ARE_COLUMNS ? column * ldb + i : i * ldb + column];
            c[row * ldc + column] = sum;
        }
        __syncwarp();
    }
};

#endif
