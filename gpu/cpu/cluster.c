/* Exact one-dimensional k-means, row by row: at most 2^b values with the smallest sum f_j (w_j - c_a(j))^2.
 *
 * Optimal clusters of sorted values are intervals, so with D_q(i) the minimum loss of the first i values in q clusters,
 *   D_q(i) = min over j of D_(q-1)(j) + loss(j, i),
 * and the best j does not fall as i grows: each level is filled by halving, O(n log n), and all levels take
 * O(2^b n log n) (Wang and Song 2011, Ckmeans.1d.dp; Gronlund et al. 2017, arXiv 1701.07204). The loss of an interval
 * comes from prefix sums of f, f w and f w^2 in double, of values less the row's mean.
 *
 * Equal values are one point, so a row of no more distinct values than the table has is kept exactly. Values are
 * rounded to what the artifact stores before the codes are chosen. */

#include "gpu/cpu/internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct point {
    float value;
    double weight;
};

struct cluster {
    struct gpu_stream *stream;
    float *table;
    uint8_t *codes;
    const float *w, *importance;
    const uint8_t *outliers;
    int64_t rows, cols, values; /* values: 2^bits */
    enum dtype stored;
};

/* Scratch of one row. */
struct row {
    struct point *points;       /* [cols] */
    double *sum0, *sum1, *sum2; /* [cols + 1]: prefix sums of f, f w, f w^2 */
    double *min_loss, *next;    /* [cols + 1] */
    int32_t *from;              /* [values][cols + 1]: where the last cluster of the best split begins */
    int64_t count;              /* distinct values */
};

static size_t cluster_slice_bytes(const struct cluster *job)
{
    return scratch_size(job->cols, sizeof(struct point)) + 5 * scratch_size(job->cols + 1, sizeof(double)) +
           scratch_size(job->values * (job->cols + 1), sizeof(int32_t));
}

static void cluster_slice_layout(const struct cluster *job, struct row *row)
{
    char *at = scratch_slice(job->stream);
    double **sums[] = {&row->sum0, &row->sum1, &row->sum2, &row->min_loss, &row->next};

    row->points = (struct point *)(void *)at;
    at += scratch_size(job->cols, sizeof(struct point));
    for (size_t i = 0; i < sizeof(sums) / sizeof(sums[0]); i++) {
        *sums[i] = (double *)(void *)at;
        at += scratch_size(job->cols + 1, sizeof(double));
    }
    row->from = (int32_t *)(void *)at;
}

static int rising(const void *a, const void *b)
{
    float x = ((const struct point *)a)->value, y = ((const struct point *)b)->value;

    return (x > y) - (x < y);
}

/* The row's distinct values with their weights; ones when no weight is left. */
static void cluster_gather(const struct cluster *job, int64_t n, struct row *row)
{
    double total = 0;
    int64_t count = 0, distinct = 0;

    for (int64_t k = 0; k < job->cols; k++) {
        if (job->outliers == NULL || job->outliers[n * job->cols + k] == 0) {
            double weight = job->importance != NULL ? (double)job->importance[k] : 1.0;
            row->points[count++] = (struct point){job->w[n * job->cols + k] + 0.0f, weight}; /* -0 to 0 */
            total += weight;
        }
    }
    for (int64_t i = 0; !(total > 0) && i < count; i++) {
        row->points[i].weight = 1.0;
    }
    qsort(row->points, (size_t)count, sizeof(*row->points), rising);
    for (int64_t i = 0; i < count; i++) {
        if (distinct > 0 && row->points[distinct - 1].value == row->points[i].value) {
            row->points[distinct - 1].weight += row->points[i].weight;
        } else {
            row->points[distinct++] = row->points[i];
        }
    }
    row->count = distinct;
}

static double mean_of(const struct row *row, int64_t begin, int64_t end)
{
    double weight = 0, sum = 0, plain = 0;

    for (int64_t i = begin; i < end; i++) {
        weight += row->points[i].weight;
        sum += row->points[i].weight * (double)row->points[i].value;
        plain += (double)row->points[i].value;
    }
    return weight > 0 ? sum / weight : end > begin ? plain / (double)(end - begin) : 0;
}

static void prefix_sums(struct row *row)
{
    double centre = mean_of(row, 0, row->count);

    row->sum0[0] = row->sum1[0] = row->sum2[0] = 0;
    for (int64_t i = 0; i < row->count; i++) {
        double x = (double)row->points[i].value - centre, f = row->points[i].weight;
        row->sum0[i + 1] = row->sum0[i] + f;
        row->sum1[i + 1] = row->sum1[i] + f * x;
        row->sum2[i + 1] = row->sum2[i] + f * x * x;
    }
}

