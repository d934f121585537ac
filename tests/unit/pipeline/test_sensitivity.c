/* Sensitivities: the table, what is tried, the pass over the bundled checkpoint held against jobs that quantize one
 * linear, and a pass that goes on where another was stopped. */

#include "base/cleanup.h"
#include "pipeline/sensitivity.h"
#include "tests/unit/pipeline/pipeline_rig.h"

#include <math.h>

/* Rounding looks at no inputs: whatever measures an error, on the same tokens it is the same. */
#define RTN "\"solver\":\"rtn\",\"group_size\":64"

static int parse(const char *quantization, struct recipe *recipe, struct validation_errors *errors)
{
    AUTO_JSON json_t *name = json_string("sensitivity");
    AUTO_JSON json_t *options = json_loads(quantization, 0, NULL);

    ck_assert_ptr_nonnull(options);
    *errors = (struct validation_errors){0};
    *recipe = (struct recipe){.count = 0};
    return recipe_parse(name, options, "/method", "/quantization", errors, recipe);
}

START_TEST(test_candidates)
{
    static const struct {
        const char *quantization, *at;
    } refused[] = {
        {"{\"candidates\":[]}", "/quantization/candidates"},
        {"{\"candidates\":[3]}", "/quantization/candidates/0"},
        {"{\"candidates\":[{\"bits\":7}]}", "/quantization/candidates/0/bits"},
        {"{\"candidates\":[{\"bit\":4}]}", "/quantization/candidates/0/bit"},
        {"{\"candidates\":[{\"bits\":4},{\"method\":\"kv_cache\"}]}", "/quantization/candidates/1/method"},
        {"{\"candidates\":[{\"bits\":4},{\"bits\":4}]}", "/quantization/candidates"},
        {"{\"candidates\":[{\"method\":\"fp8\",\"activation_scheme\":\"static\"}]}", "/quantization/candidates/0"},
        {"{\"solver\":\"gpqt\"}", "/quantization/solver"},
        {"{\"solver\":\"nf4\"}", "/quantization/candidates"},
        {"{\"overrides\":[]}", "/quantization/overrides"},
    };
    struct validation_errors errors;
    struct recipe recipe;

    ck_assert_rc_ok(parse("{\"group_size\":64}", &recipe, &errors));
    ck_assert_int_eq(recipe.candidates->count, 4);
    ck_assert_str_eq(recipe.candidates->list[1].name, "gptq-w3g64");
    ck_assert_int_eq(recipe.candidates->list[3].bits, 8);
    ck_assert(recipe_analyses(&recipe) && recipe_needs_calibration(&recipe));
    recipe_deinit(&recipe);
    ck_assert_rc_ok(parse("{\"candidates\":[{\"bits\":4,\"group_size\":-1},{\"method\":\"nf4\"},{\"method\":\"rtn\"},"
                          "{\"method\":\"rtn\",\"sym\":false}]}",
                          &recipe, &errors));
    ck_assert_str_eq(recipe.candidates->list[0].name, "gptq-w4ch");
    ck_assert_int_eq(recipe.candidates->list[0].group_size, -1);
    ck_assert_str_eq(recipe.candidates->list[1].method, "nf4");
    ck_assert_str_eq(recipe.candidates->list[2].name, "rtn-w4g128");
    ck_assert_str_eq(recipe.candidates->list[3].name, "rtn-w4g128-2");
    recipe_deinit(&recipe);
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        int rc = parse(refused[i].quantization, &recipe, &errors);
        ck_assert_msg(rc != 0, "%s was accepted", refused[i].quantization);
        ck_assert_str_eq(errors.items[0].param, refused[i].at);
    }
}
END_TEST

