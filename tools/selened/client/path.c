/* SPDX-License-Identifier: Apache-2.0
 *
 * Changing over from one path to another. What comes on the new path may overtake what is still on the old: in the other socket, in the
 * receive ring, on the wire. A source numbers its messages without a gap, so the old path is empty when what is missing in front of the
 * new one has come. Until then the new datagrams are set aside; not for ever, since what is missing may be lost, and not without bound.
 */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define ASIDE_MAX 1024u
#define BEST_EFFORT_NS 50000000u /* how long what is missing is waited for */
#define RELIABLE_NS 1000000000u  /* longer than anybody on the way is kept from its processor */

static void progress(struct remote *r, const struct item *item)
{
    uint64_t end = item->wire.sequence + item->wire.count;
    if ((int64_t)(end - r->awaited) > 0)
        r->awaited = end;
}

/* Hand out what nothing is missing in front of. */
static void advance(struct selene_session *s, struct remote *r)
{
    uint32_t n = 0;
    for (; n < r->aside_count && (int64_t)(r->aside[n]->wire.sequence - r->awaited) <= 0; n++) {
        r->epoch = r->aside[n]->wire.epoch;
        progress(r, r->aside[n]);
        selene_hand_out(s, r->aside[n]);
    }
    if (n == 0)
        return;
    r->aside_count -= n;
    memmove(r->aside, r->aside + n, r->aside_count * sizeof(struct item *));
    r->aside_ns = qos_clock_monotonic_ns();
    s->changing_paths -= r->aside_count == 0;
}

/* What is missing in front of the first is lost. */
static void give_up(struct selene_session *s, struct remote *r)
{
    r->awaited = r->aside[0]->wire.sequence;
    advance(s, r);
}

/* Whether it is of a newer path, and something in front of it has not come. */
static bool early(struct remote *r, const struct item *item)
{
    if (!r->started) {
        r->started = true;
        r->epoch = item->wire.epoch;
        r->awaited = item->wire.sequence;
    }
    if ((int32_t)(item->wire.epoch - r->epoch) <= 0)
        return false;
    if (r->aside_count > 0 || (int64_t)(item->wire.sequence - r->awaited) > 0)
        return true;
    r->epoch = item->wire.epoch;
    return false;
}

/* In the order of their sequence: paths may change again before the first change is over. */
static bool set_aside(struct selene_session *s, struct remote *r, struct item *item)
{
    if (!r->aside && !(r->aside = calloc(ASIDE_MAX, sizeof(struct item *))))
        return false;
    if (r->aside_count == ASIDE_MAX)
        give_up(s, r);
    if (r->aside_count == 0) {
        r->aside_ns = qos_clock_monotonic_ns();
        s->changing_paths++;
    }
    uint32_t at = r->aside_count++;
    for (; at > 0 && (int64_t)(r->aside[at - 1]->wire.sequence - item->wire.sequence) > 0; at--)
        r->aside[at] = r->aside[at - 1];
    r->aside[at] = item;
    return true;
}

void selene_path_deliver(struct selene_session *s, struct remote *r, struct item *item)
{
    if (QOS_LIKELY(!early(r, item)) || !set_aside(s, r, item)) {
        progress(r, item);
        selene_hand_out(s, item);
    }
    if (QOS_UNLIKELY(r->aside_count > 0))
        advance(s, r);
}

uint64_t selene_path_due(struct selene_session *s, uint64_t timeout_ns)
{
    pthread_mutex_lock(&s->remote_lock);
    uint64_t now = qos_clock_monotonic_ns();
    for (uint32_t i = 0; i < 256; i++) {
        for (struct remote *r = s->remotes[i]; r; r = r->next) {
            if (r->aside_count == 0)
                continue;
            uint64_t passed = now - r->aside_ns;
            uint64_t patience = r->aside[0]->wire.flags & QOS_WIRE_RELIABLE ? RELIABLE_NS : BEST_EFFORT_NS;
            if (passed >= patience) {
                give_up(s, r);
                timeout_ns = 0; /* there is something for the sinks now */
            } else if (timeout_ns > patience - passed) {
                timeout_ns = patience - passed;
            }
        }
    }
    pthread_mutex_unlock(&s->remote_lock);
    return timeout_ns;
}
