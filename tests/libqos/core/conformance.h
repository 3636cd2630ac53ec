/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every datapath must do, whatever is below it. A datapath is put to the test by one entry in test_conformance.c.
 *
 * A packet may be on its way for a moment after it was sent, so a receiver waits for it (the watchdog comes first) and never
 * concludes from one empty look that it is lost.
 */
#ifndef QOS_TEST_CONFORMANCE_H
#define QOS_TEST_CONFORMANCE_H

#include "datapath/datapath.h"

struct conformance_end {
    struct qos_datapath *dp;
    struct qos_address address; /* where the other end sends to */
};

struct conformance_link {
    struct conformance_end a, b;
};

struct conformance_subject {
    const char *name;
    /* Connect two ends. 1; 0: this machine lacks `resource`. What it made goes when both ends are closed. */
    int (*open)(struct conformance_link *link, const void *options);
    const void *options;
    const char *resource;
    /* After b was closed: open it again where it was, so that a need not know. NULL: not that kind of datapath. */
    void (*reopen)(struct conformance_link *link, const void *options);
    uint32_t max;    /* bytes of the largest packet */
    int late_errors; /* a packet may leave after tx has returned; its failure is then only counted */
};

void conformance_run(const struct conformance_subject *subject);

/* Shared memory behind the interface, for the suite: memory of its own, no addresses. `options` is not looked at. */
int conformance_shm_open(struct conformance_link *link, const void *options);

#endif /* QOS_TEST_CONFORMANCE_H */
