/* Static scales of a key and value cache: s = absmax / 448 for E4M3 or / 127 for INT8, over all
 * calibration tokens, of keys after their rotation and of values, for a block's heads together or one by one. */

#include "models/cache.h"

#include "base/err.h"
#include "base/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int cache_ranges_init(struct cache_ranges *ranges, const struct plan_attention *attention, const struct gpu *gpu)
{
    int64_t key_width = attention->kv_heads * attention->head_dim;
    int64_t value_width = attention->kv_heads * attention->value_dim;
    AUTO_TENSOR(keys, gpu);

    TRY(gpu_tensor_new(gpu, DTYPE_F32, 1, &key_width, &keys));
    TRY(gpu_tensor_new(gpu, DTYPE_F32, 1, &value_width, &ranges->values));
    ranges->keys = tensor_move(&keys);
    return 0;
}

void cache_ranges_deinit(struct cache_ranges *ranges, const struct gpu *gpu)
{
    gpu_tensor_free(gpu, &ranges->keys);
    gpu_tensor_free(gpu, &ranges->values);
}

int cache_ranges_add(struct cache_ranges *ranges, const struct block_heads *heads, const struct gpu *gpu,
                     struct gpu_stream *stream)
{
    TRY(gpu->ops->column_stats(stream, &ranges->keys, NULL, &heads->k));
    return gpu->ops->column_stats(stream, &ranges->values, NULL, &heads->v);
}

/* scales[i] of `count` for each group of columns: as many groups as scales. */
static int make_scales(const float *absmax, int64_t count, int64_t columns, const struct cache_scheme *scheme,
                       enum dtype dtype, float *scales)
{
    int64_t width = columns / count;
    float largest = (float)dtype_rows[scheme->element].max;

    for (int64_t i = 0; i < count; i++) {
        float range = 0;
        for (int64_t j = 0; j < width; j++) {
            float at = absmax[i * width + j];
            range = at > range || isnan(at) ? at : range;
        }
        scales[i] = dtype_round(range / largest, dtype);
        if (!isfinite(scales[i])) {
            return err_raise(ERR_NON_FINITE_VALUE, "the cache's range %g has no scale in %s", (double)range,
                             dtype_rows[dtype].name);
        }
        /* Values too small for any scale get the smallest scale, not one that rounds them all to zero. */
        float min = dtype_min_scale(dtype);
        scales[i] = scales[i] > 0 ? scales[i] : range > 0 ? min : 1.0f;
    }
    return 0;
}

int cache_scales_make(const struct cache_ranges *ranges, const struct plan_attention *attention,
                      const struct cache_scheme *scheme, enum dtype dtype, const struct gpu *gpu,
                      struct gpu_stream *stream, struct cache_scales *out)
{
    int64_t key_columns = tensor_count(&ranges->keys), value_columns = tensor_count(&ranges->values);
    int64_t count = scheme->per_head ? attention->kv_heads : 1;
    AUTO_FREE float *absmax = NULL, *keys = NULL, *values = NULL;

    TRY(mem_array(&absmax, (size_t)(key_columns > value_columns ? key_columns : value_columns)));
    TRY(mem_array(&keys, (size_t)count));
    TRY(mem_array(&values, (size_t)count));
    TRY(gpu->ops->download(stream, absmax, ranges->keys.data, (size_t)key_columns * sizeof(float)));
    TRY(make_scales(absmax, count, key_columns, scheme, dtype, keys));
    TRY(gpu->ops->download(stream, absmax, ranges->values.data, (size_t)value_columns * sizeof(float)));
    TRY(make_scales(absmax, count, value_columns, scheme, dtype, values));
    *out = (struct cache_scales){.count = count, .keys = MOVE(keys), .values = MOVE(values)};
    return 0;
}

void cache_scales_deinit(struct cache_scales *scales)
{
    free(scales->keys);
    free(scales->values);
    *scales = (struct cache_scales){0};
}

static int cache_place_scales(struct tensor *tensor, struct gpu_cache *cache, const float *scales, int64_t count,
                              int64_t columns, enum dtype element, const struct gpu *gpu, struct gpu_stream *stream)
{
    gpu_tensor_free(gpu, tensor);
    TRY(gpu_tensor_from_host(gpu, stream, DTYPE_F32, 1, &count, scales, tensor));
    *cache = (struct gpu_cache){.element = element, .scale = tensor, .group_size = columns / count};
    return 0;
}

int cache_place(struct block *block, const struct cache_scheme *scheme, const struct cache_scales *scales,
                const struct gpu *gpu, struct gpu_stream *stream)
{
    const struct plan_attention *attention = &block->plan->steps[plan_find_step(block->plan, STEP_ATTENTION)].attention;

    TRY(cache_place_scales(&block->key_scale, &block->key_cache, scales->keys, scales->count,
                           attention->kv_heads * attention->head_dim, scheme->element, gpu, stream));
    return cache_place_scales(&block->value_scale, &block->value_cache, scales->values, scales->count,
                              attention->kv_heads * attention->value_dim, scheme->element, gpu, stream);
}
