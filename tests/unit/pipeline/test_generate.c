/* Greedy continuations: what a pass fixes, what repeats, and both models on the bundled checkpoint. */

#include "pipeline/generate.h"
#include "tests/unit/models/support.h"
#include "tests/unit/pipeline/pipeline_rig.h"

START_TEST(a_pass_fixes_up_to_the_first_wrong_guess)
{
    int32_t ids[5] = {1, 2, 9, 4, 5};
    const int32_t first[5] = {1, 2, 3, 7, 8}, second[5] = {1, 2, 3, 4, 6}, third[5] = {1, 2, 3, 4, 5};
    ck_assert_int_eq(generate_fix(ids, first, 0, 5), 3);
    ck_assert_mem_eq(ids, first, sizeof(ids));
    ck_assert_int_eq(generate_fix(ids, second, 3, 5), 4);
    ck_assert_mem_eq(ids, second, sizeof(ids));
    ck_assert_int_eq(generate_fix(ids, third, 4, 5), 5);
    ck_assert_mem_eq(ids, third, sizeof(ids));
    ck_assert_int_eq(generate_fix(ids, third, 0, 5), 5); /* all guesses are right */
}
END_TEST

START_TEST(agreement_and_repetition)
{
    const int32_t a[6] = {1, 2, 3, 4, 5, 6}, b[6] = {1, 2, 3, 9, 5, 6};
    const int32_t loop[6] = {7, 8, 7, 8, 7, 8}, same[4] = {3, 3, 3, 3};
    ck_assert_int_eq(generate_agreeing(a, b, 6), 3);
    ck_assert_int_eq(generate_agreeing(a, a, 6), 6);
    ck_assert_double_eq(generate_repetition(a, 6), 0);
    ck_assert_double_eq(generate_repetition(loop, 6), 0.6); /* three of five pairs */
    ck_assert_double_eq(generate_repetition(same, 4), 2.0 / 3);
    ck_assert_double_eq(generate_repetition(same, 1), 0);
}
END_TEST

static void open_generating(struct world *w, const char *method, const char *quantization)
{
    world_open_with(w, method, quantization, 1);
    w->generation = (struct generation){.prompts = 9, .prompt_tokens = 12, .tokens = 4};
}

/* A rewritten block, with rounded inputs, is read back as it was: without its norms nothing would agree. */
START_TEST(eight_bits_continue_as_the_float_model)
{
    struct world w;
    open_generating(&w, "smoothquant", "{}");
    ck_assert_rc_ok(run(&w, MEMORY));
    const struct generation_result *g = &w.result.generation;
    ck_assert_int_eq(g->prompts, EVAL_SEQUENCES);
    ck_assert_int_eq(g->prompt_tokens, 12);
    ck_assert_double_ge(g->agreement, 0.75);
    ck_assert_double_gt(w.result.top1_agreement, 0.8);
    world_close(&w);
}
END_TEST

#define SKIP_ATTENTION "{\"match\":\"*self_attn*\",\"skip\":true}"
static const char mixtral[] =
    "{\"architectures\":[\"MixtralForCausalLM\"],\"model_type\":\"mixtral\",\"hidden_size\":128,"
    "\"intermediate_size\":192,\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":4,"
    "\"vocab_size\":2048,\"max_position_embeddings\":64,\"num_local_experts\":4,\"num_experts_per_tok\":2}";

/* Of a model whose experts alone are quantized. */
static double experts_agree(struct support *files, const char *quantization)
{
    struct world w;
    open_generating(&w, "rtn", quantization);
    model_close(w.model);
    ck_assert_rc_ok(support_open(files, ".", &w.model));
    ck_assert_rc_ok(run(&w, MEMORY));
    ck_assert_int_eq(w.result.generation.prompts, EVAL_SEQUENCES);
    double agreement = w.result.generation.agreement;
    world_close(&w);
    return agreement;
}

/* Experts are read back in turns: with eight bits as they were, with two as what is left of them. */
START_TEST(experts_continue_from_their_codes)
{
    struct support files;
    support_init(&files, mixtral);
    files.dtype = DTYPE_BF16;
    support_write(&files);
    double eight = experts_agree(&files, "{\"bits\":8,\"group_size\":64,\"overrides\":[" SKIP_ATTENTION "]}");
    double two = experts_agree(&files, "{\"bits\":2,\"group_size\":64,\"overrides\":[" SKIP_ATTENTION "]}");
    ck_assert_double_ge(eight, 0.75);
    ck_assert_double_lt(two, eight);
    support_deinit(&files);
}
END_TEST

static void expect_same_generation(const struct world *a, const struct world *b)
{
    ck_assert_mem_eq(&a->result.generation, &b->result.generation, sizeof(a->result.generation));
    ck_assert_double_eq(a->result.perplexity_before, b->result.perplexity_before);
    ck_assert_double_eq(a->result.kl_mean, b->result.kl_mean);
    ck_assert_double_eq(a->result.top1_agreement, b->result.top1_agreement);
}

/* Another run in the same folder takes the float model's results over, to the same figures; damaged ones are computed.
 */
START_TEST(the_float_model_runs_once)
{
    struct world first, second;
    char path[512];
    open_generating(&first, "rtn", "{\"bits\":3,\"group_size\":64,\"mse_search\":false}");
    ck_assert_rc_ok(run(&first, MEMORY));
    const struct saved_activations *saved = saved_of(&first.blocks[BLOCKS - 1], "eval_float");
    ck_assert_ptr_nonnull(saved);
    for (int damaged = 0; damaged < 2; damaged++) {
        second = first;
        second.block_count = 0;
        second.rows = (struct report_rows){0};
        memset(second.caches, 0, sizeof(second.caches));
        second.float_model = *saved;
        if (damaged) {
            snprintf(path, sizeof(path), "%s/%s", first.directory, saved->file);
            ck_assert_int_eq(truncate(path, 64), 0);
            snprintf(path, sizeof(path), "%s/generation.ids", first.directory);
            ck_assert_int_eq(truncate(path, 64), 0);
        }
        second.result = (struct evaluation_result){.done = false};
        ck_assert_rc_ok(run(&second, MEMORY));
        expect_same_generation(&first, &second);
        const struct saved_activations *again = saved_of(&second.blocks[BLOCKS - 1], "eval_float");
        ck_assert_int_eq(again != NULL, damaged);
        report_rows_deinit(&second.rows);
        for (int i = 0; i < BLOCKS; i++) {
            cache_scales_deinit(&second.caches[i]);
        }
    }
    world_close(&first);
}
END_TEST

UNIT_MAIN("pipeline/generate", a_pass_fixes_up_to_the_first_wrong_guess, agreement_and_repetition,
          eight_bits_continue_as_the_float_model, experts_continue_from_their_codes, the_float_model_runs_once)
