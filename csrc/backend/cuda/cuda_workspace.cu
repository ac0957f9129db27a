/* Workspaces: streams, their memory, and the copies between host and device. */
#include "backend/cuda/cuda_workspace.h"

#include "backend/cuda/attention_tiles.h"
#include "backend/cuda/cuda_device.h"

extern "C" {
#include "backend/cuda/cuda_product.h"
#include "base/clock.h"
}

#include <algorithm>
#include <string.h>

namespace
{

constexpr size_t DOWNLOAD_BYTES = 4 << 20; /* of each pinned buffer, at least */

aimo_status open_stream(cuda_workspace *w, aimo_error *err)
{
    if (w->stream == NULL)
        AIMO_TRY_CUDA(cudaStreamCreateWithFlags(&w->stream, cudaStreamNonBlocking), err);
    for (unsigned i = 0; i < DOWNLOAD_BUFFERS; i++)
        if (w->downloaded[i] == NULL) /* waiting for it yields the core to other threads */
            AIMO_TRY_CUDA(cudaEventCreateWithFlags(&w->downloaded[i],
                                                   cudaEventBlockingSync | cudaEventDisableTiming),
                          err);
    return AIMO_OK;
}

void close_workspace(cuda_workspace *w)
{
    cuda_graphs_clear(&w->graphs);
    if (w->stream != NULL)
        (void)cudaStreamDestroy(w->stream);
    for (unsigned i = 0; i < DOWNLOAD_BUFFERS; i++) {
        if (w->downloaded[i] != NULL)
            (void)cudaEventDestroy(w->downloaded[i]);
        (void)cudaFreeHost(w->pinned_output[i].at);
    }
    (void)cudaFree(w->memory.at);
    (void)cudaFree(w->input.at);
    (void)cudaFreeHost(w->pinned_input.at);
    *w = {};
}

size_t align_up(size_t bytes) { return (bytes + 255) / 256 * 256; }

/* With lock held: the idle workspace that fits best: one that is large enough rather than not, then
 * the smaller one. */
cuda_workspace *best_idle(cuda_workspaces *pool, size_t bytes)
{
    cuda_workspace *best = NULL;
    for (cuda_workspace &w : pool->all) {
        if (w.leased)
            continue;
        const bool fits = w.memory.bytes >= bytes, best_fits = best && best->memory.bytes >= bytes;
        if (best == NULL || (fits && !best_fits) ||
            (fits == best_fits && w.memory.bytes < best->memory.bytes))
            best = &w;
    }
    return best;
}

void free_idle_memory(cuda_workspaces *pool)
{
    for (cuda_workspace &w : pool->all)
        if (!w.leased) {
            (void)cudaFree(w.memory.at);
            w.memory = {};
        }
}

/* With lock held. When the device is full, frees the memory of idle workspaces before giving up. */
aimo_status prepare(cuda_workspaces *pool, cuda_workspace *w, size_t bytes, aimo_error *err)
{
    AIMO_TRY(open_stream(w, err));
    aimo_status status = cuda_grow_device(&w->memory, bytes, "working memory", err);
    if (status == AIMO_ERR_MEMORY) {
        free_idle_memory(pool);
        status = cuda_grow_device(&w->memory, bytes, "working memory", err);
    }
    return status;
}

size_t power_of_2_from(size_t least, size_t count, size_t factor)
{
    while (least < count)
        least *= factor;
    return least;
}

bool is_small(size_t token_rows, size_t vector_rows)
{
    return token_rows <= GRAPH_ROWS_MOST && vector_rows <= GRAPH_ROWS_MOST;
}

/* The number of attention's blocks for a chunk; for a small one, as many as its rows could ever
 * need. */
size_t count_blocks(const aimo_sequences &s)
{
    if (is_small(s.token_rows, s.vector_rows))
        return attention_blocks_most(s.vector_rows + 1, s.token_rows);
    return attention_block_count(s.offsets, s.batch);
}

/* An upper bound on the length of a chunk's sequences; for a small one, a bound for all chunks with
 * as many rows. */
size_t longest_sequence(const aimo_sequences &s)
{
    if (is_small(s.token_rows, s.vector_rows))
        return s.token_rows;
    size_t longest = 0;
    for (size_t i = 0; i < s.batch; i++)
        longest = std::max(longest, s.offsets[i + 1] - s.offsets[i]);
    return longest;
}

/* The layout of the sequences' parts, one after another, in host or device memory; attention's
 * tiles, which need the alignment, come first. */
struct sequence_layout {
    size_t blocks, ids, places, offsets, end;

