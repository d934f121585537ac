/* Bodies of the searches and of what codebooks need. */

#include "tests/conformance/ops_bodies.h"

#include "gpu/ggml_blocks.h"

#include <math.h>
#include <stdlib.h>

/* variant: a type, negative with importance. With a search and without; the first block is of zeros. */
int body_encode_blocks(struct ops_rig *rig, int variant, struct ops_output *out)
{
    int64_t bytes = ggml_row_bytes(abs(variant), 512);
    struct tensor w, importance, blocks;
    float host[512];
    uint64_t seed = 61;

    for (int i = 0; i < 512; i++) {
        host[i] = i % 9 == 0 ? 0.0f : fabsf(ops_normal(&seed));
    }
    TRY(ops_random(rig, DTYPE_F32, 5, 512, 60, &w));
    TRY(ops_upload(rig, host, 1, 512, &importance));
    TRY(ops_new(rig, DTYPE_U8, 5, bytes, &blocks));
    TRY(rig->gpu.ops->fill_zero(rig->stream, w.data, 256 * sizeof(float)));
    for (int search = 0; search < 2; search++) {
        const struct gpu_blocks spec = {.type = abs(variant), .search = search != 0};
        TRY(rig->gpu.ops->encode_blocks(rig->stream, &blocks, &w, variant < 0 ? &importance : NULL, &spec));
        TRY(ops_put(rig, out, &blocks));
    }
    return 0;
}

int body_row_dot(struct ops_rig *rig, int variant, struct ops_output *out)
{
    struct tensor a, b, sums;

    TRY(ops_random(rig, DTYPE_F32, 21, variant, 62, &a));
    TRY(ops_random(rig, DTYPE_F32, 21, variant, 63, &b));
    TRY(ops_new(rig, DTYPE_F32, 1, 21, &sums));
    TRY(rig->gpu.ops->row_dot(rig->stream, &sums, &a, &b));
    return ops_put(rig, out, &sums);
}

static const struct refine_row {
    bool hqq;
    struct gpu_grid grid;
} refines[] = {
    {false, {.bits = 3, .group_size = 32, .max_shrink = 0.5, .steps = 20, .scale_dtype = DTYPE_F16}},
    {true, {.bits = 3, .group_size = 32, .scale_dtype = DTYPE_F16}},
    {false, {.bits = 4, .group_size = 12, .sym = true, .max_shrink = 0.3, .steps = 10, .scale_dtype = DTYPE_F32}},
    {true, {.bits = 4, .group_size = 96, .scale_dtype = DTYPE_F32}},
    {false, {.bits = 2, .group_size = 96, .max_shrink = 0, .steps = 1, .scale_dtype = DTYPE_BF16}},
};

/* variant: a row of refines. The first weights are zeros: a complete group where groups are small. */
int body_refine(struct ops_rig *rig, int variant, struct ops_output *out)
{
    const struct refine_row *row = &refines[variant];
    int64_t groups = 96 / row->grid.group_size;
    struct tensor w, h, x, scale, zero;

    TRY(ops_random(rig, DTYPE_F32, 7, 96, 64, &w));
    TRY(ops_random(rig, DTYPE_F32, 200, 96, 65, &x));
    TRY(ops_new(rig, DTYPE_F32, 96, 96, &h));
    TRY(ops_new(rig, DTYPE_F32, 7, groups, &scale));
    TRY(ops_new(rig, DTYPE_F32, 7, groups, &zero));
    TRY(rig->gpu.ops->fill_zero(rig->stream, w.data, 12 * sizeof(float)));
    TRY(rig->gpu.ops->gram(rig->stream, &h, &x));
    TRY(rig->gpu.ops->symmetrize(rig->stream, &h, 0.01));
    TRY(rig->gpu.ops->grid(rig->stream, &scale, &zero, &w, NULL, &row->grid));
    TRY(row->hqq ? rig->gpu.ops->hqq(rig->stream, &scale, &zero, &w, &row->grid)
                 : rig->gpu.ops->clip(rig->stream, &scale, &zero, &w, &h, &row->grid));
    TRY(ops_put(rig, out, &scale));
    return ops_put(rig, out, &zero);
}

