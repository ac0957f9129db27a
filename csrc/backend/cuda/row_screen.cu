/* Screening on a CUDA device: rows in device memory, and calls with a stream and working memory of
 * their own, which are kept for later calls. */
#include "backend/cuda/row_screen.h"

#include "backend/cuda/cuda_device.h"

extern "C" {
#include "backend/cuda/screen_rounding.h"
}

#include <math.h>
#include <pthread.h>
#include <string.h>

struct aimo_screen_rows {
    __half *device;
    unsigned count;
    double error; /* the largest distance of a row from its halves */
};

namespace
{

struct screen_work {
    screen_work *next;
    cudaStream_t stream;
    growing_memory device, pinned;
};

struct cuda_row_screen {
    aimo_row_screen base;
    size_t dim, padded;
    pthread_mutex_t lock;
    screen_work *idle; /* protected by lock */
};

/* The layout of a call's memory, the same on device and host, except that the host's has no
 * candidates. */
struct screen_layout {
    size_t chunks, limits, queries, candidates, bytes; /* offsets; the number found is the first */
};

cuda_row_screen *as_cuda(aimo_row_screen *screen)
{
    return reinterpret_cast<cuda_row_screen *>(screen);
}

size_t fill_up(size_t n, size_t whole) { return (n + whole - 1) / whole * whole; }

void work_free(screen_work *work)
{
    if (work->stream != NULL)
        (void)cudaStreamDestroy(work->stream);
    (void)cudaFree(work->device.at);
    (void)cudaFreeHost(work->pinned.at);
    aimo_memory_free(work);
}

aimo_status work_lease(cuda_row_screen *s, screen_work **out, aimo_error *err)
{
    pthread_mutex_lock(&s->lock);
    screen_work *work = s->idle;
    if (work != NULL)
        s->idle = work->next;
    pthread_mutex_unlock(&s->lock);
    if (work == NULL) {
        void *memory;
        AIMO_TRY(aimo_memory_new_zero(&memory, 1, sizeof *work, "screen", err));
        work = static_cast<screen_work *>(memory);
        const cudaError_t error = cudaStreamCreateWithFlags(&work->stream, cudaStreamNonBlocking);
        if (error != cudaSuccess) {
            work->stream = NULL;
            work_free(work);
            return aimo_cuda_fail(error, "cudaStreamCreateWithFlags", err);
        }
    }
    *out = work;
    return AIMO_OK;
}

void work_return(cuda_row_screen *s, screen_work *work)
{
    pthread_mutex_lock(&s->lock);
    work->next = s->idle;
    s->idle = work;
    pthread_mutex_unlock(&s->lock);
}

screen_layout lay_out(const cuda_row_screen *s, const aimo_screen_args &args, size_t capacity)
{
    constexpr size_t line = 256;
    const size_t n = fill_up(args.n, SCREEN_TILE);
    screen_layout l;
    l.chunks = line;
    l.limits = l.chunks + fill_up(args.rows_count * sizeof(screen_chunk), line);
    l.queries = l.limits + fill_up(n * sizeof(float), line);
    l.candidates = l.queries + fill_up(n * s->padded * sizeof(__half), line);
    l.bytes = l.candidates + capacity * sizeof(aimo_screen_candidate);
    return l;
}

/* What goes to the device, as `layout` says. */
void write_input(const cuda_row_screen *s, const aimo_screen_args &args,
                 const screen_layout &layout, char *host)
{
    screen_chunk *chunks = reinterpret_cast<screen_chunk *>(host + layout.chunks);
    float *limits = reinterpret_cast<float *>(host + layout.limits);
    uint16_t *queries = reinterpret_cast<uint16_t *>(host + layout.queries);
    double row_error = 0.0;
    for (size_t i = 0; i < args.rows_count; i++) {
        chunks[i] = {args.rows[i]->device, args.rows[i]->count};
        row_error = fmax(row_error, args.rows[i]->error);
    }
    for (size_t i = 0; i < args.n; i++) {
        const double error =
            screen_round(args.queries[i], s->dim, s->padded, queries + i * s->padded);
        limits[i] = screen_limit(args.bar, error, row_error, s->padded);
    }
    const size_t n = fill_up(args.n, SCREEN_TILE);
    for (size_t i = args.n; i < n; i++)
        limits[i] = INFINITY;
    memset(queries + args.n * s->padded, 0, (n - args.n) * s->padded * sizeof *queries);
    memset(host, 0, sizeof(unsigned long long));
}

aimo_status run_on(const cuda_row_screen *s, screen_work *work, const aimo_screen_args &args,
                   aimo_screen_candidate *candidates, size_t capacity, size_t *found,
                   aimo_error *err)
{
    const screen_layout layout = lay_out(s, args, capacity);
    AIMO_TRY(cuda_grow_device(&work->device, layout.bytes, "screen", err));
    AIMO_TRY(cuda_grow_pinned(&work->pinned, layout.candidates, err));
    char *device = static_cast<char *>(work->device.at);
    char *host = static_cast<char *>(work->pinned.at);
    write_input(s, args, layout, host);
    const screen_input in = {
        reinterpret_cast<const screen_chunk *>(device + layout.chunks),
        reinterpret_cast<const __half *>(device + layout.queries),
        reinterpret_cast<const float *>(device + layout.limits),
        static_cast<unsigned>(args.rows_count),
        static_cast<unsigned>(fill_up(args.n, SCREEN_TILE) / SCREEN_TILE),
        static_cast<unsigned>(s->padded),
        reinterpret_cast<aimo_screen_candidate *>(device + layout.candidates),
        capacity,
        reinterpret_cast<unsigned long long *>(device),
    };
    unsigned long long count;
    AIMO_TRY_CUDA(
        cudaMemcpyAsync(device, host, layout.candidates, cudaMemcpyHostToDevice, work->stream),
        err);
    AIMO_TRY(cuda_screen(in, work->stream, err));
    AIMO_TRY_CUDA(cudaMemcpyAsync(host, device, sizeof count, cudaMemcpyDeviceToHost, work->stream),
                  err);
    AIMO_TRY_CUDA(cudaStreamSynchronize(work->stream), err);
    memcpy(&count, host, sizeof count);
    *found = static_cast<size_t>(count);
    if (count == 0 || count > capacity)
        return AIMO_OK;
    AIMO_TRY_CUDA(cudaMemcpyAsync(candidates, in.candidates, count * sizeof *candidates,
                                  cudaMemcpyDeviceToHost, work->stream),
                  err);
    AIMO_TRY_CUDA(cudaStreamSynchronize(work->stream), err);
    return AIMO_OK;
}

aimo_status run(aimo_row_screen *screen, const aimo_screen_args *args,
                aimo_screen_candidate *candidates, size_t capacity, size_t *found, aimo_error *err)
{
    cuda_row_screen *s = as_cuda(screen);
    AIMO_TRY(cuda_check_process(err));
    const size_t row_tiles = args->rows_count * (AIMO_SCREEN_ROWS_MOST / SCREEN_TILE);
    if (row_tiles >
        INT32_MAX / fill_up(args->n, SCREEN_TILE)) /* positions and blocks are counted */
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "screen: too many rows and queries at once");
    *found = 0;
    if (args->rows_count == 0 || args->n == 0)
        return AIMO_OK;
    const device_scope scope(screen->device, err);
    AIMO_TRY(scope.status);
    screen_work *work = NULL;
    AIMO_TRY(work_lease(s, &work, err));
    const aimo_status status = run_on(s, work, *args, candidates, capacity, found, err);
    if (status != AIMO_OK)
        (void)cudaStreamSynchronize(work->stream); /* so that nothing uses the memory any more */
    work_return(s, work);
    return status;
}

