/* SPDX-License-Identifier: Apache-2.0
 *
 * Inside libselene. Who touches what:
 *
 *   service thread   the two daemon sockets, reconnection, the batch timer. It never touches an endpoint's data path: what it learns it
 *                    leaves in the endpoint's inbox (under session->lock) and raises `changed`; the endpoint's own thread takes it.
 *   source's thread  edges, cache, sequence; the batch too, behind batch_gate: the timer and threads that are about to sleep visit it
 *                    to send what is in it, and append nothing.
 *   sink's thread    its edges and current datagram.
 *   receiver         whichever sink's (or waiting source's) thread got session->receiving: it takes datagrams from the socket or the
 *                    receive ring, checks them, and queues them at the sinks (session->remote_lock guards that table).
 *
 * Lock order: lock, remote_lock, batch_gate, then the leaf lock relay_lock.
 */
#ifndef SELENE_INTERNAL_H
#define SELENE_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "clock.h"
#include "compiler.h"
#include "datapath/fault.h"
#include "datapath/shm.h"
#include "frame.h"
#include "gate.h"
#include "pool.h"
#include "proto.h"
#include "ring.h"
#include "selene.h"
#include "wait.h"

#define SLICE_SLEEP_NS 100000000u /* a sleeper looks round at least every 100 ms */
#define BATCH_CLOSE_NS 15000u     /* a source that goes on emitting sends a batch this long after it was opened */
#define BATCH_DENSE_NS 60000u     /* one that emits so fast that it pays, up to this long */
#define BATCH_DENSE_EVERY_NS 500u /* that is, at least a message in this time */
#define BATCH_DENSE_CLOCK                                                                                              \
    8u /* and it reads the clock for one message in so many: each time costs 25 ns in a virtual machine */
#define BATCH_GRACE_NS 5000u /* what its source has not sent by then, the timer does */
#define BATCH_TIMER_NS (BATCH_CLOSE_NS + BATCH_GRACE_NS)
#define BATCH_LATE_NS 200000u    /* in a flood that its sources keep up themselves, the timer looks this late at most */
#define BATCH_LINGER_NS 1000000u /* the timer stays awake this long after the last batch */
#define BATCH_IDLE_MAX_NS 2000u  /* emits further apart than this are never batched */
#define EDGE_QUOTA(buffers)                                                                                            \
    ((uint64_t)(buffers) * QOS_POOL_STRIDE / 2) /* what one slow sink may hold of a producer's pool */
#define RX_SLABS 128
#define RX_ITEMS 4096
#define RX_OFFSET 48u /* the first payload of a reception is then 64-byte aligned */
#define RX_COPYBREAK                                                                                                   \
    2048 /* smaller datagrams are copied into their item, so that a held message does not hold 64 KiB */
#define SINK_PENDING 4096  /* datagrams queued at a sink; a power of two */
#define SINK_HELD_MAX 8192 /* messages an application may hold of one sink */
#define CLOSE_WAIT_NS 1000000000u
#define RELAY_OUTSTANDING (SELENE_RING_CAPACITY / 2) /* datagrams with the datapath process */
#define BATCH_BYTES 61440u /* of one send: below the largest datagram, and its slices' offsets fit */
#define BATCH_SEGMENTS 64
#define CREDIT_JUMP (1u << 26)      /* between the credit values of two paths: more than twice any window */
#define REMOTE_GRACE_NS 5000000000u /* a withdrawn source's datagrams may still be under way */

/* The mappings of one life of the datapath process. They outlive it while somebody holds a buffer. */
struct memory {
    _Atomic uint32_t references;
    uint64_t session;
    uint8_t *tx_base; /* bell page, then the pool */
    size_t tx_size;
    struct qos_pool *pool;
    struct selene_page *page;
    struct qos_region rx;
    uint8_t *rx_base;
    size_t rx_size;
    uint32_t tx_buffers;
    uint32_t edge_depth;
    int wake_fd;
    int doorbell;
    struct qos_datapath *udp; /* NULL: relayed */
    struct qos_datapath *net; /* through which it is used: itself, or the faults around it */
    struct qos_ring_producer relay_tx;
    struct qos_ring_consumer relay_done;
    struct qos_ring_consumer relay_rx;
    struct qos_ring_producer relay_release;
    struct qos_cache *credit_cache; /* slots of relayed credit datagrams; under relay_lock */
    uint32_t outstanding;           /* entries the datapath process has not finished; under relay_lock */
};

