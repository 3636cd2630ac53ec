/* SPDX-License-Identifier: Apache-2.0
 *
 * Borrow a buffer, emit it to local sinks by their edges and to remote ones by transmit.c; wait for room where delivery is reliable.
 */
#include <endian.h>
#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#define DRAIN_EVERY 16u     /* give-backs are looked at once in so many emits: the sink's index is a cache miss away */
#define IN_BATCH UINT64_MAX /* token[0]: lent by the open batch */
#define FULL_YIELDS 64u
#define FULL_SLEEP_NS 20000

/* ---- Waiting for room ---- */

static bool room_for(struct selene_source *source, uint32_t size, uint32_t slot_bytes)
{
    uint64_t quota = EDGE_QUOTA(source->memory->tx_buffers);
    if (QOS_UNLIKELY(!qos_load_relaxed(&source->endpoint.named)))
        return false;
    for (uint32_t i = 0; i < source->edge_count; i++) {
        if (!qos_shm_room(&source->edges[i]->shm, slot_bytes, quota))
            return false;
    }
    return (!source->dest_count && !source->relayed) || selene_has_credit(source, size);
}

/* One step of waiting for slow sinks or for credit. */
void selene_wait_step(struct selene_source *source, uint32_t step)
{
    struct selene_session *s = source->session;
    if (source->dest_count || source->relayed) {
        /* first a look: credit that has come already lets the batch grow on */
        if (step > 0) {
            (void)selene_flush(source);
            selene_probe(source);
        }
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
            if (source->dest_count || source->relayed) {
                (void)selene_flush(source);
                selene_probe(source); /* who only ever tries must not wait for credit that was lost */
            }
            count(&source->counters->again, 1);
            return -EAGAIN;
        }
        selene_wait_step(source, flags & SELENE_DONTWAIT ? 0 : step);
        if (qos_load_relaxed(&source->changed))
            selene_source_apply(source);
        if (source->stale)
            return -ECONNRESET;
    }
    return 0;
}

/* ---- Buffers ---- */

/* A slot of its own for a message. 0, -EAGAIN, -EMSGSIZE. */
static int borrow(struct selene_source *source, uint32_t size, int flags, selene_buffer *buffer)
{
    uint64_t slice;
    int rc = qos_cache_borrow(source->cache, size, &slice);
    for (uint32_t step = 0; QOS_UNLIKELY(rc == -EAGAIN); step++) {
        selene_source_drain(source);
        rc = qos_cache_borrow(source->cache, size, &slice);
        if (rc != -EAGAIN)
            break;
        if (flags & SELENE_DONTWAIT || !source->stream->options.delivery) {
            count(&source->counters->again, 1);
            return selene_fail(-EAGAIN, "the transmit pool is empty: sinks hold %u buffers of this session",
                               source->memory->tx_buffers);
        }
        selene_wait_step(source, step);
        if (qos_load_relaxed(&source->changed))
            selene_source_apply(source);
    }
    if (QOS_UNLIKELY(rc < 0))
        return selene_fail(rc, "a message has at most %d bytes, this one %u", SELENE_MAX_MESSAGE, size);
    buffer->data = qos_pool_payload(source->memory->pool, slice);
    buffer->token[0] = slice;
    return 0;
}

int selene_get_buffer(selene_source *source, uint32_t size, int flags, selene_buffer *buffer)
{
    if (QOS_UNLIKELY(qos_load_relaxed(&source->changed)))
        selene_source_apply(source);
    if (QOS_UNLIKELY(source->stale))
        return selene_fail(-ECONNRESET, "selened-dp was restarted: emit or cancel the %u buffers still borrowed",
                           source->borrowed);
    buffer->token[0] = IN_BATCH;
    buffer->data = qos_load_relaxed(&source->batch.opened_ns) ? selene_batch_lend(source, size) : NULL;
    int rc = buffer->data ? 0 : borrow(source, size, flags, buffer);
    if (QOS_UNLIKELY(rc < 0))
        return rc;
    buffer->size = size;
    buffer->token[1] = (uint64_t)(uintptr_t)source->memory;
    source->borrowed++;
    return 0;
}

