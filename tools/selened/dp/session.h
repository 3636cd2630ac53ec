/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client's session: its memory, its rings, what it holds.
 *
 * Two owners. The control thread creates and destroys, and has the descriptors; the data thread has the rings and everything
 * below "data thread" from the moment it took the session over until it has let it go.
 */
#ifndef DP_SESSION_H
#define DP_SESSION_H

#include <stdbool.h>
#include <stdint.h>

#include "counters.h"
#include "memory.h"
#include "pool.h"
#include "proto.h"
#include "ring.h"
#include "rxpool.h"

struct dp_session {
    uint64_t id;
    uint32_t uid;
    uint64_t token; /* who resumes the session has to know it */
    /* control thread */
    uint32_t slot; /* in its table */
    int socket;    /* to the client, which cannot send anything; its end is the session's end */
    int page_fd;   /* the session page, read-only, for the controller */
    int tx_fd;     /* the transmit pool, read-only, for the consumers of edges */
    uint8_t *tx_base;
    bool ending; /* after the current event */
    bool prefaulted;
    int end_error;
    const char *end_text;
    /* both, constant */
    int wake_fd;  /* eventfd, written by the client, never read */
    int doorbell; /* written when the client sleeps in poll */
    struct selene_page *page;
    struct qos_region tx;
    struct dp_rxpool *pool;
    /* why the data thread cut it off; read by the control thread after it was told */
    int cut_error;
    const char *cut_text;
    struct dp_counters counters;
    /* data thread */
    struct qos_ring_consumer ring_tx;
    struct qos_ring_producer ring_done;
    struct qos_ring_producer ring_rx;
    struct qos_ring_consumer ring_release;
    struct dp_session *pool_next;
    bool dead;     /* cut off: neither read nor written any more */
    bool active;   /* in the table of those that the data thread looks at; dp_sleeping is 0 */
    bool served;   /* it had something since the last look */
    bool blocked;  /* its DONE ring has no room */
    bool to_wake;  /* in the wake list */
    bool deferred; /* DONE was written, the client sleeps, and nothing else has woken it */
    bool rung;     /* its eventfd was written */
    uint32_t done_unsignalled;
    uint32_t malformed;     /* entries of the TX ring */
    uint32_t empty_wakeups; /* without a message, since empty_since_ns */
    uint64_t empty_since_ns;
    uint32_t slices; /* of the receive pool that it holds, or has given back without our having looked */
    uint32_t held;   /* buffers of the receive pool of which it holds something */
    uint32_t holds[SELENE_RX_BUFFERS];
};

/* Create memory and rings, and send the client SELENE_D_SESSION. 
 * `socket` is taken over if it succeeds. 0 or a negative errno. */
int dp_session_create(struct dp_memory *memory, struct dp_rxpool *pool, uint64_t id, uint32_t uid, int socket,
                      struct dp_session **session);
/* Have it ended after the current event. error 0: the client has gone; `text` is constant, NULL: ordered, nobody is told. */
void dp_session_end(struct dp_session *session, int error, const char *text);
void dp_session_destroy(struct dp_memory *memory, struct dp_session *session);
/* Fault in what the first datagrams of a relayed source will lie in. */
void dp_session_prefault(const struct dp_memory *memory, const struct dp_session *session);

#endif