/* A producer's pool, mapped read-only, shared by the edges from it. */
struct pool_view {
    struct pool_view *next;
    uint64_t session;
    uint8_t *base;
    size_t size;
    struct qos_region region;
    uint32_t references;
};

struct edge_out {
    struct edge_out *next; /* in an inbox */
    uint64_t id, source, sink;
    struct qos_shm_producer shm;
    int event_fd;
    _Atomic bool gone; /* the sink is no more */
};

/* What has come of one source. */
struct sequence {
    uint64_t expected; /* next sequence number */
    uint64_t seen;     /* bit i: expected - 1 - i arrived */
    uint64_t before;   /* what was expected when the newest leap came; 0: none */
    bool started;
};

/* What a sink knows of one local source, over all edges from it: after a restart of the datapath process it comes by another. */
struct local_flow {
    struct local_flow *next;
    uint64_t source;
    uint32_t edges;
    struct sequence sequence;
};

struct edge_in {
    struct edge_in *next;
    uint64_t id, source, sink;
    struct qos_shm_consumer shm;
    struct pool_view *view;
    struct local_flow *flow;
    _Atomic bool gone; /* no more will come */
    uint32_t held;     /* messages the application holds */
};

/* One received datagram. Shared by the sinks of the channel, and by the messages handed out of it. */
struct item {
    _Atomic bool busy;
    struct qos_wire wire;
    uint8_t *data;
    uint32_t size;
    _Atomic uint32_t references;
    _Atomic uint32_t untaken; /* sinks that have not begun with it */
    uint32_t slab;            /* direct: index + 1; 0: relayed */
    uint64_t slice;           /* relayed */
    struct memory *memory;    /* relayed */
    struct remote *remote;
    uint64_t arrived_ns; /* if somebody stamps */
    _Alignas(QOS_CACHE_LINE) uint8_t copy[RX_OFFSET + RX_COPYBREAK];
};

/* What one sink knows of one remote source. */
struct inflow {
    struct selene_sink *sink;
    struct sequence sequence;
};

struct remote {
    struct remote *next; /* hash chain */
    uint64_t id;
    struct qos_address address;
    bool relayed;
    uint64_t closed_ns; /* 0: announced */
    uint64_t direct_ns; /* when its path ceased to be direct */
    uint32_t window;
    uint32_t seen; /* highest credit value received */
    _Atomic uint32_t taken;
    _Atomic uint32_t credited; /* last value sent */
    /* change of path; the receiver's */
    bool started;
    uint32_t epoch;      /* of the path that is in force */
    uint64_t awaited;    /* sequence behind what has come on it */
    struct item **aside; /* what came on the next path before all of this one has; NULL until there was any */
    uint32_t aside_count;
    uint64_t aside_ns; /* since when */
    uint32_t sinks;
    struct inflow *inflows[SELENE_MAX_DESTS];
};

struct pending {
    struct item *item;
    struct inflow *inflow;
};

struct dest {
    struct qos_address address;
    _Atomic uint32_t window;
    _Atomic uint32_t sent;
    _Atomic uint32_t acked;
};

struct batch {
    uint64_t slice;             /* a whole buffer of the cache; valid if open or kept */
    uint8_t *data;              /* NULL: no buffer yet */
    uint32_t used;              /* bytes in complete segments and the open one */
    uint32_t segment;           /* size of the equal segments */
    uint32_t start;             /* of the open segment */
    uint32_t count;             /* records in the open segment */
    uint64_t first;             /* sequence of the first record of the batch */
    uint64_t send_ns;           /* of the open segment's first record */
    _Atomic uint64_t opened_ns; /* 0: closed; its thread looks without the lock */
    _Atomic uint64_t lasts_ns;  /* how long its source may keep it open */
    uint32_t messages;
    uint32_t untimed;      /* emits since the clock was read for one */
    uint64_t newest_ns;    /* time of the last record */
    _Atomic uint32_t cost; /* credit it takes; the timer sends while the source looks */
};

struct selene_stream {
    struct selene_stream *next;
    _Atomic uint32_t references; /* the application's, and one per endpoint */
    struct selene_session *session;
    selene_options options;
    uint32_t handle;
    char technology[16];
    char reason[SELENE_MAX_TEXT];
};

