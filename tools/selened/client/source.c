/* SPDX-License-Identifier: Apache-2.0
 *
 * Sources: their life, what the service thread has left for them, what comes back from sinks. emit.c has the way out.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"

/* The datapath process knows the path, not we: Ethernet's MTU without the headers of IPv6 is safe. A multiple of 8. */
enum { RELAYED_SEGMENT = 1448 };

/* ---- What the service thread has left ---- */

static void edge_close(struct edge_out *edge)
{
    qos_shm_producer_close(&edge->shm);
    close(edge->event_fd);
    free(edge);
}

/* The sink is gone: everything it held is free. */
static void edge_reclaim(struct selene_source *source, struct edge_out *edge)
{
    uint32_t index;
    while (qos_shm_reclaim(&edge->shm, &index))
        (void)qos_cache_drop_index(source->cache, index);
    edge_close(edge);
}

static void counters_at(struct selene_source *source)
{
    struct selene_counters *counters =
        (struct selene_counters *)((uint8_t *)source->memory->page + SELENE_PAGE_COUNTERS) + source->endpoint.index;
    if (source->counters && source->counters != counters)
        *counters = *source->counters; /* what was counted stays so */
    counters->returning = 0;
    source->counters = counters;
    source->counters->id = source->endpoint.id;
    source->counters->kind = 1;
    source->counters->stream = source->stream->options.stream;
    source->counters->channel = source->endpoint.channel;
}

/* No path may count from a value that another has used: who receives from both could not tell that it is new. */
static void note_credit(struct selene_source *source)
{
    for (uint32_t k = 0; k < source->dest_count; k++)
        if ((int32_t)(source->dests[k].sent - source->credit_top) > 0)
            source->credit_top = source->dests[k].sent;
    if (source->relayed && (int32_t)(source->relay.sent - source->credit_top) > 0)
        source->credit_top = source->relay.sent;
}

/* What is under way on the path that this one replaces is still to be taken in, so it is no room for more: a sink that is slow would
 * be given a window again at each change. Credit of the new path, or the answer to a probe on it, says that it has been. */
static void path_begin(struct selene_source *source, struct dest *d, uint32_t under_way)
{
    source->credit_top += CREDIT_JUMP;
    d->sent = source->credit_top;
    qos_store_relaxed(&d->acked, source->credit_top - under_way);
}

/* The most that is under way on one of the paths in force. */
static uint32_t under_way(const struct selene_source *source)
{
    uint32_t most = source->relayed ? source->relay.sent - qos_load_relaxed(&source->relay.acked) : 0;
    for (uint32_t k = 0; k < source->dest_count; k++) {
        uint32_t n = source->dests[k].sent - qos_load_relaxed(&source->dests[k].acked);
        most = n > most ? n : most;
    }
    return most;
}

/* Several sinks: what is for all of them is written once. Without memory for that, or for a sink too many, each has its own ring. */
static void edges_join(struct selene_source *source)
{
    if (source->edge_count < 2)
        return;
    if (!source->cast.ring) {
        /* it takes a buffer: where a session has many sources, most are to be left for messages */
        if (qos_load_relaxed(&source->memory->pool->left) < source->memory->tx_buffers / 4 * 3)
            return;
        if (qos_cache_borrow(source->cache, QOS_POOL_PAYLOAD, &source->cast_slice) < 0)
            return;
        void *ring = qos_pool_payload(source->memory->pool, source->cast_slice);
        if (qos_cast_producer_open(&source->cast, ring, QOS_CAST_DEPTH) < 0) {
            (void)qos_cache_drop(source->cache, source->cast_slice);
            source->cast.ring = NULL;
            return;
        }
    }
    for (uint32_t i = 0; i < source->edge_count; i++) {
        struct qos_shm_producer *p = &source->edges[i]->shm;
        if (!p->cast && qos_shm_join(p, &source->cast, source->cast_slice) < 0)
            return;
    }
}

