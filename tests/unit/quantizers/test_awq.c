/* AWQ in a block: the function stays, what is scored never gets worse, and what cannot be moved is left alone; the
 * clip search in solve. */

#include "tests/unit/llama_layer.h"
#include "tests/unit/models/support.h"
#include "tests/unit/quantizers/support.h"

#define SEQUENCES 2
#define LENGTH 400 /* all stages of a search have tokens of their own */
#define TOKENS (SEQUENCES * LENGTH)
#define BATCHES 3

static const char *const llama =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":1,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":4,\"vocab_size\":10,\"attention_bias\":true}";
static const char *const grouped =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":1,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"vocab_size\":10}";

/* A block, and the hidden activations that come to it. */
struct fixture {
    struct support support;
    struct rig rig;
    struct model *model;
    struct block block, original;
    struct block_scratch *scratch;
    struct tensor x[BATCHES], m;
    int group;
    struct qscheme scheme;
    int skipped; /* module that stays in float, -1 = none, LLAMA_MODULES = all */
    int ticks, stop_at;
};

static void fixture_open(struct fixture *h, const char *config, int bits, int threads)
{
    memset(h, 0, sizeof(*h));
    support_init(&h->support, config);
    h->support.dtype = DTYPE_BF16;
    support_write(&h->support);
    ck_assert_rc_ok(support_open(&h->support, ".", &h->model));
    rig_open(&h->rig, threads);
    ck_assert_rc_ok(block_load(h->model, 0, &h->rig.gpu, h->rig.stream, NULL, &h->block));
    ck_assert_rc_ok(block_load(h->model, 0, &h->rig.gpu, h->rig.stream, NULL, &h->original));
    ck_assert_rc_ok(
        block_scratch_new(model_plans(h->model), SEQUENCES, LENGTH, &h->rig.gpu, h->rig.stream, &h->scratch));
    for (int b = 0; b < BATCHES; b++) {
        h->x[b] = rig_random(&h->rig, TOKENS, 64, 100 + (uint64_t)b);
        for (int64_t i = 0; i < TOKENS * 64; i++) { /* a few large inputs, as trained models have */
            floats(&h->x[b])[i] *= i % 64 == 5 || i % 64 == 40 ? 25.0f : 1.0f;
        }
    }
    h->m = rig_tensor(&h->rig, DTYPE_F32, TOKENS, 64);
    h->scheme = (struct qscheme){.kind = QTENSOR_INT, .bits = bits, .group_size = 32, .scale_dtype = DTYPE_F16};
    h->skipped = -1;
    h->stop_at = -1;
}

static void fixture_close(struct fixture *h)
{
    for (int b = 0; b < BATCHES; b++) {
        gpu_tensor_free(&h->rig.gpu, &h->x[b]);
    }
    gpu_tensor_free(&h->rig.gpu, &h->m);
    block_scratch_free(h->scratch);
    block_deinit(&h->block, &h->rig.gpu);
    block_deinit(&h->original, &h->rig.gpu);
    rig_close(&h->rig);
    model_close(h->model);
    support_deinit(&h->support);
}

/* Values up to `want` of this block, from what comes to it; valid until the next call. */
static struct block_values values_to(struct fixture *h, const struct block *block, int64_t i, int want)
{
    struct block_values values;
    plan_set steps, used;

    memcpy(h->m.data, h->x[i].data, tensor_bytes(&h->m));
    ck_assert_rc_ok(block_values_init(&values, block->plan, h->scratch, NULL));
    block_value_bind(&values, 0, h->m.data);
    ck_assert(plan_steps(block->plan, PLAN_BIT(0), PLAN_BIT(want), &steps, &used));
    ck_assert_rc_ok(block_run(block, &values, steps));
    return values;
}

static int give_input(void *data, int64_t i, struct block_values *values)
{
    struct fixture *h = data;
    ck_assert(i >= 0 && i < BATCHES);
    *values = values_to(h, &h->block, i, h->block.plan->groups[h->group].input);
    return 0;
}

static const struct qscheme *give_scheme(void *data, int module)
{
    struct fixture *h = data;
    return h->skipped == LLAMA_MODULES || h->skipped == module ? NULL : &h->scheme;
}

static int count_tick(void *data)
{
    struct fixture *h = data;
    return h->ticks++ == h->stop_at ? ERR_CANCELLED : 0;
}

