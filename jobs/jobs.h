#pragma once
/* Jobs: from a request body to a published artifact. The public header of this layer.
 *
 * The service owns admission, a runner for each device, uploads and recovery. State lives in the store; the
 * service keeps only what runs now. All functions may be called from any thread but the loop thread (they wait for the
 * store). */

#include "base/cleanup.h"
#include "base/digest.h"
#include "base/ids.h"
#include "base/page.h"
#include "base/trace.h"
#include "base/validation.h"
#include "jobs/retention.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct service;
struct signing_key;
struct store;

/* Who asks. Models, files, jobs, artifacts and idempotency keys belong to a project; what belongs to another project is
 * ERR_NOT_FOUND, as if it were not there. */
struct principal {
    const char *project;
    const char *name;
};
extern const struct principal principal_local; /* of a daemon that knows no keys: project "default" */

/* What each project may have that has no quota of its own; 0 = no limit. */
struct project_limits {
    int64_t queued_jobs, running_jobs, stored_bytes, upload_bytes;
};

struct service_config {
    struct store *store;
    const char *const *model_roots; /* absolute directories; NULL-terminated */
    const char *device;             /* as gpu_find_all takes it; jobs run on each of them */
    bool worker_process;            /* each job runs in a process of its own, which is this executable again */
    const char *module_folders;     /* for that: as service_load_devices got them; NULL: none */
    const char *cpu_products;       /* for that as well; NULL: "float32" */
    int threads;                    /* CPU threads; 0 = all */
    int64_t host_memory_bytes;      /* activation budget before spilling; 0 = a quarter of what is free */
    int max_queued;                 /* jobs waiting at once; 0 = 1000 */
    struct project_limits project_limits;
    struct retention retention;
    const struct signing_key *signing_key; /* signs artifacts; outlives the service; NULL: they are not signed */
    const char *const *webhook_hosts; /* that messages may go to (webhooks/policy.h); NULL-terminated, or NULL: none */
    bool webhook_allow_private;
    const char *webhook_ca_file; /* certificates of their receivers in place of the system's; NULL: none */
    /* A runner's thread: a device is lost that only a new process can open. Its job is back in the queue, no
     * other is claimed until service_drain is called, which should be soon. NULL: the device is opened again in place.
     */
    void (*restart)(void *data);
    void *restart_data;
};

/* Once a process, before service_open and before threads start: load the backends of devices. module_folders: searched
 * for their modules, ':' between them; or NULL. cpu_products: as gpu_cpu_products takes it. ERR_CONFIG when none of
 * them has one of the devices, or the CPU not these products. Writes nothing: what a backend compiles goes below
 * data_dir once it is used. */
int service_load_devices(const char *data_dir, const char *module_folders, const char *cpu_products,
                         const char *device);
int service_open(const struct service_config *config, struct service **out);
/* Put interrupted jobs back into the queue and start the runners. */
int service_start(struct service *service);
/* Stop claiming; running jobs finish or drop the open layer within timeout_ms and stay resumable. */
void service_drain(struct service *service, int64_t timeout_ms);
void service_close(struct service *service); /* after drain; frees */
/* True once service_drain was called. */
bool service_draining(const struct service *service);

/* Adds to `components`, by name, the JSON Schema of what the service reads and writes by tables of its own:
 * "ModelRequest", "RecommendationRequest", "JobRequest" (one alternative for each method, told apart by "method"),
 * "Layer" (a row of a report), and what these refer to as #/components/schemas/NAME. */
void service_schemas(json_t *components);
/* GET /v1/system (its jobs are those of the project), /v1/methods, /v1/methods/{name}: new references. */
json_t *service_system(struct service *service, const struct principal *who);
json_t *service_methods(struct service *service);
/* GET /v1/architectures: what each row of models/arch.c is made of, and which methods and formats apply to it; a new
 * reference. */
json_t *service_architectures(void);
/* GET /v1/runtimes: which programs load what (formats/runtime_rows.c); a new reference. */
json_t *service_runtimes(void);
/* What jobs and the store count, in the text of base/metrics.h. */
void service_metrics(struct service *service, FILE *out);
int service_method(struct service *service, const char *name, json_t **method);

/* POST /v1/models: {"name","uri":"file:REL or file:/ABS below a root","expected_sha256"?}, or "uri":"upload:" with
 * "files":[{"path","file_id"}] of purpose model. Reads headers only. */
