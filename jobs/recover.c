/* What an earlier process left behind, set right before anything runs.
 *
 * A job that was running goes back into the queue and on from its last finished block. An attempt that finished none
 * counts against it, so that a job which kills the daemon is given up after max_attempts at one place instead of
 * killing it for ever; one that gets on may be interrupted any number of times. */

#include "jobs/engine.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/log.h"
#include "jobs/failure.h"
#include "jobs/job.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>

static json_t *lost_error(const json_t *row, int64_t deaths)
{
    const json_t *last = json_object_get(json_object_get(row, "checkpoint"), "layer");
    int64_t total = json_integer_value(json_object_get(json_object_get(row, "progress"), "layers_total"));
    int64_t open = json_is_integer(last) ? json_integer_value(last) + 1 : 0;
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
static int recover_running(struct engine *engine, const json_t *row)
{
    const json_t *found = json_object_get(row, "checkpoint");
    json_t *checkpoint = json_is_object(found) ? json_copy((json_t *)found) : json_object();
    int64_t attempt = json_integer_value(json_object_get(row, "attempt"));
    bool moved_forward = attempt > 0 && json_integer_value(json_object_get(checkpoint, "attempt")) == attempt;
    int64_t charged = json_integer_value(json_object_get(checkpoint, "charged")) + (moved_forward ? 0 : 1);
    int64_t max = json_integer_value(json_object_get(json_object_get(row, "request"), "max_attempts"));
    bool over = !moved_forward && charged >= max;
    const char *reason = over ? "worker_lost" : "the daemon stopped without warning";

    json_object_set_new(checkpoint, "charged", json_integer(charged));
    json_t *columns = json_pack("{s:o}", "checkpoint", checkpoint);
    if (over) {
        json_object_set_new(columns, "error", lost_error(row, charged));
    }
    const struct job_change change = {.fence = -1, .reason = reason, .columns = columns};
    return job_move(engine->store, json_string_value(json_object_get(row, "id")), over ? JOB_FAIL : JOB_REQUEUE,
                    &change, NULL);
}

static int recover_cancelling(struct engine *engine, const json_t *row)
{
    static const struct job_change change = {.fence = -1, .reason = "cancelled by request"};

    return job_move(engine->store, json_string_value(json_object_get(row, "id")), JOB_STOPPED, &change, NULL);
}

/* All jobs of one status leave it, so the first page is always the next one. */
static int recover_all(struct engine *engine, const char *status, int (*one)(struct engine *, const json_t *))
{
    const struct page page = {.limit = 100, .status = status, .ascending = true};
    size_t count = 1;
    int rc = 0;

    while (rc == 0 && count > 0) {
        json_t *list;
        rc = store_job_list(engine->store, &page, &list);
        if (rc != 0) {
            break;
        }
        const json_t *rows = json_object_get(list, "data");
        count = json_array_size(rows);
        for (size_t i = 0; rc == 0 && i < count; i++) {
            const json_t *row = json_array_get(rows, i);
            rc = one(engine, row);
            log_info("job recovered", LOG_S("job", json_string_value(json_object_get(row, "id"))),
                     LOG_S("from", status));
        }
        json_decref(list);
    }
    return rc;
}

/* Is this the folder of a job that may still need it? */
static bool is_needed(struct engine *engine, const char *name)
{
    struct store_status found;

    if (!id_valid(name, "job")) {
        return false;
    }
    int rc = store_job_status(engine->store, NULL, name, &found);
    return rc != 0 ? rc != ERR_NOT_FOUND : !job_is_terminal(found.status);
}

static int sweep_folders(struct engine *engine)
{
    char path[ENGINE_PATH_MAX];

    int rc = fs_path(path, sizeof(path), "%s/jobs", store_data_dir(engine->store));
    if (rc != 0) {
        return rc;
    }
    DIR *folder = opendir(path);
    if (folder == NULL) {
        return err_raise_errno(errno, "cannot list %s", path);
    }
    for (struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder)) {
        bool self = strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0;
        if (self) {
            continue;
        }
        is_needed(engine, entry->d_name) ? engine_job_remove_artifact(engine, entry->d_name)
                                         : engine_job_remove_files(engine, entry->d_name);
    }
    closedir(folder);
    return 0;
}

/* Space first: what is not needed goes before anything is written. */
int engine_recover(struct engine *engine)
{
    int rc = sweep_folders(engine);

    if (rc != 0) {
        return rc;
    }
    engine_collect_garbage(engine);
    rc = recover_all(engine, "running", recover_running);
    rc = rc != 0 ? rc : recover_all(engine, "cancelling", recover_cancelling);
    engine->recovered = rc == 0;
    if (rc == ERR_DISK_FULL) {
        log_err(LOG_ERROR, "disk full, interrupted jobs wait", NULL);
        return 0;
    }
    return rc != 0 ? rc : sweep_folders(engine); /* of those that have ended just now */
}
