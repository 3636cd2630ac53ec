/* SPDX-License-Identifier: Apache-2.0
 *
 * The error queue of a socket: launch times that were missed or invalid (linux/errqueue.h, SO_EE_ORIGIN_TXTIME), times of
 * transmission (SO_TIMESTAMPING), and what ICMP says.
 */
#ifndef QOS_TRAFFIC_ERRORQUEUE_H
#define QOS_TRAFFIC_ERRORQUEUE_H

#include <stdint.h>

#include "events.h"

enum { QOS_ERRORQUEUE_NOTHING, QOS_ERRORQUEUE_EVENT, QOS_ERRORQUEUE_UNREACHABLE, QOS_ERRORQUEUE_UNKNOWN };

/* The longest packet with its headers. */
#define QOS_ERRORQUEUE_ROOM 65600

/* Take one entry. A packet of ours comes back with the headers that it had when it was dropped or stamped; its last `payload_bytes` are
 * what was sent, and say the number. An EVENT has kind, stamp, error, sequence, and its instants. */
int qos_errorqueue_take(int fd, uint32_t payload_bytes, uint8_t *room, struct qos_event *event);

#endif
