/* The key and value cache alone: no weight changes; the artifact says how its user keeps keys and values, with scales
 * that calibration measured. The scales are the pipeline's work, as they are with every other method. */

#include "quantizers/common.h"

static const struct params_row *const kv_cache_params[] = {quant_base_rows, NULL};

const struct quantizer quantizer_kv_cache = {
    .name = "kv_cache",
    .title = "Key and value cache only",
    .help = "Leaves all weights as they are and stores calibrated scales for a quantized key and value cache, FP8 with "
            "one scale a tensor unless kv_cache says otherwise. Every other method takes kv_cache too; run kv_analysis "
            "first to see what each choice costs.",
    .stats = STATS_RANGE,
    .params = kv_cache_params,
    .params_size = sizeof(struct quant_base),
    .check = quant_base_check,
};
