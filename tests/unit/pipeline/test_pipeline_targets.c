/* The block loop with targets from the float model: the float path is the float model's, and results depend neither on
 * where its activations are, nor on threads, nor on interruptions. Micro-batches of two sequences, the last of one. */

#include "tests/unit/pipeline/pipeline_rig.h"

/* Scales are searched for by other tests. */
#define GRID "{\"bits\":3,\"group_size\":32,\"mse_search\":false,"
#define AIMED GRID "\"float_targets\":true,\"target_tokens\":0}"
#define PLAIN GRID "\"float_targets\":false}"

enum { LONG = 192 };

static void open_aimed(struct world *w, const char *quantization, int threads)
{
    static int32_t ids[SEQUENCES * LONG]; /* targets take two tokens for each of 256 inputs, and more */
    uint64_t seed = 7;
    for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
        ids[i] = (int32_t)(random_bits(&seed) % 2048);
    }
    world_open_with(w, "gptq", quantization, threads);
    w->calibration = (struct calibration_set){.ids = ids, .sequences = SEQUENCES, .length = LONG};
    w->gpu.info.batch_tokens = 2 * LONG;
}

static const char *chain_sha256(const struct world *w, size_t block, const char *name)
{
    const struct saved_activations *saved = saved_of(&w->blocks[block], name);
    return saved != NULL ? saved->sha256 : NULL;
}

/* On one and the same set, the float path is what the evaluation of the float model computes, bit for bit, and the
 * quantized path is not. */
START_TEST(test_reference_is_the_float_model)
{
    struct world w;
    open_aimed(&w, AIMED, 1);
    w.evaluation = w.calibration;
    ck_assert_rc_ok(run(&w, MEMORY));
    for (size_t i = 0; i < 3; i++) {
        const char *reference = chain_sha256(&w, i, "reference");
        ck_assert_ptr_nonnull(reference);
        ck_assert_str_eq(reference, chain_sha256(&w, i, "eval_float"));
        ck_assert_str_eq(chain_sha256(&w, i, "calibration"), chain_sha256(&w, i, "eval_quant"));
        ck_assert_str_ne(reference, chain_sha256(&w, i, "calibration"));
    }
    world_close(&w);
}
END_TEST

/* What targets are for: the set that they come from sees outputs nearer to the float model's. */
START_TEST(test_targets_come_nearer)
{
    struct world plain, aimed;
    open_aimed(&plain, PLAIN, 2);
    open_aimed(&aimed, AIMED, 2);
    plain.evaluation = plain.calibration;
    aimed.evaluation = aimed.calibration;
    ck_assert_rc_ok(run(&plain, MEMORY));
    ck_assert_rc_ok(run(&aimed, MEMORY));
    ck_assert_ptr_null(chain_sha256(&plain, 0, "reference"));
    ck_assert_msg(aimed.result.kl_mean < 0.8 * plain.result.kl_mean, "KL %g with targets, %g without",
                  aimed.result.kl_mean, plain.result.kl_mean);
    ck_assert_double_eq(aimed.result.perplexity_before, plain.result.perplexity_before);
    world_close(&plain);
    world_close(&aimed);
}
END_TEST

START_TEST(test_spilled_and_threads_are_the_same)
{
    struct world full;
    open_aimed(&full, AIMED, 1);
    ck_assert_rc_ok(run(&full, MEMORY));
    /* Nothing in memory; the quantized path's stream alone; all but the last stores. */
    const int64_t stream = (int64_t)SEQUENCES * LONG * model_config(full.model)->hidden_size * (int64_t)sizeof(float);
    const int64_t limits[] = {0, stream, 5 * stream, MEMORY};
    for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
        struct world w;
        open_aimed(&w, AIMED, 2);
        ck_assert_rc_ok(run(&w, limits[i]));
        expect_same(&full, &w);
        world_close(&w);
    }
    world_close(&full);
}
END_TEST

