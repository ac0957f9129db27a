/* The memory layout of a workspace. Private to csrc/encoder. */
#ifndef AIMO_ENCODER_ENCODER_WORKSPACE_H
#define AIMO_ENCODER_ENCODER_WORKSPACE_H

#include "encoder/encoder.h"

/* The arrays that one chunk works on, named by what they hold and sized for its tokens. All but x
 * share memory. In the order of use, these are live together: qkv and attended, scratch and
 * attended, scratch and intermediate, and finally the two sets of vectors. */
typedef struct {
    float *x;             /* [tokens, hidden] the residual stream */
    float *qkv;           /* [tokens, 3 * hidden] */
    float *attended;      /* [tokens, hidden] attention's output */
    float *scratch;       /* [tokens, hidden] a product before its norm */
    float *intermediate;  /* [tokens, intermediate] */
    float *vectors;       /* the pooled vectors of the sequences, or the vectors of all tokens */
    float *other_vectors; /* a second set for dense layers; each is sized for the widest */
} workspace;

/* Bytes needed for `tokens` and `sequences`. */
size_t aimo_encoder_workspace_bytes(const aimo_encoder *encoder, size_t tokens, size_t sequences);
/* Where each array is in `memory` (device), which has aimo_encoder_workspace_bytes. */
workspace aimo_encoder_workspace_of(const aimo_encoder *encoder, void *memory, size_t tokens,
                                    size_t sequences);

#endif
