/* The CPU backend: host memory, the thread pool, and the strongest rows of kernels.
 *
 * A batch is split into chunks so small that each operation finds its rows in the L2 cache, and
 * each chunk runs its whole forward pass on one thread. Within it, products, norms and attention
 * are loops that idle threads may join, so a single short text and the last chunk of a batch use
 * all threads too. */
#include "backend/backend.h"

#include "backend/cpu/cpu_kernels.h"
#include "base/memory.h"
#include "base/scratch.h"
#include "base/threads.h"

#include <math.h>
#include <string.h>

typedef struct {
    aimo_backend base;
    unsigned features;
    const aimo_cpu_kernels *kernels;
} cpu_backend;

struct aimo_backend_matrix {
    aimo_matrix view;
};

static const aimo_cpu_kernels rows[] = {
#define AIMO_CPU_KERNEL(isa, required)                                                             \
    {#isa,                                                                                         \
     required,                                                                                     \
     aimo_embed_##isa,                                                                             \
     aimo_residual_layer_norm_##isa,                                                               \
     aimo_attention_##isa,                                                                         \
     aimo_pool_##isa},
#include "backend/cpu/cpu_kernels.def"
#undef AIMO_CPU_KERNEL
};
enum { ROW_COUNT = sizeof rows / sizeof rows[0] };

const aimo_cpu_kernels *aimo_cpu_kernels_row(size_t index)
{
    return index < ROW_COUNT ? &rows[index] : NULL;
}

const aimo_cpu_kernels *aimo_cpu_kernels_select(unsigned features)
{
    const aimo_cpu_kernels *best = &rows[0];
    for (size_t i = 1; i < ROW_COUNT; i++)
        if ((rows[i].required & ~features) == 0)
            best = &rows[i];
    return best;
}

static const cpu_backend *as_cpu(const aimo_backend *backend)
{
    return (const cpu_backend *)backend;
}

/* 128 tokens of MiniLM need 1.2 MB of rows, of which any one operation touches less than an L2
 * cache. AMX is so fast that the time for reading the weights would show, so its chunks are larger;
 * such processors have 2 MiB of L2. All chunks are about equal, and every thread gets the same
 * number of them. */
static size_t chunk_tokens(const aimo_backend *backend, size_t total_tokens, size_t token_bytes)
{
    (void)token_bytes;
    enum { SMALLEST = 32 };
    const size_t largest = (as_cpu(backend)->features & AIMO_CPU_AMX) != 0 ? 256 : 128;
    const size_t threads = aimo_thread_count(), round = threads * largest;
    if (total_tokens <= SMALLEST)
        return SMALLEST;
    const size_t count = (total_tokens + round - 1) / round * threads;
    const size_t share = (total_tokens + count - 1) / count;
    return share < SMALLEST ? SMALLEST : share;
}

static void pad_chunk(const aimo_backend *backend, size_t token_bytes, size_t *token_rows,
                      size_t *vector_rows)
{
    (void)backend, (void)token_bytes, (void)token_rows, (void)vector_rows;
}

static size_t row_bytes(const aimo_backend *backend, aimo_rows_kind kind, size_t columns)
{
    (void)backend, (void)kind;
    return columns * sizeof(float);
}

static aimo_status constant_new(aimo_backend *backend, const void *host, size_t bytes,
                                const void **out, aimo_error *err)
{
    (void)backend, (void)bytes, (void)err;
    *out = host;
    return AIMO_OK;
}

static void constant_free(aimo_backend *backend, const void *device)
{
    (void)backend, (void)device;
}

static aimo_status matrix_new(aimo_backend *backend, aimo_dtype dtype, size_t n, size_t k,
                              const void *panels, aimo_backend_matrix **out, aimo_error *err)
{
    AIMO_TRY(aimo_memory_new((void **)out, 1, sizeof **out, "matrix", err));
    (*out)->view = aimo_matrix_of(dtype, n, k, panels, as_cpu(backend)->features);
    return AIMO_OK;
}

static void matrix_free(aimo_backend *backend, aimo_backend_matrix *matrix)
{
    (void)backend;
    aimo_memory_free(matrix);
}

/* The leased block begins with a cache line that holds the aimo_workspace. */
static aimo_status workspace_lease(aimo_backend *backend, size_t bytes, aimo_workspace **out,
                                   aimo_error *err)
{
    (void)backend;
    void *block;
    AIMO_TRY(aimo_scratch_lease(&block, AIMO_CACHE_LINE + bytes, err));
    *out = block;
    (*out)->memory = (char *)block + AIMO_CACHE_LINE;
    return AIMO_OK;
}

static void workspace_return(aimo_backend *backend, aimo_workspace *workspace)
{
    (void)backend;
    aimo_scratch_return(workspace);
}

static aimo_status upload(aimo_backend *backend, aimo_workspace *workspace,
                          const aimo_sequences *sequences, aimo_error *err)
{
    (void)backend, (void)workspace, (void)sequences,
        (void)err; /* operations get them as arguments */
    return AIMO_OK;
}

static aimo_status run(aimo_backend *backend, aimo_workspace *workspace, aimo_forward *forward,
                       void *context, const aimo_run_key *key, aimo_error *err)
{
    (void)backend, (void)workspace, (void)key;
    return forward(context, err);
}

typedef struct {
    const cpu_backend *backend;
    const void *args;
    size_t step; /* panels or rows per index of the loop */
} loop_context;

/* Below this much work another thread's help costs more than it saves. */
enum { LOOP_WORK = 1 << 18 };

/* How many of `count` items, each of `work` multiplications, one index of a loop should take: all
 * of them when no thread is idle, because each part has costs of its own (it rounds its rows of x);
 * else two parts per thread, so that no thread waits long for the last part. */
static size_t items_per_index(size_t count, size_t work)
{
    const size_t idle = aimo_threads_idle(), parts = idle == 0 ? 1 : 2 * (idle + 1);
    const size_t share = (count + parts - 1) / parts;
    const size_t least = LOOP_WORK / (work + 1) + 1;
    return share > least ? share : least;
}

/* Embedding and pooling only move rows; splitting them would not pay off. */
static aimo_status embed(aimo_backend *backend, aimo_workspace *workspace,
                         const aimo_embed_args *args, aimo_error *err)
{
    (void)workspace, (void)err;
    for (size_t i = 0; i < args->batch; i++)
        as_cpu(backend)->kernels->embed(args, i);
    return AIMO_OK;
}

static void linear_index(void *context, size_t index)
{
    const loop_context *c = context;
    const aimo_linear_args *a = c->args;
    const aimo_matrix *w = &a->w->view;
    const size_t count = aimo_matrix_panel_count(w), begin = index * c->step;
    const size_t end = count - begin < c->step ? count : begin + c->step;
    aimo_gemm(w, a->x, w->k, a->m, a->bias, a->activation, a->norm != NULL ? a->scratch : a->y,
              w->n, begin, end);
}

static void norm_index(void *context, size_t index)
{
    const loop_context *c = context;
    const aimo_linear_args *a = c->args;
    const size_t n = a->w->view.n, begin = index * c->step;
    const size_t m = a->m - begin < c->step ? a->m - begin : c->step;
    c->backend->kernels->residual_layer_norm(a->scratch + begin * n, a->residual + begin * n,
                                             a->norm, a->y + begin * n, m, n);
}

static void raise_peaks(const aimo_linear_args *a)
{
    const size_t k = a->w->view.k;
    for (size_t i = 0; i < a->m * k; i++)
        if (fabsf(a->x[i]) > a->input_peaks[i % k])
            a->input_peaks[i % k] = fabsf(a->x[i]);
}

static aimo_status linear(aimo_backend *backend, aimo_workspace *workspace,
                          const aimo_linear_args *args, aimo_error *err)
{
    (void)workspace, (void)err;
    const aimo_matrix *w = &args->w->view;
    if (args->input_peaks != NULL)
        raise_peaks(args);
    const size_t panels = aimo_matrix_panel_count(w), even = 2; /* wide tiles take two panels */
    size_t step = items_per_index(panels, args->m * w->k * AIMO_PANEL_COLUMNS);
    step = (step + even - 1) / even * even;
    loop_context context = {as_cpu(backend), args, step};
    aimo_parallel_for((panels + step - 1) / step, linear_index, &context);
    if (args->norm != NULL) {
        context.step = items_per_index(args->m, w->n * 8);
        aimo_parallel_for((args->m + context.step - 1) / context.step, norm_index, &context);
    }
    return AIMO_OK;
}

static void attention_index(void *context, size_t index)
{
    const loop_context *c = context;
    const aimo_attention_args *a = c->args;
    const size_t end = (index + 1) * c->step, all = a->batch * a->heads;
    for (size_t i = index * c->step; i < end && i < all; i++)
        c->backend->kernels->attention(a, i / a->heads, i % a->heads);
}

static aimo_status attention(aimo_backend *backend, aimo_workspace *workspace,
                             const aimo_attention_args *args, aimo_error *err)
{
    (void)workspace, (void)err;
    const size_t count = args->batch * args->heads;
    const size_t mean_length = args->offsets[args->batch] / args->batch;
    /* Short sequences take four times as long as their multiplications suggest, because of
     * exponentials and small tiles. */
    const size_t step = items_per_index(count, 8 * mean_length * mean_length * args->head_dim);
    loop_context context = {as_cpu(backend), args, step};
    aimo_parallel_for((count + step - 1) / step, attention_index, &context);
    return AIMO_OK;
}

static aimo_status pool(aimo_backend *backend, aimo_workspace *workspace,
                        const aimo_pool_args *args, aimo_error *err)
{
    (void)workspace, (void)err;
    static const size_t one_token[] = {0, 1};
    for (size_t i = 0; i < args->batch; i++) {
        if (args->offsets != NULL) {
            as_cpu(backend)->kernels->pool(args, i);
            continue;
        }
        aimo_pool_args row = *args;
        row.offsets = one_token;
        row.x += i * args->hidden;
        row.out += i * args->columns;
        as_cpu(backend)->kernels->pool(&row, 0);
    }
    return AIMO_OK;
}

static aimo_status download(aimo_backend *backend, aimo_workspace *workspace, const float *x,
                            size_t count, size_t columns, float *host, aimo_error *err)
{
    (void)backend, (void)workspace, (void)err;
    memcpy(host, x, count * columns * sizeof *host);
    return AIMO_OK;
}

static void cpu_free(aimo_backend *backend) { aimo_memory_free(backend); }

static const aimo_backend_ops ops = {
    .name = "cpu",
    .chunk_tokens = chunk_tokens,
    .pad_chunk = pad_chunk,
    .row_bytes = row_bytes,
    .constant_new = constant_new,
    .constant_free = constant_free,
    .matrix_new = matrix_new,
    .matrix_free = matrix_free,
    .workspace_lease = workspace_lease,
    .workspace_return = workspace_return,
    .upload = upload,
    .run = run,
    .embed = embed,
    .linear = linear,
    .attention = attention,
    .pool = pool,
    .download = download,
    .hand_over = download, /* its device memory is host memory */
    .free = cpu_free,
};

aimo_status aimo_backend_cpu_new(unsigned features, aimo_backend **out, aimo_error *err)
{
    cpu_backend *backend;
    AIMO_TRY(aimo_memory_new((void **)&backend, 1, sizeof *backend, "backend", err));
    *backend = (cpu_backend){{&ops}, features, aimo_cpu_kernels_select(features)};
    *out = &backend->base;
    return AIMO_OK;
}
