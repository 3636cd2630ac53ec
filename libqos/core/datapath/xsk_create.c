/* SPDX-License-Identifier: Apache-2.0
 *
 * Making an AF_XDP socket: what takes the privilege.
 */
#include <errno.h>
#include <linux/if_xdp.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "xsk.h"

#ifndef SO_PREFER_BUSY_POLL
#define SO_PREFER_BUSY_POLL 69
#define SO_BUSY_POLL_BUDGET 70
#endif
#ifndef XDP_USE_SG /* Linux 6.6 */
#define XDP_USE_SG (1 << 4)
#endif
#define BUSY_POLL_US 20
#define BUSY_POLL_BUDGET 64
#define BUSY_TRIES 20
#define BUSY_WAIT_NS 10000000

static int set(int fd, int name, uint32_t value)
{
    return setsockopt(fd, SOL_XDP, name, &value, sizeof value) < 0 ? -errno : 0;
}

static int bind_to(int fd, struct qos_xsk_device *device)
{
    struct sockaddr_xdp at = {.sxdp_family = AF_XDP, .sxdp_ifindex = device->ifindex, .sxdp_queue_id = device->queue};
    const unsigned mode = (device->flags & QOS_XSK_COPY ? XDP_COPY : 0) |
                          (device->flags & QOS_XSK_ZERO_COPY ? XDP_ZEROCOPY : 0) | XDP_USE_NEED_WAKEUP;
    at.sxdp_flags = (uint16_t)(mode | XDP_USE_SG);
    device->flags |= QOS_XSK_PIECES;
    if (bind(fd, (struct sockaddr *)&at, sizeof at) == 0)
        return 0;
    /* a kernel that does not know of frames in pieces, or a driver that cannot take them */
    device->flags &= ~(uint32_t)QOS_XSK_PIECES;
    if (errno != EINVAL && errno != EOPNOTSUPP)
        return -errno;
    at.sxdp_flags = (uint16_t)mode;
    return bind(fd, (struct sockaddr *)&at, sizeof at) < 0 ? -errno : 0;
}

static int set_up(int fd, struct qos_xsk_device *device, const struct qos_xsk_memory *memory)
{
    const struct xdp_umem_reg umem = {
        .addr = (uintptr_t)memory->base, .len = memory->size, .chunk_size = QOS_XSK_CHUNK};
    static const int rings[] = {XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING, XDP_RX_RING, XDP_TX_RING};
    if (setsockopt(fd, SOL_XDP, XDP_UMEM_REG, &umem, sizeof umem) < 0)
        return -errno;
    for (unsigned i = 0; i < sizeof rings / sizeof *rings; i++) {
        int rc = set(fd, rings[i], QOS_XSK_RING);
        if (rc < 0)
            return rc;
    }
    int rc = bind_to(fd, device);
    if (rc < 0 || !(device->flags & QOS_XSK_BUSY_POLL))
        return rc;
    const struct {
        int name, value;
    } polling[] = {{SO_PREFER_BUSY_POLL, 1}, {SO_BUSY_POLL, BUSY_POLL_US}, {SO_BUSY_POLL_BUDGET, BUSY_POLL_BUDGET}};
    for (unsigned i = 0; i < sizeof polling / sizeof *polling; i++) {
        if (setsockopt(fd, SOL_SOCKET, polling[i].name, &polling[i].value, sizeof polling[i].value) < 0)
            return -errno;
    }
    return 0;
}

static int create(struct qos_xsk_device *device, const struct qos_xsk_memory *memory)
{
    int fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    int rc = set_up(fd, device, memory);
    if (rc < 0)
        close(fd);
    return rc < 0 ? rc : fd;
}

int qos_xsk_create(struct qos_xsk_device *device, const struct qos_xsk_memory *memory)
{
    if (!qos_xsk_is_usable(memory))
        return -EINVAL;
    int fd = -EBUSY;
    for (int i = 0; fd == -EBUSY && i < BUSY_TRIES; i++) {
        /* the kernel gives the queue of a socket that was closed back a little later */
        if (i > 0)
            nanosleep(&(struct timespec){.tv_nsec = BUSY_WAIT_NS}, NULL);
        fd = create(device, memory);
    }
    return fd;
}
