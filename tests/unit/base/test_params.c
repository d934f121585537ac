/* Option rows: every type read, every error kind with its pointer, the schema and the echo. */

#include "tests/unit/json.h"

#include "base/params.h"

#include <string.h>

struct options {
    bool sym;
    int64_t bits, count, free_count, wide;
    double damp, ratio;
    char name[8], note[8];
    int kind;
    json_t *extra, *modules;
    double share;
    int refine, needed;
};

static const char *const bit_choices[] = {"2", "3", "4", "8", NULL};
static const char *const kinds[] = {"gemm", "gemv", NULL};

#define ROW(t, member, text, ...)                                                      \
    {                                                                                  \
        .name = #member, .type = (t), .offset = offsetof(struct options, member),      \
        .size = sizeof(((struct options *)0)->member), .fallback = (text), __VA_ARGS__ \
    }

static const struct params_row first_rows[] = {
    ROW(PARAMS_BOOL, sym, "true", .help = "Symmetric."),       ROW(PARAMS_INT, bits, NULL, .choices = bit_choices),
    ROW(PARAMS_INT, count, "5", .min = 1, .max = 10),          ROW(PARAMS_INT, free_count, "-3", .min = 0),
    ROW(PARAMS_INT, wide, "0", .min = -0x1p63, .max = 0x1p63), {.name = NULL},
};
static const struct params_row second_rows[] = {
    ROW(PARAMS_NUMBER, damp, "0.01", .min = 0, .max = 1, .exclusive = true),
    ROW(PARAMS_NUMBER, ratio, "1", .min = -1, .max = 1),
    ROW(PARAMS_STRING, name, "\"none\"", .help = NULL),
    ROW(PARAMS_STRING, note, "null", .help = NULL),
    ROW(PARAMS_ENUM, kind, "\"gemm\"", .choices = kinds),
    ROW(PARAMS_JSON, extra, "null", .help = NULL),
    ROW(PARAMS_STRINGS, modules, "[\"lm_head\"]", .help = NULL),
    ROW(PARAMS_NUMBER, share, "null", .min = 0, .max = 1),
    ROW(PARAMS_SWITCH, refine, "null", .help = NULL),
    ROW(PARAMS_SWITCH, needed, "true", .help = NULL),
    {.name = NULL},
};
static const struct params_row *const tables[] = {first_rows, second_rows, NULL};

static int parse(const char *text, struct options *out, struct validation_errors *errors)
{
    json_error_t error;
    json_t *object = json_loads(text, JSON_DECODE_ANY, &error);

    ck_assert_msg(object != NULL, "%s", error.text);
    memset(out, 0, sizeof(*out));
    memset(errors, 0, sizeof(*errors));
    int rc = params_parse(tables, object, "/quantization", out, errors);
    json_decref(object);
    return rc;
}

START_TEST(defaults_fill_what_is_absent)
{
    struct options options;
    struct validation_errors errors;

    ck_assert_rc_ok(parse("{\"bits\": 4}", &options, &errors));
    ck_assert(options.sym);
    ck_assert_int_eq(options.bits, 4);
    ck_assert_int_eq(options.count, 5);
    ck_assert_int_eq(options.free_count, -3);
    ck_assert_double_eq(options.damp, 0.01);
    ck_assert_double_eq(options.ratio, 1);
    ck_assert_str_eq(options.name, "none");
    ck_assert_int_eq(options.kind, 0);
    ck_assert_ptr_null(options.extra);
    ck_assert_uint_eq(json_array_size(options.modules), 1);
    ck_assert_double_nan(options.share);
    ck_assert_int_eq(options.refine, PARAMS_AUTO);
    ck_assert_int_eq(options.needed, PARAMS_ON);
    json_t *echo = params_json(tables, &options);
    ck_assert(json_is_null(json_object_get(echo, "share")));
    ck_assert(json_is_null(json_object_get(echo, "refine")));
    ck_assert(json_is_true(json_object_get(echo, "needed")));
    json_decref(echo);
    params_release(tables, &options);
    ck_assert_ptr_null(options.modules);
}
END_TEST

