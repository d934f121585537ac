/* Recipes: lists of methods, overrides of some modules, and the place and reason of everything that is refused. */

#include "base/json.h"
#include "jobs/spec.h"
#include "tests/unit/json.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static int parse(const char *method, const char *quantization, struct validation_errors *errors, struct recipe *out)
{
    json_t *names = json_of(method), *object = quantization != NULL ? json_of(quantization) : NULL;
    memset(errors, 0, sizeof(*errors));
    int rc = recipe_parse(names, object, "/method", "/quantization", errors, out);
    json_decref(names);
    json_decref(object);
    return rc;
}

static struct recipe recipe_of(const char *method, const char *quantization)
{
    struct recipe recipe;
    struct validation_errors errors;
    int rc = parse(method, quantization, &errors, &recipe);
    ck_assert_msg(rc == 0, "%s %s: %s %s", method, quantization != NULL ? quantization : "{}", errors.items[0].param,
                  errors.items[0].detail);
    return recipe;
}

START_TEST(names_and_lists)
{
    struct recipe one = recipe_of("'gptq'", NULL), same = recipe_of("['gptq']", "{'bits':3}");
    struct recipe two = recipe_of("['awq','gptq']", "{'bits':3,'n_grid':7,'damp_percent':0.05}");
    struct qscheme scheme;

    ck_assert_str_eq(one.name, "gptq");
    ck_assert_int_eq(one.count, 1);
    ck_assert_str_eq(same.name, "gptq");
    ck_assert_str_eq(two.name, "awq+gptq");
    ck_assert_int_eq(two.count, 2);
    ck_assert(!recipe_rewrites(&one) && recipe_rewrites(&two));
    ck_assert_str_eq(recipe_solver(&two, "model.layers.0.mlp.up_proj")->quantizer->name, "gptq");
    ck_assert_rc_ok(recipe_scheme(&two, recipe_solver(&two, "x"), "x", 64, 128, &scheme));
    ck_assert_int_eq(scheme.bits, 3);
    ck_assert(scheme.sym); /* who solves says so, not awq's default */

    json_t *method = recipe_method_json(&two), *parameters = recipe_parameters_json(&two);
    ck_assert_int_eq(json_array_size(method), 2);
    ck_assert_int_eq(json_integer_value(json_object_get(parameters, "n_grid")), 7);
    ck_assert_int_eq(json_integer_value(json_object_get(parameters, "bits")), 3);
    ck_assert(json_is_true(json_object_get(parameters, "sym")));
    struct validation_errors errors = {0}; /* what is said back reads as the same */
    struct recipe again;
    ck_assert_rc_ok(recipe_parse(method, parameters, "", "", &errors, &again));
    json_t *echo = recipe_parameters_json(&again);
    ck_assert(json_equal(echo, parameters));
    json_decref(echo);
    json_decref(method);
    json_decref(parameters);
    struct recipe *all[] = {&one, &same, &two, &again};
    for (int i = 0; i < 4; i++) {
        recipe_deinit(all[i]);
    }
}
END_TEST

/* Every recipe says itself back in words that it takes again, whatever search was asked for. */
START_TEST(echoes_are_read_back)
{
    static const char *const methods[] = {"'rtn'", "'gptq'", "'awq'", "['awq','rtn']", "['awq','gptq']"};
    static const char *const searches[] = {"minmax", "mse", "imatrix", "hqq"};
    for (int i = 0; i < 5 * 4; i++) {
        char text[128];
        struct validation_errors errors = {0};
        struct recipe again;
        snprintf(text, sizeof(text), "{'sym':false,'scale_search':'%s'}", searches[i % 4]);
        struct recipe recipe = recipe_of(methods[i / 4], text);
        json_t *method = recipe_method_json(&recipe), *parameters = recipe_parameters_json(&recipe);
        int rc = recipe_parse(method, parameters, "", "", &errors, &again);
        ck_assert_msg(rc == 0, "%s %s: %s %s", methods[i / 4], text, errors.items[0].param, errors.items[0].detail);
        recipe_deinit(&again);
        recipe_deinit(&recipe);
        json_decref(method);
        json_decref(parameters);
    }
}
END_TEST

