/* Families whose layers are recurrences: their plans, what config.json may say, passes from what is kept, and folds;
 * passes and folds of Gemma 4's two kinds of layers, too. */

#include "models/block.h"
#include "tests/unit/models/small_config.h"
#include "tests/unit/models/support.h"

#include <stdlib.h>

#define SEQUENCES 2
#define LENGTH 11
#define TOKENS (SEQUENCES * LENGTH)

#define QWEN                                                                                                           \
    "{\"linear_num_value_heads\":4,\"linear_num_key_heads\":2,\"linear_key_head_dim\":8,\"linear_value_head_dim\":12," \
    "\"head_dim\":16}"
#define NEMOTRON                                                                                                       \
    "{\"mamba_num_heads\":4,\"n_groups\":2,\"mamba_head_dim\":12,\"ssm_state_size\":8,\"head_dim\":16,\"layers_block_" \
    "type\":[\"linear_attention\",\"full_attention\",\"mlp\",\"mamba\"]}"
#define GRANITE                                                                                                 \
    "{\"mamba_n_heads\":8,\"mamba_d_state\":8,\"mamba_d_head\":16,\"shared_intermediate_size\":40,\"num_local_" \
    "experts\":"                                                                                                \
    "0,\"residual_multiplier\":0.5,\"layer_types\":[\"mamba\",\"attention\",\"linear_attention\",\"full_attention\"]}"

#define GRANITE_LAYERS \
    "{\"mamba_n_heads\":8,\"mamba_d_head\":16,\"layer_types\":[\"mamba\",\"mamba\",\"mamba\",\"mamba\"]"
#define GRANITE_EXPERTS                                                                                         \
    "{\"mamba_n_heads\":8,\"mamba_d_state\":8,\"mamba_d_head\":16,\"shared_intermediate_size\":40,\"num_local_" \
    "experts\":4,\"num_experts_per_tok\":2,\"layer_types\":[\"mamba\",\"attention\",\"mamba\",\"attention\"]}"
#define GEMMA                                                                                                     \
    "{\"hidden_size_per_layer_input\":0,\"head_dim\":16,\"global_head_dim\":32,\"num_global_key_value_heads\":1," \
    "\"attention_k_eq_v\":true}"

#define LATENT                                                                                                \
    "{\"layers_block_type\":[\"moe\",\"moe\",\"moe\",\"moe\"],\"n_routed_experts\":4,\"moe_latent_size\":32," \
    "\"moe_intermediate_size\":24,\"moe_shared_expert_intermediate_size\":40}"

static struct plans *plans_of(const char *architecture, const char *more)
{
    struct model_config c;
    struct plans *plans;

    ck_assert_rc_ok(small_config(architecture, more, &c));
    ck_assert_rc_ok(plans_new(&c, &plans));
    return plans;
}

static const struct plan_group *group_of(const struct plan *plan, const char *path)
{
    int module = plan_find_module(plan, path);

    ck_assert_int_ge(module, 0);
    return &plan->groups[plan->modules[module].group];
}

static bool is_fixed(const struct plan *plan, const char *path)
{
    return plan->modules[plan_find_module(plan, path)].fixed;
}

START_TEST(test_qwen)
{
    struct plans *plans = plans_of("Qwen3_5ForCausalLM", QWEN);
    const struct plan *linear = plans_layer(plans, 0), *full = plans_layer(plans, 3);

    ck_assert_int_eq(plans_kinds(plans), 2); /* each fourth layer attends */
    ck_assert_ptr_eq(plans_layer(plans, 2), linear);
    const struct plan_group *in = group_of(linear, "linear_attn.in_proj_qkv");
    ck_assert_int_eq(in->count, 4);
    ck_assert_int_eq(in->fold.kind, FOLD_NORM);
    ck_assert(is_fixed(linear, "linear_attn.in_proj_a") && is_fixed(linear, "linear_attn.in_proj_b"));
    ck_assert(!is_fixed(linear, "linear_attn.in_proj_z") && !is_fixed(linear, "linear_attn.out_proj"));
    ck_assert_int_eq(group_of(linear, "linear_attn.out_proj")->fold.kind,
                     FOLD_NONE); /* heads share the norm's weight */
    ck_assert_int_eq(plan_attention_group(linear), -1);
    ck_assert_int_eq(plan_attention_group(full), 0);
    ck_assert_int_eq(group_of(full, "self_attn.o_proj")->fold.kind, FOLD_NONE); /* after the gate */
    ck_assert_int_eq(full->modules[plan_find_module(full, "self_attn.q_proj")].rows, 2 * 4 * 16);
    ck_assert_int_eq(full->steps[plan_find_step(full, STEP_ROPE)].rope.rotated, 4);
    ck_assert(full->norms[0].unit_offset);
    ck_assert_double_eq(plan_flops(linear, PLAN_BIT(plan_find_step(linear, STEP_DELTA)), 10, 5), 6.0 * 10 * 4 * 8 * 12);
    plans_free(plans);
}
END_TEST