START_TEST(given_values_are_read)
{
    struct options options;
    struct validation_errors errors;

    ck_assert_rc_ok(parse("{\"sym\": false, \"bits\": 3, \"count\": 10, \"damp\": 1e-3, \"ratio\": -1, \"name\": "
                          "\"sevenxx\", \"kind\": \"gemv\", \"extra\": [1], \"modules\": [], \"note\": null,"
                          " \"share\": 0.25, \"refine\": true, \"needed\": false,"
                          " \"wide\": 9223372036854775807}",
                          &options, &errors));
    ck_assert(!options.sym);
    ck_assert_int_eq(options.bits, 3);
    ck_assert_int_eq(options.count, 10);
    ck_assert_double_eq(options.damp, 1e-3);
    ck_assert_double_eq(options.ratio, -1);
    ck_assert_str_eq(options.name, "sevenxx");
    ck_assert_int_eq(options.kind, 1);
    ck_assert_int_eq(options.wide, INT64_MAX);
    ck_assert_uint_eq(json_array_size(options.extra), 1);
    json_t *echo = params_json(tables, &options);
    ck_assert_str_eq(json_string_value(json_object_get(echo, "kind")), "gemv");
    ck_assert_int_eq(json_integer_value(json_object_get(echo, "count")), 10);
    ck_assert(json_is_false(json_object_get(echo, "sym")));
    ck_assert(json_is_null(json_object_get(echo, "note")));
    ck_assert_double_eq(json_real_value(json_object_get(echo, "damp")), 1e-3);
    ck_assert_double_eq(json_real_value(json_object_get(echo, "share")), 0.25);
    ck_assert(json_is_true(json_object_get(echo, "refine")));
    ck_assert(json_is_false(json_object_get(echo, "needed")));
    ck_assert_uint_eq(json_object_size(echo), 15);
    json_decref(echo);
    params_release(tables, &options);
}
END_TEST

START_TEST(each_error_names_its_member)
{
    static const struct {
        const char *text, *param, *detail;
        int code;
    } rows[] = {
        {"{}", "/quantization/bits", "\"bits\" is required", ERR_MISSING_PARAMETER},
        {"{\"bits\": 5}", "/quantization/bits", "\"bits\" is 5; it must be one of 2, 3, 4, 8", ERR_INVALID_PARAMETER},
        {"{\"bits\": 4.0}", "/quantization/bits", "\"bits\" is 4.0; it must be an integer, one of 2, 3, 4, 8",
         ERR_INVALID_PARAMETER},
        {"{\"bits\": null}", "/quantization/bits", "\"bits\" is null; it must be an integer, one of 2, 3, 4, 8",
         ERR_INVALID_PARAMETER},
        {"{\"bits\": 4, \"sym\": 1}", "/quantization/sym", "\"sym\" is 1; it must be true or false",
         ERR_INVALID_PARAMETER},
        {"{\"bits\": 4, \"sym\": null}", "/quantization/sym", "\"sym\" is null; it must be true or false",
         ERR_INVALID_PARAMETER},
        {"{\"bits\": 4, \"refine\": \"auto\"}", "/quantization/refine",
         "\"refine\" is \"auto\"; it must be true, false or null", ERR_INVALID_PARAMETER},
        {"{\"bits\": 4, \"share\": 2}", "/quantization/share", "\"share\" is 2; it must be a number from 0 to 1",
         ERR_INVALID_PARAMETER},
        {"{\"bits\": 4, \"count\": 0}", "/quantization/count", "\"count\" is 0; it must be an integer from 1 to 10",
         ERR_INVALID_PARAMETER},
        {"{\"bits\": 4, \"count\": 11}", "/quantization/count", "\"count\" is 11; it must be an integer from 1 to 10",
         ERR_INVALID_PARAMETER},
        {"{\"bits\": 4, \"damp\": 0}", "/quantization/damp", "\"damp\" is 0; it must be a number above 0 and below 1",
         ERR_INVALID_PARAMETER},
        {"{\"bits\": 4, \"damp\": 1.0}", "/quantization/damp",
         "\"damp\" is 1.0; it must be a number above 0 and below 1", ERR_INVALID_PARAMETER},
        {"{\"bits\": 4, \"damp\": \"x\"}", "/quantization/damp",
         "\"damp\" is \"x\"; it must be a number above 0 and below 1", ERR_INVALID_PARAMETER},
        {"{\"bits\": 4, \"ratio\": 1.5}", "/quantization/ratio", "\"ratio\" is 1.5; it must be a number from -1 to 1",
         ERR_INVALID_PARAMETER},
        {"{\"bits\": 4, \"name\": \"eightxxx\"}", "/quantization/name",
         "\"name\" is \"eightxxx\"; it must be a string of at most 7 bytes", ERR_INVALID_PARAMETER},
        {"{\"bits\": 4, \"name\": 1}", "/quantization/name", "\"name\" is 1; it must be a string of at most 7 bytes",
         ERR_INVALID_PARAMETER},
        {"{\"bits\": 4, \"kind\": \"marlin\"}", "/quantization/kind",
         "\"kind\" is \"marlin\"; it must be one of gemm, gemv", ERR_INVALID_PARAMETER},
        {"{\"bits\": 4, \"modules\": {}}", "/quantization/modules",
         "\"modules\" is an object; it must be a list of at most 1024 strings", ERR_INVALID_PARAMETER},
        {"{\"bits\": 4, \"modules\": [1]}", "/quantization/modules",
         "\"modules\" is a list of 1; it must be a list of strings of at most 512 bytes each", ERR_INVALID_PARAMETER},
        {"{\"bits\": 4, \"bit\": 4}", "/quantization/bit", "\"bit\" is not a member of \"quantization\"",
         ERR_UNKNOWN_PARAMETER},
        {"{\"bits\": 4, \"a/b~c\": 4}", "/quantization/a~1b~0c", "\"a/b~c\" is not a member of \"quantization\"",
         ERR_UNKNOWN_PARAMETER},
        {"[]", "/quantization", "\"quantization\" is a list of 0; it must be an object", ERR_INVALID_PARAMETER},
        {"null", "/quantization", "\"quantization\" is null; it must be an object", ERR_INVALID_PARAMETER},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct options options;
        struct validation_errors errors;
        ck_assert_int_eq(parse(rows[i].text, &options, &errors), rows[i].code);
        ck_assert_uint_eq(errors.count, 1);
        ck_assert_int_eq(errors.items[0].code, rows[i].code);
        ck_assert_str_eq(errors.items[0].param, rows[i].param);
        ck_assert_str_eq(errors.items[0].detail, rows[i].detail);
        ck_assert_ptr_null(options.modules); /* released */
    }
}
END_TEST

