/* What is planned from headers alone is what a run takes of the device, for every method, within a tenth. */

#include "pipeline/check.h"
#include "pipeline/mixture.h"
#include "pipeline/run_plan.h"
#include "tests/unit/models/support.h"
#include "tests/unit/pipeline/pipeline_rig.h"

static struct run_plan plan_of(struct world *w)
{
    const struct run_load load = {.recipe = &w->recipe,
                                  .format = w->format,
                                  .sequences = w->calibration.sequences,
                                  .length = w->calibration.sequences > 0 ? w->calibration.length : 0,
                                  .eval_sequences = w->evaluation.sequences,
                                  .eval_length = w->evaluation.sequences > 0 ? w->evaluation.length : 0,
                                  .host_memory_bytes = MEMORY,
                                  .prompts = w->generation.prompts,
                                  .prompt_tokens = w->generation.prompt_tokens,
                                  .generated = w->generation.tokens};
    struct run_plan plan;

    ck_assert_rc_ok(recipe_bind(&w->recipe, w->model));
    ck_assert_rc_ok(run_plan_make(&load, w->model, &w->gpu.info, 0, &plan));
    return plan;
}

/* False: it is not. */
static bool measure(struct world *w, const char *what)
{
    const struct run_plan plan = plan_of(w);
    double planned = (double)run_plan_peak(&plan).device;

    int rc = run(w, MEMORY);
    ck_assert(rc == 0 || rc == ERR_INTERRUPTED);
    double took = (double)w->device_peak;
    fprintf(stderr, "%-14s planned %9.0f, took %9.0f: %.3f\n", what, planned, took, planned / took);
    return fabs(planned / took - 1) <= 0.1;
}

static const struct {
    const char *method, *quantization, *format;
    bool families; /* planned for other families, too */
} methods[] = {
    {"rtn", "{\"bits\":4,\"group_size\":64}", "compressed-tensors", true},
    {"rtn", "{\"bits\":4,\"group_size\":64,\"sym\":false,\"scale_search\":\"imatrix\"}", "compressed-tensors", false},
    {"gptq", "{\"bits\":4,\"group_size\":64,\"quality\":\"fast\"}", "compressed-tensors", false},
    {"gptq", "{\"bits\":4,\"group_size\":64,\"target_tokens\":0}", "compressed-tensors", true},
    {"gptq", "{\"bits\":4,\"group_size\":64,\"target_tokens\":0,\"refine_rounds\":1,\"resweep\":1}",
     "compressed-tensors", false},
    {"gptq", "{\"bits\":4,\"group_size\":64,\"target_tokens\":0,\"output_moments\":true}", "compressed-tensors", true},
    {"awq", "{\"group_size\":64,\"n_grid\":2}", "awq", true},
    {"smoothquant", "{}", "compressed-tensors", true},
    {"smoothquant", "{\"activation_dynamic\":false}", "compressed-tensors", false},
    {"llm_int8", "{\"llm_int8_threshold\":0}", "bitsandbytes", false},
    {"fp8", "{}", "compressed-tensors", true},
    {"nf4", "{}", "bitsandbytes", false},
    {"kmeans", "{\"bits\":3}", "dense", false},
    {"aqlm", "{\"num_codebooks\":1,\"nbits_per_codebook\":6,\"max_epochs\":1}", "aqlm", false},
    {"aqlm", "{\"num_codebooks\":2,\"nbits_per_codebook\":6,\"max_epochs\":1,\"output_moments\":true}", "aqlm", false},
    {"ggml", "{\"type\":\"q4_0\"}", "gguf", false},
    {"kv_analysis", "{}", "compressed-tensors", false},
    {"autoround", "{\"bits\":4,\"group_size\":64,\"iters\":1}", "compressed-tensors", true},
    {"qat", "{\"bits\":4,\"group_size\":64,\"epochs\":1}", "compressed-tensors", false},
};

START_TEST(every_method_is_planned)
{
    int wrong = 0;

    for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++) {
        struct world w;
        world_open_with(&w, methods[i].method, methods[i].quantization, 2);
        w.format = format_find(methods[i].format);
        w.stop_at = i == 0 ? -1 : 0; /* others take no more of later blocks */
        if (strcmp(methods[i].method, "kv_analysis") == 0) {
            w.evaluation.sequences = 0;
        }
        wrong += measure(&w, methods[i].method) ? 0 : 1;
        world_close(&w);
    }
    ck_assert_int_eq(wrong, 0);
}
END_TEST

/* Learning on the complete model takes most, after the blocks. */
START_TEST(the_end_is_planned)
{
    struct world w;

    world_open_with(&w, "qat", "{\"bits\":4,\"group_size\":64,\"epochs\":1,\"end_to_end\":true}", 2);
    w.format = format_find("compressed-tensors");
    const struct run_plan plan = plan_of(&w);
    ck_assert_int_eq(run_plan_peak(&plan).device, plan.stages[STAGE_QUANTIZING].device);
    ck_assert(measure(&w, "end_to_end"));
    world_close(&w);
}
END_TEST

/* Where nothing passes through blocks they are solved a slice of rows at a time; linears of other methods at once.
 */