static int rewrite(struct fixture *h, int number, const char *text)
{
    const struct quantizer *awq = quantizer_find("awq");
    void *params = params_new(awq, text);
    struct layer_stats stats;

    const struct plan_group *group = &h->block.plan->groups[number];
    h->group = number;
    ck_assert_rc_ok(stats_init(&stats, awq->rewrite_stats, group->columns, &h->rig.gpu));
    for (int b = 0; b < BATCHES; b++) {
        struct block_values values = values_to(h, &h->block, b, group->input);
        struct tensor in = block_value(&values, group->input);
        ck_assert_rc_ok(stats_add(&stats, &h->rig.gpu, h->rig.stream, &in));
    }
    ck_assert_rc_ok(stats_finish(&stats, &h->rig.gpu, h->rig.stream));
    const struct rewrite_context context = {.gpu = &h->rig.gpu,
                                            .stream = h->rig.stream,
                                            .params = params,
                                            .weight_dtype = DTYPE_BF16,
                                            .group = group,
                                            .block = &h->block,
                                            .stats = &stats,
                                            .batches = BATCHES,
                                            .input = give_input,
                                            .input_data = h,
                                            .scheme = give_scheme,
                                            .scheme_data = h,
                                            .tick = count_tick,
                                            .tick_data = h};
    int rc = awq->rewrite(&context);
    stats_deinit(&stats, &h->rig.gpu);
    params_free(awq, params);
    return rc;
}

static void block_output(struct fixture *h, const struct block *block, int b, float *out)
{
    (void)values_to(h, block, b, block->plan->output);
    memcpy(out, h->m.data, tensor_bytes(&h->m));
}

static double distance(const float *a, const float *b, int64_t count)
{
    double error = 0, signal = 0;
    for (int64_t i = 0; i < count; i++) {
        error += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        signal += (double)b[i] * (double)b[i];
    }
    return sqrt(error / signal);
}

/* What the group's branch loses against the float block when the group's modules are rounded to nearest. */
static double scored_loss(struct fixture *h, const struct block *block, int number)
{
    const struct plan_group *group = &block->plan->groups[number];
    struct tensor copies[LLAMA_MODULES] = {0};
    struct block rounded;
    plan_set steps, used;
    double lost = 0;

    ck_assert_rc_ok(block_view(block, &rounded));
    ck_assert(plan_steps(block->plan, PLAN_BIT(group->input), PLAN_BIT(group->branch), &steps, &used));
    for (int i = 0; i < group->count; i++) {
        int module = group->modules[i];
        struct linear_job job = solve_one(&h->rig, "rtn",
                                          h->scheme.bits == 3 ? "{\"bits\":3,\"group_size\":32,\"sym\":false}"
                                                              : "{\"bits\":4,\"group_size\":32,\"sym\":false}",
                                          DTYPE_F16, NULL, &block->modules[module].weight);
        copies[module] = rig_tensor(&h->rig, DTYPE_F32, job.result.rows, job.result.cols);
        qtensor_dequantize(&job.result, copies[module].data);
        rounded.modules[module].weight = copies[module];
        qtensor_deinit(&job.result);
    }
    for (int b = 0; b < BATCHES; b++) {
        float expected[TOKENS * 64], actual[TOKENS * 64];
        for (int i = 0; i < 2; i++) {
            /* the float block's own inputs */
            struct block_values values = values_to(h, i == 0 ? &h->original : block, b, group->input);
            ck_assert_rc_ok(block_run(i == 0 ? &h->original : &rounded, &values, steps));
            memcpy(i == 0 ? expected : actual, block_value(&values, group->branch).data, sizeof(expected));
        }
        lost += pow(distance(actual, expected, TOKENS * 64), 2);
    }
    for (int i = 0; i < LLAMA_MODULES; i++) {
        gpu_tensor_free(&h->rig.gpu, &copies[i]);
    }
    block_view_deinit(&rounded);
    return lost;
}

static const char *const settings[] = {"{}", "{\"duo_scaling\":false}", "{\"n_grid\":1}",
                                       "{\"n_grid\":7,\"duo_scaling\":false}"};

/* One group after the other: the block's function stays, and each scored loss is at most what rounding alone loses. */
START_TEST(function_stays_and_loss_falls)
{
    struct fixture h;
    double before = 0, after = 0;

    fixture_open(&h, _i / 4 == 0 ? llama : grouped, 3 + _i % 2, 2);
    for (int group = 0; group < LLAMA_GROUPS; group++) {
        double plain = scored_loss(&h, &h.original, group);
        ck_assert_rc_ok(rewrite(&h, group, settings[_i % 4]));
        double found = scored_loss(&h, &h.block, group);
        ck_assert_msg(found <= plain * 1.05, "group %d: %g, rounding %g", group, found, plain); /* stored norms round */
        before += plain;
        after += found;
    }
    ck_assert_double_le(after, before * 1.01);
    ck_assert(_i % 4 == 2 || after < 0.95 * before);
    for (int b = 0; b < BATCHES; b++) {
        float was[TOKENS * 64], is[TOKENS * 64];
        block_output(&h, &h.original, b, was);
        block_output(&h, &h.block, b, is);
        ck_assert_double_lt(distance(is, was, TOKENS * 64), 1e-5);
    }
    fixture_close(&h);
}
END_TEST