/* Whether the application may emit or cancel it; what belongs to a dead datapath process is void. */
static int check_borrowed(struct selene_source *source, selene_buffer *buffer)
{
    if (QOS_UNLIKELY(!buffer->data || source->borrowed == 0))
        return selene_fail(-EINVAL, "that buffer is not borrowed from this source");
    if (QOS_LIKELY(buffer->token[1] == (uint64_t)(uintptr_t)source->memory && !source->stale))
        return 0;
    if (buffer->token[0] == IN_BATCH)
        selene_batch_returned(source);
    source->borrowed--;
    buffer->data = NULL;
    return selene_fail(-ECONNRESET, "selened-dp was restarted while this buffer was borrowed: its content is lost");
}

void selene_cancel_buffer(selene_source *source, selene_buffer *buffer)
{
    if (check_borrowed(source, buffer) < 0)
        return;
    if (buffer->token[0] == IN_BATCH)
        selene_batch_returned(source);
    else
        (void)qos_cache_drop(source->cache, buffer->token[0]);
    source->borrowed--;
    buffer->data = NULL;
}

/* A message that was written into the batch moves to a slot of its own. */
static int leave_batch(struct selene_source *source, selene_buffer *buffer, int flags)
{
    selene_buffer slot;
    if (buffer->size > source->lent_size)
        return selene_fail(-EMSGSIZE, "the buffer was borrowed for fewer than %u bytes", buffer->size);
    int rc = borrow(source, buffer->size, flags, &slot);
    if (rc < 0)
        return rc;
    memcpy(slot.data, buffer->data, buffer->size);
    buffer->data = slot.data;
    buffer->token[0] = slot.token[0];
    selene_batch_returned(source);
    return 0;
}

/* ---- Emit ---- */

/* Show the local sinks what was written for them, and wake those that sleep; on our bell all with one call. */
static void publish(struct selene_source *source)
{
    bool bell = false, sleepers = false;
    selene_stamp_handed(source);
    if (qos_cast_unpublished(&source->cast))
        qos_cast_publish(&source->cast);
    for (uint32_t i = 0; i < source->edge_count; i++) {
        struct qos_shm_producer *p = &source->edges[i]->shm;
        qos_shm_publish(p);
        qos_shm_report(p);
        sleepers |= qos_load_relaxed(&p->link->waiting) != QOS_SHM_SPINS;
    }
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
        } else if (how == QOS_SHM_ON_LINK) {
            qos_futex_wake(&edge->shm.link->waiting, 1);
        } else if (how == QOS_SHM_ON_FD) {
            uint64_t one = 1;
            ssize_t ignored = write(edge->event_fd, &one, sizeof one);
            (void)ignored; /* full: the sink is awake anyway */
        }
    }
    if (bell) {
        _Atomic uint32_t *word = (_Atomic uint32_t *)(void *)source->memory->tx_base;
        qos_add_acq_rel(word, 1);
        qos_futex_wake(word, 1); /* who wakes the others */
    }
}

static bool edge_room(struct selene_source *source, struct edge_out *edge, uint32_t slot_bytes, uint64_t quota)
{
    if (QOS_LIKELY(qos_shm_room(&edge->shm, slot_bytes, quota)))
        return true;
    selene_edge_drain(source, edge);
    return qos_shm_room(&edge->shm, slot_bytes, quota);
}

/* By the ring for several, to those that have room and are members: their bits, 0 if it cannot go that way. */
static uint32_t emit_cast(struct selene_source *source, uint64_t slice, uint64_t second, uint32_t slot_bytes,
                          uint64_t quota)
{
    uint32_t members = 0;
    for (uint32_t i = 0; i < source->edge_count; i++) {
        struct edge_out *edge = source->edges[i];
        if (edge->shm.cast && edge_room(source, edge, slot_bytes, quota))
            members |= 1u << edge->shm.member;
        /* an earlier message may have gone by the sink's own ring: it is seen before this one */
        qos_shm_publish(&edge->shm);
    }
    if ((members & (members - 1)) == 0 || qos_cast_write(&source->cast, slice, second, members) < 0)
        return 0;
    return members;
}