/* Stopped anywhere inside a block, by the daemon's end or a kill, on one tier, and gone on with on another. */
START_TEST(test_resumed_inside_a_block_is_the_same)
{
    struct world full;
    int64_t reached = 0, ticks = 3;
    open_aimed(&full, AIMED, 2);
    ck_assert_rc_ok(run(&full, MEMORY));
    for (int attempt = 0; reached < 4; attempt++, ticks += 13) { /* some 40 ticks a block */
        int64_t memory = attempt % 2 == 0 ? 0 : MEMORY;
        struct world w;
        open_aimed(&w, AIMED, 2);
        w.cancel_in = ticks;
        w.refusal = attempt % 3 == 0 ? ERR_CANCELLED : ERR_INTERRUPTED;
        int rc = run(&w, memory);
        reached = w.block_count;
        ck_assert_int_eq(rc, w.cancel_in >= 0 ? 0 : w.refusal);
        w.cancel_in = -1;
        ck_assert_rc_ok(run(&w, MEMORY - memory));
        ck_assert_int_eq(w.damaged, 0);
        expect_same(&full, &w);
        world_close(&w);
    }
    ck_assert_int_gt(ticks, 100);
    world_close(&full);
}
END_TEST

/* A checkpoint without the float path's activations, or with damaged ones, goes back to where there are some. */
START_TEST(test_without_its_chain_blocks_run_again)
{
    struct world full;
    open_aimed(&full, AIMED, 1);
    ck_assert_rc_ok(run(&full, MEMORY));
    for (int damaged = 0; damaged < 2; damaged++) {
        struct world w;
        char path[400];
        open_aimed(&w, AIMED, 1);
        w.stop_at = 1;
        ck_assert_int_eq(run(&w, MEMORY), ERR_INTERRUPTED);
        w.stop_at = -1;
        struct saved_activations *saved = (struct saved_activations *)saved_of(&w.blocks[1], "reference");
        ck_assert_ptr_nonnull(saved);
        if (damaged) {
            snprintf(path, sizeof(path), "%s/%s", w.directory, saved->file);
            int fd = open(path, O_WRONLY);
            ck_assert_int_eq(pwrite(fd, "?", 1, 1000), 1);
            close(fd);
        } else {
            saved->store[0] = '\0';
        }
        ck_assert_rc_ok(run(&w, MEMORY));
        ck_assert_int_eq(w.damaged, 1);
        expect_same(&full, &w);
        world_close(&w);
    }
    world_close(&full);
}
END_TEST

/* After a rewrite, in front of a quantized cache, for some linears only, and together with methods without targets. */
START_TEST(test_with_other_stages)
{
    static const struct {
        const char *method, *quantization;
        bool cache;
    } rows[] = {
        {"[\"awq\",\"gptq\"]", AIMED, false},
        {"\"gptq\"", AIMED, true},
        {"\"gptq\"",
         "{\"bits\":4,\"group_size\":32,\"float_targets\":true,\"target_tokens\":0,\"overrides\":["
         "{\"match\":\"*.up_proj\",\"float_targets\":false},{\"match\":\"*.o_proj\",\"skip\":true},"
         "{\"match\":\"*.down_proj\",\"method\":\"rtn\"},{\"match\":\"*layers.2*\",\"skip\":true}]}",
         false},
        {"\"rtn\"",
         "{\"bits\":4,\"group_size\":32,\"overrides\":["
         "{\"match\":\"*.down_proj\",\"method\":\"gptq\",\"float_targets\":true,\"target_tokens\":0}]}",
         false},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct world worlds[2];
        for (int k = 0; k < 2; k++) {
            struct world *w = &worlds[k];
            open_aimed(w, "{}", k + 1);
            read_recipe(w, rows[i].method, rows[i].quantization);
            w->recipe.cache = rows[i].cache ? (struct cache_scheme){DTYPE_F8_E4M3, true} : w->recipe.cache;
            w->stop_at = k == 1 ? 2 : -1;
            ck_assert_int_eq(run(w, k == 0 ? MEMORY : 0), k == 1 ? ERR_INTERRUPTED : 0);
            w->stop_at = -1;
            ck_assert_rc_ok(k == 1 ? run(w, MEMORY) : 0);
        }
        ck_assert_double_gt(worlds[0].result.kl_mean, 0);
        expect_same(&worlds[0], &worlds[1]);
        world_close(&worlds[0]);
        world_close(&worlds[1]);
    }
}
END_TEST

UNIT_MAIN("pipeline_targets", test_reference_is_the_float_model, test_targets_come_nearer,
          test_spilled_and_threads_are_the_same, test_resumed_inside_a_block_is_the_same,
          test_without_its_chain_blocks_run_again, test_with_other_stages)
