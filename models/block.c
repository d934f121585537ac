/* The steps of a layer's plan over explicit activations.
 *
 * T = sequences * length rows. A step reads its inputs and writes its output where block_values says; one
 * that works in place (plan_derive.c) has both in one place. Values that a pass keeps are the caller's; the others are
 * in the scratch, whose size is what lives there at once at most. */

#include "models/block_internal.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"

#include <math.h>
#include <stdlib.h>

static int64_t region_elements(const struct plans *plans, enum plan_region region, int64_t tokens)
{
    int64_t columns = 1;

    for (int kind = 0; kind < plans_kinds(plans); kind++) {
        int64_t own = plans_kind(plans, kind)->columns[region];
        columns = own > columns ? own : columns;
    }
    return block_padded(tokens) * columns;
}

int64_t block_kept_elements(const struct plans *plans, int64_t tokens)
{
    return region_elements(plans, REGION_KEPT, tokens);
}

static int upload_table(struct block_scratch *s, int number)
{
    const struct rope_spec *rope = &plans_config(s->plans)->ropes[number];
    int64_t half = rope->dims / 2;
    const int64_t shape[2] = {s->length, half};
    size_t count = (size_t)s->length * (size_t)half;
    AUTO_FREE float *host = NULL;

    TRY(mem_array(&host, 2 * count));
    rope_tables(rope, s->length, host, host + count);
    TRY(gpu_tensor_from_host(s->gpu, s->stream, DTYPE_F32, 2, shape, host, &s->cosine[number]));
    return gpu_tensor_from_host(s->gpu, s->stream, DTYPE_F32, 2, shape, host + count, &s->sine[number]);
}

static int upload_tables(struct block_scratch *s)
{
    for (int i = 0; i < plans_config(s->plans)->rope_count; i++) {
        TRY(upload_table(s, i));
    }
    return 0;
}

static int fill_scratch(struct block_scratch *s, bool bare)
{
    int64_t elements = region_elements(s->plans, REGION_WORK, s->tokens);

    TRY(bare ? 0 : gpu_tensor_new(s->gpu, DTYPE_F32, 1, &elements, &s->work));
    return upload_tables(s);
}

static int new_scratch(const struct plans *plans, int64_t sequences, int64_t length, bool bare, const struct gpu *gpu,
                       struct gpu_stream *stream, struct block_scratch **out)
{
    int64_t tokens;

    if (sequences < 1 || length < 1 || __builtin_mul_overflow(sequences, length, &tokens) || tokens > INT32_MAX) {
        return err_raise(ERR_INTERNAL, "scratch for %lld sequences of %lld", (long long)sequences, (long long)length);
    }
    AUTO(block_scratch) struct block_scratch *s = NULL;
    TRY(mem_new(&s));
    *s = (struct block_scratch){
        .plans = plans, .gpu = gpu, .stream = stream, .sequences = sequences, .length = length, .tokens = tokens};
    int rc = fill_scratch(s, bare);
    if (rc != 0) {
        return err_pass(rc, "block scratch for %lld tokens", (long long)tokens);
    }
    *out = MOVE(s);
    return 0;
}

int block_scratch_new(const struct plans *plans, int64_t sequences, int64_t length, const struct gpu *gpu,
                      struct gpu_stream *stream, struct block_scratch **out)
{
    return new_scratch(plans, sequences, length, false, gpu, stream, out);
}

int block_scratch_bare(const struct plans *plans, int64_t sequences, int64_t length, const struct gpu *gpu,
                       struct gpu_stream *stream, struct block_scratch **out)
{
    return new_scratch(plans, sequences, length, true, gpu, stream, out);
}

void block_scratch_free(struct block_scratch *s)
{
    if (s == NULL) {
        return;
    }
    block_experts_free(s);
    gpu_tensor_free(s->gpu, &s->work);
    gpu_tensor_free(s->gpu, &s->kept);
    gpu_tensor_free(s->gpu, &s->rounded);
    for (int i = 0; i < ROPE_TABLES_MAX; i++) {
        gpu_tensor_free(s->gpu, &s->cosine[i]);
        gpu_tensor_free(s->gpu, &s->sine[i]);
    }
    free(s);
}