/* Hand the slot to every local sink; how many hold it now. */
static uint32_t emit_local(struct selene_source *source, uint64_t slice, uint32_t size, uint64_t sequence)
{
    uint32_t holders = 0, slot_bytes = qos_pool_slot_bytes(source->memory->pool, slice);
    uint64_t quota = EDGE_QUOTA(source->memory->tx_buffers);
    uint32_t members =
        source->cast.members ? emit_cast(source, slice, (uint64_t)size | sequence << 32, slot_bytes, quota) : 0;
    for (uint32_t i = 0; i < source->edge_count; i++) {
        struct edge_out *edge = source->edges[i];
        if (edge->shm.cast && members >> edge->shm.member & 1) {
            qos_shm_wrote_cast(&edge->shm, slot_bytes);
            holders++;
            continue;
        }
        if (QOS_UNLIKELY(qos_cast_unpublished(&source->cast) && edge->shm.cast))
            qos_cast_publish(&source->cast); /* an earlier message, or this one, which it is not for */
        int rc = qos_shm_write(&edge->shm, slice, size, sequence, slot_bytes, quota);
        if (QOS_UNLIKELY(rc == -EAGAIN)) {
            selene_edge_drain(source, edge);
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

static void emitted(struct selene_source *source, selene_buffer *buffer)
{
    source->borrowed--;
    buffer->data = NULL;
    count(&source->counters->messages, 1);
    count(&source->counters->bytes, buffer->size);
}

/* Whether the message could go where it was written. */
static bool emit_in_batch(struct selene_source *source, selene_buffer *buffer, uint64_t now)
{
    /* Credit for each message, though it is counted by datagrams: looking only at the first of each left batches of 4 KB messages
     * half empty when it was measured. */
    if (QOS_UNLIKELY(buffer->size > source->lent_size || source->edge_count > 0 || source->stamps ||
                     !selene_has_credit(source, buffer->size) || !selene_batch_emit(source, buffer, now)))
        return false;
    source->lent = false;
    emitted(source, buffer);
    return true;
}

/* Everything but publish. `now`: Unix time, ns. */
static int64_t emit_one(struct selene_source *source, selene_buffer *buffer, int flags, uint64_t now)
{
    if (QOS_UNLIKELY(qos_load_relaxed(&source->changed)))
        selene_source_apply(source);
    int rc = check_borrowed(source, buffer);
    if (rc < 0)
        return rc;
    if (buffer->token[0] == IN_BATCH) {
        if (emit_in_batch(source, buffer, now))
            return (int64_t)source->sequence++;
        if ((rc = leave_batch(source, buffer, flags)) < 0)
            return rc;
    }
    if (QOS_UNLIKELY(source->stamps))
        *source->stamps = (selene_stamps){.api_ns = now};
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
        source->batch.untimed = BATCH_DENSE_CLOCK; /* that may have been long */
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
    emitted(source, buffer);
    if (QOS_UNLIKELY(sequence % DRAIN_EVERY == 0))
        selene_source_drain(source);
    return (int64_t)sequence;
}

/* When a message is emitted; that of one just before it in the open batch, where they come less than half a microsecond apart. */
static uint64_t emit_time(struct selene_source *source)
{
    struct batch *b = &source->batch;
    if (qos_load_relaxed(&b->lasts_ns) == BATCH_DENSE_NS && qos_load_relaxed(&b->opened_ns) &&
        ++b->untimed < BATCH_DENSE_CLOCK)
        return b->newest_ns;
    b->untimed = 0;
    return qos_clock_stamp_ns();
}

int64_t selene_emit(selene_source *source, selene_buffer *buffer, int flags)
{
    int64_t token = emit_one(source, buffer, flags, emit_time(source));
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
    qos_gate_enter(&source->batch_gate);
    int rc = selene_flush_locked(source);
    qos_gate_leave(&source->batch_gate);
    if (qos_load_relaxed(&source->changed))
        selene_source_apply(source);
    selene_source_drain(source);
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
    qos_gate_enter(&source->batch_gate); /* the timer may be sending it */
    int rc = source->outcomes[token % SELENE_OUTCOMES];
    qos_gate_leave(&source->batch_gate);
    return rc;
}

void selene_source_stamp(selene_source *source, selene_stamps *stamps)
{
    source->stamps = stamps;
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
    *stats = (selene_source_stats){c->messages,
                                   c->bytes,
                                   c->datagrams,
                                   c->dropped,
                                   c->dropped_slow,
                                   c->failed,
                                   c->again,
                                   0,
                                   source->dest_count + source->relayed};
    for (uint32_t i = 0; i < source->edge_count && !source->new_memory; i++)
        stats->local_sinks += !qos_load_relaxed(&source->edges[i]->gone);
    /* and what that thread has not looked at yet */
    for (const struct edge_out *edge = source->inbox; edge; edge = edge->next)
        stats->local_sinks += !qos_load_relaxed(&edge->gone);
    if (source->new_route)
        stats->remote_sinks = source->new_count + ((source->new_flags & SELENE_RELAYED) != 0);
    pthread_mutex_unlock(&s->lock);
}
