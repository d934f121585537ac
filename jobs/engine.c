/* The engine's own life: open, start, drain, close. One runner thread serves it, for the one device that the
 * daemon was given; a second device would be a second runner, since all that they share lies in the store. */

#include "jobs/engine.h"

#include "jobs/access.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define ENGINE_MAX_QUEUED 1000
#define ENGINE_MEMORY_MIN ((int64_t)256 << 20)
#define ENGINE_DATA_DIR_MAX 400 /* job folders below it fit every path buffer */
#define DRAIN_SLACK_MS 5000     /* what one tick may take beyond the deadline */

/* "Key:  123 kB" of /proc/meminfo in bytes, -1 if unknown. */
static int64_t meminfo(const char *key)
{
    char line[128];
    int64_t bytes = -1;
    FILE *file = fopen("/proc/meminfo", "re");

    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        size_t length = strlen(key);
        if (strncmp(line, key, length) == 0 && line[length] == ':') {
            bytes = strtoll(line + length + 1, NULL, 10) * 1024;
            break;
        }
    }
    if (file != NULL) {
        fclose(file);
    }
    return bytes;
}

static int64_t default_budget(void)
{
    int64_t free_bytes = meminfo("MemAvailable");
    int64_t quarter = free_bytes / 4;
    return quarter > ENGINE_MEMORY_MIN ? quarter : ENGINE_MEMORY_MIN;
}

static int open_roots(struct engine *engine, const char *const *roots)
{
    size_t count = 0;

    while (roots != NULL && roots[count] != NULL) {
        count++;
    }
    engine->roots = calloc(count + 1, sizeof(*engine->roots));
    engine->root_fds = calloc(count + 1, sizeof(*engine->root_fds));
    if (engine->roots == NULL || engine->root_fds == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the model roots");
    }
    for (size_t i = 0; i < count; i++) {
        size_t length = strlen(roots[i]);
        if (roots[i][0] != '/') {
            return err_raise(ERR_CONFIG, "model root \"%.200s\" is not an absolute path", roots[i]);
        }
        while (length > 1 && roots[i][length - 1] == '/') {
            length--;
        }
        engine->roots[i] = strndup(roots[i], length);
        engine->root_fds[i] = open(roots[i], O_PATH | O_DIRECTORY | O_CLOEXEC);
        engine->root_count = i + 1;
        if (engine->root_fds[i] < 0) {
            return err_raise(ERR_CONFIG, "cannot open model root %s: %s", roots[i], strerror(errno));
        }
        if (engine->roots[i] == NULL) {
            return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the model roots");
        }
    }
    return 0;
}

static void init_locks(struct engine *engine)
{
    pthread_condattr_t attributes;

    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&engine->wake, &attributes);
    pthread_cond_init(&engine->ended, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&engine->lock, NULL);
    pthread_mutex_init(&engine->admission, NULL);
}

int engine_cache_folder(const char *data_dir, char out[ENGINE_PATH_MAX])
{
    return fs_path(out, ENGINE_PATH_MAX, "%s/device-cache", data_dir);
}

int engine_load_devices(const char *data_dir, const char *module_folders, const char *device)
{
    char path[ENGINE_PATH_MAX];

    if (engine_cache_folder(data_dir, path) == 0) {
        gpu_cache_folder(path);
    }
    int rc = gpu_load_backends(module_folders);
    return rc != 0 ? rc : gpu_find(device);
}

int engine_open(const struct engine_config *config, struct engine **out)
{
    struct engine *engine = calloc(1, sizeof(*engine));

    if (engine == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the engine");
    }
    init_locks(engine);
    engine->store = config->store;
    engine->threads = config->threads;
    engine->worker_process = config->worker_process;
    engine->module_folders = strdup(config->module_folders != NULL ? config->module_folders : "");
    engine->restart = config->restart;
    engine->restart_data = config->restart_data;
    engine->max_queued = config->max_queued > 0 ? config->max_queued : ENGINE_MAX_QUEUED;
    engine->host_memory_bytes = config->host_memory_bytes > 0 ? config->host_memory_bytes : default_budget();
    snprintf(engine->device, sizeof(engine->device), "%s", config->device != NULL ? config->device : "auto");
    int rc = strlen(store_data_dir(config->store)) > ENGINE_DATA_DIR_MAX
                 ? err_raise(ERR_CONFIG, "the data directory's path is longer than %d bytes", ENGINE_DATA_DIR_MAX)
                 : open_roots(engine, config->model_roots);
    if (rc == 0 && engine->module_folders == NULL) {
        rc = err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the engine");
    }
    rc = rc != 0 ? rc : gpu_open(engine->device, engine->threads, &engine->gpu);
    if (rc != 0) {
        engine_close(engine);
        return err_pass(rc, "open the engine");
    }
    engine->device_info = engine->gpu.info;
    if (engine->worker_process) {
        gpu_close(&engine->gpu); /* the processes open it */
    }
    log_info("device opened", LOG_S("device", engine->device_info.id), LOG_S("name", engine->device_info.name),
             LOG_I("threads", engine->device_info.threads));
    *out = engine;
    return 0;
}

