/* Learning on solved blocks: without a step the bytes are the solver's, what is kept never loses more than that, and
 * results depend neither on where activations are, nor on threads, nor on interruptions. */

#include "tests/unit/pipeline/pipeline_rig.h"

#include <math.h>

/* Scales are searched for by other tests. */
#define GRID "\"bits\":3,\"group_size\":32,\"mse_search\":false,\"float_targets\":false"
#define W4A8 "\"bits\":4,\"group_size\":-1,\"smoothing_strength\":0.5,\"mse_search\":false,\"float_targets\":false"
#define SHORT "{" GRID ",\"iters\":6,\"batch_size\":4,\"lr\":0.02,\"scale_lr\":0.002}"

static void open_tuned(struct world *w, const char *method, const char *quantization, int threads)
{
    world_open(w, "rtn", threads);
    read_recipe(w, method, quantization);
    w->gpu.info.batch_tokens = 2 * LENGTH;
}

/* Bytes of every block as those of another world. */
static void expect_same_blocks(const struct world *a, const struct world *b)
{
    ck_assert_int_eq(a->block_count, BLOCKS);
    for (size_t i = 0; i < BLOCKS; i++) {
        ck_assert_str_eq(a->blocks[i].sha256, b->blocks[i].sha256);
    }
}

START_TEST(test_no_step_changes_nothing)
{
    static const char *const learned[][2] = {
        {"\"autoround\"", "{" GRID ",\"iters\":0}"},
        {"\"qat\"", "{" GRID ",\"epochs\":0}"},
        {"[\"gptq\",\"tune\"]", "{" GRID ",\"tune_epochs\":0}"},
        {"\"autoround\"", "{" GRID ",\"iters\":2,\"lr\":1e-12,\"scale_lr\":0}"}, /* codes come back from latents */
    };
    struct world solved, w;
    open_tuned(&solved, "\"gptq\"", "{" GRID "}", 2);
    ck_assert_rc_ok(run(&solved, MEMORY));
    ck_assert(!solved.curves[0].done);
    for (size_t i = 0; i < sizeof(learned) / sizeof(learned[0]); i++) {
        open_tuned(&w, learned[i][0], learned[i][1], 2);
        ck_assert_rc_ok(run(&w, MEMORY));
        expect_same_blocks(&solved, &w);
        ck_assert_double_eq(solved.result.kl_mean, w.result.kl_mean);
        world_close(&w);
    }
    world_close(&solved);
}
END_TEST

static void expect_falling(const struct world *w)
{
    int learned = 0;
    for (size_t i = 0; i < BLOCKS; i++) {
        const struct tune_curve *c = &w->curves[i];
        ck_assert(c->done && c->count > 0 && c->bytes > 0);
        ck_assert_msg(c->best <= c->first, "block %zu: %g, %g as solved", i, c->best, c->first);
        ck_assert(c->best_step > 0 ? c->best < c->first : c->best == c->first);
        learned += c->best_step > 0;
    }
    ck_assert_msg(learned > 0, "%s learned nothing: %g at first, %g at last", w->recipe.name, w->curves[0].first,
                  w->curves[0].last);
}

/* On the set that they learn from, blocks of all methods come nearer to the float model's than what they start from.
 * The logits need not, with so few tokens of no meaning. */
static const char *const learned_methods[][2] = {
    {"\"autoround\"", "{" GRID ",\"iters\":12,\"batch_size\":5,\"lr\":0.02,\"scale_lr\":0.002}"},
    {"\"autoround\"", "{" GRID ",\"iters\":30,\"batch_size\":5,\"start\":\"rtn\"}"},
    {"\"qat\"", "{" GRID ",\"epochs\":12,\"batch_size\":3,\"lr\":0.02,\"scale_lr\":0.005}"},
    {"[\"gptq\",\"tune\"]", "{" GRID ",\"tune_epochs\":10,\"tune_batch_size\":5}"},
    {"[\"kmeans\",\"tune\"]", "{\"bits\":2,\"tune_epochs\":10,\"tune_batch_size\":5}"},
    {"[\"kmeans\",\"tune\"]", "{\"bits\":2,\"in_group_size\":4,\"tune_epochs\":10,\"tune_batch_size\":5}"},
    {"[\"smoothquant\",\"autoround\"]", "{" W4A8 ",\"iters\":12,\"batch_size\":5,\"lr\":0.02,\"scale_lr\":0.002}"},
    {"[\"smoothquant\",\"autoround\"]", "{" W4A8 ",\"activation_dynamic\":false,\"input_range\":\"absmax\",\"iters\":"
                                        "12,\"batch_size\":5,\"lr\":0.02,\"scale_lr\":0.002}"},
};
static const char *const starts[][2] = {
    {"\"gptq\"", "{" GRID "}"},
    {"\"rtn\"", "{\"bits\":3,\"group_size\":32}"},
    {"\"gptq\"", "{" GRID "}"},
    {"\"gptq\"", "{" GRID "}"},
    {"\"kmeans\"", "{\"bits\":2}"},
    {"\"kmeans\"", "{\"bits\":2,\"in_group_size\":4}"},
    {"[\"smoothquant\",\"gptq\"]", "{" W4A8 "}"},
    {"[\"smoothquant\",\"gptq\"]", "{" W4A8 ",\"activation_dynamic\":false,\"input_range\":\"absmax\"}"},
};
#define QUANTIZED_INPUTS 6 /* from here on */