    sequence_layout(const aimo_sequences &s, size_t block_count)
        : blocks(block_count),
          ids(block_count * ATTENTION_WARPS * sizeof(attention_tile) / sizeof(int32_t)),
          places(ids + s.token_rows), offsets(places + s.token_rows),
          end(offsets + s.vector_rows + 2)
    {
    }
};

/* Writes the sequences as kernels read them; padding tokens have valid ids and places. */
void fill_sequences(const aimo_sequences &s, const sequence_layout &at, int32_t *host)
{
    const size_t tokens = s.offsets[s.batch], surplus = s.token_rows - tokens;
    int32_t *ids = host + at.ids, *places = host + at.places, *offsets = host + at.offsets;
    memcpy(ids, s.ids, tokens * sizeof *ids);
    memset(ids + tokens, 0, surplus * sizeof *ids);
    memset(places + tokens, 0, surplus * sizeof *places);
    for (size_t i = 0; i < s.batch; i++) {
        const size_t begin = s.offsets[i], length = s.offsets[i + 1] - begin;
        offsets[i] = static_cast<int32_t>(begin);
        for (size_t t = 0; t < length; t++)
            places[begin + t] = static_cast<int32_t>(t);
    }
    for (size_t i = s.batch; i <= s.vector_rows; i++)
        offsets[i] = static_cast<int32_t>(tokens);
    offsets[s.vector_rows + 1] = static_cast<int32_t>(s.token_rows);
    attention_list_tiles(offsets, s.vector_rows + 1, at.blocks,
                         reinterpret_cast<attention_tile *>(host));
}

/* Blocking on the event yields the core to other threads but takes some 50 us to wake up: nothing
 * for a large chunk, but a significant part of a small one's time. */
aimo_status wait_for(cudaEvent_t event, bool is_soon, aimo_error *err)
{
    constexpr double soon = 1e-3; /* seconds */
    if (is_soon) {
        const double until = aimo_clock_seconds() + soon;
        cudaError_t state;
        while ((state = cudaEventQuery(event)) == cudaErrorNotReady && aimo_clock_seconds() < until)
            continue;
        (void)cudaGetLastError(); /* "not ready" is recorded as the thread's last error */
        if (state == cudaSuccess)
            return AIMO_OK;
    }
    AIMO_TRY_CUDA(cudaEventSynchronize(event), err);
    return AIMO_OK;
}

/* Enqueues a copy of rows that are `stride` bytes apart to contiguous memory. */
aimo_status copy_rows(void *host, const void *rows, size_t stride, size_t row_bytes, size_t count,
                      cudaStream_t stream, aimo_error *err)
{
    if (count == 1)
        AIMO_TRY_CUDA(cudaMemcpyAsync(host, rows, row_bytes, cudaMemcpyDeviceToHost, stream), err);
    else
        AIMO_TRY_CUDA(cudaMemcpy2DAsync(host, row_bytes, rows, stride, row_bytes, count,
                                        cudaMemcpyDeviceToHost, stream),
                      err);
    return AIMO_OK;
}

bool is_same(const growing_memory &a, const growing_memory &b)
{
    return a.at == b.at && a.bytes == b.bytes;
}

void wait_for_idle(cuda_workspace *w)
{
    if (w->busy)
        (void)cudaStreamSynchronize(w->stream); /* its failure was, or will be, reported */
    w->busy = false;
}

} // namespace

void cuda_workspaces_init(cuda_workspaces *pool, int device)
{
    memset(pool, 0, sizeof *pool);
    pool->device = device;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->returned, NULL);
}

void cuda_workspaces_clear(cuda_workspaces *pool)
{
    if (!cuda_process_is_ours())
        return; /* the lock may be one that a thread of the parent held */
    const device_scope scope(pool->device);
    for (cuda_workspace &w : pool->all)
        close_workspace(&w);
    pthread_cond_destroy(&pool->returned);
    pthread_mutex_destroy(&pool->lock);
}

aimo_status cuda_workspace_lease(cuda_workspaces *pool, size_t bytes, cuda_workspace **out,
                                 aimo_error *err)
{
    AIMO_TRY(cuda_check_process(err)); /* before taking the lock, which a fork may have left held */
    const size_t all = align_up(bytes) + CUDA_PRODUCT_WORKSPACE;
    int previous;
    AIMO_TRY(cuda_enter_device(pool->device, &previous, err));
    pthread_mutex_lock(&pool->lock);
    cuda_workspace *w;
    while ((w = best_idle(pool, all)) == NULL)
        pthread_cond_wait(&pool->returned, &pool->lock);
    const aimo_status status = prepare(pool, w, all, err);
    if (status == AIMO_OK) {
        w->leased = true;
        w->previous_device = previous;
        w->base.memory = w->memory.at;
        *out = w;
    }
    pthread_mutex_unlock(&pool->lock);
    if (status != AIMO_OK)
        cuda_leave_device(previous);
    return status;
}

void cuda_workspace_return(cuda_workspaces *pool, cuda_workspace *w)
{
    wait_for_idle(w);
    cuda_leave_device(w->previous_device);
    pthread_mutex_lock(&pool->lock);
    w->leased = false;
    pthread_cond_signal(&pool->returned);
    pthread_mutex_unlock(&pool->lock);
}

