/* The steps of a layer's plan over explicit activations.
 *
 * T = sequences * length rows. A step reads its inputs and writes its output where block_values says that they lie; one
 * that works in place (plan_derive.c) has both in one place. Values that a pass keeps are the caller's; the others are
 * in the scratch, whose size is what lives there at once at most. */

#include "models/block.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"

#include <math.h>
#include <stdlib.h>

#define TOKENS_ALIGN 16 /* places begin at multiples of as many rows */

/* What the experts of a layer are computed in, made on first use: of the largest. */
struct expert_scratch {
    struct tensor ids, places; /* I32 [T, k] */
    struct tensor weights;     /* F32 [T, k] */
    struct tensor memory;      /* F32: both regions of the widest expert's plan, for T rows */
    int64_t *offsets;          /* [experts + 1] */
};

struct block_scratch {
    struct block_scratch *owner; /* of the scratch that rows of an expert have: of the layer's; else NULL */
    struct expert_scratch experts;
    struct block_scratch *rows; /* of an expert's rows; made on first use */
    const struct plans *plans;
    const struct gpu *gpu;
    struct gpu_stream *stream;
    int64_t sequences, length, tokens;
    struct tensor work;         /* F32: REGION_WORK of the widest layer */
    struct tensor kept;         /* F32: REGION_KEPT likewise, where the caller brings none */
    struct tensor rounded;      /* F32 [T * widest input]: an input as the runtime quantizes it; made on first use */
    struct tensor cosine, sine; /* F32 [length, head_dim / 2] */
};

static int64_t padded(int64_t tokens)
{
    return (tokens + TOKENS_ALIGN - 1) / TOKENS_ALIGN * TOKENS_ALIGN;
}

static int64_t region_elements(const struct plans *plans, enum plan_region region, int64_t tokens)
{
    int64_t columns = 1;

    for (int kind = 0; kind < plans_kinds(plans); kind++) {
        int64_t own = plans_kind(plans, kind)->columns[region];
        columns = own > columns ? own : columns;
    }
    return padded(tokens) * columns;
}

int64_t block_kept_elements(const struct plans *plans, int64_t tokens)
{
    return region_elements(plans, REGION_KEPT, tokens);
}

static int upload_tables(struct block_scratch *s)
{
    const struct model_config *config = plans_config(s->plans);
    int64_t half = config->head_dim / 2;
    const int64_t shape[2] = {s->length, half};
    size_t count = (size_t)s->length * (size_t)half;
    AUTO_FREE float *host = NULL;

    TRY(mem_array(&host, 2 * count));
    arch_rope_tables(config, s->length, host, host + count);
    TRY(gpu_tensor_from_host(s->gpu, s->stream, DTYPE_F32, 2, shape, host, &s->cosine));
    return gpu_tensor_from_host(s->gpu, s->stream, DTYPE_F32, 2, shape, host + count, &s->sine);
}

static void free_experts(struct block_scratch *s)
{
    struct expert_scratch *e = &s->experts;

    gpu_tensor_free(s->gpu, &e->ids);
    gpu_tensor_free(s->gpu, &e->places);
    gpu_tensor_free(s->gpu, &e->weights);
    gpu_tensor_free(s->gpu, &e->memory);
    free(e->offsets);
    free(s->rows);
}

static int fill_scratch(struct block_scratch *s)
{
    int64_t elements = region_elements(s->plans, REGION_WORK, s->tokens);

    TRY(gpu_tensor_new(s->gpu, DTYPE_F32, 1, &elements, &s->work));
    return upload_tables(s);
}

int block_scratch_new(const struct plans *plans, int64_t sequences, int64_t length, const struct gpu *gpu,
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
    int rc = fill_scratch(s);
    if (rc != 0) {
        return err_pass(rc, "block scratch for %lld tokens", (long long)tokens);
    }
    *out = MOVE(s);
    return 0;
}

