/* What is said of curves of learning that came to nothing, by how they went. */

#include "jobs/tuning_warn.h"
#include "tests/unit/json.h"

#include <string.h>

static struct recipe learner(const char *method, const char *quantization)
{
    json_t *names = json_of(method), *object = json_of(quantization);
    struct validation_errors errors = {0};
    struct recipe recipe;

    ck_assert_rc_ok(recipe_parse(names, object, "/method", "/quantization", &errors, &recipe));
    json_decref(names);
    json_decref(object);
    return recipe;
}

/* notes: of one block each. */
static void expect_warning(const char *method, const char *quantization, const char *notes, bool model,
                           const char *code, const char *what, const char *why)
{
    struct recipe recipe = learner(method, quantization);
    json_t *list = json_of(notes), *blocks = json_array(), *note;
    char text[TUNING_WARNING_SIZE] = "";
    size_t i;

    json_array_foreach(list, i, note)
    {
        json_array_append_new(blocks, json_pack("{s:{s:O}}", "notes", model ? "end_to_end" : "tuning", note));
    }
    const char *found = tuning_warning(blocks, &recipe, model, text);
    if (code == NULL) {
        ck_assert_msg(found == NULL, "%s: %s", found, text);
        ck_assert_msg(tuning_warning(blocks, &recipe, !model, text) == NULL, "%s", text);
    } else {
        ck_assert_ptr_nonnull(found);
        ck_assert_str_eq(found, code);
        ck_assert_msg(strstr(text, what) == text && strstr(text, why) != NULL, "%s", text);
    }
    json_decref(list);
    json_decref(blocks);
    recipe_deinit(&recipe);
}

#define CURVE(first, best, last, step) \
    "{'first_loss':" first ",'best_loss':" best ",'last_loss':" last ",'best_step':" step "}"
#define NOTED(last, step, note) \
    "{'first_loss':1,'best_loss':0.9,'last_loss':" last ",'best_step':" step ",'note':'" note "'}"

START_TEST(nothing_to_say)
{
    expect_warning("'qat'", "{}", "[" CURVE("1", "0.9", "0.95", "3") "]", false, NULL, "", "");
    expect_warning("'qat'", "{}", "[" CURVE("1", "1", "1.1", "0") "," CURVE("1", "0.9", "0.9", "3") "]", false, NULL,
                   "", "");
    expect_warning("'qat'", "{}", "[]", false, NULL, "", ""); /* no steps were asked for */
    expect_warning("'gptq'", "{}", "[]", false, NULL, "", "");
    expect_warning("'qat'", "{'end_to_end':true}", "[" CURVE("1", "0.9", "0.9", "3") "]", true, NULL, "", "");
}
END_TEST

START_TEST(kept_nothing)
{
    const char *rose = "[" CURVE("0.04", "0.04", "8", "0") "," CURVE("1", "1", "1", "0") "]";
    const char *stayed = "[" CURVE("0.04", "0.04", "0.04", "0") "," CURVE("1", "0.9999999999", "1", "2") "]";
    const char *worse = "[" CURVE("1", "1", "1.02", "0") "]";

    expect_warning("'qat'", "{'lr':5}", rose, false, tuning_kept_nothing, "qat gained nothing in 2 of 2 blocks",
                   "rose to 200 times the first, so rates are too high: lower \"lr\" (5, by default 0.002)");
    expect_warning("'qat'", "{}", rose, false, tuning_kept_nothing, "qat gained",
                   "lower \"lr\" (0.002, by default 0.002) and \"scale_lr\" (0.0005, by default 0.0005)");
    expect_warning("'qat'", "{'lr':0}", rose, false, tuning_kept_nothing, "qat gained",
                   "lower \"scale_lr\" (0.0005, by default 0.0005)");
    expect_warning("'autoround'", "{}", stayed, false, tuning_kept_nothing, "autoround gained nothing in 2 of 2 blocks",
                   "raise \"lr\" (0, which is 1 / iters) and \"scale_lr\" (0.001, by default 0.001), or make more");
    expect_warning("['gptq','tune']", "{}", worse, false, tuning_kept_nothing, "tune gained nothing in 1 of 1 blocks",
                   "the last is 1.02 times it at most), so that the blocks' own loss has little left to gain");
    expect_warning("['gptq','tune']", "{'end_to_end':true,'e2e_lr':1}", rose, true, tuning_kept_nothing,
                   "end_to_end gained nothing in the complete model, stored as it was before", "lower \"e2e_lr\" (1,");
    expect_warning("'qat'", "{}", "[{'best_step':0,'note':'the loss is not finite'}]", false, tuning_kept_nothing,
                   "qat gained", "not finite before the first step");
    expect_warning("'qat'", "{}", "[" NOTED("null", "0", "the loss was not finite twice") "]", false,
                   tuning_kept_nothing, "qat gained", "not finite any more, so rates are too high");
}
END_TEST

START_TEST(diverged)
{
    expect_warning("'qat'", "{'lr':1}", "[" CURVE("1", "0.9", "5", "1") "," CURVE("1", "0.9", "0.9", "3") "]", false,
                   tuning_diverged, "qat diverged, and kept the best step it had",
                   "rose to 5 times the first, so rates are too high: lower \"lr\" (1,");
    expect_warning("'qat'", "{'end_to_end':true,'e2e_norm_lr':1}", "[" NOTED("null", "1", "was not finite") "]", true,
                   tuning_diverged, "end_to_end diverged", "lower \"e2e_norm_lr\" (1,");
    expect_warning("'qat'", "{}", "[" CURVE("1", "0.9", "1.8", "1") "]", false, NULL, "", ""); /* ended early */
}
END_TEST

UNIT_MAIN("jobs/tuning_warn", nothing_to_say, kept_nothing, diverged)
