/* SPDX-License-Identifier: Apache-2.0 */
#include "relay.h"

#include <errno.h>
#include <string.h>

#include "wake.h"

#define MALFORMED_MAX 1000u /* a client that is only confused is told of each, with an outcome */

/* Entries of two words that the DONE ring has room for, or -EPROTO. */
static int64_t done_room(struct qos_ring_producer *p)
{
    uint64_t capacity = p->mask + 1;
    /* acquire: pairs with the release in qos_ring_consume */
    uint64_t head = qos_load_acquire(&p->ring->head);
    if (p->tail - head > capacity)
        return -EPROTO;
    p->head = head;
    return (int64_t)((capacity - (p->tail - head)) / 2);
}

/* DATA, PROBE or MARKER of a source of this session. */
static int to_route(struct dp_data *d, struct dp_session *s, struct qos_wire *wire, const uint8_t *data, unsigned k)
{
    struct dp_burst *b = &d->burst;
    struct dp_route *route = dp_table_route(&d->table, wire->source);
    if (route == NULL || route->owner != s)
        return ENOENT;
    if (wire->type == QOS_WIRE_CREDIT)
        return EPROTO;
    wire->stream = route->stream;
    wire->channel = route->channel;
    wire->epoch = route->epoch;
    wire->flags |= QOS_WIRE_RELAYED;
    if (wire->type != QOS_WIRE_MARKER) {
        bool reliable = wire->type == QOS_WIRE_DATA ? (wire->flags & QOS_WIRE_RELIABLE) != 0 : route->sent.reliable;
        dp_credit_sent(&route->sent, wire->credit, qos_frame_cost(b->length[k]), reliable, route->credits,
                       route->dests_count + route->sessions_count);
    }
    qos_frame_encode(b->header[k], wire);
    for (uint32_t i = 0; i < route->dests_count; i++)
        dp_net_send(&d->net, &d->totals, &route->dests[i], b->header[k], data + QOS_WIRE_HEADER, wire->length,
                    &b->outcome[k], &s->counters);
    if (route->sessions_count > 0)
        dp_deliver(d, route->sessions, route->sessions_count, b->header[k], data + QOS_WIRE_HEADER, wire->length);
    return 0;
}

/* Tell a remote source how far its sinks here are, if it is worth a datagram. */
static void forward_credit(struct dp_data *d, struct dp_session *s, struct dp_accept *accept, struct qos_wire *wire,
                           unsigned k)
{
    struct dp_burst *b = &d->burst;
    struct dp_credit merged;
    if (!dp_credit_merge(accept->credits, accept->sessions_count, accept->sent.reliable, &merged))
        return;
    bool answer = (wire->flags & QOS_WIRE_ANSWER) != 0;
    uint32_t advanced = merged.value - accept->forwarded;
    if (!answer && accept->forwarded_any && ((int32_t)advanced <= 0 || advanced < merged.window / 4))
        return;
    accept->forwarded = merged.value;
    accept->forwarded_any = true;
    wire->flags = (uint16_t)((wire->flags & ~QOS_WIRE_ANSWER) | QOS_WIRE_RELAYED);
    wire->credit = merged.value;
    wire->frag_offset = merged.window;
    wire->sequence = merged.sequence;
    qos_frame_encode(b->header[k], wire);
    dp_net_send(&d->net, &d->totals, &accept->address, b->header[k], b->header[k], 0, &b->outcome[k], &s->counters);
}

static uint32_t find_session(struct dp_session *const *sessions, uint32_t n, const struct dp_session *s)
{
    uint32_t i = 0;
    while (i < n && sessions[i] != s)
        i++;
    return i;
}

/* CREDIT of a sink of this session for a remote source, or for a local one of another user. */
static int to_source(struct dp_data *d, struct dp_session *s, struct qos_wire *wire, unsigned k)
{
    if (wire->type != QOS_WIRE_CREDIT)
        return EPROTO;
    struct dp_accept *accept = dp_table_accept(&d->table, wire->source);
    if (accept != NULL && !accept->local) {
        uint32_t i = find_session(accept->sessions, accept->sessions_count, s);
        if (i == accept->sessions_count)
            return ENOENT;
        dp_credit_take(&accept->credits[i], &accept->sent, wire->credit, wire->frag_offset, wire->sequence);
        forward_credit(d, s, accept, wire, k);
        return 0;
    }
    struct dp_route *route = dp_table_route(&d->table, wire->source);
    uint32_t i = route == NULL ? 0 : find_session(route->sessions, route->sessions_count, s);
    if (route == NULL || i == route->sessions_count)
        return ENOENT;
    dp_credit_take(&route->credits[route->dests_count + i], &route->sent, wire->credit, wire->frag_offset,
                   wire->sequence);
    dp_credit_deliver(d, route, wire);
    return 0;
}