/* A recipe read back gives every override the parameters it had: those of a preset, and another method's defaults. */
START_TEST(echoed_overrides_are_read_back)
{
    static const struct {
        const char *method, *quantization;
    } rows[] = {
        {"'gptq'", "{'overrides':[{'match':'*','quality':'fast'}]}"},
        {"'gptq'", "{'quality':'fast','overrides':[{'match':'*','quality':'best'},{'match':'a','skip':true}]}"},
        {"'gptq'", "{'overrides':[{'match':'a','skip':true},{'match':'*','symmetric':false}]}"},
        {"'gptq'", "{'overrides':[{'match':'*','scale_search':'minmax','quality':'best'}]}"},
        {"'gptq'", "{'bits':3,'overrides':[{'match':'*','method':'awq','refine_rounds':5}]}"},
        {"'rtn'", "{'overrides':[{'match':'*','method':'gptq'}]}"},
        {"'autoround'", "{'recipe':'best','overrides':[{'match':'*','sym':false,'damp_percent':0.1}]}"},
        {"'autoround'", "{'start':'rtn','recipe':'light','overrides':[{'match':'*','bits':8}]}"},
        {"'qat'", "{'end_to_end':true,'overrides':[{'match':'*','output_moments':true,'sym':false}]}"},
        {"'awq'", "{'overrides':[{'match':'*','method':'gptq','quality':'best'}]}"},
        {"['awq','gptq']", "{'overrides':[{'match':'*','quality':'fast','num_bits':8}]}"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct validation_errors errors = {0};
        struct recipe recipe = recipe_of(rows[i].method, rows[i].quantization), again;
        json_t *method = recipe_method_json(&recipe), *parameters = recipe_parameters_json(&recipe);
        int rc = recipe_parse(method, parameters, "", "", &errors, &again);
        ck_assert_msg(rc == 0, "%s %s: %s %s", rows[i].method, rows[i].quantization, errors.items[0].param,
                      errors.items[0].detail);
        for (int k = 0; k < recipe.override_count; k++) {
            const struct recipe_stage *had = &recipe.overrides[k].solver, *has = &again.overrides[k].solver;
            ck_assert_ptr_eq(had->quantizer, has->quantizer);
            if (had->quantizer != NULL) {
                json_t *before = params_json(had->quantizer->params, had->params);
                json_t *after = params_json(has->quantizer->params, has->params);
                json_object_del(before, "overrides");
                json_object_del(after, "overrides");
                char *text = json_dumps(parameters, JSON_COMPACT);
                ck_assert_msg(json_equal(before, after), "%s %s: %s", rows[i].method, rows[i].quantization, text);
                free(text);
                json_decref(before);
                json_decref(after);
            }
        }
        json_t *echo = recipe_parameters_json(&again);
        ck_assert(json_equal(echo, parameters));
        json_decref(echo);
        recipe_deinit(&again);
        recipe_deinit(&recipe);
        json_decref(method);
        json_decref(parameters);
    }
}
END_TEST

static const struct {
    const char *method, *quantization, *pointer;
    int code;
} refused[] = {
    {"7", NULL, "/method", ERR_INVALID_PARAMETER},
    {"[]", NULL, "/method", ERR_INVALID_PARAMETER},
    {"['awq','awq','awq','awq','rtn']", NULL, "/method", ERR_INVALID_PARAMETER},
    {"'alchemy'", NULL, "/method", ERR_INVALID_PARAMETER},
    {"['awq','alchemy']", NULL, "/method/1", ERR_INVALID_PARAMETER},
    {"['awq',7]", NULL, "/method/1", ERR_INVALID_PARAMETER},
    {"['gptq','rtn']", NULL, "/method/0", ERR_INCOMPATIBLE_OPTIONS},
    {"'rtn'", "[]", "/quantization", ERR_INVALID_PARAMETER},
    {"'rtn'", "{'n_grid':3}", "/quantization/n_grid", ERR_UNKNOWN_PARAMETER},
    {"['awq','rtn']", "{'damp_percent':0.1}", "/quantization/damp_percent", ERR_UNKNOWN_PARAMETER},
    {"'rtn'", "{'a/b~c':1}", "/quantization/a~1b~0c", ERR_UNKNOWN_PARAMETER},
    {"'awq'", "{'version':'gemv'}", "/quantization/version", ERR_INVALID_PARAMETER},
    {"'awq'", "{'n_grid':0}", "/quantization/n_grid", ERR_INVALID_PARAMETER},
    {"'rtn'", "{'scale_search':'hqq'}", "/quantization/scale_search", ERR_INCOMPATIBLE_OPTIONS},
    {"'rtn'", "{'overrides':{}}", "/quantization/overrides", ERR_INVALID_PARAMETER},
    {"'rtn'", "{'overrides':[7]}", "/quantization/overrides/0", ERR_INVALID_PARAMETER},
    {"'rtn'", "{'overrides':[{'bits':8}]}", "/quantization/overrides/0/match", ERR_INVALID_PARAMETER},
    {"'rtn'", "{'overrides':[{'match':''}]}", "/quantization/overrides/0/match", ERR_INVALID_PARAMETER},
    {"'rtn'", "{'overrides':[{'match':'re:(('}]}", "/quantization/overrides/0/match", ERR_INVALID_PARAMETER},
    {"'rtn'", "{'overrides':[{'match':'*','skip':1}]}", "/quantization/overrides/0/skip", ERR_INVALID_PARAMETER},
    {"'rtn'", "{'overrides':[{'match':'*','skip':true,'bits':8}]}", "/quantization/overrides/0/skip",
     ERR_INCOMPATIBLE_OPTIONS},
    {"'rtn'", "{'overrides':[{'match':'*'},{'match':'*','method':'alchemy'}]}", "/quantization/overrides/1/method",
     ERR_INVALID_PARAMETER},
    {"'rtn'", "{'overrides':[{'match':'*','bits':7}]}", "/quantization/overrides/0/bits", ERR_INVALID_PARAMETER},
    {"'rtn'", "{'overrides':[{'match':'*','n_grid':5}]}", "/quantization/overrides/0/n_grid", ERR_UNKNOWN_PARAMETER},
    {"'rtn'", "{'overrides':[{'match':'*','overrides':[]}]}", "/quantization/overrides/0/overrides",
     ERR_UNKNOWN_PARAMETER},
    {"'rtn'", "{'overrides':[{'match':'*','modules_to_not_convert':['a']}]}",
     "/quantization/overrides/0/modules_to_not_convert", ERR_UNKNOWN_PARAMETER},
    {"'rtn'", "{'sym':false,'scale_search':'hqq','overrides':[{'match':'*','sym':true}]}",
     "/quantization/overrides/0/scale_search", ERR_INCOMPATIBLE_OPTIONS},
    /* what learns are complete blocks */
    {"'autoround'", "{'overrides':[{'match':'*','iters':9}]}", "/quantization/overrides/0/iters",
     ERR_UNKNOWN_PARAMETER},
    {"'autoround'", "{'overrides':[{'match':'*','batch_size':2}]}", "/quantization/overrides/0/batch_size",
     ERR_UNKNOWN_PARAMETER},
    {"'autoround'", "{'overrides':[{'match':'*','learning_rate':0.1}]}", "/quantization/overrides/0/learning_rate",
     ERR_UNKNOWN_PARAMETER},
    {"'autoround'", "{'overrides':[{'match':'*','scale_lr':0.1}]}", "/quantization/overrides/0/scale_lr",
     ERR_UNKNOWN_PARAMETER},
    {"'autoround'", "{'overrides':[{'match':'*','recipe':'best'}]}", "/quantization/overrides/0/recipe",
     ERR_UNKNOWN_PARAMETER},
    {"['awq','autoround']", "{'overrides':[{'match':'*','bits':8},{'match':'*','start':'rtn'}]}",
     "/quantization/overrides/1/start", ERR_UNKNOWN_PARAMETER},
    {"'qat'", "{'overrides':[{'match':'*','epochs':1}]}", "/quantization/overrides/0/epochs", ERR_UNKNOWN_PARAMETER},
    {"'qat'", "{'overrides':[{'match':'*','lr':0.1}]}", "/quantization/overrides/0/lr", ERR_UNKNOWN_PARAMETER},
    {"'qat'", "{'overrides':[{'match':'*','end_to_end':true}]}", "/quantization/overrides/0/end_to_end",
     ERR_UNKNOWN_PARAMETER},
    {"'qat'", "{'end_to_end':true,'overrides':[{'match':'*','method':'qat','e2e_lr':0.1}]}",
     "/quantization/overrides/0/e2e_lr", ERR_UNKNOWN_PARAMETER},
    {"'autoround'", "{'mixed_precision':{'bits_per_weight':3,'candidates':[{'bits':2},{'bits':4,'start':'rtn'}]}}",
     "/quantization/mixed_precision/candidates/1/start", ERR_UNKNOWN_PARAMETER},
    {"'autoround'", "{'start':'rtn','output_moments':true}", "/quantization/output_moments", ERR_INCOMPATIBLE_OPTIONS},
    {"'autoround'", "{'start':'rtn','overrides':[{'match':'*','output_moments':true}]}",
     "/quantization/overrides/0/output_moments", ERR_INCOMPATIBLE_OPTIONS},
    /* the request's own error is told once, not again for each override */
    {"'rtn'", "{'bits':7,'overrides':[{'match':'*','group_size':64}]}", "/quantization/bits", ERR_INVALID_PARAMETER},
};

START_TEST(every_error_has_its_pointer)
{
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        struct recipe recipe = {.count = -1};
        struct validation_errors errors;
        int rc = parse(refused[i].method, refused[i].quantization, &errors, &recipe);
        ck_assert_msg(rc == refused[i].code && errors.count == 1, "%s %s: %d, %zu errors, the first %s %s",
                      refused[i].method, refused[i].quantization, rc, errors.count, errors.items[0].param,
                      errors.items[0].detail);
        ck_assert_str_eq(errors.items[0].param, refused[i].pointer);
        ck_assert_int_eq(recipe.count, -1); /* set on success only */
    }
}
END_TEST

