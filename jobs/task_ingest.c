/* Files of records become token logs, in pieces: memory holds one piece and one line. */

#include "jobs/task.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/mem.h"
#include "jobs/records.h"

#include <stdlib.h>

#define PIECE_BYTES ((size_t)256 << 10)

/* Tokenizing starts over at the next attempt, so a shutdown need not wait for its end. */
static int ingest_watch(void *data)
{
    struct task *task = data;

    return service_draining(task->service) ? err_raise(ERR_INTERRUPTED, "the daemon shuts down")
                                           : task_tick_phase(task, 0, "loading");
}

static int feed_blob(struct task *task, struct blob_reader *reader, int64_t size, struct calibration_writer *writer)
{
    AUTO_FREE char *piece = NULL;

    TRY(mem_buffer(&piece, PIECE_BYTES));
    for (int64_t at = 0; at < size;) {
        size_t n = size - at < (int64_t)PIECE_BYTES ? (size_t)(size - at) : PIECE_BYTES;
        TRY(ingest_watch(task));
        TRY(blob_reader_read(reader, at, piece, n));
        TRY(calibration_writer_feed(writer, piece, n));
        at += (int64_t)n;
    }
    return 0;
}

static int open_blob(struct task *task, const char *id, struct blob_reader **reader, int64_t *size)
{
    json_t *file;

    int rc = store_object_get(task->service->store, NULL, "file", id, &file);
    if (rc != 0) {
        return err_pass(rc, "look up file %s", id);
    }
    const char *sha256 = json_string_value(json_object_get(file, "sha256"));
    rc = sha256 == NULL ? err_raise(ERR_INTERNAL, "file %s has no digest", id)
                        : blob_reader_open(task->service->store, sha256, reader, size);
    json_decref(file);
    return rc;
}

static int ingest_file(struct task *task, const struct task_records *records, struct job_records *found)
{
    AUTO(tokenizer) struct tokenizer *tokenizer = NULL;
    AUTO(chat) struct chat *chat = NULL;
    AUTO(blob_reader) struct blob_reader *reader = NULL;
    AUTO(calibration_writer) struct calibration_writer *writer = NULL;
    struct calibration_counts counts;
    char path[SERVICE_PATH_MAX], reason[SERVICE_REASON_SIZE];
    int64_t size = 0;

    TRY(open_blob(task, records->file_id, &reader, &size));
    TRY(service_tokenizer_open(task->model, &tokenizer, reason));
    TRY(chat_open(task->model, &chat));
    TRY(fs_path(path, sizeof(path), "%s/%s", task->directory, records->log));
    const struct calibration_reading reading = {.tokenizer = tokenizer,
                                                .tokenizer_error = reason[0] != '\0' ? reason : NULL,
                                                .chat = chat,
                                                .vocab_size = model_config(task->model)->vocab_size,
                                                .text_field = records->text_field,
                                                .add_special_tokens = records->add_special_tokens,
                                                .watch = ingest_watch,
                                                .watch_data = task};
    TRY(calibration_writer_open(path, 0, 0, 0, &reading, &writer));
    TRY(feed_blob(task, reader, size, writer));
    TRY(calibration_writer_sync(writer, true));
    calibration_writer_counts(writer, &counts);
    records_warn_rejected(task->warnings, records->what, writer);
    records_warn_notes(task->warnings, records->what, writer, false);
    *found =
        (struct job_records){.records = counts.records, .tokens = counts.tokens, .bytes = counts.bytes, .ready = true};
    return 0;
}

int task_ingest(struct task *task, const struct task_records *records, struct job_records *found)
{
    int rc = ingest_file(task, records, found);

    return rc != 0 ? err_pass(rc, "tokenize the %s file", records->what) : 0;
}
