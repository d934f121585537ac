/* Parts of an architecture. A part is a predicate over steps, norms and modules of the plans of one configuration,
 * `sample` with the row's own members: one that asks for everything that is optional, so that "biases" means that there
 * may be some. */

#include "models/parts.h"

#include "base/cleanup.h"
#include "models/block_grad.h"
#include "models/plan.h"

/* Members that some row reads; the others ignore them. A row that needs another adds it here. */
static const char sample[] =
    "{\"hidden_size\": 64, \"intermediate_size\": 96, \"num_hidden_layers\": 4, \"num_attention_heads\": 4, "
    "\"num_key_value_heads\": 2, \"head_dim\": 16, \"vocab_size\": 64, \"max_position_embeddings\": 64, "
    "\"sliding_window\": 8, \"use_sliding_window\": true, \"max_window_layers\": 2, \"attention_bias\": true, "
    "\"mlp_bias\": true, \"num_experts\": 4, \"num_experts_per_tok\": 2, \"moe_intermediate_size\": 32}";

static bool has_kind(const struct plan *plan, enum plan_step_kind kind)
{
    return plan_find_step(plan, kind) >= 0;
}

static bool has_biases(const struct plan *plan)
{
    for (int i = 0; i < plan->module_count; i++) {
        if (plan->modules[i].bias) {
            return true;
        }
    }
    return false;
}

static bool has_norm(const struct plan *plan, enum plan_norm_kind kind, bool unit_offset)
{
    for (int i = 0; i < plan->norm_count; i++) {
        if (plan->norms[i].kind == kind && plan->norms[i].unit_offset == unit_offset) {
            return true;
        }
    }
    return false;
}

static bool has_rms_norm(const struct plan *plan)
{
    return has_norm(plan, NORM_RMS, false);
}

static bool has_offset_norm(const struct plan *plan)
{
    return has_norm(plan, NORM_RMS, true);
}

static bool has_layer_norm(const struct plan *plan)
{
    return has_norm(plan, NORM_LAYER, false) || has_norm(plan, NORM_LAYER, true);
}

static bool has_rope(const struct plan *plan)
{
    return has_kind(plan, STEP_ROPE);
}

static bool has_partial_rope(const struct plan *plan)
{
    int step = plan_find_step(plan, STEP_ROPE);

    return step >= 0 && plan->steps[step].rope.rotated < plan->steps[step].rope.head_dim;
}

static bool has_interleaved_rope(const struct plan *plan)
{
    int step = plan_find_step(plan, STEP_ROPE);

    return step >= 0 && plan->steps[step].rope.interleaved;
}

static const struct plan_attention *attention_of(const struct plan *plan)
{
    static const struct plan_attention none = {.heads = 0};
    int step = plan_find_step(plan, STEP_ATTENTION);

    return step >= 0 ? &plan->steps[step].attention : &none;
}

static bool has_attention(const struct plan *plan)
{
    return has_kind(plan, STEP_ATTENTION);
}

static bool has_window(const struct plan *plan)
{
    return attention_of(plan)->window > 0;
}

static bool has_chunks(const struct plan *plan)
{
    return attention_of(plan)->chunk > 0;
}

static bool has_cap(const struct plan *plan)
{
    return attention_of(plan)->cap > 0;
}

static bool has_sinks(const struct plan *plan)
{
    return attention_of(plan)->has_sinks;
}

static bool has_experts(const struct plan *plan)
{
    return has_kind(plan, STEP_EXPERTS);
}

static bool has_delta_rule(const struct plan *plan)
{
    return has_kind(plan, STEP_DELTA);
}

static bool has_state_space(const struct plan *plan)
{
    return has_kind(plan, STEP_SCAN);
}

static bool has_tokens(const struct plan *plan)
{
    return has_kind(plan, STEP_TOKENS);
}

static bool has_taken(const struct plan *plan)
{
    return plan_taken(plan) != 0;
}

static bool has_fused(const struct plan *plan)
{
    return has_kind(plan, STEP_SELECT);
}

static const struct {
    const char *name;
    bool (*has)(const struct plan *plan);
} parts[] = {
    {"attention", has_attention},
    {"sliding_window", has_window},
    {"chunked_attention", has_chunks},
    {"soft_caps", has_cap},
    {"sinks", has_sinks},
    {"rope", has_rope},
    {"partial_rope", has_partial_rope},
    {"interleaved_rope", has_interleaved_rope},
    {"rms_norm", has_rms_norm},
    {"offset_norm", has_offset_norm},
    {"layer_norm", has_layer_norm},
    {"biases", has_biases},
    {"fused_linears", has_fused},
    {"experts", has_experts},
    {"delta_rule", has_delta_rule},
    {"state_space", has_state_space},
    {"token_inputs", has_tokens},
    {"shared_keys", has_taken},
};
#define PARTS (sizeof(parts) / sizeof(parts[0]))
_Static_assert(PARTS <= ARCH_PARTS_MAX, "ARCH_PARTS_MAX");

static bool any_layer(const struct plans *plans, bool (*has)(const struct plan *plan))
{
    for (int kind = 0; kind < plans_kinds(plans); kind++) {
        if (has(plans_kind(plans, kind))) {
            return true;
        }
    }
    return false;
}

static bool has_folds(const struct plan *plan)
{
    for (int g = 0; g < plan->group_count; g++) {
        if (plan->groups[g].fold.kind != FOLD_NONE) {
            return true;
        }
    }
    return false;
}

json_t *arch_sample(const struct arch *row)
{
    AUTO_JSON json_t *config = json_loads(sample, 0, NULL);
    AUTO_JSON json_t *own = row->sample != NULL ? json_loads(row->sample, 0, NULL) : json_object();

    return json_object_set_new(config, "architectures", json_pack("[s]", row->name)) == 0 &&
                   json_object_update(config, own) == 0
               ? MOVE(config)
               : NULL;
}

bool arch_parts(const struct arch *row, struct arch_parts *out)
{
    AUTO_JSON json_t *config = arch_sample(row);
    AUTO(plans) struct plans *plans = NULL;
    struct model_config parsed;

    if (config == NULL || arch_parse_config(config, &parsed) != 0 || plans_new(&parsed, &plans) != 0) {
        return false;
    }
    *out = (struct arch_parts){.attention = any_layer(plans, has_attention),
                               .latent = parsed.latent.rank > 0,
                               .folds = any_layer(plans, has_folds),
                               .differentiable = plans_differentiable(plans, NULL),
                               .experts = any_layer(plans, has_experts)};
    for (size_t i = 0; i < PARTS; i++) {
        if (any_layer(plans, parts[i].has)) {
            out->names[out->count++] = parts[i].name;
        }
    }
    return true;
}
