/* The runtime's names for tensors, by the families' words, and what it wants turned: its llama rotates a head's
 * neighbouring elements where a checkpoint rotates its halves, so rows of what is rotated are laid out again; its other
 * architectures rotate halves. */

#include "formats/gguf.h"

#include "base/err.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

const char *gguf_architecture(const struct model_config *config)
{
    return config->arch->gguf;
}

/* "weight" or "bias" after module and a dot, or NULL. */
static const char *member_of(const char *path, const char *module)
{
    size_t length = strlen(module);

    if (strncmp(path, module, length) != 0 || path[length] != '.') {
        return NULL;
    }
    const char *member = path + length + 1;
    return strcmp(member, "weight") == 0 || strcmp(member, "bias") == 0 ? member : NULL;
}

/* 0 when the runtime has no name for it. */
static int name_in_layer(const struct plan *plan, int64_t layer, const char *path, char out[GGUF_NAME_MAX],
                         const struct plan_module **module)
{
    for (int i = 0; i < plan->module_count; i++) {
        const char *member = member_of(path, plan->modules[i].path);
        if (member != NULL && plan->modules[i].gguf != NULL) {
            *module = &plan->modules[i];
            return snprintf(out, GGUF_NAME_MAX, "blk.%lld.%s.%s", (long long)layer, plan->modules[i].gguf, member);
        }
    }
    for (int i = 0; i < plan->norm_count; i++) {
        const char *member = plan->norms[i].path != NULL ? member_of(path, plan->norms[i].path) : NULL;
        if (member != NULL && plan->norms[i].gguf != NULL) {
            return snprintf(out, GGUF_NAME_MAX, "blk.%lld.%s.%s", (long long)layer, plan->norms[i].gguf, member);
        }
    }
    for (int i = 0; i < plan->parameter_count; i++) {
        if (strcmp(path, plan->parameters[i].path) == 0 && plan->parameters[i].gguf != NULL) {
            return snprintf(out, GGUF_NAME_MAX, "blk.%lld.%s", (long long)layer, plan->parameters[i].gguf);
        }
    }
    return 0;
}

int gguf_tensor_name(const struct model *model, const char *name, char out[GGUF_NAME_MAX],
                     const struct plan_module **module)
{
    const struct {
        const char *source, *name;
    } outside[] = {{model_embedding_name(model), "token_embd.weight"},
                   {model_norm_name(model), "output_norm.weight"},
                   {model_head_name(model), "output.weight"}};
    const char *path;
    int64_t layer = model_find_layer(model, name, &path);

    *module = NULL;
    for (size_t i = 0; i < sizeof(outside) / sizeof(outside[0]); i++) {
        if (strcmp(name, outside[i].source) == 0) {
            snprintf(out, GGUF_NAME_MAX, "%s", outside[i].name);
            return 0;
        }
    }
    if (layer >= 0 && name_in_layer(plans_layer(model_plans(model), layer), layer, path, out, module) > 0) {
        return 0;
    }
    return err_raise(ERR_INCOMPATIBLE_OPTIONS, "gguf has no name for tensor %.160s", name);
}

bool gguf_turns(const struct model_config *config, const struct plan_module *module)
{
    return config->arch->gguf_neighbours && module != NULL && module->rotated;
}

int64_t gguf_row(const struct model_config *config, const struct plan_module *module, int64_t row)
{
    int64_t size = config->head_dim, head = row / size, within = row % size, half = size / 2;

    return gguf_turns(config, module) ? head * size + 2 * (within % half) + within / half : row;
}

/* As rope_tables scales frequencies, in the runtime's terms: it divides by these. */
void gguf_rope_factors(const struct model_config *config, float *out)
{
    const struct rope_spec *rope = &config->ropes[0];
    double original = rope->original_max, low = rope->low_freq, high = rope->high_freq;

    for (int64_t i = 0; i < config->head_dim / 2; i++) {
        double frequency = pow(rope->theta, -2.0 * (double)i / (double)config->head_dim);
        double length = 2 * M_PI / frequency;
        double blend = (original / length - low) / (high - low);
        double unscaled = length < original / high ? 1 : length > original / low ? 0 : blend;
        out[i] = (float)(1 / ((1 - unscaled) / rope->factor + unscaled));
    }
}