int service_model_register(struct service *service, const struct principal *who, const json_t *body,
                           struct validation_errors *errors, json_t **model);
int service_model_delete(struct service *service, const struct principal *who, const char *id);

/* POST /v1/quantization/jobs. Negative with errors filled when refused; every reason is named. */
int service_job_create(struct service *service, const struct principal *who, const json_t *body,
                       const struct trace *trace, const struct idempotency_key *idempotency,
                       struct validation_errors *errors, json_t **job);
/* POST /v1/quantization/estimates: what a job of this body would take and make, with every reason why it could not run.
 * Stores nothing. Negative with errors filled when the body cannot be read or its model not opened. */
int service_estimate(struct service *service, const struct principal *who, const json_t *body,
                     struct validation_errors *errors, json_t **estimate);
/* POST /v1/quantization/recommendations: ways to quantize a model for a goal, an accelerator and a load. Stores
 * nothing. Negative with errors filled. */
int service_recommend(struct service *service, const struct principal *who, const json_t *body,
                      struct validation_errors *errors, json_t **recommendation);
int service_job_get(struct service *service, const struct principal *who, const char *id,
                    json_t **job); /* as the API shows it */
/* Jobs as the API shows them, of the principal's project whatever the page says. */
int service_job_list(struct service *service, const struct principal *who, const struct page *page, json_t **list);
/* PATCH: {"name","priority","metadata"}, each optional. */
int service_job_change(struct service *service, const struct principal *who, const char *id, const json_t *body,
                       struct validation_errors *errors, json_t **job);
/* A job that runs stops after the open block, or at once when `now`; idempotent, as is the next. */
int service_job_pause(struct service *service, const struct principal *who, const char *id, bool now, json_t **job);
int service_job_resume(struct service *service, const struct principal *who, const char *id, json_t **job);
/* Back into the queue, from the last finished block. body (NULL: none): changed members of the request, which must not
 * contradict what is finished. */
int service_job_retry(struct service *service, const struct principal *who, const char *id, const json_t *body,
                      struct validation_errors *errors, json_t **job);
/* The jobs' totals, and the rows of their reports aligned by module. */
int service_jobs_compare(struct service *service, const struct principal *who, const char *const *ids, int count,
                         json_t **comparison);
/* Has a job, as the API shows it, ended (succeeded, failed, cancelled, expired)? */
bool job_view_ended(const json_t *job);
int service_job_cancel(struct service *service, const struct principal *who, const char *id,
                       json_t **job); /* idempotent */
int service_job_delete(struct service *service, const struct principal *who, const char *id);
int service_job_report(struct service *service, const struct principal *who, const char *id, json_t **report);
/* Column names of layer rows, NULL-terminated, in report order. */
const char *const *service_layer_columns(void);
int service_artifact_delete(struct service *service, const struct principal *who, const char *id);
/* Hash every stored file of an artifact again, and check its signature:
 * {"object":"artifact.verification","intact","files":[...],"signature"}. */
int service_artifact_verify(struct service *service, const struct principal *who, const char *id, json_t **answer);
#define SERVICE_OCI_MANIFEST_TYPE "application/vnd.oci.image.manifest.v1+json"
#define SERVICE_OCI_CONFIG_TYPE "application/vnd.cncf.model.config.v1+json"
/* An artifact as an OCI image (oci.c): what describes it; its layers are the artifact's files. */
struct service_oci_document {
    char *text; /* JSON */
    size_t size;
    char sha256[DIGEST_HEX_SIZE];
};
struct service_oci {
    json_t *files; /* [{"path","bytes","sha256"}]: of each layer, in the order of the manifest */
    struct service_oci_document config, manifest, index;
};
int service_artifact_oci(struct service *service, const struct principal *who, const char *id, struct service_oci *out);
void service_oci_deinit(struct service_oci *oci);
CLEANUP_DEINIT(service_oci, struct service_oci, service_oci_deinit)
/* The blob of an artifact's signature. ERR_NOT_FOUND: it is not signed. */
int service_artifact_signature(struct service *service, const struct principal *who, const char *id,
                               char sha256[DIGEST_HEX_SIZE]);
