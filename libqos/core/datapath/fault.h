/* SPDX-License-Identifier: Apache-2.0
 *
 * A bad network: a datapath around another one that loses, delays, reorders, duplicates and corrupts datagrams, for tests and for
 * whoever wants to see what his system makes of it.
 *
 * What happens to a datagram follows from the seed, the direction and how many datagrams went before it, and from nothing else: the
 * same seed and the same datagrams give the same faults. Each kind is drawn by itself, so that one more loss changes no other
 * decision. An empty datagram, by which the owner of a socket wakes itself, is left alone and not counted.
 *
 *   loss, duplicate, corrupt   as they say; corrupt turns one bit
 *   reorder                    the datagram is overtaken by the next 1 to QOS_FAULT_OVERTAKEN that are not lost; if they do not come,
 *                              it goes on after `hold`, the one decision that is the clock's
 *   delay, jitter              each datagram is under way for delay + (0 to jitter), but none overtakes another by that
 *
 * Only what is held or corrupted is copied. At most QOS_FAULT_HELD_BYTES are held for a direction: what more is sent meets a full
 * socket buffer (-EAGAIN), what more is received is lost and counted. A thread sends what was delayed; close sends what is left at
 * once. Sending is open to several threads, receiving to one at a time, as with the datapath within.
 */
#ifndef QOS_FAULT_H
#define QOS_FAULT_H

#include <stddef.h>
#include <stdint.h>

#include "datapath.h"

#define QOS_FAULT_ONE 1000000000u /* probability 1 */
#define QOS_FAULT_MAX_NS 60000000000u
#define QOS_FAULT_OVERTAKEN 8u
#define QOS_FAULT_HOLD_NS 10000000u
#define QOS_FAULT_HELD_BYTES (16u << 20)

enum qos_fault_direction { QOS_FAULT_TX = 1, QOS_FAULT_RX = 2, QOS_FAULT_BOTH = 3 };

struct qos_fault {
    uint64_t loss, duplicate, reorder, corrupt; /* probabilities per datagram, in parts of QOS_FAULT_ONE */
    uint64_t delay, jitter, hold;               /* ns */
    uint64_t seed;
    uint64_t direction; /* enum qos_fault_direction */
};

/* What was done to datagrams, in both directions. */
struct qos_fault_counters {
    uint64_t lost;
    uint64_t duplicated;
    uint64_t reordered; /* really overtaken */
    uint64_t corrupted;
    uint64_t delayed;
    uint64_t failed; /* not meant: too much was held, or the network refused what was held */
};

/* "loss=0.01,delay=2ms,jitter=500us,reorder=0.05,hold=10ms,duplicate=0.01,corrupt=0.001,seed=7,direction=tx"; each may be left out,
 * direction is both then, hold QOS_FAULT_HOLD_NS, and seed 0. 0, or -EINVAL and the problem in words: what was found and what is accepted. */
int qos_fault_parse(struct qos_fault *fault, const char *text, char *problem, size_t room);

/* Put faults around a datapath, which is closed with it. Counted into `counters` (NULL: nowhere), which somebody else may read
 * meanwhile. If `inner` has memory of its own, what it receives is copied into the caller's. 0, -ENOMEM or another negative errno, and
 * `inner` is still the caller's. */
int qos_fault_open(struct qos_datapath **dp, struct qos_datapath *inner, const struct qos_fault *fault,
                   struct qos_fault_counters *counters);

#endif
