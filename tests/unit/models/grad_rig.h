#pragma once
/* Layers that have every kind of step that has a derivative, with their tensors at random, and a tape for them. */

#include "models/block_grad.h"
#include "tests/unit/models/small_config.h"
#include "tests/unit/models/support.h"

#define SEQUENCES 2
#define LENGTH 7
#define NOT_SHARED "\"hidden_size_per_layer_input\":0"

struct layer_case {
    const char *architecture, *more;
    int64_t layer;
};

static const struct layer_case cases[] = {
    {"LlamaForCausalLM", "{\"attention_bias\":true,\"mlp_bias\":true}", 0},
    {"Qwen3ForCausalLM", "{\"head_dim\":12,\"use_sliding_window\":true,\"sliding_window\":4,\"max_window_layers\":1}",
     2},
    {"Olmo2ForCausalLM", "{}", 0},
    {"Gemma2ForCausalLM",
     "{\"head_dim\":16,\"sliding_window\":3,\"attn_logit_softcapping\":2.0,\"query_pre_attn_scalar\":16}", 0},
    {"Gemma3ForCausalLM", "{\"head_dim\":16,\"sliding_window\":3,\"query_pre_attn_scalar\":16}", 0},
    {"Phi3ForCausalLM", "{\"pad_token_id\":0}", 1},
    {"GPTNeoXForCausalLM", "{}", 0},
    {"OPTForCausalLM", "{\"ffn_dim\":96,\"max_position_embeddings\":32}", 0},
    {"NemotronForCausalLM", "{}", 0},
    {"GraniteForCausalLM", "{\"residual_multiplier\":0.3,\"attention_multiplier\":0.2}", 0},
    {"MixtralForCausalLM", "{\"num_local_experts\":4,\"num_experts_per_tok\":2}", 0},
    {"Qwen3MoeForCausalLM",
     "{\"num_experts\":5,\"num_experts_per_tok\":2,\"moe_intermediate_size\":24,\"head_dim\":12}", 0},
    {"Qwen2MoeForCausalLM",
     "{\"num_experts\":4,\"num_experts_per_tok\":2,\"moe_intermediate_size\":24,\"shared_expert_intermediate_size\":"
     "40}",
     0},
    {"DeepseekV3ForCausalLM",
     "{\"kv_lora_rank\":32,\"num_key_value_heads\":4,\"qk_rope_head_dim\":8,\"qk_nope_head_dim\":16,\"v_head_dim\":20,"
     "\"q_lora_rank\":24,\"n_routed_experts\":8,\"moe_intermediate_size\":24,\"num_experts_per_tok\":2,\"n_group\":4,"
     "\"topk_group\":2,\"first_k_dense_replace\":1}",
     2},
    {"GptOssForCausalLM",
     "{\"num_local_experts\":4,\"num_experts_per_tok\":2,\"intermediate_size\":24,\"head_dim\":16,\"sliding_window\":"
     "3}",
     0},
    {"Llama4ForCausalLM",
     "{\"num_local_experts\":3,\"num_experts_per_tok\":2,\"intermediate_size\":24,\"intermediate_size_mlp\":40,"
     "\"head_dim\":16,\"attention_chunk_size\":3}",
     0},
    {"Gemma4ForCausalLM",
     "{" NOT_SHARED
     ",\"head_dim\":16,\"global_head_dim\":32,\"num_global_key_value_heads\":1,\"attention_k_eq_v\":true,"
     "\"enable_moe_block\":true,\"num_experts\":4,\"top_k_experts\":2,\"moe_intermediate_size\":24,\"layer_types\":["
     "\"sliding_attention\",\"full_attention\",\"sliding_attention\",\"full_attention\"]}",
     1},
    /* A layer that gives its keys and values, and one that takes them. */
    {"Gemma4ForCausalLM",
     "{" NOT_SHARED ",\"head_dim\":16,\"num_kv_shared_layers\":2,\"layer_types\":[\"sliding_attention\","
     "\"full_attention\",\"sliding_attention\",\"full_attention\"]}",
     0},
    {"Gemma4ForCausalLM",
     "{" NOT_SHARED ",\"head_dim\":16,\"num_kv_shared_layers\":2,\"layer_types\":[\"sliding_attention\","
     "\"full_attention\",\"sliding_attention\",\"full_attention\"]}",
     2},
};
#define CASES ((int)(sizeof(cases) / sizeof(cases[0])))