START_TEST(test_table_is_kept)
{
    struct sensitivity_row rows[] = {
        {.layer = 0,
         .module = "a",
         .set = 1,
         .candidate = 2,
         .parameters = 12,
         .bits_per_weight = 3.25,
         .relative_mse = 0.5,
         .output_relative_mse = 0.25,
         .output_mse = 7,
         .kl = 1e-9 / 3,
         .measured = true,
         .predicted = 2},
        {.layer = 5, .module = "b.*.c", .kl = NAN, .predicted = NAN},
    };
    const struct sensitivity_table table = {.rows = rows, .count = 2, .tokens = 64, .kl_tokens = 32};
    struct sensitivity_table read;
    char directory[256];
    int64_t blocks = 0;

    scratch_make(directory);
    ck_assert_int_eq(sensitivity_load(directory, "k", &blocks, &read), ERR_NOT_FOUND);
    ck_assert_rc_ok(sensitivity_save(directory, "k", 3, &table));
    ck_assert_int_eq(sensitivity_load(directory, "other", &blocks, &read), ERR_NOT_FOUND);
    ck_assert_rc_ok(sensitivity_load(directory, "k", &blocks, &read));
    ck_assert(blocks == 3 && read.count == 2 && read.tokens == 64 && read.kl_tokens == 32);
    ck_assert(read.rows[0].kl == rows[0].kl && read.rows[0].bits_per_weight == 3.25 && read.rows[0].measured);
    ck_assert(read.rows[0].set == 1 && read.rows[0].candidate == 2 && read.rows[0].parameters == 12);
    ck_assert(read.rows[0].output_mse == 7 && read.rows[0].predicted == 2 && read.rows[0].output_relative_mse == 0.25);
    ck_assert(isnan(read.rows[1].kl) && !read.rows[1].measured && strcmp(read.rows[1].module, "b.*.c") == 0);
    sensitivity_table_deinit(&read);
    scratch_remove(directory);
}
END_TEST

START_TEST(test_law)
{
    struct sensitivity_row rows[5];
    struct sensitivity_table table = {.rows = rows, .count = 5};

    for (int i = 0; i < 5; i++) {
        rows[i] = (struct sensitivity_row){.kl = i + 1, .predicted = 2 * (i + 1), .measured = true};
    }
    struct sensitivity_law law = sensitivity_law(&table);
    ck_assert_int_eq(law.count, 5);
    ck_assert_double_eq_tol(law.spearman, 1, 1e-12);
    ck_assert_double_eq_tol(law.median_log_error, log(2), 1e-12);
    rows[0].predicted = 9; /* ranks 4 1 2 3 5 */
    ck_assert_double_eq_tol(sensitivity_law(&table).spearman, 1 - 6.0 * (9 + 1 + 1 + 1) / (5 * 24), 1e-12);
    rows[3].measured = rows[4].measured = rows[1].measured = false;
    ck_assert(isnan(sensitivity_law(&table).spearman));
}
END_TEST

static void measure(struct world *world, const char *quantization)
{
    world_open_with(world, "sensitivity", quantization, 2);
    world->evaluation.sequences = 0;
}

static const struct analysis_row *row_of(const struct world *world, const char *module, const char *scheme)
{
    for (int b = 0; b < BLOCKS; b++) {
        for (int i = 0; i < world->analyses[b].count; i++) {
            const struct analysis_row *row = &world->analyses[b].list[i];
            if (strcmp(row->linear.module, module) == 0 && strcmp(row->scheme, scheme) == 0) {
                return row;
            }
        }
    }
    ck_abort_msg("%s has no row for %s", module, scheme);
}

/* What a job loses on the tokens of a pass that quantizes this linear alone. */
static double loss_of(const char *module)
{
    char quantization[256];
    struct world world;

    snprintf(quantization, sizeof(quantization),
             "{\"bits\":3,\"group_size\":64,\"modules_to_not_convert\":[\"re:^(?!.*%s$).*$\"]}", module);
    world_open_with(&world, "rtn", quantization, 2);
    world.calibration.sequences = 0;
    world.evaluation =
        (struct calibration_set){.ids = world.ids + (SEQUENCES - 1) * LENGTH, .sequences = 1, .length = LENGTH};
    ck_assert_rc_ok(run(&world, MEMORY));
    ck_assert_int_eq(world.rows.count, 1);
    double kl = world.result.kl_mean;
    world_close(&world);
    return kl;
}