START_TEST(test_mamba)
{
    struct plans *plans = plans_of("NemotronHForCausalLM", NEMOTRON);
    const struct plan *plan = plans_layer(plans, 0);

    ck_assert_int_eq(plans_kinds(plans), 3);
    ck_assert_ptr_eq(plans_layer(plans, 3), plan);
    const struct plan_group *out = group_of(plan, "mixer.out_proj");
    ck_assert_int_eq(out->fold.kind, FOLD_NORM);
    ck_assert_str_eq(plan->norms[out->fold.norm].path, "mixer.norm");
    ck_assert_int_eq(group_of(plan, "mixer.in_proj")->count, 1);
    ck_assert_int_eq(group_of(plans_layer(plans, 2), "mixer.down_proj")->fold.kind, FOLD_NONE); /* after relu^2 */
    ck_assert_int_eq(plan_find_step(plans_layer(plans, 1), STEP_ROPE), -1);
    ck_assert_double_eq(plan_flops(plan, PLAN_BIT(plan_find_step(plan, STEP_SCAN)), 10, 5), 5.0 * 10 * 4 * 8 * 12);
    plans_free(plans);
    plans = plans_of("NemotronHForCausalLM", "{\"hybrid_override_pattern\":\"M*-M\"}");
    ck_assert_int_eq(plan_find_step(plans_layer(plans, 1), STEP_SCAN), -1);
    ck_assert_int_ge(plan_find_step(plans_layer(plans, 3), STEP_SCAN), 0);
    plans_free(plans);

    plans = plans_of("GraniteMoeHybridForCausalLM", GRANITE);
    ck_assert_int_eq(plans_kinds(plans), 2);
    ck_assert_int_eq(plan_find_step(plans_layer(plans, 1), STEP_ROPE), -1);
    ck_assert_int_eq(group_of(plans_layer(plans, 0), "mamba.out_proj")->fold.kind, FOLD_NORM);
    plans_free(plans);
}
END_TEST

/* The MLP of all tokens and the router read one norm; experts come last. */
START_TEST(test_granite_experts)
{
    struct plans *plans = plans_of("GraniteMoeHybridForCausalLM", GRANITE_EXPERTS);

    ck_assert_int_eq(plans_kinds(plans), 2);
    for (int64_t layer = 0; layer < 2; layer++) {
        const struct plan *plan = plans_layer(plans, layer);
        const struct plan_group *in = group_of(plan, "shared_mlp.input_linear");
        int down = plan_find_module(plan, "block_sparse_moe.experts.3.down_proj");
        ck_assert_int_eq(in->count, 2);
        ck_assert_ptr_eq(group_of(plan, "block_sparse_moe.router.layer"), in);
        ck_assert_int_eq(in->fold.kind, FOLD_NORM);
        ck_assert_str_eq(plan->norms[in->fold.norm].path, "post_attention_layernorm");
        ck_assert(is_fixed(plan, "block_sparse_moe.router.layer") && !is_fixed(plan, "shared_mlp.output_linear"));
        ck_assert_int_eq(plan->group_count, 4 + 2 * 4);
        ck_assert_int_eq(plan->groups[plan->group_count - 1].expert, 3);
        ck_assert_int_ge(down, 0);
        ck_assert_str_eq(plan->modules[down].stored->weight, "block_sparse_moe.output_linear.weight");
        ck_assert_int_eq(plan->modules[down].stored->entry, 3);
        ck_assert_int_eq(plan->modules[down].cols, 96);
        const struct plan_experts *experts = plan->steps[plan_find_step(plan, STEP_EXPERTS)].experts;
        ck_assert_int_eq(experts->top_k, 2);
        ck_assert_int_eq(experts->scores, SCORES_SOFTMAX_CHOSEN);
    }
    plans_free(plans);
}
END_TEST

