/* quantctl cancel, pause, resume, retry: what is asked of jobs. */

#include "base/err.h"
#include "cli/commands.h"
#include "cli/job.h"
#include "cli/members.h"
#include "cli/print.h"
#include "cli/safe.h"

static int ask_jobs(struct cli *cli, const char *action, const json_t *body, int count, char **jobs)
{
    char path[CLIENT_PATH_MAX];

    for (int i = 0; i < count; i++) { /* none, if one is not an id */
        TRY(job_path(path, sizeof(path), jobs[i], action));
    }
    for (int i = 0; i < count; i++) {
        AUTO_JSON json_t *job = NULL;

        TRY(job_path(path, sizeof(path), jobs[i], action));
        TRY(client_send(cli, "POST", path, body, &job));
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
    return ask_jobs(cli, "/cancel", NULL, count, arguments);
}

/* --- pause */

struct pause_options {
    bool now;
};

static const struct option_row pause_options[] = {
    {"now", 0, OPTION_FLAG, NULL, offsetof(struct pause_options, now), .help = "At once: the open block is dropped"},
    {0},
};

static int pause_run(struct cli *cli, const void *given, int count, char **arguments)
{
    const struct pause_options *options = given;
    AUTO_JSON json_t *body = options->now ? json_pack("{s:s}", "mode", "now") : NULL;

    return ask_jobs(cli, "/pause", body, count, arguments);
}

static int resume_run(struct cli *cli, const void *given, int count, char **arguments)
{
    return ask_jobs(cli, "/resume", NULL, count, arguments);
}

/* --- retry */

struct retry_options {
    struct option_texts set;
    int64_t attempts, timeout;
};

#define AT(member) offsetof(struct retry_options, member)

static const struct option_row retry_options[] = {
    {"set", 0, OPTION_TEXTS, "NAME=VALUE", AT(set),
     .help = "Another value: damp_percent=0.02 of quantization, resources.device=cpu of another object; repeatable"},
    {"max-attempts", 0, OPTION_INT, "N", AT(attempts), .help = "Attempts without progress", 1, 1000000},
    {"time-limit", 0, OPTION_INT, "SECONDS", AT(timeout), .help = "timeout_seconds: the job's time limit", 1,
     INT64_MAX},
    {0},
};

static int retry_run(struct cli *cli, const void *given, int count, char **arguments)
{
    const struct retry_options *options = given;
    AUTO_JSON json_t *body = json_object();

    for (size_t i = 0; i < options->set.count; i++) {
        TRY(members_set(body, options->set.items[i]));
    }
    members_int(body, "max_attempts", options->attempts);
    members_int(body, "timeout_seconds", options->timeout);
    return ask_jobs(cli, "/retry", json_object_size(body) > 0 ? body : NULL, count, arguments);
}

const struct command command_cancel = {
    .name = "cancel", .arguments = "JOB...", .summary = "Cancel jobs", .min = 1, .max = -1, .run = cancel_run};

const struct command command_pause = {
    .name = "pause",
    .arguments = "JOB...",
    .summary = "Pause jobs; one that runs finishes its open block first",
    .min = 1,
    .max = -1,
    .options = pause_options,
    .size = sizeof(struct pause_options),
    .run = pause_run,
};

const struct command command_resume = {
    .name = "resume", .arguments = "JOB...", .summary = "Continue paused jobs", .min = 1, .max = -1, .run = resume_run};

const struct command command_retry = {
    .name = "retry",
    .arguments = "JOB...",
    .summary = "Try jobs that failed or were cancelled again, from their last finished block",
    .details =
        "Changed parameters apply to the blocks that are not finished, and must leave finished ones as they are.",
    .min = 1,
    .max = -1,
    .options = retry_options,
    .size = sizeof(struct retry_options),
    .run = retry_run,
};
