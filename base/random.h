#pragma once
/* Numbers that look random and depend on a seed alone: splitmix64 (Steele, Lea and Flood 2014). Not for secrets. */

#include <stdint.h>

/* The next 64 bits; *state, which starts as the seed, moves on. */
static inline uint64_t random_next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;

    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}
