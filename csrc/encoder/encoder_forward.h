/* One chunk of a call, from token ids to vectors. Private to csrc/encoder. */
#ifndef AIMO_ENCODER_ENCODER_FORWARD_H
#define AIMO_ENCODER_ENCODER_FORWARD_H

#include "base/platform.h"
#include "encoder/encoder.h"

/* A call's arguments, checked. */
typedef struct {
    const aimo_encoder *encoder;
    const int32_t *token_ids;
    const int64_t *offsets;
    const aimo_encode_options *options;
    size_t columns;
    bool per_token;  /* for aimo_encoder_encode_tokens: no pooling or dense layers, so no options */
    float *out;      /* [batch, columns], or [tokens, columns] when per_token */
    float *peaks;    /* for aimo_encoder_input_peaks, else NULL */
    double *seconds; /* for aimo_encoder_operation_seconds, else NULL */
} encode_call;

/* Whether the call records peaks or times, which all of its chunks write to the same place. */
AIMO_INLINE bool aimo_encode_call_observes(const encode_call *call)
{
    return call->peaks != NULL || call->seconds != NULL;
}

/* A run of whole sequences of a call. */
typedef struct {
    size_t first, batch;            /* sequences [first, first + batch) */
    const size_t *offsets;          /* [batch + 1], from the chunk's first token */
    size_t token_rows, vector_rows; /* as padded by the backend */
} chunk;

/* Writes the chunk's part of call->out, using a leased workspace of `workspace_bytes`
 * (aimo_encoder_workspace_bytes for the chunk's rows, or more). Chunks may run concurrently unless
 * aimo_encode_call_observes. Fails with the backend's AIMO_ERR_MEMORY, AIMO_ERR_DEVICE and
 * AIMO_ERR_UNSUPPORTED (peaks on a device). */
AIMO_MUST_CHECK aimo_status aimo_encoder_run_chunk(const encode_call *call, const chunk *c,
                                                   size_t workspace_bytes, aimo_error *err);

#endif
