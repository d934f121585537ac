/* Records: what a raise keeps, what a pass adds, the tables of the codes, and texts that are not valid UTF-8. */

#include "tests/unit/unit.h"

#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <string.h>

START_TEST(raise_fills_the_record)
{
    errno = EPIPE;
    int rc = err_raise(ERR_NOT_FOUND, "no \"%s\" among %d", "it", 3);
    ck_assert_int_eq(errno, EPIPE);
    ck_assert_int_eq(rc, ERR_NOT_FOUND);
    ck_assert_int_eq(err_last()->code, ERR_NOT_FOUND);
    ck_assert_str_eq(err_last()->message, "no \"it\" among 3");
    ck_assert_str_eq(err_last()->param, "");
    ck_assert_str_eq(err_last()->hint, "");
    ck_assert_int_eq(strncmp(err_last()->trace, "test_err.c:", 11), 0);
}
END_TEST

START_TEST(pass_adds_lines)
{
    int rc = err_pass(err_raise(ERR_STORAGE, "inner"), "outer %d", 1);
    ck_assert_int_eq(rc, ERR_STORAGE);
    ck_assert_str_eq(err_last()->message, "inner");
    ck_assert_ptr_nonnull(strstr(err_last()->trace, "inner; test_err.c:"));
    ck_assert_ptr_nonnull(strstr(err_last()->trace, "outer 1"));
}
END_TEST

START_TEST(pass_of_a_bare_code_makes_a_record)
{
    (void)err_raise(ERR_STORAGE, "stale");
    (void)err_pass(ERR_TIMEOUT, "waiting");
    ck_assert_int_eq(err_last()->code, ERR_TIMEOUT);
    ck_assert_str_eq(err_last()->message, err_sentence(ERR_TIMEOUT));
    ck_assert_ptr_null(strstr(err_last()->trace, "stale"));
}
END_TEST

START_TEST(a_long_trace_ends_quietly)
{
    int rc = err_raise(ERR_STORAGE, "%0600d", 1);
    for (int i = 0; i < 100; i++) {
        rc = err_pass(rc, "again and again %d", i);
    }
    ck_assert_uint_lt(strlen(err_last()->trace), sizeof(err_last()->trace));
    ck_assert_uint_lt(strlen(err_last()->message), sizeof(err_last()->message));
}
END_TEST

START_TEST(param_and_hint)
{
    int rc = err_set_param(err_raise(ERR_INVALID_PARAMETER, "bad"), "/quantization/bits");
    rc = err_set_hint(rc, "choose %d", 4);
    ck_assert_int_eq(rc, ERR_INVALID_PARAMETER);
    ck_assert_str_eq(err_last()->param, "/quantization/bits");
    ck_assert_str_eq(err_last()->hint, "choose 4");
    (void)err_raise(ERR_INTERNAL, "next");
    ck_assert_str_eq(err_last()->param, "");
    ck_assert_str_eq(err_last()->hint, "");
}
END_TEST

START_TEST(the_nearest_names_the_module)
{
    int rc = err_set_module(err_raise(ERR_NON_FINITE_VALUE, "NaN"), "model.layers.2.mlp.up_proj.weight");
    ck_assert_str_eq(err_last()->module, "model.layers.2.mlp.up_proj");
    ck_assert_int_eq(err_set_module(err_pass(rc, "on"), "model.layers.2.mlp"), ERR_NON_FINITE_VALUE);
    ck_assert_str_eq(err_last()->module, "model.layers.2.mlp.up_proj");
    err_set_module(ERR_TIMEOUT, "lm_head"); /* a bare code */
    ck_assert_str_eq(err_last()->module, "lm_head");
    ck_assert_int_eq(err_last()->code, ERR_TIMEOUT);
    (void)err_raise(ERR_DISK_FULL, "another"); /* a new record is about nothing yet */
    ck_assert_str_eq(err_last()->module, "");
}
END_TEST

START_TEST(a_message_may_quote_the_record)
{
    (void)err_raise(ERR_STORAGE, "first");
    (void)err_raise(ERR_INTERNAL, "then %s", err_last()->message);
    ck_assert_str_eq(err_last()->message, "then first");
}
END_TEST