static void comes_nearer(size_t i)
{
    struct world w, solved;
    open_tuned(&w, learned_methods[i][0], learned_methods[i][1], 2);
    open_tuned(&solved, starts[i][0], starts[i][1], 2);
    w.format = solved.format = i < 4 ? w.format : format_find("dense");
    w.evaluation = w.calibration;
    solved.evaluation = solved.calibration;
    ck_assert_rc_ok(run(&w, MEMORY));
    ck_assert_rc_ok(run(&solved, MEMORY));
    expect_falling(&w);
    ck_assert_msg(w.result.kl_mean < 1.1 * solved.result.kl_mean, "KL %g, %g as solved", w.result.kl_mean,
                  solved.result.kl_mean);
    for (size_t b = 0; b < BLOCKS - 1; b++) { /* the float path is the float model's, bit for bit */
        ck_assert_str_eq(saved_of(&w.blocks[b], "tuning")->sha256, saved_of(&w.blocks[b], "eval_float")->sha256);
        ck_assert_str_eq(saved_of(&w.blocks[b], "calibration")->sha256, saved_of(&w.blocks[b], "eval_quant")->sha256);
    }
    world_close(&w);
    world_close(&solved);
}

START_TEST(test_learning_comes_nearer)
{
    for (size_t i = 0; i < QUANTIZED_INPUTS; i++) {
        comes_nearer(i);
    }
}
END_TEST

/* Steps go by inputs as a runtime quantizes them, of each token or by one range for all, and straight through that. */
START_TEST(test_quantized_inputs_come_nearer)
{
    for (size_t i = QUANTIZED_INPUTS; i < sizeof(starts) / sizeof(starts[0]); i++) {
        comes_nearer(i);
    }
}
END_TEST

START_TEST(test_spilled_threads_and_resumes_are_the_same)
{
    struct world full, w;
    open_tuned(&full, "\"autoround\"", SHORT, 1);
    ck_assert_rc_ok(run(&full, MEMORY));
    expect_falling(&full);

    open_tuned(&w, "\"autoround\"", SHORT, 2);
    ck_assert_rc_ok(run(&w, 0)); /* nothing in memory */
    expect_same(&full, &w);
    world_close(&w);

    open_tuned(&w, "\"autoround\"", SHORT, 1);
    w.stop_at = 1;
    ck_assert_int_eq(run(&w, MEMORY), ERR_INTERRUPTED);
    w.stop_at = -1;
    for (w.cancel_in = 60; w.block_count < 3; w.cancel_in += 20) { /* in the middle of blocks, and of steps */
        ck_assert_int_eq(run(&w, MEMORY), ERR_CANCELLED);
        ck_assert_int_lt(w.cancel_in, 1000);
    }
    w.cancel_in = -1;
    ck_assert_rc_ok(run(&w, MEMORY));
    expect_same(&full, &w);
    world_close(&w);
    world_close(&full);
}
END_TEST

/* Gradients have the same sums whatever a device has memory for: a step takes its 36 sequences 32 at a time. */
START_TEST(test_micro_batches_are_the_same)
{
    enum { MANY = 36 };
    static const int64_t batches[] = {8, 4, 1};
    static int32_t ids[MANY * LENGTH];
    struct world w[3];
    uint64_t seed = 9;
    ck_assert_int_lt(tune_lane(MANY, LENGTH), MANY);
    for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
        ids[i] = (int32_t)(random_bits(&seed) % 2048);
    }
    for (size_t i = 0; i < 3; i++) {
        open_tuned(&w[i], "[\"gptq\",\"tune\"]", "{" GRID ",\"tune_epochs\":3,\"tune_batch_size\":36}", 2);
        w[i].gpu.info.batch_tokens = batches[i] * LENGTH;
        w[i].calibration = (struct calibration_set){.ids = ids, .sequences = MANY, .length = LENGTH};
        w[i].evaluation.sequences = 0;
        w[i].stop_at = 0;
        ck_assert_int_eq(run(&w[i], MEMORY), ERR_INTERRUPTED);
        ck_assert_int_gt(w[i].curves[0].best_step, 0);
        ck_assert_double_eq(w[i].curves[0].best, w[0].curves[0].best);
        ck_assert_int_eq(w[i].curves[0].bytes, w[0].curves[0].bytes);
        ck_assert_str_eq(w[i].blocks[0].sha256, w[0].blocks[0].sha256);
    }
    for (size_t i = 0; i < 3; i++) {
        world_close(&w[i]);
    }
}
END_TEST

