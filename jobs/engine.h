#pragma once
/* The inside of the engine, shared by engine_*.c, upload.c, runner.c, task*.c and recover.c.
 *
 * Two locks, never held together with a wait for compute: `admission` orders the creation of jobs against the deletion
 * of what they refer to; `lock` guards what runs now (task, uploads, wake). State that outlives the process is in the
 * store. */

#include "jobs/jobs.h"
#include "jobs/spec.h"
#include "models/model.h"
#include "models/tokenizer.h"
#include "storage/storage.h"

#include <pthread.h>
#include <stdatomic.h>

#define ENGINE_PATH_MAX 4096
#define ENGINE_ARTIFACT "artifact" /* in a job's folder: files of an artifact until they are blobs */

struct task;

struct engine {
    struct store *store;
    char device[32];
    int threads;
    int64_t host_memory_bytes;
    int64_t max_queued;
    char **roots; /* absolute, NULL-terminated */
    int *root_fds;
    size_t root_count;
    struct gpu gpu;              /* the runner's; opened once and kept */
    struct gpu_info device_info; /* as first opened, for others to read */
    bool worker_process;         /* jobs run in processes of their own; `gpu` is not open then */
    char *module_folders;        /* for these */
    bool lost_until_exit;        /* a device like the one that the last job ran on, once lost, needs a new process */
    void (*restart)(void *data); /* as in the configuration */
    void *restart_data;

    pthread_mutex_t admission;

    pthread_mutex_t lock;
    pthread_cond_t wake;  /* monotonic clock: there is work, or the daemon drains */
    pthread_cond_t ended; /* monotonic clock: the runner has returned */
    bool work;
    bool recovered; /* the runner's, once it runs */
    bool runner_started, runner_ended;
    pthread_t runner;
    struct task *task; /* what the runner works on, or NULL */
    struct engine_upload *uploads;

    atomic_bool draining;
    _Atomic int64_t drain_deadline_ms; /* on the monotonic clock */
};

/* --- engine.c */
/* Tell the runner that a job may be waiting. */
void engine_wake(struct engine *engine);
/* <data_dir>/jobs/<job>[/<file>]; file may be NULL. */
int engine_job_path(const struct engine *engine, const char *job, const char *file, char out[ENGINE_PATH_MAX]);
/* Drop the job's folder and everything in it. A failure is logged: the next start sweeps again. */
void engine_job_remove_files(const struct engine *engine, const char *job);
/* Drop what an attempt wrote of the artifact: the next one writes it from the start. */
void engine_job_remove_artifact(const struct engine *engine, const char *job);
/* What the device is that runs a job which asks for `want`: the engine's for "auto" and "", as it was when it was first
 * opened, else the one of that name. Any thread; opens none that was opened before. */
int engine_device_of(const struct engine *engine, const char *want, struct gpu_info *out);
/* Where backends keep what they compile. */
int engine_cache_folder(const char *data_dir, char out[ENGINE_PATH_MAX]);
/* "cpu", "cuda": of "cpu", "cuda:0". */
void engine_device_kind(const struct gpu_info *device, char out[32]);
/* Collect blobs that nothing refers to; failures are logged. */
void engine_collect_garbage(struct engine *engine);

/* --- engine_models.c */
/* JSON Schema of a registration. New reference. */
json_t *engine_model_schema(void);
/* Open the checkpoint that a uri names below one of the roots. */
int engine_model_open(const struct engine *engine, const char *uri, struct model **out);
/* The same for a stored model object of a project (NULL: of any), whose digest must still be the one it was registered
 * with: ERR_SOURCE_CHANGED. */
int engine_model_open_object(const struct engine *engine, const char *project, const char *id, struct model **out);
/* The checkpoint's tokenizer; *out = NULL when it has none. */
int engine_tokenizer_open(const struct model *model, struct tokenizer **out);

/* --- engine_references.c: what may not be deleted yet */
/* ERR_IN_USE when a job of the project that has not ended refers to the model. Call under admission. */
int engine_model_unused(struct engine *engine, const struct principal *who, const char *id);

/* --- recover.c */
/* What an earlier process left: stray folders go, running jobs go back into the queue, cancelling ones end. A disk that
 * is too full for that does not count as a failure: engine->recovered stays false, and the runner tries it again. */
int engine_recover(struct engine *engine);

/* --- runner.c */
void *runner_main(void *engine);
