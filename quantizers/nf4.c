/* NF4: sixteen fixed levels, dense where normally distributed weights are (Dettmers et al. 2023, arXiv 2305.14314,
 * appendix E; QLoRA), in blocks of the weight laid out flat.
 *
 * A block's scale is its largest magnitude. Double quantization stores the scales themselves in eight bits: less their
 * mean, in blocks of 256 with a scale each, as codes of a map with seven decades (qtensor_nested_levels). Codes are
 * made for the scale that the reader will decode, not for the one it was made from: what the first rounding lost, the
 * second takes up where it can. Without double quantization the bytes are those of the reference, bit for bit. */

#include "quantizers/common.h"

#include "base/err.h"
#include "base/ids.h"

#include <math.h>
#include <stdlib.h>

struct nf4_params {
    struct quant_base base;
    int64_t bnb_4bit_blocksize;
    bool bnb_4bit_use_double_quant;
};

static const char *const block_choices[] = {"32", "64", "128", "256", "512", "1024", "2048", "4096", NULL};

static int nf4_scheme(const void *params, int64_t rows, int64_t cols, struct qscheme *out)
{
    const struct nf4_params *p = params;

    TRY(quant_check_shape(rows, cols));
    *out = (struct qscheme){.kind = QTENSOR_NF4,
                            .bits = 4,
                            .group_size = p->bnb_4bit_blocksize,
                            .nested = p->bnb_4bit_use_double_quant,
                            .scale_dtype = DTYPE_F32};
    return 0;
}

/* Number of midpoints between neighbouring levels that lie below x: the nearest level, ties to the lower one. */
static uint8_t nf4_nearest(const float *midpoints, int count, float x)
{
    int low = 0, high = count;

    while (low < high) {
        int at = (low + high) / 2;
        if (midpoints[at] < x) {
            low = at + 1;
        } else {
            high = at;
        }
    }
    return (uint8_t)low;
}

/* Scales to codes (zeros) and tables, and back to what those stand for. */
static void nf4_nest_scales(struct qtensor *q)
{
    int64_t nested = (q->groups + QTENSOR_NESTED_BLOCK - 1) / QTENSOR_NESTED_BLOCK;
    float levels[256], midpoints[255], *offset = &q->tables[nested];
    double sum = 0;

    qtensor_nested_levels(levels);
    for (int i = 0; i < 255; i++) {
        midpoints[i] = (levels[i] + levels[i + 1]) / 2.0f;
    }
    for (int64_t i = 0; i < q->groups; i++) {
        sum += (double)q->scales[i];
    }
    *offset = (float)(sum / (double)q->groups);
    for (int64_t i = 0; i < q->groups; i++) {
        float *max = &q->tables[i / QTENSOR_NESTED_BLOCK], magnitude = fabsf(q->scales[i] - *offset);
        *max = magnitude > *max ? magnitude : *max;
    }
    for (int64_t i = 0; i < q->groups; i++) {
        float max = q->tables[i / QTENSOR_NESTED_BLOCK];
        float x = max > 0 ? (q->scales[i] - *offset) * (1.0f / max) : 0.0f;
        q->zeros[i] = nf4_nearest(midpoints, 255, isfinite(x) ? fminf(fmaxf(x, -1.0f), 1.0f) : 0.0f);
        q->scales[i] = levels[q->zeros[i]] * max + *offset;
    }
}

/* Magnitudes become scales. A block of zeros keeps scale zero, as the reference does. */
static void nf4_store_scales(struct qtensor *q)
{
    for (int64_t i = 0; i < q->groups; i++) {
        q->scales[i] = q->scales[i] > 0 ? quant_store_scale(q->scales[i], q->scheme.scale_dtype) : 0.0f;
    }
    if (q->scheme.nested) {
        nf4_nest_scales(q);
    }
}

static int nf4_solve_linear(const struct solve_context *context, const struct layer_stats *stats,
                            struct linear_job *job)
{
    double start = clock_monotonic_seconds();
    int64_t rows = job->weight->shape[0], cols = job->weight->shape[1];
    const struct tensor flat = tensor_2d(job->weight->data, DTYPE_F32, 1, rows * cols);
    AUTO(qtensor) struct qtensor q = {0};
    struct qscheme made;

    (void)stats;
    TRY(nf4_scheme(job->params, rows, cols, &made));
    made.scale_dtype = context->scale_dtype;
    const struct gpu_tiles tiles = qtensor_tiles(&made);
    TRY(quant_check_finite(context, job));
    TRY(quant_tile_new(context, job->name, &made, rows, cols, &q));
    TRY(quant_tile_range(context, &flat, &tiles, &q));
    nf4_store_scales(&q);
    TRY(quant_tile_encode(context, &flat, &tiles, job, &q));
    job->result = qtensor_move(&q);
    job->loss = NAN;
    job->seconds = clock_monotonic_seconds() - start;
    return 0;
}

static bool nf4_data_free(const void *params)
{
    (void)params;
    return true;
}

/* Blocks of the flat weight that end with a row; what nests their scales looks at all of them. */
static bool nf4_rows_alone(const void *params, int64_t cols)
{
    const struct nf4_params *p = params;

    return cols % p->bnb_4bit_blocksize == 0 && !p->bnb_4bit_use_double_quant;
}

static int nf4_solve(const struct solve_context *context, const struct layer_stats *stats, struct linear_job *jobs,
                     int count)
{
    return quant_each(context, stats, jobs, count, nf4_solve_linear);
}

static const char *const block_names[] = {"blocksize", NULL};
static const char *const double_names[] = {"double_quant", NULL};

static const struct params_row nf4_rows[] = {
    QUANT_ROW(PARAMS_INT, nf4_params, bnb_4bit_blocksize, "64", .choices = block_choices, .aliases = block_names,
              .help = "Weights, row after row, that share a scale."),
    QUANT_ROW(PARAMS_BOOL, nf4_params, bnb_4bit_use_double_quant, "false", .aliases = double_names,
              .help = "Store the scales in eight bits: 4.13 bits a weight instead of 4.5, for a little more error."),
    {.name = NULL},
};

static const struct params_row *const nf4_params_tables[] = {quant_base_rows, nf4_rows, NULL};

const struct quantizer quantizer_nf4 = {
    .name = "nf4",
    .title = "NF4",
    .help =
        "Four-bit codes of sixteen fixed levels that suit normally distributed weights, with a scale for each "
        "block. Needs no calibration; the frozen base of adapter training (Dettmers et al. 2023, arXiv 2305.14314).",
    .stats = STATS_NONE,
    .data_free = nf4_data_free,
    .rows_alone = nf4_rows_alone,
    .params = nf4_params_tables,
    .params_size = sizeof(struct nf4_params),
    .check = quant_base_check,
    .scheme = nf4_scheme,
    .solve = nf4_solve,
};
