/* Llama 4: what its configuration means and what is refused, the plans of its kinds of layers, the table of queries
 * that grow, and experts that get tokens multiplied by their scores. */

#include "models/block.h"
#include "tests/unit/models/small_config.h"
#include "tests/unit/models/support.h"

#include <stdlib.h>

#define NAME "Llama4ForCausalLM"

START_TEST(test_configurations)
{
    struct model_config c;

    ck_assert_rc_ok(small_config(NAME, "{}", &c));
    ck_assert(c.head_dim == 128 && c.rms_norm_eps == 1e-5 && c.ropes[0].theta == 5e5 && c.head_norms);
    ck_assert(c.num_experts == 16 && c.experts_per_token == 1 && !c.normalize_experts && c.experts_factor == 1);
    ck_assert(c.expert_size == 96 && c.shared_size == 96 && c.intermediate_size == 16384);
    ck_assert_int_eq(c.attention_chunk, 8192);
    for (int64_t layer = 0; layer < 4; layer++) {
        ck_assert(arch_has_experts(&c, layer) && arch_rotates(&c, layer) == (layer != 3));
        ck_assert_int_eq(c.layer_types[layer], layer != 3 ? LAYER_CHUNKED : LAYER_FULL);
    }
    ck_assert_int_eq(c.rope_count, 2);
    ck_assert(c.ropes[1].type == ROPE_NONE && c.ropes[1].growth == 0.1 && c.ropes[1].period == 8192);

    ck_assert_rc_ok(small_config(NAME,
                                 "{\"no_rope_layers\":[0,1,1,1],\"moe_layers\":[3,1],\"attention_chunk_size\":null,"
                                 "\"use_qk_norm\":false,\"attn_temperature_tuning\":false,\"num_local_experts\":4,"
                                 "\"num_experts_per_tok\":2,\"intermediate_size_mlp\":80}",
                                 &c));
    ck_assert(c.num_experts == 4 && c.experts_per_token == 2 && c.intermediate_size == 80 && !c.head_norms);
    ck_assert(!arch_has_experts(&c, 0) && arch_has_experts(&c, 1) && !arch_has_experts(&c, 2) &&
              arch_has_experts(&c, 3));
    ck_assert(!arch_rotates(&c, 0) && arch_rotates(&c, 3) && c.rope_count == 1);
    ck_assert(c.layer_types[0] == LAYER_FULL && c.layer_types[3] == LAYER_FULL);

    /* What turns and what sees a chunk are two lists where both are given. */
    ck_assert_rc_ok(small_config(NAME,
                                 "{\"layer_types\":[\"chunked_attention\",\"full_attention\",\"full_attention\","
                                 "\"chunked_attention\"],\"interleave_moe_layer_step\":2}",
                                 &c));
    ck_assert(c.layer_types[0] == LAYER_CHUNKED && c.layer_types[1] == LAYER_FULL && c.layer_types[3] == LAYER_CHUNKED);
    ck_assert(arch_rotates(&c, 1) && !arch_rotates(&c, 3) && !arch_has_experts(&c, 2) && arch_has_experts(&c, 3));
    /* As the first checkpoints have it. */
    ck_assert_rc_ok(small_config(NAME, "{\"attn_temperature_tuning\":4}", &c));
    ck_assert_int_eq(c.rope_count, 2);
    ck_assert_rc_ok(small_config(NAME, "{\"attn_temperature_tuning\":0}", &c));
    ck_assert_int_eq(c.rope_count, 1);
    ck_assert_rc_ok(small_config(NAME, "{\"attn_scale\":0}", &c));
    ck_assert_int_eq(c.rope_count, 1);
    /* No layer of experts: what else is said of them has no meaning. */
    ck_assert_rc_ok(
        small_config(NAME, "{\"moe_layers\":[],\"num_local_experts\":0,\"interleave_moe_layer_step\":0}", &c));
    ck_assert(c.num_experts == 0 && c.shared_size == 0 && !arch_has_experts(&c, 3));
}
END_TEST

