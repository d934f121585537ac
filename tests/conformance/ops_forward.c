/* Bodies of the operations that a decoder block is made of, and of the copies around them. */

#include "tests/conformance/ops_bodies.h"

#include "base/cleanup.h"
#include "base/ids.h"
#include "base/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Memory starts zeroed; bytes come back as they went in, also past every staging buffer. variant: bytes. */
int body_copies(struct ops_rig *rig, int variant, struct ops_output *out)
{
    const struct gpu_ops *ops = rig->gpu.ops;
    size_t bytes = (size_t)variant, wrong = 0;
    AUTO_FREE unsigned char *host = NULL;
    struct tensor tensor;

    TRY(mem_buffer(&host, 2 * bytes + 1));
    TRY(ops_new(rig, DTYPE_U8, 1, variant, &tensor));
    TRY(ops->download(rig->stream, host, tensor.data, bytes));
    for (size_t i = 0; i < bytes; i++) {
        wrong += host[i] != 0;
        host[i] = (unsigned char)(i * 2654435761u >> 13);
    }
    TRY(ops->upload(rig->stream, tensor.data, host, bytes));
    TRY(ops->download(rig->stream, host + bytes, tensor.data, bytes));
    wrong += memcmp(host, host + bytes, bytes) != 0;
    TRY(ops->fill_zero(rig->stream, (char *)tensor.data + bytes / 2, bytes - bytes / 2));
    TRY(ops->download(rig->stream, host + bytes, tensor.data, bytes));
    for (size_t i = 0; i < bytes; i++) {
        wrong += host[bytes + i] != (i < bytes / 2 ? host[i] : 0);
    }
    return ops_put_number(out, (double)wrong);
}

static int timed_copies(struct ops_rig *rig, struct gpu_stream *second, struct gpu_event *const events[2],
                        double *seconds)
{
    const struct gpu_ops *ops = rig->gpu.ops;
    struct tensor x, y;

    TRY(ops_random(rig, DTYPE_F32, 64, 64, 5, &x));
    TRY(ops_new(rig, DTYPE_F32, 64, 64, &y));
    TRY(ops->event_record(rig->stream, events[0]));
    TRY(ops->combine(rig->stream, &y, 2, &x, 0, NULL));
    TRY(ops->event_record(rig->stream, events[1]));
    TRY(ops->event_wait(second, events[1]));
    TRY(ops->add(second, &y, &x));
    TRY(ops->event_record(second, events[1]));
    TRY(ops->event_wait(rig->stream, events[1]));
    TRY(ops->event_elapsed(events[0], events[1], seconds));
    return ops->stream_sync(second);
}

/* Two streams that follow each other by events. What comes back: whether time went forward and no more than it did. */
int body_events(struct ops_rig *rig, int variant, struct ops_output *out)
{
    const struct gpu_ops *ops = rig->gpu.ops;
    struct gpu_event *events[2] = {NULL, NULL};
    struct gpu_stream *second = NULL;
    double seconds = -1, begun = clock_monotonic_seconds();

    int rc = ops->stream_new(rig->gpu.device, &second);
    for (int i = 0; rc == 0 && i < 2; i++) {
        rc = ops->event_new(rig->gpu.device, &events[i]);
    }
    if (rc == 0) {
        rc = timed_copies(rig, second, events, &seconds);
    }
    ops->event_free(events[0]);
    ops->event_free(events[1]);
    ops->stream_free(second);
    return rc != 0 ? rc : ops_put_number(out, seconds >= 0 && seconds <= clock_monotonic_seconds() - begun + 1e-3);
}

