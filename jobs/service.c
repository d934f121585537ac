/* The service's own life (open, start, drain, close), and the folders of jobs. */

#include "jobs/service.h"

#include "jobs/quota.h"
#include "jobs/service_access.h"
#include "jobs/service_uploaded.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/log.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SERVICE_MAX_QUEUED 1000
#define DELIVERIES_GRACE_MS 1000 /* at a shutdown */
#define SERVICE_DATA_DIR_MAX 400 /* job folders below it fit every path buffer */

static int open_roots(struct service *service, const char *const *roots)
{
    size_t count = 0;

    while (roots != NULL && roots[count] != NULL) {
        count++;
    }
    service->roots = calloc(count + 1, sizeof(*service->roots));
    service->root_fds = calloc(count + 1, sizeof(*service->root_fds));
    if (service->roots == NULL || service->root_fds == NULL) {
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
        service->roots[i] = strndup(roots[i], length);
        service->root_fds[i] = open(roots[i], O_PATH | O_DIRECTORY | O_CLOEXEC);
        service->root_count = i + 1;
        if (service->root_fds[i] < 0) {
            return err_raise(ERR_CONFIG, "cannot open model root %s: %s", roots[i], strerror(errno));
        }
        if (service->roots[i] == NULL) {
            return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the model roots");
        }
    }
    return 0;
}

int service_cache_folder(const char *data_dir, char out[SERVICE_PATH_MAX])
{
    return fs_path(out, SERVICE_PATH_MAX, "%s/device-cache", data_dir);
}

int service_load_devices(const char *data_dir, const char *module_folders, const char *cpu_products, const char *device)
{
    char path[SERVICE_PATH_MAX];

    if (service_cache_folder(data_dir, path) == 0) {
        gpu_cache_folder(path);
    }
    TRY(gpu_cpu_products(cpu_products));
    TRY(gpu_load_backends(module_folders));
    struct gpu_names names;
    return gpu_find_all(device, &names);
}

static int service_open_parts(struct service *service, const struct service_config *config)
{
    if (strlen(store_data_dir(config->store)) > SERVICE_DATA_DIR_MAX) {
        return err_raise(ERR_CONFIG, "the data directory's path is longer than %d bytes", SERVICE_DATA_DIR_MAX);
    }
    TRY(open_roots(service, config->model_roots));
    service->data_fd = open(store_data_dir(config->store), O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (service->data_fd < 0) {
        return err_raise_errno(errno, "cannot open the data directory");
    }
    TRY(deliveries_open(service, config));
    return supervisor_open(service, config);
}

int service_open(const struct service_config *config, struct service **out)
{
    struct service *service = NULL;

    TRY(mem_new(&service));
    service->store = config->store;
    service->data_fd = -1;
    service->max_queued = config->max_queued > 0 ? config->max_queued : SERVICE_MAX_QUEUED;
    quota_open(service, &config->project_limits);
    service->signing_key = config->signing_key;
    pthread_mutex_init(&service->admission, NULL);
    pthread_mutex_init(&service->uploads_lock, NULL);
    supervisor_init(service);
    sweep_init(&service->sweep);
    service->sweep.retention = config->retention;
    int rc = service_open_parts(service, config);
    if (rc != 0) {
        service_close(service);
        return err_pass(rc, "open the service");
    }
    *out = service;
    return 0;
}

int service_start(struct service *service)
{
    uploaded_sweep(service);
    TRY(supervisor_start(service));
    TRY(deliveries_start(service));
    return sweep_start(service);
}

void service_drain(struct service *service, int64_t timeout_ms)
{
    int64_t grace_ms = timeout_ms / 4 < DELIVERIES_GRACE_MS ? timeout_ms / 4 : DELIVERIES_GRACE_MS;

    sweep_stop(&service->sweep);
    supervisor_drain(service, timeout_ms - grace_ms);
    deliveries_stop(service, grace_ms);
}

void service_close(struct service *service)
{
    if (service == NULL) {
        return;
    }
    sweep_close(&service->sweep);
    supervisor_close(service);
    deliveries_close(service);
    for (size_t i = 0; i < service->root_count; i++) {
        if (service->root_fds[i] >= 0) {
            close(service->root_fds[i]);
        }
        free(service->roots[i]);
    }
    free(service->roots);
    free(service->root_fds);
    if (service->data_fd >= 0) {
        close(service->data_fd);
    }
    pthread_mutex_destroy(&service->admission);
    pthread_mutex_destroy(&service->uploads_lock);
    free(service);
}

struct store *service_store(const struct service *service)
{
    return service->store;
}

bool service_draining(const struct service *service)
{
    return atomic_load(&service->supervisor.draining);
}

void service_device_kind(const struct gpu_info *device, char out[32])
{
    snprintf(out, 32, "%.*s", (int)strcspn(device->id, ":"), device->id);
}

int service_job_path(const struct service *service, const char *job, const char *file, char out[SERVICE_PATH_MAX])
{
    return fs_path(out, SERVICE_PATH_MAX, "%s/jobs/%s%s%s", store_data_dir(service->store), job,
                   file != NULL ? "/" : "", file != NULL ? file : "");
}

static void remove_from_job(const struct service *service, const char *job, const char *file, const char *failure)
{
    char path[SERVICE_PATH_MAX];

    if (service_job_path(service, job, file, path) != 0 || fs_remove_tree(path) != 0) {
        log_err(LOG_WARN, failure, job);
    }
}

bool service_job_keeps_files(enum job_status status)
{
    return !job_status_is_final(status) || status == STATUS_FAILED;
}

void service_job_remove_files(const struct service *service, const char *job)
{
    remove_from_job(service, job, NULL, "job folder not removed");
}

void service_job_remove_artifact(const struct service *service, const char *job)
{
    remove_from_job(service, job, SERVICE_ARTIFACT, "unfinished artifact not removed");
}

void service_collect_garbage(struct service *service)
{
    int64_t removed = 0;

    if (store_collect_garbage(service->store, &removed) != 0) {
        log_err(LOG_WARN, "garbage not collected", NULL);
    } else if (removed > 0) {
        log_info("garbage collected", LOG_I("blobs", removed));
    }
}
