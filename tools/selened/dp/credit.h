/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Credit of one source whose datagrams go to several sinks: each says how far it has taken them in, the source hears one value.
 *
 * A reliable source must wait for the slowest, a best-effort one goes on with the fastest. Values count bytes modulo 2^32. A
 * sink can claim no more than the source has sent.
 */
#ifndef DP_CREDIT_H
#define DP_CREDIT_H

#include <stdbool.h>
#include <stdint.h>

struct dp_credit {
    uint32_t value;
    uint32_t window;   /* 0: not said yet */
    uint64_t sequence; /* next one it expects */
    bool valid;        /* value is its own word, or where it came in */
};

/* What a source has sent, as seen here. */
struct dp_sent {
    uint32_t credit; /* of its last datagram */
    bool started;
    bool reliable;
};

static inline bool dp_credit_after(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b) > 0;
}

/* A datagram of the source that cost `cost`. On the first, everybody (credits[0..n)) is taken to have had all before it. */
static inline void dp_credit_sent(struct dp_sent *sent, uint32_t credit, uint32_t cost, bool reliable,
                                  struct dp_credit *credits, uint32_t n)
{
    if (!sent->started || dp_credit_after(credit, sent->credit)) {
        if (!sent->started)
            for (uint32_t i = 0; i < n; i++)
                credits[i] = (struct dp_credit){.value = credit - cost, .valid = true};
        sent->started = true;
        sent->credit = credit;
    }
    sent->reliable = reliable;
}

/* Somebody joined: it owes nothing for what was sent before. */
static inline struct dp_credit dp_credit_join(const struct dp_sent *sent)
{
    return (struct dp_credit){.value = sent->credit, .valid = sent->started};
}

static inline void dp_credit_take(struct dp_credit *c, const struct dp_sent *sent, uint32_t value, uint32_t window,
                                  uint64_t sequence)
{
    if (sent->started && dp_credit_after(value, sent->credit))
        value = sent->credit;
    if (!c->valid || !dp_credit_after(c->value, value)) {
        c->value = value;
        c->sequence = sequence;
    }
    c->valid = true;
    c->window = window;
}

/* The one value for the source. False if nobody has said anything. */
static inline bool dp_credit_merge(const struct dp_credit *credits, uint32_t n, bool reliable, struct dp_credit *merged)
{
    *merged = (struct dp_credit){0};
    for (uint32_t i = 0; i < n; i++) {
        const struct dp_credit *c = &credits[i];
        if (!c->valid)
            continue;
        bool better = reliable ? dp_credit_after(merged->value, c->value) : dp_credit_after(c->value, merged->value);
        if (!merged->valid || better) {
            merged->value = c->value;
            merged->sequence = c->sequence;
        }
        bool other = reliable ? c->window < merged->window : c->window > merged->window;
        if (c->window != 0 && (merged->window == 0 || other))
            merged->window = c->window;
        merged->valid = true;
    }
    return merged->valid;
}

#endif
