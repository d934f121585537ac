/* Changes of an accepted request: what PATCH and a retry may set, and that all else stays as it is. */

#include "base/json.h"
#include "jobs/jobs.h"
#include "jobs/spec.h"
#include "tests/unit/unit.h"

#include <string.h>

#define MODEL "\"model\":\"mdl_01J00000000000000000000000\""

static json_t *parse(const char *text)
{
    json_t *value;
    ck_assert_rc_ok(json_parse(text, strlen(text), 32, &value));
    return value;
}

/* A request as it is stored. */
static json_t *stored(void)
{
    struct validation_errors errors = {0};
    AUTO(job_spec) struct job_spec spec = {.metadata = NULL};
    json_t *body =
        parse("{" MODEL ",\"method\":\"gptq\",\"name\":\"first\",\"priority\":3,\"metadata\":{\"team\":\"a\"},"
              "\"quantization\":{\"bits\":4,\"group_size\":64,\"damp_percent\":0.02},"
              "\"calibration\":{\"stream\":true}}");
    ck_assert_rc_ok(spec_parse(body, &errors, &spec));
    json_decref(body);
    json_t *request = spec_json(&spec);
    ck_assert_ptr_nonnull(request);
    return request;
}

/* `request` after the change, with `member` taken out. */
static void check_others(json_t *before, json_t *after, const char *member)
{
    json_object_del(before, member);
    json_object_del(after, member);
    ck_assert(json_equal(before, after));
}

static const struct {
    const char *body, *member, *value;
} changes[] = {
    {"{\"name\":\"second\"}", "name", "\"second\""},
    {"{\"priority\":-7}", "priority", "-7"},
    {"{\"metadata\":{\"run\":\"2\"}}", "metadata", "{\"run\":\"2\"}"},
    {"{\"metadata\":null}", "metadata", "null"},
    {"{}", "name", "\"first\""},
};

START_TEST(test_a_change_sets_what_it_names)
{
    for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
        struct validation_errors errors = {0};
        AUTO(spec_change) struct spec_change change = {.metadata = NULL};
        json_t *before = stored(), *after = stored(), *body = parse(changes[i].body);
        ck_assert_rc_ok(spec_change_parse(body, &errors, &change));
        spec_change_apply(&change, after);
        char *value = json_dumps(json_object_get(after, changes[i].member), JSON_ENCODE_ANY | JSON_COMPACT);
        ck_assert_str_eq(value, changes[i].value);
        check_others(before, after, changes[i].member);
        free(value);
        json_decref(before);
        json_decref(after);
        json_decref(body);
    }
}
END_TEST

static const struct {
    const char *body, *pointer;
    int code;
} refused[] = {
    {"[]", "", ERR_INVALID_PARAMETER},
    {"{\"seed\":1}", "/seed", ERR_UNKNOWN_PARAMETER},
    {"{\"priority\":101}", "/priority", ERR_INVALID_PARAMETER},
    {"{\"name\":7}", "/name", ERR_INVALID_PARAMETER},
    {"{\"metadata\":{\"run\":2}}", "/metadata", ERR_INVALID_PARAMETER},
};

START_TEST(test_refused_changes)
{
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        struct validation_errors errors = {0};
        struct spec_change change = {.metadata = NULL};
        json_t *body = parse(refused[i].body);
        ck_assert_int_ne(spec_change_parse(body, &errors, &change), 0);
        ck_assert_uint_eq(errors.count, 1);
        ck_assert_str_eq(errors.items[0].param, refused[i].pointer);
        ck_assert_int_eq(errors.items[0].code, refused[i].code);
        json_decref(body);
    }
}
END_TEST

START_TEST(test_a_retry_without_changes)
{
    struct validation_errors errors = {0};
    json_t *request = stored(), *merged;
    ck_assert_rc_ok(spec_retry(request, NULL, &errors, &merged));
    ck_assert(json_equal(request, merged));
    json_decref(merged);
    json_decref(request);
}
END_TEST

/* Members of an object replace its members one by one, by whichever of their names they are given. */
START_TEST(test_a_retry_with_changes)
{
    struct validation_errors errors = {0};
    json_t *request = stored(), *before = json_deep_copy(request), *merged;
    json_t *body = parse("{\"quantization\":{\"percdamp\":0.1},\"max_attempts\":5}");
    AUTO(job_spec) struct job_spec spec = {.metadata = NULL};
    ck_assert_rc_ok(spec_retry(request, body, &errors, &merged));
    ck_assert(json_equal(request, before));
    ck_assert_rc_ok(spec_parse(merged, &errors, &spec));
    json_t *after = spec_json(&spec);
    const json_t *parameters = json_object_get(after, "quantization");
    ck_assert_double_eq(json_number_value(json_object_get(parameters, "damp_percent")), 0.1);
    ck_assert_int_eq(json_integer_value(json_object_get(parameters, "group_size")), 64);
    ck_assert_int_eq(json_integer_value(json_object_get(after, "max_attempts")), 5);
    json_object_del(before, "quantization");
    json_object_del(after, "quantization");
    check_others(before, after, "max_attempts");
    json_decref(after);
    json_decref(merged);
    json_decref(body);
    json_decref(before);
    json_decref(request);
}
END_TEST

static const struct {
    const char *body, *pointer;
    int code;
} not_retried[] = {
    {"7", "", ERR_INVALID_PARAMETER},
    {"{\"seed\":1}", "/seed", ERR_UNKNOWN_PARAMETER},
    {"{\"calibration\":{\"stream\":true}}", "/calibration", ERR_UNKNOWN_PARAMETER},
};

START_TEST(test_refused_retries)
{
    for (size_t i = 0; i < sizeof(not_retried) / sizeof(not_retried[0]); i++) {
        struct validation_errors errors = {0};
        json_t *request = stored(), *merged = NULL;
        json_t *body = json_loads(not_retried[i].body, JSON_DECODE_ANY, NULL);
        ck_assert_int_ne(spec_retry(request, body, &errors, &merged), 0);
        ck_assert_ptr_null(merged);
        ck_assert_uint_eq(errors.count, 1);
        ck_assert_str_eq(errors.items[0].param, not_retried[i].pointer);
        ck_assert_int_eq(errors.items[0].code, not_retried[i].code);
        json_decref(body);
        json_decref(request);
    }
}
END_TEST

UNIT_MAIN("spec_change", test_a_change_sets_what_it_names, test_refused_changes, test_a_retry_without_changes,
          test_a_retry_with_changes, test_refused_retries)
