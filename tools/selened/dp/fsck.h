/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where every buffer is, for `selene fsck`. What clients can write is only added up here; who asks compares several looks.
 */
#ifndef DP_FSCK_H
#define DP_FSCK_H

#include "edge.h"
#include "proto.h"
#include "session.h"

/* Control thread: the transmit pool of a session. */
void dp_fsck_session(const struct dp_session *session, const struct dp_edges *edges, struct selene_fsck_row *row);
/* Data thread: a receive pool. */
void dp_fsck_rxpool(const struct dp_rxpool *pool, struct selene_fsck_row *row);

#endif
