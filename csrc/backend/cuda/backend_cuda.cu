/* The CUDA backend: the operations of backend.h, enqueued on the stream of the leased workspace. */
#include "backend/cuda/cuda_arrays.h"
#include "backend/cuda/cuda_device.h"
#include "backend/cuda/cuda_kernels.h"
#include "backend/cuda/cuda_workspace.h"
#include "backend/cuda/row_screen.h"

extern "C" {
#include "backend/cuda/cuda_product.h"
#include "backend/cuda/cuda_weights.h"
}

#include <string.h>

/* Where a product reads and writes its rows; with a norm after it, it writes to scratch memory. */
enum product_kind { HIDDEN_TO_OPERAND, OPERAND_TO_SUM, FULL_TO_FULL, PRODUCT_KINDS };

struct aimo_backend_matrix {
    size_t n, k;
    void *w; /* device, [n, k] of the backend's operand type, row-major */
    /* Made when they are first needed; protected by the backend's lock until then. */
    cuda_product products[PRODUCT_KINDS];
    bool chosen[PRODUCT_KINDS];
    void *rounded_bias; /* device, [n] of the operand type, for products that fuse it */
};

namespace
{

struct cuda_backend {
    aimo_backend base;
    int device;
    aimo_dtype dtype; /* what products take */
    cublas_handle *cublas;
    pthread_mutex_t lock;
    cuda_workspaces workspaces;
};

cuda_backend *as_cuda(aimo_backend *backend) { return reinterpret_cast<cuda_backend *>(backend); }

const cuda_backend *as_cuda(const aimo_backend *backend)
{
    return reinterpret_cast<const cuda_backend *>(backend);
}

cuda_workspace *as_cuda(aimo_workspace *workspace)
{
    return reinterpret_cast<cuda_workspace *>(workspace);
}

/* Calls `work` with a value of the operand type. */
template <typename F> auto with_operand_type(aimo_dtype dtype, const F &work)
{
    if (dtype == AIMO_F16)
        return work(__half());
    if (dtype == AIMO_BF16)
        return work(__nv_bfloat16());
    return work(float());
}

/* Of a chunk. Two workspaces of a quarter as much again, as a chunk may have one sequence more,
 * with the products' memory make 239 MB. That leaves room below the 256 MB that a backend may use
 * beside its weights for the sequences, the graphs and what cuBLAS takes for itself (10 MB with
 * bert-base on an H200). */
constexpr size_t CHUNK_BYTES = 88u << 20;

/* All chunks of a call get the same share, so that none is much smaller than the others, and their
 * number is even, so that the last one overlaps with another as well. Few different sizes occur, so
 * that workspaces are rarely replaced. */
size_t chunk_tokens(const aimo_backend *, size_t total_tokens, size_t token_bytes)
{
    constexpr size_t least = 64, step = 1024;
    const size_t most = CHUNK_BYTES / token_bytes > least ? CHUNK_BYTES / token_bytes : least;
    const size_t pairs = (total_tokens + 2 * most - 1) / (2 * most);
    const size_t count = total_tokens <= most ? 1 : 2 * pairs;
    size_t tokens = least;
    while (tokens * count < total_tokens)
        tokens += tokens < step ? tokens : step;
    return tokens < most ? tokens : most;
}

void pad_chunk(const aimo_backend *, size_t token_bytes, size_t *token_rows, size_t *vector_rows)
{
    cuda_workspace_pad(CHUNK_BYTES / token_bytes, token_rows, vector_rows);
}

size_t row_bytes(const aimo_backend *backend, aimo_rows_kind kind, size_t columns)
{
    return with_operand_type(as_cuda(backend)->dtype, [&](auto t) {
        return kind == AIMO_ROWS_FULL     ? full_row_bytes<decltype(t)>(columns)
               : kind == AIMO_ROWS_HIDDEN ? hidden_row_bytes<decltype(t)>(columns)
               : kind == AIMO_ROWS_SUM    ? columns * sizeof(sum_type<decltype(t)>)
                                          : columns * sizeof t;
    });
}

/* When cudaMemcpy returns, a copy from pageable memory may still be in progress; streams that do
 * not wait for the default one might not see it. */
aimo_status upload(void *device, const void *host, size_t bytes, aimo_error *err)
{
    AIMO_TRY_CUDA(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice), err);
    AIMO_TRY_CUDA(cudaStreamSynchronize(NULL), err);
    return AIMO_OK;
}

aimo_status download_constant(void *host, const void *device, size_t bytes, aimo_error *err)
{
    AIMO_TRY_CUDA(cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost), err);
    return AIMO_OK;
}