/* A backend whose losses are not finite from a given one on. */
static const struct gpu_ops *real_ops;
static int losses_left;
static int lost_mse(struct gpu_stream *stream, const struct tensor *dy, const struct tensor *y,
                    const struct tensor *target, double factor, double *loss)
{
    int rc = real_ops->mse_grad(stream, dy, y, target, factor, loss);
    *loss = losses_left-- > 0 ? *loss : NAN;
    return rc;
}

/* Batches shuffle sequences, and losses are compared: they are of the same ones in the same order. */
START_TEST(test_losses_are_of_the_same_sequences)
{
    struct world w;
    open_tuned(&w, "[\"gptq\",\"tune\"]", "{" GRID ",\"tune_epochs\":4,\"tune_batch_size\":2,\"tune_lr\":1e-30}", 2);
    ck_assert_rc_ok(run(&w, MEMORY));
    for (size_t i = 0; i < BLOCKS; i++) {
        ck_assert_int_gt(w.curves[i].steps, 0);
        ck_assert_int_eq(w.curves[i].best_step, 0);
        ck_assert_double_eq(w.curves[i].first, w.curves[i].last);
    }
    world_close(&w);
}
END_TEST

START_TEST(test_losses_that_are_not_finite)
{
    struct world solved, w;
    struct gpu_ops ops;
    open_tuned(&solved, "\"gptq\"", "{" GRID "}", 2);
    ck_assert_rc_ok(run(&solved, MEMORY));
    for (int from = 0; from <= 1; from++) { /* all sequences at once are the first loss */
        open_tuned(&w, "\"autoround\"", SHORT, 2);
        real_ops = w.gpu.ops;
        ops = *w.gpu.ops;
        ops.mse_grad = lost_mse;
        w.gpu.ops = &ops;
        losses_left = from;
        ck_assert_rc_ok(run(&w, MEMORY));
        expect_same_blocks(&solved, &w);
        ck_assert_int_eq(w.curves[0].best_step, 0);
        ck_assert(from == 0 ? isnan(w.curves[0].best) : w.curves[0].best == w.curves[0].first);
        ck_assert_ptr_nonnull(strstr(w.curves[0].note, from == 0 ? "nothing was learned" : "again at half the rates"));
        ck_assert(from == 0 || strstr(w.curves[0].note, "the solver's result was kept") != NULL);
        w.gpu.ops = real_ops;
        world_close(&w);
    }
    world_close(&solved);
}
END_TEST

/* Rows are about what is stored, of a block that learned. */
START_TEST(test_rows_are_measured_again)
{
    struct world solved, w;
    int lower = 0;
    open_tuned(&solved, "\"gptq\"", "{" GRID "}", 2);
    open_tuned(&w, "\"autoround\"", SHORT, 2);
    ck_assert_rc_ok(run(&solved, MEMORY));
    ck_assert_rc_ok(run(&w, MEMORY));
    ck_assert_int_eq(w.rows.count, solved.rows.count);
    for (int i = 0; i < w.rows.count; i++) {
        const struct report_row *row = &w.rows.list[i], *before = &solved.rows.list[i];
        ck_assert_str_eq(row->module, before->module);
        ck_assert_str_eq(row->method, "autoround");
        ck_assert(isfinite(row->relative_mse) && isfinite(row->output_relative_mse));
        lower += w.curves[row->layer].best_step > 0 && row->relative_mse != before->relative_mse;
    }
    ck_assert_int_gt(lower, 0);
    world_close(&solved);
    world_close(&w);
}
END_TEST

UNIT_MAIN("pipeline_tune", test_no_step_changes_nothing, test_learning_comes_nearer, test_quantized_inputs_come_nearer,
          test_spilled_threads_and_resumes_are_the_same, test_micro_batches_are_the_same,
          test_losses_are_of_the_same_sequences, test_losses_that_are_not_finite, test_rows_are_measured_again)