static void malformed(struct dp_data *d, struct dp_session *s)
{
    dp_count_both(d, s, DP_VIOLATIONS, 1);
    if (++s->malformed == MALFORMED_MAX)
        dp_cut_off(d, s, EPROTO, "1,000 malformed entries in the transmit ring");
}

/* One entry of the TX ring, its words copied. The outcome, a positive errno. */
static int transmit_one(struct dp_data *d, struct dp_session *s, uint64_t word, unsigned k)
{
    struct dp_burst *b = &d->burst;
    uint32_t size = b->length[k];
    uint8_t header[QOS_WIRE_HEADER];
    const uint8_t *data = qos_slice_locate(&s->tx, b->slice[k], size, 0);
    if (data == NULL || size < QOS_WIRE_HEADER || size > QOS_WIRE_MAX_DATAGRAM) {
        malformed(d, s);
        return data == NULL ? EFAULT : EMSGSIZE;
    }
    /* The client can change it at any time, so all that is decided is decided on a copy. The records are only passed on. */
    memcpy(header, data, sizeof header);
    struct qos_wire wire;
    /* only fields of the header are looked at, against a size that was checked */
    if (qos_frame_decode(header, size, &wire) < 0) {
        malformed(d, s);
        return EPROTO;
    }
    switch ((word >> 32) & 0xffff) {
    case SELENE_TO_ROUTE:
        return to_route(d, s, &wire, data, k);
    case SELENE_TO_SOURCE:
        return to_source(d, s, &wire, k);
    default:
        malformed(d, s);
        return EINVAL;
    }
}

/* Serve up to `limit` entries, at most DP_NET_BURST; the DONE ring has room for their answers, or nobody reads it any more. */
static uint32_t burst(struct dp_data *d, struct dp_session *s, uint32_t limit)
{
    struct dp_burst *b = &d->burst;
    int64_t ready = qos_ring_peek(&s->ring_tx);
    if (ready < 0 || ready % 2 != 0) {
        dp_cut_off(d, s, EPROTO,
                   ready < 0 ? "impossible index in the transmit ring" : "half an entry in the transmit ring");
        return 0;
    }
    uint32_t n = ready / 2 < limit ? (uint32_t)(ready / 2) : limit;
    for (uint32_t k = 0; k < n; k++) {
        uint64_t word = qos_ring_word(&s->ring_tx, 2 * k + 1);
        b->slice[k] = qos_ring_word(&s->ring_tx, 2 * k);
        b->length[k] = (uint32_t)word;
        b->outcome[k] = 0;
        int outcome = transmit_one(d, s, word, k);
        if (outcome != 0)
            b->outcome[k] = (uint16_t)outcome;
        if (s->dead)
            n = k + 1;
    }
    dp_net_flush(&d->net, &d->totals);
    if (n == 0 || s->dead)
        return n;
    qos_ring_consume(&s->ring_tx, 2 * (uint64_t)n);
    uint32_t told = 0;
    for (; told < n; told++) {
        uint64_t words[2] = {b->slice[told], (uint64_t)b->outcome[told] << 32 | b->length[told]};
        if (qos_ring_push(&s->ring_done, words, 2) < 0)
            break;
    }
    if (told > 0)
        dp_wake_done(d, s, told);
    return n;
}

uint32_t dp_transmit(struct dp_data *d, struct dp_session *s)
{
    int64_t room = done_room(&s->ring_done);
    if (room < 0) {
        dp_cut_off(d, s, EPROTO, "impossible index in the done ring");
        return 0;
    }
    /* What cannot be answered waits in the TX ring, which is bounded. */
    s->blocked = room == 0;
    if (room == 0)
        return 0;
    return burst(d, s, room < DP_NET_BURST ? (uint32_t)room : DP_NET_BURST);
}

void dp_transmit_all(struct dp_data *d, struct dp_session *s, bool last)
{
    int64_t left = s->dead ? 0 : qos_ring_peek(&s->ring_tx) / 2;
    while (left > 0 && !s->dead) {
        uint32_t n = last ? burst(d, s, left < DP_NET_BURST ? (uint32_t)left : DP_NET_BURST) : dp_transmit(d, s);
        if (n == 0)
            break;
        left -= n;
    }
}
