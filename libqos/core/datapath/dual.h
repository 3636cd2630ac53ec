/* SPDX-License-Identifier: Apache-2.0
 *
 * Two datapaths at one address and port: AF_XDP for whom it reaches, kernel UDP for the rest, one behind the other for whoever receives.
 * What is too large for a frame goes by UDP, which fragments; and what the XDP program lets pass comes by UDP.
 *
 * Sending is open to several threads, receiving to one at a time, as with the two within.
 */
#ifndef QOS_DUAL_H
#define QOS_DUAL_H

#include "datapath.h"

/* `fast`, of xsk.h, and `slow` become its own. 0 or a negative errno. */
int qos_dual_open(struct qos_datapath **dp, struct qos_datapath *fast, struct qos_datapath *slow);

#endif
