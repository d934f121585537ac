/* What passes through a job's run follows from num_samples where the request has it, and from the first records of the
 * files that it names: with num_samples 0 all that they make, and never more than that. Of a stream nothing is known
 * before it comes. */

#include "jobs/job_plan.h"

#include "base/bytes.h"
#include "base/err.h"
#include "base/host.h"
#include "base/mem.h"
#include "base/records.h"
#include "pipeline/check.h"

#include <math.h>

/* Sequences that a file's records make, at that many bytes of text a token. */
static int file_sequences(struct service *service, const struct principal *who, const char *id, int64_t length,
                          bool packing, double text_bytes, int64_t *sequences)
{
    AUTO_JSON json_t *file = NULL;
    AUTO(blob_reader) struct blob_reader *reader = NULL;
    AUTO_FREE char *head = NULL;
    int64_t size;

    TRY(store_object_get(service->store, who->project, "file", id, &file));
    TRY(blob_reader_open(service->store, json_string_value(json_object_get(file, "sha256")), &reader, &size));
    size_t taken = size < (int64_t)RECORDS_HEAD ? (size_t)size : RECORDS_HEAD;
    TRY(mem_buffer(&head, taken + 1));
    TRY(blob_reader_read(reader, 0, head, taken));
    *sequences = records_sequences(head, taken, size, length, packing, text_bytes);
    return 0;
}

/* The tail of the calibration set, as task.c holds it back. */
static void hold_back_sets(const struct job_spec *spec, struct job_sets *sets)
{
    int64_t max = spec->evaluation.max_tokens / sets->length;
    int64_t count = (int64_t)llround(spec->evaluation.hold_back * (double)sets->sequences);

    if (spec->evaluation.hold_back == 0 || recipe_analyses(&spec->recipe)) {
        return;
    }
    count = count < 1 ? 1 : count;
    count = count > max ? max : count;
    if (count >= 1 && count < sets->sequences) {
        sets->sequences -= count;
        sets->eval_sequences = count;
        sets->eval_length = sets->length;
    }
}

/* All that a file has, or as many as were asked for: where it may have fewer that is not known for sure. */
static int calibration_sets(struct service *service, const struct principal *who, const struct job_spec *spec,
                            struct job_sets *sets)
{
    const struct spec_calibration *c = &spec->calibration;
    bool named = c->file_id[0] != '\0';
    int64_t there = 1;

    sets->known = c->num_samples > 0;
    sets->sequences = sets->known ? c->num_samples : 1;
    if (!named) {
        return 0;
    }
    TRY(file_sequences(service, who, c->file_id, sets->length, c->packing,
                       sets->known ? RECORDS_TEXT_BYTES_LEAST : RECORDS_TEXT_BYTES, &there));
    there = there > 1 ? there : 1;
    sets->known = sets->known && there >= c->num_samples;
    sets->sequences = sets->known ? c->num_samples : there;
    return 0;
}

int job_sets_of(struct service *service, const struct principal *who, const struct job_spec *spec,
                const struct model *model, struct job_sets *out)
{
    const struct spec_evaluation *e = &spec->evaluation;
    struct job_sets sets = {.length = spec_sequence_length(spec, model_config(model)), .known = true};
    int64_t there = 1;

    if (model_is_bare(model)) {
        *out = (struct job_sets){.known = true};
        return 0;
    }
    if (spec_has_calibration(spec)) {
        TRY(calibration_sets(service, who, spec, &sets));
    }
    if (e->file_id[0] != '\0') {
        sets.eval_length = e->sequence_length > 0 ? e->sequence_length : sets.length;
        TRY(file_sequences(service, who, e->file_id, sets.eval_length, true, RECORDS_TEXT_BYTES, &there));
        int64_t windows = e->max_tokens / sets.eval_length;
        there = there > 1 ? there : 1;
        sets.eval_sequences = windows < 1 ? 1 : windows < there ? windows : there;
        sets.known = sets.known && windows <= there;
    } else if (sets.sequences > 0) {
        hold_back_sets(spec, &sets);
    }
    *out = sets;
    return 0;
}

int64_t job_host_budget(const struct service *service, const struct job_spec *spec)
{
    int64_t own = spec->resources.host_memory_bytes;

    return own > 0 ? own : service->supervisor.host_memory_bytes;
}

int job_plan_make(const struct service *service, const struct job_spec *spec, const struct job_sets *sets,
                  const struct model *model, const struct gpu_info *device, struct run_plan *out)
{
    const struct run_load load = {.recipe = &spec->recipe,
                                  .format = spec->format,
                                  .sequences = spec_passing_sequences(spec, sets->sequences, sets->length),
                                  .length = sets->length,
                                  .eval_sequences = sets->eval_sequences,
                                  .eval_length = sets->eval_length,
                                  .host_memory_bytes = job_host_budget(service, spec),
                                  .prompts = spec->gate.generates ? spec->gate.prompts : 0,
                                  .prompt_tokens = spec->gate.prompt_tokens,
                                  .generated = spec->gate.tokens};

    return run_plan_make(&load, model, device, spec->disk.artifact, out);
}

