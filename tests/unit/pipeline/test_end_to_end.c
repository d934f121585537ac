/* Learning on the complete model: without rates the bytes are those of the blocks, with them the model comes nearer to
 * the float model, and results depend neither on where activations are, nor on threads, nor on interruptions. */

#include "tests/unit/pipeline/pipeline_rig.h"

#include <math.h>

/* Scales are searched for by other tests. */
#define GRID "\"bits\":2,\"group_size\":32,\"mse_search\":false,\"float_targets\":false"
#define TUNED "\"tune_epochs\":1,\"tune_batch_size\":4"
#define WHOLE ",\"end_to_end\":true,\"e2e_epochs\":3,\"e2e_batch_size\":2"

static void open_learned(struct world *w, const char *method, const char *quantization, int threads)
{
    world_open(w, "rtn", threads);
    read_recipe(w, method, quantization);
    w->gpu.info.batch_tokens = LENGTH;
    w->evaluation = w->calibration;
}

static const struct {
    const char *method, *options, *format;
} learned[] = {
    {"[\"gptq\",\"tune\"]", GRID "," TUNED, "compressed-tensors"},
    {"\"qat\"", GRID ",\"epochs\":1,\"batch_size\":3", "compressed-tensors"},
    {"[\"smoothquant\",\"gptq\",\"tune\"]", GRID "," TUNED, "dense"},
    {"[\"kmeans\",\"tune\"]", "\"bits\":2," TUNED, "dense"},
    {"[\"kmeans\",\"tune\"]", "\"bits\":2,\"in_group_size\":4," TUNED, "dense"},
};
#define CASES (sizeof(learned) / sizeof(learned[0]))

static void run_case(struct world *w, size_t i, const char *more)
{
    char options[512];
    snprintf(options, sizeof(options), "{%s%s}", learned[i].options, more);
    open_learned(w, learned[i].method, options, 2);
    w->format = format_find(learned[i].format);
    ck_assert_rc_ok(run(w, MEMORY));
}

static void comes_nearer(size_t i)
{
    struct world blocks, w;
    run_case(&blocks, i, "");
    run_case(&w, i, WHOLE);
    const struct tune_curve *c = &w.complete;
    ck_assert(!blocks.complete.done && c->done);
    ck_assert_int_eq(blocks.replaced, 0);
    ck_assert_int_eq(w.replaced, BLOCKS);
    ck_assert_int_eq(c->steps, 3); /* 2 of 5 sequences are held out: a batch for each epoch */
    ck_assert_int_eq(c->held_out, 2);
    ck_assert_int_eq(c->count, 3);
    ck_assert_msg(c->best < c->first && c->best_step > 0, "case %zu: %g, %g before", i, c->best, c->first);
    ck_assert_msg(w.result.kl_mean < blocks.result.kl_mean, "case %zu: %g, %g before", i, w.result.kl_mean,
                  blocks.result.kl_mean);
    ck_assert_double_eq(w.result.perplexity_before, blocks.result.perplexity_before);
    for (size_t b = 0; b < BLOCKS; b++) {
        ck_assert_str_ne(w.blocks[b].sha256, blocks.blocks[b].sha256);
        ck_assert_ptr_nonnull(strstr(w.blocks[b].file, "-e2e"));
    }
    world_close(&blocks);
    world_close(&w);
}
/* Each a test of its own, since a test has its time. */
#define NEARER(name, i)  \
    START_TEST(name)     \
    {                    \
        comes_nearer(i); \
    }                    \
    END_TEST
NEARER(test_scales_come_nearer, 0)
NEARER(test_qat_comes_nearer, 1)
NEARER(test_rewritten_blocks_come_nearer, 2)
NEARER(test_tables_come_nearer, 3)
NEARER(test_codebooks_come_nearer, 4)

/* The loss that is measured is that of the artifact: of all sequences but for the last token of each, which predicts
 * nothing in the evaluation. */
