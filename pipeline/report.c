/* Report rows. relative_mse = |W-Wq|^2 / |W|^2; output_relative_mse = tr(dW H dW^T) / tr(W H W^T) on the calibration
 * inputs of the module, H their second moment, so both are free of units and comparable between modules. dW is the
 * difference of the codes' values from what was approximated: W, or the target from the float model.
 * rounding_mse + clipping_mse = mse: the part lost inside the grid's range and the part lost beyond its ends. */

#include "pipeline/report.h"

#include "base/err.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COLUMN(type_, member_)                                                             \
    {                                                                                      \
        .name = #member_, .type = (type_), .offset = offsetof(struct report_row, member_), \
        .size = sizeof(((struct report_row *)NULL)->member_)                               \
    }

const struct report_column report_columns[] = {
    COLUMN(REPORT_INT, index),
    COLUMN(REPORT_INT, layer),
    COLUMN(REPORT_TEXT, module),
    COLUMN(REPORT_INT, rows),
    COLUMN(REPORT_INT, cols),
    COLUMN(REPORT_INT, parameters),
    COLUMN(REPORT_TEXT, method),
    COLUMN(REPORT_INT, bits),
    COLUMN(REPORT_INT, group_size),
    COLUMN(REPORT_FLAG, sym),
    COLUMN(REPORT_REAL, bits_per_weight),
    COLUMN(REPORT_REAL, loss),
    COLUMN(REPORT_REAL, unrefined_loss),
    COLUMN(REPORT_REAL, refined_loss),
    COLUMN(REPORT_TEXT, target),
    COLUMN(REPORT_REAL, mse),
    COLUMN(REPORT_REAL, rounding_mse),
    COLUMN(REPORT_REAL, clipping_mse),
    COLUMN(REPORT_REAL, clipped_fraction),
    COLUMN(REPORT_REAL, relative_mse),
    COLUMN(REPORT_REAL, sqnr_db),
    COLUMN(REPORT_REAL, max_abs_error),
    COLUMN(REPORT_REAL, cosine_similarity),
    COLUMN(REPORT_REAL, output_relative_mse),
    COLUMN(REPORT_REAL, weight_absmax),
    COLUMN(REPORT_REAL, input_scale),
    COLUMN(REPORT_REAL, input_range),
    COLUMN(REPORT_REAL, input_error),
    COLUMN(REPORT_REAL, input_error_absmax),
    COLUMN(REPORT_REAL, input_absmax_to_rms),
    COLUMN(REPORT_FLAG, input_outlier),
    COLUMN(REPORT_REAL, damp_percent_used),
    COLUMN(REPORT_INT, dead_columns),
    COLUMN(REPORT_INT, samples),
    COLUMN(REPORT_INT, tokens),
    COLUMN(REPORT_TEXT, fallback),
    COLUMN(REPORT_TEXT, note),
    COLUMN(REPORT_FLAG, nonfinite),
    COLUMN(REPORT_REAL, seconds),
    {.name = NULL},
};

/* NAN for what is not finite, which sets the row's `nonfinite`. */
static double finite_or_null(double value, struct report_row *row)
{
    if (!isfinite(value)) {
        row->nonfinite = 1;
        return NAN;
    }
    return value;
}

static void set_errors(struct report_row *row, const struct report_facts *f)
{
    const struct gpu_residual *r = &f->residual;
    double count = (double)f->job->result.rows * (double)f->job->result.cols;
    double norms = sqrt(r->weight_sq) * sqrt(r->quant_sq);
    bool zero = r->weight_sq == 0;

    row->mse = finite_or_null(r->error_sq / count, row);
    row->rounding_mse = finite_or_null((r->error_sq - r->clipped_sq) / count, row);
    row->clipping_mse = finite_or_null(r->clipped_sq / count, row);
    row->clipped_fraction = finite_or_null((double)r->clipped / count, row);
    /* An all-zero weight is reproduced exactly: its relative error is 0, its other ratios are null. */
    row->relative_mse = zero ? 0 : finite_or_null(r->error_sq / r->weight_sq, row);
    row->sqnr_db = zero || r->error_sq == 0 ? NAN : finite_or_null(10.0 * log10(r->weight_sq / r->error_sq), row);
    row->max_abs_error = finite_or_null(r->max_abs, row);
    row->cosine_similarity = norms == 0 ? NAN : finite_or_null(r->dot / norms, row);
    row->weight_absmax = finite_or_null(r->weight_max, row);
    row->output_relative_mse = !f->has_output          ? NAN
                               : f->output_signal == 0 ? 0
                                                       : finite_or_null(f->output_error / f->output_signal, row);
}

/* Of static inputs; null where there are none, or where nothing was measured. */
static void set_input(struct report_row *row, const struct report_facts *f)
{
    const struct report_input *in = &f->input;
    bool searched = in->known && !isnan(in->range.error);
    bool ratio = in->known && in->rms > 0;

    row->input_scale = in->known ? (double)f->job->result.input_scale : NAN;
    row->input_range = in->known ? in->range.share : NAN;
    row->input_error = searched ? finite_or_null(in->range.error, row) : NAN;
    row->input_error_absmax = searched ? finite_or_null(in->range.error_absmax, row) : NAN;
    row->input_absmax_to_rms = ratio ? finite_or_null((double)in->absmax / (double)in->rms, row) : NAN;
    row->input_outlier = in->known ? in->outlier : -1;
}

void report_row_of(const struct report_facts *f, struct report_row *out)
{
    const struct linear_job *job = f->job;
    const struct qtensor *q = &job->result;
    struct report_row row = {
        .index = f->index,
        .layer = f->layer,
        .rows = q->rows,
        .cols = q->cols,
        .parameters = q->rows * q->cols,
        .bits = q->scheme.bits,
        .group_size = q->scheme.per_channel ? -1 : q->scheme.group_size,
        .sym = q->scheme.sym,
        .bits_per_weight = qtensor_bits_per_weight(q),
        .damp_percent_used = job->damp_used > 0 ? job->damp_used : NAN,
        .dead_columns = job->dead_columns,
        .samples = f->samples,
        .tokens = f->tokens,
        .nonfinite = f->residual.nonfinite > 0,
        .seconds = job->seconds,
    };

    snprintf(row.module, sizeof(row.module), "%s", job->name);
    snprintf(row.method, sizeof(row.method), "%s", f->method);
    snprintf(row.target, sizeof(row.target), "%s", job->aimed ? "float_model" : "weight");
    snprintf(row.fallback, sizeof(row.fallback), "%s", job->fallback);
    snprintf(row.note, sizeof(row.note), "%s", job->note);
    row.loss = isnan(job->loss) ? NAN : finite_or_null(job->loss, &row);
    row.unrefined_loss = job->refined ? finite_or_null(job->unrefined_loss, &row) : NAN;
    row.refined_loss = job->refined ? finite_or_null(job->refined_loss, &row) : NAN;
    set_errors(&row, f);
    set_input(&row, f);
    *out = row;
}

int report_rows_add(struct report_rows *rows, const struct report_row *row)
{
    struct report_row *grown = realloc(rows->list, ((size_t)rows->count + 1) * sizeof(*grown));

    if (grown == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the report row of %s", row->module);
    }
    rows->list = grown;
    grown[rows->count++] = *row;
    return 0;
}

void report_rows_deinit(struct report_rows *rows)
{
    free(rows->list);
    *rows = (struct report_rows){0};
}
