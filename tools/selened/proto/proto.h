/* SPDX-License-Identifier: Apache-2.0
 *
 * The three local protocols of SELENE, all SOCK_SEQPACKET over unix sockets, one struct per packet, host byte order (one machine):
 *
 *   client  <-> selened      control socket PATH (0660): what a session wants and where its data goes        SELENE_C_*, SELENE_S_*
 *   client  <-> selened-dp   session socket (a socketpair that selened hands out): memory, rings, edges       SELENE_D_*
 *   selened <-> selened-dp   order socket PATH.dp (0600, same user only): what the datapath shall do          SELENE_O_*, SELENE_E_*
 *
 * Every packet starts with struct selene_msg; `length` is the whole packet, `request` is echoed in the answer (0: not an answer).
 * An answer to a refused request is SELENE_S_ERROR. A receiver checks length before it reads a field, ignores nothing it does not
 * know (an unknown type ends the connection with a reason) and copies a packet before it looks at it. Descriptors travel with
 * SCM_RIGHTS in the order given beside each struct.
 */
#ifndef SELENE_PROTO_H
#define SELENE_PROTO_H

#include <stdint.h>

#define SELENE_PROTO_MAGIC 0x314e4c53 /* "SLN1" */
#define SELENE_PROTO_VERSION 3
#define SELENE_MAX_PACKET 65536
#define SELENE_MAX_FDS 8
#define SELENE_MAX_NAME 255 /* bytes of a channel name */
#define SELENE_MAX_TEXT 512
#define SELENE_MAX_FAULT 256
#define SELENE_MAX_ENDPOINTS 4096 /* sources and sinks of a session */
#define SELENE_MAX_DESTS 64       /* remote destinations of a source */
#define SELENE_MAX_ACCEPT 1024    /* remote sources of a sink */
#define SELENE_MAX_SESSIONS 256
#define SELENE_TX_BUFFERS 256     /* buffers of a session's transmit pool */
#define SELENE_RX_BUFFERS 256     /* buffers of a user's receive pool in the datapath process */
#define SELENE_RING_CAPACITY 4096 /* words of each ring of a session page; a slice takes two */
#define SELENE_EDGE_DEPTH 1024    /* messages of an edge by default */

enum selene_type {
    /* client -> selened */
    SELENE_C_HELLO =
        1, /* fds: /proc/self/ns/net of the client, then with SELENE_RESUME the UDP socket of a direct session */
    SELENE_C_STREAM = 2,
    SELENE_C_SOURCE = 3,
    SELENE_C_SINK = 4, /* fd: the sink's eventfd */
    SELENE_C_CLOSE = 5,
    SELENE_C_ACCEPTED = 6, /* an S_ACCEPT is in force: its request, and the sink in struct selene_close */
    SELENE_C_RESTORED = 7, /* a session that goes on has said again all that it has; a header, not answered */
    /* selened -> client */
    SELENE_S_WELCOME =
        32, /* fds: session socket, then the UDP socket if SELENE_DIRECT; none of them with SELENE_RESUME */
    SELENE_S_STREAM = 33,
    SELENE_S_ENDPOINT = 34,
    SELENE_S_OK = 35,
    SELENE_S_ERROR = 36,
    SELENE_S_ROUTE = 37,  /* pushed */
    SELENE_S_ACCEPT = 38, /* pushed */
    /* selened-dp -> client */
    SELENE_D_SESSION =
        64, /* fds: transmit pool (rw), session page (rw), receive pool (ro), wake eventfd, doorbell socket */
    SELENE_D_EDGE_SOURCE = 65, /* fds: edge (rw), the sink's eventfd */
    SELENE_D_EDGE_SINK = 66,   /* fds: edge (rw), the producer's transmit pool (ro) */
    SELENE_D_EDGE_GONE = 67,
    /* selened -> selened-dp */
    SELENE_O_HELLO = 96,
    SELENE_O_LISTEN = 97, /* fd: the datapath's UDP socket, bound */
    SELENE_O_SESSION =
        98, /* fd: the datapath's end of the session socket. id: its token. The S_OK brings fd: session page (ro).
                            * With SELENE_RESUME and no fd: S_OK if session, token and uid are those of a session that is alive,
                            * else -ENOENT */
    SELENE_O_SESSION_END = 99,
    SELENE_O_EDGE = 100, /* fd: the sink's eventfd */
    SELENE_O_EDGE_END = 101,
    SELENE_O_ROUTE = 102,
    SELENE_O_ACCEPT = 103,
    SELENE_O_STATS = 104,
    SELENE_O_STOP = 105,
    SELENE_O_FSCK = 106,
    /* selened-dp -> selened; refusals are SELENE_S_ERROR, agreement SELENE_S_OK */
    SELENE_E_READY = 128,
    SELENE_E_SESSION_GONE = 129, /* pushed */
    SELENE_E_STATS = 130,
    SELENE_E_FSCK = 131,
};

