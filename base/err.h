#pragma once
/* Errors as values: a negative code is returned, the details are in a thread-local record.
 *
 * A function that fails returns err_raise(ERR_X, "what, with the facts"). A caller that cannot help
 * returns err_pass(rc, "what it was doing"), which adds a line to the trace. The record crosses
 * threads by value (err_take / err_restore). Bad input is never an assert; a broken invariant is. */

#include <stdbool.h>
#include <stddef.h>

enum err_code {
    ERR_BASE_ = 1000,
#define ERR(symbol, api, status, group, retryable, sentence) ERR_ORDINAL_##symbol,
#include "base/err.def"
#undef ERR
    ERR_END_
};

enum {
#define ERR(symbol, api, status, group, retryable, sentence) ERR_##symbol = -(int)ERR_ORDINAL_##symbol,
#include "base/err.def"
#undef ERR
};

enum err_group { ERR_GROUP_REQUEST, ERR_GROUP_JOB, ERR_GROUP_DEVICE, ERR_GROUP_PROCESS };

/* Every text in it is valid UTF-8, whatever bytes went in: it goes into JSON. */
struct err_record {
    int code;           /* 0 = no error */
    char message[1024]; /* what failed, with the facts; fit for the user */
    char param[192];    /* JSON Pointer of the offending member, or "" */
    char hint[384];     /* what to change, or "" */
    char trace[768];    /* "file:line message" lines, innermost first; for the log only */
    char module[128];   /* path of the module of a model that it is about, or "" */
};

/* Start a record on this thread; returns code. errno is untouched. */
int err_raise_at(const char *file, int line, int code, const char *format, ...) __attribute__((format(printf, 4, 5)));
/* Add a trace line to this thread's record; returns code. errno is untouched. */
int err_pass_at(const char *file, int line, int code, const char *format, ...) __attribute__((format(printf, 4, 5)));
/* Raise from errno: ENOSPC/EDQUOT -> DISK_FULL, ENOMEM -> HOST_OUT_OF_MEMORY, ENOENT -> NOT_FOUND, else STORAGE. */
int err_raise_errno_at(const char *file, int line, int saved_errno, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

#ifdef __clang_analyzer__
/* The analyzer looks at one file at a time: tell it that what is raised is what is returned. */
#define err_raise(code, ...) ((void)err_raise_at(__FILE__, __LINE__, (code), __VA_ARGS__), (code))
#define err_pass(code, ...) ((void)err_pass_at(__FILE__, __LINE__, (code), __VA_ARGS__), (code))
#else
#define err_raise(code, ...) err_raise_at(__FILE__, __LINE__, (code), __VA_ARGS__)
#define err_pass(code, ...) err_pass_at(__FILE__, __LINE__, (code), __VA_ARGS__)
#endif
#define err_raise_errno(saved_errno, ...) err_raise_errno_at(__FILE__, __LINE__, (saved_errno), __VA_ARGS__)

/* Return from the calling function what the expression returns, unless that is 0. For functions that own nothing at
 * that point, or whose scopes release it (base/cleanup.h). Not for functions whose positive results are not failures.
 */
#define TRY(expression)             \
    do {                            \
        int try_rc_ = (expression); \
        if (try_rc_ != 0) {         \
            return try_rc_;         \
        }                           \
    } while (0)

/* Attach a JSON Pointer or a hint to this thread's record. Both return code, for use in return statements. */
int err_set_param(int code, const char *pointer);
/* Name the module that failed, by its path or that of its weight or bias. A name that is already set stays, because it
 * was set closer to the failure. Returns code. */
int err_set_module(int code, const char *name);
int err_set_hint(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* This thread's record; never NULL. Valid until the thread's next raise. */
const struct err_record *err_last(void);
void err_take(struct err_record *out); /* copy and clear */
void err_restore(const struct err_record *record);

/* Table look-ups; an unknown code answers as ERR_INTERNAL. Any thread. */
const char *err_api_code(int code);
const char *err_sentence(int code);
int err_http_status(int code);
enum err_group err_group(int code);
bool err_retryable(int code);
