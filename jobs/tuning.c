/* The report's part about learned blocks. Losses are means over tokens of a block's squared error relative to the float
 * model's output, before the first step, at the step that was kept and after the last. */

#include "jobs/tuning.h"

#include <math.h>

static json_t *loss_or_null(double loss)
{
    return isfinite(loss) ? json_real(loss) : json_null();
}

json_t *tuning_progress(const struct tune_progress *progress)
{
    if (progress->steps == 0) {
        return json_null();
    }
    return json_pack("{s:I, s:I, s:f, s:o, s:o}", "step", (json_int_t)progress->step, "steps",
                     (json_int_t)progress->steps, "rate", progress->rate, "loss", loss_or_null(progress->loss),
                     "first_loss", loss_or_null(progress->first));
}

json_t *tuning_note(int64_t layer, const struct tune_curve *curve)
{
    json_t *points = json_array();

    if (curve == NULL || !curve->done) {
        json_decref(points);
        return NULL;
    }
    for (int i = 0; i < curve->count; i++) {
        json_array_append_new(points, json_pack("{s:I, s:f, s:o}", "step", (json_int_t)curve->points[i].step, "rate",
                                                curve->points[i].lr, "loss", loss_or_null(curve->points[i].loss)));
    }
    return json_pack("{s:I, s:I, s:I, s:I, s:o, s:o, s:o, s:I, s:f, s:I, s:o, s:o}", "layer", (json_int_t)layer,
                     "steps", (json_int_t)curve->steps, "sequences", (json_int_t)curve->sequences, "held_out_sequences",
                     (json_int_t)curve->held_out, "first_loss", loss_or_null(curve->first), "best_loss",
                     loss_or_null(curve->best), "last_loss", loss_or_null(curve->last), "best_step",
                     (json_int_t)curve->best_step, "seconds", curve->seconds, "gpu_bytes", (json_int_t)curve->bytes,
                     "note", curve->note[0] != '\0' ? json_string(curve->note) : json_null(), "curve", points);
}

/* Members that are null are not in a row that was merged (store_block_commit). */
static json_t *complete_report(const json_t *note)
{
    static const char *const nullable[] = {"first_loss", "best_loss", "last_loss", "note"};
    json_t *report = note != NULL ? json_copy((json_t *)note) : json_null();

    for (size_t i = 0; note != NULL && i < sizeof(nullable) / sizeof(nullable[0]); i++) {
        if (json_object_get(report, nullable[i]) == NULL) {
            json_object_set_new(report, nullable[i], json_null());
        }
    }
    return report;
}

json_t *tuning_report(const json_t *blocks)
{
    json_t *rows = json_array(), *complete = NULL;
    double seconds = 0, ratio = 0;
    int ratios = 0;
    size_t i;
    json_t *item;

    json_array_foreach((json_t *)blocks, i, item)
    {
        const json_t *notes = json_object_get(item, "notes");
        json_t *note = json_object_get(notes, "tuning");
        complete = json_object_get(notes, "end_to_end");
        double first = json_number_value(json_object_get(note, "first_loss"));
        if (note == NULL) {
            continue;
        }
        json_array_append(rows, note);
        seconds += json_number_value(json_object_get(note, "seconds"));
        if (first > 0) {
            ratio += json_number_value(json_object_get(note, "best_loss")) / first;
            ratios++;
        }
    }
    if (json_array_size(rows) == 0 && complete == NULL) {
        json_decref(rows);
        return json_null();
    }
    return json_pack("{s:o, s:f, s:o, s:o}", "blocks", rows, "seconds", seconds, "loss_ratio",
                     ratios > 0 ? json_real(ratio / ratios) : json_null(), "end_to_end", complete_report(complete));
}
