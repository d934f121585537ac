/* One decoder block, stage by stage.
 *
 * T = sequences * length rows. Scratch is two regions: `work`, whose life ends with a stage (q|k|v in attention, up in
 * the MLP, the addend of a residual), and the two site inputs that block_forward needs when its caller brings none; the
 * latter are made on first use, since a pipeline brings its own. */

#include "models/block.h"

#include "base/err.h"
#include "models/block_reader.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct block_scratch {
    const struct model_config *config;
    const struct gpu *gpu;
    struct gpu_stream *stream;
    int64_t sequences, length, tokens;
    struct tensor work;         /* F32 [T * widest stage] */
    struct tensor cosine, sine; /* F32 [length, head_dim / 2] */
    struct tensor narrow, wide; /* F32 [T, hidden] and [T * widest site]; block_forward's */
    struct tensor rounded;      /* F32 [T * widest site]: an input as the runtime quantizes it */
};

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* What loads a tensor: where from, where to. */
struct source {
    const struct model *model;
    const struct gpu *gpu;
    struct gpu_stream *stream;
    struct block_reader *reader;
};

static int load_tensor(const struct source *source, const char *name, struct tensor *out)
{
    const void *bytes = source->reader != NULL ? block_reader_find(source->reader, name) : NULL;
    return model_load_bytes(source->model, name, bytes, DTYPE_F32, source->gpu, source->stream, out);
}

static void norm_name(const struct model *model, int64_t index, int role, char name[160])
{
    snprintf(name, 160, "model.layers.%lld.%s.weight", (long long)index, model_config(model)->arch->norms[role]);
}

static int load_linears(const struct source *source, struct block *block)
{
    char module[128], name[160];
    int rc = 0;

    for (int role = 0; rc == 0 && role < LINEAR_COUNT; role++) {
        model_linear_name(source->model, block->index, (enum linear_role)role, module);
        snprintf(name, sizeof(name), "%s.weight", module);
        rc = load_tensor(source, name, &block->linears[role]);
        if (rc == 0 && arch_linear_bias(block->config, (enum linear_role)role)) {
            snprintf(name, sizeof(name), "%s.bias", module);
            rc = load_tensor(source, name, &block->biases[role]);
        }
    }
    return rc;
}

static int load_norms(const struct source *source, struct block *block)
{
    char name[160];
    int rc = 0;

    for (int role = 0; rc == 0 && role < NORM_COUNT; role++) {
        if (block->config->arch->norms[role] != NULL) {
            norm_name(source->model, block->index, role, name);
            rc = load_tensor(source, name, &block->norms[role]);
        }
    }
    return rc;
}

int block_load_read(const struct model *model, int64_t index, const struct gpu *gpu, struct gpu_stream *stream,
                    struct block_reader *reader, struct block *out)
{
    const struct source source = {.model = model, .gpu = gpu, .stream = stream, .reader = reader};
    struct block block = {.index = index, .config = model_config(model)};
    int rc = load_linears(&source, &block);

    rc = rc != 0 ? rc : load_norms(&source, &block);
    if (rc != 0) {
        block_deinit(&block, gpu);
        return err_pass(rc, "load block %lld", (long long)index);
    }
    *out = block;
    return 0;
}

int block_load(const struct model *model, int64_t index, const struct gpu *gpu, struct gpu_stream *stream,
               struct block *out)
{
    return block_load_read(model, index, gpu, stream, NULL, out);
}

static int add_tensor(const struct model *model, const char *name, struct model_tensor *list, int count)
{
    list[count] = model_find(model, name);
    if (list[count].file == NULL) { /* loading it says so */
        return count;
    }
    list[count].name = list[count].entry->name;
    return count + 1;
}