START_TEST(blocks_without_sets_are_planned)
{
    static const char *const rows[][3] = {{"rtn", "{\"bits\":4,\"group_size\":64}", "compressed-tensors"},
                                          {"nf4", "{}", "bitsandbytes"},
                                          {"fp8", "{}", "compressed-tensors"},
                                          {"fp8", "{\"granularity\":\"per_tensor\"}", "compressed-tensors"}};
    int wrong = 0;

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct world w;
        world_open_with(&w, rows[i][0], rows[i][1], 2);
        w.format = format_find(rows[i][2]);
        w.calibration.sequences = w.evaluation.sequences = 0;
        wrong += measure(&w, rows[i][0]) ? 0 : 1;
        world_close(&w);
    }
    ck_assert_int_eq(wrong, 0);
}
END_TEST

static const char *const configs[] = {
    "{\"architectures\":[\"Qwen3ForCausalLM\"],\"model_type\":\"qwen3\",\"hidden_size\":256,"
    "\"intermediate_size\":512,\"num_hidden_layers\":2,\"num_attention_heads\":8,\"num_key_value_heads\":4,"
    "\"head_dim\":64,\"vocab_size\":2048,\"max_position_embeddings\":64}",
    "{\"architectures\":[\"MixtralForCausalLM\"],\"model_type\":\"mixtral\",\"hidden_size\":256,"
    "\"intermediate_size\":384,\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":4,"
    "\"vocab_size\":2048,\"max_position_embeddings\":64,\"num_local_experts\":8,\"num_experts_per_tok\":2}",
};

/* Passes that measure: the method, a mixture before its blocks, continuations after them. */
START_TEST(passes_are_planned)
{
    struct world w;
    int wrong = 0;

    world_open_with(&w, "sensitivity", "{\"group_size\":64,\"kl_tokens\":64}", 2);
    w.format = format_find("dense");
    w.evaluation.sequences = 0;
    wrong += measure(&w, "sensitivity") ? 0 : 1;
    const struct run_plan plan = plan_of(&w);
    ck_assert(plan.work[PHASE_EVALUATE] > plan.work[PHASE_FORWARD]); /* streams, one for each row */
    ck_assert(plan.work[PHASE_SOLVE] > 0 && plan.activations > 0);
    world_close(&w);
    world_open_with(&w, "gptq", "{\"group_size\":64,\"mixed_precision\":{\"bits_per_weight\":3.5}}", 2);
    w.format = format_find("compressed-tensors");
    ck_assert_rc_ok(recipe_bind(&w.recipe, w.model));
    ck_assert_rc_ok(mixture_assume(&w.recipe, w.format, w.model));
    wrong += measure(&w, "mixture") ? 0 : 1;
    world_close(&w);
    world_open_with(&w, "rtn", "{\"bits\":4,\"group_size\":64}", 2);
    const struct run_plan without = plan_of(&w);
    w.generation = (struct generation){.prompts = 2, .prompt_tokens = 16, .tokens = 8};
    wrong += measure(&w, "generation") ? 0 : 1;
    const struct run_plan with = plan_of(&w);
    ck_assert(with.work[PHASE_LOAD] > 3 * without.work[PHASE_LOAD]); /* passes over all blocks */
    ck_assert_int_eq(wrong, 0);
    world_close(&w);
}
END_TEST

/* Heads of another width than the residual stream's, norms of queries and keys; experts in turns. */
START_TEST(other_families_are_planned)
{
    int wrong = 0;

    for (size_t family = 0; family < sizeof(configs) / sizeof(configs[0]); family++) {
        struct support files;
        support_init(&files, configs[family]);
        files.dtype = DTYPE_BF16;
        support_write(&files);
        for (size_t i = 0; i < sizeof(methods) / sizeof(methods[0]); i++) {
            struct world w;
            if (!methods[i].families) {
                continue;
            }
            world_open_with(&w, methods[i].method, methods[i].quantization, 2);
            w.format = format_find(methods[i].format);
            w.stop_at = i == 0 ? -1 : 0;
            model_close(w.model);
            ck_assert_rc_ok(support_open(&files, ".", &w.model));
            wrong += measure(&w, methods[i].method) ? 0 : 1;
            world_close(&w);
        }
        support_deinit(&files);
    }
    ck_assert_int_eq(wrong, 0);
}
END_TEST

/* Activations: how many bytes there are, and where they are kept. */
START_TEST(activations_are_counted)
{
    struct world w;
    int64_t hidden = 256, attention = 256, mlp = 768;
    int64_t calibration = SEQUENCES * LENGTH, evaluation = EVAL_SEQUENCES * LENGTH;

    world_open_with(&w, "rtn", "{\"bits\":4,\"group_size\":64}", 1);
    const struct run_plan plan = plan_of(&w);
    int64_t least = (calibration * (hidden + attention + mlp) + 2 * evaluation * hidden) * (int64_t)sizeof(float);
    ck_assert_int_ge(plan.activations, least);
    ck_assert_int_le(plan.activations, 2 * least);
    ck_assert_int_eq(plan.in_memory, plan.activations);
    ck_assert_int_eq(plan.spilled, 0);
    ck_assert_int_eq(plan.saved, (calibration + 2 * evaluation) * hidden * (int64_t)sizeof(float));
    for (int i = 0; i < PHASE_CHECKPOINT; i++) {
        ck_assert_msg(plan.work[i] > 0, "no work in phase %s", pipeline_phase_names[i]);
    }
    world_close(&w);
}
END_TEST

UNIT_MAIN("run_plan", every_method_is_planned, the_end_is_planned, blocks_without_sets_are_planned, passes_are_planned,
          other_families_are_planned, activations_are_counted)
