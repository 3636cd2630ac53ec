/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Edges: from a source to a sink of the same user, memory in which the two talk without this process.
 */
#ifndef DP_EDGE_H
#define DP_EDGE_H

#include <stdint.h>

#include "session.h"

#define DP_EDGE_BUCKETS 1024
#define DP_EDGE_MAX 32768                  /* each takes a mapping here, of which a process may have 65530 */
#define DP_EDGE_USER_MAX (DP_EDGE_MAX / 4) /* of one user's sources, with those that they have not let go of yet */
#define DP_EDGE_MAX_DEPTH 65536
#define DP_EDGE_PATIENCE_MS 1000 /* spent in one step on clients that do not read: our controller waits */

struct dp_edge {
    struct dp_edge *next;
    uint64_t id;       /* as the clients know it */
    uint64_t order_id; /* as the controller that is there now knows it */
    uint64_t source, sink;
    struct dp_session *from, *to;
    const struct qos_shm_link *link; /* read-only: how much is on it, for reports */
    uint32_t depth;
};

struct dp_edges {
    struct dp_edge *buckets[DP_EDGE_BUCKETS]; /* by source and sink */
    struct dp_edge *leaving;                  /* ended; the producer has not taken back what the sink held */
    uint32_t count, leaving_count;
    int patience_ms; /* left in this step */
};

/* Create the memory and hand it to both. A source and a sink that are joined already stay so: a controller that has restarted
 * orders what is there, and its number is taken. A session that does not read what it is told is ended.
 * 0 or a negative errno; -ESRCH: one of the two is gone. */
int dp_edge_create(struct dp_edges *edges, const struct selene_order_edge *order, struct dp_session *from,
                   struct dp_session *to, int event_fd);
/* Tell both and forget it. Nothing happens if there is none: it may have gone on its own. */
void dp_edge_end(struct dp_edges *edges, uint64_t order_id);
/* Free the ended edges that their producers are done with. */
void dp_edge_sweep(struct dp_edges *edges);
/* End all edges of a session and tell the other sides. */
void dp_edge_end_all(struct dp_edges *edges, const struct dp_session *session);

#endif
