/* SPDX-License-Identifier: Apache-2.0
 *
 * Sources: borrow a buffer, emit it to local sinks by their edges and to remote ones by transmit.c.
 */
#include <endian.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#define DRAIN_EVERY 16u /* give-backs are looked at once in so many emits: the sink's index is a cache miss away */
#define FULL_YIELDS 64u
#define FULL_SLEEP_NS 20000

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
    source->counters = (struct selene_counters *)((uint8_t *)source->memory->page + SELENE_PAGE_COUNTERS) + source->endpoint.index;
    source->counters->id = source->endpoint.id;
    source->counters->kind = 1;
    source->counters->stream = source->stream->options.stream;
    source->counters->channel = source->endpoint.channel;
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
    pthread_mutex_lock(&source->batch_lock);
    if (source->batch.opened_ns) {
        source->batch.opened_ns = 0;
        qos_sub_acq_rel(&s->open_batches, 1);
        count(&source->counters->failed, source->batch.messages);
    }
    source->batch = (struct batch){0};
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
    pthread_mutex_unlock(&source->batch_lock);
    selene_memory_drop(old);
    counters_at(source);
    return 0;
}

/* Take the new destinations; those that stay keep what is under way to them. */
static void route_replace(struct selene_source *source)
{
    pthread_mutex_lock(&source->session->remote_lock);
    pthread_mutex_lock(&source->batch_lock);
    (void)selene_flush_locked(source); /* on the old path, under the old epoch */
    struct dest *dests = source->new_dests, *old = source->dests;
    for (uint32_t i = 0; i < source->new_count; i++) {
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
        limit = 1472; /* relayed: the datapath process knows the path; Ethernet's MTU is safe */
    source->segment_limit = limit < 16384 ? limit & ~7u : 16384;
    source->new_dests = NULL;
    source->new_route = false;
    selene_pair(source->session);
    pthread_mutex_unlock(&source->batch_lock);
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
        if (source->new_route)
            route_replace(source);
        counters_at(source);
    }
    pthread_mutex_unlock(&s->lock);
}

/* ---- What comes back ---- */

static void drain_edge(struct selene_source *source, struct edge_out *edge)
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
    pthread_mutex_unlock(&s->relay_lock);
}

void selene_source_drain(struct selene_source *source)
{
    for (uint32_t i = 0; i < source->edge_count; i++)
        drain_edge(source, source->edges[i]);
    if (source->relayed || source->memory->outstanding)
        drain_relay(source);
}

/* ---- Waiting for room ---- */

static bool room_for(struct selene_source *source, uint32_t size, uint32_t slot_bytes)
{
    uint64_t quota = EDGE_QUOTA(source->memory->tx_buffers);
    for (uint32_t i = 0; i < source->edge_count; i++) {
        const struct qos_shm_producer *p = &source->edges[i]->shm;
        if (p->held == p->depth || (p->held > 0 && p->held_bytes + slot_bytes > quota))
            return false;
    }
    return (!source->dest_count && !source->relayed) || selene_has_credit(source, size);
}

/* One step of waiting for slow sinks or for credit. */
static void wait_step(struct selene_source *source, uint32_t step)
{
    struct selene_session *s = source->session;
    if (source->dest_count || source->relayed) {
        (void)selene_flush(source);
        if (step > 0)
            selene_probe(source);
        if (selene_receiver_enter(s, NULL)) {
            (void)selene_receive(s, step == 0 ? 0 : 200000);
            selene_receiver_leave(s);
            return;
        }
    }
    if (step < FULL_YIELDS) {
        sched_yield();
    } else {
        struct timespec ts = {0, FULL_SLEEP_NS};
        nanosleep(&ts, NULL);
    }
}

/* Reliable: until all sinks can take it. 0, -EAGAIN (SELENE_DONTWAIT), -ECONNRESET (the datapath process is gone). */
static int wait_room(struct selene_source *source, uint32_t size, uint32_t slot_bytes, int flags)
{
    for (uint32_t step = 0; !room_for(source, size, slot_bytes); step++) {
        selene_source_drain(source);
        if (room_for(source, size, slot_bytes))
            break;
        if (flags & SELENE_DONTWAIT && step > 0) {
            if (source->dest_count || source->relayed)
                selene_probe(source); /* who only ever tries must not wait for credit that was lost */
            count(&source->counters->again, 1);
            return -EAGAIN;
        }
        wait_step(source, flags & SELENE_DONTWAIT ? 0 : step);
        if (qos_load_relaxed(&source->changed))
            selene_source_apply(source);
        if (source->stale)
            return -ECONNRESET;
    }
    return 0;
}

