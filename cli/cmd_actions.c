/* quantctl cancel, pause, resume, retry: what is asked of jobs. */

#include "base/err.h"
#include "cli/commands.h"
#include "cli/job.h"
#include "cli/print.h"
#include "cli/safe.h"

static int ask_jobs(struct cli *cli, const char *action, int count, char **jobs)
{
    char path[CLIENT_PATH_MAX];

    for (int i = 0; i < count; i++) { /* none, if one is not an id */
        TRY(job_path(path, sizeof(path), jobs[i], action));
    }
    for (int i = 0; i < count; i++) {
        AUTO_JSON json_t *job = NULL;

        TRY(job_path(path, sizeof(path), jobs[i], action));
        TRY(client_send(cli, "POST", path, NULL, &job));
        if (cli->json) {
            print_json(job);
        } else if (!cli->quiet) {
            safe_printf(stdout, "%s %s\n", jobs[i], print_text(job, "status"));
        }
    }
    return 0;
}

static int cancel_run(struct cli *cli, const void *given, int count, char **arguments)
{
    return ask_jobs(cli, "/cancel", count, arguments);
}

static int pause_run(struct cli *cli, const void *given, int count, char **arguments)
{
    return ask_jobs(cli, "/pause", count, arguments);
}

static int resume_run(struct cli *cli, const void *given, int count, char **arguments)
{
    return ask_jobs(cli, "/resume", count, arguments);
}

static int retry_run(struct cli *cli, const void *given, int count, char **arguments)
{
    return ask_jobs(cli, "/retry", count, arguments);
}

const struct command command_cancel = {
    .name = "cancel", .arguments = "JOB...", .summary = "Cancel jobs", .min = 1, .max = -1, .run = cancel_run};

const struct command command_pause = {
    .name = "pause",
    .arguments = "JOB...",
    .summary = "Pause jobs; one that runs finishes its open block first",
    .min = 1,
    .max = -1,
    .run = pause_run,
};

const struct command command_resume = {
    .name = "resume", .arguments = "JOB...", .summary = "Continue paused jobs", .min = 1, .max = -1, .run = resume_run};

const struct command command_retry = {
    .name = "retry",
    .arguments = "JOB...",
    .summary = "Try jobs that failed or were cancelled again, from their last finished block",
    .min = 1,
    .max = -1,
    .run = retry_run,
};
