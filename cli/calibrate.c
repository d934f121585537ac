/* Calibration records, batch by batch. A batch is sent with the number of records that the server has accepted so far;
 * when its answer is lost, the job says how many of it arrived, and the rest is sent again. */

#include "cli/calibrate.h"

#include "base/err.h"
#include "base/json.h"
#include "base/mem.h"
#include "cli/job.h"
#include "cli/safe.h"
#include "cli/status.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BATCH_BYTES ((size_t)1 << 20)
#define LINE_MAX_BYTES ((size_t)64 << 20)
#define ATTEMPTS 8

struct batch {
    char *text;
    size_t size, capacity;
    int64_t *numbers; /* of its lines in the file */
    size_t lines, lines_capacity;
    bool last;
};

/* The lines of a file, one ahead. */
struct source {
    FILE *in;
    const char *name;
    char *line;
    size_t capacity;
    ssize_t size;   /* of line; not above 0: there is no more */
    int64_t number; /* of line, from 1 */
};

/* Blank lines are left out: the server does not count them as records. */
static void next_line(struct source *source)
{
    do {
        source->size = getline(&source->line, &source->capacity, source->in);
        source->number++;
    } while (source->size > 0 && strspn(source->line, " \t\r\n") == (size_t)source->size);
}

static int batch_add(struct batch *batch, const struct source *source)
{
    size_t size = (size_t)source->size;

    if (batch->size + size > batch->capacity) {
        TRY(mem_resize(&batch->text, batch->size + size));
        batch->capacity = batch->size + size;
    }
    if (batch->lines == batch->lines_capacity) {
        size_t capacity = batch->lines_capacity > 0 ? 2 * batch->lines_capacity : 256;
        TRY(mem_resize(&batch->numbers, capacity));
        batch->lines_capacity = capacity;
    }
    memcpy(batch->text + batch->size, source->line, size);
    batch->size += size;
    batch->numbers[batch->lines++] = source->number;
    return 0;
}

static int read_batch(struct source *source, struct batch *batch)
{
    batch->size = 0;
    batch->lines = 0;
    while (source->size > 0 && (batch->size == 0 || batch->size + (size_t)source->size <= BATCH_BYTES)) {
        if ((size_t)source->size > LINE_MAX_BYTES) {
            return status_fail(STATUS_LOCAL, "%s: line %" PRId64 " is longer than %zu MiB", source->name,
                               source->number, LINE_MAX_BYTES >> 20);
        }
        TRY(batch_add(batch, source));
        next_line(source);
    }
    if (ferror(source->in) != 0) {
        return status_fail(STATUS_LOCAL, "%s cannot be read: %s", source->name, strerror(errno));
    }
    batch->last = source->size <= 0;
    return 0;
}

/* Leave out the first lines of a batch. */
static void drop_lines(struct batch *batch, int64_t lines)
{
    size_t at = 0, dropped = 0;

    while (dropped < batch->lines && (int64_t)dropped < lines) {
        const char *end = memchr(batch->text + at, '\n', batch->size - at);
        at = end != NULL ? (size_t)(end - batch->text) + 1 : batch->size;
        dropped++;
    }
    if (dropped > 0) { /* else the text may be NULL */
        memmove(batch->text, batch->text + at, batch->size - at);
        memmove(batch->numbers, batch->numbers + dropped, (batch->lines - dropped) * sizeof(batch->numbers[0]));
        batch->size -= at;
        batch->lines -= dropped;
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

/* The lines that an answer rejects, by their numbers in the file: the server counts those of the batch. */
static void show_rejected(const char *name, const struct batch *batch, const json_t *answer)
{
    const json_t *errors = json_object_get(answer, "errors"), *error;
    int64_t rejected = 0, line = 0;
    size_t i;

    json_array_foreach(errors, i, error)
    {
        bool known = json_get_int(error, "line", 1, (int64_t)batch->lines, &line) == 1;
        safe_printf(stderr, "  %s:%" PRId64 ": not accepted: %s (%s)\n", name, known ? batch->numbers[line - 1] : 0,
                    print_text(error, "detail"), print_text(error, "code"));
    }
    if (json_get_int(answer, "rejected", 0, INT64_MAX, &rejected) == 1 && rejected > (int64_t)json_array_size(errors)) {
        safe_printf(stderr, "  and %" PRId64 " more lines\n", rejected - (int64_t)json_array_size(errors));
    }
}

/* libcurl sends a batch again on its own when a connection that was kept breaks before any answer. The server, which
 * took the first one, refuses the second: that is a lost answer too. */
static int send_once(struct cli *cli, const char *job, const char *name, const struct batch *batch, int64_t offset,
                     json_t **out)
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
        AUTO_JSON json_t *problem = NULL;
        int rc = client_refused(cli, &answer);
        if (rc == STATUS_REFUSED && json_parse(answer.body, answer.size, 32, &problem) == 0) {
            show_rejected(name, batch, problem);
        }
        return status_shown(rc);
    }
    return client_parse(cli, &answer, out);
}

