/* SPDX-License-Identifier: Apache-2.0
 *
 * What a session knows of remote sources: where each sends from, which sinks want it, and how much credit it was given.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define PAIR_GRACE_NS 2000000000u

/* ---- Remote sources; remote_lock held ---- */

static struct remote **chain(struct selene_session *s, uint64_t id)
{
    return &s->remotes[(id * UINT64_C(0x9e3779b97f4a7c15)) >> 56];
}

struct remote *selene_remote_of(struct selene_session *s, uint64_t id)
{
    for (struct remote *r = *chain(s, id); r; r = r->next)
        if (r->id == id)
            return r;
    return NULL;
}

/* Whether sinks still have datagrams of it. */
bool selene_remote_busy(struct selene_session *s, const struct remote *r)
{
    for (uint32_t i = 0; i < RX_ITEMS; i++)
        if (qos_load_acquire(&s->items[i].busy) && s->items[i].remote == r)
            return true;
    return false;
}

static void remote_free(struct remote *r)
{
    for (uint32_t i = 0; i < r->sinks; i++) {
        qos_sub_acq_rel(&r->inflows[i]->sink->remotes, 1);
        free(r->inflows[i]);
    }
    free(r->aside);
    free(r);
}

static void expire(struct selene_session *s, uint64_t now)
{
    for (uint32_t i = 0; i < 256; i++) {
        for (struct remote **at = &s->remotes[i]; *at;) {
            struct remote *r = *at;
            if (r->closed_ns && now - r->closed_ns > REMOTE_GRACE_NS && !selene_remote_busy(s, r)) {
                *at = r->next;
                remote_free(r);
            } else {
                at = &r->next;
            }
        }
    }
}

static bool only_peer(const struct qos_address **peer, const struct qos_address *a)
{
    if (!*peer)
        *peer = a;
    return qos_address_equal(*peer, a);
}

/* Whether datagrams of it may still come to our socket; a connected socket drops those of others. */
static bool comes_directly(struct selene_session *s, const struct remote *r, uint64_t now)
{
    if (!r->relayed)
        return true;
    if (r->direct_ns == 0 || now - r->direct_ns >= PAIR_GRACE_NS)
        return false;
    qos_store_relaxed(&s->pair_due_ns, now + PAIR_GRACE_NS);
    return true;
}

void selene_pair(struct selene_session *s)
{
    struct qos_datapath *udp = s->memory->udp;
    uint64_t now = qos_clock_monotonic_ns();
    qos_store_relaxed(&s->pair_due_ns, 0);
    const struct qos_address *peer = NULL;
    bool one = udp != NULL;
    for (uint32_t i = 0; one && i < 256; i++)
        for (struct remote *r = s->remotes[i]; one && r; r = r->next)
            one = !comes_directly(s, r, now) || only_peer(&peer, &r->address);
    for (struct selene_source *x = s->sending; one && x; x = x->next_sending)
        for (uint32_t i = 0; one && i < x->dest_count; i++)
            one = only_peer(&peer, &x->dests[i].address);
    one = one && peer;
    bool again = qos_exchange_acq_rel(&s->pair_again, false);
    if (!udp || (one == s->paired && (!one || (!again && qos_address_equal(peer, &s->pair)))))
        return;
    s->paired = qos_udp_pair(udp, one ? peer : NULL) == 0 && one;
    if (one)
        s->pair = *peer;
}

static bool listed(const struct selene_accept *accept, uint64_t id)
{
    for (uint32_t i = 0; i < accept->count; i++)
        if (accept->entries[i].source == id)
            return true;
    return false;
}

static struct inflow *inflow_of(struct remote *r, const struct selene_sink *sink)
{
    for (uint32_t i = 0; i < r->sinks; i++)
        if (r->inflows[i]->sink == sink)
            return r->inflows[i];
    return NULL;
}

static void accept_one(struct selene_session *s, struct selene_sink *sink, const struct selene_accept_entry *e)
{
    struct remote *r = selene_remote_of(s, e->source);
    if (!r) {
        r = calloc(1, sizeof *r);
        if (!r)
            return;
        r->id = e->source;
        r->next = *chain(s, e->source);
        *chain(s, e->source) = r;
    }
    r->address = selene_address(&e->address);
    if (!r->relayed && e->flags & SELENE_RELAYED)
        r->direct_ns = qos_clock_monotonic_ns();
    r->relayed = e->flags & SELENE_RELAYED;
    if (r->relayed)
        qos_store_release(&s->ring_used, true);
    r->window = e->window;
    r->closed_ns = 0;
    if (inflow_of(r, sink) || r->sinks == SELENE_MAX_DESTS)
        return;
    struct inflow *flow = calloc(1, sizeof *flow);
    if (!flow)
        return;
    flow->sink = sink;
    r->inflows[r->sinks++] = flow;
    qos_add_acq_rel(&sink->remotes, 1);
}

