/* The report of a job: what was asked, where it ran, what it cost, what was lost, layer by layer. Everything in it was
 * committed with the block or the result it describes, so it survives restarts and is there while the job still runs.
 */

#include "jobs/service.h"

#include "base/err.h"
#include "jobs/analysis.h"
#include "jobs/anatomy.h"
#include "jobs/rows.h"
#include "jobs/task.h"
#include "jobs/tuning.h"
#include "jobs/view.h"

#include <string.h>

#define REPORT_VERSION 1

const char *const *service_layer_columns(void)
{
    return rows_columns();
}

static json_t *member_or_null(const json_t *object, const char *name)
{
    json_t *value = json_object_get(object, name);
    return value != NULL ? json_incref(value) : json_null();
}

static json_t *report_phases(const struct job_row *row)
{
    struct pipeline_times times = {0};
    json_t *phases = json_object();

    task_times_load(row->checkpoint.phases, &times);
    for (int i = 0; i < PHASE_COUNT; i++) {
        bool rated = times.flops[i] > 0 && times.seconds[i] > 0;
        json_object_set_new(phases, pipeline_phase_names[i],
                            json_pack("{s:f, s:o}", "seconds", times.seconds[i], "gflops_per_second",
                                      rated ? json_real(times.flops[i] / times.seconds[i] / 1e9) : json_null()));
    }
    return phases;
}

static json_t *totals_of(const struct job_row *row, const json_t *layers)
{
    json_t *totals = rows_totals(layers);

    if (totals == NULL) {
        return NULL;
    }
    const struct job_memory *memory = &row->memory;
    bool known = memory->source_bytes > 0;
    json_object_set_new(totals, "source_bytes", view_bytes(memory->source_bytes));
    json_object_set_new(totals, "artifact_bytes", view_bytes(memory->artifact_bytes));
    json_object_set_new(totals, "host_peak_bytes", known ? json_integer(memory->host_peak_bytes) : json_null());
    json_object_set_new(totals, "compression_ratio", member_or_null(row->result, "compression_ratio"));
    json_object_set_new(totals, "elapsed_seconds",
                        row->progress.known ? json_real(row->progress.elapsed_seconds) : json_null());
    json_object_set_new(totals, "phases", report_phases(row));
    return totals;
}

static json_t *calibration_of(const struct job_row *row, const json_t *layers)
{
    const struct job_records *found = &row->calibration;
    bool made = found->digest != NULL;

    return json_pack(
        "{s:I, s:I, s:s?, s:o, s:o, s:o}", "records", (json_int_t)found->records, "tokens", (json_int_t)found->tokens,
        "digest", found->digest, "sequences", made ? json_integer(found->sequences) : json_null(), "sequence_length",
        made ? json_integer(found->sequence_length) : json_null(), "report_tokens", rows_measured_tokens(layers));
}

/* Where the result was made; before there is one, where this daemon would make it. */
static json_t *environment_of(const struct service *service, const struct job_row *row)
{
    json_t *made = json_object_get(row->result, "environment");

    if (json_is_object(made)) {
        return json_incref(made);
    }
    const struct gpu_info *info = &service->supervisor.runners[0].device;
    char kind[32];

    service_device_kind(info, kind);
    return json_pack("{s:s, s:{s:s, s:s, s:s, s:s}, s:i}", "version", QUANTD_VERSION, "device", "id", info->id, "kind",
                     kind, "name", info->name, "detail", info->detail, "threads", info->threads);
}

/* Of the result; without one, of the last rung that a gate judged. Of a job from before some were measured these are
 * null. */
static json_t *evaluation_of(const struct job_row *row)
{
    static const char *const later[] = {"top1_agreement", "generation"};
    const json_t *made = json_is_object(row->result) ? row->result : row->gate;
    json_t *evaluation = json_copy(json_object_get(made, "evaluation"));

    for (size_t i = 0; json_is_object(evaluation) && i < sizeof(later) / sizeof(later[0]); i++) {
        if (json_object_get(evaluation, later[i]) == NULL) {
            json_object_set_new(evaluation, later[i], json_null());
        }
    }
    return evaluation != NULL ? evaluation : json_null();
}

static json_t *compose(const struct service *service, const struct job_row *row, const json_t *layers,
                       const json_t *blocks)
{
    const json_t *suggestions = json_object_get(row->result, "suggestions");

    return json_pack(
        "{s:s, s:i, s:s, s:s, s:s?, s:s, s:O, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:O?, s:O}",
        "object", "quantization.report", "version", REPORT_VERSION, "job_id", row->id, "status",
        job_status_name(row->status), "method", row->method, "mode", view_mode(row->request), "request", row->request,
        "environment", environment_of(service, row), "totals", totals_of(row, layers), "evaluation", evaluation_of(row),
        "gate", view_gate(row), "calibration", calibration_of(row, layers), "mixed_precision",
        member_or_null(row->result, "mixed_precision"), "kv_cache", analysis_scales(blocks), "analysis",
        analysis_report(blocks), "tuning", tuning_report(blocks), "anatomy", anatomy_report(layers, suggestions),
        "suggestions", member_or_null(row->result, "suggestions"), "warnings",
        json_is_array(row->warnings) ? json_incref(row->warnings) : json_array(), "error", row->error, "layers",
        layers);
}

int service_job_report(struct service *service, const struct principal *who, const char *id, json_t **report)
{
    AUTO(job_row) struct job_row row = {0};
    AUTO_JSON json_t *layers = NULL;
    AUTO_JSON json_t *blocks = NULL;

    TRY(store_job_get(service->store, who->project, id, &row));
    TRY(store_layers_list(service->store, id, &layers));
    rows_complete(layers);
    TRY(store_blocks_list(service->store, id, &blocks));
    json_t *composed = compose(service, &row, layers, blocks);
    if (composed == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a report");
    }
    *report = composed;
    return 0;
}
