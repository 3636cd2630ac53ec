/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waking clients, and being woken by them.
 *
 * Both ways the same hand-shake: the sleeper says that it sleeps, fences, and looks at the rings once more; the other pushes,
 * fences, and looks whether it sleeps. The data thread says so only to sessions that were active; the others always see it
 * asleep. So a session that had nothing costs nothing.
 */
#ifndef DP_WAKE_H
#define DP_WAKE_H

#include "data.h"

/* Wake the clients on the wake list. */
void dp_wake_flush(struct dp_data *data);
/* The timer has expired: deferred wake-ups are due. */
void dp_wake_due(struct dp_data *data);
/* `n` outcomes were pushed. A client that sleeps is not woken for them at once: most often a datagram follows and does it. */
void dp_wake_done(struct dp_data *data, struct dp_session *session, uint32_t n);

/* The client rang: look at its rings from now on. */
void dp_wake_activate(struct dp_data *data, struct dp_session *session);
/* Forget a session that ends. */
void dp_wake_forget(struct dp_data *data, struct dp_session *session);
/* How long epoll may sleep, in ms: 0 if there is work, -1 until something happens. Active sessions have been told. */
int dp_wake_prepare(struct dp_data *data);
/* If it spins: a round in which there was something to do is over. */
void dp_wake_worked(struct dp_data *data);
/* After a round in which a session that rang had nothing. Cuts off who does that too often. */
void dp_wake_empty(struct dp_data *data, struct dp_session *session);

#endif