/* A layer with its tape, and gradients of all that it has. */
struct rig {
    struct plans *plans;
    struct gpu gpu;
    struct gpu_stream *stream;
    struct block block;
    struct block_tape *tape;
    struct block_grads grads;
};

static inline void rig_tensor(const struct rig *rig, struct tensor *out, int rank, const int64_t *shape, double scale,
                              double mean, uint64_t seed)
{
    ck_assert_rc_ok(gpu_tensor_new(&rig->gpu, DTYPE_F32, rank, shape, out));
    for (int64_t i = 0; i < tensor_count(out); i++) {
        ((float *)out->data)[i] = (float)(mean + scale * (double)support_unit(&seed));
    }
}

static inline void rig_block(struct rig *rig, int64_t layer)
{
    const struct plan *plan = plans_layer(rig->plans, layer);

    rig->block = (struct block){.index = layer, .config = plans_config(rig->plans), .plan = plan};
    rig->block.modules = calloc((size_t)plan->module_count, sizeof(*rig->block.modules));
    rig->block.norms = calloc((size_t)plan->norm_count, sizeof(*rig->block.norms));
    rig->block.parameters = calloc((size_t)plan->parameter_count, sizeof(*rig->block.parameters));
    for (int i = 0; i < plan->module_count; i++) {
        const struct plan_module *m = &plan->modules[i];
        rig_tensor(rig, &rig->block.modules[i].weight, 2, (const int64_t[]){m->rows, m->cols}, 0.25, 0,
                   (uint64_t)(100 + 2 * i));
        if (m->bias) {
            rig_tensor(rig, &rig->block.modules[i].bias, 1, &m->rows, 0.3, 0, (uint64_t)(101 + 2 * i));
        }
    }
    for (int i = 0; i < plan->norm_count; i++) {
        if (plan->norms[i].path != NULL) {
            rig_tensor(rig, &rig->block.norms[i].weight, 1, &plan->norms[i].size, 0.4, 1, (uint64_t)(7000 + 2 * i));
        }
        if (plan->norms[i].bias) {
            rig_tensor(rig, &rig->block.norms[i].bias, 1, &plan->norms[i].size, 0.3, 0, (uint64_t)(7001 + 2 * i));
        }
    }
    for (int i = 0; i < plan->parameter_count; i++) {
        rig_tensor(rig, &rig->block.parameters[i], plan->parameters[i].rank, plan->parameters[i].shape, 0.4, 0.7,
                   (uint64_t)(8000 + i));
    }
}

/* Gradients of everything, as zeros. */
static inline struct block_grads rig_grads(const struct rig *rig)
{
    const struct plan *plan = rig->block.plan;
    struct block_grads grads = {.modules = calloc((size_t)plan->module_count, sizeof(*grads.modules)),
                                .norms = calloc((size_t)plan->norm_count + 1, sizeof(*grads.norms)),
                                .sinks = calloc((size_t)plan->parameter_count + 1, sizeof(*grads.sinks))};

    for (int i = 0; i < plan->module_count; i++) {
        const struct block_module *m = &rig->block.modules[i];
        rig_tensor(rig, &grads.modules[i].weight, 2, m->weight.shape, 0, 0, 1);
        rig_tensor(rig, &grads.modules[i].bias, 1, m->weight.shape, 0, 0, 1);
    }
    for (int i = 0; i < plan->norm_count; i++) {
        const struct block_norm *norm = &rig->block.norms[i];
        if (norm->weight.data != NULL) {
            rig_tensor(rig, &grads.norms[i].weight, 1, norm->weight.shape, 0, 0, 1);
        }
        if (norm->bias.data != NULL) {
            rig_tensor(rig, &grads.norms[i].bias, 1, norm->bias.shape, 0, 0, 1);
        }
    }
    for (int s = 0; s < plan->step_count; s++) {
        const struct plan_step *step = &plan->steps[s];
        if (step->kind == STEP_ATTENTION && step->attention.has_sinks) {
            rig_tensor(rig, &grads.sinks[step->attention.sinks], 1, &step->attention.heads, 0, 0, 1);
        }
    }
    return grads;
}

