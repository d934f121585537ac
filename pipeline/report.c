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
    COLUMN(REPORT_REAL, two_sided_start),
    COLUMN(REPORT_REAL, two_sided_loss),
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
    COLUMN(REPORT_REAL, error_alignment),
    COLUMN(REPORT_REAL, weight_absmax),
    COLUMN(REPORT_REAL, weight_kurtosis),
    COLUMN(REPORT_REAL, weight_max_to_median),
    COLUMN(REPORT_REAL, weight_outlier_fraction),
    COLUMN(REPORT_REAL, weight_channel_max_to_median),
    COLUMN(REPORT_REAL, full_range_mse),
    COLUMN(REPORT_REAL, part_range_ratio),
    COLUMN(REPORT_REAL, input_channel_max_to_median),
    COLUMN(REPORT_REAL, input_evenness),
    COLUMN(REPORT_COUNT, error_channels),
    COLUMN(REPORT_COUNT, signal_channels),
    COLUMN(REPORT_TEXT, top_channels),
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

/* What the grid would lose that covers the full range of each group, with errors spread evenly over its steps. */
static double full_range_mse(const struct report_facts *f, double count)
{
    const struct qscheme *scheme = &f->job->result.scheme;
    double steps = (double)((1 << scheme->bits) - 1);

    if (scheme->kind != QTENSOR_INT || f->job->result.row_groups != f->job->result.rows) {
        return NAN;
    }
    return f->anatomy.weights.range_sq / count * 4 / (steps * steps) / 12;
}

static void set_top_channels(struct report_row *row, const struct anatomy *a)
{
    size_t used = 0;

    for (int i = 0; i < a->top_count && used < sizeof(row->top_channels); i++) {
        used += (size_t)snprintf(row->top_channels + used, sizeof(row->top_channels) - used, "%s%lld:%.3g",
                                 i > 0 ? " " : "", (long long)a->top[i].index, a->top[i].share);
    }
}

static void set_anatomy(struct report_row *row, const struct report_facts *f)
{
    const struct anatomy *a = &f->anatomy;
    const struct gpu_distribution *w = &a->weights;
    double count = (double)f->job->result.rows * (double)f->job->result.cols;
    bool some = w->square > 0;

    row->weight_kurtosis = some ? finite_or_null(count * w->fourth / (w->square * w->square), row) : NAN;
    row->weight_max_to_median = w->max_to_median > 0 ? finite_or_null(w->max_to_median, row) : NAN;
    row->weight_outlier_fraction = finite_or_null((double)w->far / count, row);
    row->weight_channel_max_to_median = some ? finite_or_null(a->weight_channels, row) : NAN;
    row->full_range_mse = full_range_mse(f, count);
    row->part_range_ratio = some ? finite_or_null(w->part_range_sq / w->range_sq, row) : NAN;
    row->input_channel_max_to_median =
        a->has_inputs && a->input_channels > 0 ? finite_or_null(a->input_channels, row) : NAN;
    row->input_evenness = a->has_inputs ? finite_or_null(a->input_evenness, row) : NAN;
    row->error_channels = a->has_inputs ? a->error_channels : -1;
    row->signal_channels = a->has_inputs ? a->signal_channels : -1;
    bool compared = !isnan(row->output_relative_mse) && row->relative_mse > 0;
    row->error_alignment = compared ? finite_or_null(row->output_relative_mse / row->relative_mse, row) : NAN;
    set_top_channels(row, a);
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
    row.two_sided_start = job->two_sided ? finite_or_null(job->two_sided_start, &row) : NAN;
    row.two_sided_loss = job->two_sided ? finite_or_null(job->two_sided_loss, &row) : NAN;
    set_errors(&row, f);
    set_anatomy(&row, f);
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