int block_values_init(struct block_values *values, const struct plan *plan, struct block_scratch *scratch,
                      const struct tensor *kept)
{
    if (kept == NULL && scratch->kept.data == NULL) {
        int64_t elements = block_kept_elements(scratch->plans, scratch->tokens);
        int rc = gpu_tensor_new(scratch->gpu, DTYPE_F32, 1, &elements, &scratch->kept);
        if (rc != 0) {
            return err_pass(rc, "values of %lld tokens", (long long)scratch->tokens);
        }
    }
    *values = (struct block_values){.plan = plan, .scratch = scratch};
    for (int i = 0; i < plan->storage_count; i++) {
        const struct plan_storage *storage = &plan->storages[i];
        float *base = storage->region == REGION_WORK ? scratch->work.data
                      : kept != NULL                 ? kept->data
                                                     : scratch->kept.data;
        values->at[i] = base + block_padded(scratch->tokens) * storage->offset;
    }
    return 0;
}

struct tensor block_value(const struct block_values *values, int value)
{
    const struct plan_value *v = &values->plan->values[value];

    return tensor_2d(values->at[v->storage], DTYPE_F32, values->scratch->tokens, v->width);
}

void block_value_bind(struct block_values *values, int value, void *data)
{
    values->at[values->plan->values[value].storage] = data;
}

int64_t block_values_length(const struct block_values *values)
{
    return values->scratch->length;
}

int block_values_part(const struct block_values *values, plan_set have, int64_t first, int64_t sequences,
                      int64_t length, struct block_values *out)
{
    struct block_scratch *of = values->scratch, *s;
    struct block_values part = *values;

    if (first < 0 || sequences < 1 || length < 1 || first + sequences * length > of->tokens) {
        return err_raise(ERR_INTERNAL, "%lld sequences of %lld from row %lld of %lld", (long long)sequences,
                         (long long)length, (long long)first, (long long)of->tokens);
    }
    TRY(mem_new(&s));
    *s = (struct block_scratch){.owner = of->owner != NULL ? of->owner : of,
                                .plans = of->plans,
                                .gpu = of->gpu,
                                .stream = of->stream,
                                .sequences = sequences,
                                .length = length,
                                .tokens = sequences * length};
    for (int i = 0; i < ROPE_TABLES_MAX && of->cosine[i].data != NULL && length <= of->length; i++) {
        s->cosine[i] = tensor_rows(&of->cosine[i], 0, length);
        s->sine[i] = tensor_rows(&of->sine[i], 0, length);
    }
    for (int v = 0; v < values->plan->value_count; v++) {
        if ((have & PLAN_BIT(v)) != 0) {
            block_value_bind(&part, v, (float *)block_value(values, v).data + first * values->plan->values[v].width);
        }
    }
    part.ids = values->ids != NULL ? values->ids + first : NULL;
    part.scratch = s;
    *out = part;
    return 0;
}

void block_values_part_deinit(struct block_values *part)
{
    free(part->scratch);
    part->scratch = NULL;
}

/* --- steps: each makes `out` of in[], and knows nothing of the others */

const struct block_module *block_step_module(const struct block_step *r)
{
    return &r->block->modules[r->values->first_module + r->step->module];
}

static int64_t block_widest_input(const struct plans *plans)
{
    int64_t widest = 0;

    for (int kind = 0; kind < plans_kinds(plans); kind++) {
        int64_t own = plans_kind(plans, kind)->widest_input;
        widest = own > widest ? own : widest;
    }
    return widest;
}

int64_t block_rounded_bytes(const struct plans *plans, int64_t tokens)
{
    return 4 * tokens * block_widest_input(plans);
}

int block_rounded_new(struct block_scratch *s)
{
    return gpu_tensor_new(s->gpu, DTYPE_F32, 2, (const int64_t[]){s->tokens, block_widest_input(s->plans)},
                          &s->rounded);
}

static struct block_scratch *block_scratch_owner(struct block_scratch *s)
{
    return s->owner != NULL ? s->owner : s;
}

int block_rounded(struct block_scratch *scratch, const struct tensor *like, struct tensor *rounded)
{
    struct block_scratch *s = block_scratch_owner(scratch);

    s->rounding.x = NULL;
    TRY(s->rounded.data == NULL ? block_rounded_new(s) : 0);
    *rounded = tensor_2d(s->rounded.data, DTYPE_F32, like->shape[0], like->shape[1]);
    return 0;
}