struct endpoint {
    uint64_t id;
    _Atomic bool named; /* the daemon has said that this is its id; until then a reliable source waits */
    uint64_t channel;
    char name[SELENE_MAX_NAME + 1];
    uint32_t index; /* of the counters */
    uint32_t epoch; /* of a source's path, so that a restarted daemon goes on from there */
    uint32_t edges_expected, edges_seen;
};

struct selene_source {
    struct selene_source *next;
    struct selene_session *session;
    struct selene_stream *stream;
    struct endpoint endpoint;
    _Atomic bool changed;
    bool stale; /* the memory belongs to a dead datapath process and buffers of it are still borrowed */
    /* inbox, under session->lock */
    struct edge_out *inbox;
    struct dest *new_dests;
    uint32_t new_count, new_epoch, new_flags, new_window;
    bool new_route, new_memory;
    /* own thread */
    struct memory *memory;
    struct qos_cache *cache;
    uint32_t borrowed;
    struct edge_out **edges;
    uint32_t edge_count, edge_room;
    struct qos_cast_producer cast; /* the ring for several sinks; ring NULL: never had several */
    uint64_t cast_slice;           /* where it is in the pool */
    uint64_t sequence;
    uint64_t last_send_ns, send_cost_ns; /* end of the last send, and how long it took */
    uint32_t last_consumed;
    uint64_t probe_ns;
    struct selene_counters *counters;
    selene_stamps *stamps; /* NULL: nobody asked */
    bool lent;             /* a place in the batch, to the application */
    bool parted;           /* the batch goes on in another buffer than that place's */
    uint32_t lent_size;
    uint64_t lent_slice; /* its buffer, when parted */
    /* behind batch_gate, whose owner is the source's thread */
    struct qos_gate batch_gate;
    struct dest *dests;
    uint32_t dest_count, epoch, segment_limit;
    uint32_t credit_top; /* where the newest path began to count */
    bool relayed;
    struct dest relay; /* credit of the relayed path */
    struct batch batch;
    bool closes;        /* it has closed a batch by itself since the timer did */
    bool dense;         /* messages in the last batch came fast */
    uint64_t *returned; /* what the datapath process is done with, slice and outcome in turn; under relay_lock */
    _Atomic uint32_t returned_count;
    struct selene_source *next_sending; /* under remote_lock: sources credit may come for */
    int16_t outcomes[SELENE_OUTCOMES];  /* 1 sent, 0 pending, -errno */
};

/* How a sink's thread sleeps, so that others know how to wake it. */
enum dispatch_sleeping { DISPATCH_POLLS = 1, DISPATCH_RECEIVES = 2 };
enum sleeping { AWAKE = 0, SLEEP_TURN = 1, SLEEP_FD = 2, SLEEP_BELL = 3, SLEEP_RECEIVER = 4, SLEEP_LINK = 5 };

struct selene_sink {
    struct selene_sink *next;
    struct selene_session *session;
    struct selene_stream *stream;
    struct endpoint endpoint;
    selene_data_cb callback;
    void *arg;
    _Atomic bool changed;
    struct edge_in *inbox;
    int event_fd;
    int poll_fd; /* epoll of all that may bring a message; -1 until asked for */
    _Atomic bool armed;
    bool spin;
    struct qos_spin spinner;
    uint64_t emptied, emptied_ns; /* messages taken when there were no more, and when that was */
    uint32_t floods;              /* times in a row that they had come fast */
    struct qos_courtesy courtesy;
    /* own thread */
    struct edge_in **edges;
    uint32_t edge_count, edge_room, edge_turn;
    struct local_flow *flows;
    bool postponed; /* an edge in the inbox waits for the one before it to be empty */
    uint32_t held;
    struct memory *memory; /* whose page has the counters */
    struct pending current;
    uint32_t current_offset, current_index;
    uint32_t spare; /* references to the current datagram that go with no message */
    struct selene_counters *counters;
    selene_stamps *stamps; /* NULL: nobody asked */
    /* SPSC: the receiver queues, the sink's thread takes */
    struct pending *queue;
    _Atomic uint32_t queue_head, queue_tail;
    _Atomic uint32_t remotes;             /* remote sources it accepts */
    _Atomic uint32_t sleeping;            /* enum sleeping */
    const _Atomic uint32_t *_Atomic bell; /* what it sleeps on */
};

