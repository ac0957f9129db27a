/* Embedding rows, their sum and its layer norm: one warp for each token. */
#include "backend/cuda/cuda_kernels.h"
#include "backend/cuda/layer_norm_row.h"

namespace
{

struct tables {
    const char *word, *position, *type; /* type: NULL for none */
    size_t row_bytes;
    aimo_dtype dtype;
    size_t first_position;
};

/* Element i of a table's row of n columns; the scale of an int8 row stands unaligned behind it. */
__device__ inline float table_load(aimo_dtype dtype, const char *row, unsigned n, unsigned i)
{
    if (dtype == AIMO_F32)
        return reinterpret_cast<const float *>(row)[i];
    if (dtype == AIMO_F16)
        return to_float(reinterpret_cast<const __half *>(row)[i]);
    if (dtype == AIMO_BF16)
        return to_float(reinterpret_cast<const __nv_bfloat16 *>(row)[i]);
    float scale;
    memcpy(&scale, row + n, sizeof scale);
    return static_cast<float>(reinterpret_cast<const signed char *>(row)[i]) * scale;
}

template <typename T>
__global__ void embed_kernel(tables t, cuda_sequences s, aimo_layer_norm norm, void *out,
                             unsigned n)
{
    SHARED_MEMORY(float, rows);
    const unsigned warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const size_t token = static_cast<size_t>(blockIdx.x) * ROWS_PER_BLOCK + warp;
    if (token >= s.tokens)
        return;
    const char *word = t.word + static_cast<size_t>(s.ids[token]) * t.row_bytes;
    const char *position =
        t.position + (static_cast<size_t>(s.places[token]) + t.first_position) * t.row_bytes;
    float *row = rows + warp * n;
    for (unsigned i = lane; i < n; i += WARP) {
        float x = table_load(t.dtype, word, n, i);
        if (t.type != NULL)
            x += table_load(t.dtype, t.type, n, i);
        row[i] = x + table_load(t.dtype, position, n, i);
    }
    layer_norm_row<T>(row, norm, hidden_row<T>(out, token, n), lane);
}

} // namespace

template <typename T>
aimo_status cuda_embed(const aimo_embed_args &args, const cuda_sequences &sequences,
                       cudaStream_t stream, aimo_error *err)
{
    const tables t = {
        static_cast<const char *>(args.word),
        static_cast<const char *>(args.position),
        static_cast<const char *>(args.type),
        aimo_table_row_bytes(args.dtype, args.hidden),
        args.dtype,
        args.first_position,
    };
    return launch_kernel(embed_kernel<T>, shape_of_rows(sequences.tokens, args.hidden), stream, err,
                         t, sequences, args.norm, static_cast<void *>(args.out),
                         static_cast<unsigned>(args.hidden));
}

#define INSTANTIATE(T)                                                                             \
    template aimo_status cuda_embed<T>(const aimo_embed_args &, const cuda_sequences &,            \
                                       cudaStream_t, aimo_error *);
FOR_EACH_OPERAND_TYPE(INSTANTIATE)
