/* SPDX-License-Identifier: Apache-2.0
 *
 * Lost, duplicated, reordered: per source, over a window of 64 messages. A gap counts as lost at once; when a missing message comes
 * late after all, it is taken off lost and counted as reordered.
 */
#include "internal.h"

enum sequence_verdict selene_sequence(uint64_t *expected, uint64_t *seen, bool *started, uint64_t sequence,
                                      struct selene_counters *c)
{
    if (QOS_LIKELY(sequence == *expected && *started)) {
        *expected = sequence + 1;
        *seen = *seen << 1 | 1;
        return SEQUENCE_NEW;
    }
    if (!*started) {
        /* whoever joins late has not lost what was before */
        *started = true;
        *expected = sequence + 1;
        *seen = ~UINT64_C(0);
        return SEQUENCE_NEW;
    }
    if (sequence > *expected) {
        uint64_t gap = sequence - *expected;
        count(&c->lost, gap);
        *seen = gap >= 63 ? 1 : *seen << (gap + 1) | 1;
        *expected = sequence + 1;
        return SEQUENCE_NEW;
    }
    uint64_t age = *expected - 1 - sequence;
    if (age >= 64 || (*seen >> age & 1)) {
        count(&c->duplicated, 1);
        return SEQUENCE_DUPLICATE;
    }
    *seen |= UINT64_C(1) << age;
    count(&c->lost, UINT64_C(0) - 1);
    count(&c->reordered, 1);
    return SEQUENCE_LATE;
}