struct request {
    struct request *next;
    uint32_t number;
    bool done;
    int error;
    struct endpoint *endpoint; /* the one the answer names, or NULL */
    union {
        struct selene_stream_ok stream;
        struct selene_endpoint_ok endpoint;
    } answer;
    char text[SELENE_MAX_TEXT];
};

struct selene_session {
    char socket_path[512]; /* as given; what is too long for an address is refused when it is dialled */
    selene_session_options options;
    char program[32];
    pthread_t service, dispatcher;
    bool dispatching;
    _Atomic bool stop;
    _Atomic bool connected; /* to selened and selened-dp */
    int control_fd, session_fd, kick_fd;
    uint64_t id, token;
    uint32_t host;
    bool direct;
    pthread_mutex_t lock;
    pthread_cond_t cond;
    struct request *requests;
    uint32_t request_number, handle_number;
    struct selene_stream *streams;
    struct selene_source *sources;
    struct selene_sink *sinks;
    struct memory *memory;
    struct memory *retired; /* the one before: somebody may be in the middle of a call with it */
    struct pool_view *views;
    struct edge_out *orphans_out; /* edges and announcements that came before the answer that names their endpoint */
    struct edge_in *orphans_in;
    struct orphan *orphans;
    uint32_t orphan_count;
    struct selene_source *closing; /* closed by the application; their sinks still hold buffers */
    uint64_t indices[SELENE_MAX_ENDPOINTS / 64];
    int callback_fd;                    /* eventfd of all callback sinks */
    pthread_mutex_t dispatch_lock;      /* recursive: one thread at a time runs callbacks */
    _Atomic uint32_t dispatch_sleeping; /* enum dispatch_sleeping */
    _Atomic uint32_t pollers, closers;
    struct qos_spin dispatch_spinner; /* of who has the lock */
    uint64_t sinks_generation;
    uint64_t retry_ns, backoff_ns;
    _Atomic uint32_t consumed; /* counts consume calls: who answers messages one by one is not a flood, however fast */
    /* batch timer */
    _Atomic uint32_t timer_awake;
    _Atomic uint64_t last_batch_ns;  /* when the newest batch was opened */
    _Atomic uint64_t flood_since_ns; /* since when sources have closed all batches by themselves */
    _Atomic uint32_t open_batches;
    /* reception */
    _Atomic bool ring_used;     /* something may come through the receive ring */
    _Atomic bool polled;        /* a poll loop watches the doorbell */
    _Atomic uint32_t stamping;  /* sinks that want to know when messages arrived */
    uint64_t arrived_ns;        /* the latest ones; the receiver's */
    _Atomic uint32_t receiving; /* 1: somebody is the receiver */
    _Atomic bool role_wanted;   /* by the service thread: no sink takes it again before it has had it */
    _Atomic uint32_t turn;      /* futex: bumped when the receiver leaves or queues for another sink */
    _Atomic uint32_t followers;
    pthread_mutex_t remote_lock;
    struct remote *remotes[256];
    struct selene_source *sending;
    bool paired; /* the socket is connected to the only peer there is */
    struct qos_address pair;
    _Atomic bool pair_again;          /* somebody had to undo it for a moment */
    _Atomic uint64_t pair_due_ns;     /* not 0: it may be possible then */
    struct selene_counters *counters; /* of the session itself: what was refused */
    uint8_t *slabs;
    _Atomic uint32_t slab_references[RX_SLABS];
    uint32_t receptions;    /* since coalescing was last thought about */
    uint64_t receptions_ns; /* when that was */
    bool coalescing;
    uint32_t staging;                        /* the slab the next reception goes to */
    struct item *items;                      /* free: no references */
    _Atomic uint32_t item_hint;              /* probably free, and still in the cache */
    const struct selene_sink *receiving_for; /* the receiver's own sink: it looks when it is done */
    uint32_t changing_paths;                 /* remote sources with datagrams set aside; the receiver's */
    pthread_mutex_t relay_lock;
};

