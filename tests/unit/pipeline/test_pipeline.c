/* The block loop on the bundled checkpoint: results depend neither on memory, nor on threads, nor on interruptions. */

#include "tests/unit/pipeline/pipeline_rig.h"

#include <sys/stat.h>

START_TEST(test_rows_and_losses)
{
    struct world w;
    world_open(&w, "gptq", 1);
    ck_assert_rc_ok(run(&w, MEMORY));
    ck_assert_uint_eq((size_t)w.rows.count, 28);
    for (size_t i = 0; i < 28; i++) {
        const struct report_row *row = &w.rows.list[i];
        ck_assert_int_eq(row->index, (int64_t)i);
        ck_assert_int_eq(row->layer, (int64_t)i / 7);
        ck_assert_int_eq(row->tokens, SEQUENCES * LENGTH);
        double relative = row->relative_mse;
        double output = row->output_relative_mse;
        ck_assert_msg(relative > 0 && relative < 0.1, "row %zu loses %g of its weights", i, relative);
        ck_assert_msg(output > 0 && output < 0.1, "row %zu loses %g of its output", i, output);
    }
    ck_assert(w.result.done);
    ck_assert_int_eq(w.result.tokens, EVAL_SEQUENCES * (LENGTH - 1));
    ck_assert_double_gt(w.result.perplexity_before, 1);
    ck_assert_double_gt(w.result.kl_mean, 0);
    ck_assert_double_lt(w.result.kl_mean, 1);
    ck_assert_double_gt(w.times.seconds[PHASE_SOLVE], 0);
    ck_assert_double_gt(w.times.flops[PHASE_STATISTICS], 0);
    world_close(&w);
}
END_TEST

START_TEST(test_spilled_is_the_same)
{
    struct world memory;
    struct world disk;
    world_open(&memory, "gptq", 1);
    world_open(&disk, "gptq", 1);
    ck_assert_rc_ok(run(&memory, MEMORY));
    ck_assert_rc_ok(run(&disk, 0));
    expect_same(&memory, &disk);
    world_close(&memory);
    world_close(&disk);
}
END_TEST

START_TEST(test_threads_do_not_matter)
{
    struct world one;
    struct world two;
    world_open(&one, "gptq", 1);
    world_open(&two, "gptq", 2);
    ck_assert_rc_ok(run(&one, MEMORY));
    ck_assert_rc_ok(run(&two, MEMORY));
    expect_same(&one, &two);
    world_close(&one);
    world_close(&two);
}
END_TEST

/* Stopped at a boundary, dropped in the middle of a block, stopped after the last: always the same end. */
START_TEST(test_resumed_is_the_same)
{
    struct world full;
    world_open(&full, "gptq", 2);
    ck_assert_rc_ok(run(&full, MEMORY));
    for (int on_disk = 0; on_disk < 2; on_disk++) {
        int64_t memory = on_disk ? 0 : MEMORY;
        struct world w;
        world_open(&w, "gptq", 2);
        w.stop_at = 0;
        ck_assert_int_eq(run(&w, memory), ERR_INTERRUPTED);
        ck_assert_int_eq(w.block_count, (int64_t)1);
        w.stop_at = -1;
        w.cancel_in = 15;
        ck_assert_int_eq(run(&w, memory), ERR_CANCELLED);
        w.cancel_in = -1;
        w.stop_at = 3;
        ck_assert_int_eq(run(&w, MEMORY - memory), ERR_INTERRUPTED);
        ck_assert_int_eq(w.block_count, (int64_t)4);
        w.stop_at = -1;
        ck_assert_rc_ok(run(&w, memory));
        expect_same(&full, &w);
        world_close(&w);
    }
    world_close(&full);
}
END_TEST

/* Whatever ends a run in the middle of a block, the blocks before it are committed, though their files may still have
 * been on their way; and the run's own error is what is said. */
START_TEST(test_finished_blocks_survive)
{
    struct world full;
    world_open(&full, "rtn", 2);
    ck_assert_rc_ok(run(&full, MEMORY));
    for (int64_t ticks = 1; ticks < 60; ticks += 6) {
        struct world w;
        world_open(&w, "rtn", 2);
        w.refusal = ERR_INTERRUPTED;
        w.cancel_in = ticks;
        int rc = run(&w, MEMORY);
        ck_assert_int_eq(rc, ERR_INTERRUPTED);
        ck_assert_str_eq(err_last()->message, "refused by the test");
        ck_assert_int_eq(w.block_count, (int64_t)w.begun - 1);
        w.cancel_in = -1;
        ck_assert_rc_ok(run(&w, MEMORY));
        expect_same(&full, &w);
        world_close(&w);
    }
    world_close(&full);
}
END_TEST

/* A file that cannot be written ends the run, with the blocks before it. */
START_TEST(test_block_that_cannot_be_written)
{
    char path[400];
    struct world w;
    world_open(&w, "rtn", 2);
    snprintf(path, sizeof(path), "%s/block-00002.safetensors.tmp", w.directory);
    ck_assert_int_eq(mkdir(path, 0700), 0);
    ck_assert_int_eq(run(&w, MEMORY), ERR_STORAGE);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "block-00002.safetensors.tmp"));
    ck_assert_int_eq(w.block_count, (int64_t)2);
    ck_assert_int_eq(rmdir(path), 0);
    ck_assert_rc_ok(run(&w, MEMORY));
    ck_assert_uint_eq((size_t)w.rows.count, 28);
    world_close(&w);
}
END_TEST