int block_round_input(const struct block_step *r, const struct block_module *module, const struct tensor *x,
                      struct tensor *rounded)
{
    const struct tensor *outliers = module->outliers.data != NULL ? &module->outliers : NULL;

    TRY(block_rounded(r->s, x, rounded));
    return r->s->gpu->ops->quantize_input(r->s->stream, rounded, x, outliers, &module->input);
}

static bool block_same_rounding(const struct block_rounding *a, const struct block_rounding *b)
{
    return a->x == b->x && a->outliers == b->outliers && a->rows == b->rows && a->cols == b->cols &&
           a->input.element == b->input.element && a->input.dynamic == b->input.dynamic &&
           a->input.group_size == b->input.group_size && a->input.half == b->input.half &&
           a->input.scale == b->input.scale;
}

/* The same, but not made again for the next linear of this run that reads x. */
static int block_share_input(const struct block_step *r, const struct block_module *module, const struct tensor *x,
                             struct tensor *rounded)
{
    struct block_scratch *s = block_scratch_owner(r->s);
    const struct block_rounding wanted = {.x = x->data,
                                          .outliers = module->outliers.data,
                                          .rows = x->shape[0],
                                          .cols = x->shape[1],
                                          .input = module->input};

    if (block_same_rounding(&s->rounding, &wanted)) {
        *rounded = tensor_2d(s->rounded.data, DTYPE_F32, x->shape[0], x->shape[1]);
        return 0;
    }
    TRY(block_round_input(r, module, x, rounded));
    s->rounding = wanted;
    return 0;
}

static int step_linear(const struct block_step *r, const struct tensor *out, const struct tensor *in)
{
    const struct block_module *module = block_step_module(r);
    struct tensor input = in[0];
    if (module->weight.data == NULL) {
        return err_raise(ERR_INTERNAL, "an expert's linear runs before it is loaded");
    }

    if (module->input.element != DTYPE_F32) {
        TRY(block_share_input(r, module, &in[0], &input));
    }
    return r->s->gpu->ops->linear(r->s->stream, out, &input, &module->weight,
                                  module->bias.data != NULL ? &module->bias : NULL);
}

struct gpu_norm block_norm_spec(const struct block_step *r)
{
    const struct plan_norm *norm = &r->values->plan->norms[r->step->norm];

    return (struct gpu_norm){.size = norm->size,
                             .layer = norm->kind == NORM_LAYER,
                             .unit_offset = norm->unit_offset,
                             .eps = (float)(norm->eps > 0 ? norm->eps : r->block->config->rms_norm_eps)};
}

static int step_norm(const struct block_step *r, const struct tensor *out, const struct tensor *in)
{
    const struct block_norm *tensors = &r->block->norms[r->step->norm];
    const struct gpu_norm spec = block_norm_spec(r);

    return r->s->gpu->ops->norm(r->s->stream, out, &in[0], tensors->weight.data != NULL ? &tensors->weight : NULL,
                                tensors->bias.data != NULL ? &tensors->bias : NULL, &spec);
}

/* Bring the first input to where a step that works in place has its output. */
static int copy_first(const struct block_step *r, const struct tensor *out, const struct tensor *in)
{
    return out->data == in[0].data ? 0 : r->s->gpu->ops->convert(r->s->stream, out, &in[0]);
}

int block_step_rotate(const struct block_step *r, const struct tensor *x, bool inverse)
{
    const struct block_scratch *s = r->s;
    const struct plan_rope *rope = &r->step->rope;
    const struct gpu_rope spec = {.length = s->length,
                                  .head_dim = rope->head_dim,
                                  .rotated = rope->rotated,
                                  .interleaved = rope->interleaved,
                                  .inverse = inverse};

    return s->gpu->ops->rope(s->stream, x, &s->cosine[rope->table], &s->sine[rope->table], &spec);
}

static int step_rope(const struct block_step *r, const struct tensor *out, const struct tensor *in)
{
    TRY(copy_first(r, out, in));
    return block_step_rotate(r, out, false);
}

struct gpu_attention block_attention_spec(const struct block_step *r)
{
    const struct plan_attention *a = &r->step->attention;

