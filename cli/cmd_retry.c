/* quantctl retry: another attempt at jobs that ended without success. */

#include "base/err.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/job.h"
#include "cli/print.h"
#include "cli/safe.h"
#include "cli/status.h"

#include <string.h>

/* The route is newer than others: a server without it says that the path does not exist. */
static int retry_job(struct cli *cli, const char *id, json_t **out)
{
    char path[CLIENT_PATH_MAX];
    AUTO_JSON json_t *job = NULL;
    AUTO(http_answer) struct http_answer answer = {0};

    TRY(job_get(cli, id, &job)); /* now a 404 can only be the route's */
    TRY(job_path(path, sizeof(path), id, "/retry"));
    TRY(client_raw(cli, &(struct http_call){.method = "POST", .path = path}, &answer));
    if (answer.status == 404 || answer.status == 405) {
        return err_set_hint(status_fail(STATUS_REFUSED, "this server cannot retry a job"),
                            "submit it again; quantctl jobs show %s --json has its request", id);
    }
    if (answer.status < 200 || answer.status > 299) {
        return client_refused(cli, &answer);
    }
    return client_parse(cli, &answer, out);
}

static int retry_run(struct cli *cli, const void *given, int count, char **arguments)
{
    for (int i = 0; i < count; i++) {
        AUTO_JSON json_t *job = NULL;

        TRY(retry_job(cli, arguments[i], &job));
        if (cli->json) {
            print_json(job);
        } else if (!cli->quiet) {
            safe_printf(stdout, "%s %s\n", arguments[i], print_text(job, "status"));
        }
    }
    return 0;
}

const struct command command_retry = {
    .name = "retry",
    .arguments = "JOB...",
    .summary = "Try jobs that failed or were cancelled again, from their last finished block",
    .min = 1,
    .max = -1,
    .run = retry_run,
};
