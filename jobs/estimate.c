/* POST /v1/quantization/estimates: what a job would take and make, and every reason why it could not run. Nothing is
 * stored, and of the model headers alone are read. */

#include "base/err.h"
#include "base/fs.h"
#include "base/host.h"
#include "jobs/service_admission.h"
#include "jobs/view.h"
#include "pipeline/stores.h"

#include <stdlib.h>

/* --- memory */

static int64_t device_free(const struct gpu_info *device)
{
    struct host_memory memory;

    if (!device->host_memory) {
        return device->memory_free;
    }
    host_memory_read("", &memory);
    return memory.available;
}

/* Of the sets whose size is known before they are read; 0: none is. */
static int64_t activation_bytes(const struct job_spec *spec, const struct memory_load *load, const struct model *model)
{
    int64_t tokens = load->calibrates ? load->sequences * load->sequence_length : 0;
    int64_t evaluated = load->evaluates ? spec->evaluation.max_tokens : 0;
    bool targets = tokens > 0 && memory_plan_targets(load, model);

    return (int64_t)sizeof(float) * (tokens * stores_columns(model, STORES_CALIBRATION) +
                                     (targets ? tokens * stores_columns(model, STORES_REFERENCE) : 0) +
                                     evaluated * stores_columns(model, STORES_EVALUATION));
}

/* device: NULL where there is none. */
static json_t *memory_json(const struct service *service, const struct job_spec *spec, const struct model *model,
                           const struct gpu_info *device)
{
    const struct memory_load load = spec_load(spec, model_config(model));
    int64_t own = spec->resources.host_memory_bytes, budget = own > 0 ? own : service->supervisor.host_memory_bytes;

    if (device == NULL) {
        return json_null();
    }
    const struct memory_plan least = memory_plan(&load, model, device, 0);
    const struct memory_plan usual = memory_plan(&load, model, device, device->batch_tokens);
    int64_t activations = model_is_bare(model) ? 0 : activation_bytes(spec, &load, model);
    return json_pack("{s:s, s:I, s:I, s:o, s:o, s:{s:I, s:I, s:I, s:I, s:I, s:I}, s:o, s:I}", "device", device->id,
                     "minimum_bytes", (json_int_t)memory_plan_min(&least), "expected_bytes",
                     (json_int_t)memory_plan_max(&usual), "total_bytes", view_bytes(device->memory_total), "free_bytes",
                     view_bytes(device_free(device)), "parts", "blocks", (json_int_t)usual.blocks, "solve",
                     (json_int_t)usual.solve, "microbatches", (json_int_t)usual.microbatches, "reader",
                     (json_int_t)usual.reader, "head", (json_int_t)usual.head, "reserve", (json_int_t)usual.reserve,
                     "activations_bytes", view_bytes(activations), "activations_budget_bytes", (json_int_t)budget);
}

/* --- what is made */

static json_t *output_json(const struct job_spec *spec, const struct model *model)
{
    const struct disk_plan *disk = &spec->disk;
    int64_t source = model_bytes(model);

    if (!disk->known) {
        return json_null();
    }
    bool none = disk->artifact == 0;
    return json_pack("{s:s, s:I, s:I, s:o, s:o, s:o}", "format", spec->format->name, "parameters_quantized",
                     (json_int_t)disk->parameters, "source_bytes", (json_int_t)source, "artifact_bytes",
                     view_bytes(disk->artifact), "bits_per_weight",
                     disk->parameters > 0 ? json_real(disk_plan_bits(disk)) : json_null(), "compression_ratio",
                     none ? json_null() : json_real((double)source / (double)disk->artifact));
}

static json_t *disk_json(struct service *service, const struct disk_plan *disk)
{
    if (!disk->known) {
        return json_null();
    }
    return json_pack("{s:I, s:I, s:I, s:I}", "blocks_bytes", (json_int_t)disk->blocks, "artifact_bytes",
                     (json_int_t)disk->artifact, "needed_bytes", (json_int_t)disk_plan_max(disk), "free_bytes",
                     (json_int_t)fs_free_bytes(store_data_dir(service->store)));
}

/* --- the answer */

static json_t *problems_json(const struct validation_errors *errors)
{
    json_t *problems = json_array();

    for (size_t i = 0; i < errors->count; i++) {
        const struct validation_error *e = &errors->items[i];
        json_t *hint = e->hint[0] != '\0' ? json_string(e->hint) : json_null();
        json_array_append_new(problems, json_pack("{s:s, s:s, s:s, s:o}", "code", err_api_code(e->code), "param",
                                                  e->param, "detail", e->detail, "hint", hint));
    }
    return problems;
}

/* What stands in the way now, and may not later. */
static void check_room(struct service *service, const struct principal *who, const struct job_spec *spec,
                       struct validation_errors *errors)
{
    int rc = admission_capacity(service, who, spec);

    if (rc != 0) {
        const struct err_record why = *err_last();
        validation_add(errors, rc, why.param, "%s", why.message);
        validation_hint(errors, "%s", why.hint);
    }
}

static json_t *estimate_model(struct service *service, const struct principal *who, struct submission *submission,
                              const struct model *model, struct validation_errors *errors)
{
    struct job_spec *spec = &submission->spec;
    struct gpu_info device;

    admission_check_named(service, who, spec, errors);
    bool known = supervisor_device_of(service, spec->resources.device, &device) == 0; /* else that is checked below */
    admission_check_model(service, spec, model, submission->warnings, errors);
    check_room(service, who, spec, errors);
    return json_pack(
        "{s:s, s:b, s:o, s:O, s:s, s:o, s:s, s:I, s:o, s:o, s:o}", "object", "estimate", "possible", errors->count == 0,
        "problems", problems_json(errors), "warnings", submission->warnings, "method", spec->recipe.name,
        "recommendation", spec->recommendation != NULL ? json_incref(spec->recommendation) : json_null(), "mode",
        spec_modes[spec->mode], "parameters", (json_int_t)model_parameters(model), "output", output_json(spec, model),
        "memory", spec->disk.known ? memory_json(service, spec, model, known ? &device : NULL) : json_null(), "disk",
        disk_json(service, &spec->disk));
}

int service_estimate(struct service *service, const struct principal *who, const json_t *body,
                     struct validation_errors *errors, json_t **estimate)
{
    AUTO(submission) struct submission submission = {0};
    struct model *model;

    TRY(submission_read(service, who, body, &submission, errors));
    if (admission_open(service, who, &submission.spec, submission.described, &model, errors) != 0) {
        return validation_raise(errors);
    }
    struct validation_errors *problems = calloc(1, sizeof(*problems));
    json_t *made = problems != NULL ? estimate_model(service, who, &submission, model, problems) : NULL;
    model_close(model);
    free(problems);
    if (made == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for an estimate");
    }
    *estimate = made;
    return 0;
}
