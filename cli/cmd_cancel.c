/* quantctl cancel: stop jobs. */

#include "base/err.h"
#include "cli/commands.h"
#include "cli/job.h"
#include "cli/print.h"
#include "cli/safe.h"

static int cancel_run(struct cli *cli, const void *given, int count, char **arguments)
{
    char path[CLIENT_PATH_MAX];

    for (int i = 0; i < count; i++) {
        AUTO_JSON json_t *job = NULL;

        TRY(job_path(path, sizeof(path), arguments[i], "/cancel"));
        TRY(client_send(cli, "POST", path, NULL, &job));
        if (cli->json) {
            print_json(job);
        } else if (!cli->quiet) {
            safe_printf(stdout, "%s %s\n", arguments[i], print_text(job, "status"));
        }
    }
    return 0;
}

const struct command command_cancel = {
    .name = "cancel",
    .arguments = "JOB...",
    .summary = "Cancel jobs",
    .min = 1,
    .max = -1,
    .run = cancel_run,
};
