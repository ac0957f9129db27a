/* The screen's kernel. */
#ifndef AIMO_CUDA_ROW_SCREEN_H
#define AIMO_CUDA_ROW_SCREEN_H

#include "backend/cuda/cuda_common.h"

extern "C" {
#include "backend/row_screen.h"
}

/* Rows and queries that one block compares, and how many of their elements it processes at once;
 * counts are padded to multiples of this. */
constexpr unsigned SCREEN_TILE = 64;

/* Rows [count rounded up, padded], zeros beyond count. */
struct screen_chunk {
    const __half *rows;
    unsigned count;
};

/* All in device memory. */
struct screen_input {
    const screen_chunk *chunks;
    const __half *queries; /* [tiles of queries * SCREEN_TILE, padded] */
    const float *limits;   /* [the same]: infinite beyond the last query */
    unsigned chunk_count, query_tiles, padded;
    aimo_screen_candidate *candidates; /* [capacity] */
    unsigned long long capacity;
    unsigned long long *found; /* 0 before */
};

/* Enqueues the screen: every sum that reaches its query's limit becomes a candidate. */
aimo_status cuda_screen(const screen_input &in, cudaStream_t stream, aimo_error *err);

/* The screen of a device, for the library's table. */
aimo_status cuda_row_screen_new(int device, size_t dim, aimo_row_screen **out, aimo_error *err);

#endif
