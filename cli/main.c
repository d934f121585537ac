/* quantctl: run one command, print its failure, exit with its status (cli/status.h). */

#include "base/err.h"
#include "cli/command.h"
#include "cli/safe.h"
#include "cli/status.h"

#include <errno.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

/* Standard output may be a full disk or a closed pipe: then what was asked for has not been delivered. */
static int flush_output(void)
{
    if (fflush(stdout) != 0) {
        return status_fail(STATUS_LOCAL, "cannot write to standard output: %s", strerror(errno));
    }
    /* An earlier write failed, whose reason is gone. */
    return ferror(stdout) != 0 ? status_fail(STATUS_LOCAL, "cannot write to standard output") : 0;
}

int main(int argc, char **argv)
{
    struct cli cli = {0};
    struct err_record record;

    (void)setlocale(LC_CTYPE, "C.UTF-8"); /* widths of characters; text is UTF-8 */
    (void)signal(SIGPIPE, SIG_DFL);
    int rc = command_run(argc, argv, &cli);
    client_close(&cli);
    if (rc == 0) {
        rc = flush_output();
    }
    err_take(&record);
    if (rc != 0 && record.message[0] != '\0') {
        (void)fflush(stdout);
        safe_printf(stderr, "quantctl: %s\n", record.message);
        if (record.hint[0] != '\0') {
            safe_printf(stderr, "  hint: %s\n", record.hint);
        }
    }
    return status_exit(rc);
}
