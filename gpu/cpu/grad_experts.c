/* Gradients through a layer of experts: of the weights that rows are multiplied by, and of the logits that the weights
 * come from. Which experts were chosen is a constant. (Of rows: gather_rows and scatter_rows are each other's.)
 *
 * With s_i the scores of the chosen experts and g_i the gradients of their weights, in double:
 *   softmax over all, w_i = f p_i:             dlogit_e = f p_e ([e chosen] g_e - sum_i g_i p_i);
 *   softmax over the chosen, or normalized:    the same among the chosen alone;
 *   sigmoid, w_i = f s_i:                      dlogit_i = f g_i s_i (1 - s_i);
 *   normalized, w_i = f s_i / (S + epsilon):   f / (S + epsilon) (g_i - sum_j g_j s_j / (S + epsilon)) s_i (1 - s_i).
 */

#include "gpu/cpu/internal.h"

#include <math.h>

#define ROW_TILE 16

struct row_dots {
    const struct kernels *kernels;
    float *d;
    const float *a, *x;
    const int32_t *places;
    int64_t count, cols, k;
};

static void row_dots_tile(void *ctx, int64_t task)
{
    const struct row_dots *job = ctx;

    for (int64_t i = task * ROW_TILE; i < task * ROW_TILE + tile_size(job->count, ROW_TILE, task); i++) {
        const float *a = job->a + job->places[i] / job->k * job->cols;
        float *d = job->d + job->places[i];
        *d = (float)((double)*d + job->kernels->dot(a, job->x + i * job->cols, job->cols));
    }
}

int cpu_row_dots(struct gpu_stream *stream, const struct tensor *d, const struct tensor *a, const struct tensor *x,
                 const struct tensor *places, int64_t k)
{
    struct row_dots job = {stream->device->kernels, d->data,        a->data, x->data, places->data,
                           matrix_rows(x),          matrix_cols(x), k};

    stream_run(stream, tiles_of(job.count, ROW_TILE), row_dots_tile, &job);
    return 0;
}

struct route_grad {
    float *dlogits;
    const float *dweights, *logits;
    const int32_t *ids;
    int64_t tokens, experts;
    const struct gpu_route *spec;
};

static void route_grad_sigmoid(const struct gpu_route *spec, float *dlogits, const float *g, const float *logits,
                               const int32_t *ids)
{
    double scores[GPU_ROUTE_MAX], sum = 0, dot = 0, factor = (double)spec->factor;

    for (int64_t i = 0; i < spec->top_k; i++) {
        scores[i] = 1 / (1 + exp(-(double)logits[ids[i]]));
        sum += scores[i];
        dot += (double)g[i] * scores[i];
    }
    sum = spec->normalize ? sum + (double)spec->epsilon : 1;
    dot = spec->normalize ? dot / sum : 0;
    for (int64_t i = 0; i < spec->top_k; i++) {
        float *d = dlogits + ids[i];
        *d = (float)((double)*d + factor / sum * ((double)g[i] - dot) * scores[i] * (1 - scores[i]));
    }
}

static void route_grad_softmax(const struct route_grad *job, float *dlogits, const float *g, const float *logits,
                               const int32_t *ids)
{
    const struct gpu_route *spec = job->spec;
    bool all = spec->scores == GPU_SCORES_ALL && !spec->normalize;
    int64_t count = all ? job->experts : spec->top_k;
    double largest = -INFINITY, sum = 0, dot = 0, factor = (double)spec->factor;

    for (int64_t i = 0; i < count; i++) {
        double logit = (double)logits[all ? i : ids[i]];
        largest = logit > largest ? logit : largest;
    }
    for (int64_t i = 0; i < count; i++) {
        sum += exp((double)logits[all ? i : ids[i]] - largest);
    }
    for (int64_t i = 0; i < spec->top_k; i++) {
        dot += (double)g[i] * exp((double)logits[ids[i]] - largest) / sum;
    }
    for (int64_t i = 0; i < count; i++) {
        int64_t e = all ? i : ids[i];
        double own = all ? 0 : (double)g[i];
        for (int64_t j = 0; all && j < spec->top_k; j++) {
            own = ids[j] == e ? (double)g[j] : own;
        }
        double p = exp((double)logits[e] - largest) / sum;
        dlogits[e] = (float)((double)dlogits[e] + factor * p * (own - dot));
    }
}

static void route_grad_tile(void *ctx, int64_t task)
{
    const struct route_grad *job = ctx;
    int64_t k = job->spec->top_k;

    for (int64_t t = task * ROW_TILE; t < task * ROW_TILE + tile_size(job->tokens, ROW_TILE, task); t++) {
        float *dlogits = job->dlogits + t * job->experts;
        const float *logits = job->logits + t * job->experts, *g = job->dweights + t * k;
        if (job->spec->scores == GPU_SCORES_SIGMOID) {
            route_grad_sigmoid(job->spec, dlogits, g, logits, job->ids + t * k);
        } else {
            route_grad_softmax(job, dlogits, g, logits, job->ids + t * k);
        }
    }
}

int cpu_route_grad(struct gpu_stream *stream, const struct tensor *dlogits, const struct tensor *dweights,
                   const struct tensor *ids, const struct tensor *logits, const struct gpu_route *spec)
{
    struct route_grad job = {dlogits->data,       dweights->data,      logits->data, ids->data,
                             matrix_rows(logits), matrix_cols(logits), spec};

    stream_run(stream, tiles_of(job.tokens, ROW_TILE), route_grad_tile, &job);
    return 0;
}