/* variant: bits, negative for weights of importance and outlier marks, many of them equal. */
int body_cluster_rows(struct ops_rig *rig, int variant, struct ops_output *out)
{
    enum { ROWS = 5, COLS = 300 };
    int bits = abs(variant);
    struct tensor w, table, codes, importance, outliers;
    float weights[ROWS * COLS], host[COLS];
    uint8_t marks[ROWS * COLS];
    uint64_t seed = 66;

    for (int i = 0; i < ROWS * COLS; i++) {
        weights[i] = variant > 0 ? ops_normal(&seed) : 0.05f * rintf(8.0f * ops_normal(&seed));
        marks[i] = i / COLS == 2 || i % 7 == 3;
    }
    for (int i = 0; i < COLS; i++) {
        host[i] = i % 5 == 0 ? 0.0f : fabsf(ops_normal(&seed));
    }
    TRY(ops_upload(rig, weights, ROWS, COLS, &w));
    TRY(ops_upload(rig, host, 1, COLS, &importance));
    TRY(ops_new(rig, DTYPE_U8, ROWS, COLS, &outliers));
    TRY(rig->gpu.ops->upload(rig->stream, outliers.data, marks, sizeof(marks)));
    TRY(ops_new(rig, DTYPE_F32, ROWS, (int64_t)1 << bits, &table));
    TRY(ops_new(rig, DTYPE_U8, ROWS, COLS, &codes));
    TRY(rig->gpu.ops->cluster_rows(rig->stream, &table, &codes, &w, variant < 0 ? &importance : NULL,
                                   variant < 0 ? &outliers : NULL, bits, variant < 0 ? DTYPE_BF16 : DTYPE_F16));
    TRY(ops_put(rig, out, &table));
    return ops_put(rig, out, &codes);
}

static const struct code_row {
    struct gpu_codebook spec;
    bool h, importance;
} codes[] = {
    {{.codebooks = 1, .bits = 4, .group_size = 8, .beam = 2}, false, false},
    {{.codebooks = 2, .bits = 4, .group_size = 8, .beam = 2}, false, false},
    {{.codebooks = 2, .bits = 4, .group_size = 16, .beam = 3}, true, false},
    {{.codebooks = 2, .bits = 11, .group_size = 20, .beam = 3}, false, true},
    {{.codebooks = 4, .bits = 1, .group_size = 32, .beam = 8}, true, false},
    {{.codebooks = 1, .bits = 8, .group_size = 1}, false, false},
};
#define CODE_ROWS 9
#define CODE_COLS 160 /* more than one block of columns */

/* Codes of vectors: a search, another from where it ended, what they stand for, and the way back. variant: a row of
 * codes. */
int body_codebook(struct ops_rig *rig, int variant, struct ops_output *out)
{
    const struct code_row *row = &codes[variant];
    const struct gpu_codebook *spec = &row->spec;
    const struct gpu_ops *ops = rig->gpu.ops;
    int64_t vectors = (int64_t)spec->codebooks << spec->bits, groups = CODE_COLS / spec->group_size;
    struct tensor d, scale, table, entries, y, sums, h, x, importance;
    double gain = -1, more = -1;

    TRY(ops_random(rig, DTYPE_F32, CODE_ROWS, CODE_COLS, 67, &d));
    TRY(ops_random(rig, DTYPE_F32, vectors, spec->group_size, 68, &table));
    TRY(ops_random(rig, DTYPE_F32, 1, CODE_ROWS, 69, &scale));
    TRY(ops_random(rig, DTYPE_F32, 200, CODE_COLS, 73, &x));
    TRY(ops_random(rig, DTYPE_F32, 1, CODE_COLS, 74, &importance));
    TRY(ops_new(rig, DTYPE_F32, CODE_COLS, CODE_COLS, &h));
    TRY(ops_new(rig, DTYPE_U16, CODE_ROWS, groups * spec->codebooks, &entries));
    TRY(ops_new(rig, DTYPE_F32, CODE_ROWS, CODE_COLS, &y));
    TRY(ops_new(rig, DTYPE_F32, vectors, spec->group_size, &sums));
    TRY(ops->gram(rig->stream, &h, &x));
    TRY(ops->symmetrize(rig->stream, &h, 0.01));
    TRY(ops->code_search(rig->stream, &entries, &d, &scale, &table, row->h ? &h : NULL,
                         row->importance ? &importance : NULL, spec, &gain));
    TRY(ops->code_search(rig->stream, &entries, &d, &scale, &table, row->h ? &h : NULL,
                         row->importance ? &importance : NULL, spec, &more));
    TRY(ops->code_expand(rig->stream, &y, &entries, &scale, &table, spec, 1.0f, false));
    TRY(ops->code_expand(rig->stream, &y, &entries, NULL, &table, spec, -0.3f, true));
    TRY(ops->code_reduce(rig->stream, &sums, &d, &entries, &scale, spec));
    if (!(gain > 0) || !(more >= 0)) {
        return err_raise(ERR_INTERNAL, "searches that gained %g, then %g", gain, more);
    }
    TRY(ops_put_number(out, gain));
    TRY(ops_put_number(out, more));
    TRY(ops_put(rig, out, &d));
    TRY(ops_put(rig, out, &y));
    return ops_put(rig, out, &sums);
}

/* Rows whose scores overflow, or are NaN from the first codebook on, next to a row of finite ones: they keep the
 * codes that they have. variant: 0 = scales whose squares are infinite, 1 = a weight that is NaN. */