/* ---- Buffers ---- */

int selene_get_buffer(selene_source *source, uint32_t size, int flags, selene_buffer *buffer)
{
    if (QOS_UNLIKELY(qos_load_relaxed(&source->changed)))
        selene_source_apply(source);
    if (QOS_UNLIKELY(source->stale))
        return selene_fail(-ECONNRESET, "selened-dp was restarted: emit or cancel the %u buffers still borrowed", source->borrowed);
    uint64_t slice;
    int rc = qos_cache_borrow(source->cache, size, &slice);
    for (uint32_t step = 0; QOS_UNLIKELY(rc == -EAGAIN); step++) {
        selene_source_drain(source);
        rc = qos_cache_borrow(source->cache, size, &slice);
        if (rc != -EAGAIN)
            break;
        if (flags & SELENE_DONTWAIT || !source->stream->options.delivery) {
            count(&source->counters->again, 1);
            return selene_fail(-EAGAIN, "the transmit pool is empty: sinks hold %u buffers of this session", source->memory->tx_buffers);
        }
        wait_step(source, step);
        if (qos_load_relaxed(&source->changed))
            selene_source_apply(source);
    }
    if (QOS_UNLIKELY(rc < 0))
        return selene_fail(rc, "a message has at most %d bytes, this one %u", SELENE_MAX_MESSAGE, size);
    source->borrowed++;
    buffer->data = qos_pool_payload(source->memory->pool, slice);
    buffer->size = size;
    buffer->token[0] = slice;
    buffer->token[1] = (uint64_t)(uintptr_t)source->memory;
    return 0;
}

/* Whether the application may emit or cancel it; what belongs to a dead datapath process is void. */
static int check_borrowed(struct selene_source *source, selene_buffer *buffer)
{
    if (QOS_UNLIKELY(!buffer->data || source->borrowed == 0))
        return selene_fail(-EINVAL, "that buffer is not borrowed from this source");
    if (QOS_LIKELY(buffer->token[1] == (uint64_t)(uintptr_t)source->memory && !source->stale))
        return 0;
    source->borrowed--;
    buffer->data = NULL;
    return selene_fail(-ECONNRESET, "selened-dp was restarted while this buffer was borrowed: its content is lost");
}

void selene_cancel_buffer(selene_source *source, selene_buffer *buffer)
{
    if (check_borrowed(source, buffer) < 0)
        return;
    (void)qos_cache_drop(source->cache, buffer->token[0]);
    source->borrowed--;
    buffer->data = NULL;
}

/* ---- Emit ---- */

/* Show the local sinks what was written for them, and wake those that sleep; on our bell all with one call. */
static void publish(struct selene_source *source)
{
    bool bell = false, sleepers = false;
    for (uint32_t i = 0; i < source->edge_count; i++)
        qos_ring_publish(&source->edges[i]->shm.forward);
    for (uint32_t i = 0; i < source->edge_count; i++)
        sleepers = sleepers || qos_load_relaxed(&source->edges[i]->shm.link->waiting) != QOS_SHM_SPINS;
    if (!sleepers)
        return;
    /* pairs with the fences in sleep.c: either the sink sees our words, or we see that it sleeps */
    qos_fence_seq_cst();
    for (uint32_t i = 0; i < source->edge_count; i++) {
        struct edge_out *edge = source->edges[i];
        uint32_t how = qos_load_relaxed(&edge->shm.link->waiting);
        if (QOS_LIKELY(how == QOS_SHM_AWAKE || how == QOS_SHM_SPINS))
            continue;
        how = qos_exchange_acq_rel(&edge->shm.link->waiting, QOS_SHM_AWAKE);
        if (how == QOS_SHM_ON_BELL) {
            bell = true;
        } else if (how == QOS_SHM_ON_FD) {
            uint64_t one = 1;
            ssize_t ignored = write(edge->event_fd, &one, sizeof one);
            (void)ignored; /* full: the sink is awake anyway */
        }
    }
    if (bell) {
        _Atomic uint32_t *word = (_Atomic uint32_t *)(void *)source->memory->tx_base;
        qos_add_acq_rel(word, 1);
        qos_futex_wake(word, INT_MAX);
    }
}