enum selene_flag {
    SELENE_RELAYED = 1, /* HELLO: asked for; WELCOME, ROUTE: in force */
    SELENE_DIRECT = 2,  /* WELCOME: a UDP socket comes with it */
    SELENE_RESUME =
        4, /* HELLO: session and token are from an earlier WELCOME of this datapath process; WELCOME: the session
                         * goes on with its descriptors and memory (without the flag it is a new one); O_SESSION: see there */
};

enum selene_acceleration { SELENE_SLOW = 0, SELENE_FAST = 1 };
enum selene_resources { SELENE_LOW = 0, SELENE_ANY = 1 };
enum selene_delivery { SELENE_BEST_EFFORT = 0, SELENE_RELIABLE = 1 };
enum selene_technology { SELENE_UDP = 1, SELENE_XDP = 2, SELENE_DPDK = 3, SELENE_RDMA = 4 };

struct selene_msg {
    uint32_t magic;
    uint16_t version;
    uint16_t type;
    uint32_t length;
    uint32_t request;
};

/* IPv4 as v4-mapped IPv6; port in host byte order. */
struct selene_addr {
    uint8_t ip[16];
    uint16_t port;
    uint16_t reserved;
    uint32_t scope;
};

struct selene_hello {
    struct selene_msg msg;
    uint32_t flags;
    uint32_t pid; /* for reports only: liveness is the connected socket */
    uint64_t session;
    uint64_t token;
    char program[32];
};

struct selene_welcome {
    struct selene_msg msg;
    uint32_t flags;
    uint32_t host;
    uint64_t session;
    uint64_t token;
    struct selene_addr address;   /* of the UDP socket */
    char fault[SELENE_MAX_FAULT]; /* faults to put around it, as qos_fault_parse takes them; empty: none */
};

struct selene_error {
    struct selene_msg msg;
    int32_t error; /* positive errno */
    uint32_t reserved;
    char text[SELENE_MAX_TEXT];
};

struct selene_stream_open {
    struct selene_msg msg;
    uint32_t handle; /* the client's number, unique in its session */
    uint32_t stream; /* the application's stream id */
    uint32_t acceleration;
    uint32_t resources;
    uint32_t delivery;
    uint32_t time_sensitive; /* 0: no */
    uint32_t traffic_class;
    uint32_t reserved;
    uint64_t period_ns;
    uint64_t offset_ns;
};

struct selene_stream_ok {
    struct selene_msg msg;
    uint32_t handle;
    uint32_t technology;
    uint32_t warning; /* 1: the text is a warning (something faster was wanted) */
    uint32_t reserved;
    char text[SELENE_MAX_TEXT];
};

/* SOURCE and SINK. Endpoints meet if stream, channel and name are equal (an unnamed channel has the empty name). */
struct selene_endpoint_open {
    struct selene_msg msg;
    uint32_t handle; /* of the stream */
    uint32_t index;  /* of its counters in the session page */
    uint64_t channel;
    uint64_t id;    /* 0; after a restart of selened the id it had */
    uint32_t depth; /* SINK: messages an edge may hold for it; 0: the default */
    uint32_t name_length;
    char name[SELENE_MAX_NAME + 1];
    uint32_t epoch; /* SOURCE: 0; after a restart of selened the epoch it had */
    uint32_t reserved;
};

struct selene_endpoint_ok {
    struct selene_msg msg;
    uint64_t id;
    uint32_t edges; /* EDGE messages that belong to this endpoint now and that come or came on the session socket */
    uint32_t reserved;
};

struct selene_close {
    struct selene_msg msg;
    uint64_t id;
    uint32_t kind; /* 1 source, 2 sink, 3 stream (id = handle) */
    uint32_t reserved;
};

struct selene_dest {
    struct selene_addr address;
    uint32_t window; /* bytes of credit */
    uint32_t flags;
};

/* Replaces all remote destinations of a source. */
struct selene_route {
    struct selene_msg msg;
    uint64_t source;
    uint32_t epoch;
    uint32_t flags; /* SELENE_RELAYED: hand datagrams to the datapath process, which knows the destinations */
    uint32_t count;
    uint32_t window; /* SELENE_RELAYED: bytes of credit */
    struct selene_dest dests[];
};

struct selene_accept_entry {
    uint64_t source;
    struct selene_addr address;
    uint32_t flags;  /* SELENE_RELAYED: it comes through the receive ring of the session page */
    uint32_t window; /* bytes of credit this source may have under way to us */
};