aimo_status constant_new(aimo_backend *backend, const void *host, size_t bytes, const void **out,
                         aimo_error *err)
{
    const device_scope scope(as_cuda(backend)->device, err);
    AIMO_TRY(scope.status);
    void *memory;
    AIMO_TRY(cuda_memory_new(&memory, bytes, "weights", err));
    *out = memory; /* freed with the encoder, even when the copy fails */
    return upload(memory, host, bytes, err);
}

void constant_free(aimo_backend *backend, const void *device)
{
    if (!cuda_process_is_ours())
        return;
    const device_scope scope(as_cuda(backend)->device);
    (void)cudaFree(const_cast<void *>(device));
}

/* Unpacks a matrix and copies it to the device, some rows at a time. */
aimo_status upload_matrix(aimo_backend_matrix *matrix, aimo_dtype dtype, const void *panels,
                          aimo_error *err)
{
    constexpr size_t at_once = 64;
    const size_t n = matrix->n, k = matrix->k;
    const size_t element = aimo_dtype_size(cuda_operand_dtype(dtype));
    void *staging;
    AIMO_TRY(aimo_memory_new(&staging, at_once + 1, k * sizeof(float), "weights", err));
    float *row = static_cast<float *>(staging);
    aimo_status status = AIMO_OK;
    for (size_t first = 0; first < n && status == AIMO_OK; first += at_once) {
        const size_t rows = n - first < at_once ? n - first : at_once;
        cuda_weights_unpack(dtype, n, k, panels, first, rows, row, row + k);
        status = upload(static_cast<char *>(matrix->w) + first * k * element, row + k,
                        rows * k * element, err);
    }
    aimo_memory_free(staging);
    return status;
}

void matrix_free(aimo_backend *backend, aimo_backend_matrix *matrix)
{
    if (cuda_process_is_ours()) {
        const device_scope scope(as_cuda(backend)->device);
        for (cuda_product &product : matrix->products)
            cuda_product_clear(&product, cuda_cublas());
        (void)cudaFree(matrix->rounded_bias);
        (void)cudaFree(matrix->w);
    }
    aimo_memory_free(matrix);
}

aimo_status matrix_new(aimo_backend *backend, aimo_dtype dtype, size_t n, size_t k,
                       const void *panels, aimo_backend_matrix **out, aimo_error *err)
{
    const device_scope scope(as_cuda(backend)->device, err);
    AIMO_TRY(scope.status);
    void *memory;
    AIMO_TRY(aimo_memory_new_zero(&memory, 1, sizeof **out, "matrix", err));
    aimo_backend_matrix *matrix = static_cast<aimo_backend_matrix *>(memory);
    matrix->n = n;
    matrix->k = k;
    aimo_status status = cuda_memory_new(
        &matrix->w, n * k * aimo_dtype_size(cuda_operand_dtype(dtype)), "weights", err);
    if (status == AIMO_OK)
        status = upload_matrix(matrix, dtype, panels, err);
    if (status == AIMO_OK)
        *out = matrix;
    else
        matrix_free(backend, matrix);
    return status;
}

aimo_status workspace_lease(aimo_backend *backend, size_t bytes, aimo_workspace **out,
                            aimo_error *err)
{
    cuda_workspace *workspace;
    AIMO_TRY(cuda_workspace_lease(&as_cuda(backend)->workspaces, bytes, &workspace, err));
    *out = &workspace->base;
    return AIMO_OK;
}

void workspace_return(aimo_backend *backend, aimo_workspace *workspace)
{
    cuda_workspace_return(&as_cuda(backend)->workspaces, as_cuda(workspace));
}

aimo_status upload_sequences(aimo_backend *, aimo_workspace *workspace,
                             const aimo_sequences *sequences, aimo_error *err)
{
    return cuda_workspace_upload(as_cuda(workspace), *sequences, err);
}

aimo_status run(aimo_backend *, aimo_workspace *workspace, aimo_forward *forward, void *context,
                const aimo_run_key *key, aimo_error *err)
{
    return cuda_workspace_run(as_cuda(workspace), forward, context, key, err);
}

aimo_status embed(aimo_backend *backend, aimo_workspace *workspace, const aimo_embed_args *args,
                  aimo_error *err)
{
    cuda_workspace *w = as_cuda(workspace);
    return with_operand_type(as_cuda(backend)->dtype, [&](auto t) {
        return cuda_embed<decltype(t)>(*args, w->sequences, w->stream, err);
    });
}

aimo_rows_kind x_kind_of(product_kind kind)
{
    return kind == HIDDEN_TO_OPERAND ? AIMO_ROWS_HIDDEN
           : kind == OPERAND_TO_SUM  ? AIMO_ROWS_OPERAND
                                     : AIMO_ROWS_FULL;
}

