/* JSON input: the depth guard, duplicates, where an error lies, and range-checked members. */

#include "tests/unit/unit.h"

#include "base/json.h"

#include <malloc.h>
#include <string.h>

static int parse(const char *text, int depth)
{
    json_t *value = NULL;
    int rc = json_parse(text, strlen(text), depth, &value);

    ck_assert((rc == 0) == (value != NULL));
    json_decref(value);
    return rc;
}

START_TEST(depth_is_counted_before_parsing)
{
    char bomb[4097];

    ck_assert_rc_ok(parse("[[[1]]]", 3));
    ck_assert_int_eq(parse("[[[1]]]", 2), ERR_INVALID_JSON);
    ck_assert_rc_ok(parse("[\"[[[[[[\", {\"\\\"[[[\": 1}]", 2)); /* brackets in strings are text */
    ck_assert_rc_ok(parse("[[1], [1], [1]]", 2));
    memset(bomb, '[', sizeof(bomb) - 1);
    bomb[sizeof(bomb) - 1] = '\0';
    ck_assert_int_eq(parse(bomb, 32), ERR_INVALID_JSON);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "32"));
}
END_TEST

/* Memory that jansson has, and had at most. */
static size_t held, held_most;

static void *count_malloc(size_t size)
{
    void *memory = malloc(size);

    held += malloc_usable_size(memory) + sizeof(size_t);
    held_most = held > held_most ? held : held_most;
    return memory;
}

static void count_free(void *memory)
{
    if (memory != NULL) {
        held -= malloc_usable_size(memory) + sizeof(size_t);
    }
    free(memory);
}

/* As many copies of `piece` between commas as fill size bytes, with a number where it has a '#'. */
static char *repeat(const char *piece, size_t size)
{
    bool members = piece[0] == '"' && strchr(piece, ':') != NULL;
    size_t at = 0, length = strlen(piece);
    char *text = malloc(size + length + 32);

    text[at++] = members ? '{' : '[';
    for (int n = 0; at < size; n++) {
        size_t before = strcspn(piece, "#");
        memcpy(text + at, piece, before);
        at += before;
        if (before < length) {
            at += (size_t)snprintf(text + at, 16, "%d", n);
            memcpy(text + at, piece + before + 1, length - before - 1);
            at += length - before - 1;
        }
        text[at++] = ',';
    }
    text[at - 1] = members ? '}' : ']';
    text[at] = '\0';
    return text;
}

/* The bytes that reading this text takes at most; 0 when it is refused before the parser begins. */
static size_t cost(const char *text, size_t memory)
{
    const struct json_budget budget = {.depth = 8, .memory = memory, .flags = JSON_REJECT_DUPLICATES};
    json_t *value = NULL;

    held_most = 0;
    int rc = json_parse_within(text, strlen(text), &budget, &value);
    ck_assert_msg(rc == 0 || (rc == ERR_INVALID_JSON && held_most == 0), "%s", err_last()->message);
    json_decref(value);
    ck_assert_uint_eq(held, 0);
    return held_most;
}

/* Whatever a text is made of: what is read takes no more memory than its budget, and a few times what it takes is
 * enough of a budget. */
START_TEST(memory_is_measured_before_parsing)
{
    static const char *const pieces[] = {
        "{}",
        "[]",
        "1",
        "1.5",
        "\"\"",
        "[{},{}]",
        "null",
        "[1, 2]",
        "true",
        "[\"\"]",
        "[[]]",
        "\"abc#\"",
        "{\"#\":{}}",
        "\"#\":1",
        "\"#\":{}",
        "\"#\":[]",
        "[-1e5]",
        "\"#\": \"x\"",
        "\"\\u0041#\"",
        "\"a very long name of a member, number #\":[\"and a text\"]",
    };
    static const size_t sizes[] = {40, 5000, 400000};

    json_set_alloc_funcs(count_malloc, count_free);
    for (size_t i = 0; i < sizeof(pieces) / sizeof(pieces[0]); i++) {
        for (size_t k = 0; k < sizeof(sizes) / sizeof(sizes[0]); k++) {
            char *text = repeat(pieces[i], sizes[k]);
            size_t taken = cost(text, SIZE_MAX);
            ck_assert_uint_gt(taken, 0);
            /* The parser's own buffers have a few hundred bytes, in addition to what long texts need. */
            ck_assert_msg(k == 0 || cost(text, taken - 1024) == 0, "%s: %zu bytes were not seen", pieces[i], taken);
            ck_assert_msg(cost(text, 8 * taken) > 0, "%s: %zu bytes seen as far more", pieces[i], taken);
            free(text);
        }
    }
    json_set_alloc_funcs(malloc, free);
}
END_TEST

/* 4 MiB of "{}," would be a tree of more than 300 MiB. */
START_TEST(a_small_text_with_a_large_tree)
{
    char *text = repeat("{}", (size_t)4 << 20);
    json_t *value = NULL;

    ck_assert_int_eq(json_parse(text, strlen(text), 32, &value), ERR_INVALID_JSON);
    ck_assert_ptr_null(value);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "at most 16 MiB"));
    free(text);
    text = repeat("\"some text\"", (size_t)1 << 20); /* of a size as requests may have */
    ck_assert_rc_ok(json_parse(text, strlen(text), 32, &value));
    json_decref(value);
    free(text);
}
END_TEST

