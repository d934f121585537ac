/* The gate of a request: what rungs become, the canonical form that reads back to itself, and the decision. */

#include "base/json.h"
#include "jobs/jobs.h"
#include "jobs/spec.h"
#include "tests/unit/unit.h"

#include <math.h>
#include <string.h>

#define HEAD                                                                                                          \
    "{\"model\":\"mdl_01J00000000000000000000000\",\"method\":\"gptq\",\"quantization\":{\"w_bit\":2,\"group_size\":" \
    "64,"                                                                                                             \
    "\"damp_percent\":0.02},\"calibration\":{\"stream\":true},\"evaluation\":{\"gate\":"

static int parse_gate(const char *gate, struct validation_errors *errors, struct job_spec *spec)
{
    char text[2048];
    json_t *body;
    (void)snprintf(text, sizeof(text), HEAD "%s}}", gate);
    memset(errors, 0, sizeof(*errors));
    ck_assert_rc_ok(json_parse(text, strlen(text), 32, &body));
    int rc = spec_parse(body, errors, spec);
    json_decref(body);
    return rc;
}

static const struct {
    const char *gate, *pointer;
} refused[] = {
    {"7", "/evaluation/gate"},
    {"{}", "/evaluation/gate"},
    {"{\"max_kl\":1}", "/evaluation/gate/max_kl"},
    {"{\"max_kl_divergence\":-1}", "/evaluation/gate/max_kl_divergence"},
    {"{\"min_top1_agreement\":1.5}", "/evaluation/gate/min_top1_agreement"},
    {"{\"max_kl_divergence\":1,\"on_fail\":\"retry\"}", "/evaluation/gate/on_fail"},
    {"{\"generation\":{\"tokens\":1}}", "/evaluation/gate/generation/tokens"},
    {"{\"generation\":{\"max_repetition_increase\":null}}", "/evaluation/gate/generation/max_repetition_increase"},
    {"{\"max_kl_divergence\":1,\"ladder\":{}}", "/evaluation/gate/ladder"},
    {"{\"max_kl_divergence\":1,\"ladder\":[{\"bits\":3}]}", "/evaluation/gate/ladder/0/bits"},
    {"{\"max_kl_divergence\":1,\"ladder\":[{\"quantization\":3}]}", "/evaluation/gate/ladder/0/quantization"},
    {"{\"max_kl_divergence\":1,\"ladder\":[{\"method\":\"rtn\"},{\"quantization\":{\"bits\":17}}]}",
     "/evaluation/gate/ladder/1/quantization/bits"},
    {"{\"max_kl_divergence\":1,\"ladder\":[{\"method\":\"kv_analysis\",\"quantization\":{}}]}",
     "/evaluation/gate/ladder/0/method"},
};

START_TEST(wrong_gates_are_refused)
{
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        struct validation_errors errors;
        struct job_spec spec;
        ck_assert_int_ne(parse_gate(refused[i].gate, &errors, &spec), 0);
        ck_assert_msg(strcmp(errors.items[0].param, refused[i].pointer) == 0, "%s: %s %s", refused[i].gate,
                      errors.items[0].param, errors.items[0].detail);
    }
}
END_TEST

static double member(const struct recipe *recipe, const char *name)
{
    json_t *parameters = recipe_parameters_json(recipe);
    json_t *value = json_object_get(parameters, name);
    double number = value != NULL ? json_number_value(value) : NAN;
    json_decref(parameters);
    return number;
}

/* A patch by another name of a member, one for another method that lacks a member, and rungs that are stored complete.
 */
START_TEST(rungs_are_patches)
{
    static const char gate[] = "{\"max_kl_divergence\":0.1,\"ladder\":[{\"quantization\":{\"bits\":3}},"
                               "{\"method\":\"rtn\",\"quantization\":{\"num_bits\":4}},"
                               "{\"quantization\":{\"damp_percent\":null,\"bits\":8}}]}";
    struct validation_errors errors = {0};
    struct job_spec spec, again;
    ck_assert_rc_ok(parse_gate(gate, &errors, &spec));
    json_t *stored = spec_json(&spec);
    ck_assert_rc_ok(spec_parse(stored, &errors, &again));
    json_t *stored_again = spec_json(&again);
    ck_assert(json_equal(stored, stored_again));
    const struct job_spec *both[] = {&spec, &again};
    for (int i = 0; i < 2; i++) {
        const struct recipe *ladder = both[i]->gate.ladder;
        ck_assert_int_eq(both[i]->gate.ladder_count, 3);
        ck_assert_double_eq(member(&ladder[0], "bits"), 3);
        ck_assert_double_eq(member(&ladder[0], "damp_percent"), 0.02);
        ck_assert_str_eq(ladder[1].name, "rtn");
        ck_assert_double_eq(member(&ladder[1], "bits"), 4);
        ck_assert_double_eq(member(&ladder[1], "group_size"), 64);
        ck_assert(isnan(member(&ladder[1], "damp_percent")));
        ck_assert_double_eq(member(&ladder[2], "bits"), 8);
        ck_assert_double_eq(member(&ladder[2], "damp_percent"), 0.01);
    }
    spec_use_rung(&again, 2);
    ck_assert_str_eq(again.recipe.name, "rtn");
    spec_use_rung(&again, 3);
    ck_assert_double_eq(member(&again.recipe, "bits"), 8);
    spec_use_rung(&again, 0);
    ck_assert_double_eq(member(&again.recipe, "bits"), 2);
    ck_assert_double_eq(member(&again.gate.ladder[1], "bits"), 4);
    json_decref(stored);
    json_decref(stored_again);
    spec_deinit(&spec);
    spec_deinit(&again);
}
END_TEST

