/* SPDX-License-Identifier: Apache-2.0 */
#include "clock.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/time.h>
#include <time.h>

#include "check.h"

#define NS_PER_S 1000000000ull

static void test_monotonic_never_goes_back(void)
{
    uint64_t before = qos_clock_monotonic_ns();
    for (int i = 0; i < 1000; i++) {
        uint64_t now = qos_clock_monotonic_ns();
        CHECK(now >= before);
        before = now;
    }
}

static void test_realtime_is_unix_time(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t seconds = qos_clock_realtime_ns() / NS_PER_S;
    CHECK(seconds - (uint64_t)now.tv_sec <= 1 + CHECK_WATCHDOG_S);
}

static void test_tai_is_ahead_by_whole_seconds(void)
{
    /* TAI - UTC has been between 0 (not set in the kernel) and some 37 s; read realtime first, so the rest is positive. */
    uint64_t realtime = qos_clock_realtime_ns();
    uint64_t tai = qos_clock_tai_ns();
    CHECK(tai >= realtime);
    CHECK(tai - realtime < 100 * NS_PER_S);
}

static void test_read_refuses_an_unknown_clock(void)
{
    uint64_t now = 7;
    CHECK_EQ(qos_clock_read(1000, &now), -EINVAL);
    CHECK_EQ(now, 7);
    CHECK_EQ(qos_clock_read(CLOCK_MONOTONIC, &now), 0);
    CHECK(now <= qos_clock_monotonic_ns());
}

static void test_phc_open_refuses_what_is_no_phc(void)
{
    int32_t clockid = 7;
    CHECK_EQ(qos_clock_phc_open("/dev/no-such-device", &clockid), -ENOENT);
    CHECK_EQ(qos_clock_phc_open("/dev/null", &clockid), -ENOTTY);
    CHECK_EQ(clockid, 7);
}

static void test_phc_reads_and_sleeps(void)
{
    int32_t clockid;
    int fd = qos_clock_phc_open("/dev/ptp0", &clockid);
    if (fd < 0) {
        CHECK_SKIP("phc", strerror(-fd));
        return;
    }
    uint64_t now;
    CHECK_EQ(qos_clock_read(clockid, &now), 0);
    CHECK(qos_clock_sleep_until(clockid, now + 1000000, 100000) >= 0);
    close(fd);
}

static void test_sleep_until_never_returns_early(void)
{
    static const int32_t clocks[] = {CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_TAI};
    static const uint64_t spins[] = {0, QOS_CLOCK_SPIN_DEFAULT_NS, 10 * NS_PER_S};
    for (unsigned int c = 0; c < 3; c++) {
        for (unsigned int s = 0; s < 3; s++) {
            uint64_t now = 0;
            CHECK_EQ(qos_clock_read(clocks[c], &now), 0);
            uint64_t deadline = now + 1000000;
            int64_t late = qos_clock_sleep_until(clocks[c], deadline, spins[s]);
            CHECK_EQ(qos_clock_read(clocks[c], &now), 0);
            CHECK(late >= 0);
            CHECK(now >= deadline + (uint64_t)late);
        }
    }
}

static void test_sleep_until_the_past_tells_how_late(void)
{
    uint64_t now = qos_clock_monotonic_ns();
    CHECK(qos_clock_sleep_until(CLOCK_MONOTONIC, now - 5000, 0) >= 5000);
    CHECK(qos_clock_sleep_until(CLOCK_MONOTONIC, 0, QOS_CLOCK_SPIN_DEFAULT_NS) >= (int64_t)now);
}

static void test_sleep_until_refuses_an_unknown_clock(void)
{
    CHECK_EQ(qos_clock_sleep_until(1000, 0, 0), -EINVAL);
}

static void on_signal(int signal_number)
{
    (void)signal_number;
}

static void test_sleep_until_is_interrupted_by_a_signal(void)
{
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGVTALRM, &action, NULL);
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGVTALRM};
    if (!CHECK_EQ(timer_create(CLOCK_MONOTONIC, &event, &timer), 0))
        return;
    /* Repeats, so that one that fires before the sleep has begun does no harm. */
    struct itimerspec every = {.it_value.tv_nsec = 1000000, .it_interval.tv_nsec = 1000000};
    timer_settime(timer, 0, &every, NULL);
    uint64_t far = qos_clock_monotonic_ns() + 3600 * NS_PER_S;
    CHECK_EQ(qos_clock_sleep_until(CLOCK_MONOTONIC, far, 0), -EINTR);
    timer_delete(timer);
}

int main(void)
{
    CHECK_RUN(test_monotonic_never_goes_back);
    CHECK_RUN(test_realtime_is_unix_time);
    CHECK_RUN(test_tai_is_ahead_by_whole_seconds);
    CHECK_RUN(test_read_refuses_an_unknown_clock);
    CHECK_RUN(test_phc_open_refuses_what_is_no_phc);
    CHECK_RUN(test_phc_reads_and_sleeps);
    CHECK_RUN(test_sleep_until_never_returns_early);
    CHECK_RUN(test_sleep_until_the_past_tells_how_late);
    CHECK_RUN(test_sleep_until_refuses_an_unknown_clock);
    CHECK_RUN(test_sleep_until_is_interrupted_by_a_signal);
    return check_done();
}