static inline void rig_free_grads(const struct rig *rig, struct block_grads *grads)
{
    for (int i = 0; i < rig->block.plan->module_count; i++) {
        gpu_tensor_free(&rig->gpu, &grads->modules[i].weight);
        gpu_tensor_free(&rig->gpu, &grads->modules[i].bias);
    }
    for (int i = 0; i < rig->block.plan->norm_count; i++) {
        gpu_tensor_free(&rig->gpu, &grads->norms[i].weight);
        gpu_tensor_free(&rig->gpu, &grads->norms[i].bias);
    }
    for (int i = 0; i < rig->block.plan->parameter_count; i++) {
        gpu_tensor_free(&rig->gpu, &grads->sinks[i]);
    }
    free(grads->modules);
    free(grads->norms);
    free(grads->sinks);
}

static inline void rig_open(struct rig *rig, const struct layer_case *row, int64_t sequences, int threads, bool rounds)
{
    struct model_config c;

    memset(rig, 0, sizeof(*rig));
    ck_assert_rc_ok(small_config(row->architecture, row->more, &c));
    ck_assert_rc_ok(plans_new(&c, &rig->plans));
    ck_assert_rc_ok(gpu_open("cpu", threads, &rig->gpu));
    ck_assert_rc_ok(rig->gpu.ops->stream_new(rig->gpu.device, &rig->stream));
    rig_block(rig, row->layer);
    const struct block_tape_spec spec = {
        .plans = rig->plans, .sequences = sequences, .length = LENGTH, .rounds = rounds};
    ck_assert_rc_ok(block_tape_new(&spec, &rig->gpu, rig->stream, &rig->tape));
    rig->grads = rig_grads(rig);
}

static inline void rig_close(struct rig *rig)
{
    rig_free_grads(rig, &rig->grads);
    block_tape_free(rig->tape);
    block_deinit(&rig->block, &rig->gpu);
    rig->gpu.ops->stream_free(rig->stream);
    gpu_close(&rig->gpu);
    plans_free(rig->plans);
}

/* The numbers of sequences [first, first + count) of a value: its content, or what the loss multiplies it by. */
static inline void fill_value(const struct tensor *x, int value, int64_t first, double scale)
{
    uint64_t seed = (uint64_t)(1000 * value + 17);

    for (int64_t i = -first * LENGTH * x->shape[1]; i < tensor_count(x); i++) {
        float number = (float)(scale * (double)support_unit(&seed));
        if (i >= 0) {
            ((float *)x->data)[i] = number;
        }
    }
}

static inline plan_set result_values(const struct plan *plan)
{
    return plan->given | PLAN_BIT(plan->output);
}

static inline void run_forward(const struct rig *rig, int64_t first, int64_t count)
{
    const struct plan *plan = rig->block.plan;

    ck_assert_rc_ok(block_tape_begin(rig->tape, plan, count, NULL));
    for (int v = 0; v < plan->value_count; v++) {
        if ((plan->inputs & PLAN_BIT(v)) != 0) {
            const struct tensor x = block_tape_value(rig->tape, v);
            fill_value(&x, v, first, 2);
        }
    }
    ck_assert_rc_ok(block_tape_forward(&rig->block, rig->tape));
}

/* Of the loss sum c * value over all that the layer gives. */
static inline void run_backward(const struct rig *rig, const struct block_grads *grads, plan_set want, int64_t first)
{
    const struct plan *plan = rig->block.plan;

    for (int v = 0; v < plan->value_count; v++) {
        if ((result_values(plan) & PLAN_BIT(v)) != 0) {
            const struct tensor d = block_tape_gradient(rig->tape, v);
            for (int64_t i = 0; i < tensor_count(&d); i++) {
                ck_assert_float_eq(((const float *)d.data)[i], 0);
            }
            fill_value(&d, v + 64, first, 1);
        }
    }
    ck_assert_rc_ok(block_tape_backward(&rig->block, rig->tape, grads, want));
}