    return (struct gpu_attention){.sequences = r->s->sequences,
                                  .length = r->s->length,
                                  .heads = a->heads,
                                  .kv_heads = a->kv_heads,
                                  .head_dim = a->head_dim,
                                  .window = a->window,
                                  .scale = (float)a->scale,
                                  .value_dim = a->value_dim,
                                  .chunk = a->chunk,
                                  .cap = (float)a->cap,
                                  .sinks = a->has_sinks ? &r->block->parameters[a->sinks] : NULL};
}

/* Keys and values go through the block's cache where they lie: nothing else reads them. */
static int step_attention(const struct block_step *r, const struct tensor *out, const struct tensor *in)
{
    const struct gpu_ops *ops = r->s->gpu->ops;
    const struct gpu_attention spec = block_attention_spec(r);
    const struct block *block = r->block;

    if (block->key_cache.group_size != 0) {
        TRY(ops->quantize_cache(r->s->stream, &in[1], &in[1], &block->key_cache));
    }
    if (block->value_cache.group_size != 0) {
        TRY(ops->quantize_cache(r->s->stream, &in[2], &in[2], &block->value_cache));
    }
    return ops->attention(r->s->stream, out, &in[0], &in[1], &in[2], &spec);
}

enum gpu_activation block_activation(enum plan_activation activation)
{
    static const enum gpu_activation activations[] = {
        [ACTIVATION_SILU] = GPU_SILU,
        [ACTIVATION_GELU] = GPU_GELU,
        [ACTIVATION_GELU_TANH] = GPU_GELU_TANH,
        [ACTIVATION_RELU] = GPU_RELU,
        [ACTIVATION_RELU2] = GPU_RELU2,
        [ACTIVATION_SIGMOID] = GPU_SIGMOID,
        [ACTIVATION_SWIGLU_CLAMPED] = GPU_SWIGLU_CLAMPED,
    };

    return activations[activation];
}

static int step_activate(const struct block_step *r, const struct tensor *out, const struct tensor *in)
{
    return r->s->gpu->ops->activate(r->s->stream, out, &in[0], r->step->inputs > 1 ? &in[1] : NULL,
                                    block_activation(r->step->activation));
}

struct gpu_columns block_select_columns(const struct plan_select *select, int64_t width)
{
    return (struct gpu_columns){.heads = width / select->stride,
                                .count = select->count,
                                .to_stride = select->count,
                                .from = select->first,
                                .from_stride = select->stride};
}

static int step_select(const struct block_step *r, const struct tensor *out, const struct tensor *in)
{
    const struct gpu_columns spec = block_select_columns(&r->step->select, in[0].shape[1]);

    return r->s->gpu->ops->copy_columns(r->s->stream, out, &in[0], &spec);
}

void block_join_columns(const struct plan_join *join, int64_t first_width, int64_t second_width,
                        struct gpu_columns columns[2])
{
    int64_t first = first_width / join->heads, second = second_width / (join->shared ? 1 : join->heads);

    columns[0] =
        (struct gpu_columns){.heads = join->heads, .count = first, .to_stride = first + second, .from_stride = first};
    columns[1] = (struct gpu_columns){.heads = join->heads,
                                      .count = second,
                                      .to = first,
                                      .to_stride = first + second,
                                      .from_stride = join->shared ? 0 : second};
}

static int step_join(const struct block_step *r, const struct tensor *out, const struct tensor *in)
{
    struct gpu_columns columns[2];

    block_join_columns(&r->step->join, in[0].shape[1], in[1].shape[1], columns);
    TRY(r->s->gpu->ops->copy_columns(r->s->stream, out, &in[0], &columns[0]));
    return r->s->gpu->ops->copy_columns(r->s->stream, out, &in[1], &columns[1]);
}

static int step_add(const struct block_step *r, const struct tensor *out, const struct tensor *in)
{
    TRY(copy_first(r, out, in));

    return r->s->gpu->ops->add(r->s->stream, out, &in[1]);
}

int block_step_scale(const struct block_step *r, const struct tensor *out, const struct tensor *in)
{
    const struct gpu_ops *ops = r->s->gpu->ops;
    const struct tensor *by = r->step->has_parameter ? &r->block->parameters[r->step->parameter] : NULL;
    const struct tensor row = tensor_2d(out->data, DTYPE_F32, 1, tensor_count(out));

    TRY(ops->combine(r->s->stream, out, r->step->factor, in, 0, NULL));
    if (by == NULL) {
        return 0;
    }
    return tensor_count(by) == 1 ? ops->scale(r->s->stream, &row, by, NULL) : ops->scale(r->s->stream, out, NULL, by);
}

