/* SPDX-License-Identifier: Apache-2.0
 *
 * The remote side of a source: one datagram per message while it is idle, batches while messages come faster than they can be sent.
 *
 * A batch is one buffer of equal segments (the last may be shorter), each a datagram of its own with header and records, sent with one
 * call. It is closed when it is full, at flush, before a thread of the session sleeps, and by the service thread 20 us after it was
 * opened. Credit is counted per destination in bytes as the receiving kernel books them.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"

#define COST_EVERY 16 /* how long a send takes is measured once in so many */
#define PROBE_NS 1000000u
#define SEND_WAIT_MS 20

static uint32_t credit_left(const struct dest *d, uint32_t pending)
{
    /* acquire: pairs with the release in selene_credit_arrived */
    uint32_t under_way = d->sent + pending - qos_load_acquire(&d->acked);
    uint32_t window = qos_load_relaxed(&d->window);
    return under_way < window ? window - under_way : 0;
}

/* A datagram larger than the whole window passes when nothing else is under way. */
static bool credit_for(const struct dest *d, uint32_t pending, uint32_t cost)
{
    return credit_left(d, pending) >= cost || d->sent + pending == qos_load_acquire(&d->acked);
}

static uint32_t message_cost(uint32_t size)
{
    return qos_frame_cost(QOS_WIRE_OVERHEAD + size);
}

bool selene_has_credit(struct selene_source *source, uint32_t size)
{
    uint32_t cost = message_cost(size), pending = source->batch.cost;
    if (source->relayed && !credit_for(&source->relay, pending, cost))
        return false;
    for (uint32_t i = 0; i < source->dest_count; i++)
        if (!credit_for(&source->dests[i], pending, cost))
            return false;
    return true;
}

void selene_credit_arrived(struct selene_session *s, const struct qos_wire *wire, const struct qos_address *from)
{
    for (struct selene_source *x = s->sending; x; x = x->next_sending) {
        if (x->endpoint.id != wire->source)
            continue;
        struct dest *d = x->relayed && !from ? &x->relay : NULL;
        for (uint32_t i = 0; from && i < x->dest_count; i++)
            if (qos_address_equal(&x->dests[i].address, from))
                d = &x->dests[i];
        if (!d)
            return;
        uint32_t acked = qos_load_relaxed(&d->acked);
        if ((int32_t)(wire->credit - acked) > 0 && (int32_t)(d->sent - wire->credit) >= 0)
            qos_store_release(&d->acked, wire->credit);
        return;
    }
}

/* ---- Datagrams out ---- */

static void outcome(struct selene_source *source, uint64_t first, uint32_t n, int value)
{
    for (uint32_t i = 0; i < n; i++)
        source->outcomes[(first + i) % SELENE_OUTCOMES] = (int16_t)value;
}

static void patch_credit(uint8_t *data, uint32_t used, uint32_t segment, struct dest *d)
{
    for (uint32_t at = 0; at < used; at += segment) {
        uint32_t size = used - at < segment ? used - at : segment;
        d->sent += qos_frame_cost(size);
        qos_frame_set_credit(data + at, d->sent);
    }
}

/* One packet to one destination: 0, or a negative errno. The kernel's send buffer may be full: a reliable source waits for room. */
static int send_packet(struct selene_source *source, struct qos_packet *p)
{
    struct qos_datapath *udp = source->memory->udp, *net = source->memory->net;
    for (int tries = 0;; tries++) {
        int n = net->ops->tx(net, p, 1);
        if (n == 1)
            return -p->error;
        if (!source->stream->options.delivery || tries > 50)
            return -ENOBUFS;
        struct pollfd wait = {udp->ops->wait_fd(udp), POLLOUT, 0};
        (void)poll(&wait, 1, SEND_WAIT_MS);
    }
}

