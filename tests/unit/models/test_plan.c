/* The plan of a layer: what follows from the steps of the families that there are, and of layers made up for it. */

#include "models/plan.h"
#include "tests/unit/models/small_config.h"
#include "tests/unit/unit.h"

#include <string.h>

static struct plans *plans_of(const char *architecture, const char *more)
{
    struct model_config c;
    struct plans *plans;

    ck_assert_rc_ok(small_config(architecture, more, &c));
    ck_assert_rc_ok(plans_new(&c, &plans));
    return plans;
}

/* The value that a module makes. */
static int made_by(const struct plan *plan, const char *path)
{
    return plan->steps[plan->modules[plan_find_module(plan, path)].step].out;
}

static void has_modules(const struct plan *plan, const struct plan_group *group, const char *const *paths, int count)
{
    ck_assert_int_eq(group->count, count);
    for (int i = 0; i < count; i++) {
        ck_assert_str_eq(plan->modules[group->modules[i]].path, paths[i]);
        ck_assert_ptr_eq(&plan->groups[plan->modules[group->modules[i]].group], group);
    }
}

static const char *const q_k_v[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"};
static const char *const o[] = {"self_attn.o_proj"};
static const char *const gate_up[] = {"mlp.gate_proj", "mlp.up_proj"};
static const char *const down[] = {"mlp.down_proj"};

START_TEST(test_groups)
{
    struct plans *plans = plans_of("LlamaForCausalLM", "{}");
    const struct plan *plan = plans_layer(plans, 3);

    ck_assert_int_eq(plans_kinds(plans), 1);
    ck_assert_int_eq(plan->module_count, 7);
    ck_assert_int_eq(plan->group_count, 4);
    has_modules(plan, &plan->groups[0], q_k_v, 3);
    has_modules(plan, &plan->groups[1], o, 1);
    has_modules(plan, &plan->groups[2], gate_up, 2);
    has_modules(plan, &plan->groups[3], down, 1);
    ck_assert_int_eq(plan->groups[0].columns, 64);
    ck_assert_int_eq(plan->groups[3].columns, 96);
    ck_assert_int_eq(plan->modules[1].rows, 32);
    ck_assert_int_eq(plan->widest_input, 96);
    ck_assert_int_eq(plan->tallest, 96);
    ck_assert_int_eq(plan->fused_count, 2);
    ck_assert_int_eq(plan->fused[0].count, 3);
    ck_assert_str_eq(plan->fused[1].title, "gate and up");
    ck_assert_int_eq(plan->fused[1].modules[1], plan_find_module(plan, "mlp.up_proj"));
    /* q and k are rotated and meet in the scores; v is neither. */
    for (int i = 0; i < 7; i++) {
        ck_assert(plan->modules[i].rotated == (i < 2) && plan->modules[i].scores == (i < 2));
    }
    plans_free(plans);
}
END_TEST

START_TEST(test_passes)
{
    struct plans *plans = plans_of("LlamaForCausalLM", "{}");
    const struct plan *plan = plans_layer(plans, 0);
    int attention = plan->groups[1].input, product = plan->groups[3].input, sum = -1;
    plan_set steps, used;

    for (int v = 1; v < plan->output; v++) {
        sum = plan->values[v].residual ? v : sum;
    }
    ck_assert_uint_eq(plan->groups[0].kept, PLAN_BIT(0));
    ck_assert_uint_eq(plan->groups[1].kept, PLAN_BIT(0) | PLAN_BIT(attention));
    ck_assert_uint_eq(plan->groups[2].kept, PLAN_BIT(sum));
    ck_assert_uint_eq(plan->groups[3].kept, PLAN_BIT(sum) | PLAN_BIT(product));
    /* One storage for the stream, one store each for what attention and the product leave. */
    ck_assert(plan->values[sum].storage == 0 && plan->values[plan->output].storage == 0);
    ck_assert_int_eq(plan->store_count, 3);
    ck_assert_int_eq(plan->store_columns[0], 64);
    ck_assert_int_eq(plan->store_columns[2], 96);
    ck_assert_int_eq(plan->storages[plan->values[attention].storage].store, 1);
    /* x, the norm's output, and the wider of attention's output and the product; q, k and v, or up. */
    ck_assert_int_eq(plan->columns[REGION_KEPT], 64 + 64 + 96);
    ck_assert_int_eq(plan->columns[REGION_WORK], 64 + 2 * 32);

    ck_assert(plan_steps(plan, PLAN_BIT(sum), PLAN_BIT(product), &steps, &used));
    ck_assert_uint_eq(used, PLAN_BIT(sum));
    ck_assert_double_eq(plan_flops(plan, steps, 10, 5), 2.0 * 2 * 10 * 64 * 96);
    ck_assert(plan_steps(plan, PLAN_BIT(0), PLAN_BIT(attention), &steps, &used));
    ck_assert_double_eq(plan_flops(plan, steps, 10, 5), 2.0 * 10 * 64 * (64 + 32 + 32) + 2.0 * 10 * 5 * 64);
    ck_assert(!plan_steps(plan, PLAN_BIT(attention), PLAN_BIT(product), &steps, &used));
    ck_assert(plan_steps(plan, PLAN_BIT(product), PLAN_BIT(product), &steps, &used));
    ck_assert(steps == 0 && used == PLAN_BIT(product));
    plans_free(plans);
}
END_TEST

START_TEST(test_folds)
{
    struct plans *plans = plans_of("LlamaForCausalLM", "{}");
    const struct plan *plan = plans_layer(plans, 0);

    ck_assert(plan->groups[0].fold.kind == FOLD_NORM && plan->groups[2].fold.kind == FOLD_NORM);
    ck_assert_str_eq(plan->norms[plan->groups[0].fold.norm].path, "input_layernorm");
    ck_assert_str_eq(plan->norms[plan->groups[2].fold.norm].path, "post_attention_layernorm");
    /* Two query heads share a key head, so a row of v feeds two columns. */
    ck_assert(plan->groups[1].fold.kind == FOLD_NONE && plan->groups[1].fold.shared);
    ck_assert_str_eq(plan->modules[plan->groups[1].fold.module].path, "self_attn.v_proj");
    ck_assert(plan->groups[3].fold.kind == FOLD_ROWS && !plan->groups[3].fold.attention);
    ck_assert_str_eq(plan->modules[plan->groups[3].fold.module].path, "mlp.up_proj");
    for (int g = 0; g < 4; g++) {
        bool adds = g == 1 || g == 3;
        int branch = made_by(plan, g < 2 ? "self_attn.o_proj" : "mlp.down_proj");
        ck_assert_int_eq(plan->groups[g].branch, branch);
        ck_assert_int_eq(plan->groups[g].residual, adds ? plan->groups[g].modules[0] : -1);
    }
    plans_free(plans);

    plans = plans_of("LlamaForCausalLM", "{\"num_key_value_heads\":4}");
    ck_assert_int_eq(plans_layer(plans, 0)->groups[1].fold.kind, FOLD_ROWS);
    plans_free(plans);
}
END_TEST

START_TEST(test_families)
{
    static const char types[] = "{\"sliding_window\":9,\"max_window_layers\":2,\"use_sliding_window\":true}";
    struct plans *plans = plans_of("Qwen2ForCausalLM", types);
    int module;

    ck_assert_int_eq(plans_kinds(plans), 2);
    ck_assert_ptr_eq(plans_layer(plans, 0), plans_layer(plans, 1));
    ck_assert_ptr_eq(plans_layer(plans, 2), plans_layer(plans, 3));
    const struct plan *plan = plans_layer(plans, 3);
    ck_assert_int_eq(plan->steps[plan_find_step(plan, STEP_ATTENTION)].attention.window, 9);
    ck_assert(plan->modules[2].bias && !plan->modules[3].bias && !plan->modules[6].bias);
    ck_assert_uint_eq(plans_modules(plans), 28);
    ck_assert_uint_eq(plans_first_module(plans, 2), 14);
    ck_assert_int_eq(plans_module_at(plans, 20, &module), 2);
    ck_assert_int_eq(module, 6);
    ck_assert_int_eq(plans_module_at(plans, 21, &module), 3);
    ck_assert_int_eq(module, 0);
    plans_free(plans);

    plans = plans_of("Qwen3ForCausalLM", "{}");
    plan = plans_layer(plans, 0);
    ck_assert_int_eq(plan->norm_count, 4);
    ck_assert_int_eq(plan->norms[plan->steps[plan_find_step(plan, STEP_ROPE) - 2].norm].size, 128);
    ck_assert(plan->modules[0].rotated && plan->modules[1].scores && !plan->modules[2].rotated);
    ck_assert_int_eq(plan->group_count, 4);
    plans_free(plans);
}
END_TEST

/* A layer that rotates, with as many key heads as heads. */
static void has_norms_after(const struct plan *plan)
{
    const struct plan_group *groups = plan->groups;
    int sum = groups[2].input;

    ck_assert_int_eq(plan->group_count, 4);
    has_modules(plan, &groups[0], q_k_v, 3);
    has_modules(plan, &groups[1], o, 1);
    has_modules(plan, &groups[2], gate_up, 2);
    has_modules(plan, &groups[3], down, 1);
    ck_assert(groups[0].input == 0 && plan->values[sum].residual);
    ck_assert_uint_eq(groups[1].kept, PLAN_BIT(0) | PLAN_BIT(groups[1].input));
    ck_assert_uint_eq(groups[2].kept, PLAN_BIT(sum));
    ck_assert_uint_eq(groups[3].kept, PLAN_BIT(sum) | PLAN_BIT(groups[3].input));
    /* Nothing makes the stream by itself that could take up factors; v and up do. */
    ck_assert(groups[0].fold.kind == FOLD_NONE && groups[2].fold.kind == FOLD_NONE);
    ck_assert(groups[1].fold.kind == FOLD_ROWS && groups[1].fold.attention && groups[3].fold.kind == FOLD_ROWS);
    /* What is added to the stream is a norm's, not a module's. */
    for (int g = 0; g < 4; g++) {
        const struct plan_step *last = &plan->steps[plan->values[groups[g].branch].producer];
        ck_assert_int_eq(groups[g].residual, -1);
        ck_assert_int_eq(last->kind, STEP_NORM);
        ck_assert_str_eq(plan->norms[last->norm].path,
                         g < 2 ? "post_attention_layernorm" : "post_feedforward_layernorm");
    }
    for (int i = 0; i < plan->module_count; i++) {
        ck_assert(plan->modules[i].rotated == (i < 2) && plan->modules[i].scores == (i < 2));
    }
}

START_TEST(test_norms_after)
{
    struct plans *plans = plans_of("Olmo2ForCausalLM", "{\"num_key_value_heads\":4}");
    const struct plan *plan = plans_layer(plans, 0);

    ck_assert_int_eq(plans_kinds(plans), 1);
    has_norms_after(plan);
    plans_free(plans);

    /* Norms of queries and keys over all heads. */
    plans = plans_of("Olmo2ForCausalLM", "{\"attention_bias\":true}");
    plan = plans_layer(plans, 0);
    ck_assert_int_eq(plan->norm_count, 4);
    ck_assert_str_eq(plan->norms[1].path, "self_attn.k_norm");
    ck_assert(plan->norms[0].size == 64 && plan->norms[1].size == 32);
    ck_assert(plan->modules[0].bias && plan->modules[3].bias && !plan->modules[4].bias);
    ck_assert(plan->groups[1].fold.kind == FOLD_NONE && plan->groups[1].fold.shared);
    ck_assert_double_eq(plans_config(plans)->rms_norm_eps, 1e-5);
    plans_free(plans);

    /* Of each head; the last layer has no window, and does not rotate. */
    plans = plans_of("Exaone4ForCausalLM", "{\"num_key_value_heads\":4,\"sliding_window\":9}");
    plan = plans_layer(plans, 2);
    ck_assert_int_eq(plans_kinds(plans), 2);
    ck_assert_ptr_eq(plan, plans_layer(plans, 0));
    has_norms_after(plan);
    ck_assert(plan->norm_count == 4 && plan->norms[0].size == 16 && plan->norms[1].size == 16);
    ck_assert_int_eq(plan->steps[plan_find_step(plan, STEP_ATTENTION)].attention.window, 9);
    plan = plans_layer(plans, 3);
    ck_assert_int_eq(plan_find_step(plan, STEP_ROPE), -1);
    ck_assert_int_eq(plan->steps[plan_find_step(plan, STEP_ATTENTION)].attention.window, 0);
    ck_assert(!plan->modules[0].rotated && plan->modules[0].scores && plan->groups[1].fold.attention);
    plans_free(plans);
}
END_TEST

/* --- layers made up for the test */

/* Llama's attention, and an MLP of three experts, two for each token, with a shared one. */
static int plan_mixture(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    const struct plan_experts spec = {
        .path = "mlp.experts", .count = 3, .top_k = 2, .scores = SCORES_SOFTMAX_ALL, .normalize = true, .factor = 1};
    (void)layer;
    int in = plan_row_norm(b, 0, "post_attention_layernorm", NULL);
    int logits = plan_router(b, in, "mlp.gate", NULL, 3, false);
    struct plan_builder *expert = plan_expert(b, c->hidden_size);
    int gate = plan_linear(expert, 0, "gate_proj", NULL, 32, false);
    int up = plan_linear(expert, 0, "up_proj", NULL, 32, false);
    plan_fuse(expert, "gate and up", (int[]){gate, up}, 2);
    int out =
        plan_linear(expert, plan_activate(expert, ACTIVATION_SILU, gate, up), "down_proj", NULL, c->hidden_size, false);
    int routed = plan_experts(b, in, logits, &spec, expert, out);
    gate = plan_linear(b, in, "mlp.shared_expert.gate_proj", NULL, 48, false);
    up = plan_linear(b, in, "mlp.shared_expert.up_proj", NULL, 48, false);
    int product = plan_activate(b, ACTIVATION_SILU, gate, up);
    int shared = plan_linear(b, product, "mlp.shared_expert.down_proj", NULL, c->hidden_size, false);
    return plan_add(b, 0, plan_add(b, routed, shared));
}

/* Norms after attention and MLP, none before. */
static int plan_post_norms(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    (void)layer;
    int gate = plan_linear(b, 0, "mlp.gate_proj", NULL, c->intermediate_size, false);
    int up = plan_linear(b, 0, "mlp.up_proj", NULL, c->intermediate_size, false);
    int product = plan_activate(b, ACTIVATION_SILU, gate, up);
    int out = plan_linear(b, product, "mlp.down_proj", NULL, c->hidden_size, false);
    return plan_add(b, 0, plan_row_norm(b, out, "post_feedforward_layernorm", NULL));
}

/* Queries, keys and values of each head are neighbours in one linear, gate and up halves of another; attention and MLP
 * run side by side. `overlap`: the values begin in the keys. */
static int plan_side_by_side(const struct model_config *c, struct plan_builder *b, int64_t overlap)
{
    int64_t d = c->head_dim, i = c->intermediate_size;
    int in = plan_row_norm(b, 0, "input_layernorm", NULL);
    int qkv = plan_linear(b, in, "attention.query_key_value", NULL, 3 * c->hidden_size, true);
    int q = plan_rope(b, plan_select(b, qkv, &(struct plan_select){3 * d, 0, d}), d);
    int k = plan_rope(b, plan_select(b, qkv, &(struct plan_select){3 * d, d, d}), d);
    int v = plan_select(b, qkv, &(struct plan_select){3 * d, 2 * d - overlap, d});
    const struct plan_attention attention = {
        .heads = c->num_heads, .kv_heads = c->num_heads, .head_dim = d, .scale = 1};
    int made = plan_attend(b, q, k, v, &attention);
    int out = plan_linear(b, made, "attention.dense", NULL, c->hidden_size, false);
    in = plan_row_norm(b, 0, "post_attention_layernorm", NULL);
    int both = plan_linear(b, in, "mlp.gate_up_proj", NULL, 2 * i, false);
    int gate = plan_select(b, both, &(struct plan_select){2 * i, 0, i});
    int up = plan_select(b, both, &(struct plan_select){2 * i, i, i});
    int product = plan_activate(b, ACTIVATION_SILU, gate, up);
    int last = plan_linear(b, product, "mlp.down_proj", NULL, c->hidden_size, false);
    return plan_add(b, 0, plan_add(b, out, last));
}

static int plan_fused_columns(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    (void)layer;
    return plan_side_by_side(c, b, 0);
}

static int plan_shared_columns(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    (void)layer;
    return plan_side_by_side(c, b, 1);
}

static int plan_without_residual(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    (void)layer;
    return plan_linear(b, 0, "mlp.up_proj", NULL, c->hidden_size, false);
}

/* An MLP that reads a norm of the layer's input is added after attention was. */
static int plan_late_branch(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    int in = plan_row_norm(b, 0, "input_layernorm", NULL);
    int x = plan_add(
        b, 0, plan_linear(b, plan_linear(b, in, "first", NULL, 8, false), "second", NULL, c->hidden_size, false));

    (void)layer;
    return plan_add(b, x,
                    plan_linear(b, plan_linear(b, in, "third", NULL, 8, false), "fourth", NULL, c->hidden_size, false));
}

static int plan_misfit(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    (void)layer;
    return plan_add(b, 0, plan_linear(b, 0, "mlp.up_proj", NULL, c->intermediate_size, false));
}

static int made_up(int (*plan)(const struct model_config *, int64_t, struct plan_builder *), struct plans **out)
{
    struct model_config c;
    struct arch arch;

    ck_assert_rc_ok(small_config("LlamaForCausalLM", "{}", &c));
    arch = *c.arch;
    arch.plan = plan;
    c.arch = &arch;
    return plans_new(&c, out);
}

START_TEST(test_experts)
{
    struct plans *plans;

    ck_assert_rc_ok(made_up(plan_mixture, &plans));
    ck_assert_int_eq(plans_kinds(plans), 1);
    const struct plan *plan = plans_layer(plans, 1);
    const struct plan_step *step = &plan->steps[plan_find_step(plan, STEP_EXPERTS)];
    const struct plan_experts *experts = step->experts;

    ck_assert_int_eq(plan->module_count, 1 + 3 * 3 + 3);
    ck_assert(plan->modules[0].fixed && plan->modules[0].expert == -1);
    ck_assert_int_eq(experts->first_module, 1);
    ck_assert_str_eq(plan->modules[1 + 2 * 3 + 1].path, "mlp.experts.2.up_proj");
    ck_assert_int_eq(plan->modules[1 + 2 * 3 + 1].expert, 2);
    /* The router and the shared expert read what the experts read; then each expert's two groups; then shared down. */
    ck_assert_int_eq(plan->group_count, 1 + 3 * 2 + 1);
    static const char *const first[] = {"mlp.gate", "mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"};
    static const char *const second[] = {"mlp.experts.1.gate_proj", "mlp.experts.1.up_proj"};
    static const char *const third[] = {"mlp.experts.1.down_proj"};
    has_modules(plan, &plan->groups[0], first, 3);
    has_modules(plan, &plan->groups[3], second, 2);
    has_modules(plan, &plan->groups[4], third, 1);
    ck_assert(plan->groups[3].expert == 1 && plan->groups[3].input == 0 && plan->groups[4].columns == 32);
    ck_assert_int_eq(plan->groups[0].fold.kind, FOLD_NORM);
    ck_assert_int_eq(plan->groups[3].fold.kind, FOLD_NONE);
    ck_assert_int_eq(plan->groups[4].fold.kind, FOLD_ROWS);
    ck_assert_str_eq(plan->modules[plan->groups[4].fold.module].path, "mlp.experts.1.up_proj");
    /* Between passes: the stream and the logits; what the norm makes is made again. */
    ck_assert_uint_eq(plan->groups[3].kept, PLAN_BIT(0) | PLAN_BIT(step->in[1]));
    ck_assert_int_eq(plan->fused_count, 3);
    ck_assert_int_eq(plan->fused[2].modules[0], 1 + 2 * 3);
    ck_assert_double_eq(plan_flops(plan, PLAN_BIT(plan_find_step(plan, STEP_EXPERTS)), 10, 5),
                        2.0 * 10 * 2 * 3 * 64 * 32);
    plans_free(plans);
}
END_TEST

START_TEST(test_made_up)
{
    struct plans *plans;

    ck_assert_rc_ok(made_up(plan_post_norms, &plans));
    const struct plan *plan = plans_layer(plans, 0);
    ck_assert_int_eq(plan->groups[0].input, 0);
    ck_assert_int_eq(plan->groups[0].fold.kind, FOLD_NONE); /* the sum reads the stream, too */
    ck_assert_int_eq(plan->groups[1].residual, -1);
    ck_assert_int_eq(plan->groups[1].branch, plan->steps[plan->step_count - 1].in[1]);
    /* The norm works in place of down's output. */
    ck_assert_int_eq(plan->values[plan->groups[1].branch].storage,
                     plan->values[made_by(plan, "mlp.down_proj")].storage);
    plans_free(plans);
    ck_assert_int_eq(made_up(plan_without_residual, &plans), ERR_INTERNAL);
    ck_assert_int_eq(made_up(plan_misfit, &plans), ERR_INTERNAL);
    ck_assert_int_eq(made_up(plan_late_branch, &plans), ERR_INTERNAL);
}
END_TEST

/* Norms, side by side or one for both; where factors go in families with fused linears. */
START_TEST(test_fused_families)
{
    struct plans *plans = plans_of("FalconForCausalLM", "{\"num_key_value_heads\":null}");
    const struct plan *plan = plans_layer(plans, 0);
    static const char *const both[] = {"self_attention.query_key_value", "mlp.dense_h_to_4h"};

    ck_assert_int_eq(plan->group_count, 3);
    has_modules(plan, &plan->groups[0], both, 2);
    ck_assert(plan->groups[0].fold.kind == FOLD_NORM && plan->norm_count == 1 && plan->norms[0].bias);
    ck_assert(plan->groups[1].fold.kind == FOLD_NONE && plan->groups[1].fold.shared);
    ck_assert_int_eq(plan->groups[2].fold.kind, FOLD_NONE); /* gelu lets no factor through */
    ck_assert_int_eq(plan->groups[0].branch, plan->steps[plan->step_count - 1].in[1]);
    ck_assert_int_eq(plan->groups[1].branch, made_by(plan, "self_attention.dense"));
    plans_free(plans);

    plans = plans_of("GPT2LMHeadModel", "{\"num_key_value_heads\":null}");
    plan = plans_layer(plans, 0);
    ck_assert_int_eq(plan_find_step(plan, STEP_ROPE), -1);
    ck_assert(plan->groups[1].fold.kind == FOLD_ROWS && plan->groups[1].fold.rows.first == 128);
    for (int i = 0; i < plan->module_count; i++) {
        ck_assert(plan->modules[i].stored->transposed && plan->modules[i].stored->weight == NULL);
    }
    plans_free(plans);

    plans = plans_of("Phi3ForCausalLM", "{}");
    plan = plans_layer(plans, 0);
    ck_assert(plan->groups[3].fold.kind == FOLD_ROWS && plan->groups[3].fold.rows.first == 96);
    ck_assert_int_eq(plan->groups[3].residual, plan_find_module(plan, "mlp.down_proj"));
    plans_free(plans);
}
END_TEST

/* An MLP without a gate: relu lets factors through to the rows before it, other activations do not. */
START_TEST(test_families_without_gates)
{
    static const char *const both[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1"};
    struct plans *plans = plans_of("OPTForCausalLM", "{\"num_key_value_heads\":null}");
    const struct plan *plan = plans_layer(plans, 0);

    ck_assert_int_eq(plan->group_count, 4);
    ck_assert_int_eq(plan_find_step(plan, STEP_ROPE), -1);
    ck_assert(plan->groups[0].fold.kind == FOLD_NORM && plan->groups[1].fold.attention);
    ck_assert(plan->groups[3].fold.kind == FOLD_ROWS && plan->groups[3].fold.module == plan_find_module(plan, "fc1"));
    for (int i = 0; i < plan->module_count; i++) {
        ck_assert(plan->modules[i].bias);
    }
    plans_free(plans);

    plans = plans_of("PhiForCausalLM", "{}");
    plan = plans_layer(plans, 0);
    has_modules(plan, &plan->groups[0], both, 4);
    ck_assert(plan->groups[0].fold.kind == FOLD_NORM && plan->norm_count == 1);
    ck_assert_int_eq(plan->groups[2].fold.kind, FOLD_NONE);
    ck_assert_int_eq(plan->steps[plan_find_step(plan, STEP_ROPE)].rope.rotated, 8);
    plans_free(plans);

    plans = plans_of("NemotronForCausalLM", "{}");
    plan = plans_layer(plans, 0);
    ck_assert(plan->norms[0].kind == NORM_LAYER && plan->norms[0].unit_offset && plan->norms[0].bias);
    ck_assert_int_eq(plan->groups[3].fold.kind, FOLD_NONE); /* a squared relu squares factors */
    plans_free(plans);

    plans = plans_of("Starcoder2ForCausalLM", "{\"sliding_window\":7}");
    plan = plans_layer(plans, 0);
    ck_assert_int_eq(plan->steps[plan_find_step(plan, STEP_ATTENTION)].attention.window, 7);
    ck_assert(plan->groups[2].fold.kind == FOLD_NORM && !plan->norms[0].unit_offset && plan->norms[0].bias);
    plans_free(plans);
}
END_TEST

START_TEST(test_selections)
{
    struct plans *plans;

    ck_assert_rc_ok(made_up(plan_fused_columns, &plans));
    const struct plan *plan = plans_layer(plans, 0);
    const struct plan_group *groups = plan->groups;

    ck_assert_int_eq(plan->module_count, 4);
    ck_assert_int_eq(plan->group_count, 4);
    ck_assert(groups[0].fold.kind == FOLD_NORM && groups[2].fold.kind == FOLD_NORM);
    /* Values and up are rows of a linear, by head and by halves. */
    ck_assert(groups[1].fold.kind == FOLD_ROWS && groups[1].fold.attention && !groups[1].fold.shared);
    ck_assert_int_eq(groups[1].fold.module, 0);
    ck_assert(groups[1].fold.rows.stride == 48 && groups[1].fold.rows.first == 32 && groups[1].fold.rows.count == 16);
    ck_assert(groups[3].fold.kind == FOLD_ROWS && groups[3].fold.module == 2);
    ck_assert(groups[3].fold.rows.stride == 192 && groups[3].fold.rows.first == 96 && groups[3].fold.rows.count == 96);
    /* Each half is judged by its own part of what is added to the stream. */
    for (int g = 0; g < 4; g++) {
        ck_assert_int_eq(groups[g].branch, made_by(plan, g < 2 ? "attention.dense" : "mlp.down_proj"));
        ck_assert_int_eq(groups[g].residual, -1);
    }
    ck_assert(plan->modules[0].rotated && plan->modules[0].scores && !plan->modules[2].scores);
    ck_assert_uint_eq(groups[2].kept, PLAN_BIT(0) | PLAN_BIT(made_by(plan, "attention.dense")));
    plans_free(plans);

    ck_assert_rc_ok(made_up(plan_shared_columns, &plans));
    ck_assert_int_eq(plans_layer(plans, 0)->groups[1].fold.kind, FOLD_NONE);
    plans_free(plans);
}
END_TEST

UNIT_MAIN("plan", test_groups, test_passes, test_folds, test_families, test_norms_after, test_experts, test_made_up,
          test_selections, test_fused_families, test_families_without_gates)
