/* SPDX-License-Identifier: Apache-2.0 */
/* Random numbers for client programs of the tests. */
#ifndef QOS_TEST_DRAW_H
#define QOS_TEST_DRAW_H

#include <stdint.h>

static uint64_t state; /* from the seed, odd */

/* xorshift64* (Vigna 2016): the same operations for the same seed. */
static uint32_t draw(uint32_t below)
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (uint32_t)((state * UINT64_C(2685821657736338717)) >> 33) % below;
}

#endif
