/* One-dimensional k-means of rows: scratch for as many rows at once as the device keeps busy. */

#include "gpu/cuda/cuda.h"

#define SCRATCH_BYTES ((int64_t)512 << 20)
#define SLICES_MAX 2048 /* blocks that the largest device runs at once, and some */
#define COLS_MAX (1 << 28)

int cuda_cluster_rows(struct gpu_stream *stream, const struct tensor *table, const struct tensor *codes,
                      const struct tensor *w, const struct tensor *importance, const struct tensor *outliers, int bits,
                      enum dtype stored)
{
    SCRATCH_SCOPE(stream);

    if (matrix_cols(w) > COLS_MAX) {
        return err_raise(ERR_INTERNAL, "cluster_rows: rows of %lld", (long long)matrix_cols(w));
    }
    TRY(cuda_begin(stream->device));
    if (matrix_rows(w) == 0) {
        return 0;
    }
    struct launch_cluster job = {.table = table->data,
                                 .codes = codes->data,
                                 .w = w->data,
                                 .importance = importance != NULL ? importance->data : NULL,
                                 .outliers = outliers != NULL ? outliers->data : NULL,
                                 .rows = matrix_rows(w),
                                 .cols = matrix_cols(w),
                                 .values = 1 << bits,
                                 .stored = stored};
    job.slice = launch_cluster_bytes(job.cols, job.values);
    job.slices = SCRATCH_BYTES / job.slice;
    job.slices = job.slices < 1 ? 1 : job.slices < SLICES_MAX ? job.slices : SLICES_MAX;
    job.slices = job.slices < job.rows ? job.slices : job.rows;
    TRY(scratch_reserve(stream, scratch_size(job.slices, (size_t)job.slice)));
    job.scratch = scratch_take(stream, job.slices, (size_t)job.slice);
    return cuda_ok(stream->device, launch_cluster(&job, stream->stream), "cluster_rows");
}
