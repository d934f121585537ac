/* Log lines as a reader of standard error meets them. */

#include "tests/unit/unit.h"

#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int saved_stderr, reading;

static void capture(void)
{
    int ends[2];

    ck_assert_int_eq(pipe(ends), 0);
    saved_stderr = dup(STDERR_FILENO);
    ck_assert_int_ge(dup2(ends[1], STDERR_FILENO), 0);
    close(ends[1]);
    reading = ends[0];
}

/* What came since capture, NUL-terminated. */
static void release(char *out, size_t size)
{
    ck_assert_int_ge(dup2(saved_stderr, STDERR_FILENO), 0);
    close(saved_stderr);
    size_t used = 0;
    for (ssize_t n; (n = read(reading, out + used, size - 1 - used)) > 0;) {
        used += (size_t)n;
    }
    out[used] = '\0';
    close(reading);
}

START_TEST(a_line_is_one_json_object)
{
    char text[4096];

    capture();
    errno = EPIPE;
    log_info("job done", LOG_S("job", "job_1"), LOG_I("bytes", 12), LOG_F("seconds", 0.074), LOG_S("none", NULL));
    ck_assert_int_eq(errno, EPIPE);
    release(text, sizeof(text));
    ck_assert_ptr_eq(strchr(text, '\n'), text + strlen(text) - 1);
    json_t *line = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    ck_assert_ptr_nonnull(line);
    ck_assert_str_eq(json_string_value(json_object_get(line, "level")), "info");
    ck_assert_str_eq(json_string_value(json_object_get(line, "message")), "job done");
    ck_assert_str_eq(json_string_value(json_object_get(line, "job")), "job_1");
    ck_assert_int_eq(json_integer_value(json_object_get(line, "bytes")), 12);
    ck_assert_ptr_nonnull(strstr(text, "\"seconds\":0.074,"));
    ck_assert(json_is_null(json_object_get(line, "none")));
    ck_assert_uint_eq(json_string_length(json_object_get(line, "time")), strlen("2026-01-01T00:00:00.000Z"));
    json_decref(line);
}
END_TEST

START_TEST(hostile_values_stay_inside_their_string)
{
    char text[4096];

    capture();
    log_warn("odd name", LOG_S("name", "a\"\n{\x01"), LOG_S("bytes", "x\xff\xfez"), LOG_F("nan", NAN));
    release(text, sizeof(text));
    ck_assert_ptr_eq(strchr(text, '\n'), text + strlen(text) - 1);
    json_t *line = json_loads(text, 0, NULL);
    ck_assert_ptr_nonnull(line);
    ck_assert_str_eq(json_string_value(json_object_get(line, "name")), "a\"\n{\x01");
    ck_assert_str_eq(json_string_value(json_object_get(line, "bytes")), "x??z");
    ck_assert(json_is_null(json_object_get(line, "nan")));
    json_decref(line);
}
END_TEST

START_TEST(levels_filter)
{
    char text[4096];

    ck_assert_int_eq(log_level_parse("error"), LOG_ERROR);
    ck_assert_int_eq(log_level_parse("trace"), LOG_TRACE);
    ck_assert_int_eq(log_level_parse("loud"), -1);
    log_set_level(LOG_WARN);
    capture();
    log_info("quiet");
    log_debug("quieter");
    release(text, sizeof(text));
    ck_assert_str_eq(text, "");
    capture();
    log_error("loud");
    release(text, sizeof(text));
    ck_assert_ptr_nonnull(strstr(text, "\"error\""));
}
END_TEST

START_TEST(records_are_logged_with_their_trace)
{
    char text[4096];

    (void)err_pass(err_raise(ERR_DISK_FULL, "no space"), "writing");
    capture();
    log_err(LOG_ERROR, "job failed", "job_7");
    release(text, sizeof(text));
    json_t *line = json_loads(text, 0, NULL);
    ck_assert_str_eq(json_string_value(json_object_get(line, "code")), "insufficient_storage");
    ck_assert_str_eq(json_string_value(json_object_get(line, "detail")), "no space");
    ck_assert_str_eq(json_string_value(json_object_get(line, "job")), "job_7");
    ck_assert_ptr_nonnull(strstr(json_string_value(json_object_get(line, "trace")), "writing"));
    json_decref(line);
    capture();
    log_err(LOG_ERROR, "no job", NULL);
    release(text, sizeof(text));
    ck_assert_ptr_null(strstr(text, "\"job\""));
}
END_TEST

START_TEST(a_line_on_a_terminal_is_readable_and_safe)
{
    char text[4096] = "";
    int ours = posix_openpt(O_RDWR | O_NOCTTY);

    ck_assert_int_ge(ours, 0);
    ck_assert_int_eq(grantpt(ours), 0);
    ck_assert_int_eq(unlockpt(ours), 0);
    int theirs = open(ptsname(ours), O_RDWR | O_NOCTTY);
    ck_assert_int_ge(theirs, 0);
    saved_stderr = dup(STDERR_FILENO);
    ck_assert_int_ge(dup2(theirs, STDERR_FILENO), 0);
    log_set_trace("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    log_warn("job done", LOG_S("job", "job_1"), LOG_S("name", "a \"b\"\x1b[2J\xc2\x9b"), LOG_I("bytes", 12),
             LOG_S("none", NULL), LOG_S("empty", ""));
    log_set_trace(NULL);
    ck_assert_int_ge(dup2(saved_stderr, STDERR_FILENO), 0);
    close(saved_stderr);
    ck_assert_int_gt(read(ours, text, sizeof(text) - 1), 12);
    close(theirs);
    close(ours);
    ck_assert_str_eq(text + strlen("12:34:56.789"),
                     " warn  job done  trace_id=4bf92f3577b34da6a3ce929d0e0e4736  job=job_1"
                     "  name=\"a \\\"b\\\"\\u001B[2J\\u009B\"  bytes=12  empty=\"\"\r\n");
}
END_TEST

UNIT_MAIN("log", a_line_is_one_json_object, hostile_values_stay_inside_their_string, levels_filter,
          records_are_logged_with_their_trace, a_line_on_a_terminal_is_readable_and_safe)