int body_codebook_nonfinite(struct ops_rig *rig, int variant, struct ops_output *out)
{
    const struct gpu_codebook spec = {.codebooks = 3, .bits = 5, .group_size = 8, .beam = 3};
    uint16_t host[3 * 2 * 3];
    const struct gpu_ops *ops = rig->gpu.ops;
    float values[3 * 16], scales[] = {1.5f, variant == 0 ? 3e30f : 1.25f, 0.75f};
    struct tensor d, scale, table, entries;
    uint64_t seed = 77;
    double gain = -1;

    for (int i = 0; i < 3 * 16; i++) {
        values[i] = variant == 1 && i / 16 == 1 ? NAN : ops_normal(&seed);
    }
    for (int i = 0; i < 3 * 2 * 3; i++) {
        host[i] = (uint16_t)(i * 7 % 32);
    }
    TRY(ops_upload(rig, values, 3, 16, &d));
    TRY(ops_upload(rig, scales, 1, 3, &scale));
    TRY(ops_random(rig, DTYPE_F32, 3 << 5, 8, 78, &table));
    TRY(ops_new(rig, DTYPE_U16, 3, 2 * 3, &entries));
    TRY(ops->upload(rig->stream, entries.data, host, sizeof(host)));
    TRY(ops->code_search(rig->stream, &entries, &d, &scale, &table, NULL, NULL, &spec, &gain));
    TRY(ops->download(rig->stream, host, entries.data, sizeof(host)));
    for (size_t i = 0; i < sizeof(host) / sizeof(host[0]); i++) {
        TRY(ops_put_number(out, (double)host[i]));
    }
    return 0;
}

/* Keys and values as caches give them back. variant: 0 = INT8 and groups of values, 1 = E4M3 and groups of a channel
 * whose last is short. */
static int quantize_both(struct ops_rig *rig, int variant, const struct tensor *k, const struct tensor *v,
                         struct tensor *kq, struct tensor *vq)
{
    const float scales[] = {0.02f, 0.03f};
    struct tensor scale;

    TRY(ops_upload(rig, scales, 1, 2, &scale));
    const struct gpu_cache keys = {
        .element = variant == 0 ? DTYPE_I8 : DTYPE_F8_E4M3, .scale = &scale, .group_size = k->shape[1] / 2};
    const struct gpu_cache values = {.element = DTYPE_U8,
                                     .bits = variant == 0 ? 4 : 2,
                                     .group_size = variant == 0 ? 32 : 1,
                                     .tokens = variant == 0 ? 8 : 10,
                                     .length = 24};
    TRY(ops_new(rig, DTYPE_F32, 48, k->shape[1], kq));
    TRY(ops_new(rig, DTYPE_F32, 48, 32, vq));
    TRY(rig->gpu.ops->quantize_cache(rig->stream, kq, k, &keys));
    return rig->gpu.ops->quantize_cache(rig->stream, vq, v, &values);
}

int body_cache(struct ops_rig *rig, int variant, struct ops_output *out)
{
    struct tensor k, v, kq, vq;

    TRY(ops_random(rig, DTYPE_F32, 48, 32, 71, &k));
    TRY(ops_random(rig, DTYPE_F32, 48, 32, 72, &v));
    TRY(quantize_both(rig, variant, &k, &v, &kq, &vq));
    TRY(ops_put(rig, out, &kq));
    return ops_put(rig, out, &vq);
}

#define OTHER_ATTENTION 100 /* added to recent: chunks, narrower values, a cap and sinks */

/* What attention loses by it, in two sequences. variant: recent, negative for a window; + OTHER_ATTENTION. */
int body_attention_error(struct ops_rig *rig, int variant, struct ops_output *out)
{
    bool other = variant >= OTHER_ATTENTION;
    struct gpu_attention_error error = {0};
    struct tensor q, k, v, kq, vq, sinks;
    const struct gpu_attention spec = {.sequences = 2,
                                       .length = 24,
                                       .heads = 6,
                                       .kv_heads = 2,
                                       .head_dim = other ? 32 : 16,
                                       .window = variant < 0 ? 7 : 0,
                                       .scale = 0.25f,
                                       .value_dim = 16,
                                       .chunk = other ? 9 : 0,
                                       .cap = other ? 1.5f : 0,
                                       .sinks = other ? &sinks : NULL};

    TRY(ops_random(rig, DTYPE_F32, 48, 6 * spec.head_dim, 70, &q));
    TRY(ops_random(rig, DTYPE_F32, 48, 2 * spec.head_dim, 71, &k));
    TRY(ops_random(rig, DTYPE_F32, 48, 32, 72, &v));
    TRY(ops_random(rig, DTYPE_F32, 1, 6, 73, &sinks));
    TRY(quantize_both(rig, 0, &k, &v, &kq, &vq));
    TRY(rig->gpu.ops->attention_error(rig->stream, &error, &q, &k, &v, &kq, &vq, &spec,
                                      abs(variant) % OTHER_ATTENTION));
    const double all[] = {error.score_error,   error.score_signal, error.weight_error,
                          error.weight_signal, error.output_error, error.output_signal};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        TRY(ops_put_number(out, log(all[i]))); /* of one size, so that none is hidden by another */
    }
    return 0;
}
