/* The calls that take a batch. The batch is checked and cut into chunks of whole sequences, which
 * run in parallel, each in a workspace of its own. */
#include "encoder/encoder.h"

#include "base/memory.h"
#include "base/threads.h"
#include "encoder/encoder_config.h"
#include "encoder/encoder_forward.h"
#include "encoder/encoder_workspace.h"
#include "encoder/encoder_weights.h"

#include <stdatomic.h>
#include <string.h>

static aimo_status check_batch(const aimo_encoder *e, const int32_t *token_ids,
                               const int64_t *offsets, size_t batch, aimo_error *err)
{
    const int64_t longest = (int64_t)aimo_encoder_max_length(e);
    if (!e->sealed)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "the encoder is not sealed");
    if (offsets[0] != 0)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "offsets: expected to begin with 0, got %lld",
                         (long long)offsets[0]);
    for (size_t i = 0; i < batch; i++) {
        const int64_t length = offsets[i + 1] - offsets[i];
        if (length < 1 || length > longest)
            return aimo_fail(err, AIMO_ERR_ARGUMENT,
                             "offsets: sequence %zu has %lld tokens, expected 1 to %lld", i,
                             (long long)length, (long long)longest);
    }
    for (int64_t t = 0; t < offsets[batch]; t++)
        if (token_ids[t] < 0 || (size_t)token_ids[t] >= e->config.vocabulary)
            return aimo_fail(err, AIMO_ERR_ARGUMENT,
                             "token_ids: %d at index %lld, expected 0 to %zu", (int)token_ids[t],
                             (long long)t, e->config.vocabulary - 1);
    return AIMO_OK;
}

/* Cuts the batch into chunks of about `target` tokens, each ending with the sequence that ends
 * nearest to a multiple of it, so that rounding leaves no small last chunk; returns how many.
 * *bytes = a workspace size that serves each of them, and any batch of ordinary chunks, so that
 * workspaces are never replaced. */
static size_t cut(const aimo_encoder *e, const int64_t *offsets, size_t batch, size_t target,
                  chunk *chunks, size_t *chunk_offsets, size_t *bytes)
{
    const size_t token_bytes = aimo_encoder_workspace_bytes(e, 1, 1);
    size_t count = 0, most_tokens = target, most_vectors = target;
    for (size_t first = 0; first < batch;) {
        const size_t begin = (size_t)offsets[first];
        const size_t boundary = target * ((begin + target / 2) / target + 1);
        size_t end = first + 1;
        while (end < batch && (size_t)(offsets[end] + offsets[end + 1]) <= 2 * boundary)
            end++;
        size_t tokens = (size_t)offsets[end] - begin, vectors = end - first;
        e->backend->ops->pad_chunk(e->backend, token_bytes, &tokens, &vectors);
        most_tokens = tokens > most_tokens ? tokens : most_tokens;
        most_vectors = vectors > most_vectors ? vectors : most_vectors;
        for (size_t i = first; i <= end; i++)
            chunk_offsets[i - first] = (size_t)(offsets[i] - offsets[first]);
        chunks[count++] = (chunk){first, end - first, chunk_offsets, tokens, vectors};
        chunk_offsets += end - first + 1;
        first = end;
    }
    *bytes = aimo_encoder_workspace_bytes(e, most_tokens, most_vectors);
    return count;
}

typedef struct {
    const encode_call *call;
    const chunk *chunks;
    size_t workspace_bytes;
    /* The first failure; written by the thread that sets `failed` first. */
    atomic_bool failed;
    aimo_status status;
    aimo_error *err;
} batch_run;

static void run_one(void *context, size_t index)
{
    batch_run *run = context;
    if (atomic_load(&run->failed))
        return;
    aimo_error err;
    const aimo_status status =
        aimo_encoder_run_chunk(run->call, &run->chunks[index], run->workspace_bytes, &err);
    if (status != AIMO_OK && !atomic_exchange(&run->failed, true)) {
        run->status = status;
        if (run->err != NULL)
            *run->err = err;
    }
}

