/* SPDX-License-Identifier: Apache-2.0 */
/* AF_XDP between the two ends of a veth pair, in a network namespace of its own; by itself, and with kernel UDP for what it cannot do. */
#include <errno.h>
#include <net/if.h>
#include <sched.h>
#include <sys/mman.h>

#include "check.h"
#include "conformance.h"
#include "datapath/dual.h"
#include "datapath/fault.h"
#include "datapath/xdp/xdp.h"
#include "datapath/xsk.h"
#include "udp_fixture.h"

#define CHUNKS 1024u /* for receiving, and as many for sending */
#define MEMORY (2u * CHUNKS * QOS_XSK_CHUNK)
#define MTU 9000u

struct options {
    int six;
    enum qos_xdp_mode mode;
    uint32_t flags;
    enum { ALONE, FAST, SLOW } with; /* a dual datapath: its fast way, or kernel UDP */
    const char *fault;
};

/* Each end of the pair, as long as the program runs. */
static struct side {
    const char *name;
    uint32_t index;
    uint8_t *memory;
    struct qos_xdp *program;
    enum qos_xdp_mode mode;
} sides[2] = {{.name = "xdp-a"}, {.name = "xdp-b"}};
static const struct qos_xdp_ops *xdp;
static char problem[256];

static int set_up(void)
{
    static const char commands[] =
        "ip link set lo up && ip link add xdp-a mtu 9000 type veth peer name xdp-b mtu 9000 && "
        "ip link set xdp-a up && ip link set xdp-b up";
    if (unshare(CLONE_NEWNET) != 0 || system(commands) != 0)
        return 0;
    for (unsigned i = 0; i < 2; i++) {
        sides[i].index = if_nametoindex(sides[i].name);
        sides[i].memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (!CHECK(sides[i].memory != MAP_FAILED))
            return 0;
    }
    return 1;
}

static struct qos_address address(unsigned side, const struct options *o)
{
    struct qos_address a = {.port = (uint16_t)(7000 + side)};
    uint8_t *ip = a.ip.s6_addr;
    if (o->six)
        memcpy(ip, (uint8_t[]){0xfd, [15] = (uint8_t)(1 + side)}, 16);
    else
        memcpy(ip, (uint8_t[]){[10] = 0xff, 0xff, 192, 0, 2, (uint8_t)(1 + side)}, 16);
    return a;
}

/* The program in the mode that is asked for. */
static int attach(struct side *s, enum qos_xdp_mode mode)
{
    if (s->program != NULL && s->mode == mode)
        return 1;
    if (s->program != NULL)
        xdp->detach(s->program);
    s->program = NULL;
    s->mode = mode;
    int rc = xdp->attach(&s->program, s->index, &s->mode, problem, sizeof problem);
    if (rc != 0)
        printf("%s: %s\n", s->name, problem);
    return rc == 0;
}

/* A dual datapath whose packets all go by the fast way, as far as they fit. */
static struct qos_datapath_ops fast_ops;
static int (*dual_tx)(struct qos_datapath *, struct qos_packet *, unsigned);

static int fast_tx(struct qos_datapath *dp, struct qos_packet *packets, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        packets[i].fast = true;
    return dual_tx(dp, packets, n);
}

/* A kernel UDP socket at the end's address, and both together. */
static void make_dual(struct conformance_end *e, const struct end *udp, const struct options *o)
{
    struct qos_fault fault;
    struct qos_datapath *dual;
    CHECK_EQ(qos_udp_coalesce(udp->dp, 0), 0);
    CHECK_EQ(qos_dual_open(&dual, udp->dp), 0);
    CHECK(qos_dual_fast(dual) == NULL);
    CHECK_EQ(qos_dual_add(dual, e->dp), 0);
    CHECK(qos_dual_fast(dual) == e->dp);
    CHECK_EQ(qos_dual_add(dual, e->dp), -EALREADY);
    if (dual_tx == NULL) { /* once: a thread of a fault datapath may be reading */
        dual_tx = dual->ops->tx;
        fast_ops = *dual->ops;
        fast_ops.tx = fast_tx;
    }
    if (o->with == FAST)
        dual->ops = &fast_ops;
    e->dp = dual;
    if (o->fault) {
        CHECK_EQ(qos_fault_parse(&fault, o->fault, problem, sizeof problem), 0);
        CHECK_EQ(qos_fault_open(&e->dp, e->dp, &fault, NULL), 0);
    }
}

