/* Locates one head of one sequence within the arguments of attention. */
#ifndef AIMO_ATTENTION_HEAD_H
#define AIMO_ATTENTION_HEAD_H

#include "backend/backend.h"

typedef struct {
    const float *q, *k, *v; /* this head's part of the sequence's first row */
    size_t ld;              /* floats between rows of q, k and v */
    float *out;             /* this head's part of the first output row */
    size_t ldo;
    size_t length, head_dim;
} attention_head;

static inline attention_head attention_head_at(const aimo_attention_args *a, size_t sequence,
                                               size_t head)
{
    const size_t hidden = a->heads * a->head_dim, begin = a->offsets[sequence];
    const float *row = a->qkv + begin * 3 * hidden + head * a->head_dim;
    return (attention_head){
        .q = row,
        .k = row + hidden,
        .v = row + 2 * hidden,
        .ld = 3 * hidden,
        .out = a->out + begin * hidden + head * a->head_dim,
        .ldo = hidden,
        .length = a->offsets[sequence + 1] - begin,
        .head_dim = a->head_dim,
    };
}

#endif
