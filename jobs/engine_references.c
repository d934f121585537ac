/* What jobs that have not ended refer to, and the deletion of files and artifacts. */

#include "jobs/engine.h"

#include "jobs/access.h"

#include "base/err.h"

#include <string.h>

static const char *const open_statuses[] = {"awaiting_calibration", "queued", "running", "cancelling"};

#define OPEN_COUNT (sizeof(open_statuses) / sizeof(open_statuses[0]))

int engine_model_unused(struct engine *engine, const struct principal *who, const char *id)
{
    for (size_t i = 0; i < OPEN_COUNT; i++) {
        const struct page page = {.limit = 1, .project = who->project, .status = open_statuses[i], .model = id};
        json_t *list;
        int rc = store_job_list(engine->store, &page, &list);
        if (rc != 0) {
            return rc;
        }
        const json_t *job = json_array_get(json_object_get(list, "data"), 0);
        if (job != NULL) {
            rc = err_raise(ERR_IN_USE, "job %s uses the model and has not ended",
                           json_string_value(json_object_get(job, "id")));
        }
        json_decref(list);
        if (rc != 0) {
            return rc;
        }
    }
    return 0;
}

static bool refers(const json_t *job, const char *part, const char *file)
{
    const json_t *request = json_object_get(job, "request");
    const char *id = json_string_value(json_object_get(json_object_get(request, part), "file_id"));
    return id != NULL && strcmp(id, file) == 0;
}

static int check_page(const json_t *jobs, const char *file)
{
    size_t i;
    json_t *job;

    json_array_foreach((json_t *)jobs, i, job)
    {
        if (refers(job, "calibration", file) || refers(job, "evaluation", file)) {
            return err_raise(ERR_IN_USE, "job %s uses the file and has not ended",
                             json_string_value(json_object_get(job, "id")));
        }
    }
    return 0;
}

static int file_unused_in(struct engine *engine, const char *project, const char *status, const char *file)
{
    char after[ID_SIZE] = "";
    bool more = true;

    while (more) {
        const struct page page = {.limit = 100,
                                  .project = project,
                                  .status = status,
                                  .ascending = true,
                                  .after = after[0] != '\0' ? after : NULL};
        json_t *list;
        int rc = store_job_list(engine->store, &page, &list);
        if (rc != 0) {
            return rc;
        }
        rc = check_page(json_object_get(list, "data"), file);
        const char *last = json_string_value(json_object_get(list, "last_id"));
        snprintf(after, sizeof(after), "%s", last != NULL ? last : "");
        more = json_is_true(json_object_get(list, "has_more"));
        json_decref(list);
        if (rc != 0) {
            return rc;
        }
    }
    return 0;
}

static int file_unused(struct engine *engine, const struct principal *who, const char *id)
{
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < OPEN_COUNT; i++) {
        rc = file_unused_in(engine, who->project, open_statuses[i], id);
    }
    return rc;
}

int engine_file_delete(struct engine *engine, const struct principal *who, const char *id)
{
    pthread_mutex_lock(&engine->admission);
    int rc = access_object(engine->store, who, "file", id);
    rc = rc != 0 ? rc : file_unused(engine, who, id);
    rc = rc != 0 ? rc : store_object_delete(engine->store, who->project, "file", id);
    pthread_mutex_unlock(&engine->admission);
    if (rc == 0) {
        engine_collect_garbage(engine);
    }
    return rc;
}

int engine_artifact_delete(struct engine *engine, const struct principal *who, const char *id)
{
    int rc = store_artifact_delete(engine->store, who->project, id);

    if (rc == 0) {
        engine_collect_garbage(engine);
    }
    return rc;
}
