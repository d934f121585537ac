/* The sample is stratified: what few inputs do (the first token of each sequence may reach a thousand times farther
 * than any other) has to be in it, and may not count for more than it is. */

#include "quantizers/input_sample.h"

#include "base/err.h"

#include <stdlib.h>

#define SLOTS (INPUT_SAMPLE_ROWS / INPUT_SAMPLE_STRATA)
#define PLACES (SLOTS - 1)

int input_sample_init(struct input_sample *sample, int64_t tokens, int64_t columns, const struct gpu *gpu)
{
    struct input_sample made = {.columns = columns, .tokens = tokens};
    int64_t rows = tokens;

    if (tokens > INPUT_SAMPLE_ROWS) {
        made.width = (tokens + INPUT_SAMPLE_STRATA - 1) / INPUT_SAMPLE_STRATA;
        made.strata = (tokens + made.width - 1) / made.width;
        rows = made.strata * SLOTS;
        made.most = malloc((size_t)made.strata * sizeof(*made.most));
        made.farthest = malloc((size_t)made.strata * sizeof(*made.farthest));
    }
    int rc = made.width > 0 && (made.most == NULL || made.farthest == NULL)
                 ? err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a sample of %lld inputs", (long long)tokens)
                 : gpu_tensor_new(gpu, DTYPE_F32, 2, (const int64_t[]){rows, columns}, &made.rows);
    if (made.width > 0) {
        rc = rc != 0 ? rc : gpu_tensor_new(gpu, DTYPE_F32, 2, (const int64_t[]){INPUT_SAMPLE_ROWS, 1}, &made.reach);
    }
    if (rc != 0) {
        input_sample_deinit(&made, gpu);
        return err_pass(rc, "sample of %lld inputs of %lld columns", (long long)tokens, (long long)columns);
    }
    for (int64_t s = 0; s < made.strata; s++) {
        made.most[s] = -1;
        made.farthest[s] = -1;
    }
    *sample = made;
    return 0;
}

/* splitmix64 */
static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static int64_t run_size(const struct input_sample *sample, int64_t s)
{
    int64_t left = sample->tokens - s * sample->width;

    return left < sample->width ? left : sample->width;
}

/* Different places of run s, ascending; their number. */
static int places_of(const struct input_sample *sample, int64_t s, int64_t out[PLACES])
{
    int64_t size = run_size(sample, s);
    int count = 0;

    for (; count < PLACES && count < size; count++) {
        int64_t place = (int64_t)(mix((uint64_t)s * PLACES + (uint64_t)count) % (uint64_t)(size - count));
        int at = 0;
        for (; at < count && out[at] <= place; at++) { /* the place-th of those not taken */
            place++;
        }
        for (int k = count; k > at; k--) {
            out[k] = out[k - 1];
        }
        out[at] = place;
    }
    return count;
}

static int keep_row(struct input_sample *sample, const struct gpu *gpu, struct gpu_stream *stream,
                    const struct tensor *x, int64_t from, int64_t to)
{
    const struct tensor source = tensor_rows(x, from, 1), place = tensor_rows(&sample->rows, to, 1);

    return gpu->ops->convert(stream, &place, &source);
}

/* The part of x that belongs to one run: `count` inputs from its place `first` on, in x from row `at` on. */
static int add_part(struct input_sample *sample, const struct gpu *gpu, struct gpu_stream *stream,
                    const struct tensor *x, const float *reach, int64_t at, int64_t s, int64_t first, int64_t count)
{
    int64_t places[PLACES], best = -1;
    int found = places_of(sample, s, places), rc = 0;

    for (int64_t i = 0; i < count; i++) {
        if (reach[i] > sample->most[s]) {
            sample->most[s] = reach[i];
            best = i;
        }
    }
    if (best >= 0) {
        sample->farthest[s] = first + best;
        rc = keep_row(sample, gpu, stream, x, at + best, s * SLOTS);
    }
    for (int k = 0; rc == 0 && k < found; k++) {
        if (places[k] >= first && places[k] < first + count) {
            rc = keep_row(sample, gpu, stream, x, at + places[k] - first, s * SLOTS + 1 + k);
        }
    }
    return rc;
}

/* Up to INPUT_SAMPLE_ROWS inputs, run by run. */
static int add_some(struct input_sample *sample, const struct gpu *gpu, struct gpu_stream *stream,
                    const struct tensor *x)
{
    const struct gpu_tiles rows = {.element = DTYPE_I8, .rows = 1, .cols = sample->columns};
    const struct tensor most = tensor_rows(&sample->reach, 0, x->shape[0]);
    float reach[INPUT_SAMPLE_ROWS];

    int rc = gpu->ops->tile_range(stream, &most, x, &rows);
    rc = rc != 0 ? rc : gpu->ops->download(stream, reach, most.data, tensor_bytes(&most));
    for (int64_t at = 0, count; rc == 0 && at < x->shape[0]; at += count) {
        int64_t s = (sample->seen + at) / sample->width, first = (sample->seen + at) % sample->width;
        count = sample->width - first < x->shape[0] - at ? sample->width - first : x->shape[0] - at;
        rc = add_part(sample, gpu, stream, x, reach + at, at, s, first, count);
    }
    return rc;
}

int input_sample_add(struct input_sample *sample, const struct gpu *gpu, struct gpu_stream *stream,
                     const struct tensor *x)
{
    int64_t tokens = x->shape[0];
    int rc = 0;

    if (tokens > sample->tokens - sample->seen || x->shape[1] != sample->columns) {
        return err_raise(ERR_INTERNAL, "%lld inputs of %lld columns for a sample of %lld of %lld", (long long)tokens,
                         (long long)x->shape[1], (long long)(sample->tokens - sample->seen),
                         (long long)sample->columns);
    }
    if (sample->width == 0) {
        const struct tensor to = tensor_rows(&sample->rows, sample->seen, tokens);
        rc = gpu->ops->convert(stream, &to, x);
        sample->seen += rc == 0 ? tokens : 0;
        return rc;
    }
    for (int64_t first = 0; rc == 0 && first < tokens; first += INPUT_SAMPLE_ROWS) {
        int64_t left = tokens - first;
        const struct tensor some = tensor_rows(x, first, left < INPUT_SAMPLE_ROWS ? left : INPUT_SAMPLE_ROWS);
        rc = add_some(sample, gpu, stream, &some);
        sample->seen += rc == 0 ? some.shape[0] : 0;
    }
    return rc;
}

void input_sample_weights(const struct input_sample *sample, float *weights)
{
    for (int64_t i = 0; sample->width == 0 && i < sample->rows.shape[0]; i++) {
        weights[i] = 1;
    }
    for (int64_t s = 0; s < sample->strata; s++) {
        int64_t places[PLACES], size = run_size(sample, s);
        int found = places_of(sample, s, places), others = 0;
        bool any = sample->farthest[s] >= 0;
        for (int k = 0; k < found; k++) {
            others += places[k] != sample->farthest[s];
        }
        weights[s * SLOTS] = any ? 1 : 0;
        for (int k = 0; k < PLACES; k++) {
            bool counts = k < found && places[k] != sample->farthest[s];
            weights[s * SLOTS + 1 + k] = counts ? (float)(size - any) / (float)others : 0;
        }
    }
}

void input_sample_deinit(struct input_sample *sample, const struct gpu *gpu)
{
    gpu_tensor_free(gpu, &sample->rows);
    gpu_tensor_free(gpu, &sample->reach);
    free(sample->most);
    free(sample->farthest);
    *sample = (struct input_sample){0};
}
