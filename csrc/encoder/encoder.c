/* The forward pass, written once over the backend.
 *
 * A batch is cut into chunks of whole sequences; each chunk leases one workspace and runs from
 * token ids to pooled vectors without touching the others. Inside a chunk all tokens lie one after
 * another: only attention and pooling look at where sequences begin. */
#include "encoder/encoder.h"

#include "base/clock.h"
#include "base/cpu.h"
#include "base/memory.h"
#include "base/threads.h"
#include "encoder/weights.h"

#include <stdatomic.h>
#include <string.h>

/* Rows that one chunk works on; named by what they hold, sized for its tokens. All but x share
 * memory: qkv with attended, then scratch with attended, then scratch with intermediate are needed
 * at the same time, and vectors at last. */
typedef struct {
    aimo_workspace *leased;
    float *x;              /* [tokens, hidden] the residual stream */
    float *qkv;            /* [tokens, 3 * hidden] */
    float *attended;       /* [tokens, hidden] attention's output */
    float *scratch;        /* [tokens, hidden] a product before its norm */
    float *intermediate;   /* [tokens, intermediate] */
    float *vectors;        /* what is pooled of each sequence, or those of all tokens */
    float *other_vectors;  /* a second set for dense layers; each is sized for the widest */
    const size_t *offsets; /* the chunk's */
    size_t token_rows;     /* the chunk's */
    float *peaks;          /* as aimo_encoder_input_peaks returns them, or NULL */
    double *seconds;       /* as aimo_encoder_operation_seconds returns them, or NULL */
} workspace;

typedef struct {
    size_t first, batch;            /* sequences [first, first + batch) */
    const size_t *offsets;          /* [batch + 1], from the chunk's first token */
    size_t token_rows, vector_rows; /* as the backend pads it */
} chunk;

typedef struct {
    const aimo_encoder *encoder;
    const int32_t *token_ids;
    const int64_t *offsets;
    const aimo_encode_options *options;
    size_t columns;
    bool per_token;  /* for aimo_encoder_encode_tokens: no head, and so no options */
    float *out;      /* [batch, columns], or [tokens, columns] when per_token */
    float *peaks;    /* for aimo_encoder_input_peaks, else NULL */
    double *seconds; /* for aimo_encoder_operation_seconds, else NULL */
    const chunk *chunks;
    size_t workspace_bytes;
    /* The first failure; written by whoever sets `failed` first. */
    atomic_bool failed;
    aimo_status status;
    aimo_error *err;
} encode_call;

static size_t widest(const aimo_encoder_config *c)
{
    return c->intermediate > c->hidden ? c->intermediate : c->hidden;
}

/* Elements of the pooled vector, before any dense layer. */
static size_t pooled_width(const aimo_encoder_config *c) { return c->pooling_count * c->hidden; }

static size_t widest_vector(const aimo_encoder_config *c)
{
    size_t widest_so_far = pooled_width(c);
    for (size_t i = 0; i < c->dense_count; i++)
        if (c->dense[i].outputs > widest_so_far)
            widest_so_far = c->dense[i].outputs;
    return widest_so_far;
}

static size_t align_up(size_t bytes)
{
    return (bytes + AIMO_CACHE_LINE - 1) / AIMO_CACHE_LINE * AIMO_CACHE_LINE;
}

static size_t rows_size(const aimo_encoder *e, aimo_rows_kind kind, size_t rows, size_t columns)
{
    return align_up(rows * e->backend->ops->row_bytes(e->backend, kind, columns));
}

/* Bytes of vectors after pooling, of which the head needs two sets. */
static size_t vectors_size(const aimo_encoder *e, size_t sequences)
{
    return rows_size(e, AIMO_ROWS_FULL, sequences, widest_vector(&e->config));
}

/* A cache line is left behind the last row: attention's tiles read to the end of their vectors, and
 * what lies there must not be what another thread writes meanwhile. */
static size_t qkv_size(const aimo_encoder *e, size_t tokens)
{
    return rows_size(e, AIMO_ROWS_OPERAND, tokens, 3 * e->config.hidden) + AIMO_CACHE_LINE;
}

