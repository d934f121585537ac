/* Mixtures: what a request may say, what a model's linears take, and the choice that follows from a table. */

#include "base/fs.h"
#include "pipeline/check.h"
#include "pipeline/mixture.h"
#include "tests/unit/json.h"
#include "tests/unit/scratch.h"

#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

static int parse(const char *method, const char *quantization, struct validation_errors *errors, struct recipe *out)
{
    json_t *name = json_of(method), *object = json_of(quantization);

    *errors = (struct validation_errors){0};
    int rc = recipe_parse(name, object, "/method", "/quantization", errors, out);
    json_decref(name);
    json_decref(object);
    return rc;
}

static struct model *open_model(void)
{
    struct model *model = NULL;
    int root = open(MODEL_ROOT, O_RDONLY | O_DIRECTORY);

    ck_assert_rc_ok(model_open(root, "tiny-llama", &model));
    close(root);
    return model;
}

START_TEST(refusals_name_the_member)
{
    static const struct {
        const char *method, *quantization, *pointer, *word;
    } rows[] = {
        {"'gptq'", "{'mixed_precision':{}}", "/quantization/mixed_precision", "no budget"},
        {"'gptq'", "{'mixed_precision':{'bits_per_weight':3.5,'max_bytes':1000}}", "/quantization/mixed_precision",
         "several budgets"},
        {"'gptq'", "{'mixed_precision':{'bits_per_weight':'x'}}", "/quantization/mixed_precision/bits_per_weight", ""},
        {"'gptq'", "{'mixed_precision':{'decode_milliseconds':3}}", "/quantization/mixed_precision/memory_bandwidth",
         "together"},
        {"'gptq'", "{'mixed_precision':{'bits_per_weight':3,'memory_bandwidth':1e12}}",
         "/quantization/mixed_precision/memory_bandwidth", "together"},
        {"'gptq'", "{'mixed_precision':{'bits_per_weight':3,'candidates':[{'bits':7}]}}",
         "/quantization/mixed_precision/candidates/0/bits", ""},
        {"'nf4'", "{'mixed_precision':{'bits_per_weight':3}}", "/quantization/mixed_precision/candidates", "required"},
        {"'kv_cache'", "{'mixed_precision':{'bits_per_weight':3}}", "/quantization/mixed_precision",
         "quantizes no weights"},
        {"'gptq'", "{'overrides':[{'match':'*.v_proj','mixed_precision':{'bits_per_weight':3}}]}",
         "/quantization/overrides/0/mixed_precision", "entire model"},
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct validation_errors errors;
        struct recipe recipe;
        ck_assert_int_ne(parse(rows[i].method, rows[i].quantization, &errors, &recipe), 0);
        ck_assert_msg(strcmp(errors.items[0].param, rows[i].pointer) == 0, "%s: %s", rows[i].quantization,
                      errors.items[0].param);
        ck_assert_msg(strstr(errors.items[0].detail, rows[i].word) != NULL, "%s", errors.items[0].detail);
    }
}
END_TEST

/* A recipe of a mixture on the model, bound. */
static struct recipe mixed(const char *method, const char *quantization, const struct model *model)
{
    struct validation_errors errors;
    struct recipe recipe;
    int rc = parse(method, quantization, &errors, &recipe);

    ck_assert_msg(rc == 0, "%s: %s", errors.items[0].param, errors.items[0].detail);
    ck_assert_rc_ok(recipe_bind(&recipe, model));
    ck_assert_rc_ok(mixture_assume(&recipe, NULL, model));
    return recipe;
}

/* Errors of a check against a format; the first one's pointer and a word of it. */
static void expect(const char *method, const char *quantization, const char *format, const char *pointer,
                   const char *word)
{
    struct model *model = open_model();
    struct recipe recipe = mixed(method, quantization, model);
    struct validation_errors errors = {0};
    int64_t bytes;

    ck_assert_rc_ok(mixture_assume(&recipe, format_find(format), model));
    ck_assert_int_ne(mixture_check(&recipe, format_find(format), model, &errors, &bytes), 0);
    ck_assert_str_eq(errors.items[0].param, pointer);
    ck_assert_msg(strstr(errors.items[0].detail, word) != NULL, "%s", errors.items[0].detail);
    recipe_deinit(&recipe);
    model_close(model);
}

