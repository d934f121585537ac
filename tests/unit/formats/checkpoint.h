#pragma once
/* A small checkpoint made on the spot: two blocks, a config that says tied and a head all the same, every kind of side
 * file. */

#include "formats/format.h"
#include "models/model.h"
#include "tests/unit/formats/decode.h"
#include "tests/unit/llama_layer.h"
#include "tests/unit/scratch.h"

#include <fcntl.h>
#include <unistd.h>

#define CHECKPOINT_LAYERS 2

static inline void checkpoint_file(const char *dir, const char *name, const char *text)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    ck_assert_rc_ok(fs_write_atomic(path, text, strlen(text)));
}

static const struct {
    const char *name;
    int64_t shape[2]; /* second 0: a vector */
} checkpoint_block[] = {
    {"input_layernorm.weight", {64, 0}},   {"self_attn.q_proj.weight", {64, 64}},
    {"self_attn.k_proj.weight", {32, 64}}, {"self_attn.v_proj.weight", {32, 64}},
    {"self_attn.o_proj.weight", {64, 64}}, {"post_attention_layernorm.weight", {64, 0}},
    {"mlp.gate_proj.weight", {96, 64}},    {"mlp.up_proj.weight", {96, 64}},
    {"mlp.down_proj.weight", {64, 96}},
};
#define CHECKPOINT_BLOCK_TENSORS (sizeof(checkpoint_block) / sizeof(checkpoint_block[0]))

/* What is out of the ordinary in it. */
struct checkpoint_fault {
    bool own_head;   /* the head has other values than the embedding */
    const char *nan; /* a tensor whose last element is NaN */
};

static inline void checkpoint_put(struct safetensors_writer *writer, const char *name, const int64_t shape[2],
                                  const struct checkpoint_fault *fault)
{
    size_t count = (size_t)(shape[0] * (shape[1] > 0 ? shape[1] : 1));
    uint16_t *data = malloc(count * sizeof(*data));
    const char *as = strcmp(name, "lm_head.weight") == 0 && !fault->own_head ? "model.embed_tokens.weight" : name;
    uint32_t seed = (uint32_t)strlen(as) * 31u + (unsigned char)as[0];

    for (size_t i = 0; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        data[i] = dtype_f32_to_bf16((float)(seed >> 16) / 65536.0f - 0.5f);
    }
    if (fault->nan != NULL && strcmp(name, fault->nan) == 0) {
        data[count - 1] = 0x7fc0;
    }
    ck_assert_rc_ok(safetensors_writer_put(writer, name, 0, data, count * sizeof(*data)));
    free(data);
}

static inline void checkpoint_tensors(bool put, struct safetensors_writer *writer, const struct checkpoint_fault *fault)
{
    static const int64_t embedding[2] = {40, 64}, norm[2] = {64, 0};
    char name[128];

    for (int layer = -1; layer < CHECKPOINT_LAYERS; layer++) {
        for (size_t i = 0; i < (layer < 0 ? 3 : CHECKPOINT_BLOCK_TENSORS); i++) {
            const int64_t *shape = layer >= 0 ? checkpoint_block[i].shape : i == 2 ? norm : embedding;
            if (layer < 0) {
                static const char *const outside[] = {"model.embed_tokens.weight", "lm_head.weight",
                                                      "model.norm.weight"};
                snprintf(name, sizeof(name), "%s", outside[i]);
            } else {
                snprintf(name, sizeof(name), "model.layers.%d.%s", layer, checkpoint_block[i].name);
            }
            if (put) {
                checkpoint_put(writer, name, shape, fault);
            } else {
                ck_assert_rc_ok(safetensors_writer_declare(writer, name, DTYPE_BF16, shape[1] > 0 ? 2 : 1, shape));
            }
        }
    }
}

static inline void checkpoint_make_faulty(const char *dir, const struct checkpoint_fault *fault)
{
    struct safetensors_writer *writer;
    char path[512];

    ck_assert_rc_ok(fs_make_dirs(dir));
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    ck_assert_rc_ok(safetensors_writer_new(path, &writer));
    checkpoint_tensors(false, writer, fault);
    ck_assert_rc_ok(safetensors_writer_begin(writer));
    checkpoint_tensors(true, writer, fault);
    ck_assert_rc_ok(safetensors_writer_finish(writer));
    safetensors_writer_free(writer);
    checkpoint_file(dir, "config.json",
                    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": 64,"
                    " \"intermediate_size\": 96, \"num_hidden_layers\": 2, \"num_attention_heads\": 2,"
                    " \"num_key_value_heads\": 1, \"vocab_size\": 40, \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0,"
                    " \"hidden_act\": \"silu\", \"tie_word_embeddings\": true, \"max_position_embeddings\": 128,"
                    " \"torch_dtype\": \"bfloat16\"}");
    checkpoint_file(dir, "generation_config.json", "{\"do_sample\": false}\n");
    checkpoint_file(dir, "tokenizer_config.json", "{\"x\": 1}\n");
    checkpoint_file(dir, "LICENSE", "yours\n");
    checkpoint_file(dir, ".gitattributes", "hidden\n");
    snprintf(path, sizeof(path), "%s/" MODEL_TEMPLATES_FOLDER, dir);
    ck_assert_rc_ok(fs_make_dirs(path));
    checkpoint_file(path, "rag.jinja", "{{ documents }}");
    checkpoint_file(path, ".hidden", "hidden\n");
    checkpoint_file(dir, "quantize_config.json", "{\"bits\": 2}\n"); /* of some other export */
}

static inline void checkpoint_make(const char *dir)
{
    checkpoint_make_faulty(dir, &(struct checkpoint_fault){0});
}

static inline struct model *checkpoint_open(const char *parent, const char *relative)
{
    struct model *model;
    int root = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    ck_assert_int_ge(root, 0);
    ck_assert_rc_ok(model_open(root, relative, &model));
    close(root);
    return model;
}

/* Every linear of the model with this scheme; group_size -1 = per channel. Returns their number; caller frees. */
static inline int checkpoint_modules(const struct model *model, int bits, int64_t group_size, bool sym,
                                     enum dtype scale_dtype, struct format_module **out)
{
    const struct plans *plans = model_plans(model);
    int count = (int)plans_modules(plans);
    struct format_module *modules = calloc((size_t)count, sizeof(*modules));

    for (int i = 0; i < count; i++) {
        struct format_module *m = &modules[i];
        const struct plan_module *module = &plans_layer(plans, i / LLAMA_MODULES)->modules[i % LLAMA_MODULES];
        model_module_name(model, i / LLAMA_MODULES, i % LLAMA_MODULES, m->name);
        m->rows = module->rows;
        m->cols = module->cols;
        m->scheme = (struct qscheme){.bits = bits,
                                     .group_size = group_size < 0 ? m->cols : group_size,
                                     .per_channel = group_size < 0,
                                     .sym = sym,
                                     .scale_dtype = scale_dtype};
    }
    *out = modules;
    return count;
}