/* Not more than qkv_size. */
static size_t scratch_size(const aimo_encoder *e, size_t tokens)
{
    return rows_size(e, AIMO_ROWS_SUM, tokens, e->config.hidden);
}

/* Bytes of what shares memory. */
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
static size_t workspace_size(const aimo_encoder *e, size_t tokens, size_t sequences)
{
    return rows_size(e, AIMO_ROWS_HIDDEN, tokens, e->config.hidden) +
           shared_size(e, tokens, sequences) + AIMO_CACHE_LINE;
}

static workspace workspace_of(const aimo_encoder *e, aimo_workspace *leased, const chunk *c)
{
    char *x = leased->memory;
    char *shared = x + rows_size(e, AIMO_ROWS_HIDDEN, c->token_rows, e->config.hidden);
    return (workspace){
        .leased = leased,
        .x = (float *)x,
        .qkv = (float *)shared,
        .attended = (float *)(shared + qkv_size(e, c->token_rows)),
        .scratch = (float *)shared,
        .intermediate = (float *)(shared + scratch_size(e, c->token_rows)),
        .vectors = (float *)shared,
        .other_vectors = (float *)(shared + vectors_size(e, c->vector_rows)),
        .offsets = c->offsets,
        .token_rows = c->token_rows,
    };
}

static aimo_layer_norm norm_of(const aimo_encoder *e, const aimo_weight *weight,
                               const aimo_weight *bias)
{
    return (aimo_layer_norm){weight->device, bias->device, e->config.layer_norm_epsilon};
}

/* The operations of the backend, with a look at the clock when somebody asked for their times. */
static double start_of(const workspace *w)
{
    return w->seconds != NULL ? aimo_clock_seconds() : 0.0;
}

static void add_seconds(const workspace *w, aimo_operation operation, double start)
{
    if (w->seconds != NULL)
        w->seconds[operation] += aimo_clock_seconds() - start;
}

static aimo_status run_linear(const aimo_encoder *e, const workspace *w, aimo_operation operation,
                              const aimo_linear_args *args, aimo_error *err)
{
    const double start = start_of(w);
    const aimo_status status = e->backend->ops->linear(e->backend, w->leased, args, err);
    add_seconds(w, operation, start);
    return status;
}

static aimo_status run_embedding(const aimo_encoder *e, const int32_t *ids, size_t batch,
                                 const workspace *w, aimo_error *err)
{
    const aimo_model_weights *t = &e->model;
    const aimo_embed_args args = {
        .dtype = e->config.dtype,
        .word = t->word.device,
        .position = t->position.device,
        .type = t->type.device,
        .ids = ids,
        .offsets = w->offsets,
        .batch = batch,
        .hidden = e->config.hidden,
        .first_position = e->config.first_position,
        .norm = norm_of(e, &t->norm, &t->norm_bias),
        .out = w->x,
    };
    const double start = start_of(w);
    const aimo_status status = e->backend->ops->embed(e->backend, w->leased, &args, err);
    add_seconds(w, AIMO_OP_EMBED, start);
    return status;
}

static float *peaks_of(const aimo_encoder *e, const aimo_layer_weights *l, size_t matrix,
                       const workspace *w)
{
    const size_t layer = (size_t)(l - e->layers);
    if (w->peaks == NULL)
        return NULL;
    return w->peaks + (layer * AIMO_LAYER_MATRICES + matrix) * widest(&e->config);
}