static int open_side(struct conformance_link *l, unsigned number, const struct options *o)
{
    struct side *s = &sides[number];
    struct conformance_end *e = number == 0 ? &l->a : &l->b;
    if (!attach(s, o->mode))
        return 0;
    struct qos_xsk_device device = {.ifindex = s->index, .mtu = MTU, .flags = o->flags};
    struct qos_xsk_memory memory = {s->memory, MEMORY, CHUNKS, CHUNKS};
    struct end udp = {0};
    e->address = address(number, o);
    if (o->with != ALONE) {
        udp = open_end(o->six ? AF_INET6 : AF_INET, e->address.port);
        e->address = udp.address;
    }
    int fd = qos_xsk_create(&device, &memory);
    if (fd < 0) {
        printf("%s: %s\n", s->name, strerror(-fd));
        return 0;
    }
    if (!CHECK_EQ(qos_xsk_open(&e->dp, fd, &device, &memory, &e->address), 0))
        return 0;
    struct qos_udpip_ends ends = {.from = e->address, .to = address(1 - number, o), .from_mac = {2}, .to_mac = {2}};
    if (o->with != ALONE)
        ends.to.ip = e->address.ip;
    CHECK_EQ(qos_xsk_reach(e->dp, &ends), 0);
    CHECK_EQ(xdp->set_socket(s->program, 0, fd), 0);
    CHECK_EQ(xdp->set_port(s->program, e->address.port, 0), 0);
    if (o->with != ALONE)
        make_dual(e, &udp, o);
    return 1;
}

static int open_xdp(struct conformance_link *l, const void *options)
{
    return open_side(l, 0, options) && open_side(l, 1, options);
}

static void reopen_xdp(struct conformance_link *l, const void *options)
{
    CHECK_EQ(open_side(l, 1, options), 1);
}

#define XDP(...)                                                                                                       \
    .open = open_xdp, .reopen = reopen_xdp, .resource = "xdp", .options = &(const struct options)                      \
    {                                                                                                                  \
        __VA_ARGS__                                                                                                    \
    }

static const struct conformance_subject SUBJECTS[] = {
    {"xdp, generic", XDP(.mode = QOS_XDP_GENERIC, .flags = QOS_XSK_COPY), .max = MTU - QOS_UDPIP_OVERHEAD4},
    {"xdp, native", XDP(.mode = QOS_XDP_NATIVE, .flags = QOS_XSK_COPY), .max = MTU - QOS_UDPIP_OVERHEAD4},
    {"xdp, native, busy polling, IPv6", XDP(.six = 1, .mode = QOS_XDP_NATIVE, .flags = QOS_XSK_BUSY_POLL),
     .max = MTU - QOS_UDPIP_OVERHEAD6},
    {"dual, fast", XDP(.mode = QOS_XDP_GENERIC, .with = FAST), .max = MTU - QOS_UDPIP_OVERHEAD4},
    {"dual over IPv6, fast", XDP(.six = 1, .mode = QOS_XDP_NATIVE, .with = FAST), .max = MTU - QOS_UDPIP_OVERHEAD6},
    {"dual, slow", XDP(.mode = QOS_XDP_GENERIC, .with = SLOW), .max = 65507},
    {"fault(dual) that holds all, fast", XDP(.mode = QOS_XDP_GENERIC, .with = FAST, .fault = "seed=7,delay=1ns"),
     .max = MTU - QOS_UDPIP_OVERHEAD4, .late_errors = 1},
};

int main(void)
{
    check_begin("set-up");
    xdp = qos_xdp_load(getenv("QOS_MODULES"), problem, sizeof problem);
    if (xdp == NULL || !set_up()) {
        CHECK_SKIP("xdp", xdp == NULL ? problem : "no network namespace with a veth pair");
        return check_done();
    }
    for (unsigned i = 0; i < sizeof SUBJECTS / sizeof *SUBJECTS; i++)
        conformance_run(&SUBJECTS[i]);
    return check_done();
}