/* Hand the slot to every local sink; how many hold it now. */
static uint32_t emit_local(struct selene_source *source, uint64_t slice, uint32_t size, uint64_t sequence)
{
    uint32_t holders = 0, slot_bytes = qos_pool_slot_bytes(source->memory->pool, slice);
    uint64_t quota = EDGE_QUOTA(source->memory->tx_buffers);
    for (uint32_t i = 0; i < source->edge_count; i++) {
        struct edge_out *edge = source->edges[i];
        int rc = qos_shm_write(&edge->shm, slice, size, sequence, slot_bytes, quota);
        if (QOS_UNLIKELY(rc == -EAGAIN)) {
            drain_edge(source, edge);
            rc = qos_shm_write(&edge->shm, slice, size, sequence, slot_bytes, quota);
        }
        if (QOS_LIKELY(rc == 0)) {
            holders++;
        } else if (rc == -EAGAIN) {
            count(&source->counters->dropped_slow, 1);
            qos_store_relaxed(&edge->shm.link->dropped, qos_load_relaxed(&edge->shm.link->dropped) + 1);
        } else {
            qos_store_relaxed(&edge->gone, true);
            qos_store_relaxed(&source->changed, true);
        }
    }
    return holders;
}

/* Everything but publish. `now`: Unix time, ns. */
static int64_t emit_one(struct selene_source *source, selene_buffer *buffer, int flags, uint64_t now)
{
    if (QOS_UNLIKELY(qos_load_relaxed(&source->changed)))
        selene_source_apply(source);
    int rc = check_borrowed(source, buffer);
    if (rc < 0)
        return rc;
    uint64_t slice = buffer->token[0];
    uint32_t size = buffer->size, slot_bytes = qos_pool_slot_bytes(source->memory->pool, slice);
    bool remote = source->dest_count || source->relayed;
    if (QOS_UNLIKELY(size > slot_bytes - QOS_POOL_HEADROOM || size > SELENE_MAX_MESSAGE))
        return selene_fail(-EMSGSIZE, "the buffer was borrowed for fewer than %u bytes", size);
    if (QOS_UNLIKELY(remote && size > QOS_WIRE_MAX_DATAGRAM - QOS_WIRE_OVERHEAD))
        return selene_fail(-EMSGSIZE, "a message to another host has at most %d bytes, this one %u",
                           QOS_WIRE_MAX_DATAGRAM - QOS_WIRE_OVERHEAD, size);
    if (source->stream->options.delivery && !room_for(source, size, slot_bytes)) {
        rc = wait_room(source, size, slot_bytes, flags);
        if (rc == -ECONNRESET)
            (void)check_borrowed(source, buffer);
        if (rc < 0)
            return rc;
        remote = source->dest_count || source->relayed;
    } else if (remote && !selene_has_credit(source, size) && selene_receiver_enter(source->session, NULL)) {
        (void)selene_receive(source->session, 0); /* credit may have come */
        selene_receiver_leave(source->session);
        selene_probe(source);
    }
    uint64_t sequence = source->sequence++;
    uint8_t *payload = buffer->data;
    uint64_t sent = htole64(now), number = htole64(sequence);
    memcpy(payload - QOS_WIRE_OVERHEAD + 40, &sent, sizeof sent);
    memcpy(payload - QOS_WIRE_OVERHEAD + 32, &number, sizeof number);
    source->outcomes[sequence % SELENE_OUTCOMES] = 1;
    uint32_t holders = source->edge_count ? emit_local(source, slice, size, sequence) : 0;
    if (remote)
        holders += (uint32_t)selene_transmit(source, slice, payload, size, now, sequence);
    (void)qos_cache_emit(source->cache, slice, holders);
    source->borrowed--;
    buffer->data = NULL;
    count(&source->counters->messages, 1);
    count(&source->counters->bytes, size);
    if (QOS_UNLIKELY(sequence % DRAIN_EVERY == 0))
        selene_source_drain(source);
    return (int64_t)sequence;
}

int64_t selene_emit(selene_source *source, selene_buffer *buffer, int flags)
{
    int64_t token = emit_one(source, buffer, flags, qos_clock_stamp_ns());
    if (QOS_LIKELY(token >= 0) && source->edge_count)
        publish(source);
    return token;
}