START_TEST(what_is_wrong_is_refused)
{
    static const char *const rows[] = {
        "",
        "{",
        "[1,]",
        "{\"a\":1,\"a\":2}",
        "[1] x",
        "'a'",
        "nul",
        "\"\xff\"",
        "\"\\ud800\"",
        "[1e999]",
        "[9223372036854775808]",
        "{\"a\\u0000\": 1}",
        "\"\\",
        "[\"a",
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        ck_assert_int_eq(parse(rows[i], 8), ERR_INVALID_JSON);
    }
    ck_assert_int_eq(parse("{\n  \"a\": tru\n}", 8), ERR_INVALID_JSON);
    ck_assert_ptr_nonnull(strstr(err_last()->message, "line 2"));
}
END_TEST

START_TEST(scalars_are_values)
{
    ck_assert_rc_ok(parse("1", 0));
    ck_assert_rc_ok(parse(" \"x\" ", 0));
    ck_assert_rc_ok(parse("null", 0));
}
END_TEST

START_TEST(members_are_checked)
{
    json_t *o = json_loads("{\"i\": 5, \"r\": 1.5, \"b\": true, \"s\": \"t\", \"n\": null}", 0, NULL);
    int64_t i = 99;
    double d = 99;
    bool b = false;

    ck_assert_int_eq(json_get_int(o, "i", 5, 5, &i), 1);
    ck_assert_int_eq(i, 5);
    ck_assert_int_eq(json_get_int(o, "i", 6, 9, &i), ERR_INVALID_PARAMETER);
    ck_assert_int_eq(json_get_int(o, "i", -9, 4, &i), ERR_INVALID_PARAMETER);
    ck_assert_int_eq(json_get_int(o, "r", 0, 9, &i), ERR_INVALID_PARAMETER);
    ck_assert_int_eq(json_get_int(o, "n", 0, 9, &i), 0);
    ck_assert_int_eq(json_get_int(o, "absent", 0, 9, &i), 0);
    ck_assert_int_eq(json_get_int(NULL, "i", 0, 9, &i), 0);
    ck_assert_int_eq(i, 5);
    ck_assert_int_eq(json_get_number(o, "i", &d), 1);
    ck_assert_double_eq(d, 5);
    ck_assert_int_eq(json_get_number(o, "r", &d), 1);
    ck_assert_double_eq(d, 1.5);
    ck_assert_int_eq(json_get_number(o, "s", &d), ERR_INVALID_PARAMETER);
    ck_assert_int_eq(json_get_number(o, "n", &d), 0);
    ck_assert_int_eq(json_get_bool(o, "b", &b), 1);
    ck_assert(b);
    ck_assert_int_eq(json_get_bool(o, "i", &b), ERR_INVALID_PARAMETER);
    ck_assert_int_eq(json_get_bool(o, "n", &b), 0);
    ck_assert_str_eq(json_get_string(o, "s"), "t");
    ck_assert_ptr_null(json_get_string(o, "i"));
    ck_assert_ptr_null(json_get_string(o, "absent"));
    json_decref(o);
}
END_TEST

static json_t *loaded(const char *text)
{
    json_t *value = json_loads(text, JSON_DECODE_ANY, NULL);

    ck_assert_msg(value != NULL, "%s", text);
    return value;
}

START_TEST(merge_patches_are_those_of_the_rfc)
{
    static const struct {
        const char *target, *patch, *result;
    } rows[] = {
        {"{\"a\":\"b\"}", "{\"a\":\"c\"}", "{\"a\":\"c\"}"},
        {"{\"a\":\"b\"}", "{\"b\":\"c\"}", "{\"a\":\"b\",\"b\":\"c\"}"},
        {"{\"a\":\"b\",\"b\":\"c\"}", "{\"a\":null}", "{\"b\":\"c\"}"},
        {"{\"a\":[\"b\"]}", "{\"a\":\"c\"}", "{\"a\":\"c\"}"},
        {"{\"a\":{\"b\":\"c\"}}", "{\"a\":{\"b\":\"d\",\"c\":null}}", "{\"a\":{\"b\":\"d\"}}"},
        {"{\"a\":[{\"b\":\"c\"}]}", "{\"a\":[1]}", "{\"a\":[1]}"},
        {"[\"a\",\"b\"]", "[\"c\",\"d\"]", "[\"c\",\"d\"]"},
        {"{\"a\":\"foo\"}", "\"bar\"", "\"bar\""},
        {"[1,2]", "{\"a\":\"b\",\"c\":null}", "{\"a\":\"b\"}"},
        {"{}", "{\"a\":{\"bb\":{\"ccc\":null}}}", "{\"a\":{\"bb\":{}}}"},
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        json_t *target = loaded(rows[i].target), *patch = loaded(rows[i].patch), *before = json_deep_copy(target);
        json_t *result = loaded(rows[i].result), *got = json_merge_patch(target, patch);
        ck_assert_msg(json_equal(got, result), "row %zu", i);
        ck_assert(json_equal(target, before));
        json_decref(got);
        json_decref(result);
        json_decref(before);
        json_decref(patch);
        json_decref(target);
    }
}
END_TEST

UNIT_MAIN("json", depth_is_counted_before_parsing, memory_is_measured_before_parsing, a_small_text_with_a_large_tree,
          what_is_wrong_is_refused, scalars_are_values, members_are_checked, merge_patches_are_those_of_the_rfc)
