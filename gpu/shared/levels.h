#pragma once
/* A table of levels in ascending order, and the nearest of them. Plain C, for hosts and devices. */

#include "gpu/shared/dtype.h"

#include <math.h>
#include <stdint.h>

#define LEVELS_MAX 256

struct levels_sorted {
    float values[LEVELS_MAX]; /* ascending, each once; INFINITY after the last */
    uint8_t codes[LEVELS_MAX];
    int count;
};

/* The finite values of a table; of codes with one value the first stands for it, as grid_nearest has it. */
static inline void levels_sort(struct levels_sorted *sorted, const float *values, int count)
{
    sorted->count = 0;
    for (int code = 0; code < count; code++) {
        int at = sorted->count;
        while (at > 0 && sorted->values[at - 1] > values[code]) {
            at--;
        }
        if (!isfinite(values[code]) || (at > 0 && sorted->values[at - 1] == values[code])) {
            continue;
        }
        for (int i = sorted->count; i > at; i--) {
            sorted->values[i] = sorted->values[i - 1];
            sorted->codes[i] = sorted->codes[i - 1];
        }
        sorted->values[at] = values[code];
        sorted->codes[at] = (uint8_t)code;
        sorted->count++;
    }
    for (int i = sorted->count; i < LEVELS_MAX; i++) {
        sorted->values[i] = INFINITY;
        sorted->codes[i] = 0;
    }
}

/* The number of the level nearest to x, the lower of two at one distance; beyond the ends that end's. */
GPU_SHARED int levels_nearest(const float *values, int count, float x)
{
    int low = 0, high = count - 1; /* the answer is in [low, high] */

    while (high - low > 1) {
        int middle = (low + high) / 2;
        low = x >= values[middle] ? middle : low;
        high = x >= values[middle] ? high : middle;
    }
    return high > low && values[high] - x < x - values[low] ? high : low;
}
