/* A layer of experts: who goes where, and rows that go there and come back.
 *
 * Sums of softmax are in double, in the order of the experts' numbers, and rounded once: the choice is by logits, so
 * that no rounding of scores can change it. A bias and pairs of a group need scores: rounded to F32 before the
 * addition, as the reference implementations have them. */

#include "gpu/cpu/internal.h"

#include <math.h>

#define ROW_TILE 16

struct route {
    int32_t *ids;
    float *weights;
    const float *logits;
    const float *bias; /* or NULL */
    int64_t tokens, experts;
    const struct gpu_route *spec;
    struct gpu_stream *stream;
};

/* A logit's rank: one that is not a number comes last. */
static float rank_of(float logit)
{
    return isnan(logit) ? -INFINITY : logit;
}

/* The expert after `last` in descending order of `keys`, ascending order of equals; last -1: the first. */
static int32_t next_expert(const float *keys, int64_t experts, int32_t last)
{
    float after = last < 0 ? 0 : rank_of(keys[last]), best = 0;
    int32_t found = -1;

    for (int32_t e = 0; e < (int32_t)experts; e++) {
        float rank = rank_of(keys[e]);
        bool later = last < 0 || rank < after || (rank == after && e > last);
        if (later && (found < 0 || rank > best)) {
            found = e;
            best = rank;
        }
    }
    return found;
}

static double sigmoid_of(float logit)
{
    return 1 / (1 + exp(-(double)logit));
}

/* Scores with the bias: what a choice is by that the order of logits does not give. */
static void keys_of(const struct route *job, const float *logits, float *keys)
{
    bool sigmoid = job->spec->scores == GPU_SCORES_SIGMOID;
    double largest = (double)logits[next_expert(logits, job->experts, -1)], sum = 0;

    for (int64_t e = 0; e < job->experts && !sigmoid; e++) {
        sum += exp((double)logits[e] - largest);
    }
    for (int64_t e = 0; e < job->experts; e++) {
        keys[e] = (float)(sigmoid ? sigmoid_of(logits[e]) : exp((double)logits[e] - largest) / sum);
        keys[e] += job->bias != NULL ? job->bias[e] : 0;
    }
}

/* The keys of experts outside the best groups: -inf, as what is not a number has. */
static void mask_groups(const struct route *job, float *keys, float *groups)
{
    const struct gpu_route *spec = job->spec;
    int64_t size = job->experts / spec->groups;
    int32_t last = -1;

    for (int64_t g = 0; g < spec->groups; g++) {
        const float *own = keys + g * size;
        int32_t first = next_expert(own, size, -1);
        groups[g] = rank_of(own[first]);
        groups[g] += spec->group_pairs ? rank_of(own[next_expert(own, size, first)]) : 0;
    }
    for (int64_t i = 0; i < spec->groups; i++) {
        last = next_expert(groups, spec->groups, last);
        for (int64_t e = last * size; i >= spec->group_top_k && e < (last + 1) * size; e++) {
            keys[e] = -INFINITY;
        }
    }
}

/* What experts are chosen by: the logits themselves, where their order does. */
static const float *route_keys(const struct route *job, const float *logits)
{
    bool grouped = job->spec->groups > 1;

    if (job->bias == NULL && !grouped) {
        return logits;
    }
    float *keys = scratch_slice(job->stream);
    if (job->bias != NULL || job->spec->group_pairs) {
        keys_of(job, logits, keys);
    } else {
        memcpy(keys, logits, (size_t)job->experts * sizeof(*keys));
    }
    if (grouped) {
        mask_groups(job, keys, keys + job->experts);
    }
    return keys;
}

static void sigmoid_weights(const struct gpu_route *spec, const float *logits, const int32_t *ids, float *weights)
{
    double sum = 0;

    for (int64_t i = 0; i < spec->top_k; i++) {
        sum += sigmoid_of(logits[ids[i]]);
    }
    sum = spec->normalize ? sum + (double)spec->epsilon : 1;
    for (int64_t i = 0; i < spec->top_k; i++) {
        weights[i] = (float)(sigmoid_of(logits[ids[i]]) / sum * (double)spec->factor);
    }
}