/* What routes and the shared expert read the norm, the chosen what the first projection makes of it; the second reads
 * their sum, after all of them. */
START_TEST(test_latent_experts)
{
    struct plans *plans = plans_of("NemotronHForCausalLM", LATENT);
    const struct plan *plan = plans_layer(plans, 0);
    const struct plan_group *in = group_of(plan, "mixer.fc1_latent_proj");
    const struct plan_group *out = group_of(plan, "mixer.fc2_latent_proj");
    const struct plan_step *experts = &plan->steps[plan_find_step(plan, STEP_EXPERTS)];
    int first = plan_find_module(plan, "mixer.fc1_latent_proj"), last = plan_find_module(plan, "mixer.fc2_latent_proj");
    int up = plan_find_module(plan, "mixer.experts.2.up_proj"), down = up + 1;

    ck_assert_int_eq(plans_kinds(plans), 1);
    ck_assert_int_eq(plan->group_count, 2 + 2 * 4 + 1);
    ck_assert_int_eq(in->count, 3);
    ck_assert_ptr_eq(in, group_of(plan, "mixer.gate"));
    ck_assert_ptr_eq(in, group_of(plan, "mixer.shared_experts.up_proj"));
    ck_assert_int_eq(in->fold.kind, FOLD_NORM);
    ck_assert(plan_reads(plan, in, first) && !plan_reads(plan, in, up));
    ck_assert_int_eq(plan->modules[up].cols, 32);
    ck_assert_int_eq(plan->modules[up].rows, 24);
    ck_assert_int_eq(plan->modules[down].rows, 32);
    ck_assert_int_eq(experts->in[0], plan->steps[plan->modules[first].step].out);
    ck_assert_ptr_eq(out, &plan->groups[plan->group_count - 1]);
    ck_assert_int_eq(out->count, 1);
    ck_assert_int_eq(out->columns, 32);
    ck_assert_int_eq(out->expert, -1);
    ck_assert_int_eq(out->input, experts->out);
    ck_assert_int_eq(out->fold.kind, FOLD_NONE);
    ck_assert_int_eq(out->residual, -1); /* the shared expert's output is added first */
    ck_assert_int_eq(out->branch, plan->steps[plan->modules[last].step].out);
    ck_assert((out->kept & PLAN_BIT(experts->out)) != 0);
    ck_assert(plan->modules[first].optional && plan->modules[last].optional && !plan->modules[first].fixed);
    ck_assert(!plan->modules[up].optional && !plan->modules[down].optional);
    plans_free(plans);

    plans = plans_of("NemotronHForCausalLM", "{\"hybrid_override_pattern\":\"MMME\",\"moe_latent_size\":null}");
    plan = plans_layer(plans, 3);
    ck_assert_int_eq(plan_find_module(plan, "mixer.fc1_latent_proj"), -1);
    ck_assert_int_eq(plan->modules[plan_find_module(plan, "mixer.experts.0.up_proj")].cols, 64);
    plans_free(plans);
}
END_TEST