cuda_product_shape shape_of(const cuda_backend *b, const aimo_backend_matrix *w, product_kind kind)
{
    const size_t element = aimo_dtype_size(b->dtype);
    cuda_product_shape shape = {b->dtype, b->dtype, w->n, w->k, w->k, w->n, 0, NULL, AIMO_ACT_NONE};
    shape.ldx = row_bytes(&b->base, x_kind_of(kind), w->k) / element;
    if (kind == FULL_TO_FULL && b->dtype != AIMO_F32)
        shape.x_offset = w->k * sizeof(float);
    if (kind == FULL_TO_FULL || (kind == OPERAND_TO_SUM && b->dtype != AIMO_F16))
        shape.y_dtype = AIMO_F32;
    if (kind == FULL_TO_FULL)
        shape.ldy = row_bytes(&b->base, AIMO_ROWS_FULL, w->n) / sizeof(float);
    return shape;
}

/* With the backend's lock held: w->rounded_bias = bias in the type that a product's fused bias must
 * have. */
aimo_status round_bias(cuda_backend *b, aimo_backend_matrix *w, const float *bias, aimo_error *err)
{
    const size_t bytes = w->n * aimo_dtype_size(b->dtype);
    void *staging;
    if (w->rounded_bias == NULL)
        AIMO_TRY(cuda_memory_new(&w->rounded_bias, bytes, "weights", err));
    AIMO_TRY(aimo_memory_new(&staging, w->n, 2 * sizeof(float), "bias", err));
    float *exact = static_cast<float *>(staging), *rounded = exact + w->n;
    aimo_status status = download_constant(exact, bias, w->n * sizeof *exact, err);
    if (status == AIMO_OK) {
        cuda_weights_round(b->dtype, exact, w->n, rounded);
        status = upload(w->rounded_bias, rounded, bytes, err);
    }
    aimo_memory_free(staging);
    return status;
}

/* With the backend's lock held. */
aimo_status choose_product(cuda_backend *b, aimo_backend_matrix *w, product_kind kind,
                           const aimo_linear_args &a, aimo_error *err)
{
    cuda_product_shape shape = shape_of(b, w, kind);
    if (kind == HIDDEN_TO_OPERAND)
        shape.activation = a.activation;
    if (a.bias != NULL && cuda_product_may_fuse(&shape)) {
        AIMO_TRY(round_bias(b, w, a.bias, err));
        shape.bias = w->rounded_bias;
    }
    return cuda_product_init(&w->products[kind], &shape, cuda_cublas(), b->cublas, err);
}

/* *out = the product of a call, made when it is first needed. */
aimo_status product_of(cuda_backend *b, product_kind kind, const aimo_linear_args &a,
                       const cuda_product **out, aimo_error *err)
{
    aimo_backend_matrix *matrix = const_cast<aimo_backend_matrix *>(a.w);
    aimo_status status = AIMO_OK;
    pthread_mutex_lock(&b->lock);
    if (!matrix->chosen[kind]) {
        status = choose_product(b, matrix, kind, a, err);
        matrix->chosen[kind] = status == AIMO_OK;
    }
    pthread_mutex_unlock(&b->lock);
    *out = &matrix->products[kind];
    return status;
}

template <typename T>
aimo_status run_linear(cuda_backend *b, cuda_workspace *w, const aimo_linear_args &a,
                       aimo_error *err)
{
    const product_kind kind = a.norm != NULL                  ? OPERAND_TO_SUM
                              : a.y_kind == AIMO_ROWS_OPERAND ? HIDDEN_TO_OPERAND
                                                              : FULL_TO_FULL;
    if (a.x_kind != x_kind_of(kind))
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "linear: unsupported combination of row kinds");
    const cuda_product *product;
    AIMO_TRY(product_of(b, kind, a, &product, err));
    void *x = const_cast<float *>(a.x), *y = a.norm != NULL ? a.scratch : a.y;
    if (kind == HIDDEN_TO_OPERAND)
        x = hidden_row<T>(x, 0, a.w->k).operand();
    else if (kind == FULL_TO_FULL)
        x = full_row<T>(x, 0, a.w->k).operand();
    AIMO_TRY(cuda_product_run(product, cuda_cublas(), b->cublas, a.w->w, x, a.m, y,
                              cuda_workspace_of_products(w), w->stream, err));
    if (a.norm != NULL)
        return cuda_residual_layer_norm<T>(a.scratch, product->fused ? NULL : a.bias, a.residual,
                                           *a.norm, a.y, a.m, a.w->n, w->stream, err);
    if (product->fused)
        return AIMO_OK;
    return cuda_bias_activation<T>(a.y, a.y_kind, a.bias, a.activation, a.m, a.w->n, w->stream,
                                   err);
}

