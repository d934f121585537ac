/* What a runtime must know of the model before it reads a weight. */

#include "formats/gguf.h"

#include "gpu/ggml_blocks.h"

#include <stdio.h>

/* How general.file_type names the type that the largest number of weights have; for display alone. */
static const struct {
    int type;
    uint32_t pure, mixed;
} file_types[] = {{GGML_TYPE_Q4_0, 2, 2},
                  {GGML_TYPE_Q8_0, 7, 7},
                  {GGML_TYPE_Q4_K, 14, 15},
                  {GGML_TYPE_Q6_K, 18, 18},
                  {GGML_TYPE_IQ4_NL, 25, 25}};
#define FILE_TYPES (sizeof(file_types) / sizeof(file_types[0]))

static uint32_t file_type(const struct format_config *config)
{
    int64_t weights[FILE_TYPES] = {0}, all = 0;
    size_t max = 0;

    for (int i = 0; i < config->count; i++) {
        const struct format_module *m = &config->modules[i];
        for (size_t k = 0; k < FILE_TYPES; k++) {
            weights[k] += gguf_block_type(&m->scheme) == file_types[k].type ? m->rows * m->cols : 0;
        }
        all += m->rows * m->cols;
    }
    for (size_t k = 1; k < FILE_TYPES; k++) {
        max = weights[k] > weights[max] ? k : max;
    }
    return weights[max] == all ? file_types[max].pure : file_types[max].mixed;
}

/* Positions over which the runtime computes what the model does: it attends without a window. */
static int64_t context_length(const struct model_config *config)
{
    bool windowed = false;

    for (int64_t layer = 0; layer < config->num_layers; layer++) {
        windowed = windowed || arch_window(config, layer) > 0;
    }
    return windowed && config->sliding_window < config->max_position ? config->sliding_window : config->max_position;
}

static void put_number(struct gguf_buffer *buffer, const char *architecture, const char *key, int64_t value)
{
    char name[96];

    snprintf(name, sizeof(name), "%s.%s", architecture, key);
    gguf_key_u32(buffer, name, (uint32_t)value);
}

static void put_real(struct gguf_buffer *buffer, const char *architecture, const char *key, double value)
{
    char name[96];

    snprintf(name, sizeof(name), "%s.%s", architecture, key);
    gguf_key_f32(buffer, name, value);
}

void gguf_put_model(struct gguf_buffer *buffer, const struct format_config *config)
{
    const struct model_config *c = model_config(config->model);
    const char *architecture = gguf_architecture(c);
    char name[96];

    gguf_key_string(buffer, "general.architecture", architecture);
    gguf_key_string(buffer, "general.type", "model");
    gguf_key_string(buffer, "general.quantized_by", "quantd " QUANTD_VERSION);
    gguf_key_u32(buffer, "general.quantization_version", 2);
    gguf_key_u32(buffer, "general.file_type", file_type(config));
    gguf_key_u32(buffer, "general.alignment", GGUF_ALIGNMENT);
    put_number(buffer, architecture, "vocab_size", c->vocab_size);
    put_number(buffer, architecture, "context_length", context_length(c));
    put_number(buffer, architecture, "embedding_length", c->hidden_size);
    put_number(buffer, architecture, "block_count", c->num_layers);
    put_number(buffer, architecture, "feed_forward_length", c->intermediate_size);
    put_number(buffer, architecture, "attention.head_count", c->num_heads);
    put_number(buffer, architecture, "attention.head_count_kv", c->num_kv_heads);
    put_number(buffer, architecture, "attention.key_length", c->head_dim);
    put_number(buffer, architecture, "attention.value_length", c->head_dim);
    put_real(buffer, architecture, "attention.layer_norm_rms_epsilon", c->rms_norm_eps);
    put_number(buffer, architecture, "rope.dimension_count", c->head_dim);
    put_real(buffer, architecture, "rope.freq_base", c->ropes[0].theta);
    if (c->ropes[0].type == ROPE_LINEAR) {
        snprintf(name, sizeof(name), "%s.rope.scaling.type", architecture);
        gguf_key_string(buffer, name, "linear");
        put_real(buffer, architecture, "rope.scaling.factor", c->ropes[0].factor);
    }
}
