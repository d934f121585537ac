/* Several jobs next to each other: their totals, and the rows of their reports aligned by module. */

#include "jobs/service.h"

#include "base/err.h"
#include "jobs/view.h"

#include <string.h>

/* What tells two results of one module apart. */
static const char *const values[] = {"method",          "bits",         "group_size",
                                     "bits_per_weight", "relative_mse", "output_relative_mse",
                                     "sqnr_db",         "fallback",     "seconds"};

static json_t *compare_value(const json_t *row)
{
    json_t *value = json_object();

    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        json_object_set(value, values[i], json_object_get(row, values[i]));
    }
    return value;
}

/* The module's entry, with a null for each job, made where there is none yet. */
static json_t *compare_module(json_t *modules, json_t *by_name, const json_t *row, int jobs)
{
    const char *name = json_string_value(json_object_get(row, "module"));
    json_t *module = json_object_get(by_name, name);

    if (module != NULL || name == NULL) {
        return module;
    }
    json_t *list = json_array();
    for (int i = 0; i < jobs; i++) {
        json_array_append_new(list, json_null());
    }
    module = json_pack("{s:O, s:O, s:o}", "layer", json_object_get(row, "layer"), "module",
                       json_object_get(row, "module"), "values", list);
    if (module == NULL || json_object_set(by_name, name, module) != 0 || json_array_append_new(modules, module) != 0) {
        return NULL;
    }
    return module;
}

static int compare_job(struct service *service, const struct principal *who, const char *id, int index, int jobs,
                       json_t *heads, json_t *modules, json_t *by_name)
{
    AUTO_JSON json_t *report = NULL;
    AUTO_JSON json_t *job = NULL;
    size_t i;
    json_t *row;

    TRY(service_job_get(service, who, id, &job));
    TRY(service_job_report(service, who, id, &report));
    json_t *head = json_pack("{s:O, s:O, s:O, s:O, s:O, s:O, s:O, s:O}", "id", json_object_get(job, "id"), "name",
                             json_object_get(job, "name"), "model", json_object_get(job, "model"), "method",
                             json_object_get(job, "method"), "status", json_object_get(job, "status"), "quantization",
                             json_object_get(job, "quantization"), "totals", json_object_get(report, "totals"),
                             "evaluation", json_object_get(report, "evaluation"));
    if (head == NULL || json_array_append_new(heads, head) != 0) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a comparison");
    }
    json_array_foreach(json_object_get(report, "layers"), i, row)
    {
        json_t *module = compare_module(modules, by_name, row, jobs);
        if (module == NULL) {
            return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a comparison");
        }
        json_array_set_new(json_object_get(module, "values"), (size_t)index, compare_value(row));
    }
    return 0;
}

int service_jobs_compare(struct service *service, const struct principal *who, const char *const *ids, int count,
                         json_t **comparison)
{
    AUTO_JSON json_t *heads = json_array();
    AUTO_JSON json_t *modules = json_array();
    AUTO_JSON json_t *by_name = json_object();

    for (int i = 0; i < count; i++) {
        TRY(compare_job(service, who, ids[i], i, count, heads, modules, by_name));
    }
    json_t *result =
        json_pack("{s:s, s:O, s:O}", "object", "quantization.comparison", "jobs", heads, "modules", modules);
    if (result == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a comparison");
    }
    *comparison = result;
    return 0;
}