START_TEST(test_measured_is_evaluated)
{
    struct world w;
    open_learned(&w, "[\"gptq\",\"tune\"]",
                 "{" GRID "," TUNED ",\"end_to_end\":true,\"e2e_epochs\":6,\"e2e_batch_size\":2}", 2);
    w.calibration.sequences = 1; /* learned from and measured */
    w.evaluation = w.calibration;
    ck_assert_rc_ok(run(&w, MEMORY));
    ck_assert_int_eq(w.complete.held_out, 0);
    ck_assert_double_lt(w.complete.best, w.complete.first);
    ck_assert_double_eq_tol(w.result.kl_mean / w.complete.best, 1, 0.05);
    world_close(&w);
}
END_TEST

/* A step takes its 36 sequences through each block 32 at a time. */
START_TEST(test_lanes_come_nearer)
{
    enum { MANY = 40 };
    static int32_t ids[MANY * LENGTH];
    struct world w;
    uint64_t seed = 9;
    ck_assert_int_lt(tune_lane(MANY, LENGTH), MANY - 4);
    for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
        ids[i] = (int32_t)(random_bits(&seed) % 2048);
    }
    open_learned(&w, "[\"gptq\",\"tune\"]",
                 "{" GRID ",\"tune_epochs\":0,\"end_to_end\":true,\"e2e_epochs\":1,\"e2e_batch_size\":36}", 2);
    w.calibration = (struct calibration_set){.ids = ids, .sequences = MANY, .length = LENGTH};
    w.evaluation.sequences = 0;
    ck_assert_rc_ok(run(&w, MEMORY));
    ck_assert_int_eq(w.complete.sequences, MANY - 4);
    ck_assert_int_eq(w.complete.best_step, 1);
    ck_assert_double_lt(w.complete.best, w.complete.first);
    world_close(&w);
}
END_TEST

START_TEST(test_no_rates_change_nothing)
{
    for (size_t i = 0; i < CASES; i += 2) {
        struct world blocks, w;
        run_case(&blocks, i, "");
        run_case(&w, i, ",\"end_to_end\":true,\"e2e_epochs\":1,\"e2e_batch_size\":2,\"e2e_lr\":0,\"e2e_norm_lr\":0");
        for (size_t b = 0; b < BLOCKS; b++) {
            ck_assert_str_eq(w.blocks[b].sha256, blocks.blocks[b].sha256);
        }
        ck_assert_double_eq(w.complete.first, w.complete.last);
        ck_assert_int_eq(w.complete.best_step, 0);
        ck_assert_double_eq(w.result.kl_mean, blocks.result.kl_mean);
        world_close(&blocks);
        world_close(&w);
    }
}
END_TEST

#define SHORT "{" GRID "," TUNED ",\"end_to_end\":true,\"e2e_epochs\":2,\"e2e_batch_size\":2}"

static void expect_same_learned(struct world *a, struct world *b)
{
    expect_same(a, b);
    ck_assert_double_eq(a->complete.first, b->complete.first);
    ck_assert_double_eq(a->complete.best, b->complete.best);
    ck_assert_double_eq(a->complete.last, b->complete.last);
}

START_TEST(test_spilled_threads_and_resumes_are_the_same)
{
    struct world full, w;
    open_learned(&full, "[\"gptq\",\"tune\"]", SHORT, 1);
    ck_assert_rc_ok(run(&full, MEMORY));

    open_learned(&w, "[\"gptq\",\"tune\"]", SHORT, 2);
    ck_assert_rc_ok(run(&w, 0)); /* nothing in memory */
    expect_same_learned(&full, &w);
    world_close(&w);

    open_learned(&w, "[\"gptq\",\"tune\"]", SHORT, 1);
    w.stop_at = BLOCKS - 1; /* before it begins */
    ck_assert_int_eq(run(&w, MEMORY), ERR_INTERRUPTED);
    w.stop_at = -1;
    for (w.cancel_in = 6; w.cancel_in < 25; w.cancel_in += 9) { /* in the middle of steps */
        int64_t ticks = w.cancel_in;
        ck_assert_int_eq(run(&w, MEMORY), ERR_CANCELLED);
        ck_assert_int_eq(w.replaced, 0);
        w.cancel_in = ticks;
    }
    w.cancel_in = -1;
    for (w.stop_again = 0; w.stop_again < BLOCKS; w.stop_again += 2) { /* between commits */
        ck_assert_int_eq(run(&w, MEMORY), ERR_INTERRUPTED);
        ck_assert_int_eq(w.replaced, w.stop_again + 1);
    }
    w.stop_again = -1;
    ck_assert_rc_ok(run(&w, MEMORY));
    ck_assert_int_eq(w.replaced, BLOCKS);
    expect_same_learned(&full, &w);
    ck_assert_rc_ok(run(&w, MEMORY)); /* everything is there */
    ck_assert_int_eq(w.replaced, BLOCKS);
    expect_same_learned(&full, &w);
    world_close(&w);
    world_close(&full);
}
END_TEST