/* The datapath process was replaced: what was in its memory is lost, and its edges with it. */
static int memory_replace(struct selene_source *source)
{
    struct selene_session *s = source->session;
    struct qos_cache *cache = qos_cache_new(s->memory->pool);
    if (!cache)
        return -ENOMEM;
    for (uint32_t i = 0; i < source->edge_count; i++)
        edge_close(source->edges[i]);
    source->edge_count = 0;
    qos_cast_producer_close(&source->cast);
    qos_gate_enter(&source->batch_gate);
    if (qos_load_relaxed(&source->batch.opened_ns)) {
        qos_sub_acq_rel(&s->open_batches, 1);
        count(&source->counters->failed, source->batch.messages);
    }
    source->batch = (struct batch){0};
    note_credit(source);
    source->dest_count = 0;
    source->relayed = false;
    qos_store_relaxed(&source->returned_count, 0);
    qos_cache_discard(source->cache);
    struct memory *old = source->memory;
    selene_memory_hold(s->memory);
    source->memory = s->memory;
    source->cache = cache;
    source->new_memory = false;
    source->stale = false;
    qos_gate_leave(&source->batch_gate);
    counters_at(source);
    selene_memory_drop(old);
    return 0;
}

/* Take the new destinations; those that stay keep what is under way to them. */
static void route_replace(struct selene_source *source)
{
    pthread_mutex_lock(&source->session->remote_lock);
    qos_gate_enter(&source->batch_gate);
    (void)selene_flush_locked(source); /* on the old path, under the old epoch */
    struct dest *dests = source->new_dests, *old = source->dests;
    note_credit(source);
    uint32_t left = under_way(source);
    if (source->new_flags & SELENE_RELAYED && !source->relayed)
        path_begin(source, &source->relay, left);
    for (uint32_t i = 0; i < source->new_count; i++) {
        path_begin(source, &dests[i], left);
        for (uint32_t k = 0; k < source->dest_count; k++) {
            if (!qos_address_equal(&dests[i].address, &old[k].address))
                continue;
            dests[i].sent = old[k].sent;
            qos_store_relaxed(&dests[i].acked, qos_load_relaxed(&old[k].acked));
        }
    }
    source->dests = dests;
    source->dest_count = source->new_count;
    source->epoch = source->endpoint.epoch = source->new_epoch;
    source->relayed = source->new_flags & SELENE_RELAYED;
    qos_store_relaxed(&source->relay.window, source->new_window);
    uint32_t limit = QOS_WIRE_MAX_DATAGRAM;
    for (uint32_t i = 0; i < source->dest_count; i++) {
        int payload = qos_udp_path_payload(&dests[i].address);
        if (payload > QOS_WIRE_OVERHEAD && (uint32_t)payload < limit)
            limit = (uint32_t)payload;
    }
    if (source->dest_count == 0)
        limit = RELAYED_SEGMENT;
    source->segment_limit = limit < 16384 ? limit & ~7u : 16384;
    source->new_dests = NULL;
    source->new_route = false;
    selene_pair(source->session);
    qos_gate_leave(&source->batch_gate);
    pthread_mutex_unlock(&source->session->remote_lock);
    free(old);
}

static int edges_take(struct selene_source *source)
{
    while (source->inbox) {
        struct edge_out *edge = source->inbox;
        if (source->edge_count == source->edge_room) {
            uint32_t room = source->edge_room ? source->edge_room * 2 : 4;
            struct edge_out **edges = realloc(source->edges, room * sizeof *edges);
            if (!edges)
                return -ENOMEM;
            source->edges = edges;
            source->edge_room = room;
        }
        source->inbox = edge->next;
        source->edges[source->edge_count++] = edge;
    }
    return 0;
}

void selene_source_apply(struct selene_source *source)
{
    struct selene_session *s = source->session;
    /* acquire: pairs with the release of who left something; cleared before it is taken, so that nothing is missed */
    if (!qos_exchange_acq_rel(&source->changed, false))
        return;
    if (source->lent)
        selene_batch_part(source);
    pthread_mutex_lock(&s->lock);
    if (source->new_memory) {
        /* buffers of the old memory that the application still writes keep it; until they are back nothing can be sent */
        if (source->borrowed > 0 || memory_replace(source) < 0)
            source->stale = true;
    }
    if (source->stale) {
        qos_store_relaxed(&source->changed, true);
    } else {
        if (edges_take(source) < 0)
            qos_store_relaxed(&source->changed, true);
        for (uint32_t i = 0; i < source->edge_count; i++) {
            struct edge_out *edge = source->edges[i];
            if (!qos_load_acquire(&edge->gone))
                continue;
            edge_reclaim(source, edge);
            source->edges[i--] = source->edges[--source->edge_count];
        }
        for (uint32_t i = 0; i < source->edge_count; i++)
            qos_store_relaxed(&source->edges[i]->shm.link->alone, source->edge_count == 1);
        edges_join(source);
        if (source->new_route)
            route_replace(source);
        counters_at(source);
    }
    pthread_mutex_unlock(&s->lock);
}

