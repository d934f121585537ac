/* Recovery from an earlier process, before anything runs.
 *
 * A job that was running goes back into the queue and on from its last finished block. An attempt that finished none
 * counts against it, so that a job which kills the daemon is given up after max_attempts at one place instead of
 * killing it for ever; one that gets on may be interrupted any number of times. */

#include "jobs/service.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/log.h"
#include "jobs/failure.h"
#include "jobs/job.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>

static json_t *lost_error(const struct job_row *row, int64_t deaths)
{
    int64_t total = row->progress.layers_total, open = row->checkpoint.blocks;
    struct err_record record = {.code = ERR_WORKER_LOST};
    char where[96];

    if (total == 0) {
        snprintf(where, sizeof(where), "before its first block");
    } else if (open < total) {
        snprintf(where, sizeof(where), "at block %lld of %lld", (long long)open + 1, (long long)total);
    } else {
        snprintf(where, sizeof(where), "after its last block");
    }
    snprintf(record.message, sizeof(record.message), "the daemon died %lld %s while this job was %s", (long long)deaths,
             deaths == 1 ? "time" : "times", where);
    return failure_json(&record, open < total ? open : -1);
}

/* running -> queued, or failed when it has used up its attempts. */
static int recover_running(struct service *service, const struct job_row *row)
{
    struct job_row columns = {.checkpoint = row->checkpoint};
    bool moved_forward = row->attempt > 0 && row->checkpoint.attempt == row->attempt;
    int64_t max = json_integer_value(json_object_get(row->request, "max_attempts"));
    AUTO_JSON json_t *error = NULL;

    columns.checkpoint.charged += moved_forward ? 0 : 1;
    bool over = !moved_forward && columns.checkpoint.charged >= max;
    struct job_change change = {.fence = -1,
                                .reason = over ? "worker_lost" : "the daemon stopped without warning",
                                .set = JOB_SET_CHECKPOINT,
                                .row = &columns};
    if (over) {
        error = lost_error(row, columns.checkpoint.charged);
        columns.error = error;
        change.set |= JOB_SET_ERROR;
    }
    return job_move(service->store, row->id, over ? JOB_FAIL : JOB_REQUEUE, &change, NULL);
}

static int recover_pausing(struct service *service, const struct job_row *row)
{
    static const struct job_change change = {.fence = -1, .reason = "paused by request"};

    return job_move(service->store, row->id, JOB_REQUEUE, &change, NULL);
}

static int recover_cancelling(struct service *service, const struct job_row *row)
{
    static const struct job_change change = {.fence = -1, .reason = "cancelled by request"};

    return job_move(service->store, row->id, JOB_STOPPED, &change, NULL);
}

/* All jobs of one status leave it, so the first page is always the next one. */
static int recover_all(struct service *service, enum job_status status,
                       int (*one)(struct service *, const struct job_row *))
{
    const struct page page = {.limit = 100, .status = job_status_name(status), .ascending = true};

    for (;;) {
        AUTO(job_list) struct job_list list = {.rows = NULL};
        TRY(store_job_list(service->store, &page, &list));
        if (list.count == 0) {
            return 0;
        }
        for (size_t i = 0; i < list.count; i++) {
            TRY(one(service, &list.rows[i]));
        }
    }
}

/* Is this the folder of a job that may still need it? */
static bool is_needed(struct service *service, const char *name)
{
    struct store_status found;

    if (!id_valid(name, "job")) {
        return false;
    }
    int rc = store_job_status(service->store, NULL, name, &found);
    return rc != 0 ? rc != ERR_NOT_FOUND : service_job_keeps_files(found.status);
}

static int sweep_folders(struct service *service)
{
    char path[SERVICE_PATH_MAX];

    TRY(fs_path(path, sizeof(path), "%s/jobs", store_data_dir(service->store)));
    DIR *folder = opendir(path);
    if (folder == NULL) {
        return err_raise_errno(errno, "cannot list %s", path);
    }
    for (struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
        bool self = strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0;
        if (self) {
            continue;
        }
        is_needed(service, entry->d_name) ? service_job_remove_artifact(service, entry->d_name)
                                          : service_job_remove_files(service, entry->d_name);
    }
    closedir(folder);
    return 0;
}

/* Jobs that no worker runs any more leave their states. */
static int recover_jobs(struct service *service)
{
    TRY(recover_all(service, STATUS_RUNNING, recover_running));
    TRY(recover_all(service, STATUS_PAUSING, recover_pausing));
    return recover_all(service, STATUS_CANCELLING, recover_cancelling);
}

/* Space first: what is not needed goes before anything is written. */
int supervisor_recover(struct service *service)
{
    TRY(sweep_folders(service));
    service_collect_garbage(service);
    int rc = recover_jobs(service);
    atomic_store(&service->supervisor.recovered, rc == 0);
    if (rc == ERR_DISK_FULL) {
        log_err(LOG_ERROR, "disk full, interrupted jobs wait", NULL);
        return 0;
    }
    TRY(rc);
    return sweep_folders(service); /* of those that have ended just now */
}
