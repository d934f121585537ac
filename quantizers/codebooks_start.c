/* The start of codebooks by residual k-means.
 *
 * k-means (Lloyd 1982) over the vectors of all rows and groups, divided by their rows' scales s_n: a vector weighs
 * s_n^2 f, f being the importance of its inputs, since that is what its error costs. Seeds are k-means++ (Arthur and
 * Vassilvitskii 2007) on a sample, from the job's seed; large codebooks start from vectors drawn without replacement.
 * A cluster that stays empty moves to the vector that is coded worst. Each codebook sees what those before it left
 * (Egiazarian et al. 2024, arXiv 2401.06118, §3.1). */

#include "quantizers/codebooks.h"

#include "base/err.h"
#include "base/mem.h"
#include "base/random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CONVERGED 1e-4 /* of what the first assignment gained: k-means ends when an iteration gains less */
#define SAMPLE_PER_CODE 32

/* k-means of one codebook. */
struct stage {
    struct codebooks *c;
    struct gpu_codebook spec;       /* one codebook */
    struct tensor table;            /* its part of the tables */
    struct tensor entries;          /* U16 [N, groups] */
    struct tensor x;                /* F32 [N,K]: what is clustered */
    float *host_x;                  /* [N,K] */
    float *values, *sums, *weights; /* host, [codes, group_size] */
    float *column, *row;            /* host: f [K] and s^2 [N] */
    uint64_t random;
};

static double codebooks_next_unit(uint64_t *state)
{
    return (double)(random_next(state) >> 11) * 0x1p-53;
}

/* The cost of coding vector `at` (of N * groups) as y, or as 0 with y NULL. */
static double codebooks_vector_cost(const struct stage *s, int64_t at, const float *x, const float *y)
{
    int64_t g = s->spec.group_size;
    const float *f = s->column + at % s->c->groups * g;
    double sum = 0;

    for (int64_t a = 0; a < g; a++) {
        double e = (double)x[a] - (y != NULL ? (double)y[a] : 0);
        sum += (double)f[a] * e * e;
    }
    return sum * (double)s->row[at / s->c->groups];
}

/* `count` different vectors of all, by a partial shuffle; *out is malloc'ed, and longer. */
static int codebooks_draw_sample(struct stage *s, int64_t total, int64_t count, int32_t **out)
{
    AUTO_FREE int32_t *order = NULL;

    if (total > INT32_MAX) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a sample of %lld vectors", (long long)total);
    }
    TRY(mem_buffer(&order, (size_t)total));
    for (int64_t i = 0; i < total; i++) {
        order[i] = (int32_t)i;
    }
    for (int64_t i = 0; i < count; i++) {
        int64_t j = i + (int64_t)(random_next(&s->random) % (uint64_t)(total - i));
        int32_t swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
    *out = MOVE(order);
    return 0;
}

/* k-means++: the next centre is drawn by what vectors cost as the nearest of those before. */
static int codebooks_seed_spread(struct stage *s, const int32_t *sample, int64_t count)
{
    int64_t g = s->spec.group_size;
    AUTO_FREE double *cost = NULL;

    TRY(mem_buffer(&cost, (size_t)count));
    for (int64_t c = 0; c < s->c->codes; c++) {
        double total = 0;
        for (int64_t i = 0; c > 0 && i < count; i++) {
            double now = codebooks_vector_cost(s, sample[i], s->host_x + sample[i] * g, s->values + (c - 1) * g);
            cost[i] = c == 1 || now < cost[i] ? now : cost[i];
            total += cost[i];
        }
        double left = codebooks_next_unit(&s->random) * total;
        int64_t chosen = 0;
        while (chosen + 1 < count && c > 0 && (left -= cost[chosen]) >= 0) {
            chosen++;
        }
        memcpy(s->values + c * g, s->host_x + sample[chosen] * g, (size_t)g * sizeof(float));
    }
    return 0;
}

static int codebooks_seed(struct stage *s)
{
    int64_t g = s->spec.group_size, codes = s->c->codes, total = s->c->rows * s->c->groups;
    int64_t sample_size = codes <= 1024 ? codes * SAMPLE_PER_CODE : codes;
    int64_t count = sample_size < total ? sample_size : total;
    AUTO_FREE int32_t *sample = NULL;

    memset(s->values, 0, (size_t)(codes * g) * sizeof(float));
    TRY(codebooks_draw_sample(s, total, count, &sample));
    if (count > codes) {
        TRY(codebooks_seed_spread(s, sample, count));
    } else {
        for (int64_t c = 0; c < count; c++) {
            memcpy(s->values + c * g, s->host_x + sample[c] * g, (size_t)g * sizeof(float));
        }
    }
    return codebooks_upload(s->c, &s->table, s->values);
}

