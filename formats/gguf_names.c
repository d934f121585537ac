/* The runtime's names for architectures and tensors, and what it wants turned: its llama rotates a head's neighbouring
 * elements where a checkpoint rotates its halves, so rows of q and k are laid out anew; its other architectures rotate
 * halves. */

#include "formats/gguf.h"

#include "base/err.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *source, *name;
    bool turned; /* q and k */
} architectures[] = {
    {"LlamaForCausalLM", "llama", true},
    {"MistralForCausalLM", "llama", true},
    {"Qwen2ForCausalLM", "qwen2", false},
    {"Qwen3ForCausalLM", "qwen3", false},
};
#define ARCHITECTURES (sizeof(architectures) / sizeof(architectures[0]))

static const char *const linear_names[LINEAR_COUNT] = {
    [LINEAR_Q] = "attn_q",      [LINEAR_K] = "attn_k",  [LINEAR_V] = "attn_v",      [LINEAR_O] = "attn_output",
    [LINEAR_GATE] = "ffn_gate", [LINEAR_UP] = "ffn_up", [LINEAR_DOWN] = "ffn_down",
};
static const char *const norm_names[NORM_COUNT] = {
    [NORM_ATTENTION] = "attn_norm",
    [NORM_MLP] = "ffn_norm",
    [NORM_Q] = "attn_q_norm",
    [NORM_K] = "attn_k_norm",
};
static const struct {
    const char *source, *name;
} outside[] = {{"model.embed_tokens.weight", "token_embd.weight"},
               {"model.norm.weight", "output_norm.weight"},
               {"lm_head.weight", "output.weight"}};

const char *gguf_architecture(const struct model_config *config)
{
    for (size_t i = 0; i < ARCHITECTURES; i++) {
        if (strcmp(config->arch->name, architectures[i].source) == 0) {
            return architectures[i].name;
        }
    }
    return NULL;
}

/* "weight" or "bias" behind module and a dot, or NULL. */
static const char *member_of(const char *path, const char *module)
{
    size_t length = module != NULL ? strlen(module) : 0;

    if (module == NULL || strncmp(path, module, length) != 0 || path[length] != '.') {
        return NULL;
    }
    const char *member = path + length + 1;
    return strcmp(member, "weight") == 0 || strcmp(member, "bias") == 0 ? member : NULL;
}

static int name_in_block(const struct arch *arch, long long layer, const char *path, char out[GGUF_NAME_MAX], int *role)
{
    for (int i = 0; i < LINEAR_COUNT; i++) {
        const char *member = member_of(path, arch->linears[i]);
        if (member != NULL) {
            *role = i;
            return snprintf(out, GGUF_NAME_MAX, "blk.%lld.%s.%s", layer, linear_names[i], member);
        }
    }
    for (int i = 0; i < NORM_COUNT; i++) {
        const char *member = member_of(path, arch->norms[i]);
        if (member != NULL) {
            return snprintf(out, GGUF_NAME_MAX, "blk.%lld.%s.%s", layer, norm_names[i], member);
        }
    }
    return 0;
}

int gguf_tensor_name(const struct model *model, const char *name, char out[GGUF_NAME_MAX], int *role)
{
    const struct arch *arch = model_config(model)->arch;
    long long layer;
    int at = 0;

    *role = -1;
    for (size_t i = 0; i < sizeof(outside) / sizeof(outside[0]); i++) {
        if (strcmp(name, outside[i].source) == 0) {
            snprintf(out, GGUF_NAME_MAX, "%s", outside[i].name);
            return 0;
        }
    }
    if (sscanf(name, "model.layers.%9lld.%n", &layer, &at) == 1 && at > 0 &&
        name_in_block(arch, layer, name + at, out, role) > 0) {
        return 0;
    }
    return err_raise(ERR_INCOMPATIBLE_OPTIONS, "gguf has no name for tensor %.160s", name);
}

int64_t gguf_row(const struct model_config *config, int role, int64_t row)
{
    int64_t size = config->head_dim, head = row / size, within = row % size, half = size / 2;
    bool turned = false;

    for (size_t i = 0; i < ARCHITECTURES; i++) {
        turned = turned || (architectures[i].turned && strcmp(config->arch->name, architectures[i].source) == 0);
    }
    if (!turned || (role != LINEAR_Q && role != LINEAR_K)) {
        return row;
    }
    return head * size + 2 * (within % half) + within / half;
}

/* As arch_rope_tables scales frequencies, in the runtime's terms: it divides by these. */
void gguf_rope_factors(const struct model_config *config, float *out)
{
    double original = config->rope_original_max, low = config->rope_low_freq, high = config->rope_high_freq;

    for (int64_t i = 0; i < config->head_dim / 2; i++) {
        double frequency = pow(config->rope_theta, -2.0 * (double)i / (double)config->head_dim);
        double length = 2 * M_PI / frequency;
        double blend = (original / length - low) / (high - low);
        double kept = length < original / high ? 1 : length > original / low ? 0 : blend;
        out[i] = (float)(1 / ((1 - kept) / config->rope_factor + kept));
    }
}
