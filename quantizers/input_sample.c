/* The sample is stratified: what few inputs do (the first token of each sequence may reach a thousand times farther
 * than any other) has to be in it, and may not count for more than it is. */

#include "quantizers/input_sample.h"

#include "base/err.h"
#include "base/mem.h"
#include "base/random.h"

#include <stdlib.h>

#define SLOTS (INPUT_SAMPLE_ROWS / INPUT_SAMPLE_STRATA)
#define PLACES (SLOTS - 1)

static int input_sample_allocate(struct input_sample *sample, const struct gpu *gpu)
{
    int64_t rows = sample->tokens;

    if (sample->tokens > INPUT_SAMPLE_ROWS) {
        sample->width = (sample->tokens + INPUT_SAMPLE_STRATA - 1) / INPUT_SAMPLE_STRATA;
        sample->strata = (sample->tokens + sample->width - 1) / sample->width;
        rows = sample->strata * SLOTS;
        TRY(mem_buffer(&sample->max, (size_t)sample->strata));
        TRY(mem_buffer(&sample->farthest, (size_t)sample->strata));
        TRY(gpu_tensor_new(gpu, DTYPE_F32, 2, (const int64_t[]){INPUT_SAMPLE_ROWS, 1}, &sample->reach));
    }
    for (int64_t s = 0; s < sample->strata; s++) {
        sample->max[s] = -1;
        sample->farthest[s] = -1;
    }
    return gpu_tensor_new(gpu, DTYPE_F32, 2, (const int64_t[]){rows, sample->columns}, &sample->rows);
}

int input_sample_init(struct input_sample *sample, int64_t tokens, int64_t columns, const struct gpu *gpu)
{
    struct input_sample made = {.columns = columns, .tokens = tokens};

    int rc = input_sample_allocate(&made, gpu);
    if (rc != 0) {
        input_sample_deinit(&made, gpu);
        return err_pass(rc, "sample of %lld inputs of %lld columns", (long long)tokens, (long long)columns);
    }
    *sample = made;
    return 0;
}

static int64_t input_sample_stratum_size(const struct input_sample *sample, int64_t s)
{
    int64_t left = sample->tokens - s * sample->width;

    return left < sample->width ? left : sample->width;
}

/* Different places in stratum s, ascending; returns their number. */
static int input_sample_places(const struct input_sample *sample, int64_t s, int64_t out[PLACES])
{
    int64_t size = input_sample_stratum_size(sample, s);
    int count = 0;

    for (; count < PLACES && count < size; count++) {
        uint64_t state = (uint64_t)s * PLACES + (uint64_t)count;
        int64_t place = (int64_t)(random_next(&state) % (uint64_t)(size - count));
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

static int input_sample_copy_row(struct input_sample *sample, const struct gpu *gpu, struct gpu_stream *stream,
                                 const struct tensor *x, int64_t from, int64_t to)
{
    const struct tensor source = tensor_rows(x, from, 1), place = tensor_rows(&sample->rows, to, 1);

    return gpu->ops->convert(stream, &place, &source);
}

/* The part of x that belongs to one stratum: `count` inputs from its place `first` on, in x from row `at` on. */
static int input_sample_add_part(struct input_sample *sample, const struct gpu *gpu, struct gpu_stream *stream,
                                 const struct tensor *x, const float *reach, int64_t at, int64_t s, int64_t first,
                                 int64_t count)
{
    int64_t places[PLACES], best = -1;
    int found = input_sample_places(sample, s, places);

    for (int64_t i = 0; i < count; i++) {
        if (reach[i] > sample->max[s]) {
            sample->max[s] = reach[i];
            best = i;
        }
    }
    if (best >= 0) {
        sample->farthest[s] = first + best;
        TRY(input_sample_copy_row(sample, gpu, stream, x, at + best, s * SLOTS));
    }
    for (int k = 0; k < found; k++) {
        if (places[k] >= first && places[k] < first + count) {
            TRY(input_sample_copy_row(sample, gpu, stream, x, at + places[k] - first, s * SLOTS + 1 + k));
        }
    }
    return 0;
}

/* Up to INPUT_SAMPLE_ROWS inputs, stratum by stratum. */
static int input_sample_add_some(struct input_sample *sample, const struct gpu *gpu, struct gpu_stream *stream,
                                 const struct tensor *x)
{
    const struct gpu_tiles rows = {.element = DTYPE_I8, .rows = 1, .cols = sample->columns};
    const struct tensor absmax = tensor_rows(&sample->reach, 0, x->shape[0]);
    float reach[INPUT_SAMPLE_ROWS];

    TRY(gpu->ops->tile_range(stream, &absmax, x, &rows));
    TRY(gpu->ops->download(stream, reach, absmax.data, tensor_bytes(&absmax)));
    for (int64_t at = 0, count; at < x->shape[0]; at += count) {
        int64_t s = (sample->seen + at) / sample->width, first = (sample->seen + at) % sample->width;
        count = sample->width - first < x->shape[0] - at ? sample->width - first : x->shape[0] - at;
        TRY(input_sample_add_part(sample, gpu, stream, x, reach + at, at, s, first, count));
    }
    return 0;
}

int input_sample_add(struct input_sample *sample, const struct gpu *gpu, struct gpu_stream *stream,
                     const struct tensor *x)
{
    int64_t tokens = x->shape[0];

    if (tokens > sample->tokens - sample->seen || x->shape[1] != sample->columns) {
        return err_raise(ERR_INTERNAL, "%lld inputs of %lld columns for a sample of %lld of %lld", (long long)tokens,
                         (long long)x->shape[1], (long long)(sample->tokens - sample->seen),
                         (long long)sample->columns);
    }
    if (sample->width == 0) {
        const struct tensor to = tensor_rows(&sample->rows, sample->seen, tokens);
        TRY(gpu->ops->convert(stream, &to, x));
        sample->seen += tokens;
        return 0;
    }
    for (int64_t first = 0; first < tokens; first += INPUT_SAMPLE_ROWS) {
        int64_t left = tokens - first;
        const struct tensor some = tensor_rows(x, first, left < INPUT_SAMPLE_ROWS ? left : INPUT_SAMPLE_ROWS);
        TRY(input_sample_add_some(sample, gpu, stream, &some));
        sample->seen += some.shape[0];
    }
    return 0;
}

void input_sample_weights(const struct input_sample *sample, float *weights)
{
    for (int64_t i = 0; sample->width == 0 && i < sample->rows.shape[0]; i++) {
        weights[i] = 1;
    }
    for (int64_t s = 0; s < sample->strata; s++) {
        int64_t places[PLACES], size = input_sample_stratum_size(sample, s);
        int found = input_sample_places(sample, s, places), others = 0;
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
    free(sample->max);
    free(sample->farthest);
    *sample = (struct input_sample){0};
}
