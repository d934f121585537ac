/* The columns of table jobs and the members of struct job_row: one list from which rows are selected, read, inserted
 * and updated. */

#include "storage/sqlite.h"

#include "base/err.h"
#include "base/mem.h"

#include <string.h>

/* How a member lies in the table. A text or a document that is NULL, and a TIME of 0, are NULL there. */
enum column_kind { KIND_TEXT, KIND_STATUS, KIND_INT, KIND_TIME, KIND_REAL, KIND_FLAG, KIND_JSON };

/* X(column, member, kind, the JOB_SET_ that it goes with, or 0: it is set once) */
/* clang-format off */
#define RECORDS(X, name)                                              \
    X(name##_records, name.records, INT, JOB_SET_RECORDS)             \
    X(name##_tokens, name.tokens, INT, JOB_SET_RECORDS)               \
    X(name##_bytes, name.bytes, INT, JOB_SET_RECORDS)                 \
    X(name##_ready, name.ready, FLAG, JOB_SET_RECORDS)                \
    X(name##_sequences, name.sequences, INT, JOB_SET_RECORDS)         \
    X(name##_sequence_length, name.sequence_length, INT, JOB_SET_RECORDS) \
    X(name##_digest, name.digest, TEXT, JOB_SET_RECORDS)

#define COLUMNS(X)                                                    \
    X(id, id, TEXT, 0)                                                \
    X(project, project, TEXT, 0)                                      \
    X(name, name, TEXT, JOB_SET_NAME)                                 \
    X(model, model, TEXT, 0)                                          \
    X(method, method, TEXT, 0)                                        \
    X(status, status, STATUS, JOB_SET_STATUS)                         \
    X(status_reason, status_reason, TEXT, JOB_SET_STATUS_REASON)      \
    X(phase, phase, TEXT, JOB_SET_PHASE)                              \
    X(worker, worker, TEXT, JOB_SET_WORKER)                           \
    X(traceparent, traceparent, TEXT, 0)                              \
    X(tracestate, tracestate, TEXT, 0)                                \
    X(priority, priority, INT, JOB_SET_PRIORITY)                      \
    X(attempt, attempt, INT, 0)                                       \
    X(fence, fence, INT, 0)                                           \
    X(seq, seq, INT, 0)                                               \
    X(created_at, created_at, TIME, 0)                                \
    X(queued_at, queued_at, TIME, JOB_SET_QUEUED_AT)                  \
    X(started_at, started_at, TIME, 0)                                \
    X(finished_at, finished_at, TIME, JOB_SET_FINISHED_AT)            \
    X(cancelled_at, cancelled_at, TIME, JOB_SET_CANCELLED_AT)         \
    X(reserved_bytes, reserved_bytes, INT, JOB_SET_RESERVED)          \
    X(disk_bytes, disk_bytes, INT, JOB_SET_RESERVED)                  \
    X(request, request, JSON, JOB_SET_REQUEST)                        \
    X(result, result, JSON, JOB_SET_RESULT)                           \
    X(error, error, JSON, JOB_SET_ERROR)                              \
    X(warnings, warnings, JSON, JOB_SET_WARNINGS)                     \
    X(gate, gate, JSON, JOB_SET_GATE)                                 \
    RECORDS(X, calibration)                                           \
    RECORDS(X, evaluation)                                            \
    X(progress_known, progress.known, FLAG, JOB_SET_PROGRESS)         \
    X(progress_block, progress.block, INT, JOB_SET_PROGRESS)          \
    X(progress_step, progress.step, TEXT, JOB_SET_PROGRESS)           \
    X(progress_fraction, progress.fraction, REAL, JOB_SET_PROGRESS)   \
    X(layers_done, progress.layers_done, INT, JOB_SET_PROGRESS)       \
    X(layers_total, progress.layers_total, INT, JOB_SET_PROGRESS)     \
    X(modules_done, progress.modules_done, INT, JOB_SET_PROGRESS)     \
    X(modules_total, progress.modules_total, INT, JOB_SET_PROGRESS)   \
    X(tokens_calibrated, progress.tokens_calibrated, INT, JOB_SET_PROGRESS) \
    X(elapsed_seconds, progress.elapsed_seconds, REAL, JOB_SET_PROGRESS) \
    X(eta_seconds, progress.eta_seconds, INT, JOB_SET_PROGRESS)       \
    X(estimated_finish_at, progress.estimated_finish_at, TIME, JOB_SET_PROGRESS) \
    X(source_bytes, memory.source_bytes, INT, JOB_SET_MEMORY)         \
    X(artifact_bytes, memory.artifact_bytes, INT, JOB_SET_MEMORY)     \
    X(gpu_peak_bytes, memory.gpu_peak_bytes, INT, JOB_SET_MEMORY)     \
    X(host_peak_bytes, memory.host_peak_bytes, INT, JOB_SET_MEMORY)   \
    X(estimated_gpu_bytes, memory.estimated_gpu_bytes, INT, JOB_SET_MEMORY) \
    X(checkpoint_blocks, checkpoint.blocks, INT, JOB_SET_CHECKPOINT)  \
    X(checkpoint_saved_at, checkpoint.saved_at, TIME, JOB_SET_CHECKPOINT) \
    X(charged, checkpoint.charged, INT, JOB_SET_CHECKPOINT)           \
    X(checkpoint_attempt, checkpoint.attempt, INT, JOB_SET_CHECKPOINT) \
    X(phases, checkpoint.phases, JSON, JOB_SET_CHECKPOINT)            \
    X(checkpoint_device, checkpoint.device, TEXT, JOB_SET_CHECKPOINT)
/* clang-format on */

static const struct column {
    const char *name;
    size_t offset;
    enum column_kind kind;
    unsigned set;
    const char *assignment; /* ", name = ?" */
} columns[] = {
#define X(name, member, kind, set) {#name, offsetof(struct job_row, member), KIND_##kind, set, ", " #name " = ?"},
    COLUMNS(X)
#undef X
};

#define COLUMN_COUNT ((int)(sizeof(columns) / sizeof(columns[0])))

/* Each column with a comma before it, but for the first: the text after the comma is what lists use. */
#define X(name, member, kind, set) ", " #name
static const char name_list[] = COLUMNS(X);
#undef X
#define X(name, member, kind, set) ", ?"
static const char mark_list[] = COLUMNS(X);
#undef X

#define AFTER_COMMA(list) ((list) + 2)

const char *sqlite_job_columns(void)
{
    return AFTER_COMMA(name_list);
}

const char *sqlite_job_marks(void)
{
    return AFTER_COMMA(mark_list);
}

static size_t columns_text_bytes(sqlite3_stmt *row)
{
    size_t bytes = 1;

    for (int i = 0; i < COLUMN_COUNT; i++) {
        if (columns[i].kind == KIND_TEXT && sqlite3_column_text(row, i) != NULL) {
            bytes += (size_t)sqlite3_column_bytes(row, i) + 1;
        }
    }
    return bytes;
}

/* Copy a text to *at, which moves on. */
static const char *columns_take_text(sqlite3_stmt *row, int column, char **at)
{
    const char *text = (const char *)sqlite3_column_text(row, column);

    if (text == NULL) {
        return NULL;
    }
    size_t size = (size_t)sqlite3_column_bytes(row, column) + 1;
    char *copy = memcpy(*at, text, size);
    *at += size;
    return copy;
}

int sqlite_column_status(sqlite3_stmt *row, int column, enum job_status *status)
{
    const char *name = (const char *)sqlite3_column_text(row, column);

    return name != NULL && job_status_find(name, status)
               ? 0
               : err_raise(ERR_STORAGE, "a job's status is \"%.40s\", which this build does not know",
                           name != NULL ? name : "");
}

/* A document that is NULL stays NULL. */
static int columns_take_json(sqlite3_stmt *row, int column, json_t **value)
{
    return sqlite3_column_type(row, column) == SQLITE_NULL ? 0 : sqlite_column_json(row, column, value);
}

static int columns_take(sqlite3_stmt *row, int i, char **texts, struct job_row *job)
{
    void *at = (char *)job + columns[i].offset;

    switch (columns[i].kind) {
    case KIND_TEXT:
        *(const char **)at = columns_take_text(row, i, texts);
        return 0;
    case KIND_STATUS:
        return sqlite_column_status(row, i, (enum job_status *)at);
    case KIND_INT:
    case KIND_TIME:
        *(int64_t *)at = sqlite3_column_int64(row, i);
        return 0;
    case KIND_REAL:
        *(double *)at = sqlite3_column_double(row, i);
        return 0;
    case KIND_FLAG:
        *(bool *)at = sqlite3_column_int(row, i) != 0;
        return 0;
    case KIND_JSON:
        break;
    }
    return columns_take_json(row, i, (json_t **)at);
}

int sqlite_job_read(sqlite3_stmt *row, struct job_row *out)
{
    AUTO(job_row) struct job_row job = {0};
    char *texts = NULL;

    TRY(mem_buffer(&texts, columns_text_bytes(row)));
    job.texts = texts;
    for (int i = 0; i < COLUMN_COUNT; i++) {
        TRY(columns_take(row, i, &texts, &job));
    }
    *out = job;
    job.texts = NULL; /* the caller's now */
    return 0;
}

static void columns_bind(struct sqlite_query *query, const struct column *column, const struct job_row *job)
{
    const void *at = (const char *)job + column->offset;
    int64_t number;

    switch (column->kind) {
    case KIND_TEXT:
        sqlite_query_text(query, *(const char *const *)at);
        break;
    case KIND_STATUS:
        sqlite_query_text(query, job_status_name(*(const enum job_status *)at));
        break;
    case KIND_INT:
        sqlite_query_int(query, *(const int64_t *)at);
        break;
    case KIND_TIME:
        number = *(const int64_t *)at;
        number != 0 ? sqlite_query_int(query, number) : sqlite_query_text(query, NULL);
        break;
    case KIND_REAL:
        sqlite_query_real(query, *(const double *)at);
        break;
    case KIND_FLAG:
        sqlite_query_int(query, *(const bool *)at ? 1 : 0);
        break;
    case KIND_JSON:
        sqlite_query_json(query, *(json_t *const *)at);
        break;
    }
}

void sqlite_job_bind(struct sqlite_query *query, const struct job_row *job)
{
    for (int i = 0; i < COLUMN_COUNT; i++) {
        columns_bind(query, &columns[i], job);
    }
}

void sqlite_job_assign(struct sqlite_query *query, unsigned set, const struct job_row *job)
{
    for (int i = 0; i < COLUMN_COUNT; i++) {
        if ((columns[i].set & set) != 0) {
            sqlite_query_add(query, columns[i].assignment);
            columns_bind(query, &columns[i], job);
        }
    }
}