static const struct {
    const char *architecture, *more;
    int code;
    const char *says;
} refusals[] = {
    {"Qwen3_5ForCausalLM", "{\"layer_types\":[\"full_attention\"]}", ERR_INVALID_MODEL, "1 entries for 4 layers"},
    {"Qwen3_5ForCausalLM", "{\"layer_types\":[\"mlp\",\"mlp\",\"mlp\",\"mlp\"]}", ERR_UNSUPPORTED_ARCHITECTURE, "mlp"},
    {"Qwen3_5ForCausalLM", "{\"layer_types\":[1,2,3,4]}", ERR_INVALID_MODEL, "layer 0 is not a string"},
    {"Qwen3_5ForCausalLM", "{\"linear_num_key_heads\":3}", ERR_INVALID_MODEL, "linear_num_key_heads 3 does not divide"},
    {"Qwen3_5ForCausalLM", "{\"linear_key_head_dim\":512}", ERR_UNSUPPORTED_ARCHITECTURE, "linear_key_head_dim"},
    {"Qwen3_5ForCausalLM", "{\"linear_conv_kernel_dim\":0}", ERR_INVALID_MODEL, "linear_conv_kernel_dim"},
    {"Qwen3_5ForCausalLM", "{\"full_attention_interval\":\"x\"}", ERR_INVALID_MODEL, "full_attention_interval"},
    {"NemotronHForCausalLM", "{}", ERR_INVALID_MODEL, "layers_block_type or hybrid_override_pattern"},
    {"NemotronHForCausalLM", "{\"hybrid_override_pattern\":\"M*-\"}", ERR_INVALID_MODEL, "3 letters for 4 layers"},
    {"NemotronHForCausalLM", "{\"hybrid_override_pattern\":\"M*-X\"}", ERR_UNSUPPORTED_ARCHITECTURE, "\"X\""},
    {"NemotronHForCausalLM", "{\"hybrid_override_pattern\":7}", ERR_INVALID_MODEL, "not a string"},
    {"NemotronHForCausalLM",
     "{\"hybrid_override_pattern\":\"MMMM\",\"layers_block_type\":[\"mamba\",\"mamba\",\"mamba\",\"mlp\"]}",
     ERR_INVALID_MODEL, "contradicts"},
    {"NemotronHForCausalLM", "{\"hybrid_override_pattern\":\"MMMM\",\"mamba_hidden_act\":\"gelu\"}",
     ERR_UNSUPPORTED_ARCHITECTURE, "mamba_hidden_act"},
    {"NemotronHForCausalLM", "{\"hybrid_override_pattern\":\"MMMM\",\"mlp_hidden_act\":\"silu\"}",
     ERR_UNSUPPORTED_ARCHITECTURE, "mlp_hidden_act"},
    {"NemotronHForCausalLM", "{\"hybrid_override_pattern\":\"MMME\",\"moe_latent_size\":0}", ERR_INVALID_MODEL,
     "moe_latent_size = 0 is not in [1, "},
    {"NemotronHForCausalLM", "{\"hybrid_override_pattern\":\"MMME\",\"moe_latent_size\":8388608}", ERR_INVALID_MODEL,
     "moe_latent_size = 8388608 is not in [1, "},
    {"NemotronHForCausalLM", "{\"hybrid_override_pattern\":\"MMME\",\"moe_latent_size\":true}", ERR_INVALID_MODEL,
     "moe_latent_size must be an integer"},
    {"Qwen3NextForCausalLM", "{\"moe_latent_size\":32}", ERR_UNSUPPORTED_ARCHITECTURE, "moe_latent_size = 32"},
    {"GraniteMoeHybridForCausalLM", "{}", ERR_INVALID_MODEL, "layer_types"},
    {"GraniteMoeHybridForCausalLM", GRANITE_LAYERS ",\"num_local_experts\":-1}", ERR_INVALID_MODEL,
     "num_local_experts"},
    {"GraniteMoeHybridForCausalLM", GRANITE_LAYERS ",\"num_local_experts\":8,\"num_experts_per_tok\":9}",
     ERR_INVALID_MODEL, "num_experts_per_tok 9"},
    {"GraniteMoeHybridForCausalLM", GRANITE_LAYERS ",\"n_shared_experts\":2}", ERR_UNSUPPORTED_ARCHITECTURE,
     "n_shared_experts = 2"},
    {"GraniteMoeHybridForCausalLM", GRANITE_LAYERS ",\"scoring_func\":\"sigmoid\"}", ERR_UNSUPPORTED_ARCHITECTURE,
     "scoring_func"},
    {"GraniteMoeHybridForCausalLM", "{\"layer_types\":[\"mamba\",\"mamba\",\"mamba\",\"mamba\"],\"mamba_d_head\":7}",
     ERR_INVALID_MODEL, "mamba_n_heads 128 of 7"},
    {"GraniteMoeHybridForCausalLM",
     "{\"layer_types\":[\"mamba\",\"mamba\",\"mamba\",\"mamba\"],\"time_step_limit\":[2,1]}", ERR_INVALID_MODEL,
     "time_step_limit"},
    {"GraniteMoeHybridForCausalLM",
     "{\"layer_types\":[\"mamba\",\"mamba\",\"mamba\",\"mamba\"],\"time_step_limit\":[\"x\",1]}", ERR_INVALID_MODEL,
     "time_step_limit"},
    {"GraniteMoeHybridForCausalLM",
     "{\"layer_types\":[\"mamba\",\"mamba\",\"mamba\",\"mamba\"],\"position_embedding_type\":\"alibi\"}",
     ERR_UNSUPPORTED_ARCHITECTURE, "position_embedding_type"},
};