/* Of values [begin, end) as one cluster. */
static double interval_loss(const struct row *row, int64_t begin, int64_t end)
{
    double f = row->sum0[end] - row->sum0[begin], x = row->sum1[end] - row->sum1[begin];
    double loss = row->sum2[end] - row->sum2[begin] - (f > 0 ? x * x / f : 0);

    return loss > 0 ? loss : 0;
}

/* next[low..high] from min_loss, the last cluster beginning in [from, to]. */
static void fill_level(struct row *row, int32_t *begins, int64_t low, int64_t high, int64_t from, int64_t to)
{
    while (low <= high) {
        int64_t middle = low + (high - low) / 2, best = from;
        double min_loss = INFINITY;
        for (int64_t j = from; j <= to && j < middle; j++) {
            double loss = row->min_loss[j] + interval_loss(row, j, middle);
            if (loss < min_loss) {
                min_loss = loss;
                best = j;
            }
        }
        row->next[middle] = min_loss;
        begins[middle] = (int32_t)best;
        fill_level(row, begins, low, middle - 1, from, best); /* this frame continues with the other half */
        low = middle + 1;
        from = best;
    }
}

/* Table of a row with more distinct values than the table has. */
static void cluster_split(const struct cluster *job, struct row *row, float *table)
{
    int64_t end = row->count;

    prefix_sums(row);
    for (int64_t i = 0; i <= row->count; i++) {
        row->min_loss[i] = interval_loss(row, 0, i);
    }
    for (int64_t q = 1; q < job->values; q++) {
        double *swap = row->min_loss;
        fill_level(row, row->from + q * (job->cols + 1), q + 1, row->count, q, row->count);
        row->min_loss = row->next;
        row->next = swap;
    }
    for (int64_t q = job->values - 1; q >= 0; q--) {
        int64_t begin = q > 0 ? row->from[q * (job->cols + 1) + end] : 0;
        table[q] = (float)mean_of(row, begin, end);
        end = begin;
    }
}

/* The nearest value of an ascending table, the lower of equals. */
static uint8_t cluster_nearest(const float *table, int64_t count, float w)
{
    int64_t low = 0, high = count - 1;

    while (low < high) { /* the first value that is not below w */
        int64_t middle = (low + high) / 2;
        if (table[middle] < w) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if (low > 0 && (double)w - (double)table[low - 1] <= fabs((double)table[low] - (double)w)) {
        low--;
    }
    while (low > 0 && table[low - 1] == table[low]) {
        low--;
    }
    return (uint8_t)low;
}

static void cluster_row(void *ctx, int64_t n)
{
    const struct cluster *job = ctx;
    float *table = job->table + n * job->values;
    struct row row;

    cluster_slice_layout(job, &row);
    cluster_gather(job, n, &row);
    if (row.count > job->values) {
        cluster_split(job, &row, table);
    } else {
        for (int64_t i = 0; i < job->values; i++) {
            int64_t at = i < row.count ? i : row.count - 1;
            table[i] = row.count > 0 ? row.points[at].value : 0.0f;
        }
    }
    for (int64_t i = 0; i < job->values; i++) {
        table[i] = dtype_round_finite(table[i], job->stored);
    }
    for (int64_t k = 0; k < job->cols; k++) {
        job->codes[n * job->cols + k] = cluster_nearest(table, job->values, job->w[n * job->cols + k]);
    }
}

int cpu_cluster_rows(struct gpu_stream *stream, const struct tensor *table, const struct tensor *codes,
                     const struct tensor *w, const struct tensor *importance, const struct tensor *outliers, int bits,
                     enum dtype stored)
{
    struct cluster job = {.stream = stream,
                          .table = table->data,
                          .codes = codes->data,
                          .w = w->data,
                          .importance = importance != NULL ? importance->data : NULL,
                          .outliers = outliers != NULL ? outliers->data : NULL,
                          .rows = matrix_rows(w),
                          .cols = matrix_cols(w),
                          .stored = stored};
    job.values = (int64_t)1 << bits;
    TRY(scratch_reserve(stream, 0, cluster_slice_bytes(&job)));
    stream_run(stream, job.rows, cluster_row, &job);
    return 0;
}
