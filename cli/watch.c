/* Events over HTTP, again and again until the job has ended. */

#include "cli/watch.h"

#include "base/err.h"
#include "base/ids.h"
#include "base/json.h"
#include "cli/bar.h"
#include "cli/display.h"
#include "cli/job.h"
#include "cli/print.h"
#include "cli/sse.h"
#include "cli/status.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define WATCH_RETRY_MS 3000
#define WATCH_RETRY_MAX_MS 15000
#define WATCH_LOST_MS (10LL * 60 * 1000) /* without any connection: give up */
#define WATCH_EVENT_DEPTH 32

struct watch {
    struct cli *cli;
    enum watch_output output;
    struct display *display;
    struct sse sse;
    int64_t heard_at; /* when the server was heard last */
    bool ended;       /* a terminal status came */
};

static int watch_event(void *context, const char *name, const char *data, size_t size)
{
    struct watch *watch = context;
    AUTO_JSON json_t *event = NULL;

    if (json_parse(data, size, WATCH_EVENT_DEPTH, &event) != 0 || !json_is_object(event)) {
        return status_fail(STATUS_SERVER, "an event of the server is not a JSON object");
    }
    if (watch->output == WATCH_EVENTS) {
        print_json_line(event);
    }
    if (watch->display != NULL) {
        display_resize(watch->display, print_columns());
        display_event(watch->display, event);
    }
    const char *status = json_get_string(json_object_get(event, "data"), "status");
    if (strcmp(print_text(event, "type"), "status") == 0 && status != NULL && job_is_terminal(status)) {
        watch->ended = true;
    }
    return 0;
}

static int watch_take(void *context, const char *data, size_t size)
{
    struct watch *watch = context;

    watch->heard_at = clock_monotonic_ms();
    return sse_feed(&watch->sse, data, size);
}

static void watch_tick(void *context)
{
    struct watch *watch = context;

    if (watch->display != NULL) {
        display_resize(watch->display, print_columns());
        display_tick(watch->display);
    }
}

/* One connection, to its end. */
static int watch_once(struct watch *watch, const char *path)
{
    char last[SSE_ID_SIZE + 32];
    AUTO(http_answer) struct http_answer answer = {0};

    snprintf(last, sizeof(last), "Last-Event-ID: %s", watch->sse.id);
    const char *const headers[] = {"Accept: text/event-stream", watch->sse.id[0] != '\0' ? last : NULL, NULL};
    const struct http_call call = {
        .method = "GET", .path = path, .headers = headers, .take = watch_take, .tick = watch_tick, .context = watch};
    int rc = client_raw(watch->cli, &call, &answer);
    sse_break(&watch->sse);
    TRY(rc);
    if (answer.status == 503 || client_busy(&answer)) { /* later, if it was there before */
        return status_fail(STATUS_UNREACHABLE, "%s is busy or shuts down (%ld)", http_url(watch->cli->http),
                           answer.status);
    }
    if (answer.status < 200 || answer.status > 299) {
        return client_refused(watch->cli, &answer);
    }
    return strcmp(answer.type, "text/event-stream") == 0
               ? 0
               : status_fail(STATUS_SERVER, "%s answered with \"%s\", not with events", http_url(watch->cli->http),
                             answer.type);
}

static void watch_pause(const struct watch *watch, int failures)
{
    int64_t ms = watch->sse.retry_ms >= 0 ? watch->sse.retry_ms : WATCH_RETRY_MS;

    ms = ms * (failures < 5 ? failures : 5);
    ms = ms > WATCH_RETRY_MAX_MS ? WATCH_RETRY_MAX_MS : ms < 100 ? 100 : ms;
    const struct timespec pause = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    (void)nanosleep(&pause, NULL);
}

static int watch_events(struct watch *watch, const char *id)
{
    char path[CLIENT_PATH_MAX];
    int failures = 0;

    TRY(job_path(path, sizeof(path), id, "/events"));
    watch->heard_at = clock_monotonic_ms();
    bool connected = false; /* ever: the first failure is the user's to know at once */
    while (!watch->ended) {
        char before[SSE_ID_SIZE];
        memcpy(before, watch->sse.id, sizeof(before));
        int rc = watch_once(watch, path);
        bool heard = strcmp(before, watch->sse.id) != 0;
        connected = connected || heard || rc == 0;
        if (watch->ended) {
            return 0;
        }
        if (rc == 0 && !heard) { /* nothing more to tell: has it ended? */
            AUTO_JSON json_t *job = NULL;
            rc = job_get(watch->cli, id, &job);
            watch->ended = rc == 0 && job_is_terminal(print_text(job, "status"));
        }
        if (rc != 0 &&
            (rc != STATUS_UNREACHABLE || !connected || clock_monotonic_ms() - watch->heard_at > WATCH_LOST_MS)) {
            return rc;
        }
        if (rc != 0 && failures == 0 && watch->display != NULL) {
            display_note(watch->display, "the connection is lost; trying again");
        }
        failures = heard ? 0 : failures + 1;
        if (!watch->ended) {
            watch_pause(watch, failures > 0 ? failures : 1);
        }
    }
    return 0;
}

enum watch_output watch_choose(const struct cli *cli, bool lines)
{
    if (cli->json || cli->quiet) {
        return cli->json ? WATCH_EVENTS : WATCH_NOTHING;
    }
    return isatty(STDOUT_FILENO) != 0 && !lines ? WATCH_BARS : WATCH_LINES;
}

int watch_job(struct cli *cli, const char *id, enum watch_output output, json_t **job)
{
    struct watch watch = {.cli = cli, .output = output};

    if (output == WATCH_LINES || output == WATCH_BARS) {
        watch.display = display_new(stdout, output == WATCH_BARS, print_columns(), bar_unicode());
        if (watch.display == NULL) {
            return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the display");
        }
    }
    sse_init(&watch.sse, watch_event, &watch);
    int rc = watch_events(&watch, id);
    sse_deinit(&watch.sse);
    if (watch.display != NULL) {
        display_end(watch.display);
        display_free(watch.display);
    }
    TRY(rc);
    return job_get(cli, id, job);
}