START_TEST(several_errors_at_once)
{
    struct recipe recipe;
    struct validation_errors errors;

    ck_assert_int_lt(parse("'rtn'",
                           "{'colour':1,'bits':7,'overrides':[{'match':'*','n_grid':1},{'match':7},{'match':'a',"
                           "'skip':'no'}]}",
                           &errors, &recipe),
                     0);
    ck_assert_uint_eq(errors.count, 5);
    ck_assert_int_lt(parse("['gptq','alchemy','rtn','magic']", NULL, &errors, &recipe), 0);
    ck_assert_uint_eq(errors.count, 4);
}
END_TEST

static const struct quant_common *params_of(const struct recipe *recipe, const char *module)
{
    const struct recipe_stage *solver = recipe_solver(recipe, module);
    ck_assert_ptr_nonnull(solver);
    return solver->params;
}

/* The last match alone decides: an override starts from the request's parameters, not from an earlier override's. */
START_TEST(overrides_in_order)
{
    struct recipe recipe =
        recipe_of("'rtn'", "{'bits':3,'group_size':64,'modules_to_not_convert':['lm_head',"
                           "'model.layers.9.*'],'overrides':["
                           "{'match':'*.mlp.*','bits':8},"
                           "{'match':'down_proj','group_size':32},"
                           "{'match':'re:.*layers\\\\.1\\\\.mlp','skip':true},"
                           "{'match':'model.layers.1.mlp.up_proj','method':'gptq','damp_percent':0.2},"
                           "{'match':'model.layers.9.*','bits':8}]}");

    ck_assert_int_eq(recipe.override_count, 5);
    ck_assert_int_eq(params_of(&recipe, "model.layers.0.self_attn.q_proj")->bits, 3);
    ck_assert_int_eq(params_of(&recipe, "model.layers.0.mlp.up_proj")->bits, 8);
    ck_assert_int_eq(params_of(&recipe, "model.layers.0.mlp.up_proj")->group_size, 64);
    ck_assert_int_eq(params_of(&recipe, "model.layers.0.mlp.down_proj")->bits, 3);
    ck_assert_int_eq(params_of(&recipe, "model.layers.0.mlp.down_proj")->group_size, 32);
    ck_assert_ptr_null(recipe_solver(&recipe, "model.layers.1.mlp.gate_proj"));
    ck_assert_str_eq(recipe_solver(&recipe, "model.layers.1.mlp.up_proj")->quantizer->name, "gptq");
    ck_assert_int_eq(params_of(&recipe, "model.layers.1.mlp.up_proj")->bits, 3);
    ck_assert_ptr_null(recipe_solver(&recipe, "lm_head"));
    ck_assert_ptr_null(recipe_solver(&recipe, "model.layers.9.mlp.up_proj")); /* left out is left out */
    ck_assert(recipe_needs_calibration(&recipe));                             /* one override learns from inputs */

    json_t *parameters = recipe_parameters_json(&recipe);
    ck_assert_uint_eq(json_array_size(json_object_get(parameters, "overrides")), 5);
    json_decref(parameters);
    recipe_deinit(&recipe);
}
END_TEST

