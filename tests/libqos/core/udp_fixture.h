/* SPDX-License-Identifier: Apache-2.0 */
/* Ends of the UDP datapath on loopback for a test. */
#ifndef QOS_TEST_UDP_FIXTURE_H
#define QOS_TEST_UDP_FIXTURE_H

#include <sys/socket.h>

#include "check.h"
#include "datapath/datapath.h"

static const struct in6_addr LOOPBACK_4 = {{{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1}}};
static const struct in6_addr LOOPBACK_6 = {{{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}}};

struct end {
    struct qos_datapath *dp;
    struct qos_address address;
    int fd;
};

/* A datapath on a loopback socket of its own, at any port if `port` is 0; its dp is NULL if there is no such family. */
static inline struct end open_end(int family, uint16_t port)
{
    struct end e = {.address.ip = family == AF_INET ? LOOPBACK_4 : LOOPBACK_6};
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(port)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_addr = LOOPBACK_6, .sin6_port = htons(port)};
    int is4 = family == AF_INET;
    socklen_t length = is4 ? sizeof v4 : sizeof v6;
    struct sockaddr *address = is4 ? (struct sockaddr *)&v4 : (struct sockaddr *)&v6;
    e.fd = socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (e.fd < 0)
        return e;
    if (bind(e.fd, address, length) < 0 || getsockname(e.fd, address, &length) < 0) {
        close(e.fd);
        return e;
    }
    e.address.port = ntohs(is4 ? v4.sin_port : v6.sin6_port);
    CHECK_EQ(qos_udp_open(&e.dp, e.fd), 0);
    return e;
}

#endif /* QOS_TEST_UDP_FIXTURE_H */