START_TEST(test_refused)
{
    struct model_config c;
    int rc = small_config(refusals[_i].architecture, refusals[_i].more, &c);

    ck_assert_msg(rc == refusals[_i].code, "%s: %d, %s", refusals[_i].more, rc, err_last()->message);
    ck_assert_msg(strstr(err_last()->message, refusals[_i].says) != NULL, "says: %s", err_last()->message);
}
END_TEST

START_TEST(test_limits)
{
    struct model_config c;

    ck_assert_rc_ok(small_config("GraniteMoeHybridForCausalLM", GRANITE, &c));
    ck_assert(c.recurrence.dt_min == 0 && isinf(c.recurrence.dt_max));
    ck_assert_rc_ok(small_config(
        "GraniteMoeHybridForCausalLM",
        "{\"mamba_n_heads\":8,\"mamba_d_head\":\"auto\",\"layer_types\":[\"mamba\",\"mamba\",\"mamba\",\"mamba\"],"
        "\"time_step_limit\":[0.5,{\"__float__\":\"Infinity\"}]}",
        &c));
    ck_assert(c.recurrence.dt_min == 0.5 && isinf(c.recurrence.dt_max) && c.recurrence.head_dim == 16);
    ck_assert_rc_ok(small_config("NemotronHForCausalLM", NEMOTRON, &c));
    ck_assert(c.recurrence.dt_min == 0.001 && isinf(c.recurrence.dt_max));
}
END_TEST

/* --- a layer with random tensors */

struct layer {
    struct plans *plans;
    struct gpu gpu;
    struct gpu_stream *stream;
    struct block block;
    struct block_scratch *scratch;
};

static void layer_random(const struct layer *l, struct tensor *out, int rank, const int64_t *shape, uint64_t seed)
{
    ck_assert_rc_ok(gpu_tensor_new(&l->gpu, DTYPE_F32, rank, shape, out));
    for (int64_t i = 0; i < tensor_count(out); i++) {
        ((float *)out->data)[i] = support_unit(&seed) * (rank == 2 ? 0.3f : 1.0f);
    }
}

static void layer_open(struct layer *l, const char *architecture, const char *more, int64_t layer)
{
    memset(l, 0, sizeof(*l));
    l->plans = plans_of(architecture, more);
    ck_assert_rc_ok(gpu_open("cpu", 2, &l->gpu));
    ck_assert_rc_ok(l->gpu.ops->stream_new(l->gpu.device, &l->stream));
    const struct plan *plan = plans_layer(l->plans, layer);
    l->block = (struct block){.config = plans_config(l->plans), .plan = plan};
    l->block.modules = calloc((size_t)plan->module_count, sizeof(*l->block.modules));
    l->block.norms = calloc((size_t)plan->norm_count, sizeof(*l->block.norms));
    l->block.parameters = calloc((size_t)plan->parameter_count + 1, sizeof(*l->block.parameters));
    for (int i = 0; i < plan->module_count; i++) {
        const struct plan_module *m = &plan->modules[i];
        layer_random(l, &l->block.modules[i].weight, 2, (const int64_t[]){m->rows, m->cols}, (uint64_t)(100 + i));
    }
    for (int i = 0; i < plan->norm_count; i++) {
        layer_random(l, &l->block.norms[i].weight, 1, &plan->norms[i].size, (uint64_t)(300 + i));
    }
    for (int i = 0; i < plan->parameter_count; i++) {
        layer_random(l, &l->block.parameters[i], plan->parameters[i].rank, plan->parameters[i].shape,
                     (uint64_t)(500 + i));
    }
    ck_assert_rc_ok(block_scratch_new(l->plans, SEQUENCES, LENGTH, &l->gpu, l->stream, &l->scratch));
}