/* Send `used` bytes of equal segments to every destination of a direct session. The first error, or 0. */
static int send_direct(struct selene_source *source, uint8_t *data, uint32_t used, uint32_t segment, uint32_t messages,
                       uint32_t cost)
{
    struct qos_datapath *udp = source->memory->udp;
    int error = 0;
    for (uint32_t i = 0; i < source->dest_count; i++) {
        struct dest *d = &source->dests[i];
        if (!source->stream->options.delivery && !credit_for(d, 0, cost)) {
            count(&source->counters->dropped, messages);
            error = -ENOBUFS;
            continue;
        }
        uint32_t before = d->sent;
        patch_credit(data, used, segment, d);
        struct qos_packet p = {.data = data, .length = used, .address = d->address};
        int rc = 0;
        if (used <= segment || (udp->capabilities & QOS_CAP_SEGMENTATION)) {
            p.segment = used > segment ? (uint16_t)segment : 0;
            rc = send_packet(source, &p);
        } else {
            for (uint32_t at = 0; at < used && rc == 0; at += segment) {
                p = (struct qos_packet){
                    .data = data + at, .length = used - at < segment ? used - at : segment, .address = d->address};
                rc = send_packet(source, &p);
            }
        }
        if (rc < 0) {
            d->sent = before;
            count(&source->counters->failed, messages);
            error = rc;
            continue;
        }
        count(&source->counters->datagrams, (used + segment - 1) / segment);
    }
    return error;
}

/* Tell the datapath process, if it sleeps. */
static void wake_datapath(struct memory *m)
{
    /* pairs with the fence in selened-dp before it sleeps: either it sees our words, or we see that it sleeps */
    qos_fence_seq_cst();
    if (__atomic_load_n(&m->page->dp_sleeping, __ATOMIC_RELAXED)) {
        uint64_t one = 1;
        ssize_t ignored = write(m->wake_fd, &one, sizeof one);
        (void)ignored;
    }
}

int selene_relay_push(struct selene_session *s, struct memory *m, uint64_t slice, uint32_t length, uint32_t kind)
{
    uint64_t words[2] = {slice, (uint64_t)length | (uint64_t)kind << 32};
    pthread_mutex_lock(&s->relay_lock);
    int rc = m->outstanding < RELAY_OUTSTANDING ? qos_ring_push(&m->relay_tx, words, 2) : -EAGAIN;
    if (rc == 0)
        m->outstanding++;
    pthread_mutex_unlock(&s->relay_lock);
    if (rc == 0)
        wake_datapath(m);
    return rc;
}

/* Slices the datapath process has sent: hand each to its source, whose thread frees it. */
void selene_relay_done(struct selene_session *s, struct memory *m)
{
    pthread_mutex_lock(&s->remote_lock);
    pthread_mutex_lock(&s->relay_lock);
    uint64_t words[2];
    while (qos_ring_peek(&m->relay_done) >= 2 && qos_ring_pop(&m->relay_done, words, 2) == 2) {
        if (m->outstanding)
            m->outstanding--;
        struct selene_source *x = s->sending;
        while (x && !(x->memory == m && x->cache && qos_cache_owns(x->cache, words[0])))
            x = x->next_sending;
        uint32_t n = x ? qos_load_relaxed(&x->returned_count) : 0;
        if (x && n + 2 <= 2 * RELAY_OUTSTANDING) {
            x->returned[n] = words[0];
            x->returned[n + 1] = words[1];
            qos_store_release(&x->returned_count, n + 2);
            struct selene_counters *c = (struct selene_counters *)((uint8_t *)m->page + SELENE_PAGE_COUNTERS);
            count(&c[x->endpoint.index].returning, 1);
        } else if (m->credit_cache) {
            (void)qos_cache_drop(m->credit_cache, words[0]);
        }
    }
    pthread_mutex_unlock(&s->relay_lock);
    pthread_mutex_unlock(&s->remote_lock);
}

/* Hand segments to the datapath process: how many it took. */
static uint32_t send_relayed(struct selene_source *source, uint64_t slice, uint8_t *data, uint32_t offset,
                             uint32_t used, uint32_t segment)
{
    uint32_t pushed = 0;
    patch_credit(data, used, segment, &source->relay);
    for (uint32_t at = 0; at < used; at += segment) {
        uint32_t size = used - at < segment ? used - at : segment;
        uint64_t part =
            qos_slice_make(qos_slice_buffer(slice), offset + at, qos_slice_slot(slice), qos_slice_generation(slice));
        if (selene_relay_push(source->session, source->memory, part, size, SELENE_TO_ROUTE) < 0) {
            selene_relay_done(source->session, source->memory);
            if (selene_relay_push(source->session, source->memory, part, size, SELENE_TO_ROUTE) < 0)
                break;
        }
        pushed++;
    }
    count(&source->counters->datagrams, pushed);
    return pushed;
}

