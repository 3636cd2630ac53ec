/* SPDX-License-Identifier: Apache-2.0
 *
 * Two datapaths at one address and port: kernel UDP, and a fast one (AF_XDP) that is there from some time on. Received is what comes by
 * either; sent is by the way that a packet says. Two packets by different ways may overtake each other: who minds changes ways only when
 * nothing is under way.
 *
 * Sending is open to several threads, receiving to one at a time, as with the two within.
 */
#ifndef QOS_DUAL_H
#define QOS_DUAL_H

#include "datapath.h"

/* On kernel UDP alone; `udp` becomes its own. 0 or a negative errno. */
int qos_dual_open(struct qos_datapath **dp, struct qos_datapath *udp);
/* From now on there is the fast way too, once. `fast` becomes its own. 0 or a negative errno. */
int qos_dual_add(struct qos_datapath *dp, struct qos_datapath *fast);
/* The fast way, or NULL. */
struct qos_datapath *qos_dual_fast(const struct qos_datapath *dp);

#endif
