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
    (void)snprintf(fault->param, sizeof(fault->param), "%s", pointer);
    (void)snprintf(fault->detail, sizeof(fault->detail), "%s", detail);
    text_repair(fault->param);
    text_repair(fault->detail);
}

int faults_raise(const struct faults *faults)
{
    if (faults->count == 0) {
        return 0;
    }
    const struct fault *first = &faults->items[0];
    int rc = err_raise(first->code, "%s%s%s", first->param, first->param[0] != '\0' ? " " : "", first->detail);
    return err_set_param(rc, first->param);
}
