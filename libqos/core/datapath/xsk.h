/* SPDX-License-Identifier: Apache-2.0
 *
 * AF_XDP: frames of one queue of a network device, through rings in memory that the kernel shares, past its network stack.
 *
 * The socket takes the privilege (CAP_NET_RAW, for its memory CAP_IPC_LOCK): qos_xsk_create. Who has the descriptor and the memory drives
 * the rings without any: qos_xsk_open, also in another process, also after the creator's end. Which frames come is the matter of the XDP
 * program on the device (the module xdp); the others go on to the kernel.
 *
 * The memory is cut into chunks of 4096 bytes. A frame that is longer goes through several where Linux has them (6.6). Frames are built by
 * udpip.h; who the next hop of an address is has to be told (qos_xsk_reach).
 *
 * Sending is open to several threads, receiving and giving back to one at a time.
 */
#ifndef QOS_XSK_H
#define QOS_XSK_H

#include <stdbool.h>
#include <stdint.h>

#include "../udpip.h"
#include "datapath.h"

#define QOS_XSK_CHUNK 4096u
#define QOS_XSK_RING 2048u /* entries of each ring: more than chunks that are under way */

/* Without COPY and ZERO_COPY: as the driver can. */
enum qos_xsk_flag {
    QOS_XSK_COPY = 1,      /* the kernel copies between device and memory; works with every device */
    QOS_XSK_ZERO_COPY = 2, /* the device reads and writes the memory; else -EOPNOTSUPP */
    QOS_XSK_BUSY_POLL = 4, /* receiving drives the device (SO_PREFER_BUSY_POLL) in place of its interrupts */
    QOS_XSK_PIECES = 8,    /* granted, never asked for: frames may lie in several chunks */
};

struct qos_xsk_device {
    uint32_t ifindex, queue;
    uint32_t mtu;
    uint32_t flags; /* enum qos_xsk_flag */
};

struct qos_xsk_memory {
    uint8_t *base;                 /* page aligned */
    uint64_t size;                 /* a multiple of QOS_XSK_CHUNK */
    uint32_t rx_chunks, tx_chunks; /* QOS_XSK_RING at most: the first ones receive, the next ones send */
};

/* Whether the functions below take it. */
static inline bool qos_xsk_is_usable(const struct qos_xsk_memory *m)
{
    return (uintptr_t)m->base % QOS_XSK_CHUNK == 0 && m->size % QOS_XSK_CHUNK == 0 && m->rx_chunks > 0 &&
           m->rx_chunks <= QOS_XSK_RING && m->tx_chunks > 0 && m->tx_chunks <= QOS_XSK_RING &&
           m->size / QOS_XSK_CHUNK >= (uint64_t)m->rx_chunks + m->tx_chunks;
}

/* Make a socket for a queue of a device, and say what is granted in device->flags. The descriptor, or -EBUSY (another program has the
 * queue), -EOPNOTSUPP, -ENODEV, -ENETDOWN, -EPERM, -ENOBUFS (so much memory may not be locked), -ENOMEM, -EINVAL. */
int qos_xsk_create(struct qos_xsk_device *device, const struct qos_xsk_memory *memory);

/* A datapath on such a socket, which becomes its own and is used for the first time, from address and port `own`. The memory stays the
 * caller's. 0, -EALREADY (somebody has used it), or another negative errno. */
int qos_xsk_open(struct qos_datapath **dp, int fd, const struct qos_xsk_device *device,
                 const struct qos_xsk_memory *memory, const struct qos_address *own);

/* Send what is for ends->to by this way from now on. 0, -EINVAL (udpip.h), -ENOSPC: QOS_XSK_WAYS others are known. */
int qos_xsk_reach(struct qos_datapath *dp, const struct qos_udpip_ends *ends);
void qos_xsk_forget(struct qos_datapath *dp, const struct qos_address *to);
bool qos_xsk_reaches(struct qos_datapath *dp, const struct qos_address *to);

#define QOS_XSK_WAYS 1024u

#endif
