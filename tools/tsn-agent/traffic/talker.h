/* SPDX-License-Identifier: Apache-2.0
 *
 * Sends the packets of all streams of a talker from one thread, the earliest instant first.
 *
 * Packet n of a stream has the instant base_ns + n * period_ns, TAI. It is sent lead_ns before that (with a launch time, which the
 * kernel keeps) or at it. Who wakes after the next instant has passed does not send what is overdue in a burst: those periods are
 * skipped, counted, and their numbers stay unused.
 *
 * One lock guards all that a loop has; it is not held while the loop sleeps.
 */
#ifndef QOS_TRAFFIC_TALKER_H
#define QOS_TRAFFIC_TALKER_H

#ifndef QOS_CDEF
#include <stdint.h>

#include "events.h"
#include "packet.h"
#endif

#define QOS_TALKER_STREAMS_MAX 64
#define QOS_TALKER_PREFIX_MAX 18     /* Ethernet header with a VLAN tag */
#define QOS_TALKER_ADDRESS_MAX 28    /* sockaddr_in6 */
#define QOS_TALKER_PAYLOAD_MAX 65507 /* UDP over IPv4 */

/* What a stream sends, and how. */
struct qos_talk {
    int32_t fd; /* of a datagram or packet socket */
    uint32_t stream;
    uint64_t base_ns; /* in the future, or the periods until now are skipped */
    uint64_t period_ns;
    uint64_t lead_ns;
    uint64_t count; /* periods in all; 0: no end */
    uint32_t payload_bytes;
    uint8_t launch; /* give the kernel the launch time (SO_TXTIME) */
    uint8_t queue;  /* look into the error queue after each packet */
    uint8_t prefix_bytes;
    uint8_t address_bytes;
    uint8_t prefix[QOS_TALKER_PREFIX_MAX];
    uint8_t address[QOS_TALKER_ADDRESS_MAX]; /* a struct sockaddr; none where the prefix says it */
};

/* Since the stream was added. sent + failed + skipped = numbers used; those whose launch time was missed have been sent, invalid ones are
 * among the failed. */
struct qos_talk_counters {
    uint64_t sent;
    uint64_t failed;
    uint64_t skipped;
    uint64_t missed;
    uint64_t invalid;
    uint64_t unreachable; /* ICMP errors */
};

struct qos_talker;

/* `events` outlives it. NULL with errno ENOMEM. */
struct qos_talker *qos_talker_new(struct qos_events *events, uint64_t spin_ns);
void qos_talker_free(struct qos_talker *talker);

/* Add a stream, which does not send yet: its index, or -ENOSPC, -ENOMEM. `lateness`: a struct qos_hist, for the ns between the
 * instant and the call that sends; it outlives the talker. */
int qos_talker_add(struct qos_talker *talker, void *lateness);
/* Let a stream send from now on, in place of what it has sent so far; its numbers go on. 0, -EINVAL (period 0, payload too small or too
 * large). When it has returned, the descriptor of before is not used any more. */
int qos_talker_start(struct qos_talker *talker, uint32_t index, const struct qos_talk *talk);
/* Let it pause. */
void qos_talker_pause(struct qos_talker *talker, uint32_t index);
void qos_talker_counters(struct qos_talker *talker, uint32_t index, struct qos_talk_counters *counters);

/* Send until every stream has used up its count (0), or qos_talker_stop (0). Negative errno if the clock fails. Calls no Python. */
int qos_talker_run(struct qos_talker *talker);
/* From any thread; the loop ends within QOS_TALKER_SLICE_NS. */
void qos_talker_stop(struct qos_talker *talker);

#define QOS_TALKER_SLICE_NS 5000000 /* no sleep is longer, so that what the kernel dropped is told soon */
#define QOS_TALKER_NEAR_NS 1000000  /* orders do not wake a loop that sleeps towards a packet no farther away */
#define QOS_TALKER_AHEAD_NS 2000000 /* an order's first packet: NEAR, and as much again to get it there */

#endif
