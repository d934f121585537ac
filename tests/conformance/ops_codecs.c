/* Bodies of the operations that scale weights, quantize inputs, and code weights by the elements of small types. */

#include "tests/conformance/ops_bodies.h"

#include <stdlib.h>
#include <string.h>

/* variant: 1 = rows, 2 = columns, 3 = both. */
int body_scale(struct ops_rig *rig, int variant, struct ops_output *out)
{
    struct tensor w, rows, cols;

    TRY(ops_random(rig, DTYPE_F32, 19, 53, 47, &w));
    TRY(ops_random(rig, DTYPE_F32, 1, 19, 48, &rows));
    TRY(ops_random(rig, DTYPE_F32, 1, 53, 49, &cols));
    TRY(rig->gpu.ops->scale(rig->stream, &w, (variant & 1) != 0 ? &rows : NULL, (variant & 2) != 0 ? &cols : NULL));
    return ops_put(rig, out, &w);
}

static const struct gpu_input inputs[] = {
    {.element = DTYPE_I8, .dynamic = true},
    {.element = DTYPE_I8, .scale = 0.02f},
    {.element = DTYPE_F8_E4M3, .dynamic = true, .group_size = 32},
    {.element = DTYPE_F8_E4M3, .scale = 0.004f},
    {.element = DTYPE_I8, .dynamic = true, .group_size = 32, .half = true},
    {.element = DTYPE_F8_E4M3, .dynamic = true, .group_size = 48}, /* the last run of a row has 32 */
};

/* variant: a row of inputs, and 8 more for outlier columns, which stay in float. */
int body_quantize_input(struct ops_rig *rig, int variant, struct ops_output *out)
{
    float host[128] = {0};
    struct tensor x, y, keep;

    host[5] = 1.0f;
    host[64] = 1.0f;
    TRY(ops_random(rig, DTYPE_F32, 23, 128, 50, &x));
    TRY(ops_new(rig, DTYPE_F32, 23, 128, &y));
    TRY(ops_upload(rig, host, 1, 128, &keep));
    TRY(rig->gpu.ops->quantize_input(rig->stream, &y, &x, variant >= 8 ? &keep : NULL, &inputs[variant % 8]));
    return ops_put(rig, out, &y);
}

#define TILED_N 21
#define TILED_K 300

static const struct gpu_tiles tiles[] = {
    {DTYPE_F8_E4M3, 1, TILED_K}, {DTYPE_F8_E4M3, TILED_N, TILED_K},
    {DTYPE_F8_E4M3, 16, 64},     {DTYPE_F8_E5M2, 1, TILED_K},
    {DTYPE_I8, 1, TILED_K},      {DTYPE_NF4, 1, 64},
    {DTYPE_NF4, 5, 7},           {DTYPE_F4_E2M1, 1, 32},
};

/* variant: a row of tiles; number 5 takes the weight as one row. The last scale is zero for NF4, too small else. */
int body_tiles(struct ops_rig *rig, int variant, struct ops_output *out)
{
    const struct gpu_ops *ops = rig->gpu.ops;
    const struct gpu_tiles *spec = &tiles[variant];
    int64_t rows = variant == 5 ? 1 : TILED_N, cols = TILED_N * TILED_K / rows;
    int64_t bands = (rows + spec->rows - 1) / spec->rows, groups = (cols + spec->cols - 1) / spec->cols;
    float host[512];
    struct tensor w, absmax, scale, codes, back;

    TRY(ops_random(rig, DTYPE_F32, rows, cols, 57, &w));
    TRY(ops_new(rig, DTYPE_F32, bands, groups, &absmax));
    TRY(ops_new(rig, DTYPE_U8, rows, cols, &codes));
    TRY(ops_new(rig, DTYPE_F32, rows, cols, &back));
    TRY(ops->tile_range(rig->stream, &absmax, &w, spec));
    TRY(ops->download(rig->stream, host, absmax.data, tensor_bytes(&absmax)));
    for (int64_t t = 0; t < bands * groups; t++) {
        host[t] = spec->element == DTYPE_NF4       ? host[t]
                  : spec->element == DTYPE_I8      ? host[t] / 127.0f
                  : spec->element == DTYPE_F4_E2M1 ? host[t] / 6.0f
                                                   : host[t] / 448.0f;
    }
    host[bands * groups - 1] = spec->element == DTYPE_NF4 ? 0.0f : host[bands * groups - 1] / 2.0f; /* saturates */
    TRY(ops_upload(rig, host, bands, groups, &scale));
    TRY(ops->tile_encode(rig->stream, &codes, &w, &scale, spec));
    TRY(ops->tile_decode(rig->stream, &back, &codes, &scale, spec));
    TRY(ops_put(rig, out, &absmax));
    TRY(ops_put(rig, out, &codes));
    return ops_put(rig, out, &back);
}