/* Replaces all remote sources of a sink. With a request number the client confirms it by C_ACCEPTED. */
struct selene_accept {
    struct selene_msg msg;
    uint64_t sink;
    uint32_t count;
    uint32_t reserved;
    struct selene_accept_entry entries[];
};

struct selene_dp_session {
    struct selene_msg msg;
    uint64_t session;
    uint32_t tx_buffers;
    uint32_t rx_buffers;
    uint32_t ring_capacity;
    uint32_t edge_depth;
};

/* EDGE_SOURCE and EDGE_SINK. */
struct selene_edge_open {
    struct selene_msg msg;
    uint64_t edge;
    uint64_t source;
    uint64_t sink;
    uint64_t session;    /* of the producer: the key of its pool mapping */
    uint32_t depth;      /* messages; the forward ring has 2 * depth words, the release ring depth words */
    uint32_t tx_buffers; /* of the producer's pool */
};

struct selene_edge_gone {
    struct selene_msg msg;
    uint64_t edge;
};

struct selene_order {
    struct selene_msg msg;
    uint64_t session;
    uint64_t id; /* edge, source */
    uint32_t uid;
    uint32_t flags;
};

struct selene_order_edge {
    struct selene_msg msg;
    uint64_t edge;
    uint64_t source;
    uint64_t sink;
    uint64_t source_session;
    uint64_t sink_session;
    uint32_t depth;
    uint32_t reserved;
};

/* A relayed source of a local session: remote destinations, and local sessions of other users (count then counts both). */
struct selene_order_route {
    struct selene_msg msg;
    uint64_t source;
    uint64_t session;
    uint64_t channel;
    uint32_t stream;
    uint32_t epoch;
    uint32_t dests_count; /* 0 of both: forget the source */
    uint32_t sessions_count;
    struct selene_dest dests[SELENE_MAX_DESTS];
    uint64_t sessions[SELENE_MAX_DESTS];
};

/* A remote source (or one of a local other user, address all zero) whose datagrams go to these sessions. */
struct selene_order_accept {
    struct selene_msg msg;
    uint64_t source;
    struct selene_addr address;
    uint32_t flags;
    uint32_t sessions_count; /* 0: forget it, after a grace for what is under way */
    uint64_t sessions[SELENE_MAX_DESTS];
};

struct selene_ready {
    struct selene_msg msg;
    uint32_t host; /* random, chosen by this datapath process: the upper half of every source id */
    uint32_t pid;
    uint32_t sessions; /* alive */
    uint32_t flags;    /* 1: it has its UDP socket; 2: it knows SELENE_RESUME in O_SESSION */
    char version[64];
};

struct selene_session_gone {
    struct selene_msg msg;
    uint64_t session;
    int32_t error; /* 0: the client closed or died; else why it was cut off */
    uint32_t reserved;
    char text[SELENE_MAX_TEXT];
};

/* What the datapath process counts. Also per session in the table that follows the totals. */
struct selene_dp_counters {
    uint64_t session; /* 0 in the totals */
    uint64_t tx_datagrams;
    uint64_t tx_bytes;
    uint64_t tx_errors;
    uint64_t rx_datagrams;
    uint64_t rx_bytes;
    uint64_t rx_rubbish;    /* not our header */
    uint64_t rx_version;    /* another version */
    uint64_t rx_unknown;    /* source not announced, or from another address */
    uint64_t rx_overflow;   /* lost in the socket buffer */
    uint64_t dropped_quota; /* the session holds or leaves unread too much */
    uint64_t wakeups;
    uint64_t wakeups_empty;
    uint64_t violations;
};

/* What a fault datapath did on purpose (struct qos_fault_counters). */
struct selene_fault_counters {
    uint64_t lost;
    uint64_t duplicated;
    uint64_t reordered;
    uint64_t corrupted;
    uint64_t delayed;
    uint64_t failed;
};

struct selene_stats {
    struct selene_msg msg;
    uint32_t count;
    uint32_t reserved;
    struct selene_fault_counters fault;
    struct selene_dp_counters counters[]; /* totals first */
};

/* Where the buffers are: of each session's transmit pool, then of each user's receive pool. */
enum selene_fsck_kind { SELENE_FSCK_TX = 1, SELENE_FSCK_RX = 2 };

struct selene_fsck_row {
    uint32_t kind;
    uint32_t uid;
    uint64_t session;    /* TX */
    uint64_t digest;     /* of all words that were looked at: equal in two looks if nothing moved */
    uint64_t borrowed;   /* TX: slots the application has */
    uint64_t emitted;    /* TX: slots that others hold; RX: buffers of which sessions hold something */
    uint64_t references; /* that the owner words name */
    uint64_t held;       /* TX: messages on edges, in or out of the sinks' hands */
    uint64_t leaving;    /* TX: of those, of edges whose sink is gone; the producer has not looked yet */
    uint64_t relayed;    /* TX: datagrams with the datapath process; RX: datagrams that sessions hold */
    uint64_t returning;  /* TX: back from it, not yet free */
    uint64_t free;       /* RX: buffers */
    uint64_t faults;     /* RX: buffers whose counts contradict each other */
};

