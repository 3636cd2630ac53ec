/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clocks: realtime, TAI, monotonic and PTP hardware clocks (PHC), in nanoseconds; and sleeping until a deadline.
 *
 * A sleeping thread wakes late by the timer slack, the wake-up and what else the CPU does, so the last stretch before
 * the deadline is spun: 200 us by default, 0 in simulated time, where reading the clock moves it.
 */
#ifndef QOS_CLOCK_H
#define QOS_CLOCK_H

#ifndef QOS_CDEF
#include <stdint.h>
#endif

#define QOS_CLOCK_SPIN_DEFAULT_NS 200000

/* Nanoseconds since the epoch of the clock: Unix time, TAI (1970-01-01 TAI), start of the system. */
uint64_t qos_clock_realtime_ns(void);
uint64_t qos_clock_tai_ns(void); /* equal to realtime while nobody (ptp4l, chrony) has told the kernel the TAI offset */
uint64_t qos_clock_monotonic_ns(void);

/*
 * Unix time for stamping messages, some 100 ns off at most. Where the kernel's own clock source is the processor's time-stamp counter
 * this reads that counter, without the ordering that makes clock_gettime wait for every memory access under way; elsewhere it is
 * qos_clock_realtime_ns. Whoever stamps much calls qos_clock_stamp_calibrate some ten times a second; until the second call, and
 * when the last one is seconds ago, the kernel's clock is read.
 */
uint64_t qos_clock_stamp_ns(void);
void qos_clock_stamp_calibrate(void);

/* Read any clock by its clockid (CLOCK_* of time.h, or of a PHC). 0, or -EINVAL, -ENODEV (the PHC has gone). */
int qos_clock_read(int32_t clockid, uint64_t *now_ns);

/*
 * Open a PHC, such as /dev/ptp0, for reading: returns its file descriptor and sets *clockid; close() ends both.
 * Errors: those of open(2), -ENOTTY when the device is not a PHC, -EINVAL when the device gives no time.
 */
int qos_clock_phc_open(const char *device, int32_t *clockid);

/*
 * Sleep until `deadline_ns` on the clock `clockid`, spinning the last `spin_ns`. Never returns 0 or more before the deadline.
 * Returns the lateness in ns (0 or more, also for a deadline that had passed), or -EINTR (a signal handler ran),
 * -EINVAL (no such clock), -ENODEV (the PHC has gone).
 */
int64_t qos_clock_sleep_until(int32_t clockid, uint64_t deadline_ns, uint64_t spin_ns);

#endif /* QOS_CLOCK_H */
