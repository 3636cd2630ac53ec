/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The data thread: it alone touches the UDP socket, the rings and the tables, and it does nothing that may take long.
 *
 * The control thread asks for changes one at a time and waits until they are in force, so that an order is answered when what
 * it ordered holds. The other way the data thread names the sessions that must be ended.
 */
#ifndef DP_DATA_H
#define DP_DATA_H

#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdint.h>

#include "counters.h"
#include "net.h"
#include "ring.h"
#include "session.h"
#include "table.h"

#define DP_NOTICES 1024 /* ids of sessions cut off; each at most once, so it never fills */

struct dp_settings {
    int class_; /* enum qos_rt_class */
    int priority;
    int cpu; /* -1: any */
    uint32_t spin_us;
    bool faulty;
    struct qos_fault fault;
};

enum dp_request { DP_ADD_SESSION, DP_REMOVE_SESSION, DP_SET_ROUTE, DP_SET_ACCEPT, DP_LISTEN, DP_FSCK, DP_STOP };

/* Lives in the control thread's frame until `done`. */
struct dp_command {
    enum dp_request request;
    union {
        struct dp_session *session;
        struct dp_route *route;
        struct dp_accept *accept;
        int fd;                 /* LISTEN; the old one, or -1, when done */
        struct dp_rxpool *pool; /* FSCK */
    };
    struct selene_fsck_row *row; /* FSCK */
    int family;                  /* LISTEN */
    bool violation;              /* REMOVE_SESSION: the control thread cuts it off */
    struct dp_garbage garbage;   /* to free when done */
    int result;
    sem_t done;
};

/* A burst of one session: what it asked for, as copied from the ring, and what became of it. */
struct dp_burst {
    uint64_t slice[DP_NET_BURST];
    uint32_t length[DP_NET_BURST];
    uint16_t outcome[DP_NET_BURST];
    uint8_t header[DP_NET_BURST][QOS_WIRE_HEADER];
};

struct dp_data {
    struct dp_settings settings;
    pthread_t thread;
    int epoll_fd;
    int command_fd; /* eventfd, rung by the control thread */
    int notice_fd;  /* eventfd, rung by the data thread */
    int timer_fd;   /* for deferred wake-ups */
    void *command_mem, *notice_mem;
    struct qos_ring_producer command_in; /* control thread */
    struct qos_ring_consumer command_out;
    struct qos_ring_producer notice_in;
    struct qos_ring_consumer notice_out; /* control thread */
    struct dp_counters totals;
    /* data thread */
    bool stop;
    bool commanded;
    bool readable; /* the socket may have something */
    /* if it spins */
    bool spinning;   /* nothing to do, but it may come at once */
    uint32_t rounds; /* since epoll was asked */
    uint64_t last_work_ns;
    uint64_t no_spin_ns; /* not before this time */
    uint32_t yield_strikes, yields_short;
    bool brisk;     /* what came last came within the time that is spun */
    bool timer_set; /* deferred wake-ups will be looked at */
    int backoff_ms; /* while somebody leaves his DONE ring full */
    struct dp_net net;
    struct dp_table table;
    struct dp_burst burst;
    uint32_t active_count, wake_count, deferred_count;
    struct dp_session *active[SELENE_MAX_SESSIONS];
    struct dp_session *wake[SELENE_MAX_SESSIONS];
    struct dp_session *deferred[SELENE_MAX_SESSIONS];
};

/* Start the thread. 0 or a negative errno. */
int dp_data_start(struct dp_data *data, const struct dp_settings *settings);
void dp_data_stop(struct dp_data *data);
/* Control thread: have a change made; returns its result when it is in force. */
int dp_data_call(struct dp_data *data, struct dp_command *command);
/* Control thread: the next session that the data thread has cut off, or 0. */
uint64_t dp_data_notice(struct dp_data *data);

/* Any thread: what was done to datagrams on purpose. */
void dp_data_faults(const struct dp_data *data, struct selene_fault_counters *counters);

/* ---- Inside the data thread ---- */

/* Sleep until there is something to do, and do it. The thread is a loop around this. */
void dp_data_round(struct dp_data *data);

/* Serve no more, and have the control thread end it. `text` is constant. */
void dp_cut_off(struct dp_data *data, struct dp_session *session, int error, const char *text);
/* Something is in a ring of the client: wake it at the end of this round. */
void dp_wake_later(struct dp_data *data, struct dp_session *session);

static inline void dp_count_both(struct dp_data *data, struct dp_session *session, enum dp_counter which, uint64_t n)
{
    dp_count(&data->totals, which, n);
    dp_count(&session->counters, which, n);
}

#endif
