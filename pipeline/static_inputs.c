/* Static scales of inputs: one for all linears that read the same input, since runtimes load q, k and v as one linear,
 * and gate and up, and take the largest scale of their parts. */

#include "pipeline/static_inputs.h"

#include "base/err.h"
#include "pipeline/report.h"
#include "pipeline/stored_scales.h"

#include <math.h>
#include <stdlib.h>

/* The full range is that of an outlier where the root mean square has fewer steps in it than STEPS_MIN, or where the
 * chosen range is at most SHARE_MAX of it and divides the error by at least GAIN_MIN. */
#define STEPS_MIN 2
#define SHARE_MAX 0.25
#define GAIN_MIN 2.0

struct input_tick_context {
    struct run *run;
    double share;
};

static int input_tick(void *data)
{
    struct input_tick_context *context = data;
    return run_tick(context->run, context->share, "quantizing");
}

bool input_is_static(const struct qscheme *scheme)
{
    return scheme->input.element != DTYPE_F32 && !scheme->input.dynamic;
}

/* The largest input, and the root of their mean square. */
static int input_moments(struct run *run, const struct layer_stats *stats, float *absmax, float *rms)
{
    float *columns = malloc((size_t)stats->columns * sizeof(*columns));
    double squares = 0;
    float max = 0;

    if (columns == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %lld ranges", (long long)stats->columns);
    }
    int rc = run->p->gpu->ops->download(run->stream, columns, stats->absmax.data, tensor_bytes(&stats->absmax));
    for (int64_t i = 0; rc == 0 && i < stats->columns; i++) {
        max = columns[i] > max ? columns[i] : max;
    }
    if (rc == 0) {
        rc = run->p->gpu->ops->diagonal(run->stream, columns, &stats->hessian);
    }
    for (int64_t i = 0; rc == 0 && i < stats->columns; i++) {
        squares += 0.5 * (double)columns[i]; /* H = (2/T) sum x x^T */
    }
    free(columns);
    if (rc == 0) {
        *absmax = max;
        *rms = (float)sqrt(squares / (double)stats->columns);
    }
    return rc;
}

static bool is_outliers(const struct report_input *in, enum dtype element)
{
    /* E4M3 has its smallest steps, 2^-9, near zero. */
    double steps = dtype_rows[element].max / dtype_rows[element].min;
    double max = (double)in->absmax, usual = (double)in->rms;

    return (usual > 0 && max * STEPS_MIN > usual * steps) ||
           (in->range.share <= SHARE_MAX && in->range.error * GAIN_MIN <= in->range.error_absmax);
}

static int input_warn(struct run *run)
{
    return message_send_warning(
        run->sender, "input_outliers",
        "some modules have a few inputs so large that one static scale cannot represent both them and the others: "
        "\"input_outlier\" in the report's rows; smooth these inputs first (method \"smoothquant\", alone "
        "or before the one that solves, with \"smooth_down\" and \"smooth_output\"), give each token its "
        "own scale (\"activation_dynamic\": true, or \"activation_scheme\": \"dynamic\"), or list the "
        "modules in \"float_inputs\"");
}

/* One range for linears that read the same input alike. */
static int input_choose(struct run *run, double share, const struct layer_stats *stats, const struct qscheme *scheme,
                        const struct tensor *const *weights, int count, struct report_input *out)
{
    struct input_tick_context data = {run, share};
    const struct solve_context context = {.gpu = run->p->gpu,
                                          .stream = run->stream,
                                          .scale_dtype = scheme->scale_dtype,
                                          .tick = input_tick,
                                          .tick_data = &data};
    struct report_input made = {.known = true, .range = {.share = 1, .error = NAN, .error_absmax = NAN}};

    int rc = input_moments(run, stats, &made.absmax, &made.rms);
    if (rc == 0 && scheme->input_search && made.absmax > 0) {
        rc = input_range_search(&context, &stats->spread, weights, count, &scheme->input, made.absmax, &made.range);
    }
    if (rc != 0) {
        return rc;
    }
    made.outlier = is_outliers(&made, scheme->input.element);
    *out = made;
    return made.outlier ? input_warn(run) : 0;
}

static bool inputs_alike(const struct qscheme *a, const struct qscheme *b)
{
    return input_is_static(a) && input_is_static(b) && a->input.element == b->input.element &&
           a->input_search == b->input_search;
}

int group_inputs(struct run *run, double share, const struct layer_stats *stats, const struct qscheme *schemes,
                 struct linear_job *jobs, int count, struct report_input *out)
{
    const struct tensor **weights = calloc((size_t)count + 1, sizeof(const struct tensor *));
    int rc = weights != NULL ? 0 : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a list of %d weights", count);

    for (int i = 0; i < count; i++) {
        out[i] = (struct report_input){0};
    }
    for (int first = 0; rc == 0 && first < count; first++) {
        struct report_input made;
        int found = 0;
        if (!input_is_static(&schemes[first]) || out[first].known) {
            continue;
        }
        for (int i = first; i < count; i++) {
            if (inputs_alike(&schemes[first], &schemes[i])) {
                weights[found++] = jobs[i].weight;
            }
        }
        rc = stats == NULL || (stats->flags & STATS_RANGE) == 0
                 ? err_raise(ERR_INSUFFICIENT_CALIBRATION, "a static input scale of %s needs calibration inputs",
                             jobs[first].name)
                 : input_choose(run, share, stats, &schemes[first], weights, found, &made);
        for (int i = first; rc == 0 && i < count; i++) {
            if (inputs_alike(&schemes[first], &schemes[i])) {
                out[i] = made;
                jobs[i].result.input_scale =
                    stored_input_scale((float)((double)made.absmax * made.range.share), schemes[i].input.element,
                                       schemes[i].scale_dtype, &jobs[i]);
            }
        }
        rc = rc != 0 ? err_set_module(err_pass(rc, "inputs of %s", jobs[first].name), jobs[first].name) : 0;
    }
    free(weights);
    return rc;
}
