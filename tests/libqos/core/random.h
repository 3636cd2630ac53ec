/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pseudo-random numbers for the C tests: the same on every machine, so that a failure can be seen again by its seed.
 * SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014).
 */
#ifndef QOS_TEST_RANDOM_H
#define QOS_TEST_RANDOM_H

#include <stdint.h>

struct random {
    uint64_t state; /* the seed, at first */
};

static inline uint64_t random_u64(struct random *r)
{
    uint64_t z = r->state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

/* 0 to n - 1. The bias is below n / 2^64. */
static inline uint32_t random_below(struct random *r, uint32_t n)
{
    return (uint32_t)(random_u64(r) % n);
}

#endif /* QOS_TEST_RANDOM_H */