void block_scratch_free(struct block_scratch *s)
{
    if (s == NULL) {
        return;
    }
    free_experts(s);
    gpu_tensor_free(s->gpu, &s->work);
    gpu_tensor_free(s->gpu, &s->kept);
    gpu_tensor_free(s->gpu, &s->rounded);
    gpu_tensor_free(s->gpu, &s->cosine);
    gpu_tensor_free(s->gpu, &s->sine);
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
        values->at[i] = base + padded(scratch->tokens) * storage->offset;
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

/* --- steps: each makes `out` of in[], and knows nothing of the others */

struct run {
    const struct block *block;
    const struct block_values *values;
    struct block_scratch *s;
    const struct plan_step *step;
    int number; /* the step's */
};

/* x as the module's runtime would quantize it, in s->rounded. */
static int round_input(const struct run *r, const struct block_module *module, const struct tensor *x,
                       struct tensor *rounded)
{
    struct block_scratch *s = r->s->owner != NULL ? r->s->owner : r->s;
    const struct tensor *outliers = module->outliers.data != NULL ? &module->outliers : NULL;

    if (s->rounded.data == NULL) {
        int64_t widest = 0;
        for (int kind = 0; kind < plans_kinds(s->plans); kind++) {
            int64_t own = plans_kind(s->plans, kind)->widest_input;
            widest = own > widest ? own : widest;
        }
        TRY(gpu_tensor_new(s->gpu, DTYPE_F32, 2, (const int64_t[]){s->tokens, widest}, &s->rounded));
    }
    *rounded = tensor_2d(s->rounded.data, DTYPE_F32, x->shape[0], x->shape[1]);
    return s->gpu->ops->quantize_input(s->stream, rounded, x, outliers, &module->input);
}

static int step_linear(const struct run *r, const struct tensor *out, const struct tensor *in)
{
    const struct block_module *module = &r->block->modules[r->values->first_module + r->step->module];
    struct tensor input = in[0];
    if (module->weight.data == NULL) {
        return err_raise(ERR_INTERNAL, "an expert's linear runs before it is loaded");
    }

    if (module->input.element != DTYPE_F32) {
        TRY(round_input(r, module, &in[0], &input));
    }
    return r->s->gpu->ops->linear(r->s->stream, out, &input, &module->weight,
                                  module->bias.data != NULL ? &module->bias : NULL);
}

static int step_norm(const struct run *r, const struct tensor *out, const struct tensor *in)
{
    return r->s->gpu->ops->rmsnorm(r->s->stream, out, &in[0], &r->block->norms[r->step->norm].weight,
                                   (float)r->block->config->rms_norm_eps);
}

/* Bring the first input to where a step that works in place has its output. */
static int copy_first(const struct run *r, const struct tensor *out, const struct tensor *in)
{
    return out->data == in[0].data ? 0 : r->s->gpu->ops->convert(r->s->stream, out, &in[0]);
}

static int step_rope(const struct run *r, const struct tensor *out, const struct tensor *in)
{
    struct block_scratch *s = r->s;

    TRY(copy_first(r, out, in));
    return s->gpu->ops->rope(s->stream, out, &s->cosine, &s->sine, s->length, r->step->head_dim);
}

static struct gpu_attention attention_spec(const struct run *r)
{
    const struct plan_attention *a = &r->step->attention;

    return (struct gpu_attention){.sequences = r->s->sequences,
                                  .length = r->s->length,
                                  .heads = a->heads,
                                  .kv_heads = a->kv_heads,
                                  .head_dim = a->head_dim,
                                  .window = a->window,
                                  .scale = (float)a->scale};
}

/* Keys and values go through the block's cache where they lie: nothing else reads them. */
static int step_attention(const struct run *r, const struct tensor *out, const struct tensor *in)
{
    const struct gpu_ops *ops = r->s->gpu->ops;
    const struct gpu_attention spec = attention_spec(r);
    const struct block *block = r->block;

    if (block->key_cache.group_size != 0) {
        TRY(ops->quantize_cache(r->s->stream, &in[1], &in[1], &block->key_cache));
    }
    if (block->value_cache.group_size != 0) {
        TRY(ops->quantize_cache(r->s->stream, &in[2], &in[2], &block->value_cache));
    }
    return ops->attention(r->s->stream, out, &in[0], &in[1], &in[2], &spec);
}

static int step_activate(const struct run *r, const struct tensor *out, const struct tensor *in)
{
    return r->s->gpu->ops->swiglu(r->s->stream, out, &in[0], &in[1]);
}

static int step_add(const struct run *r, const struct tensor *out, const struct tensor *in)
{
    TRY(copy_first(r, out, in));

    return r->s->gpu->ops->add(r->s->stream, out, &in[1]);
}

static int step_scale(const struct run *r, const struct tensor *out, const struct tensor *in)
{
    return r->s->gpu->ops->combine(r->s->stream, out, r->step->factor, &in[0], 0, NULL);
}

static int step_experts(const struct run *r, const struct tensor *out, const struct tensor *in)
{
    TRY(block_experts_begin(r->values, r->number));

    (void)out;
    (void)in;
    return block_experts_add(r->block, r->values, r->number, 0, r->step->experts->count);
}

static int (*const forwards[])(const struct run *, const struct tensor *out, const struct tensor *in) = {
    [STEP_LINEAR] = step_linear,       [STEP_NORM] = step_norm,         [STEP_ROPE] = step_rope,
    [STEP_ATTENTION] = step_attention, [STEP_ACTIVATE] = step_activate, [STEP_ADD] = step_add,
    [STEP_SCALE] = step_scale,         [STEP_EXPERTS] = step_experts,
};

static int run_step(const struct block *block, const struct block_values *values, int s)
{
    const struct plan_step *step = &values->plan->steps[s];
    const struct run run = {.block = block, .values = values, .s = values->scratch, .step = step, .number = s};
    struct tensor in[PLAN_INPUTS_MAX], out = block_value(values, step->out);

    for (int i = 0; i < step->inputs; i++) {
        in[i] = block_value(values, step->in[i]);
    }
    if ((size_t)step->kind >= sizeof(forwards) / sizeof(forwards[0])) {
        return err_raise(ERR_INTERNAL, "step %d of block %lld has no forward pass", s, (long long)block->index);
    }
    return forwards[step->kind](&run, &out, in);
}

int block_run(const struct block *block, const struct block_values *values, plan_set steps)
{
    for (int s = 0; s < values->plan->step_count; s++) {
        int rc = (steps & PLAN_BIT(s)) != 0 ? run_step(block, values, s) : 0;
        if (rc != 0) {
            return err_pass(rc, "forward of block %lld", (long long)block->index);
        }
    }
    return 0;
}

/* --- experts */

struct expert_sizes {
    int64_t count, top_k, columns;
};

static struct expert_sizes largest_experts(const struct plans *plans)
{
    struct expert_sizes sizes = {0};

    for (int kind = 0; kind < plans_kinds(plans); kind++) {
        const struct plan *plan = plans_kind(plans, kind);
        for (int s = 0; s < plan->step_count; s++) {
            const struct plan_experts *e = plan->steps[s].experts;
            int64_t columns = e != NULL ? e->plan->columns[REGION_KEPT] + e->plan->columns[REGION_WORK] : 0;
            sizes.count = e != NULL && e->count > sizes.count ? e->count : sizes.count;
            sizes.top_k = e != NULL && e->top_k > sizes.top_k ? e->top_k : sizes.top_k;
            sizes.columns = columns > sizes.columns ? columns : sizes.columns;
        }
    }
    return sizes;
}

static int allocate_experts(struct block_scratch *s)
{
    struct expert_scratch *e = &s->experts;
    const struct expert_sizes sizes = largest_experts(s->plans);
    const int64_t choices = s->tokens * sizes.top_k, elements = padded(s->tokens) * sizes.columns;

    TRY(gpu_tensor_uninitialized(s->gpu, DTYPE_I32, 1, &choices, &e->ids));
    TRY(gpu_tensor_uninitialized(s->gpu, DTYPE_I32, 1, &choices, &e->places));
    TRY(gpu_tensor_uninitialized(s->gpu, DTYPE_F32, 1, &choices, &e->weights));
    TRY(gpu_tensor_uninitialized(s->gpu, DTYPE_F32, 1, &elements, &e->memory));
    TRY(mem_array(&e->offsets, (size_t)sizes.count + 1));
    return mem_new(&s->rows);
}

static int make_experts(struct block_scratch *s)
{
    if (s->rows != NULL) {
        return 0;
    }
    int rc = allocate_experts(s);
    if (rc != 0) {
        free_experts(s);
        s->experts = (struct expert_scratch){0};
    }
    return rc;
}

int block_route(const struct block_values *values, int step)
{
    const struct plan_step *of = &values->plan->steps[step];
    const struct plan_experts *experts = of->experts;
    struct block_scratch *s = values->scratch;
    const struct gpu_ops *ops = s->gpu->ops;
    const struct gpu_route spec = {.top_k = experts->top_k,
                                   .all = experts->scores == SCORES_SOFTMAX_ALL,
                                   .normalize = experts->normalize,
                                   .factor = (float)experts->factor};
    TRY(make_experts(s));
    const struct expert_scratch *e = &s->experts;
    const struct tensor ids = tensor_2d(e->ids.data, DTYPE_I32, s->tokens, spec.top_k);
    const struct tensor places = tensor_2d(e->places.data, DTYPE_I32, s->tokens, spec.top_k);
    const struct tensor weights = tensor_2d(e->weights.data, DTYPE_F32, s->tokens, spec.top_k);
    const struct tensor logits = block_value(values, of->in[1]);
    TRY(ops->route(s->stream, &ids, &weights, &logits, &spec));
    return ops->group_places(s->stream, &places, e->offsets, &ids, experts->count);
}

/* The scratch of `count` rows of an expert: its values are in the memory for experts. */
static void place_rows(struct block_scratch *s, const struct plan_experts *experts, int64_t expert, int64_t count,
                       struct block_values *rows)
{
    const struct plan *plan = experts->plan;
    float *memory = s->experts.memory.data;

    *s->rows = (struct block_scratch){.owner = s,
                                      .plans = s->plans,
                                      .gpu = s->gpu,
                                      .stream = s->stream,
                                      .sequences = 1,
                                      .length = count,
                                      .tokens = count};
    *rows = (struct block_values){
        .plan = plan, .scratch = s->rows, .first_module = experts->first_module + (int)expert * plan->module_count};
    for (int i = 0; i < plan->storage_count; i++) {
        const struct plan_storage *storage = &plan->storages[i];
        int64_t first = storage->region == REGION_WORK ? plan->columns[REGION_KEPT] : 0;
        rows->at[i] = memory + padded(s->tokens) * (first + storage->offset);
    }
}

int block_expert(const struct block *block, const struct block_values *values, int step, int64_t expert, bool all,
                 plan_set steps, struct block_values *rows)
{
    const struct plan_experts *experts = values->plan->steps[step].experts;
    struct block_scratch *s = values->scratch;
    const struct tensor tokens = block_value(values, values->plan->steps[step].in[0]);
    TRY(make_experts(s));
    const int64_t *offsets = s->experts.offsets;
    int64_t count = all ? s->tokens : offsets[expert + 1] - offsets[expert];
    place_rows(s, experts, expert, count, rows);
    if (count == 0) {
        return 0;
    }
    const struct tensor in = block_value(rows, 0);
    const struct tensor places = tensor_1d((int32_t *)s->experts.places.data + offsets[expert], DTYPE_I32, count);
    TRY(all ? s->gpu->ops->convert(s->stream, &in, &tokens)
            : s->gpu->ops->gather_rows(s->stream, &in, &tokens, &places, experts->top_k));
    return block_run(block, rows, steps);
}

int block_experts_begin(const struct block_values *values, int step)
{
    const struct tensor out = block_value(values, values->plan->steps[step].out);

    return values->scratch->gpu->ops->fill_zero(values->scratch->stream, out.data, tensor_bytes(&out));
}

/* Each expert's weighted outputs are added in the order of the experts. */
int block_experts_add(const struct block *block, const struct block_values *values, int step, int64_t first,
                      int64_t count)
{
    const struct plan_experts *experts = values->plan->steps[step].experts;
    const struct tensor out = block_value(values, values->plan->steps[step].out);
    struct block_scratch *s = values->scratch;
    const struct expert_scratch *e = &s->experts;

    TRY(block_route(values, step));
    for (int64_t i = first; i < first + count; i++) {
        struct block_values rows;
        TRY(block_expert(block, values, step, i, false, ~(plan_set)0, &rows));
        if (block_values_rows(&rows) > 0) {
            const struct tensor places =
                tensor_1d((int32_t *)e->places.data + e->offsets[i], DTYPE_I32, block_values_rows(&rows));
            const struct tensor made = block_value(&rows, experts->plan->output);
            const struct tensor weights = tensor_2d(e->weights.data, DTYPE_F32, s->tokens, experts->top_k);
            TRY(s->gpu->ops->scatter_rows(s->stream, &out, &made, &places, &weights));
        }
    }
    return 0;
}

int64_t block_values_rows(const struct block_values *values)
{
    return values->scratch->tokens;
}

int block_group_input(const struct block *block, const struct block_values *values, const struct plan_group *group,
                      bool all, struct block_values *rows)
{
    plan_set steps, used;

    if (group->expert < 0) {
        *rows = *values;
        return 0;
    }
    const struct plan_experts *experts = values->plan->steps[group->step].experts;
    if (!plan_steps(experts->plan, PLAN_BIT(0), PLAN_BIT(group->input), &steps, &used)) {
        return err_raise(ERR_INTERNAL, "value %d of an expert does not follow from its rows", group->input);
    }
    if (!all) {
        TRY(block_route(values, group->step));
    }
    return block_expert(block, values, group->step, group->expert, all, steps, rows);
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
    const struct run run = {.block = block, .values = values, .s = values->scratch, .step = &plan->steps[s]};
    int rc = block_run(block, values, steps);
    if (rc == 0) {
        *out = (struct block_heads){.q = block_value(values, in[0]),
                                    .k = block_value(values, in[1]),
                                    .v = block_value(values, in[2]),
                                    .spec = attention_spec(&run)};
    }
    return rc;
}
