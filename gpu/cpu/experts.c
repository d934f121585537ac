/* A layer of experts: who goes where, and rows that go there and come back.
 *
 * Sums of softmax are in double, in the order of the experts' numbers, and rounded once: the choice is by logits, so
 * that no rounding of scores can change it. */

#include "gpu/cpu/internal.h"

#include <math.h>

#define ROW_TILE 16

struct route {
    int32_t *ids;
    float *weights;
    const float *logits;
    int64_t tokens, experts;
    const struct gpu_route *spec;
};

/* A logit's rank: one that is not a number comes last. */
static float rank_of(float logit)
{
    return isnan(logit) ? -INFINITY : logit;
}

/* The expert after `last` in descending order of logits, ascending order of equals; last -1: the first. */
static int32_t next_expert(const float *logits, int64_t experts, int32_t last)
{
    float after = last < 0 ? 0 : rank_of(logits[last]), best = 0;
    int32_t found = -1;

    for (int32_t e = 0; e < (int32_t)experts; e++) {
        float rank = rank_of(logits[e]);
        bool later = last < 0 || rank < after || (rank == after && e > last);
        if (later && (found < 0 || rank > best)) {
            found = e;
            best = rank;
        }
    }
    return found;
}

static void route_token(const struct route *job, const float *logits, int32_t *ids, float *weights)
{
    const struct gpu_route *spec = job->spec;
    bool all = spec->all && !spec->normalize; /* of all that is divided by its own sum, the sum over all has gone */
    double largest, sum = 0;
    int32_t last = -1;

    for (int64_t i = 0; i < spec->top_k; i++) {
        last = next_expert(logits, job->experts, last);
        ids[i] = last;
    }
    largest = (double)logits[ids[0]];
    for (int64_t i = 0; i < (all ? job->experts : spec->top_k); i++) {
        sum += exp((double)logits[all ? i : ids[i]] - largest);
    }
    for (int64_t i = 0; i < spec->top_k; i++) {
        weights[i] = (float)(exp((double)logits[ids[i]] - largest) / sum * (double)spec->factor);
    }
}

static void route_tile(void *ctx, int64_t task)
{
    const struct route *job = ctx;
    int64_t k = job->spec->top_k;

    for (int64_t t = task * ROW_TILE; t < task * ROW_TILE + tile_size(job->tokens, ROW_TILE, task); t++) {
        route_token(job, job->logits + t * job->experts, job->ids + t * k, job->weights + t * k);
    }
}

int cpu_route(struct gpu_stream *stream, const struct tensor *ids, const struct tensor *weights,
              const struct tensor *logits, const struct gpu_route *spec)
{
    struct route job = {ids->data, weights->data, logits->data, matrix_rows(logits), matrix_cols(logits), spec};

    stream_run(stream, tiles_of(job.tokens, ROW_TILE), route_tile, &job);
    return 0;
}

/* A counting sort, which is stable. */
int cpu_group_places(struct gpu_stream *stream, const struct tensor *places, int64_t *offsets, const struct tensor *ids,
                     int64_t experts)
{
    const int32_t *id = ids->data;
    int32_t *place = places->data;
    int64_t count = tensor_count(ids);
    TRY(scratch_reserve(stream, scratch_size(experts, sizeof(int64_t)), 0));
    int64_t *next = scratch_shared(stream);
    for (int64_t e = 0; e <= experts; e++) {
        offsets[e] = 0;
    }
    for (int64_t i = 0; i < count; i++) {
        if (id[i] >= 0 && id[i] < experts) {
            offsets[id[i] + 1]++;
        }
    }
    for (int64_t e = 0; e < experts; e++) {
        next[e] = offsets[e];
        offsets[e + 1] += offsets[e];
    }
    for (int64_t i = 0; i < count; i++) {
        if (id[i] >= 0 && id[i] < experts) {
            place[next[id[i]]++] = (int32_t)i;
        }
    }
    return 0;
}

struct rows {
    float *y;
    const float *x, *weights;
    const int32_t *places;
    int64_t count, cols, k;
};

static void gather_tile(void *ctx, int64_t task)
{
    const struct rows *job = ctx;

    for (int64_t i = task * ROW_TILE; i < task * ROW_TILE + tile_size(job->count, ROW_TILE, task); i++) {
        const float *x = job->x + job->places[i] / job->k * job->cols;
        float *y = job->y + i * job->cols;
        for (int64_t c = 0; c < job->cols; c++) {
            y[c] = x[c];
        }
    }
}

int cpu_gather_rows(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x,
                    const struct tensor *places, int64_t k)
{
    struct rows job = {y->data, x->data, NULL, places->data, matrix_rows(y), matrix_cols(y), k};

    stream_run(stream, tiles_of(job.count, ROW_TILE), gather_tile, &job);
    return 0;
}

static void scatter_tile(void *ctx, int64_t task)
{
    const struct rows *job = ctx;

    for (int64_t i = task * ROW_TILE; i < task * ROW_TILE + tile_size(job->count, ROW_TILE, task); i++) {
        const float *x = job->x + i * job->cols;
        float *y = job->y + job->places[i] / job->k * job->cols, weight = job->weights[job->places[i]];
        for (int64_t c = 0; c < job->cols; c++) {
            y[c] += weight * x[c];
        }
    }
}

int cpu_scatter_rows(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x,
                     const struct tensor *places, const struct tensor *weights)
{
    struct rows job = {y->data,        x->data,        weights->data,       places->data,
                       matrix_rows(x), matrix_cols(x), matrix_cols(weights)};

    stream_run(stream, tiles_of(job.count, ROW_TILE), scatter_tile, &job);
    return 0;
}
