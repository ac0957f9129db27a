/* Workspaces: streams, their memory, and the copies between host and device. */
#include "backend/cuda/cuda_workspace.h"

#include "backend/cuda/cuda_device.h"

extern "C" {
#include "backend/cuda/cuda_product.h"
}

#include <string.h>

namespace
{

constexpr size_t DOWNLOAD_BYTES = 4 << 20; /* of each pinned buffer, at least */

aimo_status open_stream(cuda_workspace *w, aimo_error *err)
{
    if (w->stream == NULL)
        AIMO_TRY_CUDA(cudaStreamCreateWithFlags(&w->stream, cudaStreamNonBlocking), err);
    for (unsigned i = 0; i < DOWNLOAD_BUFFERS; i++)
        if (w->downloaded[i] == NULL) /* waiting for it gives the core to other threads */
            AIMO_TRY_CUDA(cudaEventCreateWithFlags(&w->downloaded[i],
                                                   cudaEventBlockingSync | cudaEventDisableTiming),
                          err);
    return AIMO_OK;
}

void close_workspace(cuda_workspace *w)
{
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

/* With lock held: the idle workspace that fits best: large enough before too small, then the
 * smaller one. */
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

/* With lock held. When the device is full, what idle workspaces keep is given up first. */
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
    AIMO_TRY(cuda_check_process(err)); /* before the lock, which a fork may have left held */
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

aimo_status cuda_workspace_upload(cuda_workspace *w, const int32_t *ids, const size_t *offsets,
                                  size_t batch, aimo_error *err)
{
    const size_t tokens = offsets[batch];
    size_t blocks = 0;
    for (size_t i = 0; i < batch; i++)
        blocks += (offsets[i + 1] - offsets[i] + ATTENTION_QUERIES - 1) / ATTENTION_QUERIES;
    const size_t bytes = (2 * tokens + batch + 1 + 2 * blocks) * sizeof(int32_t);
    if (w->input.bytes < bytes) { /* rounded up, so that it does not grow by every chunk */
        AIMO_TRY(cuda_grow_device(&w->input, 2 * bytes, "token ids", err));
        AIMO_TRY(cuda_grow_pinned(&w->pinned_input, 2 * bytes, err));
    }
    int32_t *host = static_cast<int32_t *>(w->pinned_input.at), *places = host + tokens;
    int32_t *ends = places + tokens, *block = ends + batch + 1;
    memcpy(host, ids, tokens * sizeof *ids);
    ends[0] = 0;
    for (size_t i = 0; i < batch; i++) {
        const size_t length = offsets[i + 1] - offsets[i];
        ends[i + 1] = static_cast<int32_t>(offsets[i + 1]);
        for (size_t t = 0; t < length; t++)
            places[offsets[i] + t] = static_cast<int32_t>(t);
        for (size_t query = 0; query < length; query += ATTENTION_QUERIES) {
            *block++ = static_cast<int32_t>(i);
            *block++ = static_cast<int32_t>(query);
        }
    }
    const int32_t *device = static_cast<const int32_t *>(w->input.at);
    w->sequences = {
        device, device + tokens, device + 2 * tokens, device + 2 * tokens + batch + 1, tokens,
        batch,  blocks};
    w->busy = true;
    AIMO_TRY_CUDA(cudaMemcpyAsync(w->input.at, host, bytes, cudaMemcpyHostToDevice, w->stream),
                  err);
    return AIMO_OK;
}

aimo_status cuda_workspace_download(cuda_workspace *w, const void *rows, size_t stride,
                                    size_t row_bytes, size_t count, void *host, aimo_error *err)
{
    const size_t piece_rows = row_bytes < DOWNLOAD_BYTES ? DOWNLOAD_BYTES / row_bytes : 1;
    const size_t pieces = (count + piece_rows - 1) / piece_rows;
    for (unsigned i = 0; i < DOWNLOAD_BUFFERS; i++)
        AIMO_TRY(cuda_grow_pinned(&w->pinned_output[i],
                                  row_bytes > DOWNLOAD_BYTES ? row_bytes : DOWNLOAD_BYTES, err));
    for (size_t piece = 0; piece <= pieces; piece++) {
        if (piece < pieces) {
            const size_t first = piece * piece_rows, left = count - first;
            AIMO_TRY_CUDA(cudaMemcpy2DAsync(w->pinned_output[piece % 2].at, row_bytes,
                                            static_cast<const char *>(rows) + first * stride,
                                            stride, row_bytes,
                                            left < piece_rows ? left : piece_rows,
                                            cudaMemcpyDeviceToHost, w->stream),
                          err);
            AIMO_TRY_CUDA(cudaEventRecord(w->downloaded[piece % 2], w->stream), err);
        }
        if (piece > 0) {
            const size_t done = piece - 1, first = done * piece_rows, left = count - first;
            AIMO_TRY_CUDA(cudaEventSynchronize(w->downloaded[done % 2]), err);
            memcpy(static_cast<char *>(host) + first * row_bytes, w->pinned_output[done % 2].at,
                   (left < piece_rows ? left : piece_rows) * row_bytes);
        }
    }
    w->busy = false;
    return AIMO_OK;
}
