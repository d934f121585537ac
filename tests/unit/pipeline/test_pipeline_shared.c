/* The block loop where layers take keys and values of earlier ones and are given something of their tokens: results
 * depend neither on where these values are, nor on interruptions, after which a run begins with the embeddings. */

#include "tests/unit/models/support.h"
#include "tests/unit/pipeline/pipeline_rig.h"

static const char config[] =
    "{\"architectures\":[\"Gemma4ForCausalLM\"],\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":4,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"vocab_size\":100,\"head_dim\":16,\"global_head_dim\":32,"
    "\"sliding_window\":9,\"layer_types\":[\"sliding_attention\",\"full_attention\",\"sliding_attention\","
    "\"full_attention\"],\"num_kv_shared_layers\":2,\"use_double_wide_mlp\":true,\"hidden_size_per_layer_input\":32,"
    "\"vocab_size_per_layer_input\":100}";

/* With targets from the float model, so that all paths are there. */
#define AIMED "{\"bits\":4,\"group_size\":32,\"mse_search\":false,\"float_targets\":true,\"target_tokens\":0}"

/* Micro-batches of two sequences, the last of one. */
static void shared_open(struct world *w, struct support *made, const char *method, const char *quantization)
{
    world_open_with(w, method, quantization, 2);
    w->gpu.info.batch_tokens = 2 * LENGTH;
    model_close(w->model);
    support_init(made, config);
    support_write(made);
    ck_assert_rc_ok(support_open(made, ".", &w->model));
    for (size_t i = 0; i < sizeof(w->ids) / sizeof(w->ids[0]); i++) {
        w->ids[i] %= 100;
    }
}

static void shared_close(struct world *w, struct support *made)
{
    world_close(w);
    support_deinit(made);
}

/* Layers that take keys and values have no linears for them. */
static void check_rows(const struct world *w)
{
    static const int modules[BLOCKS] = {9, 9, 7, 7};
    int rows = 0;

    for (int block = 0; block < BLOCKS; block++) {
        for (int i = 0; i < modules[block]; i++, rows++) {
            ck_assert_int_lt(rows, w->rows.count);
            const struct report_row *row = &w->rows.list[rows];
            ck_assert_int_eq(row->layer, block);
            ck_assert_int_eq(row->tokens, SEQUENCES * LENGTH);
            ck_assert_msg(row->output_relative_mse > 0 && row->output_relative_mse < 0.1, "row %d loses %g", rows,
                          row->output_relative_mse);
        }
    }
    ck_assert_int_eq(rows, w->rows.count);
    ck_assert(w->result.kl_mean > 0 && w->result.kl_mean < 2);
}

static void expect_same_resumed(struct world *full, const char *method, const char *quantization, int64_t stop)
{
    static struct support made;
    struct world w;

    shared_open(&w, &made, method, quantization);
    w.stop_at = stop;
    ck_assert_int_eq(run(&w, 0), ERR_INTERRUPTED);
    ck_assert_int_eq(w.block_count, stop + 1);
    ck_assert_int_eq(w.blocks[stop].activation_count, 0);
    w.stop_at = -1;
    w.begun = 0;
    ck_assert_rc_ok(run(&w, 0));
    ck_assert_uint_eq(w.begun, BLOCKS);
    expect_same(full, &w);
    shared_close(&w, &made);
}

/* In one go in memory, and on disk with a stop before the first block that takes values, and after the last. */
START_TEST(test_gptq)
{
    static struct support made;
    struct world full;

    shared_open(&full, &made, "gptq", AIMED);
    ck_assert_rc_ok(run(&full, MEMORY));
    check_rows(&full);
    expect_same_resumed(&full, "gptq", AIMED, 1);
    expect_same_resumed(&full, "gptq", AIMED, 3);
    shared_close(&full, &made);
}
END_TEST

/* Likewise where factors are searched for and moved. */
START_TEST(test_awq)
{
    static struct support made;
    struct world full;

    shared_open(&full, &made, "awq", "{\"group_size\":32}");
    ck_assert_rc_ok(run(&full, MEMORY));
    expect_same_resumed(&full, "awq", "{\"group_size\":32}", 1);
    shared_close(&full, &made);
}
END_TEST

/* Only layers that make keys and values have a cache of their own. */
START_TEST(test_cache)
{
    static struct support made[2];
    struct world plain, w;

    shared_open(&plain, &made[0], "rtn", "{\"bits\":8,\"group_size\":32}");
    ck_assert_rc_ok(run(&plain, MEMORY));
    shared_open(&w, &made[1], "rtn", "{\"bits\":8,\"group_size\":32}");
    w.recipe.cache = (struct cache_scheme){DTYPE_F8_E4M3, true};
    ck_assert_rc_ok(run(&w, MEMORY));
    for (int i = 0; i < BLOCKS; i++) {
        ck_assert_int_eq(w.caches[i].count, i < 2 ? 2 : 0);
    }
    ck_assert_double_gt(w.result.kl_mean, plain.result.kl_mean);
    shared_close(&w, &made[1]);
    shared_close(&plain, &made[0]);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("pipeline_shared");
    TCase *tcase = tcase_create("all");

    tcase_add_test(tcase, test_gptq);
    tcase_add_test(tcase, test_awq);
    tcase_add_test(tcase, test_cache);
    tcase_set_timeout(tcase, 120);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
