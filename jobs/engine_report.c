/* The report of a job: what was asked, where it ran, what it cost, what was lost, layer by layer. Everything in it was
 * committed with the block or the result it describes, so it survives restarts and is there while the job still runs.
 */

#include "jobs/engine.h"

#include "base/err.h"
#include "jobs/analysis.h"
#include "jobs/rows.h"
#include "jobs/task.h"

#include <string.h>

#define REPORT_VERSION 1

const char *const *engine_layer_columns(void)
{
    return rows_columns();
}

static json_t *member_or_null(const json_t *object, const char *name)
{
    json_t *value = json_object_get(object, name);
    return value != NULL ? json_incref(value) : json_null();
}

static json_t *report_phases(const json_t *row)
{
    struct pipeline_times times = {0};
    json_t *phases = json_object();

    task_times_load(json_object_get(json_object_get(row, "checkpoint"), "phases"), &times);
    for (int i = 0; i < PHASE_COUNT; i++) {
        bool rated = times.flops[i] > 0 && times.seconds[i] > 0;
        json_object_set_new(phases, pipeline_phase_names[i],
                            json_pack("{s:f, s:o}", "seconds", times.seconds[i], "gflops_per_second",
                                      rated ? json_real(times.flops[i] / times.seconds[i] / 1e9) : json_null()));
    }
    return phases;
}

static json_t *totals_of(const json_t *row, const json_t *layers)
{
    json_t *totals = rows_totals(layers);

    if (totals == NULL) {
        return NULL;
    }
    const json_t *memory = json_object_get(row, "memory");
    json_object_set_new(totals, "source_bytes", member_or_null(memory, "source_bytes"));
    json_object_set_new(totals, "artifact_bytes", member_or_null(memory, "artifact_bytes"));
    json_object_set_new(totals, "host_peak_bytes", member_or_null(memory, "host_peak_bytes"));
    json_object_set_new(totals, "compression_ratio",
                        member_or_null(json_object_get(row, "result"), "compression_ratio"));
    json_object_set_new(totals, "elapsed_seconds", member_or_null(json_object_get(row, "progress"), "elapsed_seconds"));
    json_object_set_new(totals, "phases", report_phases(row));
    return totals;
}

static json_t *calibration_of(const json_t *row)
{
    static const char *const counts[] = {"records", "tokens", "digest", "sequences", "sequence_length"};
    const json_t *column = json_object_get(row, "calibration");
    json_t *calibration = json_object();

    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
        json_object_set_new(calibration, counts[i], member_or_null(column, counts[i]));
    }
    return calibration;
}

/* Where the result was made; before there is one, where this daemon would make it. */
static json_t *environment_of(const struct engine *engine, const json_t *row)
{
    json_t *made = json_object_get(json_object_get(row, "result"), "environment");

    if (json_is_object(made)) {
        return json_incref(made);
    }
    const struct gpu_info *info = &engine->device_info;
    char kind[32];

    engine_device_kind(info, kind);
    return json_pack("{s:s, s:{s:s, s:s, s:s, s:s}, s:i}", "version", QUANTD_VERSION, "device", "id", info->id, "kind",
                     kind, "name", info->name, "detail", info->detail, "threads", info->threads);
}

static json_t *compose(const struct engine *engine, const json_t *row, const json_t *layers, const json_t *blocks)
{
    return json_pack("{s:s, s:i, s:O, s:O, s:O, s:O, s:o, s:o, s:o, s:o, s:o, s:o, s:O, s:O, s:O}", "object",
                     "quantization.report", "version", REPORT_VERSION, "job_id", json_object_get(row, "id"), "status",
                     json_object_get(row, "status"), "method", json_object_get(row, "method"), "request",
                     json_object_get(row, "request"), "environment", environment_of(engine, row), "totals",
                     totals_of(row, layers), "evaluation", member_or_null(json_object_get(row, "result"), "evaluation"),
                     "calibration", calibration_of(row), "kv_cache", analysis_scales(blocks), "analysis",
                     analysis_report(blocks), "warnings", json_object_get(row, "warnings"), "error",
                     json_object_get(row, "error"), "layers", layers);
}

int engine_job_report(struct engine *engine, const struct principal *who, const char *id, json_t **report)
{
    json_t *row;
    json_t *layers = NULL;
    json_t *blocks = NULL;

    int rc = store_job_get(engine->store, who->project, id, &row);
    if (rc != 0) {
        return rc;
    }
    rc = store_layers_list(engine->store, id, &layers);
    rc = rc != 0 ? rc : store_blocks_list(engine->store, id, &blocks);
    if (rc == 0) {
        json_t *composed = compose(engine, row, layers, blocks);
        if (composed != NULL) {
            *report = composed;
        } else {
            rc = err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a report");
        }
    }
    json_decref(layers);
    json_decref(blocks);
    json_decref(row);
    return rc;
}
