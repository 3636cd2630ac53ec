/* SPDX-License-Identifier: Apache-2.0
 *
 * One ring from a producer to several consumers of its user, beside the links of shm.h: a message for all of them is written once, and
 * to how far a consumer is done is one word that the producer reads now and then. The ring lies in a buffer of the producer's pool, which
 * consumers map read-only.
 *
 *   0   tail       positions up to here are written
 *   64  entries, QOS_CAST_DEPTH of three words:
 *         slice
 *         length | low 32 bits of the sequence << 32
 *         stamp: position << 16 | members, a bit for each consumer that the message is for
 *
 * Position P lies in entry P % depth. An entry stays as it is until every member has given its message back; the producer passes over it,
 * so that one who holds a message for long, or does not run, is in nobody's way. What lies at a position is therefore read from the stamp:
 * ours if it names the position and us, else nothing. Both are one word, written last, so that there is no half of an entry.
 *
 * What a consumer gives back in order it tells by `done` in its link: all before that position. Where it holds one message and gives
 * back what came after it, it tells these one by one in the release ring of the link (QOS_CAST_TOLD).
 *
 * A message goes by this ring or by the links' own; a consumer takes what has the lower sequence number first. So that it sees both, what
 * was written to the one is published before anything is written to the other.
 */
#ifndef QOS_CAST_H
#define QOS_CAST_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../compiler.h"

#define QOS_CAST_DEPTH 2048u
#define QOS_CAST_MEMBERS 16u
#define QOS_CAST_TOLD (UINT64_C(1) << 63)     /* of a word in a release ring: a position, and no slice */
#define QOS_CAST_WINDOW 1024u                 /* messages of a consumer that are given back by `done` */
#define QOS_CAST_POSITIONS (UINT64_MAX >> 16) /* as a stamp names them */
#define QOS_CAST_UNTOLD 32u                   /* given back behind one that is held, until they are told one by one */

struct qos_cast_entry {
    uint64_t slice, second;
    _Atomic uint64_t stamp;
};

struct qos_cast {
    _Alignas(QOS_CACHE_LINE) _Atomic uint64_t tail;
    _Alignas(QOS_CACHE_LINE) struct qos_cast_entry entries[];
};

static inline size_t qos_cast_size(uint32_t depth)
{
    return sizeof(struct qos_cast) + depth * sizeof(struct qos_cast_entry);
}

/* What the producer alone knows of an entry. */
struct qos_cast_sent {
    uint64_t position, slice;
    uint32_t members; /* who holds it; 0: free */
};

struct qos_cast_producer {
    struct qos_cast *ring;
    uint32_t depth;    /* a power of two */
    uint32_t occupied; /* entries */
    uint32_t members;  /* bits that are taken */
    uint64_t tail, published;
    struct qos_cast_sent *sent; /* by entry */
};

/* A message of the consumer that goes back by `done`. */
enum qos_cast_state { QOS_CAST_HELD = 0, QOS_CAST_RELEASED = 1, QOS_CAST_SAID = 2 };

struct qos_cast_consumer {
    const struct qos_cast *ring; /* NULL: there is none */
    uint32_t depth;
    uint64_t bit;
    uint64_t at;     /* the next position to look at */
    uint64_t tail;   /* as last seen */
    uint64_t taken;  /* messages, ever */
    bool ended;      /* no more are written */
    bool single;     /* what is taken goes back one by one, for the window is full */
    bool dirty;      /* `done` has changed */
    uint32_t alone;  /* of those, held */
    uint32_t untold; /* in the window, released and not told */
    uint64_t done, single_from;
    uint64_t first, last; /* of the window, as indices that only grow */
    uint64_t *positions;  /* QOS_CAST_WINDOW, and their states */
    uint8_t *states;
};

/* Format `memory`, zeroed and cache-line aligned, for a new producer. 0, -ENOMEM. */
int qos_cast_producer_open(struct qos_cast_producer *p, void *memory, uint32_t depth);
void qos_cast_producer_close(struct qos_cast_producer *p);

/* The number of a new member, or -EAGAIN: there are QOS_CAST_MEMBERS. It gets what is written from now on, from position p->tail. */
int qos_cast_join(struct qos_cast_producer *p);

/* Write for `members`; seen at qos_cast_publish. 0, -EAGAIN: too much of the ring is held. */
static inline int qos_cast_write(struct qos_cast_producer *p, uint64_t slice, uint64_t second, uint32_t members)
{
    if (QOS_UNLIKELY(p->occupied > p->depth / 4 * 3))
        return -EAGAIN;
    uint64_t at = p->tail;
    while (QOS_UNLIKELY(p->sent[at & (p->depth - 1)].members != 0))
        at++;
    struct qos_cast_entry *e = &p->ring->entries[at & (p->depth - 1)];
    e->slice = slice;
    e->second = second;
    /* release: pairs with the acquire in qos_cast_seek; whoever sees that it is its own sees the message */
    qos_store_release(&e->stamp, at << 16 | members);
    p->sent[at & (p->depth - 1)] = (struct qos_cast_sent){at, slice, members};
    p->occupied++;
    p->tail = at + 1;
    return 0;
}