/* Nearest codes; c->d becomes what is left of x. */
static int codebooks_assign(struct stage *s, double *gain)
{
    struct codebooks *c = s->c;
    const struct gpu_ops *ops = c->context->gpu->ops;

    TRY(ops->convert(c->context->stream, &c->d, &s->x));
    TRY(ops->code_expand(c->context->stream, &c->d, &s->entries, NULL, &s->table, &s->spec, -1.0f, true));
    return ops->code_search(c->context->stream, &s->entries, &c->d, NULL, &s->table, NULL, &c->importance, &s->spec,
                            gain);
}

struct misfit {
    double cost;
    int64_t at;
};

static int codebooks_by_falling_cost(const void *a, const void *b)
{
    const struct misfit *x = a, *y = b;

    if (x->cost != y->cost) {
        return x->cost < y->cost ? 1 : -1;
    }
    return x->at < y->at ? -1 : x->at > y->at;
}

/* Empty clusters move to the vectors with the largest errors, as long as those have any. */
static int codebooks_refill(struct stage *s)
{
    struct codebooks *c = s->c;
    int64_t g = s->spec.group_size, total = c->rows * c->groups, taken = 0;
    AUTO_FREE struct misfit *misfits = NULL;
    AUTO_FREE float *left = NULL;

    TRY(mem_buffer(&misfits, (size_t)total));
    TRY(mem_buffer(&left, (size_t)tensor_count(&c->d)));
    TRY(codebooks_download(c, left, &c->d));
    for (int64_t at = 0; at < total; at++) {
        misfits[at] = (struct misfit){codebooks_vector_cost(s, at, left + at * g, NULL), at};
    }
    qsort(misfits, (size_t)total, sizeof(*misfits), codebooks_by_falling_cost);
    for (int64_t code = 0; code < c->codes && taken < total && misfits[taken].cost > 0; code++) {
        bool used = false;
        for (int64_t a = 0; a < g; a++) {
            used = used || s->weights[code * g + a] > 0;
        }
        if (!used) {
            memcpy(s->values + code * g, s->host_x + misfits[taken++].at * g, (size_t)g * sizeof(float));
        }
    }
    return 0;
}

/* Weighted means of the clusters. c->p holds x and c->q ones, both by their weights. */
static int codebooks_update(struct stage *s)
{
    struct codebooks *c = s->c;
    const struct gpu_ops *ops = c->context->gpu->ops;
    struct tensor reduced = tensor_rows(&c->reduced, 0, c->codes);
    int64_t g = s->spec.group_size, empty = 0;

    TRY(ops->code_reduce(c->context->stream, &reduced, &c->p, &s->entries, NULL, &s->spec));
    TRY(codebooks_download(c, s->sums, &reduced));
    TRY(ops->code_reduce(c->context->stream, &reduced, &c->q, &s->entries, NULL, &s->spec));
    TRY(codebooks_download(c, s->weights, &reduced));
    for (int64_t i = 0; i < c->codes * g; i++) {
        s->values[i] = s->weights[i] > 0 ? s->sums[i] / s->weights[i] : s->values[i];
        empty += s->weights[i] > 0 ? 0 : 1;
    }
    TRY(empty > 0 ? codebooks_refill(s) : 0);
    return codebooks_upload(c, &s->table, s->values);
}

/* c->p = x and c->q = ones, column j of row n times f_j s_n^2. */
static int codebooks_weigh(struct stage *s)
{
    struct codebooks *c = s->c;
    const struct gpu_ops *ops = c->context->gpu->ops;

    for (int64_t i = 0; i < c->codes * s->spec.group_size; i++) {
        s->values[i] = 1.0f;
    }
    TRY(codebooks_upload(c, &s->table, s->values));
    TRY(codebooks_upload(c, &c->rowwise, s->row));
    TRY(ops->code_expand(c->context->stream, &c->q, &s->entries, NULL, &s->table, &s->spec, 1.0f, false));
    TRY(ops->scale(c->context->stream, &c->q, &c->rowwise, &c->importance));
    TRY(ops->convert(c->context->stream, &c->p, &s->x));
    return ops->scale(c->context->stream, &c->p, &c->rowwise, &c->importance);
}

bool codebooks_cover(const struct codebooks *c)
{
    return c->rows * c->groups <= c->codes;
}

/* A table that has an entry for each vector holds all of them, in order; c->d becomes 0. */
static int codebooks_take_all(struct stage *s, uint16_t *own)
{
    struct codebooks *c = s->c;
    int64_t total = c->rows * c->groups, g = s->spec.group_size;

    memset(s->values, 0, (size_t)(c->codes * g) * sizeof(float));
    memcpy(s->values, s->host_x, (size_t)(total * g) * sizeof(float));
    for (int64_t at = 0; at < total; at++) {
        own[at] = (uint16_t)at;
    }
    TRY(codebooks_upload(c, &s->table, s->values));
    TRY(codebooks_upload(c, &s->entries, own));
    return c->context->gpu->ops->fill_zero(c->context->stream, c->d.data, tensor_bytes(&c->d));
}

