/* SPDX-License-Identifier: Apache-2.0
 *
 * Which numbers of a stream have come: in order, lost, reordered, duplicated; and which cannot be believed.
 *
 * A number ahead of the newest is believed if the gap is small or the launch instants have moved on by as many periods. One that is
 * behind is looked up in a window of bits. Anything else is refused, until the numbers after it follow: then the talker has started
 * again (RFC 3550, A.1, has the idea). Every number from the first to the newest is either counted as received or as lost.
 */
#ifndef QOS_TRAFFIC_SEQUENCE_H
#define QOS_TRAFFIC_SEQUENCE_H

#include <stdbool.h>
#include <stdint.h>

#define QOS_SEQUENCE_WINDOW 4096u
#define QOS_SEQUENCE_GAP_MAX 4096u
/* Numbers in a row that make a restart: launched after the newest, or at any time (the talker's clock was set back). */
#define QOS_SEQUENCE_PROOF 2u
#define QOS_SEQUENCE_PROOF_BACK 8u

enum qos_sequence_verdict {
    QOS_SEQUENCE_AHEAD, /* `gap` numbers in front of it are missing */
    QOS_SEQUENCE_REORDERED,
    QOS_SEQUENCE_DUPLICATED,
    QOS_SEQUENCE_REFUSED,
    QOS_SEQUENCE_RESTARTED,
};

struct qos_sequence {
    bool started;
    uint64_t first, newest, launch_ns; /* launch instant of the newest */
    uint64_t before;                   /* numbers from first to newest, of earlier counts */
    uint64_t lost;
    uint64_t suspect, suspect_ns; /* the refused one that may begin a new count */
    uint32_t suspects;            /* in a row */
    uint64_t seen[QOS_SEQUENCE_WINDOW / 64];
};

/* Take the number of a packet that is to launch at `launch_ns`; `period_ns` is that of the stream. Sets *gap if it is AHEAD. */
enum qos_sequence_verdict qos_sequence_take(struct qos_sequence *sequence, uint64_t number, uint64_t launch_ns,
                                            uint64_t period_ns, uint64_t *gap);

#endif
