#pragma once
/* Logging: one line an event on standard error, fixed lower-case message, facts as fields; JSON, or readable where
 * standard error is a terminal.
 * Logged once, where it is decided. Any thread; a line is written with one write(2). */

#include <stddef.h>
#include <stdint.h>

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG, LOG_TRACE };

struct log_field {
    const char *key; /* NULL ends the list */
    enum { LOG_FIELD_STRING, LOG_FIELD_INT, LOG_FIELD_NUMBER } kind;
    const char *string;
    int64_t integer;
    double number;
};

#define LOG_S(k, v) ((struct log_field){.key = (k), .kind = LOG_FIELD_STRING, .string = (v)})
#define LOG_I(k, v) ((struct log_field){.key = (k), .kind = LOG_FIELD_INT, .integer = (int64_t)(v)})
#define LOG_F(k, v) ((struct log_field){.key = (k), .kind = LOG_FIELD_NUMBER, .number = (double)(v)})

void log_set_level(enum log_level level);
enum log_level log_get_level(void);
/* "error" .. "trace" -> level; -1 when unknown. */
int log_level_parse(const char *name);
/* The trace of what this thread does from now on (base/trace.h): its id is in every line. NULL or "": none. */
void log_set_trace(const char *parent);
/* The same by the trace's id alone, and that id ("": none), which lasts until the thread gets another: to hand a trace
 * on to another process. */
void log_set_trace_id(const char *id);
const char *log_trace_id(void);
void log_write(enum log_level level, const char *message, const struct log_field *fields);

#define LOG_END ((struct log_field){.key = NULL})
#define LOG_AT(level, message, ...) log_write((level), (message), (const struct log_field[]){__VA_ARGS__})
#define log_error(...) LOG_AT(LOG_ERROR, __VA_ARGS__, LOG_END)
#define log_warn(...) LOG_AT(LOG_WARN, __VA_ARGS__, LOG_END)
#define log_info(...) LOG_AT(LOG_INFO, __VA_ARGS__, LOG_END)
#define log_debug(...) LOG_AT(LOG_DEBUG, __VA_ARGS__, LOG_END)

/* Log this thread's err record at `level` with its trace; `message` is the fixed text. */
void log_err(enum log_level level, const char *message, const char *job_id);