START_TEST(test_kl_is_that_of_a_job)
{
    static const char *const modules[] = {"model.layers.0.self_attn.v_proj", "model.layers.1.mlp.down_proj",
                                          "model.layers.3.self_attn.o_proj"};
    struct world world;

    measure(&world, "{" RTN ",\"candidates\":[{\"bits\":3},{\"bits\":4}]}");
    ck_assert_rc_ok(run(&world, MEMORY));
    ck_assert_int_eq(world.block_count, BLOCKS);
    for (int b = 0; b < BLOCKS; b++) {
        const struct analysis_row *rows = world.analyses[b].list;
        ck_assert_int_eq(world.analyses[b].count, 14); /* seven linears, two candidates */
        for (int i = 0; i < 14; i += 2) {
            const struct analysis_linear *three = &rows[i].linear, *four = &rows[i + 1].linear;
            ck_assert(three->measured && four->measured && three->kl > four->kl && four->kl > 0);
            ck_assert(three->relative_mse > four->relative_mse && three->output_mse > four->output_mse);
            ck_assert(three->bits_per_weight > 3 && three->bits_per_weight < four->bits_per_weight);
            ck_assert_int_eq(three->set, four->set);
            ck_assert(isnan(three->predicted) && four->predicted > 0); /* from the probe, which is the first here */
        }
        ck_assert(rows[0].linear.set == rows[2].linear.set && rows[0].linear.set == rows[4].linear.set); /* q, k, v */
        ck_assert(rows[6].linear.set != rows[4].linear.set && rows[8].linear.set == rows[10].linear.set);
        ck_assert(rows[12].linear.set != rows[10].linear.set);
    }
    for (size_t i = 0; i < sizeof(modules) / sizeof(modules[0]); i++) {
        double kl = row_of(&world, modules[i], "rtn-w3g64")->linear.kl;
        ck_assert_double_eq_tol(kl / loss_of(modules[i]), 1, 1e-5);
    }
    world_close(&world);
}
END_TEST

/* With few measurements most rows are predicted, near to what they are. */
START_TEST(test_others_are_predicted)
{
    struct world all, few;
    int measured = 0;

    measure(&all, "{" RTN "}");
    ck_assert_rc_ok(run(&all, MEMORY));
    measure(&few, "{" RTN ",\"max_streams\":24}");
    ck_assert_rc_ok(run(&few, MEMORY));
    double worst = 0;
    for (int b = 0; b < BLOCKS; b++) {
        ck_assert_int_eq(few.analyses[b].count, all.analyses[b].count);
        for (int i = 0; i < few.analyses[b].count; i++) {
            const struct analysis_linear *guess = &few.analyses[b].list[i].linear;
            const struct analysis_linear *fact = &all.analyses[b].list[i].linear;
            ck_assert(fact->measured && isfinite(guess->kl) && guess->kl >= 0);
            ck_assert_double_eq(guess->output_mse, fact->output_mse);
            measured += guess->measured;
            ck_assert(!guess->measured || guess->kl == fact->kl);
            double ratio = fabs(log(guess->kl / fact->kl));
            worst = ratio > worst ? ratio : worst;
        }
    }
    ck_assert(measured > 14 && measured <= 24);
    ck_assert_msg(worst < log(8), "a prediction is %g times too far", exp(worst));
    world_close(&few);
    world_close(&all);
}
END_TEST

static void same_rows(const struct world *a, const struct world *b)
{
    for (int i = 0; i < BLOCKS; i++) {
        ck_assert_int_eq(a->analyses[i].count, b->analyses[i].count);
        for (int k = 0; k < a->analyses[i].count; k++) {
            const struct analysis_linear *x = &a->analyses[i].list[k].linear, *y = &b->analyses[i].list[k].linear;
            ck_assert_str_eq(x->module, y->module);
            ck_assert(x->kl == y->kl && x->output_mse == y->output_mse && x->relative_mse == y->relative_mse);
        }
    }
}

/* 112 measurements are two waves: the second attempt begins with the second one, on other memory. */
START_TEST(test_pass_goes_on)
{
    const int64_t plenty = 1 << 20;
    struct world whole, parts;

    measure(&whole, "{" RTN "}");
    whole.cancel_in = plenty;
    ck_assert_rc_ok(run(&whole, MEMORY));
    int64_t ticks = plenty - whole.cancel_in;
    measure(&parts, "{" RTN "}");
    parts.cancel_in = ticks * 17 / 20;
    ck_assert_int_eq(run(&parts, MEMORY), ERR_CANCELLED);
    ck_assert_int_eq(parts.block_count, 0);
    double reached = parts.fraction;
    parts.cancel_in = plenty;
    ck_assert_rc_ok(run(&parts, 1 << 16)); /* streams on disk */
    ck_assert_int_lt(plenty - parts.cancel_in, ticks * 6 / 10);
    ck_assert(reached > 0.5 && reached <= 0.95 && parts.fraction >= reached);
    same_rows(&whole, &parts);
    world_close(&parts);
    world_close(&whole);
}
END_TEST

UNIT_MAIN("pipeline_sensitivity", test_candidates, test_table_is_kept, test_law, test_kl_is_that_of_a_job,
          test_others_are_predicted, test_pass_goes_on)
