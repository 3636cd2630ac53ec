/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where datagrams go: routes of local relayed sources, and the remote sources that are accepted.
 *
 * Entries are allocated and freed by the control thread; only the data thread links them, looks them up and changes them.
 */
#ifndef DP_TABLE_H
#define DP_TABLE_H

#include <stdint.h>

#include "credit.h"
#include "net.h"
#include "proto.h"
#include "session.h"

#define DP_TABLE_BUCKETS 4096
#define DP_TABLE_MAX 65536 /* entries of each kind */

/* A local source: remote destinations, and local sessions of other users. */
struct dp_route {
    struct dp_route *next;
    uint64_t source;
    struct dp_session *owner;
    uint64_t channel;
    uint32_t stream;
    uint32_t epoch;
    uint32_t dests_count;
    uint32_t sessions_count;
    struct dp_target dests[SELENE_MAX_DESTS];
    struct dp_session *sessions[SELENE_MAX_DESTS]; /* sorted by user */
    struct dp_sent sent;
    struct dp_credit credits[2 * SELENE_MAX_DESTS]; /* of the destinations, then of the sessions, without a gap */
};

/* A remote source, and the sessions that get its datagrams. */
struct dp_accept {
    struct dp_accept *next;
    uint64_t source;
    struct dp_target address;
    bool local; /* of a local session of another user: its route says where it goes */
    uint32_t sessions_count;
    struct dp_session *sessions[SELENE_MAX_DESTS]; /* sorted by user */
    struct dp_sent sent;
    struct dp_credit credits[SELENE_MAX_DESTS];
    uint32_t forwarded; /* credit last told to the source */
    bool forwarded_any;
};

struct dp_table {
    struct dp_route *routes[DP_TABLE_BUCKETS];
    struct dp_accept *accepts[DP_TABLE_BUCKETS];
    uint32_t route_count;
    uint32_t accept_count;
};

struct dp_route *dp_table_route(const struct dp_table *table, uint64_t source);
struct dp_accept *dp_table_accept(const struct dp_table *table, uint64_t source);

/* Entries that nobody uses any more, linked, for the control thread to free. */
struct dp_garbage {
    struct dp_route *routes;
    struct dp_accept *accepts;
};

/* Replace the entry of a source; an entry without destinations (sessions) removes it. What credit is known of those that stay is
 * kept. What is not in the table afterwards is added to the garbage. -ENOSPC, or -EEXIST: the source is another session's. */
int dp_table_set_route(struct dp_table *table, struct dp_route *route, struct dp_garbage *garbage);
int dp_table_set_accept(struct dp_table *table, struct dp_accept *accept, struct dp_garbage *garbage);

/* Take a session out of everything: the routes it owned and the sources that only it received are removed. */
void dp_table_forget(struct dp_table *table, const struct dp_session *session, struct dp_garbage *garbage);
void dp_garbage_free(struct dp_garbage *garbage);

#endif