START_TEST(budgets_and_formats_are_checked)
{
    expect("'gptq'", "{'group_size':64,'mixed_precision':{'bits_per_weight':2.1}}", "compressed-tensors",
           "/quantization/mixed_precision/bits_per_weight", "reach 2.25");
    expect("'gptq'", "{'mixed_precision':{'max_bytes':1000}}", "compressed-tensors",
           "/quantization/mixed_precision/max_bytes", "bytes");
    expect("'gptq'", "{'mixed_precision':{'decode_milliseconds':1e-3,'memory_bandwidth':1e9}}", "compressed-tensors",
           "/quantization/mixed_precision/decode_milliseconds", "ms");
    expect("'gptq'", "{'sym':false,'mixed_precision':{'bits_per_weight':3.5}}", "awq", "/quantization/mixed_precision",
           "nothing to mix");
    expect("'gptq'", "{'sym':false,'mixed_precision':{'bits_per_weight':4.5,'candidates':[{'bits':3},{'bits':4}]}}",
           "awq", "/quantization/mixed_precision/candidates/0", "possible for no linear");
}
END_TEST

/* Loss falls by four for each bit, and down_proj is a thousand times as sensitive. */
static struct sensitivity_table make_table(const struct recipe *recipe, const struct model *model)
{
    const struct sensitivity_candidates *candidates = &recipe->mixture->candidates;
    const struct plans *plans = model_plans(model);
    struct sensitivity_table table = {0};

    table.rows = calloc(plans_modules(plans) * (size_t)candidates->count, sizeof(*table.rows));
    for (size_t i = 0; i < plans_modules(plans); i++) {
        int number;
        int64_t layer = plans_module_at(plans, i, &number);
        for (int c = 0; c < candidates->count; c++) {
            struct sensitivity_row *row = &table.rows[table.count++];
            *row = (struct sensitivity_row){.layer = layer, .candidate = c};
            model_module_name(model, layer, number, row->module);
            row->kl = pow(0.25, candidates->list[c].bits) * (strstr(row->module, "down_proj") != NULL ? 1000 : 1);
        }
    }
    return table;
}

START_TEST(the_choice_keeps_budget_and_ties)
{
    struct model *model = open_model();
    const struct format *format = format_find("compressed-tensors");
    struct recipe recipe = mixed("'gptq'",
                                 "{'group_size':64,'overrides':[{'match':'*.0.self_attn.o_proj','bits':8},"
                                 "{'match':'*.1.self_attn.o_proj','skip':true}],"
                                 "'mixed_precision':{'bits_per_weight':3.5}}",
                                 model);
    struct sensitivity_table table = make_table(&recipe, model);
    struct format_module *modules;
    struct validation_errors errors = {0};
    int64_t bytes = 0;
    double bits = 0, weights = 0;
    int count, of_down = 0;

    ck_assert_rc_ok(mixture_check(&recipe, format, model, &errors, &bytes));
    ck_assert_rc_ok(mixture_choose(&recipe, format, model, &table));
    ck_assert(recipe.mixture->chosen && recipe.mixture->exact);
    ck_assert_rc_ok(recipe_modules(&recipe, format, model, &modules, &count));
    for (int i = 0; i < count; i++) {
        double size = (double)(modules[i].rows * modules[i].cols);
        char *at = strstr(modules[i].name, "q_proj"), other[128];
        weights += size;
        bits += size * (modules[i].scheme.bits + 16.0 / 64);
        if (at != NULL) {
            snprintf(other, sizeof(other), "%.*sv_proj", (int)(at - modules[i].name), modules[i].name);
            ck_assert_ptr_eq(mixture_solver(recipe.mixture, other), mixture_solver(recipe.mixture, modules[i].name));
        }
        of_down += strstr(modules[i].name, "down_proj") != NULL && modules[i].scheme.bits > 4;
        ck_assert(strcmp(modules[i].name, "model.layers.0.self_attn.o_proj") != 0 || modules[i].scheme.bits == 8);
        ck_assert_str_ne(modules[i].name, "model.layers.1.self_attn.o_proj");
    }
    ck_assert_double_le(bits / weights, 3.5);
    ck_assert_double_ge(bits / weights, 3.4);
    ck_assert_double_eq_tol(recipe.mixture->bits, bits / weights, 0.01); /* shapes are stored, too */
    ck_assert_double_eq_tol(8 * (double)bytes / weights, 3.5, 1e-3);
    ck_assert_int_gt(of_down, 0);
    free(modules);
    free(table.rows);
    recipe_deinit(&recipe);
    model_close(model);
}
END_TEST