static void softmax_weights(const struct route *job, const float *logits, const int32_t *ids, float *weights)
{
    const struct gpu_route *spec = job->spec;
    /* Of all that is divided by its own sum, the sum over all has gone. */
    bool all = spec->scores == GPU_SCORES_ALL && !spec->normalize;
    double largest = (double)logits[ids[0]], sum = 0;

    for (int64_t i = 0; i < (all ? job->experts : spec->top_k); i++) {
        double logit = (double)logits[all ? i : ids[i]];
        largest = logit > largest ? logit : largest; /* which a bias or groups may have left out */
    }
    for (int64_t i = 0; i < (all ? job->experts : spec->top_k); i++) {
        sum += exp((double)logits[all ? i : ids[i]] - largest);
    }
    for (int64_t i = 0; i < spec->top_k; i++) {
        weights[i] = (float)(exp((double)logits[ids[i]] - largest) / sum * (double)spec->factor);
    }
}

static void route_token(const struct route *job, const float *logits, int32_t *ids, float *weights)
{
    const float *keys = route_keys(job, logits);
    int32_t last = -1;

    for (int64_t i = 0; i < job->spec->top_k; i++) {
        last = next_expert(keys, job->experts, last);
        ids[i] = last;
    }
    if (job->spec->scores == GPU_SCORES_SIGMOID) {
        sigmoid_weights(job->spec, logits, ids, weights);
    } else {
        softmax_weights(job, logits, ids, weights);
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
              const struct tensor *logits, const struct tensor *bias, const struct gpu_route *spec)
{
    struct route job = {.ids = ids->data,
                        .weights = weights->data,
                        .logits = logits->data,
                        .bias = bias != NULL ? bias->data : NULL,
                        .tokens = matrix_rows(logits),
                        .experts = matrix_cols(logits),
                        .spec = spec,
                        .stream = stream};

    if (bias != NULL || spec->groups > 1) {
        TRY(scratch_reserve(stream, 0, scratch_size(2 * job.experts, sizeof(float))));
    }
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
        float *y = job->y + i * job->cols, weight = job->weights != NULL ? job->weights[job->places[i]] : 1;
        for (int64_t c = 0; c < job->cols; c++) {
            y[c] = weight * x[c];
        }
    }
}

int cpu_gather_rows(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x,
                    const struct tensor *places, const struct tensor *weights, int64_t k)
{
    struct rows job = {y->data,        x->data, weights != NULL ? weights->data : NULL, places->data, matrix_rows(y),
                       matrix_cols(y), k};

    stream_run(stream, tiles_of(job.count, ROW_TILE), gather_tile, &job);
    return 0;
}

static void scatter_tile(void *ctx, int64_t task)
{
    const struct rows *job = ctx;

    for (int64_t i = task * ROW_TILE; i < task * ROW_TILE + tile_size(job->count, ROW_TILE, task); i++) {
        const float *x = job->x + i * job->cols;
        float *y = job->y + job->places[i] / job->k * job->cols;
        float weight = job->weights != NULL ? job->weights[job->places[i]] : 1;
        for (int64_t c = 0; c < job->cols; c++) {
            y[c] += weight * x[c];
        }
    }
}

int cpu_scatter_rows(struct gpu_stream *stream, const struct tensor *y, const struct tensor *x,
                     const struct tensor *places, const struct tensor *weights, int64_t k)
{
    struct rows job = {y->data,        x->data, weights != NULL ? weights->data : NULL, places->data, matrix_rows(x),
                       matrix_cols(x), k};

    stream_run(stream, tiles_of(job.count, ROW_TILE), scatter_tile, &job);
    return 0;
}