static const struct refused_config refused[] = {
    {NAME, "{\"moe_layers\":[1,4]}", ERR_INVALID_MODEL, "moe_layers[1] is not the number of a layer, 0 to 3"},
    {NAME, "{\"moe_layers\":[-1]}", ERR_INVALID_MODEL, "moe_layers[0]"},
    {NAME, "{\"moe_layers\":[true]}", ERR_INVALID_MODEL, "moe_layers[0]"},
    {NAME, "{\"moe_layers\":2}", ERR_INVALID_MODEL, "moe_layers is not a list"},
    {NAME, "{\"interleave_moe_layer_step\":0}", ERR_INVALID_MODEL, "interleave_moe_layer_step"},
    {NAME, "{\"num_local_experts\":0}", ERR_INVALID_MODEL, "num_local_experts"},
    {NAME, "{\"num_experts_per_tok\":17}", ERR_INVALID_MODEL, "num_experts_per_tok 17"},
    {NAME, "{\"intermediate_size_mlp\":0}", ERR_INVALID_MODEL, "intermediate_size_mlp"},
    {NAME, "{\"no_rope_layers\":[1,0]}", ERR_INVALID_MODEL, "no_rope_layers has 2 entries for 4 layers"},
    {NAME, "{\"no_rope_layers\":[1,0,2,1]}", ERR_INVALID_MODEL, "no_rope_layers[2]"},
    {NAME, "{\"no_rope_layer_interval\":0}", ERR_INVALID_MODEL, "no_rope_layer_interval"},
    {NAME, "{\"use_qk_norm\":\"yes\"}", ERR_INVALID_MODEL, "use_qk_norm"},
    {NAME, "{\"attn_temperature_tuning\":\"yes\"}", ERR_INVALID_MODEL, "attn_temperature_tuning"},
    {NAME, "{\"attn_temperature_tuning\":0.5}", ERR_INVALID_MODEL, "attn_temperature_tuning"},
    {NAME, "{\"floor_scale\":0}", ERR_INVALID_MODEL, "floor_scale"},
    {NAME, "{\"attn_scale\":-0.1}", ERR_INVALID_MODEL, "attn_scale"},
    {NAME, "{\"attention_chunk_size\":0}", ERR_INVALID_MODEL, "attention_chunk_size"},
    {NAME,
     "{\"attention_chunk_size\":null,\"layer_types\":[\"full_attention\",\"chunked_attention\",\"full_attention\","
     "\"full_attention\"]}",
     ERR_INVALID_MODEL, "chunked_attention, but attention_chunk_size is null"},
    {NAME, "{\"layer_types\":[\"full_attention\"]}", ERR_INVALID_MODEL, "layer_types has 1"},
    {NAME, "{\"layer_types\":[\"full_attention\",\"sliding_attention\",\"full_attention\",\"full_attention\"]}",
     ERR_UNSUPPORTED_ARCHITECTURE, "sliding_attention"},
    {NAME, "{\"hidden_act\":\"gelu\"}", ERR_UNSUPPORTED_ARCHITECTURE, "gelu"},
    {NAME, "{\"scoring_func\":\"softmax\"}", ERR_UNSUPPORTED_ARCHITECTURE, "softmax"},
    {NAME, "{\"norm_topk_prob\":true}", ERR_UNSUPPORTED_ARCHITECTURE, "norm_topk_prob"},
    {NAME,
     "{\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":16,\"low_freq_factor\":4,\"high_freq_factor\":1,"
     "\"original_max_position_embeddings\":8192}}",
     ERR_INVALID_MODEL, "high_freq_factor"},
    {NAME, "{\"model_type\":\"llama\"}", ERR_INVALID_MODEL, "contradicts"},
    {"Llama4ForConditionalGeneration", "{\"text_config\":{\"model_type\":\"llama\"}}", ERR_UNSUPPORTED_ARCHITECTURE,
     "text_config.model_type \"llama\""},
};

START_TEST(test_refused)
{
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        struct model_config c;
        check_refused(&refused[i], &c);
    }
}
END_TEST

/* Queries grow where the integer part of (position + 1) / 3 does; nothing is turned. And a stretch without a part that
 * is blended, as Scout has it: 128 columns of which those that turn less than once in 8192 positions are stretched. */
START_TEST(test_tables)
{
    float cosine[8 * 64], sine[8 * 64];
    struct model_config c;

    ck_assert_rc_ok(
        small_config(NAME,
                     "{\"floor_scale\":3,\"attn_scale\":0.5,\"rope_theta\":5e5,\"rope_scaling\":{\"rope_type\":"
                     "\"llama3\",\"factor\":16.0,\"low_freq_factor\":1.0,\"high_freq_factor\":1.0,"
                     "\"original_max_position_embeddings\":8192}}",
                     &c));
    rope_tables(&c.ropes[1], 8, cosine, sine);
    for (int t = 0; t < 8; t++) {
        for (int i = 0; i < 64; i++) {
            ck_assert_float_eq(cosine[t * 64 + i], (float)(1 + 0.5 * log(1 + (t + 1) / 3)));
            ck_assert_float_eq(sine[t * 64 + i], 0);
        }
    }
    for (int i = 0; i < 64; i++) {
        double frequency = pow(5e5, -2.0 * i / 128);
        bool stretched = 8192 * frequency / (2 * M_PI) < 1;
        ck_assert_double_eq(rope_frequency(&c.ropes[0], 8, i), stretched ? frequency / 16 : frequency);
    }
}
END_TEST

