/* SPDX-License-Identifier: Apache-2.0 */
#include "clock.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/ptp_clock.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "compiler.h"

#define NS_PER_S 1000000000u

/* Clock of an open character device: clock_gettime(2), "Dynamic clocks" (FD_TO_CLOCKID). */
static clockid_t clockid_of_fd(int fd)
{
    return (clockid_t)((~(unsigned int)fd << 3) | 3u);
}

static uint64_t to_ns(const struct timespec *time)
{
    return (uint64_t)time->tv_sec * NS_PER_S + (uint64_t)time->tv_nsec;
}

static struct timespec to_timespec(uint64_t ns)
{
    return (struct timespec){.tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S)};
}

/* For the kernel's own clocks, which cannot fail. */
static uint64_t read_system(clockid_t clockid)
{
    struct timespec now;
    clock_gettime(clockid, &now);
    return to_ns(&now);
}

uint64_t qos_clock_realtime_ns(void)
{
    return read_system(CLOCK_REALTIME);
}

uint64_t qos_clock_tai_ns(void)
{
    return read_system(CLOCK_TAI);
}

uint64_t qos_clock_monotonic_ns(void)
{
    return read_system(CLOCK_MONOTONIC);
}

int qos_clock_read(int32_t clockid, uint64_t *now_ns)
{
    struct timespec now;
    if (clock_gettime((clockid_t)clockid, &now) != 0)
        return -errno;
    *now_ns = to_ns(&now);
    return 0;
}

int qos_clock_phc_open(const char *device, int32_t *clockid)
{
    int fd = open(device, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    struct ptp_clock_caps caps;
    uint64_t now;
    int rc = ioctl(fd, PTP_CLOCK_GETCAPS, &caps) == 0 ? 0 : -errno;
    if (rc == 0)
        rc = qos_clock_read(clockid_of_fd(fd), &now);
    if (rc != 0) {
        close(fd);
        return rc;
    }
    *clockid = clockid_of_fd(fd);
    return fd;
}

/*
 * Sleep until `wake_ns` of a clock that now shows `now_ns`. The kernel's clocks take an absolute time, so a step of the
 * clock moves the wake-up too. A PHC has no timer: that sleep is on the monotonic clock, and the caller looks again.
 */
static int sleep_towards(clockid_t clockid, uint64_t now_ns, uint64_t wake_ns)
{
    clockid_t timer = clockid;
    uint64_t target = wake_ns;
    if (clockid < 0) {
        timer = CLOCK_MONOTONIC;
        target = read_system(CLOCK_MONOTONIC) + (wake_ns - now_ns);
    }
    struct timespec until = to_timespec(target);
    return -clock_nanosleep(timer, TIMER_ABSTIME, &until, NULL);
}

int64_t qos_clock_sleep_until(int32_t clockid, uint64_t deadline_ns, uint64_t spin_ns)
{
    uint64_t wake_ns = deadline_ns > spin_ns ? deadline_ns - spin_ns : 0;
    uint64_t now_ns = 0;
    int rc = qos_clock_read(clockid, &now_ns);
    while (rc == 0 && now_ns < wake_ns) {
        rc = sleep_towards((clockid_t)clockid, now_ns, wake_ns);
        if (rc == 0)
            rc = qos_clock_read(clockid, &now_ns);
    }
    while (rc == 0 && now_ns < deadline_ns) {
        qos_cpu_relax();
        rc = qos_clock_read(clockid, &now_ns);
    }
    return rc != 0 ? rc : (int64_t)(now_ns - deadline_ns);
}
