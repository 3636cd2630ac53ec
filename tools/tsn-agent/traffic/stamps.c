/* SPDX-License-Identifier: Apache-2.0 */
#include "stamps.h"

#include <time.h>

#include <linux/errqueue.h>
#include <string.h>
#include <sys/timex.h>

#include "events.h"

#define NS_PER_S 1000000000ull

uint64_t qos_stamps_offset(void)
{
    struct timex state = {0};
    return adjtimex(&state) < 0 ? 0 : (uint64_t)state.tai * NS_PER_S;
}

static uint64_t to_ns(const struct timespec *time)
{
    return (uint64_t)time->tv_sec * NS_PER_S + (uint64_t)time->tv_nsec;
}

uint8_t qos_stamps_read(struct msghdr *message, uint64_t offset_ns, uint64_t *at_ns)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c != NULL; c = CMSG_NXTHDR(message, c)) {
        struct scm_timestamping stamps;
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_TIMESTAMPING || c->cmsg_len < CMSG_LEN(sizeof stamps))
            continue;
        memcpy(&stamps, CMSG_DATA(c), sizeof stamps);
        if (to_ns(&stamps.ts[2]) != 0) {
            *at_ns = to_ns(&stamps.ts[2]);
            return QOS_STAMP_HARDWARE;
        }
        if (to_ns(&stamps.ts[0]) != 0) {
            *at_ns = to_ns(&stamps.ts[0]) + offset_ns;
            return QOS_STAMP_SOFTWARE;
        }
    }
    return QOS_STAMP_USER;
}