static bool same(const struct tensor *a, const struct tensor *b)
{
    return memcmp(a->data, b->data, tensor_bytes(a)) == 0;
}

static void check_untouched(struct fixture *h)
{
    for (int i = 0; i < LLAMA_MODULES; i++) {
        ck_assert(same(&h->block.modules[i].weight, &h->original.modules[i].weight) && !h->block.modules[i].changed);
    }
    ck_assert(same(&h->block.norms[INPUT_NORM].weight, &h->original.norms[INPUT_NORM].weight));
    ck_assert(same(&h->block.norms[POST_ATTENTION_NORM].weight, &h->original.norms[POST_ATTENTION_NORM].weight));
}

START_TEST(what_cannot_move_is_left_alone)
{
    struct fixture h;

    fixture_open(&h, grouped, 4, 1); /* a row of v feeds two inputs of o */
    ck_assert_rc_ok(rewrite(&h, READ_BY_O, "{}"));
    check_untouched(&h);
    h.skipped = LLAMA_MODULES; /* nothing of the block is rounded */
    for (int group = 0; group < LLAMA_GROUPS; group++) {
        ck_assert_rc_ok(rewrite(&h, group, "{}"));
    }
    h.skipped = -1;
    h.scheme.kind = QTENSOR_FLOAT8; /* or not to an integer grid */
    ck_assert_rc_ok(rewrite(&h, READ_BY_GATE_UP, "{}"));
    check_untouched(&h);
    ck_assert_int_eq(h.ticks, 0);
    fixture_close(&h);
}
END_TEST

/* A reader in float takes part in the fold, not in the score. */
START_TEST(a_reader_in_float_keeps_the_function)
{
    struct fixture h;
    float was[TOKENS * 64], is[TOKENS * 64];

    fixture_open(&h, llama, 3, 1);
    h.skipped = LLAMA_GATE;
    ck_assert_rc_ok(rewrite(&h, READ_BY_GATE_UP, "{}"));
    ck_assert(h.block.modules[LLAMA_GATE].changed && h.block.modules[LLAMA_UP].changed);
    block_output(&h, &h.original, 0, was);
    block_output(&h, &h.block, 0, is);
    ck_assert_double_lt(distance(is, was, TOKENS * 64), 1e-5);
    fixture_close(&h);
}
END_TEST

/* An input that is always zero has nothing to be scaled by. */
START_TEST(dead_inputs_keep_their_weights)
{
    struct fixture h;

    fixture_open(&h, llama, 3, 1);
    floats(&h.block.norms[POST_ATTENTION_NORM].weight)[9] = 0;
    ck_assert_rc_ok(rewrite(&h, READ_BY_GATE_UP, "{}"));
    ck_assert(h.block.norms[POST_ATTENTION_NORM].changed);
    ck_assert_float_eq(floats(&h.block.norms[POST_ATTENTION_NORM].weight)[9], 0);
    for (int64_t n = 0; n < 96; n++) {
        ck_assert_float_eq(floats(&h.block.modules[LLAMA_UP].weight)[n * 64 + 9],
                           floats(&h.original.modules[LLAMA_UP].weight)[n * 64 + 9]);
    }
    fixture_close(&h);
}
END_TEST

/* No candidate has a finite output: the block stays as it is. */
START_TEST(nothing_finite_means_nothing_done)
{
    struct fixture h;

    fixture_open(&h, llama, 4, 1);
    floats(&h.block.modules[LLAMA_DOWN].weight)[3] = INFINITY;
    floats(&h.original.modules[LLAMA_DOWN].weight)[3] = INFINITY;
    ck_assert_rc_ok(rewrite(&h, READ_BY_GATE_UP, "{}"));
    check_untouched(&h);
    fixture_close(&h);
}
END_TEST

