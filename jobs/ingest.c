/* Files of records become token logs, in pieces: memory holds one piece and one line. */

#include "jobs/task.h"

#include "base/err.h"
#include "base/fs.h"

#include <stdlib.h>

#define PIECE_BYTES ((size_t)256 << 10)

/* One warning for all broken lines of a file, with the first few by number. */
static void warn_rejected(struct task *task, const char *what, const struct calibration_writer *writer,
                          const struct calibration_counts *counts)
{
    const struct calibration_fault *faults = calibration_writer_faults(writer);
    char message[768];
    int64_t lines = counts->accepted + counts->rejected;

    if (counts->rejected == 0) {
        return;
    }
    int used = snprintf(message, sizeof(message), "%lld of %lld lines of the %s file were not taken",
                        (long long)counts->rejected, (long long)lines, what);
    for (size_t i = 0; i < counts->fault_count && i < 3 && used > 0 && (size_t)used < sizeof(message); i++) {
        used += snprintf(message + used, sizeof(message) - (size_t)used, "; line %lld: %s", (long long)faults[i].line,
                         faults[i].detail);
    }
    json_array_append_new(task->warnings, json_pack("{s:s, s:s}", "code", "rejected_records", "message", message));
}

static int feed_blob(struct task *task, struct blob_reader *reader, int64_t size, struct calibration_writer *writer)
{
    char *piece = malloc(PIECE_BYTES);
    int rc = piece == NULL ? err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory to read a file") : 0;

    for (int64_t at = 0; rc == 0 && at < size;) {
        size_t n = size - at < (int64_t)PIECE_BYTES ? (size_t)(size - at) : PIECE_BYTES;
        /* Tokenizing starts over at the next attempt, so a shutdown need not wait for its end. */
        rc = engine_draining(task->engine) ? err_raise(ERR_INTERRUPTED, "the daemon shuts down")
                                           : task_tick(task, 0, "loading");
        rc = rc != 0 ? rc : blob_reader_read(reader, at, piece, n);
        rc = rc != 0 ? rc : calibration_writer_feed(writer, piece, n);
        at += (int64_t)n;
    }
    free(piece);
    return rc;
}

static int open_blob(struct task *task, const char *id, struct blob_reader **reader, int64_t *size)
{
    json_t *file;

    int rc = store_object_get(task->engine->store, "file", id, &file);
    if (rc != 0) {
        return err_pass(rc, "look up file %s", id);
    }
    const char *sha256 = json_string_value(json_object_get(file, "sha256"));
    rc = sha256 == NULL ? err_raise(ERR_INTERNAL, "file %s has no digest", id)
                        : blob_reader_open(task->engine->store, sha256, reader, size);
    json_decref(file);
    return rc;
}

int task_ingest(struct task *task, const char *id, const char *what, const char *log, const char *text_field,
                json_t *counts)
{
    struct calibration_counts found;
    struct calibration_writer *writer = NULL;
    struct tokenizer *tokenizer = NULL;
    struct blob_reader *reader = NULL;
    char path[ENGINE_PATH_MAX];
    int64_t size = 0;

    int rc = open_blob(task, id, &reader, &size);
    rc = rc != 0 ? rc : engine_tokenizer_open(task->model, &tokenizer);
    rc = rc != 0 ? rc : fs_path(path, sizeof(path), "%s/%s", task->directory, log);
    rc = rc != 0 ? rc
                 : calibration_writer_open(path, 0, 0, 0, tokenizer, model_config(task->model)->vocab_size, text_field,
                                           &writer);
    rc = rc != 0 ? rc : feed_blob(task, reader, size, writer);
    rc = rc != 0 ? rc : calibration_writer_sync(writer, true);
    if (rc == 0) {
        calibration_writer_counts(writer, &found);
        warn_rejected(task, what, writer, &found);
        json_object_set_new(counts, "records", json_integer(found.records));
        json_object_set_new(counts, "tokens", json_integer(found.tokens));
        json_object_set_new(counts, "bytes", json_integer(found.bytes));
        json_object_set_new(counts, "ready", json_true());
    }
    calibration_writer_free(writer);
    tokenizer_free(tokenizer);
    if (reader != NULL) {
        blob_reader_close(reader);
    }
    return rc != 0 ? err_pass(rc, "tokenize the %s file", what) : 0;
}
