/* Suggestions for a job that is about to succeed, while its model is open: each is held to the checks of a new job. */

#include "jobs/task.h"

#include "base/err.h"
#include "jobs/suggest.h"

#include <stdlib.h>
#include <string.h>

static bool task_accepts(void *data, const json_t *request)
{
    const struct task *task = data;
    AUTO(job_spec) struct job_spec spec = {.metadata = NULL};
    struct validation_errors *errors = calloc(1, sizeof(*errors));
    bool accepts = errors != NULL && spec_parse(request, errors, &spec) == 0 &&
                   spec_check(&spec, task->model, &task->device, errors) == 0;

    free(errors);
    return accepts;
}

/* The number of a module within its layer; -1: it has no such module. */
static int module_of(const struct task *task, int64_t layer, const char *name)
{
    const struct plan *plan = plans_layer(model_plans(task->model), layer);
    char path[PLAN_NAME_MAX];

    for (int i = 0; i < plan->module_count; i++) {
        model_module_name(task->model, layer, i, path);
        if (strcmp(path, name) == 0) {
            return i;
        }
    }
    return -1;
}

static json_t *task_fused(void *data, int64_t layer, const char *name)
{
    const struct task *task = data;
    const struct plan *plan;
    char path[PLAN_NAME_MAX];

    if (layer < 0 || layer >= task->layers_total) {
        return NULL;
    }
    int module = module_of(task, layer, name);
    plan = plans_layer(model_plans(task->model), layer);
    for (int f = 0; module >= 0 && f < plan->fused_count; f++) {
        json_t *names = json_array();
        bool found = false;
        for (int i = 0; i < plan->fused[f].count; i++) {
            model_module_name(task->model, layer, plan->fused[f].modules[i], path);
            json_array_append_new(names, json_string(path));
            found = found || plan->fused[f].modules[i] == module;
        }
        if (found) {
            return names;
        }
        json_decref(names);
    }
    return NULL;
}

json_t *task_suggestions(struct task *task, const json_t *rows)
{
    AUTO_JSON json_t *request = spec_json(&task->spec);
    const struct suggest from = {.rows = rows,
                                 .request = request,
                                 .calibration_tokens = task->calibration_records.tokens,
                                 .calibrated = task->calibration.sequences > 0,
                                 .accepts = task_accepts,
                                 .fused = task_fused,
                                 .data = task};

    return request != NULL ? suggest_changes(&from) : NULL;
}