void *cuda_workspace_of_products(const cuda_workspace *w)
{
    return static_cast<char *>(w->memory.at) + w->memory.bytes - CUDA_PRODUCT_WORKSPACE;
}

void cuda_workspace_pad(size_t most, size_t *token_rows, size_t *vector_rows)
{
    const size_t tokens = power_of_2_from(16, *token_rows, 2);
    const size_t vectors = power_of_2_from(1, *vector_rows, 8);
    if (!is_small(tokens, vectors) || tokens > most || vectors > most)
        return;
    *token_rows = tokens;
    *vector_rows = vectors;
}

aimo_status cuda_workspace_upload(cuda_workspace *w, const aimo_sequences &s, aimo_error *err)
{
    const size_t blocks = count_blocks(s);
    const sequence_layout at(s, blocks);
    const size_t bytes = at.end * sizeof(int32_t);
    if (w->input.bytes < bytes) { /* rounded up, so that it does not grow with every chunk */
        AIMO_TRY(cuda_grow_device(&w->input, 2 * bytes, "token ids", err));
        AIMO_TRY(cuda_grow_pinned(&w->pinned_input, 2 * bytes, err));
    }
    int32_t *host = static_cast<int32_t *>(w->pinned_input.at);
    fill_sequences(s, at, host);
    const int32_t *device = static_cast<const int32_t *>(w->input.at);
    w->sequences = {device + at.ids,
                    device + at.places,
                    device + at.offsets,
                    reinterpret_cast<const attention_tile *>(device),
                    s.token_rows,
                    s.vector_rows,
                    blocks,
                    longest_sequence(s)};
    w->busy = true;
    AIMO_TRY_CUDA(cudaMemcpyAsync(w->input.at, host, bytes, cudaMemcpyHostToDevice, w->stream),
                  err);
    return AIMO_OK;
}

aimo_status cuda_workspace_run(cuda_workspace *w, aimo_forward *forward, void *context,
                               const aimo_run_key *key, aimo_error *err)
{
    if (key == NULL || !is_small(w->sequences.tokens, w->sequences.batch))
        return forward(context, err);
    if (!is_same(w->graphs_memory, w->memory) || !is_same(w->graphs_input, w->input))
        cuda_graphs_clear(
            &w->graphs); /* the addresses they were recorded with are no longer valid */
    w->graphs_memory = w->memory;
    w->graphs_input = w->input;
    const cuda_graph_key whole = {*key, w->sequences.tokens, w->sequences.batch};
    return cuda_graphs_run(&w->graphs, whole, w->stream, forward, context, err);
}

aimo_status cuda_workspace_download(cuda_workspace *w, const void *rows, size_t stride,
                                    size_t row_bytes, size_t count, void *host, aimo_error *err)
{
    const size_t piece_rows = row_bytes < DOWNLOAD_BYTES ? DOWNLOAD_BYTES / row_bytes : 1;
    const size_t pieces = (count + piece_rows - 1) / piece_rows;
    const bool is_soon = is_small(w->sequences.tokens, w->sequences.batch);
    for (unsigned i = 0; i < DOWNLOAD_BUFFERS; i++)
        AIMO_TRY(cuda_grow_pinned(&w->pinned_output[i],
                                  row_bytes > DOWNLOAD_BYTES ? row_bytes : DOWNLOAD_BYTES, err));
    for (size_t piece = 0; piece <= pieces; piece++) {
        if (piece < pieces) {
            const size_t first = piece * piece_rows, left = count - first;
            AIMO_TRY(copy_rows(w->pinned_output[piece % 2].at,
                               static_cast<const char *>(rows) + first * stride, stride, row_bytes,
                               left < piece_rows ? left : piece_rows, w->stream, err));
            AIMO_TRY_CUDA(cudaEventRecord(w->downloaded[piece % 2], w->stream), err);
        }
        if (piece > 0) {
            const size_t done = piece - 1, first = done * piece_rows, left = count - first;
            AIMO_TRY(wait_for(w->downloaded[done % 2], is_soon, err));
            memcpy(static_cast<char *>(host) + first * row_bytes, w->pinned_output[done % 2].at,
                   (left < piece_rows ? left : piece_rows) * row_bytes);
        }
    }
    w->busy = false;
    return AIMO_OK;
}

aimo_status cuda_workspace_hand_over(cuda_workspace *w, const void *rows, size_t stride,
                                     size_t row_bytes, size_t count, void *device, aimo_error *err)
{
    AIMO_TRY_CUDA(cudaMemcpy2DAsync(device, row_bytes, rows, stride, row_bytes, count,
                                    cudaMemcpyDeviceToDevice, w->stream),
                  err);
    AIMO_TRY_CUDA(cudaEventRecord(w->downloaded[0], w->stream), err);
    AIMO_TRY_CUDA(cudaEventSynchronize(w->downloaded[0]), err);
    w->busy = false;
    return AIMO_OK;
}