int engine_start(struct engine *engine)
{
    int rc = engine_recover(engine);

    if (rc != 0) {
        return err_pass(rc, "recover");
    }
    engine->work = true;
    int failed = pthread_create(&engine->runner, NULL, runner_main, engine);
    if (failed != 0) {
        return err_raise_errno(failed, "cannot start the runner");
    }
    engine->runner_started = true;
    return 0;
}

struct store *engine_store(const struct engine *engine)
{
    return engine->store;
}

void engine_wake(struct engine *engine)
{
    pthread_mutex_lock(&engine->lock);
    engine->work = true;
    pthread_cond_broadcast(&engine->wake);
    pthread_mutex_unlock(&engine->lock);
}

void engine_drain(struct engine *engine, int64_t timeout_ms)
{
    int64_t deadline = clock_monotonic_ms() + (timeout_ms > 0 ? timeout_ms : 0);
    int64_t until = deadline + DRAIN_SLACK_MS;
    const struct timespec limit = {.tv_sec = until / 1000, .tv_nsec = until % 1000 * 1000000};

    pthread_mutex_lock(&engine->lock);
    atomic_store(&engine->drain_deadline_ms, deadline);
    atomic_store(&engine->draining, true);
    pthread_cond_broadcast(&engine->wake);
    while (engine->runner_started && !engine->runner_ended) {
        if (pthread_cond_timedwait(&engine->ended, &engine->lock, &limit) == ETIMEDOUT) {
            log_warn("the open layer did not stop in time");
            break;
        }
    }
    pthread_mutex_unlock(&engine->lock);
}

bool engine_draining(const struct engine *engine)
{
    return atomic_load(&engine->draining);
}

void engine_close(struct engine *engine)
{
    if (engine == NULL) {
        return;
    }
    if (engine->runner_started) {
        if (!engine_draining(engine)) {
            engine_drain(engine, 0);
        }
        pthread_join(engine->runner, NULL);
    }
    gpu_close(&engine->gpu);
    for (size_t i = 0; i < engine->root_count; i++) {
        if (engine->root_fds[i] >= 0) {
            close(engine->root_fds[i]);
        }
        free(engine->roots[i]);
    }
    free(engine->module_folders);
    free(engine->roots);
    free(engine->root_fds);
    pthread_mutex_destroy(&engine->admission);
    pthread_mutex_destroy(&engine->lock);
    pthread_cond_destroy(&engine->wake);
    pthread_cond_destroy(&engine->ended);
    free(engine);
}

int engine_device_of(const struct engine *engine, const char *want, struct gpu_info *out)
{
    if (want[0] == '\0' || strcmp(want, "auto") == 0) {
        *out = engine->device_info;
        return 0;
    }
    return gpu_describe(want, engine->threads, out);
}

void engine_device_kind(const struct gpu_info *device, char out[32])
{
    snprintf(out, 32, "%.*s", (int)strcspn(device->id, ":"), device->id);
}

int engine_job_path(const struct engine *engine, const char *job, const char *file, char out[ENGINE_PATH_MAX])
{
    return fs_path(out, ENGINE_PATH_MAX, "%s/jobs/%s%s%s", store_data_dir(engine->store), job, file != NULL ? "/" : "",
                   file != NULL ? file : "");
}

void engine_job_remove_files(const struct engine *engine, const char *job)
{
    char path[ENGINE_PATH_MAX];

    int rc = engine_job_path(engine, job, NULL, path);
    rc = rc != 0 ? rc : fs_remove_tree(path);
    if (rc != 0) {
        log_err(LOG_WARN, "job folder not removed", job);
    }
}

void engine_job_remove_artifact(const struct engine *engine, const char *job)
{
    char path[ENGINE_PATH_MAX];

    int rc = engine_job_path(engine, job, ENGINE_ARTIFACT, path);
    rc = rc != 0 ? rc : fs_remove_tree(path);
    if (rc != 0) {
        log_err(LOG_WARN, "unfinished artifact not removed", job);
    }
}

void engine_collect_garbage(struct engine *engine)
{
    int64_t removed = 0;

    if (store_collect_garbage(engine->store, &removed) != 0) {
        log_err(LOG_WARN, "garbage not collected", NULL);
    } else if (removed > 0) {
        log_info("garbage collected", LOG_I("blobs", removed));
    }
}