/* From seeds to where nothing moves any more. */
static int codebooks_cluster(struct stage *s, int64_t max_iterations)
{
    double gain = 0, first = 0;

    TRY(codebooks_weigh(s));
    TRY(codebooks_seed(s));
    TRY(codebooks_assign(s, &first));
    for (int64_t i = 0; i < max_iterations; i++) {
        TRY(codebooks_update(s));
        TRY(codebooks_assign(s, &gain));
        if (gain <= CONVERGED * first) {
            break;
        }
    }
    return 0;
}

/* One codebook. Its entries go to host entries [N, groups, codebooks]. */
static int codebooks_run_stage(struct stage *s, int book, int64_t max_iterations, uint16_t *entries, uint16_t *own)
{
    struct codebooks *c = s->c;
    const struct gpu_ops *ops = c->context->gpu->ops;

    s->table = tensor_rows(&c->table, book * c->codes, c->codes);
    TRY(ops->fill_zero(c->context->stream, s->entries.data, tensor_bytes(&s->entries)));
    TRY(codebooks_download(c, s->host_x, &s->x));
    TRY(codebooks_cover(c) ? codebooks_take_all(s, own) : codebooks_cluster(s, max_iterations));
    TRY(ops->convert(c->context->stream, &s->x, &c->d));
    TRY(codebooks_download(c, own, &s->entries));
    for (int64_t at = 0; at < c->rows * c->groups; at++) {
        entries[at * c->spec.codebooks + book] = own[at];
    }
    return 0;
}

static int codebooks_stage_init(struct stage *s)
{
    struct codebooks *c = s->c;
    const struct gpu_ops *ops = c->context->gpu->ops;
    size_t table = (size_t)(c->codes * c->spec.group_size);

    s->spec = c->spec;
    s->spec.codebooks = 1;
    s->spec.beam = 1;
    s->random = c->context->seed ^ (uint64_t)c->rows << 32 ^ (uint64_t)c->cols;
    TRY(mem_buffer(&s->host_x, (size_t)tensor_count(&c->d)));
    TRY(mem_buffer(&s->values, table));
    TRY(mem_buffer(&s->sums, table));
    TRY(mem_buffer(&s->weights, table));
    TRY(mem_buffer(&s->column, (size_t)c->cols));
    TRY(mem_buffer(&s->row, (size_t)c->rows));
    TRY(gpu_tensor_new(c->context->gpu, DTYPE_U16, 2, (const int64_t[]){c->rows, c->groups}, &s->entries));
    TRY(gpu_tensor_new(c->context->gpu, DTYPE_F32, 2, c->weight->shape, &s->x));
    TRY(codebooks_download(c, s->column, &c->importance));
    TRY(codebooks_download(c, s->row, &c->scale));
    for (int64_t n = 0; n < c->rows; n++) {
        float scale = s->row[n];
        c->host_rows[n] = scale > 0 ? 1.0f / scale : 0.0f;
        s->row[n] = scale * scale;
    }
    TRY(codebooks_upload(c, &c->rowwise, c->host_rows));
    TRY(ops->convert(c->context->stream, &s->x, c->weight));
    return ops->scale(c->context->stream, &s->x, &c->rowwise, NULL);
}

static void codebooks_stage_deinit(struct stage *s)
{
    gpu_tensor_free(s->c->context->gpu, &s->entries);
    gpu_tensor_free(s->c->context->gpu, &s->x);
    free(s->host_x);
    free(s->values);
    free(s->sums);
    free(s->weights);
    free(s->column);
    free(s->row);
}
CLEANUP_DEINIT(stage, struct stage, codebooks_stage_deinit)

int codebooks_start(struct codebooks *c, int64_t max_iterations)
{
    size_t count = (size_t)tensor_count(&c->entries);
    AUTO_FREE uint16_t *entries = NULL, *own = NULL;
    AUTO(stage) struct stage stage = {.c = c};

    TRY(codebooks_stage_init(&stage));
    TRY(mem_buffer(&entries, count));
    TRY(mem_buffer(&own, count));
    for (int book = 0; book < c->spec.codebooks; book++) {
        TRY(book > 0 ? quant_tick(c->context) : 0);
        TRY(codebooks_run_stage(&stage, book, max_iterations, entries, own));
    }
    TRY(codebooks_upload(c, &c->entries, entries));
    return codebooks_residual(c);
}