/* ---- What comes back ---- */

void selene_edge_drain(struct selene_source *source, struct edge_out *edge)
{
    uint64_t slices[64];
    int n;
    while ((n = qos_shm_returned(&edge->shm, slices, 64)) > 0) {
        for (int i = 0; i < n; i++) {
            edge->shm.held_bytes -= qos_pool_slot_bytes(source->memory->pool, slices[i]);
            (void)qos_cache_drop(source->cache, slices[i]);
        }
        if (n < 64)
            return;
    }
    if (n < 0) {
        /* it gave back what it does not hold: nothing more goes to it */
        qos_store_relaxed(&edge->gone, true);
        qos_store_relaxed(&source->changed, true);
    }
}

/* Slots the datapath process is done with, and what became of their messages. */
static void drain_relay(struct selene_source *source)
{
    struct selene_session *s = source->session;
    selene_relay_done(s, source->memory);
    if (qos_load_acquire(&source->returned_count) == 0)
        return;
    pthread_mutex_lock(&s->relay_lock);
    uint32_t n = qos_load_relaxed(&source->returned_count);
    for (uint32_t i = 0; i + 1 < n; i += 2) {
        uint64_t slice = source->returned[i];
        struct qos_wire w;
        int error = (int)(source->returned[i + 1] >> 32 & 0xffff);
        uint32_t length = (uint32_t)source->returned[i + 1];
        const uint8_t *header = qos_slice_locate(qos_pool_region(source->memory->pool), slice, length, 0);
        if (header && qos_frame_decode(header, length, &w) == 0 && w.type == QOS_WIRE_DATA) {
            for (uint32_t k = 0; k < w.count; k++)
                source->outcomes[(w.sequence + k) % SELENE_OUTCOMES] = (int16_t)(error ? -error : 1);
            if (error)
                count(&source->counters->failed, w.count);
        }
        (void)qos_cache_drop(source->cache, slice);
    }
    qos_store_relaxed(&source->returned_count, 0);
    source->counters->returning = 0;
    pthread_mutex_unlock(&s->relay_lock);
}

void selene_source_drain(struct selene_source *source)
{
    for (uint32_t i = 0; i < source->edge_count; i++)
        selene_edge_drain(source, source->edges[i]);
    if (source->relayed || source->memory->outstanding)
        drain_relay(source);
}

/* ---- Life ---- */

static int create(struct selene_stream *stream, uint64_t channel, const char *name, struct selene_source **out)
{
    struct selene_session *s = stream->session;
    struct selene_source *source = calloc(1, sizeof *source);
    if (!source)
        return selene_fail(-ENOMEM, "no memory for a source");
    source->session = s;
    source->stream = stream;
    qos_add_relaxed(&stream->references, 1);
    source->endpoint.channel = channel;
    memcpy(source->endpoint.name, name, strlen(name) + 1);
    source->segment_limit = RELAYED_SEGMENT;
    qos_gate_init(&source->batch_gate);
    source->returned = calloc(2 * RELAY_OUTSTANDING, sizeof *source->returned);
    pthread_mutex_lock(&s->lock);
    source->memory = s->memory;
    selene_memory_hold(source->memory);
    source->cache = qos_cache_new(source->memory->pool);
    int rc = source->cache && source->returned ? selene_index_take(s, &source->endpoint.index) : -ENOMEM;
    if (rc == 0) {
        source->next = s->sources;
        s->sources = source;
        counters_at(source);
        pthread_mutex_lock(&s->remote_lock);
        source->next_sending = s->sending;
        s->sending = source;
        pthread_mutex_unlock(&s->remote_lock);
    }
    pthread_mutex_unlock(&s->lock);
    if (rc < 0) {
        selene_source_free(source);
        return selene_fail(rc, "no room for another endpoint in this session (%d)", SELENE_MAX_ENDPOINTS);
    }
    rc = selene_declare_endpoint(stream, &source->endpoint, SELENE_C_SOURCE, -1);
    if (rc < 0) {
        selene_close_source(source);
        return rc;
    }
    selene_source_apply(source);
    *out = source;
    return 0;
}

int selene_create_source(selene_stream *stream, uint64_t channel, selene_source **source)
{
    return create(stream, channel, "", source);
}

int selene_create_named_source(selene_stream *stream, const char *name, selene_source **source)
{
    size_t length = strlen(name);
    if (length == 0 || length > SELENE_MAX_NAME)
        return selene_fail(-EINVAL, "a channel name has 1 to %d bytes, this one %zu", SELENE_MAX_NAME, length);
    return create(stream, selene_channel_of(name), name, source);
}