void rows_free(aimo_row_screen *screen, aimo_screen_rows *rows)
{
    if (cuda_process_is_ours()) {
        const device_scope scope(screen->device);
        (void)cudaFree(rows->device);
    }
    aimo_memory_free(rows);
}

/* Copies rows to the device as halves, padded to whole tiles. */
aimo_status upload_rows(const cuda_row_screen *s, const float *rows, aimo_screen_rows *out,
                        aimo_error *err)
{
    const size_t count = fill_up(out->count, SCREEN_TILE), bytes = count * s->padded * 2;
    void *memory, *staging;
    AIMO_TRY(cuda_memory_new(&memory, bytes, "rows", err));
    out->device = static_cast<__half *>(memory);
    AIMO_TRY(aimo_memory_new_zero(&staging, 1, bytes, "rows", err));
    uint16_t *halves = static_cast<uint16_t *>(staging);
    for (size_t i = 0; i < out->count; i++)
        out->error = fmax(
            out->error, screen_round(rows + i * s->dim, s->dim, s->padded, halves + i * s->padded));
    cudaError_t error = cudaMemcpy(memory, halves, bytes, cudaMemcpyHostToDevice);
    if (error == cudaSuccess) /* copies from pageable memory may still be in progress */
        error = cudaStreamSynchronize(NULL);
    aimo_memory_free(staging);
    return error == cudaSuccess ? AIMO_OK : aimo_cuda_fail(error, "cudaMemcpy", err);
}

aimo_status rows_new(aimo_row_screen *screen, const float *rows, size_t count,
                     aimo_screen_rows **out, aimo_error *err)
{
    AIMO_TRY(cuda_check_process(err));
    const device_scope scope(screen->device, err);
    AIMO_TRY(scope.status);
    void *memory;
    AIMO_TRY(aimo_memory_new_zero(&memory, 1, sizeof **out, "rows", err));
    aimo_screen_rows *made = static_cast<aimo_screen_rows *>(memory);
    made->count = static_cast<unsigned>(count);
    const aimo_status status = upload_rows(as_cuda(screen), rows, made, err);
    if (status == AIMO_OK)
        *out = made;
    else
        rows_free(screen, made);
    return status;
}

void screen_free(aimo_row_screen *screen)
{
    cuda_row_screen *s = as_cuda(screen);
    if (cuda_process_is_ours()) {
        const device_scope scope(screen->device);
        for (screen_work *work = s->idle, *next; work != NULL; work = next) {
            next = work->next;
            work_free(work);
        }
        pthread_mutex_destroy(&s->lock);
    }
    aimo_memory_free(s);
}

const aimo_row_screen_ops ops = {rows_new, rows_free, run, screen_free};

} // namespace

aimo_status cuda_row_screen_new(int device, size_t dim, aimo_row_screen **out, aimo_error *err)
{
    AIMO_TRY(cuda_check_usable(device, err));
    void *memory;
    AIMO_TRY(aimo_memory_new_zero(&memory, 1, sizeof(cuda_row_screen), "screen", err));
    cuda_row_screen *s = static_cast<cuda_row_screen *>(memory);
    s->base.ops = &ops;
    s->base.device = device;
    s->dim = dim;
    s->padded = fill_up(dim, SCREEN_TILE);
    pthread_mutex_init(&s->lock, NULL);
    *out = &s->base;
    return AIMO_OK;
}