struct selene_fsck {
    struct selene_msg msg;
    uint32_t count;
    uint32_t sessions;
    uint32_t edges;
    uint32_t leaving; /* edges whose producer has not let go yet */
    uint32_t routes;
    uint32_t accepts;
    uint32_t mapped;   /* pools that are mapped */
    uint32_t expected; /* pools of those that are there */
    struct selene_fsck_row rows[];
};

/* ---- Memory ---- */

/* Written by the client, read by the daemon for reports only. One per endpoint at counters + index. */
struct selene_counters {
    uint64_t id;
    uint32_t kind; /* 1 source, 2 sink, 0 unused */
    uint32_t stream;
    uint64_t channel;
    uint64_t messages;
    uint64_t bytes;
    uint64_t datagrams;
    uint64_t lost;         /* sink: gaps in sequences */
    uint64_t duplicated;   /* sink */
    uint64_t reordered;    /* sink */
    uint64_t dropped;      /* source: best-effort without credit or route buffer; sink: its quota was exceeded */
    uint64_t dropped_slow; /* source: per slow local sink */
    uint64_t refused;      /* sink: malformed or not announced */
    uint64_t failed;       /* source: send errors */
    uint64_t again;        /* source: -EAGAIN given */
    uint64_t returning;    /* source: slices back from the datapath process, not yet free */
    uint64_t edge_dropped; /* sink: by its open edges; added to dropped when they end. Up to a second old */
};

/* Offsets inside the session page. Ring directions from the client's point of view; each ring is a struct qos_ring of
 * SELENE_RING_CAPACITY words, entries of two words: slice, then length | kind << 32 (see selene_word). */
#define SELENE_PAGE_MAGIC 0x31475053                               /* "SPG1" */
#define SELENE_PAGE_RING_BYTES 36864                               /* room for one ring: 9 pages */
#define SELENE_PAGE_TX 4096                                        /* client -> datapath: datagrams to send */
#define SELENE_PAGE_DONE (SELENE_PAGE_TX + SELENE_PAGE_RING_BYTES) /* datapath -> client: slices sent, with outcome */
#define SELENE_PAGE_RX (SELENE_PAGE_DONE + SELENE_PAGE_RING_BYTES) /* datapath -> client: datagrams received */
#define SELENE_PAGE_RELEASE                                                                                            \
    (SELENE_PAGE_RX + SELENE_PAGE_RING_BYTES) /* client -> datapath: received slices given back */
#define SELENE_PAGE_COUNTERS (SELENE_PAGE_RELEASE + SELENE_PAGE_RING_BYTES)
#define SELENE_PAGE_SIZE (SELENE_PAGE_COUNTERS + SELENE_MAX_ENDPOINTS * 128)

/* First page of the session page. `dp_sleeping` is written by the datapath process, which never reads it; `waiting` is written by the
 * client; the datapath process only compares it, sets 1 to 0 before it wakes, and at worst makes a needless wake-up. */
struct selene_page {
    uint32_t magic;
    uint32_t version;
    uint64_t session;
    uint8_t pad0[48];
    uint32_t dp_sleeping; /* 1: write the wake eventfd after a push */
    uint8_t pad1[60];
    uint32_t waiting; /* 0 running; 1 asleep on this word (futex); 2 asleep on the doorbell socket */
    uint8_t pad2[60];
    struct selene_fault_counters fault; /* of a direct session; written by the client, for reports only */
};

enum selene_waiting { SELENE_AWAKE = 0, SELENE_WAIT_FUTEX = 1, SELENE_WAIT_FD = 2 };

/* Second word of a session ring entry: datagram length (32) | outcome (16, positive errno, DONE only) | destination kind (16). */
enum selene_word {
    SELENE_TO_ROUTE = 0,
    SELENE_TO_SOURCE = 1
}; /* TX: to the source's route; CREDIT and PROBE answers to a remote source */

/* The bell page: the first page of a transmit pool's memfd, in front of the pool region. Sinks map the memfd read-only and may sleep
 * on the bell; the producer wakes all of them with one call. */
#define SELENE_BELL_BYTES 4096
struct selene_bell {
    uint32_t bell; /* incremented and woken when a sink of this session's sources sleeps on it */
};

/* An edge's memory is laid out as datapath/shm.h says. */

#endif
