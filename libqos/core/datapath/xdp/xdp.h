/* SPDX-License-Identifier: Apache-2.0
 *
 * The XDP program that gives AF_XDP sockets (xsk.h) their frames. It needs libbpf and libxdp, and so is a module of its own, loaded where it
 * is wanted (qos_xdp_load). It takes root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON.
 *
 * The program takes UDP datagrams for the ports that it is told, and nothing else, off the device; the rest goes on to the kernel. With a
 * BPF file system at /sys/fs/bpf it lives beside other programs of the device (libxdp's dispatcher). Elsewhere a device has one program:
 * ours goes when its owner ends, however it ends, and where another one is there already, ours is refused.
 */
#ifndef QOS_XDP_H
#define QOS_XDP_H

#include <stddef.h>
#include <stdint.h>

#include "steer.h"

#define QOS_XDP_MODULE "qos-xdp.so"
#define QOS_XDP_ABI 1

enum qos_xdp_mode {
    QOS_XDP_ANY = 0,     /* native, and where the driver has no XDP generic */
    QOS_XDP_NATIVE = 1,  /* in the driver */
    QOS_XDP_GENERIC = 2, /* in the kernel, for every device */
};

struct qos_xdp; /* the program on one device */

struct qos_xdp_ops {
    uint32_t abi;
    /* Put the program on a device; `mode` becomes what it is. 0, or a negative errno and why in `problem`: -EBUSY (another program is there and
     * there is no dispatcher), -EPERM, -ENODEV, -EOPNOTSUPP (no XDP in the driver). */
    int (*attach)(struct qos_xdp **xdp, uint32_t ifindex, enum qos_xdp_mode *mode, char *problem, size_t size);
    /* Take it away; what was for us goes to the kernel from now on. */
    void (*detach)(struct qos_xdp *xdp);
    /* Frames of a queue go to this socket, until it is closed. 0 or a negative errno. */
    int (*set_socket)(struct qos_xdp *xdp, uint32_t queue, int fd);
    /* Datagrams for a port that come on `queue` (QOS_STEER_ANY_QUEUE: on any) are for its socket. 0, -E2BIG: too many ports. */
    int (*set_port)(struct qos_xdp *xdp, uint16_t port, uint32_t queue);
    void (*forget_port)(struct qos_xdp *xdp, uint16_t port);
    /* Whether other programs can be on the device beside ours. */
    int (*is_shared)(const struct qos_xdp *xdp);
};

/* Load the module, from `folder` or where the system looks. NULL, and why in `problem`: it was not built, or libxdp is missing. */
const struct qos_xdp_ops *qos_xdp_load(const char *folder, char *problem, size_t size);

#endif
