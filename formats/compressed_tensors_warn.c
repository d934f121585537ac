/* Forms of compressed-tensors that a runtime of the format refuses, or takes for less than they are. */

#include "formats/compressed_tensors.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "formats/runtimes.h"

#define VLLM_BLOCK 128

static bool ct_warn_is_block(const struct format_module *m)
{
    return m != NULL && m->scheme.kind == QTENSOR_FLOAT8 && !m->scheme.per_channel;
}

static void warn_form(const struct format_config *config, json_t *warnings)
{
    bool weights_alone = false, other_side = false;

    for (int i = 0; i < config->count; i++) {
        if (ct_warn_is_block(&config->modules[i]) &&
            !runtime_loads_scheme("vllm", "compressed-tensors", &config->modules[i].scheme)) {
            weights_alone = weights_alone || config->modules[i].scheme.input.element == DTYPE_F32;
            other_side = other_side || config->modules[i].scheme.group_size != VLLM_BLOCK;
        }
    }
    if (weights_alone) {
        format_warn(warnings, "not_in_vllm",
                    "vLLM stops with an assertion on FP8 blocks whose inputs are not quantized; transformers loads "
                    "them. For vLLM: activation_scheme dynamic, or granularity per_channel");
    }
    if (other_side) {
        format_warn(warnings, "not_in_vllm",
                    "vLLM has kernels for FP8 blocks of %d x %d; of others it may stop with an assertion. "
                    "transformers loads them. For vLLM: weight_block_size %d",
                    VLLM_BLOCK, VLLM_BLOCK, VLLM_BLOCK);
    }
}

/* vLLM lays fused linears on top of each other: all but the last must end where a block ends. */
static int warn_edges(const struct format_config *config, json_t *warnings)
{
    const struct format_module *found;

    TRY(runtime_find_edge(config, &found));
    if (found != NULL) {
        format_warn(warnings, "not_in_vllm",
                    "vLLM joins q, k and v, and gate and up, and refuses FP8 blocks of %lld when the %lld outputs of "
                    "%.100s are not a multiple of it; transformers loads them. For vLLM: granularity per_channel",
                    (long long)found->scheme.group_rows, (long long)found->rows, found->name);
    }
    return 0;
}

/* transformers joins the weights of a model's experts in one tensor, and decompresses them by one scheme while it does.
 */
static int ct_warn_experts(const struct format_config *config, json_t *warnings)
{
    static const char hint[] = "format dense loads there";
    const struct qscheme *experts;
    bool all;
    int rc = format_experts_schemes(config, &experts, &all);

    if (rc != 0 || experts == NULL) {
        return rc;
    }
    bool integers = experts->kind == QTENSOR_INT;
    if (!all) {
        format_warn(warnings, "not_in_transformers",
                    "transformers 5.24 loads experts only if all of them are quantized, and alike; %s", hint);
    } else if (integers && experts->input.element != DTYPE_F32) {
        format_warn(warnings, "not_in_transformers",
                    "transformers 5.24 does not load experts of INT8 weights with INT8 inputs; %s", hint);
    } else if (integers && !experts->sym) {
        format_warn(warnings, "not_in_transformers",
                    "transformers 5.24 does not load experts with zero points; %s, and so does sym true", hint);
    } else if (experts->input.element != DTYPE_F32) {
        format_warn(warnings, "not_in_transformers",
                    "transformers 5.24 loads FP8 experts as float weights and does not quantize their inputs");
    }
    return 0;
}

int ct_warn(const struct format_config *config, json_t *warnings)
{
    warn_form(config, warnings);
    if (config->cache.element != DTYPE_F32) {
        format_warn(warnings, "cache_scales",
                    config->cache.element == DTYPE_I8
                        ? "vLLM refuses INT8 cache scales, and transformers 5.24 with compressed-tensors 0.20 drops "
                          "them and keeps a float cache; transformers 5.20 with 0.17 reads them"
                        : "transformers 5.24 with compressed-tensors 0.20 drops the cache scales and keeps a float "
                          "cache; vLLM, and transformers 5.20 with 0.17, read them");
    }
    int rc = warn_edges(config, warnings);
    return rc != 0 ? rc : ct_warn_experts(config, warnings);
}