/* Sign an artifact, unless it has a sound signature of the daemon's key. ERR_NO_SIGNING_KEY. */
int service_artifact_sign(struct service *service, const struct principal *who, const char *id, json_t **artifact);
int service_file_delete(struct service *service, const struct principal *who, const char *id);

/* --- service_access.c: what is stored, as the principal may see it */
/* 0 when new work can be taken; else the reason raised (store_ready). */
int service_ready(struct service *service);
/* Rows of kind "mdl", "file", "art". page->project is ignored: the page is of the principal's project. */
int service_object_get(struct service *service, const struct principal *who, const char *kind, const char *id,
                       json_t **body);
int service_object_list(struct service *service, const struct principal *who, const char *kind, const struct page *page,
                        json_t **list);
/* 0, or ERR_NOT_FOUND: the principal has no such job. */
int service_job_check(struct service *service, const struct principal *who, const char *id);
/* Its events after number `after`, at most `limit`, ascending. *last (may be NULL): it has
 * ended, and none follows them. */
int service_job_events(struct service *service, const struct principal *who, const char *id, int64_t after, int limit,
                       json_t **events, bool *last);
int service_job_layers(struct service *service, const struct principal *who, const char *id, json_t **rows);
/* A file's bytes on their way in. */
struct blob_writer;
int service_file_open(struct service *service, struct blob_writer **out);
int service_file_write(struct blob_writer *writer, const void *data, size_t size);
/* Durable, and a blob. Frees writer. The blob is held until service_file_let_go. */
int service_file_commit_take(struct blob_writer *writer, char sha256[DIGEST_HEX_SIZE], int64_t *size);
void service_file_abort(struct blob_writer *writer);
/* How many bytes the project may still store. ERR_QUOTA_EXCEEDED when that is less than `bytes` (-1: not known). */
int service_room(struct service *service, const struct principal *who, int64_t bytes, int64_t *room);
/* The object that refers to a file's bytes; ERR_QUOTA_EXCEEDED. */
int service_file_create(struct service *service, const struct principal *who, const json_t *file);
/* The blob is not held for its file any longer: an object refers to it, or there is none. */
void service_file_let_go(struct service *service, const char *sha256);
/* --- service_transfer.c: resumable uploads. An object "upl" knows how many bytes are durable; all of them become a
 * file.
 */
int service_transfer_create(struct service *service, const struct principal *who, const char *purpose, const char *name,
                            int64_t length, json_t **object);
struct service_piece {
    int64_t offset;    /* where it begins: ERR_OFFSET_MISMATCH unless it is what the upload has */
    int64_t announced; /* its bytes; -1: not known yet. ERR_PAYLOAD_TOO_LARGE beyond the upload's length */
    bool checked;      /* its digest will be asked for: it counts completely or not at all */
};
struct service_transfer;
/* One piece at a time per upload: ERR_UPLOAD_BUSY. */
int service_transfer_open(struct service *service, const struct principal *who, const char *id,
                          const struct service_piece *piece, struct service_transfer **out);
/* Negative: abort it. */
int service_transfer_feed(struct service_transfer *transfer, const char *data, size_t size);
/* Of a checked piece, once it is complete: its digest. The caller compares, and refuses it or lets it count. */
void service_transfer_digest(struct service_transfer *transfer, char sha256[DIGEST_HEX_SIZE]);
void service_transfer_refuse(struct service_transfer *transfer); /* frees it */
/* The piece is durable, and *offset (set in any case) what the upload has. complete: no more follow, *file is the file.
 * It may be asked for again, as long as the file is there. Frees transfer. */
int service_transfer_end_take(struct service_transfer *transfer, bool complete, int64_t *offset, json_t **file);
/* The connection broke: what arrived counts, unless it was to be checked. Frees transfer. */
void service_transfer_abort(struct service_transfer *transfer);
int service_transfer_delete(struct service *service, const struct principal *who, const char *id);
/* The bytes of a file of an object that the principal has been shown. */
struct blob_reader;
int service_blob_open(struct service *service, const char *sha256, struct blob_reader **out, int64_t *size);
int service_blob_read(struct blob_reader *reader, int64_t offset, void *buffer, size_t size); /* exactly size */
void service_blob_close(struct blob_reader *reader);
/* The first request with a key reserves it: 0 = new, go on; 1 = *response holds the first answer; raised codes:
 * ERR_IDEMPOTENCY_IN_PROGRESS, ERR_IDEMPOTENCY_KEY_REUSED for another digest. Then it finishes the key with its answer,
 * or releases it. key->project is the principal's. */
