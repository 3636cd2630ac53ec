/* SPDX-License-Identifier: Apache-2.0 */
/* Every datapath, and each way of using it that changes what it does below: one entry in SUBJECTS. */
#include "check.h"
#include "conformance.h"
#include "datapath/fault.h"
#include "udp_fixture.h"

/* ---- Kernel UDP over loopback ---- */

struct udp_options {
    int family;
    int paired;
    int coalescing;
    const char *fault; /* around both ends; NULL: none */
};

static int open_udp_end(struct conformance_end *e, const struct udp_options *o)
{
    struct end made = open_end(o->family, e->address.port);
    *e = (struct conformance_end){made.dp, made.address};
    return made.dp != NULL && CHECK_EQ(qos_udp_coalesce(e->dp, o->coalescing), 0);
}

/* Before its faults, which do not know of peers. */
static void finish_udp_end(struct conformance_end *e, const struct conformance_end *peer, const struct udp_options *o)
{
    struct qos_fault fault;
    char problem[128];
    if (o->paired)
        CHECK_EQ(qos_udp_pair(e->dp, &peer->address), 0);
    if (o->fault) {
        CHECK_EQ(qos_fault_parse(&fault, o->fault, problem, sizeof problem), 0);
        CHECK_EQ(qos_fault_open(&e->dp, e->dp, &fault, NULL), 0);
    }
}

static int open_udp(struct conformance_link *l, const void *options)
{
    if (!open_udp_end(&l->a, options))
        return 0;
    if (!CHECK(open_udp_end(&l->b, options)))
        exit(check_done());
    finish_udp_end(&l->a, &l->b, options);
    finish_udp_end(&l->b, &l->a, options);
    return 1;
}

static void reopen_udp(struct conformance_link *l, const void *options)
{
    if (!CHECK(open_udp_end(&l->b, options)))
        exit(check_done());
    finish_udp_end(&l->b, &l->a, options);
}

/* ---- Shared memory in faults ---- */

static int open_faulty_shm(struct conformance_link *l, const void *options)
{
    const struct udp_options o = {.fault = options};
    conformance_shm_open(l, NULL);
    finish_udp_end(&l->a, NULL, &o);
    finish_udp_end(&l->b, NULL, &o);
    return 1;
}

/* A delay that is none makes the fault datapath hold, copy and send by itself all that goes through it. */
#define NO_FAULT "seed=7"
#define HOLD_ALL "delay=1ns"
#define HOLD_SENT "delay=1ns,direction=tx"
#define HOLD_RECEIVED "delay=1ns,direction=rx"

#define OPTIONS(...)                                                                                                   \
    .options = &(const struct udp_options)                                                                             \
    {                                                                                                                  \
        __VA_ARGS__                                                                                                    \
    }
#define UDP4(...)                                                                                                      \
    .open = open_udp, .reopen = reopen_udp, .resource = "loopback", .max = 65507, OPTIONS(AF_INET, __VA_ARGS__)
#define UDP6(...)                                                                                                      \
    .open = open_udp, .reopen = reopen_udp, .resource = "ipv6", .max = 65527, OPTIONS(AF_INET6, __VA_ARGS__)

static const struct conformance_subject SUBJECTS[] = {
    {"udp", UDP4(.paired = 0)},
    {"udp, coalescing", UDP4(.coalescing = 1)},
    {"udp, paired", UDP4(.paired = 1)},
    {"udp, paired, coalescing", UDP4(.paired = 1, .coalescing = 1)},
    {"udp over IPv6", UDP6(.paired = 0)},
    {"udp over IPv6, paired, coalescing", UDP6(.paired = 1, .coalescing = 1)},
    {"fault(udp) without faults", UDP4(.coalescing = 1, .fault = NO_FAULT)},
    {"fault(udp) that holds all", UDP4(.coalescing = 1, .fault = HOLD_ALL), .late_errors = 1},
    {"fault(udp) that holds what is sent", UDP4(.paired = 1, .fault = HOLD_SENT), .late_errors = 1},
    {"fault(udp over IPv6) that holds what is received", UDP6(.paired = 1, .fault = HOLD_RECEIVED)},
    {"shm", .open = conformance_shm_open, .max = 65536},
    {"fault(shm) without faults", .open = open_faulty_shm, .options = NO_FAULT, .max = 65536},
    {"fault(shm) that holds all", .open = open_faulty_shm, .options = HOLD_ALL, .max = 65536, .late_errors = 1},
};

int main(void)
{
    for (unsigned i = 0; i < sizeof SUBJECTS / sizeof *SUBJECTS; i++)
        conformance_run(&SUBJECTS[i]);
    return check_done();
}
