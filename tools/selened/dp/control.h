/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control thread: takes orders from selened, creates and ends sessions and edges, and has the data thread apply the rest.
 *
 * It outlives the controller: sessions, edges and routes stay in force until the clients go, and a new controller finds them.
 */
#ifndef DP_CONTROL_H
#define DP_CONTROL_H

#include <stdbool.h>
#include <stdint.h>

#include "data.h"
#include "edge.h"
#include "memory.h"
#include "packet.h"
#include "rxpool.h"
#include "session.h"

struct dp_forget; /* a source whose datagrams are still accepted for a while */

struct dp_control {
    struct dp_data *data;
    struct dp_memory memory;
    const char *path;
    uint32_t idle_exit_s;
    uint32_t host; /* 0 until it is opened: then random */
    int epoll_fd;
    int listen_fd;
    int signal_fd;
    int controller; /* -1: none */
    bool greeted;   /* by O_HELLO */
    bool listening; /* the datapath has its UDP socket */
    bool stop;
    uint64_t idle_since_ns;
    uint32_t session_count;
    struct dp_session *sessions[SELENE_MAX_SESSIONS];
    struct dp_rxpool *pools;
    struct dp_edges edges;
    struct dp_forget *forgets;
    uint32_t forget_count;
    char reason[SELENE_MAX_TEXT]; /* why the order was refused */
    struct dp_packet packet;
};

/* ---- control.c: the loop, the sockets ---- */

/* Serve until SIGTERM, SELENE_O_STOP, or nobody has needed it for idle_exit_s. */
void dp_control_run(struct dp_control *control);
/* Wait for one event, and do what it asks for. */
void dp_control_step(struct dp_control *control);
/* Listen on path, and be ready to run. 0 or a negative errno, which has been logged. */
int dp_control_open(struct dp_control *control, int signal_fd);
void dp_control_close(struct dp_control *control);

/* ---- sessions.c: the table of sessions ---- */

struct dp_session *dp_control_find(const struct dp_control *control, uint64_t id);
int dp_control_session_open(struct dp_control *control, const struct selene_order *order, int socket,
                            struct dp_session **session);
/* Something came on, or happened to, the socket of the session in a slot. */
void dp_control_session_event(struct dp_control *control, uint32_t slot);
/* End those that dp_session_end was called for. */
void dp_control_end_due(struct dp_control *control);

/* ---- orders.c: what selened orders ---- */

/* Carry out the order in control->packet and answer it. -EPROTO: not an order; the connection is of no use any more. */
int dp_control_order(struct dp_control *control);
/* Drop remote sources whose grace is over. Milliseconds until the next one, -1: none. */
int dp_control_forget_due(struct dp_control *control);

/* Tag of an epoll event: what it is about, and the slot of a session. */
enum dp_tag { DP_TAG_LISTEN = 1, DP_TAG_SIGNAL, DP_TAG_NOTICE, DP_TAG_CONTROLLER, DP_TAG_SESSION };

int dp_control_watch(const struct dp_control *control, int fd, enum dp_tag tag, uint32_t slot);

#endif
