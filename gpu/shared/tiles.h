#pragma once
/* The small arithmetic of work that is cut into tiles. Plain C, for the host sides of all
 * backends. */

#include <stdint.h>

static inline int64_t tiles_of(int64_t count, int64_t tile)
{
    return (count + tile - 1) / tile;
}

static inline int64_t tile_size(int64_t count, int64_t tile, int64_t index)
{
    int64_t left = count - index * tile;
    return left < tile ? left : tile;
}
