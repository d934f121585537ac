/* quantctl calibrate: records for a job that waits for them. */

#include "base/err.h"
#include "cli/calibrate.h"
#include "cli/commands.h"
#include "cli/job.h"
#include "cli/print.h"
#include "cli/safe.h"
#include "cli/status.h"

#include <string.h>

static int calibrate_run(struct cli *cli, const void *given, int count, char **arguments)
{
    const char *id = arguments[0], *path = arguments[1];
    AUTO_JSON json_t *job = NULL;

    TRY(calibrate_check(path));
    TRY(job_get(cli, id, &job));
    if (strcmp(print_text(job, "status"), "awaiting_calibration") != 0) {
        return status_fail(STATUS_REFUSED, "job %s does not wait for calibration records: it is %s", id,
                           print_text(job, "status"));
    }
    TRY(calibrate_file(cli, path, &job));
    if (cli->json) {
        print_json(job);
    } else if (!cli->quiet) {
        safe_printf(stdout, "%s %s\n", id, print_text(job, "status"));
    }
    return 0;
}

const struct command command_calibrate = {
    .name = "calibrate",
    .arguments = "JOB FILE",
    .summary = "Send calibration records to a job that waits for them",
    .details = "FILE has one JSON object per line; - is standard input. Records that the job has already, of an "
               "earlier call with the same file, are left out.",
    .min = 2,
    .max = 2,
    .run = calibrate_run,
};