int job_plan_ladder(const struct service *service, struct job_spec *spec, const struct job_sets *sets,
                    const struct model *model, const struct gpu_info *device, struct run_plan *out)
{
    struct run_plan plan, other;

    TRY(job_plan_make(service, spec, sets, model, device, &plan));
    int rc = 0;
    for (int rung = 1; rc == 0 && rung <= spec->gate.ladder_count; rung++) {
        spec_use_rung(spec, rung);
        rc = job_plan_make(service, spec, sets, model, device, &other);
        for (int i = 0; rc == 0 && i < STAGE_COUNT; i++) {
            struct run_memory *most = &plan.stages[i];
            most->device = other.stages[i].device > most->device ? other.stages[i].device : most->device;
            most->host = other.stages[i].host > most->host ? other.stages[i].host : most->host;
        }
    }
    spec_use_rung(spec, 0);
    TRY(rc);
    *out = plan;
    return 0;
}

int64_t job_plan_device(const struct job_spec *spec, const struct run_plan *plan, const struct model *model,
                        const struct gpu_info *device)
{
    if (device->host_memory) {
        return run_plan_peak(plan).device;
    }
    const struct memory_load load = spec_load(spec, model_config(model));
    const struct memory_plan most = memory_plan(&load, model, device, device->batch_tokens);
    return memory_plan_max(&most);
}

struct job_memory job_memory_planned(const struct job_spec *spec)
{
    return (struct job_memory){.source_bytes = spec->source_bytes, .estimated_gpu_bytes = spec->device_bytes};
}

/* Where so few sequences were asked for that none can be held back, the job would fail once all of them are there. */
static void check_held_back(const struct job_spec *spec, const struct job_sets *sets, struct validation_errors *errors)
{
    bool held = spec->gate.asked && spec->evaluation.file_id[0] == '\0' && spec->evaluation.hold_back > 0;

    if (held && spec->calibration.num_samples > 0 && sets->sequences > 0 && sets->eval_sequences == 0) {
        validation_add(errors, ERR_INSUFFICIENT_CALIBRATION, "/evaluation/hold_back",
                       "a calibration set of %lld sequences is too small to hold a tail back, which the gate measures "
                       "on",
                       (long long)sets->sequences);
        validation_hint(errors, "a larger calibration.num_samples, or evaluation.file_id; evaluation.max_tokens of at "
                                "least a sequence");
    }
}

static void refuse_memory(int64_t need, int64_t activations, int64_t total, struct validation_errors *errors)
{
    const double sizes[] = {(double)need, (double)activations, (double)total};
    const struct bytes_unit unit = bytes_unit_of(sizes, 3);
    int64_t budget = activations - (need - total);
    char all[BYTES_SIZE], part[BYTES_SIZE], there[BYTES_SIZE];

    validation_add(errors, ERR_INSUFFICIENT_MEMORY, "/resources/host_memory_bytes",
                   "the job takes about %s of the host's memory, %s of it for activations, and there are %s",
                   bytes_in(&unit, sizes[0], all), bytes_in(&unit, sizes[1], part), bytes_in(&unit, sizes[2], there));
    validation_hint(errors,
                    budget > 0 ? "resources.host_memory_bytes %lld or less, so that activations go to the disk, or "
                                 "a smaller calibration.num_samples"
                               : "a shorter calibration.sequence_length, or a host with more memory (%lld bytes "
                                 "are left for activations)",
                    (long long)(budget > 0 ? budget : 0));
}

void job_check_memory(struct service *service, const struct principal *who, struct job_spec *spec,
                      const struct model *model, const struct gpu_info *device, struct validation_errors *errors)
{
    struct job_sets sets;
    struct run_plan plan;

    int rc = job_sets_of(service, who, spec, model, &sets);
    rc = rc == 0 ? job_plan_ladder(service, spec, &sets, model, device, &plan) : rc;
    if (rc != 0) {
        if (rc != ERR_NOT_FOUND) { /* of a file, which is said elsewhere */
            const struct err_record why = *err_last();
            validation_add(errors, rc, why.param, "%s", why.message);
        }
        return;
    }
    check_held_back(spec, &sets, errors);
    run_plan_disk(&plan, model_config(model)->num_layers, &spec->disk);
    spec->source_bytes = model_bytes(model);
    spec->device_bytes = job_plan_device(spec, &plan, model, device);
    int64_t need = host_resident() + run_plan_peak(&plan).host;
    if (device->host_memory && device->memory_total > 0 && need > device->memory_total) {
        refuse_memory(need, plan.in_memory, device->memory_total, errors);
    }
}
