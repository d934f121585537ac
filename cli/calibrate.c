/* Calibration records, batch by batch. A batch is sent with the number of records that the server has accepted so far;
 * when its answer is lost, the job says how many of it arrived, and the rest is sent again. */

#include "cli/calibrate.h"

#include "base/err.h"
#include "base/json.h"
#include "base/mem.h"
#include "cli/job.h"
#include "cli/safe.h"
#include "cli/status.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BATCH_BYTES ((size_t)1 << 20)
#define LINE_MAX_BYTES ((size_t)64 << 20)
#define ATTEMPTS 8

struct batch {
    char *text;
    size_t size, capacity;
    bool last;
};

/* The lines of a file, one ahead. */
struct source {
    FILE *in;
    char *line;
    size_t capacity;
    ssize_t size; /* of line; not above 0: there is no more */
};

/* Blank lines are left out: the server does not count them as records. */
static void next_line(struct source *source)
{
    do {
        source->size = getline(&source->line, &source->capacity, source->in);
    } while (source->size > 0 && strspn(source->line, " \t\r\n") == (size_t)source->size);
}

static int read_batch(struct source *source, struct batch *batch)
{
    batch->size = 0;
    while (source->size > 0 && (batch->size == 0 || batch->size + (size_t)source->size <= BATCH_BYTES)) {
        size_t size = (size_t)source->size;
        if (size > LINE_MAX_BYTES) {
            return status_fail(STATUS_LOCAL, "a calibration record is longer than %zu MiB", LINE_MAX_BYTES >> 20);
        }
        if (batch->size + size > batch->capacity) {
            TRY(mem_resize(&batch->text, batch->size + size));
            batch->capacity = batch->size + size;
        }
        memcpy(batch->text + batch->size, source->line, size);
        batch->size += size;
        next_line(source);
    }
    if (ferror(source->in) != 0) {
        return status_fail(STATUS_LOCAL, "the calibration records cannot be read");
    }
    batch->last = source->size <= 0;
    return 0;
}

/* Leave out the first lines of a batch. */
static void drop_lines(struct batch *batch, int64_t lines)
{
    size_t at = 0;

    while (lines > 0 && at < batch->size) {
        const char *end = memchr(batch->text + at, '\n', batch->size - at);
        at = end != NULL ? (size_t)(end - batch->text) + 1 : batch->size;
        lines--;
    }
    if (at > 0) { /* else the text may be NULL */
        memmove(batch->text, batch->text + at, batch->size - at);
        batch->size -= at;
    }
}

/* After a lost answer: how many records the server has. */
static int ask_offset(struct cli *cli, const char *job, int64_t *offset, bool *complete)
{
    AUTO_JSON json_t *state = NULL;

    TRY(job_get(cli, job, &state));
    *complete = strcmp(print_text(state, "status"), "awaiting_calibration") != 0;
    return json_get_int(json_object_get(state, "calibration"), "records", 0, INT64_MAX, offset) == 1
               ? 0
               : status_fail(STATUS_SERVER, "the job does not say how many records it has");
}

/* libcurl sends a batch again on its own when a connection that was kept breaks before any answer. The server, which
 * took the first one, refuses the second: that is a lost answer too. */
static int send_once(struct cli *cli, const char *job, const struct batch *batch, int64_t offset, json_t **out)
{
    char path[CLIENT_PATH_MAX], below[64];
    AUTO(http_answer) struct http_answer answer = {0};

    snprintf(below, sizeof(below), "/calibration?offset=%" PRId64 "%s", offset, batch->last ? "&complete=1" : "");
    TRY(job_path(path, sizeof(path), job, below));
    const struct http_call call = {.method = "POST",
                                   .path = path,
                                   .repeatable = true, /* the offset makes one batch of all */
                                   .type = "application/x-ndjson",
                                   .body = batch->text != NULL ? batch->text : "",
                                   .size = batch->size};
    TRY(client_patient(cli, &call, &answer));
    if (answer.status == 409) {
        int64_t has = offset;
        bool complete = false;
        TRY(ask_offset(cli, job, &has, &complete));
        if (has > offset) {
            return status_fail(STATUS_UNREACHABLE, "the answer to a batch of calibration records was lost");
        }
    }
    if (answer.status < 200 || answer.status > 299) {
        return client_refused(cli, &answer);
    }
    return client_parse(cli, &answer, out);
}

static int send_batch(struct cli *cli, const char *job, struct batch *batch, int64_t *offset, json_t **answer)
{
    int rc = send_once(cli, job, batch, *offset, answer);

    for (int attempt = 1; rc == STATUS_UNREACHABLE && attempt < ATTEMPTS; attempt++) {
        int64_t has = *offset;
        bool complete = false;
        const struct timespec pause = {.tv_sec = attempt};
        (void)nanosleep(&pause, NULL);
        rc = ask_offset(cli, job, &has, &complete);
        if (rc != 0) {
            continue;
        }
        drop_lines(batch, has - *offset);
        *offset = has;
        if (complete) {
            return 0;
        }
        rc = send_once(cli, job, batch, *offset, answer);
    }
    if (rc == 0) {
        (void)json_get_int(*answer, "next_offset", 0, INT64_MAX, offset);
    }
    return rc;
}

static void show_rejected(const json_t *answer)
{
    const json_t *error;
    size_t i;

    json_array_foreach(json_object_get(answer, "errors"), i, error)
    {
        char line[PRINT_SIZE];
        safe_printf(stderr, "  line %s of the batch was not accepted: %s (%s)\n",
                    print_value(json_object_get(error, "line"), line), print_text(error, "detail"),
                    print_text(error, "code"));
    }
}

int calibrate_stream(struct cli *cli, const char *job, FILE *in, int64_t records)
{
    struct batch batch = {0};
    struct source source = {.in = in};
    int64_t offset = records;
    int rc = 0;

    next_line(&source);
    for (int64_t i = 0; i < records && source.size > 0; i++) {
        next_line(&source);
    }
    while (rc == 0 && !batch.last) {
        AUTO_JSON json_t *answer = NULL;
        rc = read_batch(&source, &batch);
        rc = rc != 0 ? rc : send_batch(cli, job, &batch, &offset, &answer);
        if (rc == 0 && !cli->quiet) {
            char tokens[PRINT_SIZE];
            safe_printf(stderr, "calibration: %" PRId64 " records, %s tokens\n", offset,
                        print_value(json_object_get(answer, "tokens"), tokens));
            show_rejected(answer);
        }
    }
    free(batch.text);
    free(source.line);
    return rc;
}