static const struct plan_group *group_of(const struct plan *plan, const char *path)
{
    int module = plan_find_module(plan, path);

    ck_assert_msg(module >= 0, "no module %s", path);
    return &plan->groups[plan->modules[module].group];
}

static int count_steps(const struct plan *plan, enum plan_step_kind kind)
{
    int count = 0;

    for (int s = 0; s < plan->step_count; s++) {
        count += plan->steps[s].kind == kind;
    }
    return count;
}

START_TEST(test_layers)
{
    struct model_config c;
    struct plans *plans;

    ck_assert_rc_ok(small_config(NAME,
                                 "{\"no_rope_layers\":[1,1,0,1],\"moe_layers\":[1,2],\"attention_chunk_size\":7,"
                                 "\"num_local_experts\":3,\"intermediate_size_mlp\":80,\"attention_bias\":true}",
                                 &c));
    ck_assert_rc_ok(plans_new(&c, &plans));
    ck_assert_int_eq(plans_kinds(plans), 3);
    const struct plan *plan = plans_layer(plans, 0);
    ck_assert_ptr_eq(plans_layer(plans, 3), plan);
    /* It rotates and has an MLP; the norms of queries and keys follow, without weights. */
    ck_assert_int_eq(plan->steps[plan_find_step(plan, STEP_ATTENTION)].attention.chunk, 7);
    int rope = plan_find_step(plan, STEP_ROPE);
    ck_assert(count_steps(plan, STEP_ROPE) == 2 && plan->steps[rope].rope.interleaved);
    ck_assert(plan->steps[rope].rope.table == 0 && plan->steps[rope + 1].rope.table == 0);
    ck_assert_int_eq(plan->norm_count, 4);
    for (int s = rope + 2; s < rope + 4; s++) {
        ck_assert_int_eq(plan->steps[s].kind, STEP_NORM);
        ck_assert_int_eq(plan->steps[s].in[0], plan->steps[s - 2].out);
        ck_assert(plan->norms[plan->steps[s].norm].path == NULL && plan->norms[plan->steps[s].norm].size == 128);
    }
    ck_assert(plan->modules[0].bias && plan->modules[3].bias && !plan->modules[4].bias);
    ck_assert(plan->modules[0].scores && plan->modules[1].scores && !plan->modules[2].scores);
    ck_assert_int_eq(plan->group_count, 4);
    ck_assert_int_eq(group_of(plan, "self_attn.k_proj")->fold.kind, FOLD_NORM);
    ck_assert_int_eq(group_of(plan, "feed_forward.up_proj")->count, 2);
    ck_assert_int_eq(group_of(plan, "feed_forward.down_proj")->fold.kind, FOLD_ROWS);
    ck_assert_int_eq(plan->modules[plan_find_module(plan, "feed_forward.down_proj")].cols, 80);

    /* It does not rotate; queries alone grow. */
    plan = plans_layer(plans, 2);
    ck_assert_int_eq(plan->steps[plan_find_step(plan, STEP_ATTENTION)].attention.chunk, 0);
    rope = plan_find_step(plan, STEP_ROPE);
    ck_assert(count_steps(plan, STEP_ROPE) == 1 && plan->norm_count == 2 && plan->steps[rope].rope.table == 1);
    ck_assert_int_eq(plan->steps[rope].in[0], plan->steps[plan->modules[0].step].out);
    plans_free(plans);
}
END_TEST

