/* A layer's choice of experts, as families share it: router, experts, and a shared expert that every token goes to. */

#include "models/families/families.h"

static struct plan_experts experts_spec(struct plan_builder *b, const struct model_config *c,
                                        const struct family_experts *names)
{
    struct plan_experts experts = {.path = names->path,
                                   .count = c->num_experts,
                                   .top_k = c->experts_per_token,
                                   .scores = names->scores,
                                   .normalize = c->normalize_experts,
                                   .factor = c->experts_factor,
                                   .epsilon = names->epsilon,
                                   .groups = c->expert_groups,
                                   .group_top_k = c->expert_group_top_k,
                                   .group_pairs = names->group_pairs,
                                   .scale_input = names->scale_input,
                                   .has_bias = names->bias != NULL,
                                   .has_scale = names->scale != NULL};

    if (names->bias != NULL) {
        experts.bias = plan_parameter(
            b, names->bias_rank == 2
                   ? &(struct plan_parameter){.path = names->bias, .shape = {1, c->num_experts}, .rank = 2}
                   : &(struct plan_parameter){.path = names->bias, .shape = {c->num_experts}, .rank = 1});
    }
    if (names->scale != NULL) {
        experts.scale =
            plan_parameter(b, &(struct plan_parameter){.path = names->scale, .shape = {c->num_experts}, .rank = 1});
    }
    return experts;
}

/* The shared expert's linears on `in`: gate or NULL, up, down. */
static int shared_mlp(struct plan_builder *b, const struct model_config *c, int in, const struct family_experts *names)
{
    const char *const *of = names->shared;
    int gate = of[0] != NULL ? plan_linear(b, in, of[0], NULL, c->shared_size, false) : -1;
    int up = plan_linear(b, in, of[1], NULL, c->shared_size, false);

    if (gate >= 0) {
        plan_fuse(b, names->fused, (int[]){gate, up}, 2);
    }
    int made = gate >= 0 ? plan_activate(b, ACTIVATION_SILU, gate, up)
                         : plan_activate(b, (enum plan_activation)c->activation, up, -1);
    return plan_linear(b, made, of[2], NULL, c->hidden_size, false);
}

/* What the shared expert adds, through its gate where it has one. */
static int shared_expert(struct plan_builder *b, const struct model_config *c, int in,
                         const struct family_experts *names)
{
    int out = shared_mlp(b, c, in, names);

    if (names->shared_gate != NULL) {
        out = plan_activate(b, ACTIVATION_SIGMOID, plan_router(b, in, names->shared_gate, NULL, 1, false), out);
    }
    return out;
}

/* The three linears of an expert, where all experts' are stored as one: in the family, or in this checkpoint. */
static void store_stacked(struct plan_builder *expert, const struct model_config *c, const struct family_stacked *s,
                          int gate, int up, int down)
{
    const char *const *found = c->arch->experts->stacked;
    const struct family_stacked own = {
        .both = found[0], .down = found[1], .by_inputs = c->experts_storage == EXPERTS_TURNED};

    s = c->experts_storage != EXPERTS_AS_PLANNED ? &own : s;
    if (s == NULL) {
        return;
    }
    int64_t stride = s->in_turns ? 2 : 2 * c->expert_size, count = stride / 2;
    struct plan_stored both = {.weight = s->both,
                               .bias = s->both_bias,
                               .transposed = s->by_inputs,
                               .entries = c->num_experts,
                               .rows = {.stride = stride, .count = count}};

    plan_store(expert, gate, &both);
    both.rows.first = count;
    plan_store(expert, up, &both);
    plan_store(expert, down,
               &(struct plan_stored){
                   .weight = s->down, .bias = s->down_bias, .transposed = s->by_inputs, .entries = c->num_experts});
}

/* The choice of experts on `in`, what they read and make as wide as it. */
static int routed_experts(struct plan_builder *b, const struct model_config *c, int in, int64_t width, int logits,
                          const struct family_experts *names)
{
    const struct plan_experts experts = experts_spec(b, c, names);
    struct plan_builder *expert = plan_expert(b, width);
    int gate = names->gate != NULL ? plan_linear(expert, 0, names->gate, NULL, c->expert_size, names->expert_bias) : -1;
    int up = plan_linear(expert, 0, names->up, NULL, c->expert_size, names->expert_bias);

    if (gate >= 0) {
        plan_fuse(expert, names->fused, (int[]){gate, up}, 2);
    }
    int product = gate >= 0 ? plan_activate(expert, names->activation, gate, up)
                            : plan_activate(expert, (enum plan_activation)c->activation, up, -1);
    int made = plan_linear(expert, product, names->down, NULL, width, names->expert_bias);
    store_stacked(expert, c, names->stacked, gate, up, made);
    return plan_experts(b, in, logits, &experts, expert, made);
}

int families_experts(struct plan_builder *b, const struct model_config *c, int in, const struct family_experts *names)
{
    return families_routed(b, c, in, plan_router(b, in, names->router, NULL, c->num_experts, names->router_bias),
                           names);
}

int families_routed(struct plan_builder *b, const struct model_config *c, int in, int logits,
                    const struct family_experts *names)
{
    /* First, so that no group but that of what reads their sum comes after the experts'. */
    int shared = c->shared_size > 0 ? shared_expert(b, c, in, names) : -1, out;

    if (c->expert_latent > 0) {
        in = plan_optional(b, in, names->latent[0], NULL, c->expert_latent, false);
        out = routed_experts(b, c, in, c->expert_latent, logits, names);
        out = plan_optional(b, out, names->latent[1], NULL, c->hidden_size, false);
    } else {
        out = routed_experts(b, c, in, c->hidden_size, logits, names);
    }
    return shared >= 0 ? plan_add(b, out, shared) : out;
}
