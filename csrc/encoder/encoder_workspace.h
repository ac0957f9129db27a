/* How the memory of a workspace is laid out. Private to csrc/encoder. */
#ifndef AIMO_ENCODER_ENCODER_WORKSPACE_H
#define AIMO_ENCODER_ENCODER_WORKSPACE_H

#include "encoder/encoder.h"

/* Rows that one chunk works on; named by what they hold, sized for its tokens. All but x share
 * memory: qkv with attended, then scratch with attended, then scratch with intermediate are needed
 * at the same time, and vectors at last. */
typedef struct {
    float *x;             /* [tokens, hidden] the residual stream */
    float *qkv;           /* [tokens, 3 * hidden] */
    float *attended;      /* [tokens, hidden] attention's output */
    float *scratch;       /* [tokens, hidden] a product before its norm */
    float *intermediate;  /* [tokens, intermediate] */
    float *vectors;       /* what is pooled of each sequence, or those of all tokens */
    float *other_vectors; /* a second set for dense layers; each is sized for the widest */
} workspace;

/* Bytes for so many tokens and sequences. */
size_t aimo_encoder_workspace_bytes(const aimo_encoder *encoder, size_t tokens, size_t sequences);
/* Where each lies in `memory` (device), of that many bytes. */
workspace aimo_encoder_workspace_of(const aimo_encoder *encoder, void *memory, size_t tokens,
                                    size_t sequences);

#endif
