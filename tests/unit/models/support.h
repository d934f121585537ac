#pragma once
/* Checkpoints made on the spot: a configuration, tensors from a seed, one or many files, and ways to spoil them. */

#include "gpu/gpu.h"
#include "models/model.h"
#include "tests/unit/scratch.h"
#include "tests/unit/unit.h"

#include <fcntl.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

/* splitmix64, to a float in (-1, 1). */
static inline float support_unit(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (float)((double)(int64_t)(z ^ (z >> 31)) * 0x1p-63);
}

struct support_tensor {
    char name[128];
    int rank;
    int64_t shape[3];
    float value;    /* of element 1, when not 0 */
    const char *as; /* the tensor whose values it has; NULL: its own */
    bool widened;   /* stored as F32, with the values of the checkpoint's type */
};

#define SUPPORT_TENSORS 128

struct support {
    char folder[256];
    const char *config; /* the text of config.json */
    struct support_tensor tensors[SUPPORT_TENSORS];
    int count;
    enum dtype dtype;
};

static inline struct support_tensor *support_add(struct support *s, const char *name, int64_t rows, int64_t cols)
{
    struct support_tensor *t = &s->tensors[s->count++];
    *t = (struct support_tensor){.rank = cols > 0 ? 2 : 1, .shape = {rows, cols}};
    snprintf(t->name, sizeof(t->name), "%s", name);
    return t;
}

static inline void support_add_matrices(struct support *s, const char *name, int64_t count, int64_t rows, int64_t cols)
{
    struct support_tensor *t = support_add(s, name, count, rows);
    t->rank = 3;
    t->shape[2] = cols;
}

/* Without the tensors that have `word` in their names. */
static inline void support_drop(struct support *s, const char *word)
{
    int kept = 0;

    for (int i = 0; i < s->count; i++) {
        if (strstr(s->tensors[i].name, word) == NULL) {
            s->tensors[kept++] = s->tensors[i];
        }
    }
    s->count = kept;
}

static inline struct support_tensor *support_find(struct support *s, const char *name)
{
    for (int i = 0; i < s->count; i++) {
        if (strcmp(s->tensors[i].name, name) == 0) {
            return &s->tensors[i];
        }
    }
    ck_abort_msg("no tensor %s", name);
    return NULL;
}

static inline void support_add_layer(struct support *s, const struct plans *plans, int64_t layer)
{
    const struct plan *plan = plans_layer(plans, layer);
    char name[128];

    for (int i = 0; i < plan->module_count; i++) {
        const struct plan_module *m = &plan->modules[i];
        snprintf(name, sizeof(name), "model.layers.%lld.%s.weight", (long long)layer, m->path);
        support_add(s, name, m->rows, m->cols);
        if (m->bias) {
            snprintf(name, sizeof(name), "model.layers.%lld.%s.bias", (long long)layer, m->path);
            support_add(s, name, m->rows, 0);
        }
    }
    for (int i = 0; i < plan->norm_count; i++) {
        if (plan->norms[i].path != NULL) {
            snprintf(name, sizeof(name), "model.layers.%lld.%s.weight", (long long)layer, plan->norms[i].path);
            support_add(s, name, plan->norms[i].size, 0);
        }
    }
    for (int i = 0; i < plan->parameter_count; i++) {
        const struct plan_parameter *p = &plan->parameters[i];
        snprintf(name, sizeof(name), "model.layers.%lld.%s", (long long)layer, p->path);
        support_add(s, name, p->shape[0], p->rank == 2 ? p->shape[1] : 0);
    }
}