/* x = layer_norm(x + attention(x)) */
static aimo_status run_attention(const aimo_encoder *e, const aimo_layer_weights *l, size_t batch,
                                 const workspace *w, aimo_error *err)
{
    const size_t heads = e->config.heads;
    const aimo_layer_norm norm = norm_of(e, &l->attention_norm, &l->attention_norm_bias);
    const aimo_linear_args qkv = {
        .w = l->qkv.matrix,
        .bias = l->qkv_bias.device,
        .x = w->x,
        .x_kind = AIMO_ROWS_HIDDEN,
        .m = w->token_rows,
        .input_peaks = peaks_of(e, l, 0, w),
        .y = w->qkv,
        .y_kind = AIMO_ROWS_OPERAND,
    };
    const aimo_attention_args attention = {
        .qkv = w->qkv,
        .offsets = w->offsets,
        .batch = batch,
        .heads = heads,
        .head_dim = e->config.hidden / heads,
        .out = w->attended,
        .dtype = e->config.dtype,
    };
    const aimo_linear_args output = {
        .w = l->attention.matrix,
        .bias = l->attention_bias.device,
        .x = w->attended,
        .x_kind = AIMO_ROWS_OPERAND,
        .m = w->token_rows,
        .input_peaks = peaks_of(e, l, 1, w),
        .norm = &norm,
        .residual = w->x,
        .scratch = w->scratch,
        .y = w->x,
        .y_kind = AIMO_ROWS_HIDDEN,
    };
    AIMO_TRY(run_linear(e, w, AIMO_OP_QKV, &qkv, err));
    const double start = start_of(w);
    AIMO_TRY(e->backend->ops->attention(e->backend, w->leased, &attention, err));
    add_seconds(w, AIMO_OP_ATTENTION, start);
    return run_linear(e, w, AIMO_OP_ATTENTION_OUTPUT, &output, err);
}

/* x = layer_norm(x + down(activation(up(x)))) */
static aimo_status run_feed_forward(const aimo_encoder *e, const aimo_layer_weights *l,
                                    const workspace *w, aimo_error *err)
{
    const aimo_layer_norm norm = norm_of(e, &l->output_norm, &l->output_norm_bias);
    const aimo_linear_args up = {
        .w = l->up.matrix,
        .bias = l->up_bias.device,
        .x = w->x,
        .x_kind = AIMO_ROWS_HIDDEN,
        .m = w->token_rows,
        .input_peaks = peaks_of(e, l, 2, w),
        .activation = e->config.activation,
        .y = w->intermediate,
        .y_kind = AIMO_ROWS_OPERAND,
    };
    const aimo_linear_args down = {
        .w = l->down.matrix,
        .bias = l->down_bias.device,
        .x = w->intermediate,
        .x_kind = AIMO_ROWS_OPERAND,
        .m = w->token_rows,
        .input_peaks = peaks_of(e, l, 3, w),
        .norm = &norm,
        .residual = w->x,
        .scratch = w->scratch,
        .y = w->x,
        .y_kind = AIMO_ROWS_HIDDEN,
    };
    AIMO_TRY(run_linear(e, w, AIMO_OP_UP, &up, err));
    return run_linear(e, w, AIMO_OP_DOWN, &down, err);
}

/* w->vectors = what is pooled; without dense layers cut and normalized as well. */
static aimo_status run_pooling(const encode_call *call, const chunk *c, const workspace *w,
                               aimo_error *err)
{
    const aimo_encoder *e = call->encoder;
    const bool last = e->config.dense_count == 0;
    const aimo_pool_args pool = {
        .x = w->x,
        .x_kind = AIMO_ROWS_HIDDEN,
        .offsets = w->offsets,
        .batch = c->vector_rows,
        .hidden = e->config.hidden,
        .poolings = e->config.poolings,
        .skip = call->options->skip,
        .columns = last ? call->columns : pooled_width(&e->config),
        .normalize = last && call->options->normalize,
        .out = w->vectors,
    };
    return e->backend->ops->pool(e->backend, w->leased, &pool, err);
}

static const aimo_pooling first_token = AIMO_POOL_CLS;

/* The dense layers, from one set of vectors to the other and back; then each is cut and normalized.
 */
static aimo_status run_dense(const encode_call *call, const chunk *c, const workspace *w,
                             aimo_error *err)
{
    const aimo_encoder *e = call->encoder;
    aimo_backend *b = e->backend;
    float *x = w->vectors, *y = w->other_vectors;
    for (size_t i = 0; i < e->config.dense_count; i++) {
        const aimo_linear_args dense = {
            .w = e->model.dense[i].matrix,
            .bias = e->model.dense_bias[i].device,
            .x = x,
            .m = c->vector_rows,
            .activation = e->config.dense[i].activation,
            .y = y,
        };
        AIMO_TRY(b->ops->linear(b, w->leased, &dense, err));
        float *next = x;
        x = y;
        y = next;
    }
    const aimo_pool_args cut = {
        .x = x,
        .batch = c->vector_rows,
        .hidden = e->config.dense[e->config.dense_count - 1].outputs,
        .poolings = &first_token,
        .columns = call->columns,
        .normalize = call->options->normalize,
        .out = y,
    };
    return b->ops->pool(b, w->leased, &cut, err);
}

