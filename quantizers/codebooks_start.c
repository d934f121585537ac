/* The start of codebooks by residual k-means.
 *
 * k-means (Lloyd 1982) over the vectors of all rows and groups, divided by their rows' scales s_n: a vector weighs
 * s_n^2 f, f being the importance of its inputs, since that is what its error costs. Seeds are k-means++ (Arthur and
 * Vassilvitskii 2007) on a sample, from the job's seed; large codebooks start from vectors drawn without replacement.
 * A cluster that stays empty moves to the vector that is coded worst. Each codebook sees what those before it left
 * (Egiazarian et al. 2024, arXiv 2401.06118, §3.1). */

#include "quantizers/codebooks.h"

#include "base/err.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SETTLED 1e-4 /* of what the first assignment gained: less moves than that, and k-means ends */
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

static uint64_t next_random(uint64_t *state) /* splitmix64 (Steele et al. 2014) */
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static double next_unit(uint64_t *state)
{
    return (double)(next_random(state) >> 11) * 0x1p-53;
}

/* What coding vector `at` (of N * groups) as y costs. */
static double vector_cost(const struct stage *s, int64_t at, const float *x, const float *y)
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

/* `count` different vectors of all, ascending draws replaced by a partial shuffle; *out is malloc'ed. */
static int draw_sample(struct stage *s, int64_t total, int64_t count, int32_t **out)
{
    int32_t *order = total <= INT32_MAX ? calloc((size_t)total, sizeof(*order)) : NULL;

    if (order == NULL) {
        return codebooks_out_of_memory(s->c);
    }
    for (int64_t i = 0; i < total; i++) {
        order[i] = (int32_t)i;
    }
    for (int64_t i = 0; i < count; i++) {
        int64_t j = i + (int64_t)(next_random(&s->random) % (uint64_t)(total - i));
        int32_t swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
    *out = order;
    return 0;
}

/* k-means++: the next centre is drawn by what vectors cost as the nearest of those before. */
static int seed_spread(struct stage *s, const int32_t *sample, int64_t count)
{
    int64_t g = s->spec.group_size;
    double *cost = malloc((size_t)count * sizeof(*cost));

    if (cost == NULL) {
        return codebooks_out_of_memory(s->c);
    }
    for (int64_t c = 0; c < s->c->codes; c++) {
        double total = 0;
        for (int64_t i = 0; c > 0 && i < count; i++) {
            double now = vector_cost(s, sample[i], s->host_x + sample[i] * g, s->values + (c - 1) * g);
            cost[i] = c == 1 || now < cost[i] ? now : cost[i];
            total += cost[i];
        }
        double left = next_unit(&s->random) * total;
        int64_t chosen = 0;
        while (chosen + 1 < count && c > 0 && (left -= cost[chosen]) >= 0) {
            chosen++;
        }
        memcpy(s->values + c * g, s->host_x + sample[chosen] * g, (size_t)g * sizeof(float));
    }
    free(cost);
    return 0;
}

static int seed(struct stage *s)
{
    int64_t g = s->spec.group_size, codes = s->c->codes, total = s->c->rows * s->c->groups;
    int64_t wanted = codes <= 1024 ? codes * SAMPLE_PER_CODE : codes, count = wanted < total ? wanted : total;
    int32_t *sample = NULL;

    memset(s->values, 0, (size_t)(codes * g) * sizeof(float));
    int rc = draw_sample(s, total, count, &sample);
    if (rc != 0) {
        return rc;
    }
    if (count > codes) {
        rc = seed_spread(s, sample, count);
    } else {
        for (int64_t c = 0; c < count; c++) {
            memcpy(s->values + c * g, s->host_x + sample[c] * g, (size_t)g * sizeof(float));
        }
    }
    free(sample);
    return rc != 0 ? rc : codebooks_upload(s->c, &s->table, s->values);
}

/* Nearest codes; c->d becomes what is left of x. */
static int assign(struct stage *s, double *gain)
{
    struct codebooks *c = s->c;
    const struct gpu_ops *ops = c->context->gpu->ops;

    int rc = ops->convert(c->context->stream, &c->d, &s->x);
    rc =
        rc != 0 ? rc : ops->code_expand(c->context->stream, &c->d, &s->entries, NULL, &s->table, &s->spec, -1.0f, true);
    return rc != 0 ? rc
                   : ops->code_search(c->context->stream, &s->entries, &c->d, NULL, &s->table, NULL, &c->importance,
                                      &s->spec, gain);
}

struct misfit {
    double cost;
    int64_t at;
};

static int by_cost(const void *a, const void *b)
{
    const struct misfit *x = a, *y = b;

    if (x->cost != y->cost) {
        return x->cost < y->cost ? 1 : -1;
    }
    return x->at < y->at ? -1 : x->at > y->at;
}

/* Empty clusters move to the vectors that lose most, as long as those lose anything. */
static int refill(struct stage *s)
{
    struct codebooks *c = s->c;
    int64_t g = s->spec.group_size, total = c->rows * c->groups, taken = 0;
    struct misfit *misfits = malloc((size_t)total * sizeof(*misfits));
    float *left = malloc(tensor_bytes(&c->d));
    int rc = misfits == NULL || left == NULL ? codebooks_out_of_memory(c) : codebooks_download(c, left, &c->d);

    for (int64_t at = 0; rc == 0 && at < total; at++) {
        misfits[at] = (struct misfit){vector_cost(s, at, left + at * g, NULL), at};
    }
    if (rc == 0) {
        qsort(misfits, (size_t)total, sizeof(*misfits), by_cost);
    }
    for (int64_t code = 0; rc == 0 && code < c->codes && taken < total && misfits[taken].cost > 0; code++) {
        bool used = false;
        for (int64_t a = 0; a < g; a++) {
            used = used || s->weights[code * g + a] > 0;
        }
        if (!used) {
            memcpy(s->values + code * g, s->host_x + misfits[taken++].at * g, (size_t)g * sizeof(float));
        }
    }
    free(misfits);
    free(left);
    return rc;
}

/* Weighted means of the clusters. c->p holds x and c->q ones, both by their weights. */
static int update(struct stage *s)
{
    struct codebooks *c = s->c;
    const struct gpu_ops *ops = c->context->gpu->ops;
    struct tensor reduced = tensor_rows(&c->reduced, 0, c->codes);
    int64_t g = s->spec.group_size, empty = 0;

    int rc = ops->code_reduce(c->context->stream, &reduced, &c->p, &s->entries, NULL, &s->spec);
    rc = rc != 0 ? rc : codebooks_download(c, s->sums, &reduced);
    rc = rc != 0 ? rc : ops->code_reduce(c->context->stream, &reduced, &c->q, &s->entries, NULL, &s->spec);
    rc = rc != 0 ? rc : codebooks_download(c, s->weights, &reduced);
    for (int64_t i = 0; rc == 0 && i < c->codes * g; i++) {
        s->values[i] = s->weights[i] > 0 ? s->sums[i] / s->weights[i] : s->values[i];
        empty += s->weights[i] > 0 ? 0 : 1;
    }
    rc = rc != 0 || empty == 0 ? rc : refill(s);
    return rc != 0 ? rc : codebooks_upload(c, &s->table, s->values);
}

/* c->p = x and c->q = ones, column j of row n times f_j s_n^2. */
static int weigh(struct stage *s)
{
    struct codebooks *c = s->c;
    const struct gpu_ops *ops = c->context->gpu->ops;

    for (int64_t i = 0; i < c->codes * s->spec.group_size; i++) {
        s->values[i] = 1.0f;
    }
    int rc = codebooks_upload(c, &s->table, s->values);
    rc = rc != 0 ? rc : codebooks_upload(c, &c->rowwise, s->row);
    rc =
        rc != 0 ? rc : ops->code_expand(c->context->stream, &c->q, &s->entries, NULL, &s->table, &s->spec, 1.0f, false);
    rc = rc != 0 ? rc : ops->scale(c->context->stream, &c->q, &c->rowwise, &c->importance);
    rc = rc != 0 ? rc : ops->convert(c->context->stream, &c->p, &s->x);
    return rc != 0 ? rc : ops->scale(c->context->stream, &c->p, &c->rowwise, &c->importance);
}

bool codebooks_cover(const struct codebooks *c)
{
    return c->rows * c->groups <= c->codes;
}

/* A table with room for all vectors takes them as they come; c->d becomes 0. */
static int take_all(struct stage *s, uint16_t *own)
{
    struct codebooks *c = s->c;
    int64_t total = c->rows * c->groups, g = s->spec.group_size;

    memset(s->values, 0, (size_t)(c->codes * g) * sizeof(float));
    memcpy(s->values, s->host_x, (size_t)(total * g) * sizeof(float));
    for (int64_t at = 0; at < total; at++) {
        own[at] = (uint16_t)at;
    }
    int rc = codebooks_upload(c, &s->table, s->values);
    rc = rc != 0 ? rc : codebooks_upload(c, &s->entries, own);
    return rc != 0 ? rc : c->context->gpu->ops->fill_zero(c->context->stream, c->d.data, tensor_bytes(&c->d));
}

/* From seeds to where nothing moves any more. */
static int cluster(struct stage *s, int64_t max_iterations)
{
    double gain = 0, first = 0;

    int rc = weigh(s);
    rc = rc != 0 ? rc : seed(s);
    rc = rc != 0 ? rc : assign(s, &first);
    for (int64_t i = 0; rc == 0 && i < max_iterations; i++) {
        rc = update(s);
        rc = rc != 0 ? rc : assign(s, &gain);
        if (gain <= SETTLED * first) {
            break;
        }
    }
    return rc;
}

/* One codebook. Its entries go to host entries [N, groups, codebooks]. */
static int run_stage(struct stage *s, int book, int64_t max_iterations, uint16_t *entries, uint16_t *own)
{
    struct codebooks *c = s->c;
    const struct gpu_ops *ops = c->context->gpu->ops;

    s->table = tensor_rows(&c->table, book * c->codes, c->codes);
    int rc = ops->fill_zero(c->context->stream, s->entries.data, tensor_bytes(&s->entries));
    rc = rc != 0 ? rc : codebooks_download(c, s->host_x, &s->x);
    rc = rc != 0 ? rc : codebooks_cover(c) ? take_all(s, own) : cluster(s, max_iterations);
    rc = rc != 0 ? rc : ops->convert(c->context->stream, &s->x, &c->d);
    rc = rc != 0 ? rc : codebooks_download(c, own, &s->entries);
    for (int64_t at = 0; rc == 0 && at < c->rows * c->groups; at++) {
        entries[at * c->spec.codebooks + book] = own[at];
    }
    return rc;
}

static int stage_init(struct stage *s, struct codebooks *c)
{
    const struct gpu_ops *ops = c->context->gpu->ops;
    size_t table = (size_t)(c->codes * c->spec.group_size) * sizeof(float);

    *s = (struct stage){
        .c = c, .spec = c->spec, .random = c->context->seed ^ (uint64_t)c->rows << 32 ^ (uint64_t)c->cols};
    s->spec.codebooks = 1;
    s->spec.beam = 1;
    s->host_x = malloc(tensor_bytes(&c->d));
    s->values = malloc(table);
    s->sums = malloc(table);
    s->weights = malloc(table);
    s->column = malloc(tensor_bytes(&c->importance));
    s->row = malloc(tensor_bytes(&c->scale));
    if (s->host_x == NULL || s->values == NULL || s->sums == NULL || s->weights == NULL || s->column == NULL ||
        s->row == NULL) {
        return codebooks_out_of_memory(c);
    }
    int rc = gpu_tensor_new(c->context->gpu, DTYPE_U16, 2, (const int64_t[]){c->rows, c->groups}, &s->entries);
    rc = rc != 0 ? rc : gpu_tensor_new(c->context->gpu, DTYPE_F32, 2, c->weight->shape, &s->x);
    rc = rc != 0 ? rc : codebooks_download(c, s->column, &c->importance);
    rc = rc != 0 ? rc : codebooks_download(c, s->row, &c->scale);
    for (int64_t n = 0; rc == 0 && n < c->rows; n++) {
        float scale = s->row[n];
        c->host_rows[n] = scale > 0 ? 1.0f / scale : 0.0f;
        s->row[n] = scale * scale;
    }
    rc = rc != 0 ? rc : codebooks_upload(c, &c->rowwise, c->host_rows);
    rc = rc != 0 ? rc : ops->convert(c->context->stream, &s->x, c->weight);
    return rc != 0 ? rc : ops->scale(c->context->stream, &s->x, &c->rowwise, NULL);
}

static void stage_deinit(struct stage *s)
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

int codebooks_start(struct codebooks *c, int64_t max_iterations)
{
    uint16_t *entries = malloc(tensor_bytes(&c->entries)), *own = malloc(tensor_bytes(&c->entries));
    struct stage stage;

    int rc = stage_init(&stage, c);
    rc = rc == 0 && (entries == NULL || own == NULL) ? codebooks_out_of_memory(c) : rc;
    for (int book = 0; rc == 0 && book < c->spec.codebooks; book++) {
        rc = book > 0 ? quant_tick(c->context) : 0;
        rc = rc != 0 ? rc : run_stage(&stage, book, max_iterations, entries, own);
    }
    rc = rc != 0 ? rc : codebooks_upload(c, &c->entries, entries);
    rc = rc != 0 ? rc : codebooks_residual(c);
    stage_deinit(&stage);
    free(entries);
    free(own);
    return rc;
}