void selene_accept_update(struct selene_session *s, struct selene_sink *sink, const struct selene_accept *accept)
{
    uint64_t now = qos_clock_monotonic_ns();
    pthread_mutex_lock(&s->remote_lock);
    for (uint32_t i = 0; i < accept->count; i++)
        accept_one(s, sink, &accept->entries[i]);
    for (uint32_t i = 0; i < 256; i++)
        for (struct remote *r = s->remotes[i]; r; r = r->next)
            if (!r->closed_ns && r->sinks == 1 && r->inflows[0]->sink == sink && !listed(accept, r->id))
                r->closed_ns = now;
    expire(s, now);
    selene_pair(s);
    pthread_mutex_unlock(&s->remote_lock);
    selene_sink_wake(sink);
}

/* The sink is closed, or all its remote sources are void. Its thread has let go of its items. */
void selene_remotes_forget(struct selene_session *s, struct selene_sink *sink)
{
    pthread_mutex_lock(&s->remote_lock);
    for (uint32_t i = 0; i < 256; i++) {
        for (struct remote *r = s->remotes[i]; r; r = r->next) {
            for (uint32_t k = 0; k < r->sinks; k++) {
                if (r->inflows[k]->sink != sink)
                    continue;
                if (r->sinks == 1)
                    r->closed_ns = 1;
                qos_sub_acq_rel(&sink->remotes, 1);
                free(r->inflows[k]);
                r->inflows[k] = r->inflows[--r->sinks];
                break;
            }
        }
    }
    if (s->memory)
        selene_pair(s);
    pthread_mutex_unlock(&s->remote_lock);
}

/* ---- Credit back to the source ---- */

void selene_credit_send(struct selene_session *s, struct remote *r, uint16_t flags)
{
    struct memory *m = s->memory;
    struct qos_wire w = {.type = QOS_WIRE_CREDIT,
                         .flags = flags,
                         .source = r->id,
                         .credit = qos_load_acquire(&r->taken),
                         .frag_offset = r->window};
    uint8_t header[QOS_WIRE_HEADER];
    qos_store_relaxed(&r->credited, w.credit);
    qos_frame_encode(header, &w);
    if (!r->relayed) {
        struct qos_packet p = {.data = header, .length = sizeof header, .address = r->address};
        if (m->udp)
            (void)m->net->ops->tx(m->net, &p, 1);
        return;
    }
    uint64_t slice;
    pthread_mutex_lock(&s->relay_lock);
    int rc = qos_cache_borrow(m->credit_cache, QOS_WIRE_HEADER, &slice);
    pthread_mutex_unlock(&s->relay_lock);
    if (rc < 0)
        return; /* the source asks again */
    memcpy(qos_pool_payload(m->pool, slice), header, sizeof header);
    (void)qos_cache_emit(m->credit_cache, slice, 1);
    if (selene_relay_push(s, m, slice, QOS_WIRE_HEADER, SELENE_TO_SOURCE) < 0) {
        pthread_mutex_lock(&s->relay_lock);
        (void)qos_cache_drop(m->credit_cache, slice);
        pthread_mutex_unlock(&s->relay_lock);
    }
}

/* Note how far we are. On a new path to us a source counts from a value far from all it has used (CREDIT_JUMP): further than anything
 * under way can be. */
void selene_credit_note(struct remote *r, uint32_t value)
{
    int32_t ahead = (int32_t)(value - qos_load_relaxed(&r->taken));
    bool jump = ahead > (int32_t)(2 * r->window) || ahead < -(int32_t)(2 * r->window);
    if (jump)
        qos_store_relaxed(&r->credited, value);
    if (jump || ahead > 0)
        qos_store_release(&r->taken, value);
}

void selene_credit_taken(struct selene_session *s, struct remote *r, uint32_t value)
{
    selene_credit_note(r, value);
    if (qos_load_relaxed(&r->taken) - qos_load_relaxed(&r->credited) >= r->window / 4)
        selene_credit_send(s, r, 0);
}

/* A sink begins with a datagram. A reliable source gets credit when the last of the sinks has. */
void selene_item_taken(struct selene_session *s, struct item *item)
{
    if ((item->wire.flags & QOS_WIRE_RELIABLE) && qos_sub_acq_rel(&item->untaken, 1) == 1)
        selene_credit_taken(s, item->remote, item->wire.credit);
}