/* ---- Batches ---- */

static void close_segment(struct selene_source *source)
{
    struct batch *b = &source->batch;
    if (b->count == 0)
        return;
    struct qos_wire w = {
        .type = QOS_WIRE_DATA,
        .flags = source->stream->options.delivery ? QOS_WIRE_RELIABLE : 0,
        .count = (uint16_t)b->count,
        .length = (uint16_t)(b->used - b->start - QOS_WIRE_HEADER),
        .stream = source->stream->options.stream,
        .channel = source->endpoint.channel,
        .source = source->endpoint.id,
        .sequence = b->first + b->messages - b->count,
        .send_ns = b->send_ns,
        .epoch = source->epoch,
    };
    qos_frame_encode(b->data + b->start, &w);
}

int selene_flush_locked(struct selene_source *source)
{
    struct batch *b = &source->batch;
    if (qos_load_relaxed(&b->opened_ns) == 0)
        return 0;
    close_segment(source);
    uint64_t begin = qos_clock_stamp_ns();
    source->dense = b->messages * (uint64_t)BATCH_DENSE_EVERY_NS >= begin - qos_load_relaxed(&b->opened_ns);
    int rc = send_direct(source, b->data, b->used, b->segment, b->messages, b->cost);
    uint32_t references = 0;
    if (source->relayed) {
        references = send_relayed(source, b->slice, b->data, QOS_POOL_HEADROOM, b->used, b->segment);
        if (references < (b->used + b->segment - 1) / b->segment) {
            count(&source->counters->dropped, b->messages);
            rc = -ENOBUFS;
        }
        if (references > 0) {
            (void)qos_cache_emit(source->cache, b->slice, references);
            b->data = NULL;
        }
    }
    if (rc < 0)
        outcome(source, b->first, b->messages, rc);
    else if (!source->relayed)
        outcome(source, b->first, b->messages, 1);
    qos_store_relaxed(&b->opened_ns, 0);
    b->cost = 0;
    qos_sub_acq_rel(&source->session->open_batches, 1);
    source->last_send_ns = qos_clock_stamp_ns();
    source->send_cost_ns = source->last_send_ns - begin;
    return rc;
}

static bool batch_old(const struct batch *b, uint64_t now)
{
    return now - qos_load_relaxed(&b->opened_ns) >= qos_load_relaxed(&b->lasts_ns);
}

/* By its own thread, because it is full or old. */
static void close_batch(struct selene_source *source)
{
    (void)selene_flush_locked(source);
    source->closes = true;
}

uint64_t selene_flush_session(struct selene_session *s, bool all)
{
    uint64_t next = UINT64_MAX;
    if (qos_load_acquire(&s->open_batches) == 0)
        return next;
    pthread_mutex_lock(&s->lock);
    uint64_t now = qos_clock_stamp_ns();
    for (struct selene_source *x = s->sources; x; x = x->next) {
        uint64_t opened = qos_load_relaxed(&x->batch.opened_ns);
        if (!opened)
            continue;
        uint64_t lasts = qos_load_relaxed(&x->batch.lasts_ns) + BATCH_GRACE_NS;
        int64_t left = (int64_t)(opened + lasts - now);
        if (all || left <= 0) {
            left = (int64_t)lasts;
            /* whoever is inside is about to send anyway */
            if (qos_gate_visit(&x->batch_gate)) {
                (void)selene_flush_locked(x);
                /* it may just not have had the processor, because we have it; but the last one it did not close itself either */
                if (!all && !x->closes && !x->dense)
                    qos_store_relaxed(&s->flood_since_ns, now);
                x->closes &= all;
                qos_gate_visited(&x->batch_gate);
                continue;
            }
        }
        if ((uint64_t)left < next)
            next = (uint64_t)left;
    }
    pthread_mutex_unlock(&s->lock);
    return next;
}