/* Some blocks are committed by a list that is not this version's: the phase begins again, from the blocks as they are.
 */
START_TEST(test_another_list_begins_again)
{
    struct world w;
    char path[512];
    open_learned(&w, "[\"gptq\",\"tune\"]", SHORT, 2);
    w.evaluation.sequences = 0;
    w.stop_again = 1;
    ck_assert_int_eq(run(&w, MEMORY), ERR_INTERRUPTED);
    ck_assert_int_eq(w.replaced, 2);
    snprintf(path, sizeof(path), "%s/end-to-end.list", w.directory);
    ck_assert_int_eq(truncate(path, 100), 0);
    w.stop_again = -1;
    ck_assert_rc_ok(run(&w, MEMORY));
    ck_assert_int_eq(w.replaced, 2 + BLOCKS);
    ck_assert(w.complete.done && w.complete.best < w.complete.first);
    for (size_t b = 0; b < BLOCKS; b++) {
        ck_assert_ptr_nonnull(strstr(w.blocks[b].file, b < 2 ? "-e2e-again." : "-e2e."));
    }
    world_close(&w);
}
END_TEST

/* A backend whose losses are not finite from a given one on. */
static const struct gpu_ops *real_ops;
static int losses_left;
static int lost_kl(struct gpu_stream *stream, const struct tensor *dlogits, const struct tensor *logits,
                   const struct tensor *teacher, double factor, double *loss)
{
    int rc = real_ops->kl_grad(stream, dlogits, logits, teacher, factor, loss);
    *loss = losses_left-- > 0 ? *loss : NAN;
    return rc;
}

START_TEST(test_losses_that_are_not_finite)
{
    struct world blocks, w;
    struct gpu_ops ops;
    open_learned(&blocks, "[\"gptq\",\"tune\"]", "{" GRID "," TUNED "}", 2);
    ck_assert_rc_ok(run(&blocks, MEMORY));
    for (int from = 0; from <= 1; from++) { /* the first loss is one of all that is held out */
        open_learned(&w, "[\"gptq\",\"tune\"]", SHORT, 2);
        real_ops = w.gpu.ops;
        ops = *w.gpu.ops;
        ops.kl_grad = lost_kl;
        w.gpu.ops = &ops;
        losses_left = from;
        ck_assert_rc_ok(run(&w, MEMORY));
        for (size_t b = 0; b < BLOCKS; b++) {
            ck_assert_str_eq(w.blocks[b].sha256, blocks.blocks[b].sha256);
        }
        ck_assert_int_eq(w.complete.best_step, 0);
        ck_assert_ptr_nonnull(strstr(w.complete.note, from == 0 ? "nothing was learned" : "again at half the rates"));
        ck_assert(from == 0 ||
                  strstr(w.complete.note, "; the loss was not finite at step 1: what was solved was kept"));
        ck_assert(from == 0 || w.complete.last == w.complete.first);
        w.gpu.ops = real_ops;
        world_close(&w);
    }
    world_close(&blocks);
}
END_TEST

UNIT_MAIN("pipeline_end_to_end", test_scales_come_nearer, test_qat_comes_nearer, test_rewritten_blocks_come_nearer,
          test_tables_come_nearer, test_codebooks_come_nearer, test_measured_is_evaluated, test_lanes_come_nearer,
          test_no_rates_change_nothing, test_spilled_threads_and_resumes_are_the_same, test_another_list_begins_again,
          test_losses_that_are_not_finite)
