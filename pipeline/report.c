/* Report rows. relative_mse = |W-Wq|^2 / |W|^2; output_relative_mse = tr(dW H dW^T) / tr(W H W^T) on the calibration
 * inputs of the layer, H their second moment, so both are free of units and comparable between layers. dW is what the
 * codes lack of what they stand for: of W, or of the target of the float model, which is not W.
 * rounding_mse + clipping_mse = mse: the part lost inside the grid's range and the part lost beyond its ends. */

#include "pipeline/report.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const report_columns[] = {
    "index",
    "layer",
    "module",
    "rows",
    "cols",
    "parameters",
    "method",
    "bits",
    "group_size",
    "sym",
    "bits_per_weight",
    "loss",
    "unrefined_loss",
    "refined_loss",
    "target",
    "mse",
    "rounding_mse",
    "clipping_mse",
    "clipped_fraction",
    "relative_mse",
    "sqnr_db",
    "max_abs_error",
    "cosine_similarity",
    "output_relative_mse",
    "weight_absmax",
    "input_scale",
    "input_range",
    "input_error",
    "input_error_absmax",
    "input_absmax_to_rms",
    "input_outlier",
    "damp_percent_used",
    "dead_columns",
    "samples",
    "tokens",
    "fallback",
    "note",
    "nonfinite",
    "seconds",
    NULL,
};

static json_t *number(double value, bool *nonfinite)
{
    if (!isfinite(value)) {
        *nonfinite = true;
        return json_null();
    }
    return json_real(value);
}

static void set_errors(json_t *row, const struct report_facts *f, bool *nonfinite)
{
    const struct gpu_residual *r = &f->residual;
    double count = (double)f->job->result.rows * (double)f->job->result.cols;
    double norms = sqrt(r->weight_sq) * sqrt(r->quant_sq);

    json_object_set_new(row, "mse", number(r->error_sq / count, nonfinite));
    json_object_set_new(row, "rounding_mse", number((r->error_sq - r->clipped_sq) / count, nonfinite));
    json_object_set_new(row, "clipping_mse", number(r->clipped_sq / count, nonfinite));
    json_object_set_new(row, "clipped_fraction", number((double)r->clipped / count, nonfinite));
    /* An all-zero layer is reproduced exactly: its relative error is 0, its other ratios do not exist. */
    bool zero = r->weight_sq == 0;
    json_object_set_new(row, "relative_mse", zero ? json_real(0) : number(r->error_sq / r->weight_sq, nonfinite));
    json_object_set_new(row, "sqnr_db",
                        zero || r->error_sq == 0 ? json_null()
                                                 : number(10.0 * log10(r->weight_sq / r->error_sq), nonfinite));
    json_object_set_new(row, "max_abs_error", number(r->max_abs, nonfinite));
    json_object_set_new(row, "cosine_similarity", norms == 0 ? json_null() : number(r->dot / norms, nonfinite));
    json_object_set_new(row, "weight_absmax", number(r->weight_max, nonfinite));
    if (!f->has_output) {
        json_object_set_new(row, "output_relative_mse", json_null());
    } else if (f->output_signal == 0) {
        json_object_set_new(row, "output_relative_mse", json_real(0));
    } else {
        json_object_set_new(row, "output_relative_mse", number(f->output_error / f->output_signal, nonfinite));
    }
}

/* Of static inputs; null where there are none, or where nothing was measured. */
static void set_input(json_t *row, const struct report_facts *f, bool *nonfinite)
{
    const struct report_input *in = &f->input;
    bool searched = in->known && !isnan(in->range.error);
    bool ratio = in->known && in->rms > 0;

    json_object_set_new(row, "input_scale", in->known ? json_real((double)f->job->result.input_scale) : json_null());
    json_object_set_new(row, "input_range", in->known ? json_real(in->range.share) : json_null());
    json_object_set_new(row, "input_error", searched ? number(in->range.error, nonfinite) : json_null());
    json_object_set_new(row, "input_error_absmax", searched ? number(in->range.error_whole, nonfinite) : json_null());
    json_object_set_new(row, "input_absmax_to_rms",
                        ratio ? number((double)in->absmax / (double)in->rms, nonfinite) : json_null());
    json_object_set_new(row, "input_outlier", in->known ? json_boolean(in->outlier) : json_null());
}