/* error.c */
int selene_fail(int error, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* connect.c */
int selene_connect(struct selene_session *s);
int selene_send_packet(int fd, void *packet, uint32_t length, int type, uint32_t request, const int *fds, int fd_count);
ssize_t selene_receive_packet(int fd, void *packet, size_t room, int *fds, int *fd_count, int flags);

/* An announcement for an endpoint whose id is not known yet. */
struct orphan {
    struct orphan *next;
    uint32_t length;
    _Alignas(8) uint8_t packet[];
};

/* memory.c */
struct memory *selene_memory_map(const struct selene_dp_session *d, const int fds[5]);
void selene_memory_hold(struct memory *m);
void selene_memory_drop(struct memory *m);
struct pool_view *selene_view_get(struct selene_session *s, uint64_t session, int fd,
                                  uint32_t buffers); /* session->lock held */
void selene_view_drop(struct selene_session *s, struct pool_view *v);

/* service.c */
void *selene_service(void *session);
void selene_kick(struct selene_session *s);
/* Read what the daemon has written, now: an announcement may be ahead of the datagram that needs it. */
void selene_sync_control(struct selene_session *s);

/* control.c: requests and what the daemons send. */
int selene_request(struct selene_session *s, struct request *r, void *packet, uint32_t length, int type, int fd);
int selene_handle_control(struct selene_session *s, const void *packet, size_t length); /* session->lock held */
int selene_handle_session(struct selene_session *s, const void *packet, size_t length, int *fds, int fd_count);
int selene_declare_stream(struct selene_stream *stream);
int selene_declare_endpoint(struct selene_stream *stream, struct endpoint *e, int type, int event_fd);
int selene_withdraw(struct selene_session *s, uint64_t id, uint32_t kind);
void selene_orphans_free(struct selene_session *s); /* session->lock held, or nobody else there */
void selene_edges_gone(struct selene_session *s);   /* the datapath process died; session->lock held */

/* session.c */
void selene_stream_drop(struct selene_stream *stream);
int selene_index_take(struct selene_session *s, uint32_t *index); /* a counter block; session->lock held */

/* emit.c */
void selene_wait_step(struct selene_source *source, uint32_t step); /* of waiting for slow sinks or for credit */

/* source.c */
void selene_edge_drain(struct selene_source *source, struct edge_out *edge);
bool selene_source_finish(struct selene_source *source); /* a closed one: true when nothing is held any more */
void selene_source_free(struct selene_source *source);
void selene_source_apply(struct selene_source *source);
void selene_source_drain(struct selene_source *source);

/* transmit.c */
/* Send or batch one message. References of the slot that the datapath process now holds (0 or 1), or a negative errno. */
int selene_transmit(struct selene_source *source, uint64_t slice, uint8_t *payload, uint32_t size, uint64_t now,
                    uint64_t sequence);
int selene_flush_locked(struct selene_source *source);
/* The place of the next record in the open batch, for a message of up to `size` bytes; NULL: a slot is to be borrowed. */
uint8_t *selene_batch_lend(struct selene_source *source, uint32_t size);
/* Whether what was written there could stay. */
bool selene_batch_emit(struct selene_source *source, const selene_buffer *buffer, uint64_t now);
void selene_batch_part(struct selene_source *source); /* what is lent is the application's alone from now on */
void selene_batch_returned(struct selene_source *source);
/* Send all batches, or those that their sources should have sent; time until the next one is due. session->lock is not held. */
uint64_t selene_flush_session(struct selene_session *s, bool all);
/* Whether every destination has credit for `size` more bytes of payload. */
bool selene_has_credit(struct selene_source *source, uint32_t size);
/* Ask the destinations that hold us up for news, at most once a millisecond. */
void selene_probe(struct selene_source *source);
void selene_credit_arrived(struct selene_session *s, const struct qos_wire *wire, const struct qos_address *from);
void selene_relay_done(struct selene_session *s, struct memory *m);
int selene_relay_push(struct selene_session *s, struct memory *m, uint64_t slice, uint32_t length, uint32_t kind);

/* remote.c: remote_lock held, unless it says otherwise */
struct remote *selene_remote_of(struct selene_session *s, uint64_t id);
bool selene_remote_busy(struct selene_session *s, const struct remote *r); /* sinks still have datagrams of it */
void selene_credit_note(struct remote *r, uint32_t value);
void selene_credit_taken(struct selene_session *s, struct remote *r, uint32_t value); /* needs no lock */
void selene_item_taken(struct selene_session *s, struct item *item);
/* Tell a remote source how far we are. */
void selene_credit_send(struct selene_session *s, struct remote *remote, uint16_t flags);
void selene_accept_update(struct selene_session *s, struct selene_sink *sink, const struct selene_accept *accept);
void selene_pair(struct selene_session *s); /* remote_lock held: connect the socket if there is but one peer */
void selene_remotes_forget(struct selene_session *s, struct selene_sink *sink);

/* path.c: hand out in the order of the paths. The caller is the receiver. */
void selene_path_deliver(struct selene_session *s, struct remote *r, struct item *item); /* remote_lock held */
/* Hand out what has been set aside for long enough; how long the caller may wait for more. */
uint64_t selene_path_due(struct selene_session *s, uint64_t timeout_ns);

/* receive.c */
int selene_receive(struct selene_session *s, uint64_t timeout_ns);                    /* the caller is the receiver */
bool selene_receiver_enter(struct selene_session *s, const struct selene_sink *sink); /* of the caller, or NULL */
void selene_receiver_take(struct selene_session *s); /* waits for the role, waking whoever sleeps in it */
void selene_receiver_leave(struct selene_session *s);
void selene_receiver_nudge(struct selene_session *s);
void selene_next_turn(struct selene_session *s);
void selene_item_drop(struct selene_session *s, struct item *item, uint32_t n); /* n references */
/* Queue at the sinks of its source; the item has one reference. remote_lock held. */
void selene_hand_out(struct selene_session *s, struct item *item);
int selene_receive_init(struct selene_session *s);
void selene_receive_free(struct selene_session *s);

/* sink.c */
void selene_sink_apply(struct selene_sink *sink);
void selene_sink_count_edges(struct selene_sink *sink); /* for reports; session->lock held */
void selene_sink_wake(struct selene_sink *sink);        /* its circumstances have changed */
void selene_sink_notify(struct selene_sink *sink);      /* the receiver has queued something for it */
int selene_sink_next(struct selene_sink *sink, selene_buffer *buffer);
bool selene_sink_ready(struct selene_sink *sink);
void selene_sink_discard(struct selene_sink *sink);
bool selene_sink_queue(struct selene_sink *sink, struct item *item, struct inflow *inflow);

/* sleep.c */
void selene_sink_sleep(struct selene_sink *sink, uint64_t timeout_ns);
void selene_edges_wait(struct selene_sink *sink, uint32_t how);

/* dispatch.c */
int selene_dispatch_start(struct selene_session *s);
/* Keep all callbacks from running: whoever removes a sink goes before those that run them. Also from a callback. */
void selene_dispatch_enter(struct selene_session *s);
void selene_dispatch_leave(struct selene_session *s);
void selene_dispatch_stop(struct selene_session *s);
/* Make whoever runs callbacks look round. */
void selene_dispatch_nudge(struct selene_session *s);

/* sequence.c */
enum sequence_verdict { SEQUENCE_NEW, SEQUENCE_LATE, SEQUENCE_DUPLICATE };
enum sequence_verdict selene_sequence(struct sequence *of, uint64_t sequence, struct selene_counters *c);

static inline void count(uint64_t *counter, uint64_t n)
{
    /* one writer; a relaxed store so that a reader sees no torn value */
    __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + n, __ATOMIC_RELAXED);
}

/* Whether the receive ring holds something that nobody looks at. Not by its handle, which is the receiver's alone. */
static inline bool selene_ring_left(const struct selene_session *s, const struct memory *m)
{
    const struct qos_ring *ring = m->relay_rx.ring;
    return qos_load_relaxed(&ring->head) != qos_load_relaxed(&ring->tail) && qos_load_relaxed(&s->receiving) == 0;
}

/* What a source hands over next leaves this library now. */
static inline void selene_stamp_handed(struct selene_source *source)
{
    if (QOS_UNLIKELY(source->stamps) && source->stamps->system_ns == 0)
        source->stamps->system_ns = qos_clock_stamp_ns();
}

static inline struct qos_address selene_address(const struct selene_addr *a)
{
    struct qos_address out = {.port = a->port, .scope = a->scope};
    __builtin_memcpy(&out.ip, a->ip, 16);
    return out;
}

#endif