START_TEST(threads_and_runs_agree)
{
    struct fixture a, b;

    fixture_open(&a, llama, 4, 1);
    fixture_open(&b, llama, 4, 2);
    for (int group = 0; group < LLAMA_GROUPS; group++) {
        ck_assert_rc_ok(rewrite(&a, group, "{}"));
        ck_assert_rc_ok(rewrite(&b, group, "{}"));
    }
    for (int i = 0; i < LLAMA_MODULES; i++) {
        ck_assert(same(&a.block.modules[i].weight, &b.block.modules[i].weight));
    }
    ck_assert(same(&a.block.norms[POST_ATTENTION_NORM].weight, &b.block.norms[POST_ATTENTION_NORM].weight));
    b.stop_at = b.ticks + 2;
    ck_assert_int_eq(rewrite(&b, READ_BY_GATE_UP, "{}"), ERR_CANCELLED);
    fixture_close(&a);
    fixture_close(&b);
}
END_TEST

/* Cutting ranges never costs output, helps where one weight is far out, and leaves q and k alone. */
START_TEST(clip_in_solve)
{
    static const char *const off = "{\"bits\":3,\"group_size\":64,\"clip\":false,\"refine_rounds\":0}";
    static const char *const on = "{\"bits\":3,\"group_size\":64,\"refine_rounds\":0}";
    const struct quantizer *awq = quantizer_find("awq");
    struct rig rig;
    rig_open(&rig, 2);
    struct tensor w = rig_random(&rig, 24, 192, 5), x = rig_correlated(&rig, 600, 192, 6);
    struct layer_stats stats = stats_of(&rig, &x);
    struct solve_context context = context_of(&rig, DTYPE_F16);

    for (int64_t n = 0; n < 24; n++) {
        floats(&w)[n * 192 + n] = 5.0f;
    }
    struct linear_job cut = solve_one(&rig, "awq", on, DTYPE_F16, &stats, &w);
    struct linear_job uncut = solve_one(&rig, "awq", off, DTYPE_F16, &stats, &w);
    struct linear_job rtn = solve_one(&rig, "rtn", "{\"bits\":3,\"group_size\":64,\"sym\":false}", DTYPE_F16, NULL, &w);
    ck_assert_same_codes(&uncut.result, &rtn.result);
    double clipped = loss_of(&cut.result, &w, &stats.hessian, 0), plain = loss_of(&rtn.result, &w, &stats.hessian, 0);
    ck_assert_double_lt(clipped, 0.95 * plain);
    ck_assert_near(cut.loss, clipped, 1e-3 * clipped);

    void *params = params_new(awq, on);
    struct linear_job q = job_of(&w, params);
    q.scores = true;
    ck_assert_rc_ok(awq->solve(&context, &stats, &q, 1));
    ck_assert_same_codes(&q.result, &rtn.result);
    ck_assert_int_eq(
        awq->solve(&context, NULL, &(struct linear_job){.name = "up_proj", .weight = &w, .params = params}, 1),
        ERR_INSUFFICIENT_CALIBRATION);
    params_free(awq, params);
    struct qtensor *all[] = {&cut.result, &uncut.result, &rtn.result, &q.result};
    for (int i = 0; i < 4; i++) {
        qtensor_deinit(all[i]);
    }
    stats_free(&rig, &stats);
    gpu_tensor_free(&rig.gpu, &w);
    gpu_tensor_free(&rig.gpu, &x);
    rig_close(&rig);
}
END_TEST

START_TEST(defaults_and_what_may_follow)
{
    const struct quantizer *awq = quantizer_find("awq");
    struct quant_common *common = params_new(awq, "{}");
    struct qscheme scheme = {.kind = QTENSOR_INT, .bits = 4};

    ck_assert_int_eq(common->bits, 4);
    ck_assert_int_eq(common->group_size, 128);
    ck_assert(!common->sym && !common->mse_search);
    ck_assert_rc_ok(awq->amend(common, &scheme));
    scheme.kind = QTENSOR_NF4;
    ck_assert_int_eq(awq->amend(common, &scheme), ERR_INCOMPATIBLE_OPTIONS);
    params_free(awq, common);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("quantizers/awq");
    TCase *tcase = tcase_create("all");

    tcase_set_timeout(tcase, 120);
    tcase_add_loop_test(tcase, function_stays_and_loss_falls, 0, 8);
    tcase_add_test(tcase, what_cannot_move_is_left_alone);
    tcase_add_test(tcase, a_reader_in_float_keeps_the_function);
    tcase_add_test(tcase, dead_inputs_keep_their_weights);
    tcase_add_test(tcase, nothing_finite_means_nothing_done);
    tcase_add_test(tcase, threads_and_runs_agree);
    tcase_add_test(tcase, clip_in_solve);
    tcase_add_test(tcase, defaults_and_what_may_follow);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