/* How long the next batch may stay open. The larger it is, the less of a send each message pays for; where messages come slower than
 * that matters, all it would do is to let them wait. As with the timer's looks, a flood that has just begun may be over soon. */
static uint64_t batch_lasts(const struct selene_source *source, uint64_t now)
{
    int64_t lasts = (int64_t)(now - qos_load_relaxed(&source->session->flood_since_ns)) / 16;
    if (!source->dense || lasts < (int64_t)BATCH_CLOSE_NS)
        return BATCH_CLOSE_NS;
    return lasts < (int64_t)BATCH_DENSE_NS ? (uint64_t)lasts : BATCH_DENSE_NS;
}

/* Open a batch for messages of about this size. Equal segments: as many whole records as fit, so that equal messages waste nothing. */
static int batch_open(struct selene_source *source, uint32_t size, uint64_t now)
{
    struct batch *b = &source->batch;
    if (!b->data) {
        int rc = qos_cache_borrow(source->cache, QOS_POOL_PAYLOAD, &b->slice);
        if (rc < 0)
            return rc;
        b->data = qos_pool_payload(source->memory->pool, b->slice);
    }
    uint32_t record = qos_frame_record_size(size);
    b->segment = QOS_WIRE_HEADER + (source->segment_limit - QOS_WIRE_HEADER) / record * record;
    b->used = b->start = b->count = b->messages = 0;
    b->cost = 0;
    qos_store_relaxed(&b->opened_ns, now);
    struct selene_session *s = source->session;
    qos_store_relaxed(&s->last_batch_ns, now);
    qos_add_acq_rel(&s->open_batches, 1);
    /* pairs with the fence in service.c's next_due */
    qos_fence_seq_cst();
    if (!qos_load_relaxed(&s->timer_awake) && !qos_exchange_acq_rel(&s->timer_awake, 1)) {
        qos_store_relaxed(&s->flood_since_ns, now);
        selene_kick(s);
    }
    qos_store_relaxed(&b->lasts_ns,
                      batch_lasts(source, now)); /* until here the timer may go by that of the one before */
    return 0;
}

/* Where a record would go; at the start of a segment, behind its header. 0: it does not fit. */
static uint32_t place(const struct batch *b, uint32_t record)
{
    if (b->count > 0 && b->used - b->start + record <= b->segment)
        return b->used;
    if (QOS_WIRE_HEADER + record > b->segment)
        return 0;
    if (b->count == 0)
        return b->start + QOS_WIRE_HEADER;
    uint32_t next = b->start + b->segment;
    return next + b->segment > BATCH_BYTES || next / b->segment >= BATCH_SEGMENTS ? 0 : next + QOS_WIRE_HEADER;
}

/* Append if it fits: 0, or -ENOSPC. The payload may lie in the batch already, there or further behind. */
static int batch_append(struct selene_source *source, const uint8_t *payload, uint32_t size, uint64_t sent_ns,
                        uint64_t sequence)
{
    struct batch *b = &source->batch;
    uint32_t record = qos_frame_record_size(size), at = place(b, record);
    if (at == 0)
        return -ENOSPC;
    if (at != b->used) {
        uint32_t start = at - QOS_WIRE_HEADER;
        if (b->count > 0) {
            close_segment(source);
            memset(b->data + b->used, 0, start - b->used); /* nothing of an earlier message leaves in the padding */
        }
        b->start = start;
        b->count = 0;
        b->send_ns = sent_ns;
        b->cost += QOS_WIRE_SKB_COST + b->segment;
    }
    if (b->messages == 0)
        b->first = sequence;
    uint64_t delta = sent_ns - b->send_ns;
    uint8_t *to = b->data + at + QOS_WIRE_RECORD;
    qos_frame_put_record(to - QOS_WIRE_RECORD, size, delta < UINT32_MAX ? (uint32_t)delta : UINT32_MAX);
    if (payload != to)
        memmove(to, payload, size);
    if (record != QOS_WIRE_RECORD + size)
        memset(to + size, 0, record - QOS_WIRE_RECORD - size);
    b->used = at + record;
    b->newest_ns = sent_ns;
    b->count++;
    b->messages++;
    source->outcomes[sequence % SELENE_OUTCOMES] = 0;
    return 0;
}

