/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The way of a datagram through this process: from a client's ring to the network and to other users' sessions (transmit.c),
 * and from the network to the sessions that accept it (receive.c).
 */
#ifndef DP_RELAY_H
#define DP_RELAY_H

#include "data.h"

/* Serve a burst of the session's TX ring. How many entries; what is not understood is answered, what cannot be is cut off. */
uint32_t dp_transmit(struct dp_data *data, struct dp_session *session);
/* All that the client had pushed when this was called: what must leave by the old route, as far as the DONE ring has room; or its
 * last words, which nobody waits for. */
void dp_transmit_all(struct dp_data *data, struct dp_session *session, bool last);

/* Take back the slices on the session's RELEASE ring. How many. */
uint32_t dp_release(struct dp_data *data, struct dp_session *session);

/* One call to the socket, and everything it brought. False if that was nothing. */
bool dp_receive(struct dp_data *data);

/* Copy a datagram once for each user among the sessions (sorted by user), and push it on their RX rings. */
void dp_deliver(struct dp_data *data, struct dp_session *const *sessions, uint32_t count, const uint8_t *header,
                const uint8_t *records, uint32_t length);

/* The sinks of a local source have said how far they are: tell its session. `wire` is the CREDIT that brought the news. */
void dp_credit_deliver(struct dp_data *data, struct dp_route *route, const struct qos_wire *wire);

#endif