/* variant: from * 3 + to, in the order F32, F16, BF16. An odd count, so that vectors have a tail. */
int body_convert(struct ops_rig *rig, int variant, struct ops_output *out)
{
    static const enum dtype types[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
    struct tensor x, y;

    TRY(ops_random(rig, types[variant / 3], 13, 101, 1, &x));
    TRY(ops_new(rig, types[variant % 3], 13, 101, &y));
    TRY(rig->gpu.ops->convert(rig->stream, &y, &x));
    TRY(ops_put(rig, out, &y));
    TRY(ops_random(rig, types[variant / 3], 8, 64, 2, &x));
    TRY(ops_new(rig, types[variant % 3], 8, 64, &y));
    TRY(rig->gpu.ops->convert(rig->stream, &y, &x));
    return ops_put(rig, out, &y);
}

struct product {
    int64_t tokens, in, out;
    enum dtype weight;
    bool bias;
};

static const struct product products[] = {
    {37, 96, 51, DTYPE_F32, true},  {64, 128, 256, DTYPE_BF16, false}, {1, 200, 33, DTYPE_F16, true},
    {29, 67, 45, DTYPE_F32, false}, {0, 64, 32, DTYPE_F32, true},      {5, 0, 7, DTYPE_F32, true},
};

/* Near a Hessian's rounding: what is left of large terms is as exact as F32 lets it be. variant: n. */
int body_multiply(struct ops_rig *rig, int variant, struct ops_output *out)
{
    struct tensor x, w, y;

    TRY(ops_random(rig, DTYPE_F32, 29, variant, 75, &x));
    TRY(ops_random(rig, DTYPE_F32, variant, variant, 76, &w));
    TRY(ops_new(rig, DTYPE_F32, 29, variant, &y));
    TRY(rig->gpu.ops->multiply(rig->stream, &y, &x, &w));
    return ops_put(rig, out, &y);
}

/* variant: a row of products. */
int body_linear(struct ops_rig *rig, int variant, struct ops_output *out)
{
    const struct product *p = &products[variant];
    struct tensor x, w, y, bias;

    TRY(ops_random(rig, DTYPE_F32, p->tokens, p->in, 3, &x));
    TRY(ops_random(rig, p->weight, p->out, p->in, 4, &w));
    TRY(ops_random(rig, DTYPE_F32, 1, p->out, 5, &bias));
    TRY(ops_random(rig, DTYPE_F32, p->tokens, p->out, 6, &y)); /* must not matter */
    TRY(rig->gpu.ops->linear(rig->stream, &y, &x, &w, p->bias ? &bias : NULL));
    return ops_put(rig, out, &y);
}

/* variant: the table's type, in the order F32, F16, BF16. */
int body_embed(struct ops_rig *rig, int variant, struct ops_output *out)
{
    static const enum dtype types[] = {DTYPE_F32, DTYPE_F16, DTYPE_BF16};
    static const int32_t ids[] = {3, 0, 39, 3, 17};
    struct tensor table, y;

    TRY(ops_random(rig, types[variant], 40, 72, 7, &table));
    TRY(ops_new(rig, DTYPE_F32, 5, 72, &y));
    TRY(rig->gpu.ops->embed(rig->stream, &y, &table, ids));
    return ops_put(rig, out, &y);
}

static const struct {
    struct gpu_norm spec;
    bool weight, bias;
} norms[] = {
    {{192, false, false, 1e-5f}, true, false}, {{48, false, false, 1e-5f}, true, false},
    {{48, false, true, 1e-6f}, true, false},   {{192, false, false, 1e-5f}, false, false},
    {{192, true, false, 1e-5f}, true, true},   {{192, true, true, 1e-5f}, true, true},
    {{64, true, false, 1e-5f}, true, false},   {{192, true, false, 1e-5f}, false, false},
};

/* variant: a row of norms; rows are 192. In place, as q and k norms are. */
int body_norm(struct ops_rig *rig, int variant, struct ops_output *out)
{
    const struct gpu_norm *spec = &norms[variant].spec;
    struct tensor x, weight, bias;

    TRY(ops_random(rig, DTYPE_F32, 21, 192, 8, &x));
    TRY(ops_random(rig, DTYPE_F32, 1, spec->size, 9, &weight));
    TRY(ops_random(rig, DTYPE_F32, 1, spec->size, 99, &bias));
    TRY(rig->gpu.ops->norm(rig->stream, &x, &x, norms[variant].weight ? &weight : NULL,
                           norms[variant].bias ? &bias : NULL, spec));
    return ops_put(rig, out, &x);
}

static const struct gpu_rope rotations[] = {{9, 32, 32, false, false}, {9, 32, 32, true, false},
                                            {9, 20, 12, false, false}, {9, 20, 6, true, false},
                                            {9, 20, 12, false, true},  {9, 20, 6, true, true}};

/* variant: a row of rotations; three heads, two sequences. */
int body_rope(struct ops_rig *rig, int variant, struct ops_output *out)
{
    const struct gpu_rope *spec = &rotations[variant];
    struct tensor x, cosine, sine;

    TRY(ops_random(rig, DTYPE_F32, 2 * spec->length, 3 * spec->head_dim, 10, &x));
    TRY(ops_random(rig, DTYPE_F32, 12, spec->rotated / 2, 11, &cosine));
    TRY(ops_random(rig, DTYPE_F32, 12, spec->rotated / 2, 12, &sine));
    TRY(rig->gpu.ops->rope(rig->stream, &x, &cosine, &sine, spec));
    return ops_put(rig, out, &x);
}

/* variant: 1 = of one head to all. */
int body_copy_columns(struct ops_rig *rig, int variant, struct ops_output *out)
{
    const struct gpu_columns spec = {
        .heads = 7, .count = 5, .to = 2, .to_stride = 9, .from = 1, .from_stride = variant != 0 ? 0 : 8};
    struct tensor x, y;

    TRY(ops_random(rig, DTYPE_F32, 41, 56, 93, &x));
    TRY(ops_random(rig, DTYPE_F32, 41, 63, 94, &y));
    TRY(rig->gpu.ops->copy_columns(rig->stream, &y, &x, &spec));
    return ops_put(rig, out, &y);
}

static const struct gpu_attention attentions[] = {
    {.sequences = 2, .length = 70, .heads = 4, .kv_heads = 4, .head_dim = 16},
    {.sequences = 2, .length = 33, .heads = 6, .kv_heads = 3, .head_dim = 24},
    {.sequences = 1, .length = 40, .heads = 6, .kv_heads = 1, .head_dim = 16},
    {.sequences = 2, .length = 50, .heads = 8, .kv_heads = 2, .head_dim = 8, .window = 12},
    {.sequences = 1, .length = 2100, .heads = 1, .kv_heads = 1, .head_dim = 8},
    {.sequences = 3, .length = 1, .heads = 2, .kv_heads = 2, .head_dim = 32},
    {.sequences = 1, .length = 31, .heads = 9, .kv_heads = 3, .head_dim = 20},
    {.sequences = 2, .length = 40, .heads = 6, .kv_heads = 3, .head_dim = 24, .value_dim = 16},
    {.sequences = 1, .length = 150, .heads = 4, .kv_heads = 2, .head_dim = 16, .chunk = 32},
    {.sequences = 1, .length = 700, .heads = 2, .kv_heads = 1, .head_dim = 16, .window = 90, .chunk = 128},
    {.sequences = 2, .length = 50, .heads = 4, .kv_heads = 2, .head_dim = 16, .cap = 0.8f},
    {.sequences = 1, .length = 2100, .heads = 2, .kv_heads = 1, .head_dim = 8, .cap = 2.0f},
    {.sequences = 2, .length = 150, .heads = 4, .kv_heads = 2, .head_dim = 128},
    {.sequences = 1, .length = 300, .heads = 2, .kv_heads = 1, .head_dim = 64, .value_dim = 48, .window = 70},
    {.sequences = 1, .length = 530, .heads = 2, .kv_heads = 1, .head_dim = 20},
    {.sequences = 1, .length = 90, .heads = 1, .kv_heads = 1, .head_dim = 256, .value_dim = 96},
};
#define SINKS 16 /* added to a row: with sinks */

/* variant: a row of attentions: a key head for each head, groups, one key head, a window, rows of all lengths, one
 * token, odd sizes, narrower values, chunks, chunks and a window, a cap, a cap of rows of all lengths, wide heads, the
 * same with a window and narrower values, odd sizes past a tile, wider heads; + SINKS.
 */
int body_attention(struct ops_rig *rig, int variant, struct ops_output *out)
{
    struct gpu_attention spec = attentions[variant % SINKS];
    int64_t rows = spec.sequences * spec.length, value_dim = gpu_value_dim(&spec);
    struct tensor q, k, v, o, sinks;

    spec.scale = (float)(1.0 / sqrt((double)spec.head_dim));
    TRY(ops_random(rig, DTYPE_F32, rows, spec.heads * spec.head_dim, 13, &q));
    TRY(ops_random(rig, DTYPE_F32, rows, spec.kv_heads * spec.head_dim, 14, &k));
    TRY(ops_random(rig, DTYPE_F32, rows, spec.kv_heads * value_dim, 15, &v));
    TRY(ops_random(rig, DTYPE_F32, rows, spec.heads * value_dim, 16, &o));
    TRY(ops_random(rig, DTYPE_F32, 1, spec.heads, 95, &sinks));
    spec.sinks = variant >= SINKS ? &sinks : NULL;
    TRY(rig->gpu.ops->attention(rig->stream, &o, &q, &k, &v, &spec));
    return ops_put(rig, out, &o);
}

/* variant: the activation; of gate and up, where y is gate, of a gate of one column, and of gate alone. */
int body_activate(struct ops_rig *rig, int variant, struct ops_output *out)
{
    const struct gpu_ops *ops = rig->gpu.ops;
    enum gpu_activation activation = (enum gpu_activation)variant;
    struct tensor gate, up, one, y;

    TRY(ops_random(rig, DTYPE_F32, 3, 5001, 17, &gate));
    TRY(ops_random(rig, DTYPE_F32, 3, 5001, 18, &up));
    TRY(ops_random(rig, DTYPE_F32, 3, 1, 19, &one));
    TRY(ops_new(rig, DTYPE_F32, 3, 5001, &y));
    TRY(ops->combine(rig->stream, &gate, 5, &gate, 0, NULL));
    TRY(ops->combine(rig->stream, &up, 5, &up, 0, NULL));
    TRY(ops->activate(rig->stream, &y, &one, &up, activation));
    TRY(ops_put(rig, out, &y));
    if (activation != GPU_SWIGLU_CLAMPED) {
        TRY(ops->activate(rig->stream, &y, &gate, NULL, activation));
        TRY(ops_put(rig, out, &y));
    }
    TRY(ops->activate(rig->stream, &gate, &gate, &up, activation));
    return ops_put(rig, out, &gate);
}

int body_soft_cap(struct ops_rig *rig, int variant, struct ops_output *out)
{
    struct tensor x;

    TRY(ops_random(rig, DTYPE_F32, 1, variant, 23, &x));
    TRY(rig->gpu.ops->combine(rig->stream, &x, 40, &x, 0, NULL));
    TRY(rig->gpu.ops->soft_cap(rig->stream, &x, &x, 30));
    return ops_put(rig, out, &x);
}

int body_add(struct ops_rig *rig, int variant, struct ops_output *out)
{
    struct tensor x, y;

    TRY(ops_random(rig, DTYPE_F32, 1, variant, 19, &x));
    TRY(ops_random(rig, DTYPE_F32, 1, variant, 20, &y));
    TRY(rig->gpu.ops->add(rig->stream, &y, &x));
    return ops_put(rig, out, &y);
}

/* variant: 1 = with a reference; 2 = which is the logits. */
int body_nll(struct ops_rig *rig, int variant, struct ops_output *out)
{
    static const int32_t targets[] = {5, -1, 999, 0, 17, 3};
    struct gpu_nll nll = {.nll_sum = 1.5, .kl_sum = 0.25, .count = 2}; /* added to */
    struct tensor logits, reference;

    TRY(ops_random(rig, DTYPE_F32, 6, 1000, 21, &logits));
    TRY(ops_random(rig, DTYPE_F32, 6, 1000, 22, &reference));
    TRY(rig->gpu.ops->nll(rig->stream, &nll, &logits,
                          variant == 2   ? &logits
                          : variant == 1 ? &reference
                                         : NULL,
                          targets));
    TRY(ops_put_number(out, nll.nll_sum));
    TRY(ops_put_number(out, nll.kl_sum));
    TRY(ops_put_number(out, (double)nll.agree));
    return ops_put_number(out, (double)nll.count);
}

/* Bad values at two places; the first counts. variant: its place, or -1 for none. */
int body_find_nonfinite(struct ops_rig *rig, int variant, struct ops_output *out)
{
    int64_t index = -2;
    uint64_t seed = 23;
    struct tensor x;
    float *host = malloc(70000 * sizeof(float));

    if (host == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a body's input");
    }
    for (int i = 0; i < 70000; i++) {
        host[i] = ops_normal(&seed);
    }
    if (variant >= 0) {
        host[variant] = NAN;
        host[69999] = INFINITY;
    }
    int rc = ops_upload(rig, host, 700, 100, &x);
    free(host);
    TRY(rc);
    TRY(rig->gpu.ops->find_nonfinite(rig->stream, &index, &x));
    return ops_put_number(out, (double)index);
}
