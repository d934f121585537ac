/* Error records: one per thread, written by whoever fails first, extended by those it passes through. */

#include "base/err.h"

#include "base/text.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct err_row {
    const char *api_code;
    const char *sentence;
    int status;
    enum err_group group;
    bool retryable;
};

static const struct err_row rows[] = {
#define ERR(symbol, api, status, group, retryable, sentence) \
    {api, sentence, status, ERR_GROUP_##group, (retryable) != 0},
#include "base/err.def"
#undef ERR
};

#define ROW_COUNT ((int)(sizeof(rows) / sizeof(rows[0])))

static const char *const suffixes[] = {".weight", ".bias"}; /* of a module's tensors */

static _Thread_local struct err_record current;

static const struct err_row *row_of(int code)
{
    int at = -code - (int)ERR_BASE_ - 1;
    if (at < 0 || at >= ROW_COUNT) {
        at = -ERR_INTERNAL - (int)ERR_BASE_ - 1;
    }
    return &rows[at];
}

static const char *base_name(const char *file)
{
    const char *slash = strrchr(file, '/');
    return slash != NULL ? slash + 1 : file;
}

__attribute__((format(printf, 3, 0))) static void add_trace(const char *file, int line, const char *format,
                                                            va_list arguments)
{
    size_t used = strlen(current.trace);
    size_t capacity = sizeof(current.trace) - used;

    if (capacity < 32) {
        return;
    }
    int n = snprintf(current.trace + used, capacity, "%s%s:%d ", used > 0 ? "; " : "", base_name(file), line);
    if (n > 0 && (size_t)n < capacity) {
        (void)vsnprintf(current.trace + used + n, capacity - (size_t)n, format, arguments);
    }
    text_repair(current.trace + used);
}

int err_raise_at(const char *file, int line, int code, const char *format, ...)
{
    int saved = errno;
    char message[sizeof(current.message)];
    va_list arguments;

    /* The arguments may point into the record that is being replaced. */
    va_start(arguments, format);
    (void)vsnprintf(message, sizeof(message), format, arguments);
    va_end(arguments);
    text_repair(message);
    memset(&current, 0, sizeof(current));
    current.code = code;
    memcpy(current.message, message, sizeof(message));
    (void)snprintf(current.trace, sizeof(current.trace), "%s:%d %.400s", base_name(file), line, message);
    text_repair(current.trace);
    errno = saved;
    return code;
}

/* The callee may have given a code without a record. */
static void err_adopt(int code)
{
    if (current.code != code) {
        memset(&current, 0, sizeof(current));
        current.code = code;
        (void)snprintf(current.message, sizeof(current.message), "%s", err_sentence(code));
    }
}

int err_pass_at(const char *file, int line, int code, const char *format, ...)
{
    int saved = errno;
    va_list arguments;

    err_adopt(code);
    va_start(arguments, format);
    add_trace(file, line, format, arguments);
    va_end(arguments);
    errno = saved;
    return code;
}

static int code_of_errno(int saved_errno)
{
    switch (saved_errno) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return ERR_DISK_FULL;
    case EMFILE:
    case ENFILE:
        return ERR_NO_DESCRIPTORS;
    case ENOMEM:
        return ERR_HOST_OUT_OF_MEMORY;
    case ENOENT:
    case ENOTDIR:
        return ERR_NOT_FOUND;
    default:
        return ERR_STORAGE;
    }
}

int err_raise_errno_at(const char *file, int line, int saved_errno, const char *format, ...)
{
    int saved = errno;
    char what[384];
    char why[96];
    va_list arguments;

    va_start(arguments, format);
    (void)vsnprintf(what, sizeof(what), format, arguments);
    va_end(arguments);
    const char *text = strerror_r(saved_errno, why, sizeof(why));
    errno = saved;
    return err_raise_at(file, line, code_of_errno(saved_errno), "%s: %s", what, text);
}

int err_set_param(int code, const char *pointer)
{
    (void)snprintf(current.param, sizeof(current.param), "%s", pointer);
    text_repair(current.param);
    return code;
}

int err_set_module(int code, const char *name)
{
    size_t length = strlen(name);
    char module[sizeof(current.module)];

    err_adopt(code);
    if (current.module[0] != '\0') {
        return code;
    }
    for (size_t i = 0; i < sizeof(suffixes) / sizeof(suffixes[0]); i++) {
        size_t size = strlen(suffixes[i]);
        if (length > size && strcmp(name + length - size, suffixes[i]) == 0) {
            length -= size;
            break;
        }
    }
    (void)snprintf(module, sizeof(module), "%.*s", (int)length, name); /* it may lie in the record */
    memcpy(current.module, module, sizeof(module));
    text_repair(current.module);
    return code;
}

int err_set_hint(int code, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    (void)vsnprintf(current.hint, sizeof(current.hint), format, arguments);
    va_end(arguments);
    text_repair(current.hint);
    return code;
}

const struct err_record *err_last(void)
{
    return &current;
}

void err_take(struct err_record *out)
{
    *out = current;
    memset(&current, 0, sizeof(current));
}

void err_restore(const struct err_record *record)
{
    current = *record;
}

const char *err_api_code(int code)
{
    return row_of(code)->api_code;
}

const char *err_sentence(int code)
{
    return row_of(code)->sentence;
}

int err_http_status(int code)
{
    return row_of(code)->status;
}

enum err_group err_group(int code)
{
    return row_of(code)->group;
}

bool err_retryable(int code)
{
    return row_of(code)->retryable;
}
