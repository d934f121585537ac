#pragma once
/* A job as it is stored: one row, whose members are the columns of table jobs.
 *
 * Texts and documents of a row that the store gave belong to the row, until job_row_deinit. In a row that a caller puts
 * together for a call they are the caller's, and need to last for that call only. A time of 0 and a NULL are NULL in
 * the table. */

#include "base/cleanup.h"
#include "base/ids.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum job_status {
    STATUS_AWAITING_CALIBRATION,
    STATUS_QUEUED,
    STATUS_RUNNING,
    STATUS_PAUSING,
    STATUS_PAUSED,
    STATUS_CANCELLING,
    STATUS_SUCCEEDED,
    STATUS_FAILED,
    STATUS_CANCELLED,
    STATUS_EXPIRED,
    STATUS_COUNT,
    STATUS_ANY = STATUS_COUNT,  /* in conditions */
    STATUS_NONE = STATUS_COUNT, /* in answers */
};

/* As the API and the table name it ("awaiting_calibration"). */
const char *job_status_name(enum job_status status);
/* False: there is no status of this name. */
bool job_status_find(const char *name, enum job_status *status);
/* succeeded, failed, cancelled, expired. */
bool job_status_is_final(enum job_status status);

/* What is known of a set of records. */
struct job_records {
    int64_t records, tokens, bytes; /* in the token log, of which the bytes are */
    bool ready;                     /* a file's are all there */
    int64_t sequences, sequence_length;
    const char *digest; /* of the set of sequences; NULL: it was not made yet */
};

struct job_progress {
    bool known;       /* an attempt has begun */
    int64_t block;    /* the open one, from 1; 0 = none */
    const char *step; /* what it is at */
    double fraction;
    int64_t layers_done, layers_total, modules_done, modules_total, tokens_calibrated;
    double elapsed_seconds;
    int64_t eta_seconds;
    int64_t estimated_finish_at; /* 0: nothing can be said, of eta_seconds neither */
};

/* Bytes; 0 = not known. */
struct job_memory {
    int64_t source_bytes, artifact_bytes, gpu_peak_bytes, host_peak_bytes, estimated_gpu_bytes;
};

struct job_checkpoint {
    int64_t blocks;     /* finished ones */
    int64_t saved_at;   /* when the last was */
    int64_t charged;    /* attempts that ended without a finished block, since the last that had one */
    int64_t attempt;    /* the last that finished a block; 0: none did */
    json_t *phases;     /* {"forward":{"seconds","flops"},...}, of all attempts */
    const char *device; /* that made the blocks */
};

struct job_row {
    const char *id, *project, *name, *model, *method;
    enum job_status status;
    const char *status_reason, *phase;
    const char *traceparent, *tracestate; /* of the request that made it (base/trace.h) */
    const char *worker;
    int64_t priority, attempt;
    int64_t fence; /* of the claim; every change that a worker makes names it */
    int64_t seq;   /* number of the last event */
    int64_t created_at, queued_at, started_at, finished_at, cancelled_at;
    int64_t reserved_bytes; /* of its artifact, as estimated: they count for its project until the job ends */
    int64_t disk_bytes;     /* of all that it stores while its artifact is written, as estimated */
    json_t *request;        /* as spec_json makes it */
    json_t *result, *error, *warnings;
    json_t *gate; /* how rungs of a gate's ladder came out, and which one is next; NULL: none has yet */
    struct job_records calibration, evaluation;
    struct job_progress progress;
    struct job_memory memory;
    struct job_checkpoint checkpoint;
    void *texts; /* the store's */
};

void job_row_deinit(struct job_row *row);
CLEANUP_DEINIT(job_row, struct job_row, job_row_deinit)

/* Groups of columns, for changes. */
enum job_columns {
    JOB_SET_STATUS = 1 << 0,
    JOB_SET_STATUS_REASON = 1 << 1,
    JOB_SET_PHASE = 1 << 2,
    JOB_SET_NAME = 1 << 3,
    JOB_SET_PRIORITY = 1 << 4,
    JOB_SET_WORKER = 1 << 5,
    JOB_SET_QUEUED_AT = 1 << 6,
    JOB_SET_FINISHED_AT = 1 << 7,
    JOB_SET_CANCELLED_AT = 1 << 8,
    JOB_SET_REQUEST = 1 << 9,
    JOB_SET_RESULT = 1 << 10,
    JOB_SET_ERROR = 1 << 11,
    JOB_SET_WARNINGS = 1 << 12,
    JOB_SET_RECORDS = 1 << 13, /* calibration and evaluation */
    JOB_SET_PROGRESS = 1 << 14,
    JOB_SET_MEMORY = 1 << 15,
    JOB_SET_CHECKPOINT = 1 << 16,
    JOB_SET_RESERVED = 1 << 17,
    JOB_SET_GATE = 1 << 18,
};

/* One transaction on a job. */
struct job_update {
    const char *id;
    enum job_status from; /* the status that it must have, or STATUS_ANY */
    int64_t fence;        /* that it must have; -1: any */
    unsigned set;         /* JOB_SET_...: the columns of `row` that it gets */
    const struct job_row *row;
    bool clears_blocks; /* all finished blocks go with it, with their layers */
    const char *event;  /* type of the event that goes with it; NULL: none */
    const json_t *event_data;
    const json_t *artifact; /* an artifact that is published with it, of the job's project; NULL: none */
    const char *message;    /* type of the message that webhooks get of it; NULL: none */
    /* Its body: storage thread; NULL: no memory. New reference. */
    json_t *(*message_body)(const char *type, const struct job_row *after);
};

/* One page of jobs, in the requested order. */
struct job_list {
    struct job_row *rows;
    size_t count;
    bool more; /* beyond them */
};

void job_list_deinit(struct job_list *list);
CLEANUP_DEINIT(job_list, struct job_list, job_list_deinit)
