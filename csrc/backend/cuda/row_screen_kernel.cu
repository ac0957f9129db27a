/* Which sums reach their limits: one block for 64 rows and 64 queries.
 *
 * A block walks the dimension 64 elements at a time, both tiles in shared memory; each of its warps
 * has 16 rows and all queries, the sums in registers until the end. Blocks that differ only in
 * their queries are adjacent, so that rows come from device memory once and then from its cache. */
#include "backend/cuda/row_screen.h"

#include <mma.h>

namespace
{

constexpr unsigned TILE = 16; /* of a warp's products */
constexpr unsigned THREADS = SCREEN_TILE / TILE * WARP, QUERY_PARTS = SCREEN_TILE / TILE;
constexpr unsigned CHUNK_TILES = AIMO_SCREEN_ROWS_MOST / SCREEN_TILE;

/* Rows are padded so that those of a tile begin in different banks. */
struct screen_tiles {
    static constexpr unsigned LD = SCREEN_TILE + 8, LD_SUMS = SCREEN_TILE + 4;
    alignas(128) __half rows[SCREEN_TILE * LD];
    alignas(128) __half queries[SCREEN_TILE * LD];
    alignas(128) float sums[SCREEN_TILE * LD_SUMS];
};

/* What is loaded at once. */
struct alignas(16) eight_halves {
    __half at[8];
};

/* tile [SCREEN_TILE][LD] = SCREEN_TILE columns of as many rows, which lie ld apart. */
__device__ void load_tile(__half *tile, const __half *src, unsigned ld)
{
    constexpr unsigned at_once = 8, parts = SCREEN_TILE / at_once;
    for (unsigned i = threadIdx.x; i < SCREEN_TILE * parts; i += THREADS) {
        const unsigned row = i / parts, column = i % parts * at_once;
        *reinterpret_cast<eight_halves *>(tile + row * screen_tiles::LD + column) =
            *reinterpret_cast<const eight_halves *>(src + static_cast<size_t>(row) * ld + column);
    }
}

/* shared->sums = rows @ queries^T */
__device__ void multiply(screen_tiles *shared, const __half *rows, const __half *queries,
                         unsigned padded)
{
    using namespace nvcuda;
    const unsigned row = threadIdx.x / WARP * TILE;
    wmma::fragment<wmma::matrix_a, TILE, TILE, TILE, __half, wmma::row_major> a;
    wmma::fragment<wmma::matrix_b, TILE, TILE, TILE, __half, wmma::col_major> b;
    wmma::fragment<wmma::accumulator, TILE, TILE, TILE, float> sums[QUERY_PARTS];
    for (unsigned part = 0; part < QUERY_PARTS; part++)
        wmma::fill_fragment(sums[part], 0.0f);
    for (unsigned k = 0; k < padded; k += SCREEN_TILE) {
        __syncthreads(); /* no thread still reads the previous tiles */
        load_tile(shared->rows, rows + k, padded);
        load_tile(shared->queries, queries + k, padded);
        __syncthreads();
        for (unsigned i = 0; i < SCREEN_TILE; i += TILE) {
            wmma::load_matrix_sync(a, shared->rows + row * screen_tiles::LD + i, screen_tiles::LD);
            for (unsigned part = 0; part < QUERY_PARTS; part++) {
                wmma::load_matrix_sync(b, shared->queries + part * TILE * screen_tiles::LD + i,
                                       screen_tiles::LD);
                wmma::mma_sync(sums[part], a, b, sums[part]);
            }
        }
    }
    for (unsigned part = 0; part < QUERY_PARTS; part++)
        wmma::store_matrix_sync(shared->sums + row * screen_tiles::LD_SUMS + part * TILE,
                                sums[part], screen_tiles::LD_SUMS, wmma::mem_row_major);
    __syncthreads();
}

/* A thread has half of a row's sums. */
__device__ void list_candidates(const screen_input &in, const screen_tiles *shared, unsigned count,
                                unsigned first_position, unsigned first_query)
{
    constexpr unsigned mine = SCREEN_TILE * SCREEN_TILE / THREADS;
    const unsigned row = threadIdx.x * mine / SCREEN_TILE;
    const unsigned first = threadIdx.x * mine % SCREEN_TILE;
    const float *sums = shared->sums + row * screen_tiles::LD_SUMS;
    const float *limits = in.limits + first_query;
    unsigned hits = 0;
    for (unsigned i = first; row < count && i < first + mine; i++)
        hits += sums[i] >= limits[i];
    if (hits == 0)
        return;
    unsigned long long at = atomicAdd(in.found, static_cast<unsigned long long>(hits));
    for (unsigned i = first; i < first + mine; i++) {
        if (!(sums[i] >= limits[i]))
            continue;
        if (at < in.capacity)
            in.candidates[at] = {first_position + row, first_query + i};
        at++;
    }
}

__global__ void screen_kernel(screen_input in)
{
    SHARED_MEMORY(screen_tiles, shared);
    const unsigned query = blockIdx.x % in.query_tiles * SCREEN_TILE;
    const unsigned tile = blockIdx.x / in.query_tiles;
    const unsigned chunk = tile / CHUNK_TILES, row = tile % CHUNK_TILES * SCREEN_TILE;
    const screen_chunk rows = in.chunks[chunk];
    if (row >= rows.count)
        return;
    multiply(shared, rows.rows + static_cast<size_t>(row) * in.padded,
             in.queries + static_cast<size_t>(query) * in.padded, in.padded);
    list_candidates(in, shared, rows.count - row, chunk * AIMO_SCREEN_ROWS_MOST + row, query);
}

} // namespace

aimo_status cuda_screen(const screen_input &in, cudaStream_t stream, aimo_error *err)
{
    const launch_shape shape = {dim3(in.chunk_count * CHUNK_TILES * in.query_tiles), THREADS,
                                sizeof(screen_tiles)};
    return launch_kernel(screen_kernel, shape, stream, err, in);
}
