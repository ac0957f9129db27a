/* Embedding rows, their sum and its layer norm. */
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

/* COUNT neighbouring elements of a table's row of n columns, from `column` on. An int8 row is
 * followed by its scale, unaligned unless n is a multiple of 4. */
template <unsigned COUNT>
__device__ inline void table_load(aimo_dtype dtype, const char *row, unsigned n, unsigned column,
                                  float (&x)[COUNT])
{
    if (dtype == AIMO_F32)
        return load_neighbours(reinterpret_cast<const float *>(row) + column, x);
    if (dtype == AIMO_F16)
        return load_neighbours(reinterpret_cast<const __half *>(row) + column, x);
    if (dtype == AIMO_BF16)
        return load_neighbours(reinterpret_cast<const __nv_bfloat16 *>(row) + column, x);
    float scale;
    memcpy(&scale, row + n, sizeof scale);
    load_neighbours<sizeof scale>(reinterpret_cast<const signed char *>(row) + column, x);
    for (unsigned j = 0; j < COUNT; j++)
        x[j] *= scale;
}

template <typename T, typename ROW>
__global__ void embed_kernel(tables t, cuda_sequences s, aimo_layer_norm norm, void *out,
                             unsigned n)
{
    SHARED_MEMORY(float, rows);
    constexpr unsigned at_once = ROW::AT_ONCE;
    const row_place<ROW> place(s.tokens);
    if (place.has_none)
        return;
    const char *word = t.word + static_cast<size_t>(s.ids[place.row]) * t.row_bytes;
    const char *position =
        t.position + (static_cast<size_t>(s.places[place.row]) + t.first_position) * t.row_bytes;
    ROW row(rows, n);
    row.for_each(place.lane, [&](unsigned column, float(&sum)[at_once]) {
        float type[at_once] = {}, where[at_once];
        table_load(t.dtype, word, n, column, sum);
        if (t.type != NULL)
            table_load(t.dtype, t.type, n, column, type);
        table_load(t.dtype, position, n, column, where);
        for (unsigned j = 0; j < at_once; j++)
            sum[j] = sum[j] + type[j] + where[j];
    });
    layer_norm_row<T>(row, norm, hidden_row<T>(out, place.row, n), place);
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
    return launch_rows(sequences.tokens, args.hidden, [&](auto form, const launch_shape &shape) {
        using row = typename decltype(form)::type;
        return launch_kernel(embed_kernel<T, row>, shape, stream, err, t, sequences, args.norm,
                             static_cast<void *>(args.out), static_cast<unsigned>(args.hidden));
    });
}

#define INSTANTIATE(T)                                                                             \
    template aimo_status cuda_embed<T>(const aimo_embed_args &, const cuda_sequences &,            \
                                       cudaStream_t, aimo_error *);
FOR_EACH_OPERAND_TYPE(INSTANTIATE)