/* w->vectors = each token's, from the form that layers keep it in to f32. */
static aimo_status run_tokens(const encode_call *call, const workspace *w, aimo_error *err)
{
    const aimo_encoder *e = call->encoder;
    const aimo_pool_args each = {
        .x = w->x,
        .x_kind = AIMO_ROWS_HIDDEN,
        .batch = w->token_rows,
        .hidden = e->config.hidden,
        .poolings = &first_token,
        .columns = call->columns,
        .out = w->vectors,
    };
    return e->backend->ops->pool(e->backend, w->leased, &each, err);
}

/* The result: each dense layer goes from one set of vectors to the other, and so does the cut. */
static const float *result_of(const encode_call *call, const workspace *w)
{
    const size_t dense = call->encoder->config.dense_count;
    return call->per_token || dense == 0 || dense % 2 == 1 ? w->vectors : w->other_vectors;
}

typedef struct {
    const encode_call *call;
    const chunk *c;
    const workspace *w;
} forward_context;

/* Everything between upload and download. */
static aimo_status forward(void *context, aimo_error *err)
{
    const forward_context *f = context;
    const encode_call *call = f->call;
    const chunk *c = f->c;
    const workspace *w = f->w;
    const aimo_encoder *e = call->encoder;
    AIMO_TRY(run_embedding(e, call->token_ids + call->offsets[c->first], c->batch, w, err));
    for (size_t layer = 0; layer < e->config.layers; layer++) {
        AIMO_TRY(run_attention(e, &e->layers[layer], c->batch, w, err));
        AIMO_TRY(run_feed_forward(e, &e->layers[layer], w, err));
    }
    if (call->per_token)
        return run_tokens(call, w, err);
    const double start = start_of(w);
    AIMO_TRY(run_pooling(call, c, w, err));
    if (e->config.dense_count != 0)
        AIMO_TRY(run_dense(call, c, w, err));
    add_seconds(w, AIMO_OP_POOL, start);
    return AIMO_OK;
}

/* False for calls that look at each operation. */
static bool is_replayable(const encode_call *call)
{
    return call->peaks == NULL && call->seconds == NULL;
}

static aimo_status run_chunk(const encode_call *call, const chunk *c, const workspace *w,
                             aimo_error *err)
{
    aimo_backend *b = call->encoder->backend;
    const size_t begin = (size_t)call->offsets[c->first];
    const aimo_sequences sequences = {call->token_ids + begin, c->offsets, c->batch, c->token_rows,
                                      c->vector_rows};
    const aimo_run_key key =
        call->per_token
            ? (aimo_run_key){{0}}
            : (aimo_run_key){{1, call->columns, call->options->skip, call->options->normalize}};
    forward_context context = {call, c, w};
    AIMO_TRY(b->ops->upload(b, w->leased, &sequences, err));
    AIMO_TRY(b->ops->run(b, w->leased, forward, &context, is_replayable(call) ? &key : NULL, err));
    const size_t rows = call->per_token ? c->offsets[c->batch] : c->batch;
    const size_t first = call->per_token ? begin : c->first;
    const double start = start_of(w);
    const bool stays = !call->per_token && call->options->out_on_device;
    AIMO_TRY((stays ? b->ops->hand_over
                    : b->ops->download)(b, w->leased, result_of(call, w), rows, call->columns,
                                        call->out + first * call->columns, err));
    add_seconds(w, AIMO_OP_POOL, start);
    return AIMO_OK;
}

static void chunk_index(void *context, size_t index)
{
    encode_call *call = context;
    aimo_backend *b = call->encoder->backend;
    const chunk *c = &call->chunks[index];
    if (atomic_load(&call->failed))
        return;
    aimo_workspace *leased;
    aimo_error err;
    aimo_status status = b->ops->workspace_lease(b, call->workspace_bytes, &leased, &err);
    if (status == AIMO_OK) {
        workspace w = workspace_of(call->encoder, leased, c);
        w.peaks = call->peaks;
        w.seconds = call->seconds;
        status = run_chunk(call, c, &w, &err);
        b->ops->workspace_return(b, leased);
    }
    if (status != AIMO_OK && !atomic_exchange(&call->failed, true)) {
        call->status = status;
        if (call->err != NULL)
            *call->err = err;
    }
}

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

