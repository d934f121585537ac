/* The exit status, and the sentence that goes with it. */

#include "cli/status.h"

#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>

int status_fail(enum status status, const char *format, ...)
{
    char message[sizeof(((struct err_record *)NULL)->message)];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(message, sizeof(message), format, arguments);
    va_end(arguments);
    (void)err_raise(ERR_INTERNAL, "%s", message);
    return (int)status;
}

int status_shown(enum status status)
{
    struct err_record record;

    err_take(&record);
    return (int)status;
}

int status_exit(int rc)
{
    if (rc >= 0) {
        return rc;
    }
    return rc == ERR_CONFIG ? STATUS_USAGE : STATUS_LOCAL;
}
