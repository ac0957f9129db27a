/* The layout of a workspace: arrays that are needed at different times share memory. */
#include "encoder/encoder_workspace.h"

#include "base/memory.h"
#include "encoder/encoder_config.h"
#include "encoder/encoder_weights.h"

static size_t align_up(size_t bytes)
{
    return (bytes + AIMO_CACHE_LINE - 1) / AIMO_CACHE_LINE * AIMO_CACHE_LINE;
}

static size_t rows_size(const aimo_encoder *e, aimo_rows_kind kind, size_t rows, size_t columns)
{
    return align_up(rows * e->backend->ops->row_bytes(e->backend, kind, columns));
}

/* Bytes of one set of vectors after pooling; dense layers need two sets. */
static size_t vectors_size(const aimo_encoder *e, size_t sequences)
{
    return rows_size(e, AIMO_ROWS_FULL, sequences, aimo_encoder_widest_vector(&e->config));
}

/* A cache line is left after the last row: attention's tiles read past it, to the end of their
 * vectors, and another thread must not be writing there meanwhile. */
static size_t qkv_size(const aimo_encoder *e, size_t tokens)
{
    return rows_size(e, AIMO_ROWS_OPERAND, tokens, 3 * e->config.hidden) + AIMO_CACHE_LINE;
}

/* Not more than qkv_size. */
static size_t scratch_size(const aimo_encoder *e, size_t tokens)
{
    return rows_size(e, AIMO_ROWS_SUM, tokens, e->config.hidden);
}

/* Bytes of the part that is shared. */
static size_t shared_size(const aimo_encoder *e, size_t tokens, size_t sequences)
{
    const aimo_encoder_config *c = &e->config;
    const size_t sizes[] = {
        qkv_size(e, tokens) + rows_size(e, AIMO_ROWS_OPERAND, tokens, c->hidden),
        scratch_size(e, tokens) + rows_size(e, AIMO_ROWS_OPERAND, tokens, c->intermediate),
        rows_size(e, AIMO_ROWS_FULL, tokens, c->hidden),
        2 * vectors_size(e, sequences),
    };
    size_t largest = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        largest = sizes[i] > largest ? sizes[i] : largest;
    return largest;
}

/* A cache line is left at the end as well, for the tiles of products. */
size_t aimo_encoder_workspace_bytes(const aimo_encoder *encoder, size_t tokens, size_t sequences)
{
    return rows_size(encoder, AIMO_ROWS_HIDDEN, tokens, encoder->config.hidden) +
           shared_size(encoder, tokens, sequences) + AIMO_CACHE_LINE;
}

workspace aimo_encoder_workspace_of(const aimo_encoder *encoder, void *memory, size_t tokens,
                                    size_t sequences)
{
    char *x = memory;
    char *shared = x + rows_size(encoder, AIMO_ROWS_HIDDEN, tokens, encoder->config.hidden);
    return (workspace){
        .x = (float *)x,
        .qkv = (float *)shared,
        .attended = (float *)(shared + qkv_size(encoder, tokens)),
        .scratch = (float *)shared,
        .intermediate = (float *)(shared + scratch_size(encoder, tokens)),
        .vectors = (float *)shared,
        .other_vectors = (float *)(shared + vectors_size(encoder, sequences)),
    };
}