json_t *report_row(const struct report_facts *f)
{
    const struct qtensor *q = &f->job->result;
    bool nonfinite = f->residual.nonfinite > 0;
    json_t *row = json_pack("{s:I, s:I, s:s, s:I, s:I, s:I, s:s, s:i, s:I, s:b}", "index", (json_int_t)f->index,
                            "layer", (json_int_t)f->layer, "module", f->job->name, "rows", (json_int_t)q->rows, "cols",
                            (json_int_t)q->cols, "parameters", (json_int_t)(q->rows * q->cols), "method", f->method,
                            "bits", q->scheme.bits, "group_size",
                            (json_int_t)(q->scheme.per_channel ? -1 : q->scheme.group_size), "sym", (int)q->scheme.sym);
    if (row == NULL) {
        return NULL;
    }
    json_object_set_new(row, "bits_per_weight", json_real(qtensor_bits_per_weight(q)));
    json_object_set_new(row, "loss", isnan(f->job->loss) ? json_null() : number(f->job->loss, &nonfinite));
    json_object_set_new(row, "unrefined_loss",
                        f->job->refined ? number(f->job->unrefined_loss, &nonfinite) : json_null());
    json_object_set_new(row, "refined_loss", f->job->refined ? number(f->job->refined_loss, &nonfinite) : json_null());
    json_object_set_new(row, "target", json_string(f->job->aimed ? "float_model" : "weight"));
    set_errors(row, f, &nonfinite);
    set_input(row, f, &nonfinite);
    json_object_set_new(row, "damp_percent_used", f->job->damp_used > 0 ? json_real(f->job->damp_used) : json_null());
    json_object_set_new(row, "dead_columns", json_integer((json_int_t)f->job->dead_columns));
    json_object_set_new(row, "samples", json_integer((json_int_t)f->samples));
    json_object_set_new(row, "tokens", json_integer((json_int_t)f->tokens));
    json_object_set_new(row, "fallback", f->job->fallback[0] != '\0' ? json_string(f->job->fallback) : json_null());
    json_object_set_new(row, "note", f->job->note[0] != '\0' ? json_string(f->job->note) : json_null());
    json_object_set_new(row, "nonfinite", json_boolean(nonfinite));
    json_object_set_new(row, "seconds", json_real(f->job->seconds));
    return row;
}

static double member(const json_t *row, const char *key)
{
    return json_number_value(json_object_get(row, key));
}

json_t *report_totals(const json_t *rows)
{
    double parameters = 0;
    double bits = 0;
    double relative = 0;
    double output = 0;
    double seconds = 0;
    int fallbacks = 0;
    size_t i;
    json_t *row;

    json_array_foreach((json_t *)rows, i, row)
    {
        double n = member(row, "parameters");
        parameters += n;
        bits += n * member(row, "bits_per_weight");
        relative += n * member(row, "relative_mse");
        output += n * member(row, "output_relative_mse");
        seconds += member(row, "seconds");
        fallbacks += json_is_string(json_object_get(row, "fallback"));
    }
    double whole = parameters > 0 ? parameters : 1;
    json_t *totals = json_pack("{s:I, s:I, s:f, s:f, s:f, s:f, s:i}", "modules", (json_int_t)json_array_size(rows),
                               "parameters_quantized", (json_int_t)parameters, "bits_per_weight", bits / whole,
                               "mean_relative_mse", relative / whole, "mean_output_relative_mse", output / whole,
                               "solve_seconds", seconds, "fallbacks", fallbacks);
    if (parameters == 0) { /* means over nothing */
        static const char *const means[] = {"bits_per_weight", "mean_relative_mse", "mean_output_relative_mse"};
        for (size_t k = 0; k < sizeof(means) / sizeof(means[0]); k++) {
            json_object_set_new(totals, means[k], json_null());
        }
    }
    return totals;
}

static double badness(const json_t *row)
{
    const json_t *output = json_object_get(row, "output_relative_mse");
    return json_is_number(output) ? json_number_value(output) : member(row, "relative_mse");
}

static int worse(const void *a, const void *b)
{
    double x = badness(*(json_t *const *)a);
    double y = badness(*(json_t *const *)b);
    return x < y ? 1 : x > y ? -1 : 0;
}

json_t *report_worst(const json_t *rows)
{
    size_t count = json_array_size(rows);
    json_t **sorted = calloc(count + 1, sizeof(*sorted));
    json_t *worst = json_array();

    for (size_t i = 0; sorted != NULL && i < count; i++) {
        sorted[i] = json_array_get(rows, i);
    }
    if (sorted != NULL) {
        qsort(sorted, count, sizeof(*sorted), worse);
    }
    for (size_t i = 0; sorted != NULL && i < count && i < 5; i++) {
        json_array_append_new(worst,
                              json_pack("{s:O, s:O, s:O}", "module", json_object_get(sorted[i], "module"),
                                        "relative_mse", json_object_get(sorted[i], "relative_mse"),
                                        "output_relative_mse", json_object_get(sorted[i], "output_relative_mse")));
    }
    free(sorted);
    return worst;
}
