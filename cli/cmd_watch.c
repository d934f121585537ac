/* quantctl watch: a job's progress until it ends. */

#include "base/err.h"
#include "cli/commands.h"
#include "cli/job.h"
#include "cli/watch.h"

#include <stdio.h>

struct watch_options {
    bool lines;
};

static const struct option_row watch_options[] = {
    {"lines", 0, OPTION_FLAG, NULL, offsetof(struct watch_options, lines),
     .help = "Plain lines also on a terminal, as they are printed elsewhere"},
    {0},
};

static int watch_run(struct cli *cli, const void *given, int count, char **arguments)
{
    const struct watch_options *options = given;
    AUTO_JSON json_t *job = NULL;

    TRY(watch_job(cli, arguments[0], watch_choose(cli, options->lines), &job));
    if (!cli->json && !cli->quiet) {
        job_print_result(json_object_get(job, "result"));
    }
    return job_outcome(job);
}

const struct command command_watch = {
    .name = "watch",
    .arguments = "JOB",
    .summary = "Follow a job to its end, with bars on a terminal",
    .details =
        "After a broken connection it continues where it was; the job does not notice. With --json every event is a "
        "line. Exit status 1 unless the job succeeds.",
    .min = 1,
    .max = 1,
    .options = watch_options,
    .size = sizeof(struct watch_options),
    .run = watch_run,
};