int64_t selene_emit_data(selene_source *source, selene_buffer *buffer)
{
    return selene_emit(source, buffer, 0);
}

int64_t selene_send(selene_source *source, const void *data, uint32_t size, int flags)
{
    selene_buffer buffer;
    int rc = selene_get_buffer(source, size, flags, &buffer);
    if (rc < 0)
        return rc;
    memcpy(buffer.data, data, size);
    int64_t token = selene_emit(source, &buffer, flags);
    if (token < 0 && buffer.data)
        selene_cancel_buffer(source, &buffer);
    return token;
}

int selene_get_burst(selene_source *source, uint32_t size, int flags, selene_buffer *buffers, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        int rc = selene_get_buffer(source, size, i == 0 ? flags : SELENE_DONTWAIT, &buffers[i]);
        if (rc < 0)
            return i ? (int)i : rc;
    }
    return (int)n;
}

int selene_emit_burst(selene_source *source, selene_buffer *buffers, uint32_t n, int flags)
{
    uint32_t done = 0;
    int64_t rc = 0;
    uint64_t now = qos_clock_stamp_ns();
    while (done < n && (rc = emit_one(source, &buffers[done], flags | (done ? SELENE_DONTWAIT : 0), now)) >= 0)
        done++;
    if (source->edge_count)
        publish(source);
    return done ? (int)done : (int)rc;
}

int selene_flush(selene_source *source)
{
    pthread_mutex_lock(&source->batch_lock);
    int rc = selene_flush_locked(source);
    pthread_mutex_unlock(&source->batch_lock);
    return rc;
}

int selene_check_emit_outcome(selene_source *source, int64_t token)
{
    if (token < 0 || (uint64_t)token >= source->sequence)
        return selene_fail(-EINVAL, "no emit of this source has returned that token");
    if (source->sequence - (uint64_t)token > SELENE_OUTCOMES)
        return -ESTALE;
    if (source->outcomes[token % SELENE_OUTCOMES] == 0)
        selene_source_drain(source);
    pthread_mutex_lock(&source->batch_lock); /* the timer may be sending it */
    int rc = source->outcomes[token % SELENE_OUTCOMES];
    pthread_mutex_unlock(&source->batch_lock);
    return rc;
}

uint64_t selene_source_id(const selene_source *source)
{
    return source->endpoint.id;
}

void selene_source_get_stats(const selene_source *source, selene_source_stats *stats)
{
    struct selene_session *s = source->session;
    pthread_mutex_lock(&s->lock); /* the source's thread changes its edges with it held */
    const struct selene_counters *c = source->counters;
    *stats = (selene_source_stats){c->messages, c->bytes, c->datagrams, c->dropped, c->dropped_slow, c->failed, c->again,
                                   0, source->dest_count + source->relayed};
    for (uint32_t i = 0; i < source->edge_count && !source->new_memory; i++)
        stats->local_sinks += !qos_load_relaxed(&source->edges[i]->gone);
    /* and what that thread has not looked at yet */
    for (const struct edge_out *edge = source->inbox; edge; edge = edge->next)
        stats->local_sinks += !qos_load_relaxed(&edge->gone);
    if (source->new_route)
        stats->remote_sinks = source->new_count + ((source->new_flags & SELENE_RELAYED) != 0);
    pthread_mutex_unlock(&s->lock);
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
    source->endpoint.channel = channel;
    memcpy(source->endpoint.name, name, strlen(name) + 1);
    source->segment_limit = 1472;
    pthread_mutex_init(&source->batch_lock, NULL);
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
    if (source->stream->options.delivery)
        for (uint32_t step = 1; !source->stale && !acknowledged(source) && qos_clock_monotonic_ns() - begin < CLOSE_WAIT_NS; step++)
            wait_step(source, step);
    for (uint32_t i = 0; i < source->edge_count; i++)
        qos_store_release(&source->edges[i]->shm.link->closed, 1);
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
    if (source->edge_count > 0 || source->borrowed > 0)
        return source->borrowed > 0 && source->edge_count == 0;
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
    if (source->cache)
        qos_cache_discard(source->cache);
    selene_memory_drop(source->memory);
    pthread_mutex_destroy(&source->batch_lock);
    free(source->edges);
    free(source->dests);
    free(source->new_dests);
    free(source->returned);
    free(source);
}