/* The request with defaults filled in reads as the same: what a preset gave one candidate does not reach another. */
START_TEST(candidates_mean_the_same_in_full)
{
    struct validation_errors errors;
    struct recipe recipe, again;

    ck_assert_rc_ok(parse("'gptq'",
                          "{'mixed_precision':{'bits_per_weight':3.5,'candidates':[{'bits':2},{'bits':4,'sym':false},"
                          "{'method':'rtn','bits':8}]}}",
                          &errors, &recipe));
    json_t *method = recipe_method_json(&recipe), *full = recipe_parameters_json(&recipe);
    ck_assert_msg(recipe_parse(method, full, "", "", &errors, &again) == 0, "%s: %s", errors.items[0].param,
                  errors.items[0].detail);
    for (int i = 0; i < 3; i++) {
        const struct recipe_stage *one = &recipe.mixture->candidates.list[i].solver;
        const struct recipe_stage *two = &again.mixture->candidates.list[i].solver;
        ck_assert_ptr_eq(one->quantizer, two->quantizer);
        json_t *first = params_json(one->quantizer->params, one->params);
        json_t *second = params_json(two->quantizer->params, two->params);
        ck_assert(json_equal(first, second));
        json_decref(first);
        json_decref(second);
    }
    json_decref(method);
    json_decref(full);
    recipe_deinit(&recipe);
    recipe_deinit(&again);
}
END_TEST

/* Parameters of learning, whose defaults differ, are none of a candidate's, so its echo does not have them. */
START_TEST(candidates_of_another_method_that_learns)
{
    struct validation_errors errors;
    struct recipe recipe, again;

    ck_assert_rc_ok(parse("'autoround'",
                          "{'mixed_precision':{'bits_per_weight':3.5,'candidates':[{'bits':4},{'method':'qat',"
                          "'bits':2}]}}",
                          &errors, &recipe));
    json_t *method = recipe_method_json(&recipe), *full = recipe_parameters_json(&recipe);
    ck_assert_msg(recipe_parse(method, full, "", "", &errors, &again) == 0, "%s: %s", errors.items[0].param,
                  errors.items[0].detail);
    json_t *echo = recipe_parameters_json(&again);
    ck_assert(json_equal(echo, full));
    json_decref(echo);
    json_decref(method);
    json_decref(full);
    recipe_deinit(&recipe);
    recipe_deinit(&again);
}
END_TEST

START_TEST(a_choice_is_kept)
{
    char folder[256];
    struct model *model = open_model();
    const char *request = "{'group_size':64,'mixed_precision':{'max_bytes':4000000,'candidates':[{'bits':2},{'bits':4,"
                          "'group_size':32},{'method':'nf4'}]}}";
    const char *other = "{'group_size':64,'mixed_precision':{'max_bytes':4000000,'candidates':[{'bits':2},{'bits':3},"
                        "{'method':'nf4'}]}}";
    struct recipe recipe = mixed("'rtn'", request, model), again = mixed("'rtn'", request, model);
    struct recipe changed = mixed("'rtn'", other, model);
    struct sensitivity_table table = make_table(&recipe, model);

    scratch_make(folder);
    ck_assert_int_eq(mixture_load(again.mixture, folder), ERR_NOT_FOUND);
    ck_assert(!again.mixture->chosen);
    ck_assert_rc_ok(mixture_choose(&recipe, format_find("dense"), model, &table));
    ck_assert_rc_ok(mixture_save(recipe.mixture, folder));
    ck_assert_rc_ok(mixture_load(again.mixture, folder));
    ck_assert_int_eq(mixture_load(changed.mixture, folder), ERR_NOT_FOUND); /* whose numbers mean others */
    ck_assert(!changed.mixture->chosen);
    json_t *one = mixture_json(recipe.mixture), *two = mixture_json(again.mixture);
    ck_assert(json_equal(one, two));
    ck_assert_uint_eq(json_object_size(json_object_get(one, "modules")), plans_modules(model_plans(model)));
    json_decref(one);
    json_decref(two);
    free(table.rows);
    recipe_deinit(&recipe);
    recipe_deinit(&again);
    recipe_deinit(&changed);
    model_close(model);
    scratch_remove(folder);
}
END_TEST

UNIT_MAIN("mixture", refusals_name_the_member, budgets_and_formats_are_checked, the_choice_keeps_budget_and_ties,
          candidates_mean_the_same_in_full, candidates_of_another_method_that_learns, a_choice_is_kept)