/* Cuts the batch into chunks of about `target` tokens, each where a sequence ends next to a
 * multiple of it, so that rounding leaves no small chunk behind; returns how many. *bytes = the
 * workspace that serves each of them, and any batch of ordinary chunks, so that it is never
 * replaced. */
static size_t cut(const aimo_encoder *e, const int64_t *offsets, size_t batch, size_t target,
                  chunk *chunks, size_t *chunk_offsets, size_t *bytes)
{
    const size_t token_bytes = workspace_size(e, 1, 1);
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
    *bytes = workspace_size(e, most_tokens, most_vectors);
    return count;
}

/* Runs all chunks of a checked call. */
static aimo_status run_batch(encode_call *call, size_t batch, aimo_error *err)
{
    const aimo_encoder *e = call->encoder;
    const size_t target = e->backend->ops->chunk_tokens(e->backend, (size_t)call->offsets[batch],
                                                        workspace_size(e, 1, 1));
    chunk *chunks;
    AIMO_TRY(aimo_memory_new((void **)&chunks, batch, sizeof *chunks + 2 * sizeof(size_t), "chunks",
                             err));
    size_t *chunk_offsets = (size_t *)(chunks + batch); /* [batch + one for each chunk] */
    const size_t count =
        cut(e, call->offsets, batch, target, chunks, chunk_offsets, &call->workspace_bytes);
    call->chunks = chunks;
    if (call->peaks == NULL && call->seconds == NULL)
        aimo_parallel_for(count, chunk_index, call);
    else /* one after the other: they all write to the same place */
        for (size_t i = 0; i < count; i++)
            chunk_index(call, i);
    aimo_memory_free(chunks);
    return call->status;
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
    encode_call call = {
        .encoder = encoder,
        .token_ids = token_ids,
        .offsets = offsets,
        .options = options,
        .columns = options->columns != 0 ? options->columns : dimension,
        .out = out,
        .err = err,
    };
    return run_batch(&call, batch, err);
}

aimo_status aimo_encoder_encode_tokens(const aimo_encoder *encoder, const int32_t *token_ids,
                                       const int64_t *offsets, size_t batch, float *out,
                                       aimo_error *err)
{
    AIMO_TRY(check_batch(encoder, token_ids, offsets, batch, err));
    encode_call call = {
        .encoder = encoder,
        .token_ids = token_ids,
        .offsets = offsets,
        .columns = encoder->config.hidden,
        .per_token = true,
        .out = out,
        .err = err,
    };
    return run_batch(&call, batch, err);
}

/* Encodes for what is learnt on the way: into peaks or seconds, one of which is NULL. */
static aimo_status observe(const aimo_encoder *encoder, const int32_t *token_ids,
                           const int64_t *offsets, size_t batch, float *peaks, double *seconds,
                           aimo_error *err)
{
    const size_t dimension = aimo_encoder_dimension(encoder);
    const aimo_encode_options options = {0};
    float *vectors;
    AIMO_TRY(
        aimo_memory_new((void **)&vectors, batch, dimension * sizeof *vectors, "vectors", err));
    encode_call call = {
        .encoder = encoder,
        .token_ids = token_ids,
        .offsets = offsets,
        .options = &options,
        .columns = dimension,
        .out = vectors,
        .peaks = peaks,
        .seconds = seconds,
        .err = err,
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
    memset(peaks, 0, c->layers * AIMO_LAYER_MATRICES * widest(c) * sizeof *peaks);
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

static aimo_status check_config(const aimo_encoder_config *c, aimo_error *err)
{
    const struct {
        const char *name;
        size_t value;
    } positive[] = {{"layers", c->layers},         {"hidden", c->hidden},
                    {"heads", c->heads},           {"intermediate", c->intermediate},
                    {"vocabulary", c->vocabulary}, {"positions", c->positions}};
    for (size_t i = 0; i < sizeof positive / sizeof positive[0]; i++)
        if (positive[i].value == 0 || positive[i].value > INT32_MAX)
            return aimo_fail(err, AIMO_ERR_ARGUMENT, "%s: expected 1 to %d, got %zu",
                             positive[i].name, INT32_MAX, positive[i].value);
    if (c->hidden % c->heads != 0)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "heads: %zu does not divide the hidden size %zu",
                         c->heads, c->hidden);
    if (c->first_position >= c->positions)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "first_position: %zu leaves none of %zu positions",
                         c->first_position, c->positions);
    if (!(c->layer_norm_epsilon > 0.0f && c->layer_norm_epsilon < 1.0f))
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "layer_norm_epsilon: expected 0 to 1, got %g",
                         (double)c->layer_norm_epsilon);
    return AIMO_OK;
}

