/* The forward pass, written once over the backend.
 *
 * All tokens of a chunk are stored one after another; only embedding, attention and pooling care
 * where sequences begin. */
#include "encoder/encoder_forward.h"

#include "base/clock.h"
#include "encoder/encoder_config.h"
#include "encoder/encoder_workspace.h"
#include "encoder/encoder_weights.h"

/* A chunk during its forward pass. */
typedef struct {
    const encode_call *call;
    const chunk *c;
    const aimo_encoder *encoder; /* the call's */
    aimo_workspace *leased;
    workspace w; /* in the leased one's memory */
} pass;

static aimo_layer_norm norm_of(const aimo_encoder *e, const aimo_weight *weight,
                               const aimo_weight *bias)
{
    return (aimo_layer_norm){weight->device, bias->device, e->config.layer_norm_epsilon};
}

/* The backend's operations, timed when the call asks for their times. */
static double start_of(const pass *p)
{
    return p->call->seconds != NULL ? aimo_clock_seconds() : 0.0;
}

static void add_seconds(const pass *p, aimo_operation operation, double start)
{
    if (p->call->seconds != NULL)
        p->call->seconds[operation] += aimo_clock_seconds() - start;
}

static aimo_status run_linear(const pass *p, aimo_operation operation, const aimo_linear_args *args,
                              aimo_error *err)
{
    aimo_backend *b = p->encoder->backend;
    const double start = start_of(p);
    const aimo_status status = b->ops->linear(b, p->leased, args, err);
    add_seconds(p, operation, start);
    return status;
}

static aimo_status run_embedding(const pass *p, aimo_error *err)
{
    const aimo_encoder *e = p->encoder;
    const aimo_model_weights *t = &e->model;
    const aimo_embed_args args = {
        .dtype = e->config.dtype,
        .word = t->word.device,
        .position = t->position.device,
        .type = t->type.device,
        .ids = p->call->token_ids + p->call->offsets[p->c->first],
        .offsets = p->c->offsets,
        .batch = p->c->batch,
        .hidden = e->config.hidden,
        .first_position = e->config.first_position,
        .norm = norm_of(e, &t->norm, &t->norm_bias),
        .out = p->w.x,
    };
    const double start = start_of(p);
    const aimo_status status = e->backend->ops->embed(e->backend, p->leased, &args, err);
    add_seconds(p, AIMO_OP_EMBED, start);
    return status;
}

/* Where the peaks of a layer's matrix go; NULL when the call does not ask for them. */
static float *peaks_of(const pass *p, const aimo_layer_weights *l, size_t matrix)
{
    const size_t layer = (size_t)(l - p->encoder->layers);
    if (p->call->peaks == NULL)
        return NULL;
    return p->call->peaks +
           (layer * AIMO_LAYER_MATRICES + matrix) * aimo_encoder_widest_input(&p->encoder->config);
}

/* x = layer_norm(x + attention(x)) */
static aimo_status run_attention(const pass *p, const aimo_layer_weights *l, aimo_error *err)
{
    const aimo_encoder *e = p->encoder;
    const workspace *w = &p->w;
    const aimo_layer_norm norm = norm_of(e, &l->attention_norm, &l->attention_norm_bias);
    const aimo_linear_args qkv = {
        .w = l->qkv.matrix,
        .bias = l->qkv_bias.device,
        .x = w->x,
        .x_kind = AIMO_ROWS_HIDDEN,
        .m = p->c->token_rows,
        .input_peaks = peaks_of(p, l, 0),
        .y = w->qkv,
        .y_kind = AIMO_ROWS_OPERAND,
    };
    const aimo_attention_args attention = {
        .qkv = w->qkv,
        .offsets = p->c->offsets,
        .batch = p->c->batch,
        .heads = e->config.heads,
        .head_dim = e->config.hidden / e->config.heads,
        .out = w->attended,
        .dtype = e->config.dtype,
    };
    const aimo_linear_args output = {
        .w = l->attention.matrix,
        .bias = l->attention_bias.device,
        .x = w->attended,
        .x_kind = AIMO_ROWS_OPERAND,
        .m = p->c->token_rows,
        .input_peaks = peaks_of(p, l, 1),
        .norm = &norm,
        .residual = w->x,
        .scratch = w->scratch,
        .y = w->x,
        .y_kind = AIMO_ROWS_HIDDEN,
    };
    AIMO_TRY(run_linear(p, AIMO_OP_QKV, &qkv, err));
    const double start = start_of(p);
    AIMO_TRY(e->backend->ops->attention(e->backend, p->leased, &attention, err));
    add_seconds(p, AIMO_OP_ATTENTION, start);
    return run_linear(p, AIMO_OP_ATTENTION_OUTPUT, &output, err);
}