int block_tensors(const struct model *model, int64_t index, struct model_tensor list[BLOCK_TENSORS_MAX])
{
    const struct model_config *config = model_config(model);
    char module[128], name[160];
    int count = 0;

    for (int role = 0; role < LINEAR_COUNT; role++) {
        model_linear_name(model, index, (enum linear_role)role, module);
        snprintf(name, sizeof(name), "%s.weight", module);
        count = add_tensor(model, name, list, count);
        if (arch_linear_bias(config, (enum linear_role)role)) {
            snprintf(name, sizeof(name), "%s.bias", module);
            count = add_tensor(model, name, list, count);
        }
    }
    for (int role = 0; role < NORM_COUNT; role++) {
        if (config->arch->norms[role] != NULL) {
            norm_name(model, index, role, name);
            count = add_tensor(model, name, list, count);
        }
    }
    return count;
}

void block_prefetch(const struct model *model, int64_t index)
{
    struct model_tensor list[BLOCK_TENSORS_MAX];

    if (index < model_config(model)->num_layers) {
        int count = block_tensors(model, index, list);
        for (int i = 0; i < count; i++) {
            model_prefetch_tensor(model, list[i].name);
        }
    }
}

void block_deinit(struct block *block, const struct gpu *gpu)
{
    for (int role = 0; role < LINEAR_COUNT; role++) {
        gpu_tensor_free(gpu, &block->linears[role]);
        gpu_tensor_free(gpu, &block->biases[role]);
        gpu_tensor_free(gpu, &block->kept[role]);
    }
    for (int role = 0; role < NORM_COUNT; role++) {
        gpu_tensor_free(gpu, &block->norms[role]);
    }
    gpu_tensor_free(gpu, &block->key_scale);
    gpu_tensor_free(gpu, &block->value_scale);
}

static int upload_tables(struct block_scratch *s)
{
    int64_t half = s->config->head_dim / 2;
    const int64_t shape[2] = {s->length, half};
    size_t count = (size_t)s->length * (size_t)half;
    float *host = calloc(count, 2 * sizeof(float));

    if (host == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for rotary tables");
    }
    arch_rope_tables(s->config, s->length, host, host + count);
    int rc = gpu_tensor_from_host(s->gpu, s->stream, DTYPE_F32, 2, shape, host, &s->cosine);
    rc = rc != 0 ? rc : gpu_tensor_from_host(s->gpu, s->stream, DTYPE_F32, 2, shape, host + count, &s->sine);
    free(host);
    return rc;
}

int block_scratch_new(const struct model_config *config, int64_t sequences, int64_t length, const struct gpu *gpu,
                      struct gpu_stream *stream, struct block_scratch **out)
{
    int64_t heads = config->num_heads * config->head_dim, kv = config->num_kv_heads * config->head_dim;
    int64_t widest = larger(heads + 2 * kv, larger(config->intermediate_size, config->hidden_size));
    int64_t tokens;

    if (sequences < 1 || length < 1 || __builtin_mul_overflow(sequences, length, &tokens) || tokens > INT32_MAX) {
        return err_raise(ERR_INTERNAL, "scratch for %lld sequences of %lld", (long long)sequences, (long long)length);
    }
    struct block_scratch *s = calloc(1, sizeof(*s));
    if (s == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for block scratch");
    }
    *s = (struct block_scratch){
        .config = config, .gpu = gpu, .stream = stream, .sequences = sequences, .length = length, .tokens = tokens};
    int rc = gpu_tensor_new(gpu, DTYPE_F32, 2, (const int64_t[]){tokens, widest}, &s->work);
    rc = rc != 0 ? rc : upload_tables(s);
    if (rc != 0) {
        block_scratch_free(s);
        return err_pass(rc, "block scratch for %lld tokens", (long long)tokens);
    }
    *out = s;
    return 0;
}

void block_scratch_free(struct block_scratch *s)
{
    if (s == NULL) {
        return;
    }
    gpu_tensor_free(s->gpu, &s->work);
    gpu_tensor_free(s->gpu, &s->cosine);
    gpu_tensor_free(s->gpu, &s->sine);
    gpu_tensor_free(s->gpu, &s->narrow);
    gpu_tensor_free(s->gpu, &s->wide);
    gpu_tensor_free(s->gpu, &s->rounded);
    free(s);
}