static void layer_close(struct layer *l)
{
    block_scratch_free(l->scratch);
    block_deinit(&l->block, &l->gpu);
    l->gpu.ops->stream_free(l->stream);
    gpu_close(&l->gpu);
    plans_free(l->plans);
}

static void layer_input(float *x, int64_t count)
{
    uint64_t seed = 42;

    for (int64_t i = 0; i < count; i++) {
        x[i] = 2 * support_unit(&seed);
    }
}

static void layer_run(struct layer *l, struct tensor *x)
{
    struct block_values values;

    ck_assert_rc_ok(block_values_init(&values, l->block.plan, l->scratch, NULL));
    block_value_bind(&values, 0, x->data);
    ck_assert_rc_ok(block_run(&l->block, &values, ~(plan_set)0));
}

static const struct {
    const char *architecture, *more;
    int64_t layer;
} layers[] = {{"Qwen3_5ForCausalLM", QWEN, 0},       {"Qwen3_5ForCausalLM", QWEN, 3},
              {"NemotronHForCausalLM", NEMOTRON, 0}, {"NemotronHForCausalLM", NEMOTRON, 1},
              {"NemotronHForCausalLM", NEMOTRON, 2}, {"GraniteMoeHybridForCausalLM", GRANITE, 0},
              {"NemotronHForCausalLM", LATENT, 0},   {"Gemma4ForCausalLM", GEMMA, 0},
              {"Gemma4ForCausalLM", GEMMA, 3}};

/* The passes in a row, each from what the one before it kept, are the forward to the bit. */
START_TEST(test_passes)
{
    struct tensor x, y, kept[PLAN_VALUES_MAX];
    struct layer l;
    plan_set have = PLAN_BIT(0), steps, used;

    layer_open(&l, layers[_i].architecture, layers[_i].more, layers[_i].layer);
    const struct plan *plan = l.block.plan;
    ck_assert_rc_ok(gpu_tensor_new(&l.gpu, DTYPE_F32, 2, (const int64_t[]){TOKENS, 64}, &x));
    ck_assert_rc_ok(gpu_tensor_new(&l.gpu, DTYPE_F32, 2, (const int64_t[]){TOKENS, 64}, &y));
    layer_input(x.data, TOKENS * 64);
    memcpy(y.data, x.data, tensor_bytes(&x));
    layer_run(&l, &x);
    ck_assert(isfinite(((float *)x.data)[TOKENS * 64 - 1]));
    for (int i = 0; i < plan->store_count; i++) {
        kept[i] = y;
        if (i > 0) {
            ck_assert_rc_ok(
                gpu_tensor_new(&l.gpu, DTYPE_F32, 2, (const int64_t[]){TOKENS, plan->store_columns[i]}, &kept[i]));
        }
    }
    for (int g = 0; g <= plan->group_count; g++) {
        bool end = g == plan->group_count;
        plan_set keep = end ? PLAN_BIT(plan->output) : plan->groups[g].kept;
        plan_set want = keep | (end ? 0 : plan_sources(plan, &plan->groups[g]));
        struct block_values values;
        ck_assert(plan_steps(plan, have, want, &steps, &used));
        ck_assert_rc_ok(block_values_init(&values, plan, l.scratch, NULL));
        for (int v = 0; v < plan->value_count; v++) {
            int store = plan->storages[plan->values[v].storage].store;
            if (store >= 0 && ((have | keep) & PLAN_BIT(v)) != 0) {
                block_value_bind(&values, v, kept[store].data);
            }
        }
        ck_assert_rc_ok(block_run(&l.block, &values, steps));
        have = keep;
    }
    ck_assert_int_eq(memcmp(x.data, y.data, tensor_bytes(&x)), 0);
    for (int i = 1; i < plan->store_count; i++) {
        gpu_tensor_free(&l.gpu, &kept[i]);
    }
    gpu_tensor_free(&l.gpu, &x);
    gpu_tensor_free(&l.gpu, &y);
    layer_close(&l);
}
END_TEST