static inline bool qos_cast_unpublished(const struct qos_cast_producer *p)
{
    return p->tail != p->published;
}

static inline void qos_cast_publish(struct qos_cast_producer *p)
{
    /* release: pairs with the acquire in qos_cast_seek */
    qos_store_release(&p->ring->tail, p->tail);
    p->published = p->tail;
}

/* A member gives back its message at `position`: its slice, or false if it holds none there. */
static inline bool qos_cast_returned(struct qos_cast_producer *p, uint32_t member, uint64_t position, uint64_t *slice)
{
    struct qos_cast_sent *s = &p->sent[position & (p->depth - 1)];
    if (QOS_UNLIKELY(s->position != position || !(s->members >> member & 1)))
        return false;
    s->members &= ~(1u << member);
    p->occupied -= s->members == 0;
    *slice = s->slice;
    return true;
}

/* The first position from `from` on of which the member still holds the message, `to` at most. */
uint64_t qos_cast_oldest(const struct qos_cast_producer *p, uint32_t member, uint64_t from, uint64_t to);

/* Become member number `member` of a ring, from position `from`. 0, -ENOMEM. */
int qos_cast_consumer_open(struct qos_cast_consumer *c, const struct qos_cast *ring, uint32_t depth, uint32_t member,
                           uint64_t from);
void qos_cast_consumer_close(struct qos_cast_consumer *c);
/* Go on to the first of our entries, where many lie in between. */
void qos_cast_leap(struct qos_cast_consumer *c);

/* The entry of the next message for us, or NULL; passes over what is not ours. `closed` and `given` are the link's: after the producer
 * has ended, the memory may serve for something else as soon as we have given back all that we were given. */
static inline const struct qos_cast_entry *qos_cast_seek(struct qos_cast_consumer *c, const _Atomic uint32_t *closed,
                                                         const _Atomic uint64_t *given)
{
    if (QOS_UNLIKELY(c->ended && c->taken == qos_load_relaxed(given)))
        return NULL;
    /* what we saw of it before, and then what there is now: who finds nothing may go to sleep on it */
    for (int look = 0; look < 2; look++) {
        if (c->at == c->tail) {
            /* acquire: pairs with the release in qos_cast_publish */
            uint64_t tail = qos_load_acquire(&c->ring->tail);
            look = 1;
            /* behind us: it has written since we joined, and not published */
            c->tail = (int64_t)(tail - c->at) > 0 ? tail : c->at;
        }
        if (QOS_UNLIKELY(c->tail - c->at > c->depth))
            qos_cast_leap(c);
        for (; c->at != c->tail; c->at++) {
            const struct qos_cast_entry *e = &c->ring->entries[c->at & (c->depth - 1)];
            /* acquire: pairs with the release in qos_cast_write; and the look at `closed` comes after it: if the memory is no longer a
             * ring, we see that */
            uint64_t stamp = qos_load_acquire(&e->stamp);
            if (stamp >> 16 != (c->at & QOS_CAST_POSITIONS) || !(stamp & c->bit))
                continue;
            c->ended = c->ended || qos_load_acquire(closed);
            return QOS_UNLIKELY(c->ended && c->taken == qos_load_relaxed(given)) ? NULL : e;
        }
    }
    return NULL;
}

/* The entry that qos_cast_seek has found is taken. What qos_cast_give_back wants to have. */
static inline uint64_t qos_cast_take(struct qos_cast_consumer *c)
{
    uint64_t position = c->at++;
    c->taken++;
    if (QOS_UNLIKELY(c->single || c->last - c->first == QOS_CAST_WINDOW)) {
        if (!c->single)
            c->single_from = position;
        c->single = true;
        c->alone++;
        return position | QOS_CAST_TOLD;
    }
    c->positions[c->last % QOS_CAST_WINDOW] = position;
    c->states[c->last % QOS_CAST_WINDOW] = QOS_CAST_HELD;
    return c->last++;
}

/* Give one back. What is to be told in the release ring (at most QOS_CAST_UNTOLD + 1 words) is left in `told`; how many. Afterwards, if
 * `dirty`, c->done is to be shown, behind what was told. */
uint32_t qos_cast_give_back(struct qos_cast_consumer *c, uint64_t token, uint64_t *told);

#endif