START_TEST(who_needs_calibration)
{
    static const struct {
        const char *method, *quantization;
        bool needs, ignores; /* ignores: no code depends on inputs, even where there are some */
    } rows[] = {
        {"'rtn'", NULL, false, true},
        {"'rtn'", "{'scale_search':'mse'}", false, true},
        {"'rtn'", "{'sym':false,'scale_search':'hqq'}", false, false},
        {"'rtn'", "{'scale_search':'imatrix'}", true, false},
        {"'rtn'", "{'refine_rounds':2}", true, false},
        {"'rtn'", "{'overrides':[{'match':'*','scale_search':'imatrix'}]}", true, false},
        {"'rtn'", "{'overrides':[{'match':'*','sym':false,'scale_search':'hqq'}]}", false, false},
        {"'rtn'", "{'overrides':[{'match':'*','method':'ggml'}]}", false, false},
        {"'rtn'", "{'overrides':[{'match':'*','method':'nf4'}]}", false, true},
        {"'rtn'", "{'overrides':[{'match':'*','skip':true}]}", false, true},
        {"'rtn'", "{'kv_cache':{'dtype':'int8'}}", true, false},
        {"'fp8'", NULL, false, true},
        {"'fp8'", "{'activation_scheme':'static'}", false, false},
        {"'nf4'", NULL, false, true},
        {"'llm_int8'", NULL, true, false},
        {"'llm_int8'", "{'llm_int8_threshold':0}", false, true},
        {"'kmeans'", NULL, false, false},
        {"'ggml'", NULL, false, false},
        {"'gptq'", NULL, true, false},
        {"['awq','rtn']", NULL, true, false},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct recipe recipe = recipe_of(rows[i].method, rows[i].quantization);
        ck_assert_msg(recipe_needs_calibration(&recipe) == rows[i].needs, "%s %s", rows[i].method,
                      rows[i].quantization);
        ck_assert_msg(recipe_data_free(&recipe) == rows[i].ignores, "%s %s", rows[i].method, rows[i].quantization);
        recipe_deinit(&recipe);
    }
}
END_TEST