/* Factors that every group takes up leave the output as it is. */
START_TEST(test_folds)
{
    struct tensor x, y;
    struct layer l;
    float factors[512];
    int folded = 0;

    layer_open(&l, layers[_i].architecture, layers[_i].more, layers[_i].layer);
    ck_assert_rc_ok(gpu_tensor_new(&l.gpu, DTYPE_F32, 2, (const int64_t[]){TOKENS, 64}, &x));
    ck_assert_rc_ok(gpu_tensor_new(&l.gpu, DTYPE_F32, 2, (const int64_t[]){TOKENS, 64}, &y));
    layer_input(x.data, TOKENS * 64);
    memcpy(y.data, x.data, tensor_bytes(&x));
    layer_run(&l, &x);
    for (int i = 0; i < 512; i++) {
        factors[i] = 0.5f + (float)(i % 7) / 3;
    }
    for (int g = 0; g < l.block.plan->group_count; g++) {
        if (l.block.plan->groups[g].fold.kind != FOLD_NONE) {
            ck_assert_rc_ok(block_fold(&l.block, &l.block.plan->groups[g], factors, DTYPE_F32, &l.gpu, l.stream));
            folded++;
        }
    }
    ck_assert_int_gt(folded, 0);
    layer_run(&l, &y);
    for (int64_t i = 0; i < TOKENS * 64; i++) {
        double want = (double)((float *)x.data)[i], found = (double)((float *)y.data)[i];
        ck_assert_msg(fabs(found - want) <= 2e-5 * (1 + fabs(want)), "[%lld]: %.9g, not %.9g", (long long)i, found,
                      want);
    }
    gpu_tensor_free(&l.gpu, &x);
    gpu_tensor_free(&l.gpu, &y);
    layer_close(&l);
}
END_TEST

/* A sequence's outputs do not depend on what lies before it. */
START_TEST(test_sequences)
{
    struct tensor x, y;
    struct layer l;

    layer_open(&l, layers[_i].architecture, layers[_i].more, layers[_i].layer);
    ck_assert_rc_ok(gpu_tensor_new(&l.gpu, DTYPE_F32, 2, (const int64_t[]){TOKENS, 64}, &x));
    ck_assert_rc_ok(gpu_tensor_new(&l.gpu, DTYPE_F32, 2, (const int64_t[]){TOKENS, 64}, &y));
    layer_input(x.data, TOKENS * 64);
    memcpy(y.data, (float *)x.data + LENGTH * 64, LENGTH * 64 * sizeof(float));
    layer_run(&l, &x);
    layer_run(&l, &y);
    for (int64_t i = 0; i < LENGTH * 64; i++) {
        double want = (double)((float *)x.data)[LENGTH * 64 + i], found = (double)((float *)y.data)[i];
        ck_assert_msg(fabs(found - want) <= 1e-5 * (1 + fabs(want)), "[%lld]: %.9g, not %.9g", (long long)i, found,
                      want);
    }
    gpu_tensor_free(&l.gpu, &x);
    gpu_tensor_free(&l.gpu, &y);
    layer_close(&l);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("hybrids");
    TCase *tcase = tcase_create("hybrids");
    int cases = (int)(sizeof(layers) / sizeof(layers[0]));

    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, test_qwen);
    tcase_add_test(tcase, test_mamba);
    tcase_add_test(tcase, test_granite_experts);
    tcase_add_test(tcase, test_latent_experts);
    tcase_add_test(tcase, test_limits);
    tcase_add_loop_test(tcase, test_refused, 0, (int)(sizeof(refusals) / sizeof(refusals[0])));
    tcase_add_loop_test(tcase, test_passes, 0, cases);
    tcase_add_loop_test(tcase, test_folds, 0, cases);
    tcase_add_loop_test(tcase, test_sequences, 0, cases);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