int service_idempotency_reserve(struct service *service, const struct idempotency_key *key, const char *digest,
                                json_t **response);
/* Whether a request has used the key. */
int service_idempotency_known(struct service *service, const struct idempotency_key *key, bool *known);
int service_idempotency_finish(struct service *service, const struct idempotency_key *key, const json_t *response);
int service_idempotency_release(struct service *service, const struct idempotency_key *key);

/* What a key allows. */
struct key_grant {
    char id[ID_SIZE];
    char project[PROJECT_SIZE];
    int scope;          /* 0 read, 1 write, 2 admin: each includes those before it */
    int64_t expires_at; /* 0 = never */
};
#define KEY_TEXT_LENGTH 55 /* "qd_" and 256 random bits in base 32 */
/* Whether text has the form of a key. */
bool key_text_valid(const char *text, size_t size);
/* The key of a text's SHA-256, if it can be used now: else ERR_INVALID_API_KEY. */
int service_key_authenticate(struct service *service, const char sha256[DIGEST_HEX_SIZE], struct key_grant *grant);
/* The next are about the keys of all projects: only for administrators. *text is malloc'ed, and kept nowhere. */
int service_key_create(struct service *service, const json_t *body, struct validation_errors *errors, char **text,
                       json_t **key);
int service_key_get(struct service *service, const char *id, json_t **key);
int service_key_list(struct service *service, const struct page *page, json_t **list);
int service_key_revoke(struct service *service, const char *id);

/* --- quota.c: for administrators, of any project */
int service_quota_get(struct service *service, const char *project, json_t **quota);
/* body: {"max_queued_jobs","max_running_jobs","max_stored_bytes","max_upload_bytes"}; what is absent or null is the
 * daemon's default. */
int service_quota_set(struct service *service, const char *project, const json_t *body,
                      struct validation_errors *errors, json_t **quota);
/* Quotas of the projects that there are; the page goes by their names. */
int service_project_list(struct service *service, const struct page *page, json_t **list);

/* --- service_webhooks.c: webhooks of the principal's project, and what was sent to them */
/* *secret is malloc'ed, and shown in no other answer. */
int service_webhook_create(struct service *service, const struct principal *who, const json_t *body,
                           struct validation_errors *errors, char **secret, json_t **webhook);
int service_webhook_get(struct service *service, const struct principal *who, const char *id, json_t **webhook);
int service_webhook_list(struct service *service, const struct principal *who, const struct page *page, json_t **list);
int service_webhook_change(struct service *service, const struct principal *who, const char *id, const json_t *body,
                           struct validation_errors *errors, json_t **webhook);
/* Another secret; for a day the one that it had signs as well. */
int service_webhook_rotate(struct service *service, const struct principal *who, const char *id, char **secret,
                           json_t **webhook);
int service_webhook_delete(struct service *service, const struct principal *who, const char *id);
/* Send a message of type webhook.test, once: *delivery is pending. */
int service_webhook_test(struct service *service, const struct principal *who, const char *id, json_t **delivery);
int service_delivery_get(struct service *service, const struct principal *who, const char *webhook, const char *id,
                         json_t **delivery);
int service_delivery_list(struct service *service, const struct principal *who, const char *webhook,
                          const struct page *page, json_t **list);

/* POST .../calibration: one upload at a time per job (ERR_JOB_STATE_CONFLICT else). offset -1 = not given. */
struct service_upload;
int service_upload_open(struct service *service, const struct principal *who, const char *job, int64_t offset,
                        struct service_upload **out);
/* Bytes of NDJSON, in order; durable only after end. Negative: the upload is dead, abort it. */
int service_upload_feed(struct service_upload *upload, const char *data, size_t size);
/* fsync, commit, and queue the job when complete. Frees upload. *answer: what the route answers. When complete was
 * asked but there are too few tokens: ERR_INSUFFICIENT_CALIBRATION, the good records stay and *answer is set all the
 * same. */
int service_upload_end_take(struct service_upload *upload, bool complete, json_t **answer);
/* The connection broke: what was not acknowledged may be lost. Frees upload. */
void service_upload_abort(struct service_upload *upload);
