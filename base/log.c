/* Lines, escaped by jansson; the level is checked first, so that suppressed lines cost little. */

#include "base/log.h"

#include "base/err.h"
#include "base/ids.h"
#include "base/text.h"
#include "base/trace.h"

#include <errno.h>
#include <jansson.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *const level_names[] = {"error", "warn", "info", "debug", "trace"};
#define LEVEL_COUNT ((int)(sizeof(level_names) / sizeof(level_names[0])))
#define LINE_FORMAT (JSON_COMPACT | JSON_REAL_PRECISION(9)) /* 0.074, not 0.073999999999999996 */

static _Atomic int current_level = LOG_INFO;
static _Thread_local char log_trace[TRACE_ID_SIZE];

void log_set_level(enum log_level level)
{
    atomic_store_explicit(&current_level, (int)level, memory_order_relaxed);
}

enum log_level log_get_level(void)
{
    return (enum log_level)atomic_load_explicit(&current_level, memory_order_relaxed);
}

int log_level_parse(const char *name)
{
    for (int i = 0; i < LEVEL_COUNT; i++) {
        if (strcmp(name, level_names[i]) == 0) {
            return i;
        }
    }
    return -1;
}

void log_set_trace(const char *parent)
{
    trace_id(parent, log_trace);
}

void log_set_trace_id(const char *id)
{
    (void)snprintf(log_trace, sizeof(log_trace), "%s", id);
}

const char *log_trace_id(void)
{
    return log_trace;
}

static void time_text(char *out, size_t size)
{
    int64_t ms = clock_unix_ms();
    time_t seconds = (time_t)(ms / 1000);
    struct tm utc;
    char head[32];

    gmtime_r(&seconds, &utc);
    strftime(head, sizeof(head), "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(out, size, "%s.%03dZ", head, (int)(ms % 1000));
}

/* Names come from outside and may not be valid UTF-8; the line has them repaired. */
static json_t *string_value(const char *string)
{
    json_t *value = json_string(string);
    char *copy = value == NULL ? strdup(string) : NULL;

    if (copy != NULL) {
        text_repair(copy);
        value = json_string(copy);
        free(copy);
    }
    return value;
}

static json_t *field_value(const struct log_field *field)
{
    switch (field->kind) {
    case LOG_FIELD_STRING:
        return field->string != NULL ? string_value(field->string) : json_null();
    case LOG_FIELD_INT:
        return json_integer((json_int_t)field->integer);
    default:
        return json_real(field->number);
    }
}

/* A value without quotes where it is plain: what would confuse a terminal is escaped. */
static void put_plain(FILE *out, const json_t *value)
{
    const char *text = json_string_value(value);
    bool plain = text != NULL && text[0] != '\0';

    for (const char *at = text; plain && *at != '\0'; at++) {
        plain = *at > ' ' && *at <= '~' && *at != '"' && *at != '\\' && *at != '=';
    }
    if (plain) {
        fputs(text, out);
    } else {
        (void)json_dumpf(value, out, JSON_ENCODE_ANY | JSON_ENSURE_ASCII | LINE_FORMAT);
    }
}

/* "12:34:56.789 info  message  name=value ...", malloc'ed. Absent values are left out. */
static char *readable(const json_t *line)
{
    char *text = NULL;
    size_t size = 0;
    const char *name;
    json_t *value;
    FILE *out = open_memstream(&text, &size);

    if (out == NULL) {
        return NULL;
    }
    fprintf(out, "%.12s %-5s %s", json_string_value(json_object_get(line, "time")) + strlen("2026-01-01T"),
            json_string_value(json_object_get(line, "level")), json_string_value(json_object_get(line, "message")));
    json_object_foreach((json_t *)line, name, value)
    {
        bool head = strcmp(name, "time") == 0 || strcmp(name, "level") == 0 || strcmp(name, "message") == 0;
        if (!head && !json_is_null(value)) {
            fprintf(out, "  %s=", name);
            put_plain(out, value);
        }
    }
    if (fclose(out) != 0) {
        free(text);
        return NULL;
    }
    return text;
}

static void write_line(const json_t *line)
{
    char *text = isatty(STDERR_FILENO) ? readable(line) : json_dumps(line, LINE_FORMAT);
    if (text == NULL) {
        return;
    }
    size_t length = strlen(text);
    char *line_text = realloc(text, length + 2);
    if (line_text == NULL) {
        free(text);
        return;
    }
    line_text[length] = '\n';
    ssize_t written;
    do {
        written = write(STDERR_FILENO, line_text, length + 1);
    } while (written < 0 && errno == EINTR);
    free(line_text);
}

void log_write(enum log_level level, const char *message, const struct log_field *fields)
{
    if ((int)level > atomic_load_explicit(&current_level, memory_order_relaxed)) {
        return;
    }
    int saved = errno;
    char now[48];
    time_text(now, sizeof(now));
    json_t *line = json_pack("{s:s, s:s, s:s}", "time", now, "level", level_names[level], "message", message);
    if (line != NULL && log_trace[0] != '\0') {
        json_object_set_new(line, "trace_id", json_string(log_trace));
    }
    for (; line != NULL && fields != NULL && fields->key != NULL; fields++) {
        json_t *value = field_value(fields);
        json_object_set_new(line, fields->key, value != NULL ? value : json_null());
    }
    if (line != NULL) {
        write_line(line);
    }
    json_decref(line);
    errno = saved;
}

void log_err(enum log_level level, const char *message, const char *job_id)
{
    const struct err_record *record = err_last();
    const struct log_field fields[] = {LOG_S("code", err_api_code(record->code)),
                                       LOG_S("detail", record->message),
                                       LOG_S("trace", record->trace),
                                       job_id != NULL ? LOG_S("job", job_id) : (struct log_field){.key = NULL},
                                       {.key = NULL}};
    log_write(level, message, fields);
}
