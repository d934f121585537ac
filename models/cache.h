#pragma once
/* Scales of a quantized key and value cache: one for all heads of a block, or one for each, from what calibration
 * inputs reach. */

#include "models/block.h"

/* How a runtime keeps keys and values; F32: as they are. */
struct cache_scheme {
    enum dtype element; /* I8 or F8_E4M3 */
    bool per_head;
};

/* Largest magnitudes of keys and values so far. Device memory; owned by cache_ranges_*. */
struct cache_ranges {
    struct tensor keys, values; /* F32 [kv_heads * head_dim], [kv_heads * value_dim] */
};
int cache_ranges_init(struct cache_ranges *ranges, const struct plan_attention *attention, const struct gpu *gpu);
void cache_ranges_deinit(struct cache_ranges *ranges, const struct gpu *gpu); /* zeroed is fine */
int cache_ranges_add(struct cache_ranges *ranges, const struct block_heads *heads, const struct gpu *gpu,
                     struct gpu_stream *stream);

/* Host arrays of `count` scales: absmax / 448 or / 127, rounded to the type in which they are stored; 1 where all that
 * was seen is zero. */
struct cache_scales {
    int64_t count; /* 1 or kv_heads */
    float *keys, *values;
};
/* ERR_NON_FINITE_VALUE when a range is not finite or its scale does not fit dtype. Deinit after success. */
int cache_scales_make(const struct cache_ranges *ranges, const struct plan_attention *attention,
                      const struct cache_scheme *scheme, enum dtype dtype, const struct gpu *gpu,
                      struct gpu_stream *stream, struct cache_scales *out);
void cache_scales_deinit(struct cache_scales *scales); /* zeroed is fine */

/* From here on the block's attention reads its keys and values through such a cache. */
int cache_place(struct block *block, const struct cache_scheme *scheme, const struct cache_scales *scales,
                const struct gpu *gpu, struct gpu_stream *stream);
