#pragma once
/* What queries see. Plain C, for hosts and devices. */

#include "gpu/shared/dtype.h"

/* The first position that a query sees, which sees all from there to itself: window and chunk as in struct
 * gpu_attention. */
GPU_SHARED int64_t attention_first(int64_t window, int64_t chunk, int64_t position)
{
    int64_t first = window > 0 ? position - window + 1 : 0, own = chunk > 0 ? position / chunk * chunk : 0;

    first = first > own ? first : own;
    return first > 0 ? first : 0;
}

/* More positions than that no query sees; of `length` at most. */
GPU_SHARED int64_t attention_reach(int64_t window, int64_t chunk, int64_t length)
{
    int64_t reach = window > 0 && window < length ? window : length;

    return chunk > 0 && chunk < reach ? chunk : reach;
}