START_TEST(errno_maps)
{
    static const struct {
        int number, code;
    } rows[] = {{ENOSPC, ERR_DISK_FULL}, {EDQUOT, ERR_DISK_FULL},  {ENOMEM, ERR_HOST_OUT_OF_MEMORY},
                {ENOENT, ERR_NOT_FOUND}, {ENOTDIR, ERR_NOT_FOUND}, {EIO, ERR_STORAGE}};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        ck_assert_int_eq(err_raise_errno(rows[i].number, "open %s", "x"), rows[i].code);
        ck_assert_ptr_nonnull(strstr(err_last()->message, "open x: "));
    }
}
END_TEST

static void *other_thread(void *data)
{
    struct err_record *out = data;
    ck_assert_int_eq(err_last()->code, 0);
    (void)err_set_hint(err_raise(ERR_DISK_FULL, "there"), "free some");
    err_take(out);
    ck_assert_int_eq(err_last()->code, 0);
    return NULL;
}

START_TEST(records_cross_threads_by_value)
{
    struct err_record record;
    pthread_t thread;
    (void)err_raise(ERR_TIMEOUT, "here");
    ck_assert_int_eq(pthread_create(&thread, NULL, other_thread, &record), 0);
    pthread_join(thread, NULL);
    ck_assert_int_eq(err_last()->code, ERR_TIMEOUT);
    err_restore(&record);
    ck_assert_int_eq(err_last()->code, ERR_DISK_FULL);
    ck_assert_str_eq(err_last()->message, "there");
    ck_assert_str_eq(err_last()->hint, "free some");
}
END_TEST

START_TEST(every_row_is_whole)
{
    int count = 0;
    for (int ordinal = ERR_BASE_ + 1; ordinal < ERR_END_; ordinal++, count++) {
        int code = -ordinal;
        for (int other = ERR_BASE_ + 1; other < ordinal; other++) {
            ck_assert_str_ne(err_api_code(code), err_api_code(-other));
        }
        ck_assert_int_ge(err_http_status(code), 400);
        ck_assert_int_le(err_http_status(code), 599);
        ck_assert_uint_gt(strlen(err_sentence(code)), 10);
        ck_assert_int_le(err_group(code), ERR_GROUP_PROCESS);
    }
    ck_assert_int_gt(count, 40);
    ck_assert_str_eq(err_api_code(-1), "internal");
    ck_assert_str_eq(err_api_code(0), "internal");
    ck_assert_str_eq(err_api_code(7), "internal");
    ck_assert(err_retryable(ERR_DISK_FULL) && !err_retryable(ERR_NOT_FOUND));
    ck_assert_int_eq(err_group(ERR_STORAGE), ERR_GROUP_PROCESS);
}
END_TEST

static void assert_json(const char *text)
{
    json_t *value = json_string(text);
    ck_assert_msg(value != NULL, "not UTF-8: %s", text);
    json_decref(value);
}

/* Texts go into JSON: neither hostile bytes nor a character cut in half may keep an answer from being made. */
START_TEST(texts_are_valid_utf8)
{
    char large[2000];
    for (size_t i = 0; i + 2 < sizeof(large); i += 2) {
        memcpy(large + i, "\xc3\xa9", 3);
    }
    for (int shift = 0; shift < 2; shift++) {
        int rc = err_raise(ERR_NOT_FOUND, "%s%s", shift == 0 ? "" : "x", large);
        rc = err_pass(rc, "\xff\xfe %s", large);
        rc = err_set_param(rc, large + shift);
        rc = err_set_hint(rc, "%s%s", shift == 0 ? "" : "x", large);
        assert_json(err_last()->message);
        assert_json(err_last()->trace);
        assert_json(err_last()->param);
        assert_json(err_last()->hint);
    }
}
END_TEST

UNIT_MAIN("err", raise_fills_the_record, pass_adds_lines, pass_of_a_bare_code_makes_a_record, a_long_trace_ends_quietly,
          param_and_hint, the_nearest_names_the_module, a_message_may_quote_the_record, errno_maps,
          records_cross_threads_by_value, every_row_is_whole, texts_are_valid_utf8)
