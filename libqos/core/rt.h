/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Real time: what a thread asks of the kernel (scheduling class and priority, CPUs, memory locking, timer slack), and what
 * to tell the user when it is refused.
 *
 * Each call concerns the calling thread (memory locking: the process), changes nothing when it fails, and returns 0 or a
 * negative errno, for which qos_rt_explain() has the remedy. A refusal is never fatal: the caller warns once and goes on.
 */
#ifndef QOS_RT_H
#define QOS_RT_H

#ifndef QOS_CDEF
#include <stddef.h>
#include <stdint.h>
#endif

/* Scheduling classes, sched(7). */
enum qos_rt_class {
    QOS_RT_OTHER, /* the default, fair */
    QOS_RT_BATCH, /* fair, for long computations */
    QOS_RT_IDLE,  /* only when nothing else wants the CPU */
    QOS_RT_FIFO,  /* real time: runs until it blocks */
    QOS_RT_RR,    /* real time: takes turns with its equals */
};

/* What was asked for, for qos_rt_explain(). */
enum qos_rt_request {
    QOS_RT_SCHEDULER,
    QOS_RT_AFFINITY,
    QOS_RT_MEMORY,
    QOS_RT_NAME,
    QOS_RT_TIMER_SLACK,
    QOS_RT_SLICE,
};

#define QOS_RT_SLICE_MIN_NS 100000
#define QOS_RT_SLICE_MAX_NS 100000000
#define QOS_RT_NAME_MAX 15
#define QOS_RT_CPU_MAX 1024

/* Priority 1 to 99 for FIFO and RR, 0 for the others. -EINVAL, -EPERM. */
int qos_rt_set_scheduler(enum qos_rt_class class_, int priority);
int qos_rt_get_scheduler(enum qos_rt_class *class_, int *priority);

/* Run only on these CPUs (numbers from 0). -EINVAL: none of them exists or is allowed here, or one is QOS_RT_CPU_MAX or more. */
int qos_rt_set_affinity(const uint32_t *cpus, size_t count);
/* The CPUs the thread may run on; returns how many there are, of which at most `room` are stored. */
int qos_rt_get_affinity(uint32_t *cpus, size_t room);

/*
 * Keep all memory of the process, present and future, in RAM. Refused (-EPERM) when a limit on locked memory applies:
 * later allocations would fail with it. -ENOMEM, -EAGAIN: too little memory.
 */
int qos_rt_lock_memory(void);
int qos_rt_unlock_memory(void);

/* Name of the thread, as ps and top show it, at most QOS_RT_NAME_MAX bytes: -ENAMETOOLONG. */
int qos_rt_set_name(const char *name);

/* How late a timer may fire for the sake of saving power; 1 or more (the default is 50000). -EINVAL for 0. */
int qos_rt_set_timer_slack(uint64_t slack_ns);

/*
 * How long the thread, of a fair class, may run before another's turn comes. Whoever asks for little at a time is let in soon
 * when it wakes, also where others keep the CPU busy, and gets no larger share (sched(7), EEVDF; without effect before Linux
 * 6.12). -EINVAL: not QOS_RT_SLICE_MIN_NS to QOS_RT_SLICE_MAX_NS, or a real-time class.
 */
int qos_rt_set_slice(uint64_t slice_ns);

/* Why the kernel refused `request` with `error` (an errno of either sign) and what to do: a constant string, never NULL. */
const char *qos_rt_explain(enum qos_rt_request request, int error);

#endif /* QOS_RT_H */
