/* POST /v1/quantization/estimates: what a job would take and make, and every reason why it could not run. Nothing is
 * stored, and of the model headers alone are read. */

#include "base/err.h"
#include "base/fs.h"
#include "base/host.h"
#include "jobs/job_plan.h"
#include "jobs/machine.h"
#include "jobs/service_admission.h"
#include "jobs/view.h"

#include <stdlib.h>

/* What is known of the job next to its spec. */
struct estimate {
    struct service *service;
    const struct principal *who;
    struct job_spec *spec;
    const struct model *model;
    const struct gpu_info *device; /* NULL: there is none */
    struct job_sets sets;
    struct run_plan plan; /* as the next one, where `planned` */
    struct machine_time time;
    bool planned;
};

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

static json_t *stages_json(const struct run_plan *plan)
{
    json_t *stages = json_array();

    for (int i = 0; i < STAGE_COUNT; i++) {
        const struct run_memory *m = &plan->stages[i];
        if (m->device > 0 || m->host > 0) {
            json_array_append_new(stages, json_pack("{s:s, s:I, s:I}", "phase", run_stage_names[i], "device_bytes",
                                                    (json_int_t)m->device, "host_bytes", (json_int_t)m->host));
        }
    }
    return stages;
}

static json_t *memory_json(const struct estimate *e)
{
    const struct gpu_info *device = e->device;
    const struct memory_load load = spec_load(e->spec, model_config(e->model));
    const struct memory_plan least = memory_plan(&load, e->model, device, 0);
    struct host_memory host;

    host_memory_read("", &host);
    int64_t process = host_resident(), growth = run_plan_peak(&e->plan).host;
    int64_t expected = job_plan_device(e->spec, &e->plan, e->model, device), minimum = memory_plan_min(&least);
    return json_pack("{s:s, s:I, s:I, s:b, s:o, s:o, s:I, s:I, s:o, s:o, s:o, s:I, s:I}", "device", device->id,
                     "minimum_bytes", (json_int_t)(device->host_memory ? expected : minimum), "expected_bytes",
                     (json_int_t)expected, "upper_bound", !device->host_memory, "total_bytes",
                     view_bytes(device->memory_total), "free_bytes", view_bytes(device_free(device)), "process_bytes",
                     (json_int_t)process, "host_expected_bytes", (json_int_t)(process + growth), "host_free_bytes",
                     view_bytes(host.available), "phases", stages_json(&e->plan), "activations_bytes",
                     view_bytes(e->plan.activations), "activations_in_memory_bytes", (json_int_t)e->plan.in_memory,
                     "activations_budget_bytes", (json_int_t)job_host_budget(e->service, e->spec));
}

/* --- the sets and the time */

static json_t *sets_json(const struct job_sets *sets)
{
    return json_pack("{s:b, s:I, s:I, s:I, s:I}", "known", sets->known, "sequences", (json_int_t)sets->sequences,
                     "sequence_length", (json_int_t)sets->length, "evaluation_sequences",
                     (json_int_t)sets->eval_sequences, "evaluation_sequence_length", (json_int_t)sets->eval_length);
}

static json_t *time_json(const struct machine_time *time)
{
    json_t *phases = json_object();

    if (!time->known) {
        json_decref(phases);
        return json_null();
    }
    for (int i = 0; i < PHASE_COUNT; i++) {
        json_object_set_new(phases, pipeline_phase_names[i], json_real(time->phases[i]));
    }
    json_object_set_new(phases, "other", json_real(time->other));
    return json_pack("{s:f, s:s, s:o}", "seconds", time->seconds, "basis", time->from_jobs ? "jobs" : "profile",
                     "phases", phases);
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
                     none ? json_null() : json_real((double)source / (double)(disk->artifact - disk->extra)));
}

static json_t *disk_json(const struct estimate *e)
{
    const struct disk_plan *disk = &e->spec->disk;
    int64_t saved = (disk->activations > disk->ending ? disk->activations : disk->ending) - e->plan.spilled;
    struct quota_row use = {.disk_bytes = 0};

    (void)store_quota_get(e->service->store, e->who->project, &use); /* what fails is said by check_room */

    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "blocks_bytes", (json_int_t)disk->blocks, "artifact_bytes",
                     (json_int_t)disk->artifact, "spilled_bytes", (json_int_t)e->plan.spilled, "saved_bytes",
                     (json_int_t)saved, "needed_bytes", (json_int_t)disk_plan_max(disk), "reserved_bytes",
                     (json_int_t)use.disk_bytes, "free_bytes",
                     (json_int_t)fs_free_bytes(store_data_dir(e->service->store)));
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

/* Where the spec holds, what its run takes; what cannot be planned is a problem. */
static void plan_job(struct estimate *e, struct validation_errors *errors)
{
    if (!e->spec->disk.known || e->device == NULL) {
        return;
    }
    int rc = job_sets_of(e->service, e->who, e->spec, e->model, &e->sets);
    rc = rc == 0 ? job_plan_ladder(e->service, e->spec, &e->sets, e->model, e->device, &e->plan) : rc;
    if (rc != 0 && errors->count == 0) { /* what the checks before said already is not said twice */
        const struct err_record why = *err_last();
        validation_add(errors, rc, why.param, "%s", why.message);
    }
    if (rc != 0) {
        return;
    }
    run_plan_disk(&e->plan, model_config(e->model)->num_layers, &e->spec->disk);
    machine_estimate(e->service, e->device, e->spec->recipe.name, &e->plan, &e->time);
    e->planned = true;
}

static json_t *estimate_model(struct estimate *e, json_t *warnings, struct validation_errors *errors)
{
    struct job_spec *spec = e->spec;
    struct gpu_info device;

    admission_check_named(e->service, e->who, spec, errors);
    if (admission_check_model(e->service, e->who, spec, e->model, &device, warnings, errors)) {
        e->device = &device;
    }
    plan_job(e, errors);
    check_room(e->service, e->who, spec, errors);
    return json_pack("{s:s, s:b, s:o, s:O, s:s, s:o, s:s, s:I, s:o, s:o, s:o, s:o, s:o}", "object", "estimate",
                     "possible", errors->count == 0, "problems", problems_json(errors), "warnings", warnings, "method",
                     spec->recipe.name, "recommendation",
                     spec->recommendation != NULL ? json_incref(spec->recommendation) : json_null(), "mode",
                     spec_modes[spec->mode], "parameters", (json_int_t)model_parameters(e->model), "output",
                     output_json(spec, e->model), "sets", e->planned ? sets_json(&e->sets) : json_null(), "memory",
                     e->planned ? memory_json(e) : json_null(), "disk", e->planned ? disk_json(e) : json_null(), "time",
                     e->planned ? time_json(&e->time) : json_null());
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
    struct estimate e = {.service = service, .who = who, .spec = &submission.spec, .model = model};
    json_t *made = problems != NULL ? estimate_model(&e, submission.warnings, problems) : NULL;
    model_close(model);
    free(problems);
    if (made == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for an estimate");
    }
    *estimate = made;
    return 0;
}
