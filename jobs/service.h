#pragma once
/* The inside of the service, shared by service_*.c, supervisor*.c, worker*.c and task*.c.
 *
 * `admission` orders the creation of jobs against the deletion of what they refer to; it is never held while something
 * is computed. State that outlives the process is in the store. */

#include "jobs/deliveries.h"
#include "jobs/jobs.h"
#include "jobs/spec.h"
#include "jobs/supervisor.h"
#include "jobs/sweep.h"
#include "models/model.h"
#include "models/tokenizer.h"
#include "storage/storage.h"

#include <pthread.h>

#define SERVICE_PATH_MAX 4096
#define SERVICE_URI_SIZE 1024       /* of a checkpoint */
#define SERVICE_REASON_SIZE 1024    /* of a message that says why something is not there */
#define SERVICE_PLACE_SIZE 8192     /* of its folder's path, with that of the root */
#define SERVICE_ARTIFACT "artifact" /* in a job's folder: files of an artifact until they are blobs */

struct service {
    struct store *store;
    int64_t max_queued;
    int64_t quota_defaults[QUOTA_COUNT];   /* QUOTA_UNSET: no limit */
    const struct signing_key *signing_key; /* NULL: artifacts are not signed */
    char **roots;                          /* absolute, NULL-terminated */
    int *root_fds;
    size_t root_count;
    struct supervisor supervisor;
    struct sweep sweep;
    struct deliveries deliveries;
    pthread_mutex_t admission;
    pthread_mutex_t uploads_lock;
    struct service_upload *uploads;     /* under uploads_lock, as the next one */
    struct service_transfer *transfers; /* pieces of resumable uploads on their way in */
    int data_fd;                        /* the data directory: the root of uploaded checkpoints */
};

/* --- service.c */
/* <data_dir>/jobs/<job>[/<file>]; file may be NULL. */
int service_job_path(const struct service *service, const char *job, const char *file, char out[SERVICE_PATH_MAX]);
/* A job of that status goes on from the files in its folder, or may be told to. */
bool service_job_keeps_files(enum job_status status);
/* Drop the job's folder and everything in it. A failure is logged: the next start sweeps again. */
void service_job_remove_files(const struct service *service, const char *job);
/* Drop what an attempt wrote of the artifact: the next one writes it from the start. */
void service_job_remove_artifact(const struct service *service, const char *job);
/* Where backends keep what they compile. */
int service_cache_folder(const char *data_dir, char out[SERVICE_PATH_MAX]);
/* "cpu", "cuda": of "cpu", "cuda:0". */
void service_device_kind(const struct gpu_info *device, char out[32]);
/* Collect blobs that nothing refers to; failures are logged. */
void service_collect_garbage(struct service *service);

/* --- service_jobs.c */
/* A job as the API shows it. */
int service_job_show(const struct job_row *row, json_t **job);
/* Of a project (NULL: of any). ERR_JOB_STATE_CONFLICT: it has not ended. */
int service_job_delete_ended(struct service *service, const char *project, const char *id);

/* --- quota.c */
/* JSON Schema of a quota as it is set. New reference. */
json_t *quota_schema(void);

/* --- service_models.c */
/* JSON Schema of a registration. New reference. */
json_t *service_model_schema(void);
/* The object of the model that a registration within a job describes, which is not stored. model_free: the job is. */
int service_model_describe(const struct service *service, const json_t *registration, bool model_free,
                           struct validation_errors *errors, json_t **object);
/* The project's model of the same folder and digest, or else this one, which is stored then (*made). Under admission,
 * so that two requests do not both make it. */
int service_model_take(struct service *service, const struct principal *who, const json_t *object, char id[ID_SIZE],
                       bool *made);

/* --- service_checkpoint.c */
/* Open the checkpoint that a uri names below one of the roots. */
int service_model_open(const struct service *service, const char *uri, enum model_reading reading, struct model **out);
/* The absolute path of the folder that a uri names, the same text for each way to write it. */
int service_model_place(const struct service *service, const char *uri, char place[SERVICE_PLACE_SIZE]);
/* As service_model_open, for a model object, whose digest must still be the one it was registered with:
 * ERR_SOURCE_CHANGED. */
int service_model_open_described(const struct service *service, const json_t *object, enum model_reading reading,
                                 struct model **out);
/* The same for the stored object of a project (NULL: of any). */
int service_model_open_object(const struct service *service, const char *project, const char *id,
                              enum model_reading reading, struct model **out);
/* The checkpoint's tokenizer; *out = NULL when it has none, or one that is damaged or of a kind that is not read: then
 * reason is a text that says why, else "". Ids need no tokenizer, so that is not an error yet. */
int service_tokenizer_open(const struct model *model, struct tokenizer **out, char reason[SERVICE_REASON_SIZE]);

/* --- service_transfer.c */
/* Delete an upload, of any project, whose last piece came before `cutoff` and that has not become a file. */
int service_transfer_expire(struct service *service, const char *id, int64_t cutoff, bool *expired);

/* --- service_files.c: what may not be deleted yet */
/* ERR_IN_USE when a job of the project that has not ended refers to the model. Call under admission. */
int service_model_unused(struct service *service, const struct principal *who, const char *id);
