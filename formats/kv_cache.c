/* A quantized key and value cache in an artifact: its two scales a block, next to the weights, and the scheme in the
 * config, as compressed-tensors defines them. Both types are symmetric. transformers rounds its cache by either; vLLM
 * reads E4M3 alone. */

#include "formats/common.h"

#include "base/err.h"

#include <string.h>

int format_accepts_cache(const struct cache_scheme *scheme)
{
    if (scheme->element != DTYPE_F8_E4M3 && scheme->element != DTYPE_I8) {
        return err_set_hint(err_raise(ERR_INCOMPATIBLE_OPTIONS, "no runtime reads scales of such a cache"),
                            "kv_cache.dtype fp8_e4m3 or int8");
    }
    return 0;
}

json_t *format_cache_config(const struct cache_scheme *scheme)
{
    if (scheme->element == DTYPE_F32) {
        return json_null();
    }
    return json_pack("{s:i, s:s, s:s, s:b, s:b}", "num_bits", 8, "type", scheme->element == DTYPE_I8 ? "int" : "float",
                     "strategy", scheme->per_head ? "attn_head" : "tensor", "dynamic", 0, "symmetric", 1);
}

static bool ends_with(const char *name, const char *ending)
{
    size_t length = strlen(name), suffix = strlen(ending);
    return length >= suffix && strcmp(name + length - suffix, ending) == 0;
}

int format_cache_shape(const struct cache_scheme *scheme, const char *name, int64_t count,
                       int64_t shape[TENSOR_RANK_MAX])
{
    if (scheme->element == DTYPE_F32 || (!ends_with(name, ".k_scale") && !ends_with(name, ".v_scale"))) {
        return 0;
    }
    shape[0] = count;
    shape[1] = shape[2] = 1;
    return scheme->per_head ? 3 : 1;
}
