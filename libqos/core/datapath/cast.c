/* SPDX-License-Identifier: Apache-2.0 */
#include "cast.h"

#include <stdlib.h>

int qos_cast_producer_open(struct qos_cast_producer *p, void *memory, uint32_t depth)
{
    *p = (struct qos_cast_producer){.ring = memory, .depth = depth, .sent = calloc(depth, sizeof *p->sent)};
    if (!p->sent)
        return -ENOMEM;
    /* position 0 has no stamp yet that names it: none may be taken for one */
    p->tail = p->published = 1;
    for (uint32_t i = 0; i < depth; i++)
        qos_store_relaxed(&p->ring->entries[i].stamp, 0);
    qos_store_release(&p->ring->tail, p->tail);
    return 0;
}

void qos_cast_producer_close(struct qos_cast_producer *p)
{
    free(p->sent);
    *p = (struct qos_cast_producer){0};
}

int qos_cast_join(struct qos_cast_producer *p)
{
    for (uint32_t i = 0; i < QOS_CAST_MEMBERS; i++) {
        if (p->members >> i & 1)
            continue;
        p->members |= 1u << i;
        return (int)i;
    }
    return -EAGAIN;
}

uint64_t qos_cast_oldest(const struct qos_cast_producer *p, uint32_t member, uint64_t from, uint64_t to)
{
    for (uint32_t i = 0; i < p->depth; i++)
        if (p->sent[i].members >> member & 1 && p->sent[i].position - from < to - from)
            to = p->sent[i].position;
    return to;
}

int qos_cast_consumer_open(struct qos_cast_consumer *c, const struct qos_cast *ring, uint32_t depth, uint32_t member,
                           uint64_t from)
{
    *c = (struct qos_cast_consumer){
        .depth = depth, .bit = UINT64_C(1) << member, .at = from, .tail = from, .done = from};
    c->positions = calloc(QOS_CAST_WINDOW, sizeof *c->positions);
    c->states = calloc(QOS_CAST_WINDOW, 1);
    if (!c->positions || !c->states) {
        qos_cast_consumer_close(c);
        return -ENOMEM;
    }
    c->ring = ring;
    return 0;
}

void qos_cast_consumer_close(struct qos_cast_consumer *c)
{
    free(c->positions);
    free(c->states);
    *c = (struct qos_cast_consumer){0};
}

void qos_cast_leap(struct qos_cast_consumer *c)
{
    /* what is ours stays where it is, so all of it is among the entries; what is newer than the tail we saw is for later */
    uint64_t next = c->tail - c->depth;
    for (uint32_t i = 0; i < c->depth; i++) {
        uint64_t stamp = qos_load_acquire(&c->ring->entries[i].stamp);
        uint64_t ahead = ((stamp >> 16) - c->at) & QOS_CAST_POSITIONS;
        if (stamp & c->bit && ahead < next - c->at)
            next = c->at + ahead;
    }
    c->at = next;
}

/* All before it is given back. */
static void settle(struct qos_cast_consumer *c)
{
    uint64_t done = c->single_from;
    if (c->first != c->last) {
        done = c->positions[c->first % QOS_CAST_WINDOW];
    } else if (c->alone == 0) {
        done = c->at;
        c->single = false;
    }
    if (done != c->done) {
        c->done = done;
        c->dirty = true;
    }
}

uint32_t qos_cast_give_back(struct qos_cast_consumer *c, uint64_t token, uint64_t *told)
{
    uint32_t n = 0;
    if (token & QOS_CAST_TOLD) {
        told[n++] = token;
        c->alone--;
    } else {
        c->states[token % QOS_CAST_WINDOW] = QOS_CAST_RELEASED;
        c->untold++;
    }
    while (c->first != c->last && c->states[c->first % QOS_CAST_WINDOW] != QOS_CAST_HELD) {
        c->untold -= c->states[c->first % QOS_CAST_WINDOW] == QOS_CAST_RELEASED;
        c->first++;
    }
    for (uint64_t i = c->first; c->untold > QOS_CAST_UNTOLD && i != c->last; i++) {
        if (c->states[i % QOS_CAST_WINDOW] != QOS_CAST_RELEASED)
            continue;
        c->states[i % QOS_CAST_WINDOW] = QOS_CAST_SAID;
        told[n++] = c->positions[i % QOS_CAST_WINDOW] | QOS_CAST_TOLD;
        c->untold--;
    }
    settle(c);
    return n;
}