aimo_status linear(aimo_backend *backend, aimo_workspace *workspace, const aimo_linear_args *args,
                   aimo_error *err)
{
    cuda_backend *b = as_cuda(backend);
    if (args->input_peaks != NULL)
        return aimo_fail(err, AIMO_ERR_UNSUPPORTED, "input peaks are only available on the CPU");
    return with_operand_type(b->dtype, [&](auto t) {
        return run_linear<decltype(t)>(b, as_cuda(workspace), *args, err);
    });
}

aimo_status attention(aimo_backend *backend, aimo_workspace *workspace,
                      const aimo_attention_args *args, aimo_error *err)
{
    cuda_workspace *w = as_cuda(workspace);
    return with_operand_type(as_cuda(backend)->dtype, [&](auto t) {
        return cuda_attention<decltype(t)>(*args, w->sequences, w->stream, err);
    });
}

aimo_status pool(aimo_backend *backend, aimo_workspace *workspace, const aimo_pool_args *args,
                 aimo_error *err)
{
    cuda_workspace *w = as_cuda(workspace);
    const int32_t *offsets = args->offsets != NULL ? w->sequences.offsets : NULL;
    return with_operand_type(as_cuda(backend)->dtype, [&](auto t) {
        return cuda_pool<decltype(t)>(*args, offsets, w->stream, err);
    });
}

aimo_status download(aimo_backend *backend, aimo_workspace *workspace, const float *rows,
                     size_t count, size_t columns, float *host, aimo_error *err)
{
    return cuda_workspace_download(as_cuda(workspace), rows,
                                   row_bytes(backend, AIMO_ROWS_FULL, columns),
                                   columns * sizeof *host, count, host, err);
}

aimo_status hand_over(aimo_backend *backend, aimo_workspace *workspace, const float *rows,
                      size_t count, size_t columns, float *device, aimo_error *err)
{
    return cuda_workspace_hand_over(as_cuda(workspace), rows,
                                    row_bytes(backend, AIMO_ROWS_FULL, columns),
                                    columns * sizeof *device, count, device, err);
}

void cuda_free(aimo_backend *backend)
{
    cuda_backend *b = as_cuda(backend);
    cuda_workspaces_clear(&b->workspaces);
    if (b->cublas != NULL && cuda_process_is_ours()) {
        const device_scope scope(b->device);
        (void)cuda_cublas()->Destroy(b->cublas);
        pthread_mutex_destroy(&b->lock);
    }
    aimo_memory_free(b);
}

const aimo_backend_ops ops = {
    "cuda",          chunk_tokens,     pad_chunk,        row_bytes,
    constant_new,    constant_free,    matrix_new,       matrix_free,
    workspace_lease, workspace_return, upload_sequences, run,
    embed,           linear,           attention,        pool,
    download,        hand_over,        cuda_free,
};

aimo_status open_backend(cuda_backend *b, int device, aimo_error *err)
{
    const device_scope scope(device, err);
    AIMO_TRY(scope.status);
    return cuda_product_status(cuda_cublas(), cuda_cublas()->Create(&b->cublas), "Create", err);
}

aimo_status backend_new(int device, aimo_dtype dtype, size_t head_dim, aimo_backend **out,
                        aimo_error *err)
{
    AIMO_TRY(cuda_check_usable(device, err));
    if (head_dim > ATTENTION_HEAD_DIM_MOST)
        return aimo_fail(err, AIMO_ERR_UNSUPPORTED,
                         "CUDA: attention heads can have at most %u elements, the model's have %zu",
                         ATTENTION_HEAD_DIM_MOST, head_dim);
    void *memory;
    AIMO_TRY(aimo_memory_new_zero(&memory, 1, sizeof(cuda_backend), "backend", err));
    cuda_backend *b = static_cast<cuda_backend *>(memory);
    b->base.ops = &ops;
    b->device = device;
    b->dtype = cuda_operand_dtype(dtype);
    pthread_mutex_init(&b->lock, NULL);
    cuda_workspaces_init(&b->workspaces, device);
    const aimo_status status = open_backend(b, device, err);
    if (status == AIMO_OK)
        *out = &b->base;
    else
        cuda_free(&b->base);
    return status;
}

const aimo_cuda_api api = {
    AIMO_CUDA_API_VERSION, cuda_start,     cuda_get_versions, cuda_get_device, backend_new,
    cuda_row_screen_new,   cuda_array_new, cuda_array_free,   cuda_array_copy, cuda_half_convert,
};

} // namespace

extern "C" __attribute__((visibility("default"))) const aimo_cuda_api *aimo_cuda_api_get(void)
{
    return &api;
}