static int step_scale(const struct block_step *r, const struct tensor *out, const struct tensor *in)
{
    return block_step_scale(r, out, &in[0]);
}

static int step_experts(const struct block_step *r, const struct tensor *out, const struct tensor *in)
{
    TRY(block_experts_begin(r->values, r->number));

    (void)out;
    (void)in;
    return block_experts_add(r->block, r->values, r->number, 0, r->step->experts->count);
}

static int step_recurrent(const struct block_step *r, const struct tensor *out, const struct tensor *in)
{
    return block_run_recurrent(r->s, r->block, r->step, out, in);
}

static int step_tokens(const struct block_step *r, const struct tensor *out, const struct tensor *in)
{
    (void)in;
    return block_run_tokens(r->s, r->block, r->values->ids, out);
}

static int (*const forwards[])(const struct block_step *, const struct tensor *out, const struct tensor *in) = {
    [STEP_LINEAR] = step_linear,     [STEP_NORM] = step_norm,
    [STEP_ROPE] = step_rope,         [STEP_ATTENTION] = step_attention,
    [STEP_ACTIVATE] = step_activate, [STEP_ADD] = step_add,
    [STEP_SCALE] = step_scale,       [STEP_EXPERTS] = step_experts,
    [STEP_SELECT] = step_select,     [STEP_JOIN] = step_join,
    [STEP_CONV] = step_recurrent,    [STEP_DELTA] = step_recurrent,
    [STEP_SCAN] = step_recurrent,    [STEP_GATED_NORM] = step_recurrent,
    [STEP_TOKENS] = step_tokens,
};

static int run_step(const struct block *block, const struct block_values *values, int s)
{
    const struct plan_step *step = &values->plan->steps[s];
    const struct block_step run = {.block = block, .values = values, .s = values->scratch, .step = step, .number = s};
    struct tensor in[PLAN_INPUTS_MAX], out = block_value(values, step->out);

    for (int i = 0; i < step->inputs; i++) {
        in[i] = block_value(values, step->in[i]);
    }
    if ((size_t)step->kind >= sizeof(forwards) / sizeof(forwards[0]) || forwards[step->kind] == NULL) {
        return err_raise(ERR_INTERNAL, "step %d of block %lld has no forward pass", s, (long long)block->index);
    }
    TRY(forwards[step->kind](&run, &out, in));
    struct block_scratch *owner = block_scratch_owner(values->scratch);
    if (owner->rounding.x == out.data) { /* another value is there now */
        owner->rounding.x = NULL;
    }
    return 0;
}

int block_run(const struct block *block, const struct block_values *values, plan_set steps)
{
    block_scratch_owner(values->scratch)->rounding.x = NULL; /* callers bring other inputs at the same place */
    for (int s = 0; s < values->plan->step_count; s++) {
        int rc = (steps & PLAN_BIT(s)) != 0 ? run_step(block, values, s) : 0;
        if (rc != 0) {
            return err_pass(rc, "forward of block %lld", (long long)block->index);
        }
    }
    return 0;
}

int block_attention_heads(const struct block *block, const struct block_values *values, plan_set have,
                          struct block_heads *out)
{
    const struct plan *plan = values->plan;
    int s = plan_find_step(plan, STEP_ATTENTION);
    plan_set steps, used;

    if (s < 0) {
        return err_raise(ERR_INTERNAL, "block %lld has no attention", (long long)block->index);
    }
    const int *in = plan->steps[s].in;
    if (!plan_steps(plan, have, PLAN_BIT(in[0]) | PLAN_BIT(in[1]) | PLAN_BIT(in[2]), &steps, &used)) {
        return err_raise(ERR_INTERNAL, "the attention of block %lld needs more than it is given",
                         (long long)block->index);
    }
    const struct block_step run = {.block = block, .values = values, .s = values->scratch, .step = &plan->steps[s]};
    TRY(block_run(block, values, steps));
    *out = (struct block_heads){.q = block_value(values, in[0]),
                                .k = block_value(values, in[1]),
                                .v = block_value(values, in[2]),
                                .spec = block_attention_spec(&run)};
    return 0;
}