static aimo_status check_head(const aimo_encoder_config *c, aimo_error *err)
{
    if (c->pooling_count == 0 || c->pooling_count > AIMO_POOLINGS_MOST)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "poolings: expected 1 to %d, got %zu",
                         AIMO_POOLINGS_MOST, c->pooling_count);
    if (c->dense_count > AIMO_DENSE_MOST)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "dense: expected at most %d, got %zu",
                         AIMO_DENSE_MOST, c->dense_count);
    size_t width = pooled_width(c);
    for (size_t i = 0; i < c->dense_count; i++) {
        if (c->dense[i].inputs != width)
            return aimo_fail(err, AIMO_ERR_ARGUMENT, "dense %zu: takes %zu inputs, expected %zu", i,
                             c->dense[i].inputs, width);
        width = c->dense[i].outputs;
        if (width == 0 || width > INT32_MAX)
            return aimo_fail(err, AIMO_ERR_ARGUMENT, "dense %zu: expected 1 to %d outputs, got %zu",
                             i, INT32_MAX, width);
    }
    return AIMO_OK;
}

aimo_status aimo_encoder_new(const aimo_encoder_config *config, aimo_encoder **out, aimo_error *err)
{
    AIMO_TRY(check_config(config, err));
    AIMO_TRY(check_head(config, err));
    aimo_encoder *encoder;
    AIMO_TRY(aimo_memory_new_zero((void **)&encoder, 1, sizeof *encoder, "encoder", err));
    encoder->config = *config;
    const aimo_status status = aimo_weights_new(encoder, err);
    if (status != AIMO_OK) {
        aimo_encoder_free(encoder);
        return status;
    }
    *out = encoder;
    return AIMO_OK;
}

aimo_status aimo_encoder_seal(aimo_encoder *encoder, int device, aimo_error *err)
{
    const aimo_encoder_config *c = &encoder->config;
    if (encoder->backend != NULL)
        return aimo_fail(err, AIMO_ERR_ARGUMENT, "the encoder is sealed already");
    AIMO_TRY(aimo_weights_check_complete(encoder, err));
    if (device == AIMO_DEVICE_CPU)
        AIMO_TRY(aimo_backend_cpu_new(aimo_cpu_enabled(), &encoder->backend, err));
    else
        AIMO_TRY(
            aimo_backend_cuda_new(device, c->dtype, c->hidden / c->heads, &encoder->backend, err));
    AIMO_TRY(aimo_weights_upload(encoder, err));
    encoder->sealed = true;
    return AIMO_OK;
}

void aimo_encoder_free(aimo_encoder *encoder)
{
    if (encoder == NULL)
        return;
    aimo_weights_free(encoder);
    if (encoder->backend != NULL)
        encoder->backend->ops->free(encoder->backend);
    aimo_memory_free(encoder);
}

const aimo_encoder_config *aimo_encoder_config_of(const aimo_encoder *encoder)
{
    return &encoder->config;
}

size_t aimo_encoder_max_length(const aimo_encoder *encoder)
{
    return encoder->config.positions - encoder->config.first_position;
}

size_t aimo_encoder_dimension(const aimo_encoder *encoder)
{
    const aimo_encoder_config *c = &encoder->config;
    return c->dense_count == 0 ? pooled_width(c) : c->dense[c->dense_count - 1].outputs;
}

size_t aimo_encoder_weight_bytes(const aimo_encoder *encoder) { return encoder->weight_bytes; }
