/* What a report says of a weight beyond its residual: how it lies in its groups, and what each column carries.
 *
 * Rows, and tiles of columns, are summed in double in a fixed order; rows are added in order. */

#include "gpu/cpu/internal.h"

#define ENERGY_TILE 512 /* columns of a task */
#define ENERGY_ROWS 4   /* that are added up at once; of more, too few lines are read ahead */
#define ROWS_TILE 64    /* of a task */

struct distribution {
    const struct kernels *kernels;
    const float *w;
    int64_t count, cols, group; /* rows, columns, columns of a group */
    struct gpu_distribution *rows;
};

/* record: the largest ratio to a median so far, below which this row's does not fall. */
static void distribution_row(const struct distribution *job, int64_t row, double record)
{
    struct distribution_sums sums = {.square = {0}, .max_to_median = record};
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

/* Of the ratios the largest counts alone, so one of an earlier row may stand for a smaller one: few groups have their
 * median searched. */
static void distribution_tile(void *ctx, int64_t task)
{
    const struct distribution *job = ctx;
    int64_t first = task * ROWS_TILE, count = tile_size(job->count, ROWS_TILE, task);
    double record = 0;

    for (int64_t row = first; row < first + count; row++) {
        distribution_row(job, row, record);
        record = job->rows[row].max_to_median;
    }
}

int cpu_distribution(struct gpu_stream *stream, struct gpu_distribution *out, const struct tensor *w, int64_t group)
{
    int64_t rows = matrix_rows(w);
    struct distribution job = {
        .kernels = stream->device->kernels, .w = w->data, .count = rows, .cols = matrix_cols(w), .group = group};
    struct gpu_distribution sum = {0};

    TRY(scratch_reserve(stream, scratch_size(rows, sizeof(*job.rows)), 0));
    job.rows = scratch_shared(stream);
    stream_run(stream, tiles_of(rows, ROWS_TILE), distribution_tile, &job);
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
    for (int64_t row = 0; row < job->rows; row += ENERGY_ROWS) {
        int64_t at = row * job->cols + first, left = job->rows - row;
        job->kernels->energy(job->signal + first, job->error + first, job->w + at, job->wq + at, count,
                             left < ENERGY_ROWS ? left : ENERGY_ROWS, job->cols);
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