/* [T, cols] inside a region, `skip` columns' worth of rows in. */
static struct tensor view(const struct block_scratch *s, const struct tensor *region, int64_t skip, int64_t cols)
{
    return tensor_2d((float *)region->data + s->tokens * skip, DTYPE_F32, s->tokens, cols);
}

/* x as the linear's runtime would quantize it, in s->rounded. */
static int round_input(const struct block *block, struct block_scratch *s, enum linear_role role,
                       const struct tensor *x, struct tensor *rounded)
{
    const struct model_config *c = block->config;
    int64_t widest = larger(larger(c->num_heads * c->head_dim, c->intermediate_size), c->hidden_size);
    const struct tensor *kept = block->kept[role].data != NULL ? &block->kept[role] : NULL;
    int rc = 0;

    if (s->rounded.data == NULL) {
        rc = gpu_tensor_new(s->gpu, DTYPE_F32, 2, (const int64_t[]){s->tokens, widest}, &s->rounded);
    }
    *rounded = view(s, &s->rounded, 0, x->shape[1]);
    return rc != 0 ? rc : s->gpu->ops->quantize_input(s->stream, rounded, x, kept, &block->inputs[role]);
}

static int apply(const struct block *block, struct block_scratch *s, enum linear_role role, const struct tensor *y,
                 const struct tensor *x)
{
    const struct tensor *bias = block->biases[role].data != NULL ? &block->biases[role] : NULL;
    struct tensor input = *x;
    int rc = 0;

    if (block->inputs[role].element != DTYPE_F32) {
        rc = round_input(block, s, role, x, &input);
    }
    return rc != 0 ? rc : s->gpu->ops->linear(s->stream, y, &input, &block->linears[role], bias);
}

static int norm(const struct block *block, struct block_scratch *s, enum norm_role role, const struct tensor *y,
                const struct tensor *x)
{
    return s->gpu->ops->rmsnorm(s->stream, y, x, &block->norms[role], (float)block->config->rms_norm_eps);
}

int block_attention_input(const struct block *block, struct block_scratch *s, const struct tensor *x,
                          const struct tensor *in)
{
    return norm(block, s, NORM_ATTENTION, in, x);
}

int block_attention_heads(const struct block *block, struct block_scratch *s, const struct tensor *in,
                          struct block_heads *out)
{
    const struct model_config *c = block->config;
    const struct gpu_ops *ops = s->gpu->ops;
    int64_t heads = c->num_heads * c->head_dim, kv = c->num_kv_heads * c->head_dim;
    struct tensor q = view(s, &s->work, 0, heads), k = view(s, &s->work, heads, kv);
    struct tensor v = view(s, &s->work, heads + kv, kv);

    int rc = apply(block, s, LINEAR_Q, &q, in);
    rc = rc != 0 ? rc : apply(block, s, LINEAR_K, &k, in);
    rc = rc != 0 ? rc : apply(block, s, LINEAR_V, &v, in);
    rc = rc != 0 || block->norms[NORM_Q].data == NULL ? rc : norm(block, s, NORM_Q, &q, &q);
    rc = rc != 0 || block->norms[NORM_K].data == NULL ? rc : norm(block, s, NORM_K, &k, &k);
    rc = rc != 0 ? rc : ops->rope(s->stream, &q, &s->cosine, &s->sine, s->length, c->head_dim);
    rc = rc != 0 ? rc : ops->rope(s->stream, &k, &s->cosine, &s->sine, s->length, c->head_dim);
    if (rc == 0) {
        *out = (struct block_heads){.q = q,
                                    .k = k,
                                    .v = v,
                                    .spec = {.sequences = s->sequences,
                                             .length = s->length,
                                             .heads = c->num_heads,
                                             .kv_heads = c->num_kv_heads,
                                             .head_dim = c->head_dim,
                                             .window = arch_window(c, block->index),
                                             .scale = (float)(1.0 / sqrt((double)c->head_dim))}};
    }
    return rc;
}