START_TEST(test_experts)
{
    static const char *const shared[] = {"feed_forward.shared_expert.gate_proj", "feed_forward.shared_expert.up_proj"};
    struct model_config c;
    struct plans *plans;

    ck_assert_rc_ok(small_config(NAME, "{\"num_local_experts\":3}", &c));
    ck_assert_rc_ok(plans_new(&c, &plans));
    const struct plan *plan = plans_layer(plans, 0);
    const struct plan_experts *experts = plan->steps[plan_find_step(plan, STEP_EXPERTS)].experts;
    ck_assert(experts->scale_input && experts->scores == SCORES_SIGMOID && experts->top_k == 1);
    /* The norm feeds the router, the shared expert and, through a factor for each token, every expert. */
    const struct plan_group *group = group_of(plan, shared[0]);
    ck_assert(group->fold.kind == FOLD_NORM && group->count == 3 && group_of(plan, shared[1]) == group);
    ck_assert(plan_reads(plan, group, plan_find_module(plan, "feed_forward.router")));
    ck_assert(plan_reads(plan, group, plan_find_module(plan, "feed_forward.experts.2.up_proj")));
    ck_assert(!plan_reads(plan, group, plan_find_module(plan, "feed_forward.experts.2.down_proj")));
    ck_assert(plan->modules[plan_find_module(plan, "feed_forward.router")].fixed);
    ck_assert_int_eq(group_of(plan, "feed_forward.experts.2.down_proj")->fold.kind, FOLD_ROWS);
    const struct plan_module *up = &plan->modules[plan_find_module(plan, "feed_forward.experts.2.up_proj")];
    ck_assert_str_eq(up->stored->weight, "feed_forward.experts.gate_up_proj");
    ck_assert(up->stored->transposed && up->stored->entries == 3 && up->stored->entry == 2);
    ck_assert(up->stored->rows.stride == 192 && up->stored->rows.first == 96 && up->stored->rows.count == 96);
    const struct plan_module *down = &plan->modules[plan_find_module(plan, "feed_forward.experts.1.down_proj")];
    ck_assert_str_eq(down->stored->weight, "feed_forward.experts.down_proj");
    ck_assert(down->stored->transposed && down->stored->rows.stride == 0 && down->rows == 64 && down->cols == 96);
    plans_free(plans);
}
END_TEST

/* --- tokens that are multiplied by their scores, in a layer made up of experts alone */

#define TOKENS 9
#define EXPERTS 3
#define HIDDEN 64 /* small_config.h */
#define WIDE 8

static enum plan_scores made_up_scores;

static int made_up_plan(const struct model_config *c, int64_t layer, struct plan_builder *b)
{
    const struct plan_experts spec = {
        .path = "experts", .count = EXPERTS, .top_k = 1, .scores = made_up_scores, .factor = 1, .scale_input = true};
    int in = plan_row_norm(b, 0, "norm", NULL), logits = plan_router(b, in, "router", NULL, EXPERTS, false);
    struct plan_builder *expert = plan_expert(b, HIDDEN);
    int up = plan_activate(expert, ACTIVATION_RELU2, plan_linear(expert, 0, "up", NULL, WIDE, false), -1);
    int out = plan_linear(expert, up, "down", NULL, HIDDEN, false);

    (void)c;
    (void)layer;
    return plan_add(b, 0, plan_experts(b, in, logits, &spec, expert, out));
}

static int made_up(struct arch *arch, struct plans **plans)
{
    struct model_config c;

    ck_assert_rc_ok(small_config("LlamaForCausalLM", "{\"num_hidden_layers\":1}", &c));
    *arch = *c.arch;
    arch->plan = made_up_plan;
    c.arch = arch;
    return plans_new(&c, plans);
}

static void fill(const struct tensor *x, uint64_t seed)
{
    for (int64_t i = 0; i < tensor_count(x); i++) {
        ((float *)x->data)[i] = support_unit(&seed);
    }
}

static void new_random(const struct gpu *gpu, struct tensor *out, int64_t rows, int64_t cols, uint64_t seed)
{
    ck_assert_rc_ok(gpu_tensor_new(gpu, DTYPE_F32, cols > 0 ? 2 : 1, (const int64_t[]){rows, cols}, out));
    fill(out, seed);
}

static double sigmoid(float logit)
{
    return 1 / (1 + exp(-(double)logit));
}

/* out[HIDDEN] = down(relu(up(score * in))^2) */
static void want_expert(const struct block *block, const struct plan_experts *experts, int expert, const float *in,
                        double score, double *out)
{
    const struct block_module *modules = &block->modules[experts->first_module + expert * 2];
    const float *up = modules[0].weight.data, *down = modules[1].weight.data;

    memset(out, 0, HIDDEN * sizeof(*out));
    for (int w = 0; w < WIDE; w++) {
        double sum = 0;
        for (int i = 0; i < HIDDEN; i++) {
            sum += (double)up[w * HIDDEN + i] * score * (double)in[i];
        }
        sum = sum > 0 ? sum * sum : 0;
        for (int i = 0; i < HIDDEN; i++) {
            out[i] += (double)down[i * WIDE + w] * sum;
        }
    }
}

