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

/* Every order of the list with the same chance, but for less than count / 2^64. */
static inline void random_shuffle(int64_t *list, int64_t count, uint64_t *state)
{
    for (int64_t i = count - 1; i > 0; i--) {
        int64_t at = (int64_t)(random_next(state) % (uint64_t)(i + 1)), other = list[at];
        list[at] = list[i];
        list[i] = other;
    }
}