int block_attention(const struct block *block, struct block_scratch *s, const struct tensor *in,
                    const struct tensor *out)
{
    const struct gpu_ops *ops = s->gpu->ops;
    struct block_heads h;

    int rc = block_attention_heads(block, s, in, &h);
    rc = rc != 0 || block->key_cache.group_size == 0 ? rc
                                                     : ops->quantize_cache(s->stream, &h.k, &h.k, &block->key_cache);
    rc = rc != 0 || block->value_cache.group_size == 0
             ? rc
             : ops->quantize_cache(s->stream, &h.v, &h.v, &block->value_cache);
    rc = rc != 0 ? rc : ops->attention(s->stream, out, &h.q, &h.k, &h.v, &h.spec);
    return rc != 0 ? err_pass(rc, "attention of block %lld", (long long)block->index) : 0;
}

/* x += linear(in). */
static int residual(const struct block *block, struct block_scratch *s, enum linear_role role, const struct tensor *in,
                    const struct tensor *x)
{
    struct tensor addend = view(s, &s->work, 0, block->config->hidden_size);
    int rc = apply(block, s, role, &addend, in);

    return rc != 0 ? rc : s->gpu->ops->add(s->stream, x, &addend);
}

int block_attention_output(const struct block *block, struct block_scratch *s, const struct tensor *out,
                           const struct tensor *x)
{
    return residual(block, s, LINEAR_O, out, x);
}

int block_mlp_input(const struct block *block, struct block_scratch *s, const struct tensor *x, const struct tensor *in)
{
    return norm(block, s, NORM_MLP, in, x);
}

int block_mlp(const struct block *block, struct block_scratch *s, const struct tensor *in, const struct tensor *act)
{
    struct tensor up = view(s, &s->work, 0, block->config->intermediate_size);
    int rc = apply(block, s, LINEAR_GATE, act, in);

    rc = rc != 0 ? rc : apply(block, s, LINEAR_UP, &up, in);
    return rc != 0 ? rc : s->gpu->ops->swiglu(s->stream, act, act, &up);
}

int block_mlp_output(const struct block *block, struct block_scratch *s, const struct tensor *act,
                     const struct tensor *x)
{
    return residual(block, s, LINEAR_DOWN, act, x);
}

static int reserve_sites(struct block_scratch *s)
{
    const struct model_config *c = s->config;
    int64_t widest = larger(c->num_heads * c->head_dim, c->intermediate_size);
    int rc = 0;

    if (s->narrow.data == NULL) {
        rc = gpu_tensor_new(s->gpu, DTYPE_F32, 2, (const int64_t[]){s->tokens, c->hidden_size}, &s->narrow);
    }
    if (rc == 0 && s->wide.data == NULL) {
        rc = gpu_tensor_new(s->gpu, DTYPE_F32, 2, (const int64_t[]){s->tokens, widest}, &s->wide);
    }
    return rc;
}

int block_forward(const struct block *block, struct block_scratch *s, const struct tensor *x)
{
    const struct model_config *c = block->config;
    int rc = reserve_sites(s);

    if (rc != 0) {
        return err_pass(rc, "forward of block %lld", (long long)block->index);
    }
    struct tensor out = view(s, &s->wide, 0, c->num_heads * c->head_dim);
    struct tensor act = view(s, &s->wide, 0, c->intermediate_size);
    rc = block_attention_input(block, s, x, &s->narrow);
    rc = rc != 0 ? rc : block_attention(block, s, &s->narrow, &out);
    rc = rc != 0 ? rc : block_attention_output(block, s, &out, x);
    rc = rc != 0 ? rc : block_mlp_input(block, s, x, &s->narrow);
    rc = rc != 0 ? rc : block_mlp(block, s, &s->narrow, &act);
    rc = rc != 0 ? rc : block_mlp_output(block, s, &act, x);
    return rc != 0 ? err_pass(rc, "forward of block %lld", (long long)block->index) : 0;
}