START_TEST(a_request_without_a_gate_is_stored_as_before)
{
    struct validation_errors errors;
    struct job_spec spec;
    ck_assert_rc_ok(parse_gate("null", &errors, &spec));
    ck_assert(!spec.gate.asked);
    json_t *stored = spec_json(&spec);
    ck_assert_ptr_null(json_object_get(json_object_get(stored, "evaluation"), "gate"));
    json_decref(stored);
    spec_deinit(&spec);
}
END_TEST

static json_t *judge(const char *gate, const struct evaluation_result *result)
{
    struct validation_errors errors;
    struct job_spec spec;
    ck_assert_rc_ok(parse_gate(gate, &errors, &spec));
    json_t *outcome = gate_judge(&spec.gate, 0, &spec.recipe, result);
    ck_assert_ptr_nonnull(outcome);
    spec_deinit(&spec);
    return outcome;
}

static const struct {
    const char *gate, *broken; /* the limits that are not kept */
} decisions[] = {
    {"{\"max_perplexity\":22}", ""},
    {"{\"max_perplexity\":21.9}", "max_perplexity"},
    {"{\"max_perplexity_increase_ratio\":0.11}", ""},
    {"{\"max_perplexity_increase_ratio\":0.09}", "max_perplexity_increase_ratio"},
    {"{\"max_kl_divergence\":0.25}", ""},
    {"{\"max_kl_divergence\":0.2,\"min_top1_agreement\":0.75}", "max_kl_divergence"},
    {"{\"max_kl_divergence\":0.2,\"min_top1_agreement\":0.76}", "max_kl_divergence min_top1_agreement"},
    {"{\"generation\":{}}", "generation.max_repetition_increase"},
    {"{\"generation\":{\"max_repetition_increase\":0.5,\"min_agreement\":0.5}}", ""},
    {"{\"generation\":{\"max_repetition_increase\":0.5,\"min_agreement\":0.6}}", "generation.min_agreement"},
};

START_TEST(limits_decide)
{
    const struct evaluation_result result = {.done = true,
                                             .perplexity_before = 20,
                                             .perplexity_after = 22,
                                             .kl_mean = 0.25,
                                             .top1_agreement = 0.75,
                                             .generation = {4, 32, 16, 0.5, 0.125, 0.5}};
    for (size_t i = 0; i < sizeof(decisions) / sizeof(decisions[0]); i++) {
        char found[256] = "";
        json_t *outcome = judge(decisions[i].gate, &result), *reason;
        size_t k;
        json_array_foreach(json_object_get(outcome, "reasons"), k, reason)
        {
            strcat(strcat(found, k > 0 ? " " : ""), json_string_value(json_object_get(reason, "limit")));
        }
        ck_assert_str_eq(found, decisions[i].broken);
        ck_assert_int_eq(json_is_true(json_object_get(outcome, "passed")), found[0] == '\0');
        json_decref(outcome);
    }
}
END_TEST

/* What is not a number passes no limit, and is null. */
START_TEST(what_is_not_finite_fails)
{
    const struct evaluation_result result = {
        .done = true, .perplexity_before = 20, .perplexity_after = NAN, .kl_mean = INFINITY, .top1_agreement = 0};
    json_t *outcome = judge("{\"max_perplexity\":1e9,\"max_kl_divergence\":1e5}", &result);
    char text[512];
    ck_assert(json_is_false(json_object_get(outcome, "passed")));
    ck_assert(json_is_null(json_object_get(outcome, "perplexity")));
    ck_assert_uint_eq(json_array_size(json_object_get(outcome, "reasons")), 2);
    gate_reasons(outcome, text, sizeof(text));
    ck_assert_str_eq(text, "perplexity is not finite, and max_perplexity is 1e+09; KL divergence is not finite, and "
                           "max_kl_divergence is 100000");
    gate_reasons(outcome, text, 20);
    ck_assert_uint_eq(strlen(text), 19);
    json_decref(outcome);
}
END_TEST

UNIT_MAIN("jobs/gate", wrong_gates_are_refused, rungs_are_patches, a_request_without_a_gate_is_stored_as_before,
          limits_decide, what_is_not_finite_fails)