/* x = layer_norm(x + down(activation(up(x)))) */
static aimo_status run_feed_forward(const pass *p, const aimo_layer_weights *l, aimo_error *err)
{
    const workspace *w = &p->w;
    const aimo_layer_norm norm = norm_of(p->encoder, &l->output_norm, &l->output_norm_bias);
    const aimo_linear_args up = {
        .w = l->up.matrix,
        .bias = l->up_bias.device,
        .x = w->x,
        .x_kind = AIMO_ROWS_HIDDEN,
        .m = p->c->token_rows,
        .input_peaks = peaks_of(p, l, 2),
        .activation = p->encoder->config.activation,
        .y = w->intermediate,
        .y_kind = AIMO_ROWS_OPERAND,
    };
    const aimo_linear_args down = {
        .w = l->down.matrix,
        .bias = l->down_bias.device,
        .x = w->intermediate,
        .x_kind = AIMO_ROWS_OPERAND,
        .m = p->c->token_rows,
        .input_peaks = peaks_of(p, l, 3),
        .norm = &norm,
        .residual = w->x,
        .scratch = w->scratch,
        .y = w->x,
        .y_kind = AIMO_ROWS_HIDDEN,
    };
    AIMO_TRY(run_linear(p, AIMO_OP_UP, &up, err));
    return run_linear(p, AIMO_OP_DOWN, &down, err);
}

/* w.vectors = the pooled vectors; without dense layers they are cut and normalized here as well. */
static aimo_status run_pooling(const pass *p, aimo_error *err)
{
    const aimo_encoder *e = p->encoder;
    const bool last = e->config.dense_count == 0;
    const aimo_pool_args pool = {
        .x = p->w.x,
        .x_kind = AIMO_ROWS_HIDDEN,
        .offsets = p->c->offsets,
        .batch = p->c->vector_rows,
        .hidden = e->config.hidden,
        .poolings = e->config.poolings,
        .skip = p->call->options->skip,
        .columns = last ? p->call->columns : aimo_encoder_pooled_width(&e->config),
        .normalize = last && p->call->options->normalize,
        .out = p->w.vectors,
    };
    return e->backend->ops->pool(e->backend, p->leased, &pool, err);
}

static const aimo_pooling first_token = AIMO_POOL_CLS;

/* The dense layers, alternating between the two sets of vectors; then each vector is cut and
 * normalized. */
static aimo_status run_dense(const pass *p, aimo_error *err)
{
    const aimo_encoder *e = p->encoder;
    aimo_backend *b = e->backend;
    float *x = p->w.vectors, *y = p->w.other_vectors;
    for (size_t i = 0; i < e->config.dense_count; i++) {
        const aimo_linear_args dense = {
            .w = e->model.dense[i].matrix,
            .bias = e->model.dense_bias[i].device,
            .x = x,
            .m = p->c->vector_rows,
            .activation = e->config.dense[i].activation,
            .y = y,
        };
        AIMO_TRY(b->ops->linear(b, p->leased, &dense, err));
        float *next = x;
        x = y;
        y = next;
    }
    const aimo_pool_args cut = {
        .x = x,
        .batch = p->c->vector_rows,
        .hidden = e->config.dense[e->config.dense_count - 1].outputs,
        .poolings = &first_token,
        .columns = p->call->columns,
        .normalize = p->call->options->normalize,
        .out = y,
    };
    return b->ops->pool(b, p->leased, &cut, err);
}