START_TEST(other_spellings)
{
    static const char *const bits_names[] = {"num_bits", "w_bit", NULL};
    static const char *const sym_names[] = {"symmetric", "!zero_point", NULL};
    struct small {
        int64_t bits;
        bool sym;
    } small;
    const struct params_row rows[] = {
        {.name = "bits",
         .type = PARAMS_INT,
         .offset = offsetof(struct small, bits),
         .size = sizeof(small.bits),
         .fallback = "4",
         .min = 2,
         .max = 8,
         .aliases = bits_names},
        {.name = "sym",
         .type = PARAMS_BOOL,
         .offset = offsetof(struct small, sym),
         .size = sizeof(small.sym),
         .fallback = "true",
         .aliases = sym_names},
        {.name = NULL},
    };
    const struct params_row *const small_tables[] = {rows, NULL};
    static const struct {
        const char *text, *param, *detail, *hint;
    } refused[] = {
        {"{\"w_bit\": 9}", "/q/w_bit", "\"w_bit\" is 9; it must be an integer from 2 to 8", ""},
        {"{\"bits\": 4, \"w_bit\": 4}", "/q/w_bit", "\"w_bit\" is another name of \"bits\", which is there too",
         "give one of them"},
        {"{\"zero_point\": 1}", "/q/zero_point", "\"zero_point\" is 1; it must be true or false", ""},
        {"{\"num_bitz\": 4}", "/q/num_bitz", "\"num_bitz\" is not a member of \"q\"", "did you mean \"bits\"?"},
        {"{\"colour\": 4}", "/q/colour", "\"colour\" is not a member of \"q\"", "the members are bits, sym"},
    };
    struct validation_errors errors = {0};
    json_t *object = json_loads("{\"w_bit\": 3, \"zero_point\": true}", 0, NULL);

    ck_assert_rc_ok(params_parse(small_tables, object, "/q", &small, &errors));
    ck_assert_int_eq(small.bits, 3);
    ck_assert(!small.sym);
    json_decref(object);
    json_t *schema = params_schema(small_tables);
    json_t *names = json_object_get(json_object_get(json_object_get(schema, "properties"), "sym"), "x-aliases");
    ck_assert_str_eq(json_string_value(json_array_get(names, 1)), "zero_point");
    json_decref(schema);
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        errors = (struct validation_errors){0};
        object = json_loads(refused[i].text, 0, NULL);
        ck_assert_int_lt(params_parse(small_tables, object, "/q", &small, &errors), 0);
        json_decref(object);
        ck_assert_uint_eq(errors.count, 1);
        ck_assert_str_eq(errors.items[0].param, refused[i].param);
        ck_assert_str_eq(errors.items[0].detail, refused[i].detail);
        ck_assert_str_eq(errors.items[0].hint, refused[i].hint);
    }
}
END_TEST