/* A quantized cache: its scales come back the same, and whatever is evaluated after an interruption still sees it. */
START_TEST(test_cache_is_resumed)
{
    struct world full, w, plain;
    world_open(&full, "gptq", 1);
    world_open(&w, "gptq", 2);
    world_open(&plain, "gptq", 2);
    full.recipe.cache = w.recipe.cache = (struct cache_scheme){DTYPE_F8_E4M3, true};
    ck_assert_rc_ok(run(&full, MEMORY));
    ck_assert_rc_ok(run(&plain, MEMORY));
    w.stop_at = 1;
    ck_assert_int_eq(run(&w, 0), ERR_INTERRUPTED);
    w.stop_at = -1;
    ck_assert_rc_ok(run(&w, MEMORY));
    expect_same(&full, &w);
    for (size_t i = 0; i < 4; i++) {
        ck_assert(same_scales(&w.caches[i], &full.caches[i]));
        ck_assert_int_eq(w.caches[i].count, 2);
        ck_assert_int_eq(plain.caches[i].count, 0);
    }
    ck_assert_double_ne(plain.result.kl_mean, full.result.kl_mean);
    world_close(&full);
    world_close(&w);
    world_close(&plain);
}
END_TEST

START_TEST(test_damaged_checkpoint_is_said)
{
    struct world w;
    char path[400];
    world_open(&w, "rtn", 1);
    w.stop_at = 1;
    ck_assert_int_eq(run(&w, MEMORY), ERR_INTERRUPTED);
    snprintf(path, sizeof(path), "%s/%s", w.directory, w.blocks[0].file);
    int fd = open(path, O_WRONLY);
    ck_assert_int_eq(pwrite(fd, "?", 1, 5000), 1);
    close(fd);
    int64_t usable = 9;
    ck_assert_int_eq(checkpoint_usable(w.directory, w.blocks, w.block_count, &usable), ERR_SOURCE_CORRUPT);
    ck_assert_int_eq(usable, 0);
    world_close(&w);
}
END_TEST

START_TEST(test_without_any_data)
{
    struct world w;
    world_open(&w, "rtn", 1);
    w.calibration.sequences = 0;
    w.evaluation.sequences = 0;
    ck_assert_rc_ok(run(&w, MEMORY));
    ck_assert_uint_eq((size_t)w.rows.count, 28);
    ck_assert(isnan(w.rows.list[0].output_relative_mse));
    ck_assert(!w.result.done);
    world_close(&w);
}
END_TEST

/* Activations are not saved after every block: the blocks after the last saved ones run again and are not committed
 * twice. */
START_TEST(test_blocks_without_chains_run_again)
{
    struct world full;
    world_open(&full, "gptq", 1);
    ck_assert_rc_ok(run(&full, MEMORY));
    for (int stop = 0; stop < 4; stop++) {
        struct world w;
        world_open(&w, "gptq", 1);
        w.stop_at = stop;
        ck_assert_int_eq(run(&w, MEMORY), ERR_INTERRUPTED);
        w.stop_at = -1;
        for (int64_t i = 0; i < w.block_count; i++) {
            w.blocks[i].activation_count = 0;
        }
        ck_assert_rc_ok(run(&w, MEMORY));
        expect_same(&full, &w);
        world_close(&w);
    }
    world_close(&full);
}
END_TEST

static void open_for_format(struct world *w, const char *format)
{
    world_open_with(w, "gptq", "{\"bits\":4,\"group_size\":32,\"sym\":true}", 2);
    w->format = format_find(format);
    ck_assert_ptr_nonnull(w->format);
}

/* A runtime that rounds inputs of its own accord is measured so; what is written stays the same. */
START_TEST(test_inputs_as_the_runtime_rounds_them)
{
    struct world plain, rounded;
    open_for_format(&plain, "gptq_v2");
    open_for_format(&rounded, "gguf");
    ck_assert_rc_ok(run(&plain, MEMORY));
    ck_assert_rc_ok(run(&rounded, MEMORY));
    for (size_t i = 0; i < 4; i++) {
        ck_assert_str_eq(plain.blocks[i].sha256, rounded.blocks[i].sha256);
    }
    ck_assert_double_eq(plain.result.perplexity_before, rounded.result.perplexity_before);
    ck_assert(plain.result.perplexity_after != rounded.result.perplexity_after);
    ck_assert_double_eq_tol(plain.result.perplexity_after / rounded.result.perplexity_after, 1, 0.02);
    world_close(&plain);
    world_close(&rounded);
}
END_TEST

UNIT_MAIN("pipeline", test_rows_and_losses, test_spilled_is_the_same, test_threads_do_not_matter,
          test_resumed_is_the_same, test_finished_blocks_survive, test_block_that_cannot_be_written,
          test_cache_is_resumed, test_damaged_checkpoint_is_said, test_without_any_data,
          test_blocks_without_chains_run_again, test_inputs_as_the_runtime_rounds_them)
