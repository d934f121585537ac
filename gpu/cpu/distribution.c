/* What a report says of a weight beyond its residual: how it lies in its groups, and what each column carries.
 *
 * Rows, and tiles of columns, are summed in double in a fixed order; rows are added in order. */

#include "gpu/cpu/internal.h"

#define ENERGY_TILE 128 /* columns of a task */

struct distribution {
    const struct kernels *kernels;
    const float *w;
    int64_t cols, group;
    struct gpu_distribution *rows;
};

static void distribution_row(void *ctx, int64_t row)
{
    const struct distribution *job = ctx;
    struct distribution_sums sums = {.square = {0}};
    struct gpu_distribution *out = &job->rows[row];

    for (int64_t col = 0; col < job->cols; col += job->group) {
        job->kernels->distribution(&sums, job->w + row * job->cols + col, job->group);
    }
    *out = (struct gpu_distribution){.range_sq = sums.range_sq,
                                     .part_range_sq = sums.part_range_sq,
                                     .max_to_median = sums.max_to_median,
                                     .far = sums.far};
    for (int i = 0; i < RESIDUAL_LANES; i++) {
        out->square += sums.square[i];
        out->fourth += sums.fourth[i];
    }
}

int cpu_distribution(struct gpu_stream *stream, struct gpu_distribution *out, const struct tensor *w, int64_t group)
{
    int64_t rows = matrix_rows(w);
    struct distribution job = {
        .kernels = stream->device->kernels, .w = w->data, .cols = matrix_cols(w), .group = group};
    struct gpu_distribution sum = {0};

    TRY(scratch_reserve(stream, scratch_size(rows, sizeof(*job.rows)), 0));
    job.rows = scratch_shared(stream);
    stream_run(stream, rows, distribution_row, &job);
    for (int64_t row = 0; row < rows; row++) {
        const struct gpu_distribution *r = &job.rows[row];
        sum.square += r->square;
        sum.fourth += r->fourth;
        sum.range_sq += r->range_sq;
        sum.part_range_sq += r->part_range_sq;
        sum.max_to_median = r->max_to_median > sum.max_to_median ? r->max_to_median : sum.max_to_median;
        sum.far += r->far;
    }
    *out = sum;
    return 0;
}

struct column_energy {
    const struct kernels *kernels;
    double *signal, *error;
    const float *w, *wq;
    int64_t rows, cols;
};

static void column_energy_tile(void *ctx, int64_t task)
{
    const struct column_energy *job = ctx;
    int64_t first = task * ENERGY_TILE, count = tile_size(job->cols, ENERGY_TILE, task);

    for (int64_t i = first; i < first + count; i++) {
        job->signal[i] = job->error[i] = 0;
    }
    for (int64_t row = 0; row < job->rows; row++) {
        int64_t at = row * job->cols + first;
        job->kernels->energy(job->signal + first, job->error + first, job->w + at, job->wq + at, count);
    }
}

int cpu_column_energy(struct gpu_stream *stream, double *signal, double *error, const struct tensor *w,
                      const struct tensor *wq)
{
    struct column_energy job = {.kernels = stream->device->kernels,
                                .signal = signal,
                                .error = error,
                                .w = w->data,
                                .wq = wq->data,
                                .rows = matrix_rows(w),
                                .cols = matrix_cols(w)};

    stream_run(stream, tiles_of(job.cols, ENERGY_TILE), column_energy_tile, &job);
    return 0;
}
