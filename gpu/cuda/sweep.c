/* The GPTQ sweep: blocks of 128 columns go through the fused kernel of sweep.cu. F32 products take the errors of a
 * block to the rest of its panel of 512 columns, and those of a panel to all columns after it: products over 512
 * columns run nearer to a device's peak rate than those over 128, and read and write the weights a quarter as often.
 * Weights are gathered in visiting order first; the caller's are overwritten as on the CPU. The block size of the
 * request is the CPU's business: results depend on it by rounding only. */

#include "gpu/cuda/cuda.h"

#define PANEL (4 * LAUNCH_SWEEP_COLS)

struct sweep {
    struct gpu_stream *stream;
    float *error; /* [rows, PANEL]: of the columns of a panel */
    struct launch_sweep launch;
    const int32_t *group;            /* host, [k] */
    const struct gpu_levels *levels; /* or NULL: a grid */
};

/* The group of all columns, or -1 when there are several. */
static int only_group(const int32_t *group, int cols)
{
    for (int i = 1; i < cols; i++) {
        if (group[i] != group[0]) {
            return -1;
        }
    }
    return group[0];
}

/* The errors of columns [from, from + count) of the panel at `panel` go to columns [first, end). */
static int sweep_update(const struct sweep *job, int64_t panel, int64_t from, int64_t count, int64_t first, int64_t end)
{
    const struct launch_sweep *launch = &job->launch;
    struct gemm gemm = {.m = launch->rows,
                        .n = end - first,
                        .k = count,
                        .alpha = -1.0f,
                        .beta = 1.0f,
                        .a = job->error + (from - panel),
                        .b = launch->u + from * launch->k + first,
                        .c = launch->w + first,
                        .lda = launch->error_stride,
                        .ldb = launch->k,
                        .ldc = launch->k};
    return first < end ? gemm_run(job->stream, &gemm) : 0;
}

static int run_panel(struct sweep *job, int64_t panel, int64_t end)
{
    struct launch_sweep *launch = &job->launch;

    for (int64_t first = panel; first < end; first += LAUNCH_SWEEP_COLS) {
        int64_t after = end - first < LAUNCH_SWEEP_COLS ? end : first + LAUNCH_SWEEP_COLS;
        launch->first = first;
        launch->cols = (int)(after - first);
        launch->error = job->error + (first - panel);
        launch->only_group = only_group(job->group + first, launch->cols);
        TRY(cuda_ok(job->stream->device, launch_sweep(launch, job->stream->stream), "sweep"));
        TRY(sweep_update(job, panel, first, launch->cols, after, end));
    }
    return sweep_update(job, panel, panel, end - panel, end, launch->k);
}

static int run_panels(struct sweep *job)
{
    int64_t k = job->launch.k;

    for (int64_t panel = 0; panel < k; panel += PANEL) {
        TRY(run_panel(job, panel, k - panel < PANEL ? k : panel + PANEL));
    }
    return 0;
}

static int sum_losses(struct sweep *job, double *loss)
{
    AUTO_FREE double *rows = NULL;
    double sum = 0;

    TRY(mem_buffer(&rows, (size_t)job->launch.rows));
    TRY(memory_download(job->stream, rows, job->launch.loss, (size_t)job->launch.rows * sizeof(double)));
    for (int64_t r = 0; r < job->launch.rows; r++) {
        sum += rows[r];
    }
    *loss = sum;
    return 0;
}

static int run_sweep(struct sweep *job, const struct tensor *codes, const struct tensor *w, const int32_t *order,
                     double *loss)
{
    SCRATCH_SCOPE(job->stream);
    struct gpu_stream *stream = job->stream;
    struct launch_sweep *launch = &job->launch;
    int64_t rows = launch->rows, k = launch->k;
    int64_t levels = job->levels != NULL ? job->levels->count : 0;
    size_t permuted = order != NULL ? scratch_size(k, sizeof(int32_t)) + scratch_size(rows * k, sizeof(float)) +
                                          scratch_size(rows * k, 1)
                                    : 0;

    TRY(scratch_reserve(stream, permuted + scratch_size(levels, sizeof(float)) + scratch_size(k, sizeof(int32_t)) +
                                    scratch_size(rows * PANEL, sizeof(float)) + scratch_size(rows, sizeof(double))));
    int32_t *group = scratch_take(stream, k, sizeof(int32_t));
    const int32_t *visits = NULL;
    launch->group = group;
    job->error = scratch_take(stream, rows * PANEL, sizeof(float));
    launch->error_stride = PANEL;
    launch->loss = scratch_take(stream, rows, sizeof(double));
    launch->w = w->data;
    launch->codes = codes->data;
    TRY(memory_upload(stream, group, job->group, (size_t)k * sizeof(int32_t)));
    if (levels > 0) {
        float *values = scratch_take(stream, levels, sizeof(float));
        launch->levels = values;
        launch->level_count = (int)levels;
        TRY(memory_upload(stream, values, job->levels->values, (size_t)levels * sizeof(float)));
    }
    TRY(memory_fill_zero(stream, launch->loss, (size_t)rows * sizeof(double)));
    if (order != NULL) {
        launch->w = scratch_take(stream, rows * k, sizeof(float));
        launch->codes = scratch_take(stream, rows * k, 1);
        TRY(order_upload(stream, order, k, &visits));
        TRY(cuda_ok(stream->device, launch_gather_columns(launch->w, w->data, visits, rows, k, stream->stream),
                    "sweep"));
    }
    TRY(run_panels(job));
    if (order != NULL) {
        TRY(cuda_ok(stream->device, launch_scatter_codes(codes->data, launch->codes, visits, rows, k, stream->stream),
                    "sweep"));
    }
    return sum_losses(job, loss);
}

/* All of a sweep but what it rounds to. */
static int sweep_all(struct sweep *job, const struct tensor *codes, const struct tensor *w, const int32_t *order,
                     int64_t group_size, double *loss)
{
    AUTO_FREE int32_t *group = NULL;

    TRY(cuda_begin(job->stream->device));
    TRY(mem_buffer(&group, (size_t)job->launch.k));
    for (int64_t i = 0; i < job->launch.k; i++) {
        group[i] = (int32_t)((order != NULL ? order[i] : i) / group_size);
    }
    job->launch.groups = job->launch.k / group_size;
    job->group = group;
    return run_sweep(job, codes, w, order, loss);
}

int cuda_sweep(struct gpu_stream *stream, const struct tensor *codes, const struct tensor *w, const struct tensor *u,
               const struct tensor *scale, const struct tensor *zero, const int32_t *order, int64_t block_size,
               const struct gpu_grid *spec, double *loss)
{
    struct sweep job = {.stream = stream,
                        .launch = {.u = u->data,
                                   .scale = scale->data,
                                   .zero = zero->data,
                                   .rows = matrix_rows(w),
                                   .k = matrix_cols(w),
                                   .top = (float)((1 << spec->bits) - 1)}};
    return sweep_all(&job, codes, w, order, spec->group_size, loss);
}

int cuda_sweep_levels(struct gpu_stream *stream, const struct tensor *codes, const struct tensor *w,
                      const struct tensor *u, const struct tensor *scale, const int32_t *order, int64_t block_size,
                      const struct gpu_levels *levels, double *loss)
{
    struct sweep job = {.stream = stream,
                        .launch = {.u = u->data, .scale = scale->data, .rows = matrix_rows(w), .k = matrix_cols(w)},
                        .levels = levels};
    return sweep_all(&job, codes, w, order, levels->group_size, loss);
}
