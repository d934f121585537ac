#pragma once
/* What blocks' notes add up to in the report. */

#include <jansson.h>

/* blocks: committed ones, by index. Both: null when no block has such a note. New references.
 * "kv_cache": [{"layer","key_scales","value_scales"}...] */
json_t *analysis_scales(const json_t *blocks);
/* {"rows":[{"layer","scheme",...}...], "schemes":[{"scheme","bits_per_value","mean_output_relative_mse",
 * "worst_output_relative_mse","worst_layer"}...]}, schemes in the order of the first block's rows. Of linears the rows
 * are those of linear_json (blocks.c), schemes sum them up ("total_kl", "worst_module", ...), and "predictions" says
 * what those were worth. */
json_t *analysis_report(const json_t *blocks);
