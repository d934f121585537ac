/* Errors of the module land in the daemon's record: base's raising functions, forwarded to the host that opened us. */

#include "gpu/cuda/host.h"

#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>

static const struct gpu_host *daemon_host;

void host_set(const struct gpu_host *host)
{
    daemon_host = host;
}

int err_raise_at(const char *file, int line, int code, const char *format, ...)
{
    char message[512];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(message, sizeof(message), format, arguments);
    va_end(arguments);
    return daemon_host->raise(file, line, code, message);
}

int err_pass_at(const char *file, int line, int code, const char *format, ...)
{
    char message[512];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(message, sizeof(message), format, arguments);
    va_end(arguments);
    return daemon_host->pass(file, line, code, message);
}