/* Runs all chunks of a checked call. */
static aimo_status run_batch(const encode_call *call, size_t batch, aimo_error *err)
{
    const aimo_encoder *e = call->encoder;
    const size_t target = e->backend->ops->chunk_tokens(e->backend, (size_t)call->offsets[batch],
                                                        aimo_encoder_workspace_bytes(e, 1, 1));
    chunk *chunks;
    AIMO_TRY(aimo_memory_new((void **)&chunks, batch, sizeof *chunks + 2 * sizeof(size_t), "chunks",
                             err));
    size_t *chunk_offsets =
        (size_t *)(chunks + batch); /* [batch + chunks]: batch, plus one per chunk */
    batch_run run = {.call = call, .chunks = chunks, .err = err};
    const size_t count =
        cut(e, call->offsets, batch, target, chunks, chunk_offsets, &run.workspace_bytes);
    if (!aimo_encode_call_observes(call))
        aimo_parallel_for(count, run_one, &run);
    else
        for (size_t i = 0; i < count; i++)
            run_one(&run, i);
    aimo_memory_free(chunks);
    return run.status;
}

aimo_status aimo_encoder_encode(const aimo_encoder *encoder, const int32_t *token_ids,
                                const int64_t *offsets, size_t batch,
                                const aimo_encode_options *options, float *out, aimo_error *err)
{
    AIMO_TRY(check_batch(encoder, token_ids, offsets, batch, err));
    const size_t dimension = aimo_encoder_dimension(encoder);
    if (options->columns > dimension)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "columns: expected 1 to %zu, got %zu", dimension,
                         options->columns);
    const encode_call call = {
        .encoder = encoder,
        .token_ids = token_ids,
        .offsets = offsets,
        .options = options,
        .columns = options->columns != 0 ? options->columns : dimension,
        .out = out,
    };
    return run_batch(&call, batch, err);
}

aimo_status aimo_encoder_encode_tokens(const aimo_encoder *encoder, const int32_t *token_ids,
                                       const int64_t *offsets, size_t batch, float *out,
                                       aimo_error *err)
{
    AIMO_TRY(check_batch(encoder, token_ids, offsets, batch, err));
    const encode_call call = {
        .encoder = encoder,
        .token_ids = token_ids,
        .offsets = offsets,
        .columns = encoder->config.hidden,
        .per_token = true,
        .out = out,
    };
    return run_batch(&call, batch, err);
}

/* Encodes only to record peaks or seconds; the other one is NULL. */
static aimo_status observe(const aimo_encoder *encoder, const int32_t *token_ids,
                           const int64_t *offsets, size_t batch, float *peaks, double *seconds,
                           aimo_error *err)
{
    const size_t dimension = aimo_encoder_dimension(encoder);
    const aimo_encode_options options = {0};
    float *vectors;
    AIMO_TRY(
        aimo_memory_new((void **)&vectors, batch, dimension * sizeof *vectors, "vectors", err));
    const encode_call call = {
        .encoder = encoder,
        .token_ids = token_ids,
        .offsets = offsets,
        .options = &options,
        .columns = dimension,
        .out = vectors,
        .peaks = peaks,
        .seconds = seconds,
    };
    const aimo_status status = run_batch(&call, batch, err);
    aimo_memory_free(vectors);
    return status;
}

aimo_status aimo_encoder_input_peaks(const aimo_encoder *encoder, const int32_t *token_ids,
                                     const int64_t *offsets, size_t batch, float *peaks,
                                     aimo_error *err)
{
    AIMO_TRY(check_batch(encoder, token_ids, offsets, batch, err));
    const aimo_encoder_config *c = &encoder->config;
    memset(peaks, 0,
           c->layers * AIMO_LAYER_MATRICES * aimo_encoder_widest_input(c) * sizeof *peaks);
    return observe(encoder, token_ids, offsets, batch, peaks, NULL, err);
}

aimo_status aimo_encoder_operation_seconds(const aimo_encoder *encoder, const int32_t *token_ids,
                                           const int64_t *offsets, size_t batch,
                                           double seconds[AIMO_OPERATION_COUNT], aimo_error *err)
{
    AIMO_TRY(check_batch(encoder, token_ids, offsets, batch, err));
    memset(seconds, 0, AIMO_OPERATION_COUNT * sizeof *seconds);
    return observe(encoder, token_ids, offsets, batch, NULL, seconds, err);
}