/* A request with these members, held against a model: 0, or the first error's place and a word of its reason. */
static void expect(const char *members, int code, const char *pointer, const char *reason)
{
    struct validation_errors errors = {0};
    struct job_spec spec;
    struct model *model;
    char text[1024];
    int root = open(MODEL_ROOT, O_PATH | O_DIRECTORY | O_CLOEXEC);
    ck_assert_int_ge(root, 0);
    ck_assert_rc_ok(model_open(root, "tiny-llama", &model));
    close(root);
    snprintf(text, sizeof(text),
             "{'model':'mdl_01J00000000000000000000000','calibration':{'stream':true,'sequence_length':32},%s}",
             members);
    json_t *body = json_of(text);
    int rc = spec_parse(body, &errors, &spec);
    ck_assert_msg(rc == 0, "%s: %s %s", text, errors.items[0].param, errors.items[0].detail);
    rc = spec_check(&spec, model, NULL, &errors);
    ck_assert_msg(rc == code, "%s: %d %s %s", members, rc, errors.items[0].param, errors.items[0].detail);
    if (code != 0) {
        ck_assert_str_eq(errors.items[0].param, pointer);
        ck_assert_msg(strstr(errors.items[0].detail, reason) != NULL || strstr(errors.items[0].hint, reason) != NULL,
                      "%s: %s", errors.items[0].detail, errors.items[0].hint);
    }
    json_decref(body);
    spec_deinit(&spec);
    model_close(model);
}