/* 64-bit FNV-1a. Two names with the same value do not meet: the names themselves are compared. */
uint64_t selene_channel_of(const char *name)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (const unsigned char *c = (const unsigned char *)name; *c; c++)
        hash = (hash ^ *c) * UINT64_C(0x100000001b3);
    return hash;
}

/* Reliable: what was sent has arrived when the destinations have given credit for all of it. */
static bool acknowledged(struct selene_source *source)
{
    bool all = !source->relayed || source->relay.sent == qos_load_acquire(&source->relay.acked);
    for (uint32_t i = 0; i < source->dest_count; i++)
        all = all && source->dests[i].sent == qos_load_acquire(&source->dests[i].acked);
    return all;
}

void selene_close_source(selene_source *source)
{
    if (!source)
        return;
    struct selene_session *s = source->session;
    if (qos_load_relaxed(&source->changed))
        selene_source_apply(source);
    (void)selene_flush(source);
    uint64_t begin = qos_clock_monotonic_ns();
    for (uint32_t step = 1; source->stream->options.delivery && !source->stale && !acknowledged(source) &&
                            qos_clock_monotonic_ns() - begin < CLOSE_WAIT_NS;
         step++) {
        selene_wait_step(source, step);
        if (qos_load_relaxed(&source->changed))
            selene_source_apply(source); /* a sink that is gone acknowledges nothing */
    }
    for (uint32_t i = 0; i < source->edge_count; i++)
        qos_shm_end(&source->edges[i]->shm);
    pthread_mutex_lock(&s->lock);
    for (struct selene_source **at = &s->sources; *at; at = &(*at)->next) {
        if (*at == source) {
            *at = source->next;
            break;
        }
    }
    source->next = s->closing;
    s->closing = source;
    pthread_mutex_unlock(&s->lock);
    selene_kick(s);
}

bool selene_source_finish(struct selene_source *source)
{
    if (source->new_memory)
        return true; /* the sinks' side went with the datapath process */
    (void)edges_take(source);
    selene_source_drain(source);
    for (uint32_t i = 0; i < source->edge_count; i++) {
        struct edge_out *edge = source->edges[i];
        if (edge->shm.held > 0 && !qos_load_acquire(&edge->gone))
            continue;
        edge_reclaim(source, edge);
        source->edges[i--] = source->edges[--source->edge_count];
    }
    if (source->batch.data) {
        (void)qos_cache_drop(source->cache, source->batch.slice);
        source->batch.data = NULL;
    }
    selene_batch_returned(source);
    if (source->edge_count > 0 || source->borrowed > 0)
        return source->borrowed > 0 && source->edge_count == 0;
    if (source->cast.ring) { /* nobody holds anything of it: who still looks sees that it is closed */
        qos_fence_seq_cst();
        (void)qos_cache_drop(source->cache, source->cast_slice);
        qos_cast_producer_close(&source->cast);
    }
    if (qos_cache_close(source->cache) > 0)
        return false; /* the datapath process still sends */
    source->cache = NULL;
    return true;
}

void selene_source_free(struct selene_source *source)
{
    struct selene_session *s = source->session;
    pthread_mutex_lock(&s->remote_lock);
    for (struct selene_source **at = &s->sending; *at; at = &(*at)->next_sending) {
        if (*at == source) {
            *at = source->next_sending;
            break;
        }
    }
    pthread_mutex_unlock(&s->remote_lock);
    if (source->counters) {
        pthread_mutex_lock(&s->lock);
        s->indices[source->endpoint.index / 64] &= ~(UINT64_C(1) << (source->endpoint.index % 64));
        memset(source->counters, 0, sizeof *source->counters);
        pthread_mutex_unlock(&s->lock);
    }
    while (source->inbox) {
        struct edge_out *edge = source->inbox;
        source->inbox = edge->next;
        edge_close(edge);
    }
    for (uint32_t i = 0; i < source->edge_count; i++)
        edge_close(source->edges[i]);
    qos_cast_producer_close(&source->cast);
    if (source->cache)
        qos_cache_discard(source->cache);
    selene_memory_drop(source->memory);
    qos_gate_destroy(&source->batch_gate);
    free(source->edges);
    free(source->dests);
    free(source->new_dests);
    free(source->returned);
    selene_stream_drop(source->stream);
    free(source);
}
