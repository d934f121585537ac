/* Job files: YAML and JSON give the same tree, and what neither should have is refused with its line. */

#include "cli/jobfile.h"
#include "tests/unit/unit.h"

#include <string.h>

static void same(const char *yaml, const char *json)
{
    json_error_t error;
    json_t *got = NULL, *wanted = json_loads(json, JSON_DECODE_ANY, &error);

    ck_assert_msg(wanted != NULL, "%s: %s", json, error.text);
    ck_assert_rc_ok(jobfile_parse("job.yaml", yaml, strlen(yaml), &got));
    char *text = json_dumps(got, JSON_SORT_KEYS);
    ck_assert_msg(json_equal(got, wanted) == 1, "%s gave %s", yaml, text);
    free(text);
    json_decref(got);
    json_decref(wanted);
}

START_TEST(test_yaml)
{
    same("model: tiny\nmethod: gptq\n", "{\"model\": \"tiny\", \"method\": \"gptq\"}");
    same("method: [smoothquant, gptq]\nquantization:\n  bits: 4\n  overrides:\n    - {match: \"re:.*down\", bits: 8}\n"
         "    - match: model.layers.0.*\n      skip: true\n",
         "{\"method\": [\"smoothquant\", \"gptq\"], \"quantization\": {\"bits\": 4, \"overrides\": ["
         "{\"match\": \"re:.*down\", \"bits\": 8}, {\"match\": \"model.layers.0.*\", \"skip\": true}]}}");
    same("a: ~\nb: null\nc:\nd: 'null'\ne: yes\nf: on\ng: FALSE\nh: tRUE\n",
         "{\"a\": null, \"b\": null, \"c\": null, \"d\": \"null\", \"e\": \"yes\", \"f\": \"on\", \"g\": false, \"h\": "
         "\"tRUE\"}");
    same("a: 0.01\nb: 1e-3\nc: -5\nd: 1.\ne: .5\nf: 1e\ng: '4'\nh: 0x10\ni: 1_000\nj: 9223372036854775807\nk: +3\nl: "
         "'-'\n",
         "{\"a\": 0.01, \"b\": 0.001, \"c\": -5, \"d\": 1.0, \"e\": 0.5, \"f\": \"1e\", \"g\": \"4\", \"h\": \"0x10\","
         " \"i\": \"1_000\", \"j\": 9223372036854775807, \"k\": 3, \"l\": \"-\"}");
    same("a: .inf\nb: .nan\nc: 1e999\n", "{\"a\": \".inf\", \"b\": \".nan\", \"c\": \"1e999\"}");
    same("text: |\n  two\n  lines\n", "{\"text\": \"two\\nlines\\n\"}");
    same("{}", "{}");
    same("  {\"a\": [1, {\"b\": 2.5}]}", "{\"a\": [1, {\"b\": 2.5}]}");
    same("---\na: 1\n...\n", "{\"a\": 1}");
}
END_TEST

START_TEST(test_faults)
{
    static const struct {
        const char *text, *message;
    } faults[] = {
        {"", "job file has members"},
        {"just text", "job file has members"},
        {"- a\n- b\n", "job file has members"},
        {"[]", "job file has members"},
        {"a: 1\nb: 2\na: 3\n", "job:3: \"a\" is given twice"},
        {"a: &x 1\nb: *x\n", "job:1: anchors"},
        {"a: 1\nb: *x\n", "job:2: aliases"},
        {"a: !!str 1\n", "job:1: anchors and tags"},
        {"a: !!binary aGk=\n", "job:1: anchors and tags"},
        {"a: &x {b: 1}\nc:\n  <<: *x\n", "job:1: anchors"},
        {"<<: {b: 1}\n", "job:1: merge keys"},
        {"{\"<<\": 1, \"<<\": 2}", "duplicate"},
        {"a: 1\n---\nb: 2\n", "job:2: a second document"},
        {"? [a]\n: b\n", "job:1: a key must be text"},
        {"a: {b: [1, 2}\n", "job:1"},
        {"a: \xff\n", "job:"},
        {"{\"a\": 1, \"a\": 2}", "job: line 1"},
        {"{\"a\": 1", "job: line 1"},
        {"a: \"\\0\": 1", "job:1"},
        {"\"a\\0b\": 1", "job:1: a key has a NUL"},
    };

    for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
        json_t *value = NULL;
        int rc = jobfile_parse("job", faults[i].text, strlen(faults[i].text), &value);
        ck_assert_msg(rc == ERR_CONFIG && strstr(err_last()->message, faults[i].message) != NULL, "%s: %d %s",
                      faults[i].text, rc, err_last()->message);
        ck_assert_ptr_null(value);
    }
}
END_TEST

START_TEST(test_depth)
{
    char text[400] = "a: ";
    json_t *value = NULL;

    memset(text + 3, '[', 100);
    memset(text + 103, ']', 100);
    ck_assert_int_eq(jobfile_parse("job", text, strlen(text), &value), ERR_CONFIG);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "too deep"));
}
END_TEST

UNIT_MAIN("cli_jobfile", test_yaml, test_faults, test_depth)