START_TEST(held_against_a_model)
{
    expect("'method':['awq','gptq'],'quantization':{'group_size':32}", 0, "", "");
    expect("'method':'rtn','quantization':{'group_size':32,'overrides':[{'match':'*.down_proj','bits':8}]}", 0, "", "");
    /* what runtimes load as one is quantized alike, or the request is refused */
    expect("'method':'rtn','quantization':{'group_size':32,'overrides':[{'match':'*.q_proj','bits':8}]}",
           ERR_INCOMPATIBLE_OPTIONS, "/quantization", "q, k and v of block 0 are not quantized alike");
    expect("'method':'rtn','quantization':{'group_size':32,'overrides':[{'match':'*.up_proj','skip':true}]}",
           ERR_INCOMPATIBLE_OPTIONS, "/quantization", "gate and up of block 0 are not quantized alike");
    expect("'method':'rtn','quantization':{'group_size':32,'overrides':[{'match':'*.q_proj','bits':8}]}",
           ERR_INCOMPATIBLE_OPTIONS, "/quantization",
           "runtimes load them as one linear: quantize all of them, or none"); /* to its end */
    expect("'method':'rtn','quantization':{'group_size':32,'overrides':[{'match':'re:.*(q|k|v)_proj','bits':8}]}", 0,
           "", "");
    expect("'method':'rtn','quantization':{'group_size':32,'overrides':[{'match':'*.dwn_proj','bits':8}]}",
           ERR_INVALID_PARAMETER, "/quantization/overrides/0/match", "matches no module");
    expect("'method':'awq','quantization':{'group_size':32},'output':{'format':'awq'}", 0, "", "");
    expect("'method':'awq','quantization':{'group_size':32,'bits':3},'output':{'format':'awq'}",
           ERR_INCOMPATIBLE_OPTIONS, "/output/format", "awq packs 4 bits and not 3");
    expect("'method':'rtn','quantization':{'group_size':32,'overrides':[{'match':'*.down_proj','bits':8}]},"
           "'output':{'format':'awq'}",
           ERR_INCOMPATIBLE_OPTIONS, "/output/format", "formats that carry it: compressed-tensors");
    expect("'method':'rtn','quantization':{'overrides':[{'match':'*.down_proj','q_group_size':-1}]}", 0, "", "");
    expect("'method':'rtn','quantization':{'group_size':32,'overrides':[{'match':'*','skip':true}]}",
           ERR_INCOMPATIBLE_OPTIONS, "/quantization/modules_to_not_convert", "no module");
}
END_TEST

UNIT_MAIN("jobs/recipe", names_and_lists, echoes_are_read_back, echoed_overrides_are_read_back,
          every_error_has_its_pointer, several_errors_at_once, overrides_in_order, who_needs_calibration,
          held_against_a_model)