/* A folder and the list of tensors that `config` asks for. */
static inline void support_init(struct support *s, const char *config)
{
    struct model_config c;
    struct plans *plans;
    json_t *json = json_loads(config, 0, NULL);

    memset(s, 0, sizeof(*s));
    scratch_make(s->folder);
    s->config = config;
    ck_assert_rc_ok(arch_parse_config(json, &c));
    json_decref(json);
    support_add(s, "model.embed_tokens.weight", c.vocab_size, c.hidden_size);
    support_add(s, "model.norm.weight", c.hidden_size, 0);
    if (!c.tie_word_embeddings) {
        support_add(s, "lm_head.weight", c.vocab_size, c.hidden_size);
    }
    if (c.token_columns > 0) {
        support_add(s, "model.embed_tokens_per_layer.weight", c.token_rows, c.num_layers * c.token_columns);
        support_add(s, "model.per_layer_model_projection.weight", c.num_layers * c.token_columns, c.hidden_size);
        support_add(s, "model.per_layer_projection_norm.weight", c.token_columns, 0);
    }
    ck_assert_rc_ok(plans_new(&c, &plans));
    for (int64_t layer = 0; layer < c.num_layers; layer++) {
        support_add_layer(s, plans, layer);
    }
    plans_free(plans);
}

static inline void support_deinit(struct support *s)
{
    scratch_remove(s->folder);
}

static inline void support_write_text(const struct support *s, const char *name, const char *text)
{
    char path[512];

    snprintf(path, sizeof(path), "%s/%s", s->folder, name);
    ck_assert_rc_ok(fs_write_atomic(path, text, strlen(text)));
}

/* The element i of the tensor `name`: of its own seed, near 1 for norms. */
static inline void support_fill(const struct support_tensor *t, float *out, int64_t count)
{
    uint64_t seed = 5381;
    bool is_norm = strstr(t->name, "norm") != NULL;

    for (const char *at = t->as != NULL ? t->as : t->name; *at != '\0'; at++) {
        seed = seed * 33 + (unsigned char)*at;
    }
    for (int64_t i = 0; i < count; i++) {
        out[i] = 0.4f * support_unit(&seed) + (is_norm ? 1.0f : 0.0f);
    }
    if (t->value != 0) {
        out[1] = t->value;
    }
}

static inline void support_put(struct safetensors_writer *writer, const struct support_tensor *t, enum dtype dtype)
{
    int64_t count = t->shape[0] * (t->rank >= 2 ? t->shape[1] : 1) * (t->rank == 3 ? t->shape[2] : 1);
    float *values = calloc((size_t)count, sizeof(float));
    uint16_t *halves = calloc((size_t)count, sizeof(uint16_t));

    support_fill(t, values, count);
    for (int64_t i = 0; i < count && t->widened; i++) {
        values[i] = dtype_round(values[i], dtype);
    }
    dtype = t->widened ? DTYPE_F32 : dtype;
    for (int64_t i = 0; i < count; i++) {
        halves[i] = dtype == DTYPE_F16 ? dtype_f32_to_f16(values[i]) : dtype_f32_to_bf16(values[i]);
    }
    const void *data = dtype == DTYPE_F32 ? (const void *)values : (const void *)halves;
    ck_assert_rc_ok(safetensors_writer_put(writer, t->name, 0, data, (size_t)count * dtype_rows[dtype].bytes));
    free(values);
    free(halves);
}

/* Tensors [first, end) as one file. */
static inline void support_write_shard(const struct support *s, const char *name, int first, int end)
{
    struct safetensors_writer *writer;
    char path[512];

    snprintf(path, sizeof(path), "%s/%s", s->folder, name);
    ck_assert_rc_ok(safetensors_writer_new(path, &writer));
    for (int i = first; i < end; i++) {
        const struct support_tensor *t = &s->tensors[i];
        ck_assert_rc_ok(
            safetensors_writer_declare(writer, t->name, t->widened ? DTYPE_F32 : s->dtype, t->rank, t->shape));
    }
    ck_assert_rc_ok(safetensors_writer_begin(writer));
    for (int i = first; i < end; i++) {
        support_put(writer, &s->tensors[i], s->dtype);
    }
    ck_assert_rc_ok(safetensors_writer_finish(writer));
    safetensors_writer_free(writer);
}

/* config.json and model.safetensors. */
static inline void support_write(const struct support *s)
{
    support_write_text(s, "config.json", s->config);
    support_write_shard(s, "model.safetensors", 0, s->count);
}

static inline int support_open(const struct support *s, const char *relative, struct model **out)
{
    int root = open(s->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    ck_assert_int_ge(root, 0);
    int rc = model_open(root, relative, out);
    close(root);
    return rc;
}