static int send_batch(struct cli *cli, const char *job, const char *name, struct batch *batch, int64_t *offset,
                      json_t **answer)
{
    int rc = send_once(cli, job, name, batch, *offset, answer);

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
        rc = send_once(cli, job, name, batch, *offset, answer);
    }
    if (rc == 0) {
        (void)json_get_int(*answer, "next_offset", 0, INT64_MAX, offset);
    }
    return rc;
}

int calibrate_stream(struct cli *cli, const char *job, FILE *in, const char *name, int64_t records)
{
    struct batch batch = {0};
    struct source source = {.in = in, .name = name};
    int64_t offset = records;
    int rc = 0;

    next_line(&source);
    for (int64_t i = 0; i < records && source.size > 0; i++) {
        next_line(&source);
    }
    while (rc == 0 && !batch.last) {
        AUTO_JSON json_t *answer = NULL;
        rc = read_batch(&source, &batch);
        rc = rc != 0 ? rc : send_batch(cli, job, name, &batch, &offset, &answer);
        if (rc == 0 && !cli->quiet) {
            char tokens[PRINT_SIZE];
            safe_printf(stderr, "calibration: %" PRId64 " records, %s tokens\n", offset,
                        print_value(json_object_get(answer, "tokens"), tokens));
            show_rejected(name, &batch, answer);
        }
    }
    free(batch.text);
    free(batch.numbers);
    free(source.line);
    return rc;
}

int calibrate_check(const char *path)
{
    struct stat status;

    if (strcmp(path, "-") == 0) {
        return 0;
    }
    if (access(path, R_OK) != 0) {
        return status_fail(STATUS_LOCAL, "%s cannot be read: %s", path, strerror(errno));
    }
    if (stat(path, &status) == 0 && S_ISDIR(status.st_mode)) {
        return status_fail(STATUS_LOCAL, "%s is a directory; calibration records are one NDJSON file", path);
    }
    return 0;
}

int calibrate_file(struct cli *cli, const char *path, json_t **job)
{
    bool standard = strcmp(path, "-") == 0;
    const char *id = print_text(*job, "id");
    int64_t records = 0;
    json_t *after;

    AUTO_FILE FILE *in = standard ? fdopen(dup(STDIN_FILENO), "re") : fopen(path, "re");
    if (in == NULL) {
        return status_fail(STATUS_LOCAL, "%s cannot be opened: %s", path, strerror(errno));
    }
    (void)json_get_int(json_object_get(*job, "calibration"), "records", 0, INT64_MAX, &records);
    int rc = calibrate_stream(cli, id, in, standard ? "standard input" : path, records);
    if (rc != 0) {
        safe_printf(stderr,
                    "job %s still waits for its calibration: quantctl calibrate %s FILE continues it, quantctl cancel "
                    "%s ends it\n",
                    id, id, id);
        return rc;
    }
    TRY(job_get(cli, id, &after));
    json_decref(*job);
    *job = after;
    return 0;
}
