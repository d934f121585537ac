/* What this daemon can do, in its own words: devices, formats, architectures, limits, methods. */

#include "jobs/service.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/text.h"
#include "formats/runtimes.h"
#include "jobs/metrics.h"
#include "jobs/signature.h"
#include "jobs/view.h"
#include "models/calibration.h"

#include <string.h>

static json_t *list_formats(void)
{
    json_t *list = json_array();

    for (const struct format *const *f = format_list(); *f != NULL; f++) {
        json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:o}", "name", (*f)->name, "title", (*f)->title,
                                              "description", (*f)->help, "runtimes", runtime_names((*f)->name)));
    }
    return list;
}

static json_t *list_architectures(void)
{
    json_t *list = json_array();

    for (const struct arch *const *a = arch_list(); *a != NULL; a++) {
        json_array_append_new(list, json_string((*a)->name));
    }
    return list;
}

static json_t *list_devices(const struct service *service)
{
    json_t *list = json_array();

    for (int i = 0; i < service->supervisor.count; i++) {
        const struct gpu_info *info = &service->supervisor.runners[i].device;
        json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:I, s:i}", "id", info->id, "name", info->name, "detail",
                                              info->detail, "memory_bytes", (json_int_t)info->memory_total, "threads",
                                              info->threads));
    }
    return list;
}

json_t *service_system(struct service *service, const struct principal *who)
{
    int64_t counts[STATUS_COUNT];
    bool known = store_job_counts(service->store, who->project, counts) == 0;

    return json_pack(
        "{s:s, s:s, s:s, s:{s:s}, s:o, s:s, s:o, s:o, s:b, s:o, s:o, s:{s:I, s:I, s:I, s:I}}", "object", "system",
        "name", "quantd", "version", QUANTD_VERSION, "build", "compiler", __VERSION__, "devices", list_devices(service),
        "device_notes", gpu_backend_notes(), "formats", list_formats(), "architectures", list_architectures(),
        "draining", (int)service_draining(service), "jobs", known ? view_counts(counts) : json_null(), "signing_key",
        signature_key_json(service), "limits", "max_queued", (json_int_t)service->max_queued, "host_memory_bytes",
        (json_int_t)service->supervisor.host_memory_bytes, "calibration_line_bytes", (json_int_t)CALIBRATION_LINE_MAX,
        "calibration_record_tokens", (json_int_t)CALIBRATION_RECORD_TOKENS_MAX);
}

void service_metrics(struct service *service, FILE *out)
{
    metrics_write(service, out);
}

/* Runtimes that load weights of this scheme in this format; of a cache (NULL), those that load something of it. */
static void add_runtimes(const struct format *format, const struct qscheme *scheme, json_t *runtimes)
{
    AUTO_JSON json_t *names = runtime_names(format->name);
    json_t *name;
    size_t i;

    json_array_foreach(names, i, name)
    {
        if (scheme == NULL || runtime_loads_scheme(json_string_value(name), format->name, scheme)) {
            json_object_set_new(runtimes, json_string_value(name), json_true());
        }
    }
}

/* Add the formats that carry what the method makes with its defaults, and the runtimes that load them, as members. */
static void add_carriers(const struct quantizer *quantizer, json_t *formats, json_t *runtimes)
{
    /* A shape that every group size divides. */
    const int64_t side = 4096;
    struct validation_errors errors = {0};
    struct qscheme scheme;
    max_align_t params[64] = {{0}};

    if (quantizer->params_size <= sizeof(params) && params_parse(quantizer->params, NULL, "", params, &errors) == 0) {
        if (!quantizer_analyses(quantizer) &&
            (quantizer->scheme == NULL || quantizer->scheme(params, side, side, &scheme) == 0)) {
            for (const struct format *const *f = format_list(); *f != NULL; f++) {
                scheme.scale_dtype = (*f)->scale_dtype(DTYPE_BF16);
                if (quantizer->scheme == NULL ? (*f)->accepts_cache == NULL : (*f)->accepts(&scheme, side, side) != 0) {
                    continue;
                }
                json_object_set_new(formats, (*f)->name, json_true());
                add_runtimes(*f, quantizer->scheme != NULL ? &scheme : NULL, runtimes);
            }
        }
        params_release(quantizer->params, params);
    }
}

static json_t *carrier_names(json_t *members)
{
    json_t *list = json_array(), *unused;
    const char *name;

    json_object_foreach(members, name, unused)
    {
        json_array_append_new(list, json_string(name));
    }
    return list;
}

/* Of a method that follows: those of the methods that it can follow. */
static void add_formats(const struct quantizer *quantizer, json_t *method)
{
    AUTO_JSON json_t *formats = json_object();
    AUTO_JSON json_t *runtimes = json_object();

    if (!quantizer_follows(quantizer)) {
        add_carriers(quantizer, formats, runtimes);
    }
    for (const struct quantizer *const *q = quantizer_list(); quantizer_follows(quantizer) && *q != NULL; q++) {
        if ((*q)->solve != NULL && (*q)->tune == NULL) {
            add_carriers(*q, formats, runtimes);
        }
    }
    json_object_set_new(method, "formats", carrier_names(formats));
    json_object_set_new(method, "runtimes", carrier_names(runtimes));
}

/* With the parameters that a job has which gives none. */
static bool method_needs_calibration(const struct quantizer *quantizer)
{
    AUTO_FREE void *params = calloc(1, quantizer->params_size);
    struct validation_errors errors = {0};
    bool needs = quantizer->stats != STATS_NONE || quantizer->rewrite != NULL || quantizer->tune != NULL;

    if (!needs && params != NULL && params_parse(quantizer->params, NULL, "", params, &errors) == 0) {
        needs = quantizer_stats(quantizer, params) != STATS_NONE;
        params_release(quantizer->params, params);
    }
    return needs;
}

static json_t *describe_method(const struct quantizer *quantizer)
{
    json_t *method =
        json_pack("{s:s, s:s, s:s, s:s, s:b, s:b, s:b, s:o}", "object", "method", "name", quantizer->name, "title",
                  quantizer->title, "description", quantizer->help, "needs_calibration",
                  (int)method_needs_calibration(quantizer), "analysis", (int)quantizer_analyses(quantizer), "follows",
                  (int)quantizer_follows(quantizer), "parameters", spec_quantization_schema(quantizer));
    if (method != NULL) {
        add_formats(quantizer, method);
    }
    return method;
}

json_t *service_methods(struct service *service)
{
    json_t *data = json_array();

    (void)service;
    for (const struct quantizer *const *q = quantizer_list(); *q != NULL; q++) {
        json_array_append_new(data, describe_method(*q));
    }
    return json_pack("{s:s, s:o, s:b}", "object", "list", "data", data, "has_more", 0);
}

int service_method(struct service *service, const char *name, json_t **method)
{
    const struct quantizer *quantizer = quantizer_find(name);

    (void)service;
    if (quantizer == NULL) {
        struct text_guess guess = {.word = name};
        for (const struct quantizer *const *q = quantizer_list(); *q != NULL; q++) {
            text_guess_offer(&guess, (*q)->name);
        }
        int rc = err_raise(ERR_NOT_FOUND, "there is no method \"%.60s\"", name);
        return guess.name != NULL ? err_set_hint(rc, "did you mean \"%s\"?", guess.name)
                                  : err_set_hint(rc, "GET /v1/methods lists them");
    }
    *method = describe_method(quantizer);
    return *method != NULL ? 0 : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a method");
}

json_t *service_runtimes(void)
{
    return json_pack("{s:s, s:o, s:b}", "object", "list", "data", runtime_table_json(), "has_more", 0);
}