/* ---- A message that is written into the batch by the application itself ----
 *
 * In a flood between hosts, borrowing a slot and copying it into the batch would take longer than all the rest. So the place of the next
 * record is lent, to one message at a time. The timer may send the batch meanwhile: what lies in front of that place. Whatever else
 * happens in between, the application keeps the memory, and the batch goes on in another buffer. */

uint8_t *selene_batch_lend(struct selene_source *source, uint32_t size)
{
    struct batch *b = &source->batch;
    if (source->lent || source->edge_count > 0 || source->relayed || source->dest_count == 0 || source->stamps ||
        QOS_UNLIKELY(size > SELENE_MAX_MESSAGE)) /* the size of its record could wrap around */
        return NULL;
    uint32_t at = place(b, qos_frame_record_size(size));
    if (at == 0)
        return NULL;
    source->lent = true;
    source->lent_size = size;
    return b->data + at + QOS_WIRE_RECORD;
}

static void part(struct selene_source *source)
{
    (void)selene_flush_locked(source);
    source->parted = true;
    source->lent_slice = source->batch.slice;
    source->batch.data = NULL;
}

void selene_batch_part(struct selene_source *source)
{
    qos_gate_enter(&source->batch_gate);
    if (!source->parted)
        part(source);
    qos_gate_leave(&source->batch_gate);
}

void selene_batch_returned(struct selene_source *source)
{
    if (source->parted)
        (void)qos_cache_drop(source->cache, source->lent_slice);
    source->lent = source->parted = false;
}

bool selene_batch_emit(struct selene_source *source, const selene_buffer *buffer, uint64_t now)
{
    bool ok = false;
    qos_gate_enter(&source->batch_gate);
    if (!source->parted && qos_load_relaxed(&source->batch.opened_ns)) {
        ok = batch_append(source, buffer->data, buffer->size, now, source->sequence) == 0;
        if (batch_old(&source->batch, now))
            close_batch(source);
    }
    qos_gate_leave(&source->batch_gate);
    return ok;
}

/* ---- One message ---- */

static int send_alone(struct selene_source *source, uint64_t slice, uint8_t *payload, uint32_t size, uint64_t sent_ns,
                      uint64_t sequence, uint64_t now)
{
    uint8_t *header = payload - QOS_WIRE_OVERHEAD;
    struct qos_wire w = {
        .type = QOS_WIRE_DATA,
        .flags = source->stream->options.delivery ? QOS_WIRE_RELIABLE : 0,
        .count = 1,
        .length = (uint16_t)(QOS_WIRE_RECORD + size),
        .stream = source->stream->options.stream,
        .channel = source->endpoint.channel,
        .source = source->endpoint.id,
        .sequence = sequence,
        .send_ns = sent_ns,
        .epoch = source->epoch,
    };
    qos_frame_encode(header, &w);
    qos_frame_put_record(header + QOS_WIRE_HEADER, size, 0);
    uint32_t length = QOS_WIRE_OVERHEAD + size;
    selene_stamp_handed(source);
    int rc = send_direct(source, header, length, length, 1, qos_frame_cost(length));
    int references = 0;
    if (source->relayed) {
        if (!source->stream->options.delivery && !credit_for(&source->relay, 0, qos_frame_cost(length))) {
            count(&source->counters->dropped, 1);
            rc = -ENOBUFS;
        } else if (send_relayed(source, slice, header, qos_slice_offset(slice) - QOS_WIRE_OVERHEAD, length, length) ==
                   1) {
            references = 1;
        } else {
            count(&source->counters->dropped, 1);
            rc = -ENOBUFS;
        }
    }
    source->outcomes[sequence % SELENE_OUTCOMES] = (int16_t)(rc < 0 ? rc : references == 0);
    if (sequence % COST_EVERY == 0 || source->send_cost_ns == 0)
        source->send_cost_ns = qos_clock_stamp_ns() - now;
    source->last_send_ns = now + source->send_cost_ns;
    return references;
}