/* w.vectors = every token's vector, converted from the layers' row format to f32. */
static aimo_status run_tokens(const pass *p, aimo_error *err)
{
    const aimo_encoder *e = p->encoder;
    const aimo_pool_args each = {
        .x = p->w.x,
        .x_kind = AIMO_ROWS_HIDDEN,
        .batch = p->c->token_rows,
        .hidden = e->config.hidden,
        .poolings = &first_token,
        .columns = p->call->columns,
        .out = p->w.vectors,
    };
    return e->backend->ops->pool(e->backend, p->leased, &each, err);
}

/* The set that holds the result: each dense layer goes from one set of vectors to the other, and so
 * does the cut. */
static const float *result_of(const pass *p)
{
    const size_t dense = p->encoder->config.dense_count;
    return p->call->per_token || dense == 0 || dense % 2 == 1 ? p->w.vectors : p->w.other_vectors;
}

/* Everything between upload and download. */
static aimo_status forward(void *context, aimo_error *err)
{
    const pass *p = context;
    const aimo_encoder *e = p->encoder;
    AIMO_TRY(run_embedding(p, err));
    for (size_t layer = 0; layer < e->config.layers; layer++) {
        AIMO_TRY(run_attention(p, &e->layers[layer], err));
        AIMO_TRY(run_feed_forward(p, &e->layers[layer], err));
    }
    if (p->call->per_token)
        return run_tokens(p, err);
    const double start = start_of(p);
    AIMO_TRY(run_pooling(p, err));
    if (e->config.dense_count != 0)
        AIMO_TRY(run_dense(p, err));
    add_seconds(p, AIMO_OP_POOL, start);
    return AIMO_OK;
}

/* Copies the chunk's vectors to their place in the output, from w.vectors or w.other_vectors. */
static aimo_status bring_result(const pass *p, aimo_error *err)
{
    const encode_call *call = p->call;
    const chunk *c = p->c;
    aimo_backend *b = p->encoder->backend;
    const size_t rows = call->per_token ? c->offsets[c->batch] : c->batch;
    const size_t first = call->per_token ? (size_t)call->offsets[c->first] : c->first;
    const bool stays = !call->per_token && call->options->out_on_device;
    const double start = start_of(p);
    AIMO_TRY((stays ? b->ops->hand_over : b->ops->download)(
        b, p->leased, result_of(p), rows, call->columns, call->out + first * call->columns, err));
    add_seconds(p, AIMO_OP_POOL, start);
    return AIMO_OK;
}

static aimo_status run_pass(pass *p, aimo_error *err)
{
    const encode_call *call = p->call;
    const chunk *c = p->c;
    aimo_backend *b = p->encoder->backend;
    const aimo_sequences sequences = {call->token_ids + call->offsets[c->first], c->offsets,
                                      c->batch, c->token_rows, c->vector_rows};
    const aimo_run_key key =
        call->per_token
            ? (aimo_run_key){{0}}
            : (aimo_run_key){{1, call->columns, call->options->skip, call->options->normalize}};
    AIMO_TRY(b->ops->upload(b, p->leased, &sequences, err));
    AIMO_TRY(
        b->ops->run(b, p->leased, forward, p, aimo_encode_call_observes(call) ? NULL : &key, err));
    return bring_result(p, err);
}

aimo_status aimo_encoder_run_chunk(const encode_call *call, const chunk *c, size_t workspace_bytes,
                                   aimo_error *err)
{
    const aimo_encoder *e = call->encoder;
    aimo_backend *b = e->backend;
    aimo_workspace *leased;
    AIMO_TRY(b->ops->workspace_lease(b, workspace_bytes, &leased, err));
    pass p = {call, c, e, leased,
              aimo_encoder_workspace_of(e, leased->memory, c->token_rows, c->vector_rows)};
    const aimo_status status = run_pass(&p, err);
    b->ops->workspace_return(b, leased);
    return status;
}
