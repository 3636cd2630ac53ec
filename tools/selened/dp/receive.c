/* SPDX-License-Identifier: Apache-2.0 */
#include "relay.h"

#include <errno.h>
#include <string.h>

#include "wake.h"

uint32_t dp_release(struct dp_data *d, struct dp_session *s)
{
    uint32_t n = 0;
    int64_t ready = qos_ring_peek(&s->ring_release);
    if (ready < 0) {
        dp_cut_off(d, s, EPROTO, "impossible index in the release ring");
        return 0;
    }
    for (; n < ready; n++)
        if (dp_rxpool_drop(s->pool, s, qos_ring_word(&s->ring_release, n)) < 0) {
            dp_cut_off(d, s, EPROTO, "gave back a slice that it does not hold");
            return n;
        }
    if (n > 0)
        qos_ring_consume(&s->ring_release, n);
    return n;
}

/* Room in the pool. What the user's sessions have given back is only looked at now: nobody rings for that. */
static uint8_t *append(struct dp_data *d, struct dp_rxpool *pool, uint32_t size, uint64_t *slice)
{
    uint8_t *room = dp_rxpool_append(pool, size, slice);
    if (room != NULL)
        return room;
    for (struct dp_session *s = pool->sessions; s != NULL; s = s->pool_next)
        if (!s->dead)
            dp_release(d, s);
    return dp_rxpool_append(pool, size, slice);
}

/* Push a slice that lies in the session's pool. */
static void push(struct dp_data *d, struct dp_session *s, uint64_t slice, uint32_t size)
{
    uint32_t buffer = qos_slice_buffer(slice);
    if (!dp_rxpool_within_quota(s->pool, s, buffer)) {
        dp_release(d, s);
        if (s->dead)
            return;
        if (!dp_rxpool_within_quota(s->pool, s, buffer)) {
            dp_count_both(d, s, DP_DROPPED_QUOTA, 1);
            return;
        }
    }
    uint64_t words[2] = {slice, size};
    int rc = qos_ring_push(&s->ring_rx, words, 2);
    if (rc == -EPROTO) {
        dp_cut_off(d, s, EPROTO, "impossible index in the receive ring");
        return;
    }
    if (rc < 0) {
        dp_count_both(d, s, DP_DROPPED_QUOTA, 1);
        dp_wake_later(d, s);
        return;
    }
    dp_rxpool_hold(s->pool, s, slice);
    dp_count(&s->counters, DP_RX_DATAGRAMS, 1);
    dp_count(&s->counters, DP_RX_BYTES, size);
    /* first of this round: have its slices back before the ring is long */
    if (!s->to_wake)
        dp_release(d, s);
    dp_wake_later(d, s);
}

void dp_deliver(struct dp_data *d, struct dp_session *const *sessions, uint32_t count, const uint8_t *header,
                const uint8_t *records, uint32_t length)
{
    const struct dp_rxpool *pool = NULL;
    uint8_t *room = NULL;
    uint64_t slice = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct dp_session *s = sessions[i];
        if (s->dead)
            continue;
        if (s->pool != pool) {
            pool = s->pool;
            room = append(d, s->pool, QOS_WIRE_HEADER + length, &slice);
            if (room != NULL) {
                memcpy(room, header, QOS_WIRE_HEADER);
                memcpy(room + QOS_WIRE_HEADER, records, length);
            }
        }
        if (s->dead) /* what it gave back was not its own */
            continue;
        if (room != NULL)
            push(d, s, slice, QOS_WIRE_HEADER + length);
        else
            dp_count_both(d, s, DP_DROPPED_QUOTA, 1);
    }
}

void dp_credit_deliver(struct dp_data *d, struct dp_route *route, const struct qos_wire *wire)
{
    struct dp_credit merged;
    if (!dp_credit_merge(route->credits, route->dests_count + route->sessions_count, route->sent.reliable, &merged))
        return;
    struct qos_wire out = *wire;
    out.flags &= (uint16_t)~QOS_WIRE_ANSWER;
    out.stream = route->stream;
    out.channel = route->channel;
    out.epoch = route->epoch;
    out.credit = merged.value;
    out.frag_offset = merged.window;
    out.sequence = merged.sequence;
    uint8_t header[QOS_WIRE_HEADER];
    qos_frame_encode(header, &out);
    dp_deliver(d, &route->owner, 1, header, header, 0);
}

/* CREDIT of a remote sink for a local source. */
static bool receive_credit(struct dp_data *d, const struct qos_wire *wire, const struct dp_reception *from)
{
    struct dp_route *route = dp_table_route(&d->table, wire->source);
    if (route == NULL)
        return false;
    for (uint32_t i = 0; i < route->dests_count; i++)
        if (dp_target_is(&route->dests[i], from)) {
            dp_credit_take(&route->credits[i], &route->sent, wire->credit, wire->frag_offset, wire->sequence);
            dp_credit_deliver(d, route, wire);
            return true;
        }
    return false;
}

static bool receive_data(struct dp_data *d, const struct qos_wire *wire, const struct dp_reception *from,
                         const uint8_t *data, uint32_t size)
{
    struct dp_accept *accept = dp_table_accept(&d->table, wire->source);
    if (accept == NULL || accept->local || !dp_target_is(&accept->address, from))
        return false;
    if (wire->type != QOS_WIRE_MARKER) {
        bool reliable = wire->type == QOS_WIRE_DATA ? (wire->flags & QOS_WIRE_RELIABLE) != 0 : accept->sent.reliable;
        dp_credit_sent(&accept->sent, wire->credit, qos_frame_cost(size), reliable, accept->credits,
                       accept->sessions_count);
    }
    dp_deliver(d, accept->sessions, accept->sessions_count, data, data + QOS_WIRE_HEADER, wire->length);
    return true;
}

static void receive_datagram(struct dp_data *d, const uint8_t *data, uint32_t size, const struct dp_reception *from)
{
    struct qos_wire wire;
    int rc = qos_frame_decode(data, size, &wire);
    if (rc < 0) {
        dp_count(&d->totals, rc == -EPROTONOSUPPORT ? DP_RX_VERSION : DP_RX_RUBBISH, 1);
        return;
    }
    bool known =
        wire.type == QOS_WIRE_CREDIT ? receive_credit(d, &wire, from) : receive_data(d, &wire, from, data, size);
    if (!known) {
        dp_count(&d->totals, DP_RX_UNKNOWN, 1);
        return;
    }
    dp_count(&d->totals, DP_RX_DATAGRAMS, 1);
    dp_count(&d->totals, DP_RX_BYTES, size);
}

bool dp_receive(struct dp_data *d)
{
    int n = dp_net_receive(&d->net, &d->totals, &d->readable);
    for (int i = 0; i < n; i++) {
        struct dp_reception from;
        dp_net_reception(&d->net, i, &from);
        if (from.segment == from.length)
            from.segment = qos_frame_segment(from.data, from.length);
        uint32_t offset = 0;
        do {
            uint32_t left = from.length - offset;
            receive_datagram(d, from.data + offset, left < from.segment ? left : from.segment, &from);
            offset += from.segment;
        } while (offset < from.length);
    }
    return n > 0;
}