int selene_transmit(struct selene_source *source, uint64_t slice, uint8_t *payload, uint32_t size, uint64_t sent_ns,
                    uint64_t sequence)
{
    uint64_t now = sent_ns;
    struct batch *b = &source->batch;
    int rc;
    qos_gate_enter(&source->batch_gate);
    if (QOS_UNLIKELY(source->lent && !source->parted))
        part(source);
    if (qos_load_relaxed(&b->opened_ns) == 0) {
        /* idle when the last send was over for longer than a fraction of what a send takes: then a batch would only add latency */
        uint64_t idle = source->send_cost_ns / 4 < BATCH_IDLE_MAX_NS ? source->send_cost_ns / 4 : BATCH_IDLE_MAX_NS;
        uint32_t consumed = qos_load_relaxed(&source->session->consumed);
        bool flood = source->stream->options.coalesce && (int64_t)(now - source->last_send_ns) < (int64_t)idle &&
                     consumed == source->last_consumed;
        source->last_consumed = consumed;
        if (!flood || QOS_WIRE_OVERHEAD + ((size + 7) & ~7u) > source->segment_limit ||
            batch_open(source, size, now) < 0) {
            rc = send_alone(source, slice, payload, size, sent_ns, sequence, now);
            qos_gate_leave(&source->batch_gate);
            return rc;
        }
    }
    rc = batch_append(source, payload, size, sent_ns, sequence);
    if (rc < 0) {
        close_batch(source);
        /* its time runs from now: sending the one before may have taken as long as it has */
        rc = QOS_WIRE_OVERHEAD + ((size + 7) & ~7u) <= source->segment_limit &&
                     batch_open(source, size, source->last_send_ns) == 0
                 ? batch_append(source, payload, size, sent_ns, sequence)
                 : send_alone(source, slice, payload, size, sent_ns, sequence, now);
    } else if (batch_old(b, now)) {
        close_batch(source);
    }
    qos_gate_leave(&source->batch_gate);
    return rc;
}

/* Whether the datapath process has much to do already: where it does not run, probes would take the room of messages. */
static bool relay_behind(struct selene_session *s, const struct memory *m)
{
    pthread_mutex_lock(&s->relay_lock);
    bool behind = m->outstanding > RELAY_OUTSTANDING / 2;
    pthread_mutex_unlock(&s->relay_lock);
    return behind;
}

void selene_probe(struct selene_source *source)
{
    uint64_t now = qos_clock_monotonic_ns();
    if (now - source->probe_ns < PROBE_NS)
        return;
    bool first = source->probe_ns == 0;
    source->probe_ns = now;
    if (first)
        return; /* credit usually comes by itself */
    struct qos_wire w = {.type = QOS_WIRE_PROBE,
                         .stream = source->stream->options.stream,
                         .channel = source->endpoint.channel,
                         .source = source->endpoint.id,
                         .sequence = source->sequence,
                         .epoch = source->epoch};
    uint8_t header[QOS_WIRE_HEADER];
    qos_gate_enter(&source->batch_gate);
    for (uint32_t i = 0; i < source->dest_count; i++) {
        w.credit = source->dests[i].sent;
        qos_frame_encode(header, &w);
        struct qos_packet p = {.data = header, .length = sizeof header, .address = source->dests[i].address};
        (void)send_packet(source, &p);
    }
    uint64_t slice;
    if (source->relayed && !relay_behind(source->session, source->memory) &&
        qos_cache_borrow(source->cache, QOS_WIRE_HEADER, &slice) == 0) {
        w.credit = source->relay.sent;
        qos_frame_encode(qos_pool_payload(source->memory->pool, slice), &w);
        int rc = selene_relay_push(source->session, source->memory, slice, QOS_WIRE_HEADER, SELENE_TO_ROUTE);
        (void)qos_cache_emit(source->cache, slice, rc == 0);
    }
    qos_gate_leave(&source->batch_gate);
}
