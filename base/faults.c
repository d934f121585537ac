/* Lists of faults: bounded, in the order found. */

#include "base/faults.h"

#include "base/err.h"
#include "base/text.h"

#include <stdarg.h>
#include <stdio.h>

void faults_add(struct faults *faults, int code, const char *pointer, const char *format, ...)
{
    if (faults->count == FAULTS_MAX) {
        faults->dropped++;
        return;
    }
    struct fault *fault = &faults->items[faults->count++];
    char detail[sizeof(fault->detail)];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(detail, sizeof(detail), format, arguments);
    va_end(arguments);
    fault->code = code;
    fault->hint[0] = '\0';
    (void)snprintf(fault->param, sizeof(fault->param), "%s", pointer);
    (void)snprintf(fault->detail, sizeof(fault->detail), "%s", detail);
    text_repair(fault->param);
    text_repair(fault->detail);
}

void faults_hint(struct faults *faults, const char *format, ...)
{
    if (faults->count == 0 || faults->dropped > 0) {
        return;
    }
    struct fault *fault = &faults->items[faults->count - 1];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(fault->hint, sizeof(fault->hint), format, arguments);
    va_end(arguments);
    text_repair(fault->hint);
}

int faults_raise(const struct faults *faults)
{
    if (faults->count == 0) {
        return 0;
    }
    const struct fault *first = &faults->items[0];
    int rc = err_raise(first->code, "%s", first->detail);
    (void)err_set_hint(rc, "%s", first->hint);
    return err_set_param(rc, first->param);
}