START_TEST(all_errors_are_reported_at_once)
{
    struct options options;
    struct validation_errors errors;

    ck_assert_int_eq(parse("{\"count\": 99, \"damp\": 2, \"kind\": 7, \"x\": 1, \"y\": 1}", &options, &errors),
                     ERR_MISSING_PARAMETER);
    ck_assert_uint_eq(errors.count, 6);
}
END_TEST

/* A full list still says that this object is wrong. */
START_TEST(a_full_list_is_no_success)
{
    struct options options = {0};
    struct validation_errors errors = {0};
    json_t *object = json_object();

    for (int i = 0; i < VALIDATION_ERRORS_MAX; i++) {
        validation_add(&errors, ERR_TIMEOUT, "/before", "x");
    }
    ck_assert_int_lt(params_parse(tables, object, "", &options, &errors), 0);
    ck_assert_uint_eq(errors.count, VALIDATION_ERRORS_MAX);
    ck_assert_uint_eq(errors.dropped, 1);
    json_decref(object);
}
END_TEST

START_TEST(a_long_unknown_name_stays_valid_text)
{
    struct options options;
    struct validation_errors errors;
    char text[1024] = "{\"bits\": 4, \"x";

    for (int i = 0; i < 200; i++) {
        strcat(text, "\xc3\xa9");
    }
    strcat(text, "\": 1}");
    ck_assert_int_eq(parse(text, &options, &errors), ERR_UNKNOWN_PARAMETER);
    json_t *pointer = json_string(errors.items[0].param);
    ck_assert_ptr_nonnull(pointer);
    json_decref(pointer);
}
END_TEST

START_TEST(schema_tells_the_rows)
{
    json_t *schema = params_schema(tables);
    const json_t *properties = json_object_get(schema, "properties");

    assert_json(json_object_get(schema, "required"), "[\"bits\"]");
    ck_assert(json_is_false(json_object_get(schema, "additionalProperties")));
    assert_json(json_object_get(properties, "sym"),
                "{\"type\": \"boolean\", \"default\": true, \"description\": \"Symmetric.\"}");
    assert_json(json_object_get(properties, "bits"), "{\"type\": \"integer\", \"enum\": [2, 3, 4, 8]}");
    assert_json(json_object_get(properties, "count"),
                "{\"type\": \"integer\", \"minimum\": 1, \"maximum\": 10, \"default\": 5}");
    assert_json(json_object_get(properties, "wide"),
                "{\"type\": \"integer\", \"minimum\": -9223372036854775808, \"maximum\": 9223372036854775807,"
                " \"default\": 0}");
    assert_json(json_object_get(properties, "damp"),
                "{\"type\": \"number\", \"exclusiveMinimum\": 0.0, \"exclusiveMaximum\": 1.0, \"default\": 0.01}");
    assert_json(json_object_get(properties, "note"),
                "{\"type\": [\"string\", \"null\"], \"maxLength\": 7, \"default\": null}");
    assert_json(json_object_get(properties, "share"),
                "{\"type\": [\"number\", \"null\"], \"minimum\": 0.0, \"maximum\": 1.0, \"default\": null}");
    assert_json(json_object_get(properties, "refine"), "{\"type\": [\"boolean\", \"null\"], \"default\": null}");
    assert_json(json_object_get(properties, "kind"),
                "{\"type\": \"string\", \"enum\": [\"gemm\", \"gemv\"], \"default\": \"gemm\"}");
    assert_json(json_object_get(properties, "extra"), "{\"default\": null}");
    assert_json(json_object_get(properties, "modules"),
                "{\"type\": \"array\", \"items\": {\"type\": \"string\"}, \"default\": [\"lm_head\"]}");
    json_decref(schema);
}
END_TEST

/* A quiet member is shown once it differs from its fallback. */
START_TEST(quiet_members_are_left_out)
{
    static const struct params_row rows[] = {ROW(PARAMS_INT, count, "5", .min = 1, .max = 10, .quiet = true),
                                             {.name = NULL}};
    static const struct params_row *const quiet[] = {rows, NULL};
    struct options options = {.count = 5};
    json_t *echo = params_json(quiet, &options);

    ck_assert_uint_eq(json_object_size(echo), 0);
    json_decref(echo);
    options.count = 6;
    echo = params_json(quiet, &options);
    ck_assert_int_eq(json_integer_value(json_object_get(echo, "count")), 6);
    json_decref(echo);
}
END_TEST

UNIT_MAIN("params", defaults_fill_what_is_absent, given_values_are_read, each_error_names_its_member, other_spellings,
          all_errors_are_reported_at_once, a_full_list_is_no_success, a_long_unknown_name_stays_valid_text,
          schema_tells_the_rows, quiet_members_are_left_out)