static void check_tokens(const struct block *block, const struct block_values *values)
{
    const struct plan_step *step = &block->plan->steps[plan_find_step(block->plan, STEP_EXPERTS)];
    const float *in = block_value(values, step->in[0]).data, *logits = block_value(values, step->in[1]).data;
    const float *out = block_value(values, step->out).data;

    for (int t = 0; t < TOKENS; t++) {
        const float *own = logits + (int64_t)t * EXPERTS;
        double want[HIDDEN];
        int best = 0;
        for (int e = 1; e < EXPERTS; e++) {
            best = own[e] > own[best] ? e : best;
        }
        want_expert(block, step->experts, best, in + (int64_t)t * HIDDEN, sigmoid(own[best]), want);
        for (int i = 0; i < HIDDEN; i++) {
            ck_assert_double_eq_tol((double)out[t * HIDDEN + i], want[i], 1e-4 * (1 + fabs(want[i])));
        }
    }
}

/* Every token as it would come to an expert that it did not choose. */
static void check_all(const struct block *block, const struct block_values *values, int expert)
{
    const struct plan *plan = block->plan;
    const struct plan_step *step = &plan->steps[plan_find_step(plan, STEP_EXPERTS)];
    const struct plan_module *up = &plan->modules[step->experts->first_module + 2 * expert];
    const float *in = block_value(values, step->in[0]).data, *logits = block_value(values, step->in[1]).data;
    struct block_values rows;

    ck_assert_rc_ok(block_group_input(block, values, &plan->groups[up->group], true, &rows));
    ck_assert_int_eq(block_values_rows(&rows), TOKENS);
    const float *found = block_value(&rows, 0).data;
    for (int64_t i = 0; i < TOKENS * HIDDEN; i++) {
        double want = sigmoid(logits[i / HIDDEN * EXPERTS + expert]) * (double)in[i];
        ck_assert_double_eq_tol((double)found[i], want, 1e-6 * (1 + fabs(want)));
    }
}

START_TEST(test_scaled_tokens)
{
    struct block_scratch *scratch;
    struct block_values values;
    struct gpu_stream *stream;
    struct plans *plans;
    struct arch arch;
    struct gpu gpu;

    made_up_scores = SCORES_SIGMOID;
    ck_assert_rc_ok(made_up(&arch, &plans));
    ck_assert_rc_ok(gpu_open("cpu", 2, &gpu));
    ck_assert_rc_ok(gpu.ops->stream_new(gpu.device, &stream));
    const struct plan *plan = plans_layer(plans, 0);
    struct block block = {.config = plans_config(plans), .plan = plan};
    block.modules = calloc((size_t)plan->module_count, sizeof(*block.modules));
    block.norms = calloc((size_t)plan->norm_count, sizeof(*block.norms));
    for (int i = 0; i < plan->module_count; i++) {
        new_random(&gpu, &block.modules[i].weight, plan->modules[i].rows, plan->modules[i].cols, (uint64_t)(100 + i));
    }
    new_random(&gpu, &block.norms[0].weight, HIDDEN, 0, 7);
    ck_assert_rc_ok(block_scratch_new(plans, 1, TOKENS, &gpu, stream, &scratch));
    ck_assert_rc_ok(block_values_init(&values, plan, scratch, NULL));
    const struct tensor x = block_value(&values, 0);
    fill(&x, 42);
    ck_assert_rc_ok(block_run(&block, &values, PLAN_BIT(plan_find_step(plan, STEP_EXPERTS) + 1) - 1));
    check_tokens(&block, &values);
    for (int expert = 0; expert < EXPERTS; expert++) {
        check_all(&block, &values, expert);
    }
    block_scratch_free(scratch);
    block_deinit(&block, &gpu);
    gpu.ops->stream_free(stream);
    gpu_close(&gpu);
    plans_free(plans);

    made_up_scores = SCORES_SOFTMAX_ALL; /* whose scores are not an expert's own */
    ck_assert_int_eq(made_up(&arch, &plans), ERR_INTERNAL);
}
END_TEST

UNIT_MAIN("models/llama4", test_configurations, test_refused, test_tables, test_layers, test_experts,
          test_scaled_tokens)
