/* How the weights of a linear lie in their groups, and which of its input channels carry its output's signal and error.
 *
 * A channel's part of the output is H_jj |w_j|^2, of the error H_jj |w_j - wq_j|^2, with w_j its column of the weight
 * and H the second moments of the inputs: what it would be alone. What channels add to or take from each other is in
 * output_relative_mse. */

#include "pipeline/anatomy.h"

#include "base/err.h"
#include "base/mem.h"

#include <math.h>
#include <stdlib.h>

int64_t anatomy_group(const struct qtensor *q)
{
    int64_t group = q->scheme.group_size;

    return group > 0 && !q->scheme.per_channel && q->cols % group == 0 ? group : q->cols;
}

/* By share, the largest first; of equals the lower index. */
static int by_share(const void *a, const void *b)
{
    const struct anatomy_channel *x = a, *y = b;
    return x->share < y->share ? 1 : x->share > y->share ? -1 : (x->index > y->index) - (x->index < y->index);
}

/* The root of the largest of n values, in descending order, to the median of those that are not 0; 0: all are. */
static double max_to_median(const struct anatomy_channel *sorted, int64_t n)
{
    int64_t used = n;

    while (used > 0 && !(sorted[used - 1].share > 0)) {
        used--;
    }
    return used > 0 ? sqrt(sorted[0].share / sorted[used / 2].share) : 0;
}

/* values [n] times moments [n] (NULL: ones), in descending order; returns the sum, by index. */
static double sort_channels(const double *values, const float *moments, int64_t n, struct anatomy_channel *sorted)
{
    double sum = 0;

    for (int64_t i = 0; i < n; i++) {
        sorted[i] = (struct anatomy_channel){i, values[i] * (moments != NULL ? (double)moments[i] : 1.0)};
        sum += sorted[i].share;
    }
    qsort(sorted, (size_t)n, sizeof(*sorted), by_share);
    return sum;
}

/* The fewest channels that make up half of `sum`. */
static int64_t half_channels(const struct anatomy_channel *sorted, int64_t n, double sum)
{
    double part = 0;
    int64_t count = 0;

    while (count < n && part < sum / 2) {
        part += sorted[count++].share;
    }
    return count;
}

static void take_top(const struct anatomy_channel *sorted, int64_t n, double sum, struct anatomy *out)
{
    out->top_count = 0;
    while (out->top_count < ANATOMY_TOP && out->top_count < n && sorted[out->top_count].share > 0) {
        const struct anatomy_channel *channel = &sorted[out->top_count];
        out->top[out->top_count++] = (struct anatomy_channel){channel->index, channel->share / sum};
    }
}

static int measure_inputs(const struct gpu *gpu, struct gpu_stream *stream, const struct layer_stats *stats,
                          const double *signal, const double *error, struct anatomy_channel *sorted,
                          struct anatomy *out)
{
    int64_t n = stats->columns;
    AUTO_FREE float *moments = NULL;
    AUTO_FREE double *inputs = NULL;
    double roots = 0;

    TRY(mem_buffer(&moments, (size_t)n));
    TRY(mem_buffer(&inputs, (size_t)n));
    TRY(gpu->ops->diagonal(stream, moments, &stats->hessian));
    for (int64_t i = 0; i < n; i++) {
        inputs[i] = (double)moments[i];
        roots += sqrt(inputs[i]);
    }
    double sum = sort_channels(inputs, NULL, n, sorted);
    out->input_channels = max_to_median(sorted, n);
    out->input_evenness = sum > 0 ? roots * roots / ((double)n * sum) : 1;
    sum = sort_channels(signal, moments, n, sorted);
    out->signal_channels = half_channels(sorted, n, sum);
    sum = sort_channels(error, moments, n, sorted);
    out->error_channels = half_channels(sorted, n, sum);
    take_top(sorted, n, sum, out);
    out->has_inputs = true;
    return 0;
}

int anatomy_begin(struct anatomy_sums *sums, int64_t cols)
{
    *sums = (struct anatomy_sums){.cols = cols};
    TRY(mem_array(&sums->signal, (size_t)cols));
    TRY(mem_array(&sums->error, (size_t)cols));
    return mem_buffer(&sums->slice, 2 * (size_t)cols);
}

void anatomy_drop(struct anatomy_sums *sums)
{
    free(sums->signal);
    free(sums->error);
    free(sums->slice);
    *sums = (struct anatomy_sums){0};
}

int anatomy_add(struct anatomy_sums *sums, const struct gpu *gpu, struct gpu_stream *stream,
                const struct tensor *weight, const struct tensor *dequantized, int64_t group)
{
    struct gpu_distribution *all = &sums->weights, more;
    int64_t n = sums->cols;

    TRY(gpu->ops->distribution(stream, &more, weight, group));
    TRY(gpu->ops->column_energy(stream, sums->slice, sums->slice + n, weight, dequantized));
    all->square += more.square;
    all->fourth += more.fourth;
    all->range_sq += more.range_sq;
    all->part_range_sq += more.part_range_sq;
    all->max_to_median = more.max_to_median > all->max_to_median ? more.max_to_median : all->max_to_median;
    all->far += more.far;
    for (int64_t i = 0; i < n; i++) {
        sums->signal[i] += sums->slice[i];
        sums->error[i] += sums->slice[n + i];
    }
    return 0;
}

static int measure_sums(const struct gpu *gpu, struct gpu_stream *stream, const struct anatomy_sums *sums,
                        const struct layer_stats *stats, struct anatomy *out)
{
    AUTO_FREE struct anatomy_channel *sorted = NULL;

    *out = (struct anatomy){.weights = sums->weights};
    TRY(mem_array(&sorted, (size_t)sums->cols));
    (void)sort_channels(sums->signal, NULL, sums->cols, sorted);
    out->weight_channels = max_to_median(sorted, sums->cols);
    return stats != NULL ? measure_inputs(gpu, stream, stats, sums->signal, sums->error, sorted, out) : 0;
}

int anatomy_finish(const struct anatomy_sums *sums, struct anatomy *out)
{
    return measure_sums(NULL, NULL, sums, NULL, out);
}

static int measure_all(const struct gpu *gpu, struct gpu_stream *stream, const struct tensor *weight,
                       const struct tensor *dequantized, const struct layer_stats *stats, int64_t group,
                       struct anatomy_sums *sums, struct anatomy *out)
{
    TRY(anatomy_begin(sums, weight->shape[1]));
    TRY(anatomy_add(sums, gpu, stream, weight, dequantized, group));
    return measure_sums(gpu, stream, sums, stats, out);
}

int anatomy_measure(const struct gpu *gpu, struct gpu_stream *stream, const struct tensor *weight,
                    const struct tensor *dequantized, const struct layer_stats *stats, int64_t group,
                    struct anatomy *out)
{
    struct anatomy_sums sums = {.cols = 0};
    int rc = measure_all(gpu, stream, weight, dequantized, stats, group, &sums, out);

    anatomy_drop(&sums);
    return rc;
}
