/* Lists of validation errors: bounded, in the order in which they were found. */

#include "base/validation.h"

#include "base/err.h"
#include "base/text.h"

#include <stdarg.h>
#include <stdio.h>

void validation_add(struct validation_errors *errors, int code, const char *pointer, const char *format, ...)
{
    if (errors->count == VALIDATION_ERRORS_MAX) {
        errors->dropped++;
        return;
    }
    struct validation_error *error = &errors->items[errors->count++];
    char detail[sizeof(error->detail)];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(detail, sizeof(detail), format, arguments);
    va_end(arguments);
    error->code = code;
    error->hint[0] = '\0';
    (void)snprintf(error->param, sizeof(error->param), "%s", pointer);
    (void)snprintf(error->detail, sizeof(error->detail), "%s", detail);
    text_repair(error->param);
    text_repair(error->detail);
}

void validation_hint(struct validation_errors *errors, const char *format, ...)
{
    if (errors->count == 0 || errors->dropped > 0) {
        return;
    }
    struct validation_error *error = &errors->items[errors->count - 1];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(error->hint, sizeof(error->hint), format, arguments);
    va_end(arguments);
    text_repair(error->hint);
}

int validation_raise(const struct validation_errors *errors)
{
    if (errors->count == 0) {
        return 0;
    }
    const struct validation_error *first = &errors->items[0];
    int rc = err_raise(first->code, "%s", first->detail);
    (void)err_set_hint(rc, "%s", first->hint);
    return err_set_param(rc, first->param);
}
