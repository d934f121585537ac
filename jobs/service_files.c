/* Files, as far as quotas allow them; what jobs that have not ended refer to, and the deletion of files and artifacts.
 */

#include "jobs/service.h"

#include "jobs/quota.h"
#include "jobs/service_access.h"

#include "base/err.h"

#include <string.h>

/* Under admission: two requests must not both take what is left of a quota. */
int service_file_create(struct service *service, const struct principal *who, const json_t *file)
{
    pthread_mutex_lock(&service->admission);
    int rc = quota_admit_file(service, who, json_integer_value(json_object_get(file, "bytes")));
    rc = rc == 0 ? store_object_put(service->store, who->project, "file", file) : rc;
    pthread_mutex_unlock(&service->admission);
    return rc;
}

int service_model_unused(struct service *service, const struct principal *who, const char *id)
{
    const struct page page = {.limit = 1, .project = who->project, .unended = true, .model = id};
    AUTO(job_list) struct job_list list = {.rows = NULL};

    TRY(store_job_list(service->store, &page, &list));
    return list.count == 0 ? 0 : err_raise(ERR_IN_USE, "job %s uses the model and has not ended", list.rows[0].id);
}

static bool refers(const struct job_row *job, const char *part, const char *file)
{
    const char *id = json_string_value(json_object_get(json_object_get(job->request, part), "file_id"));
    return id != NULL && strcmp(id, file) == 0;
}

static int check_page(const struct job_list *jobs, const char *file)
{
    for (size_t i = 0; i < jobs->count; i++) {
        const struct job_row *job = &jobs->rows[i];
        if (refers(job, "calibration", file) || refers(job, "evaluation", file)) {
            return err_raise(ERR_IN_USE, "job %s uses the file and has not ended", job->id);
        }
    }
    return 0;
}

static int file_unused(struct service *service, const struct principal *who, const char *file)
{
    char after[ID_SIZE] = "";
    bool more = true;

    while (more) {
        const struct page page = {.limit = 100,
                                  .project = who->project,
                                  .unended = true,
                                  .ascending = true,
                                  .after = after[0] != '\0' ? after : NULL};
        AUTO(job_list) struct job_list list = {.rows = NULL};
        TRY(store_job_list(service->store, &page, &list));
        TRY(check_page(&list, file));
        more = list.more;
        if (more) {
            snprintf(after, sizeof(after), "%s", list.rows[list.count - 1].id);
        }
    }
    return 0;
}

/* Under admission. */
static int delete_unused_file(struct service *service, const struct principal *who, const char *id)
{
    TRY(access_object(service->store, who, "file", id));
    TRY(file_unused(service, who, id));
    return store_object_delete(service->store, who->project, "file", id);
}

int service_file_delete(struct service *service, const struct principal *who, const char *id)
{
    pthread_mutex_lock(&service->admission);
    int rc = delete_unused_file(service, who, id);
    pthread_mutex_unlock(&service->admission);
    if (rc == 0) {
        service_collect_garbage(service);
    }
    return rc;
}

int service_artifact_delete(struct service *service, const struct principal *who, const char *id)
{
    int rc = store_artifact_delete(service->store, who->project, id);

    if (rc == 0) {
        service_collect_garbage(service);
    }
    return rc;
}
