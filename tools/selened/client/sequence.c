/* SPDX-License-Identifier: Apache-2.0
 *
 * Lost, duplicated, reordered: per source, over a window of 64 messages. A gap counts as lost at once; when a missing message comes
 * late after all, it is taken off lost and counted as reordered.
 *
 * A header that was corrupted on its way may name any number. If the messages that follow a leap go on where it began, the leap is taken
 * back; else they would all pass for old ones.
 */
#include "internal.h"

#define LEAP 1024 /* messages; less is caught up with soon */

enum sequence_verdict selene_sequence(struct sequence *of, uint64_t sequence, struct selene_counters *c)
{
    if (QOS_LIKELY(sequence == of->expected && of->started)) {
        of->expected = sequence + 1;
        of->seen = of->seen << 1 | 1;
        return SEQUENCE_NEW;
    }
    if (!of->started) {
        /* whoever joins late has not lost what was before */
        *of = (struct sequence){.expected = sequence + 1, .seen = ~UINT64_C(0), .started = true};
        return SEQUENCE_NEW;
    }
    if (sequence > of->expected) {
        uint64_t gap = sequence - of->expected;
        count(&c->lost, gap);
        if (gap >= LEAP && (of->before == 0 || of->seen == ~UINT64_C(0)))
            of->before = of->expected;
        of->seen = gap >= 63 ? 1 : of->seen << (gap + 1) | 1;
        of->expected = sequence + 1;
        return SEQUENCE_NEW;
    }
    uint64_t age = of->expected - 1 - sequence;
    if (age >= 64 && of->before != 0 && of->seen != ~UINT64_C(0) && sequence - of->before <= QOS_WIRE_MAX_RECORDS) {
        count(&c->lost, sequence - of->expected + (uint64_t)__builtin_popcountll(of->seen));
        *of = (struct sequence){.expected = sequence + 1, .seen = 1, .started = true};
        return SEQUENCE_NEW;
    }
    if (age >= 64 || (of->seen >> age & 1)) {
        count(&c->duplicated, 1);
        return SEQUENCE_DUPLICATE;
    }
    of->seen |= UINT64_C(1) << age;
    count(&c->lost, UINT64_C(0) - 1);
    count(&c->reordered, 1);
    return SEQUENCE_LATE;
}
