/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory: what a load may return, where a store may come, what fences and locks hand on, and which plain accesses race.
 */
#include <stdatomic.h>

#include "state.h"

struct word words[WORDS];
struct shadow shadows[SHADOW];

static void put(volatile void *word, unsigned size, uint64_t value)
{
    memcpy((void *)word, &value, size);
}

static void join(unsigned l, uint8_t *into, uint8_t from)
{
    const uint8_t *place = m.locations[l].place;
    if (place[from] > place[*into])
        *into = from;
}

static void join_seen(struct view *into, const struct view *from)
{
    for (unsigned l = 0; l < m.location_count; l++)
        join(l, &into->seen[l], from->seen[l]);
}

static void join_view(struct view *into, const struct view *from)
{
    join_seen(into, from);
    for (unsigned t = 0; t < m.count; t++)
        if (from->clock[t] > into->clock[t])
            into->clock[t] = from->clock[t];
}

static bool acquires(int order)
{
    return order == memory_order_acquire || order == memory_order_acq_rel || order == memory_order_seq_cst ||
           order == memory_order_consume;
}

static bool releases(int order)
{
    return order == memory_order_release || order == memory_order_acq_rel || order == memory_order_seq_cst;
}

bool model_omits(enum model_access access, const volatile void *word)
{
    const struct model_mutant *x = m.mutant;
    return x && x->thread == m.self && (x->access & access) && (!x->word || x->word == word);
}

/* A seq_cst access is taken for an acquire or release, which is less than the standard promises. */
static int weakened(enum model_access access, const volatile void *word, int order)
{
    return model_omits(access, word) ? memory_order_relaxed : order;
}

/* The location of a word, after a step; NULL: nobody else is concerned. */
static struct location *touch(const volatile void *address, unsigned size, bool write, bool futex)
{
    unsigned at = (unsigned)((uintptr_t)address * UINT64_C(0x9e3779b97f4a7c15) >> 52) % WORDS;
    while (words[at].address && words[at].address != address)
        at = (at + 1) % WORDS;
    struct word *w = &words[at];
    w->address = address;
    w->touched |= (uint8_t)(1u << m.self);
    w->written |= (uint8_t)(write << m.self);
    if (!w->shared && (futex || (w->written && (w->touched & (w->touched - 1))))) {
        if (m.location_count == LOCATIONS)
            model_fail("too many shared words");
        w->shared = m.restart = true;
        w->location = (uint8_t)m.location_count;
        m.locations[m.location_count++] = (struct location){.address = address, .size = size};
        model_leave();
    }
    if (!w->shared)
        return NULL;
    model_step(NULL, NULL);
    return &m.locations[w->location];
}

static unsigned number(const struct location *l)
{
    return (unsigned)(l - m.locations);
}

/* A message that this thread may read, and, where `update`, that no other read-modify-write has taken. */
static struct message *pick(struct location *l, bool update)
{
    uint8_t can[MESSAGES];
    unsigned n = 0;
    for (unsigned i = l->place[m.threads[m.self].now.seen[number(l)]]; i < l->count; i++)
        if (!update || !l->messages[l->order[i]].updated)
            can[n++] = l->order[i];
    return &l->messages[can[model_choose(n)]];
}

static void read_message(struct location *l, const struct message *x, int order)
{
    struct thread *t = &m.threads[m.self];
    join_view(&t->acquired, &x->view);
    if (acquires(order))
        join_view(&t->now, &x->view);
    t->now.seen[number(l)] = t->acquired.seen[number(l)] = (uint8_t)(x - l->messages);
    model_note(x->name);
}

/* A new message after `before` (in modification order), or after any that this thread has not overtaken: NULL. */
static void write_message(struct location *l, struct message *before, volatile void *word, unsigned size,
                          uint64_t value, int order)
{
    struct thread *t = &m.threads[m.self];
    unsigned at, n = 0, self = number(l);
    uint8_t can[MESSAGES];
    if (l->count == MESSAGES)
        model_fail("too many writes to one word");
    if (before) {
        at = l->place[before - l->messages] + 1u;
        before->updated = true;
    } else {
        for (unsigned i = l->place[t->now.seen[self]]; i < l->count; i++)
            if (!l->messages[l->order[i]].updated)
                can[n++] = (uint8_t)(i + 1);
        at = can[n - 1 - model_choose(n)];
    }
    uint8_t id = l->count++;
    memmove(&l->order[at + 1], &l->order[at], l->count - 1 - at);
    l->order[at] = id;
    for (unsigned i = at; i < l->count; i++)
        l->place[l->order[i]] = (uint8_t)i;
    t->now.seen[self] = t->acquired.seen[self] = id;
    struct message *x = &l->messages[id];
    *x = (struct message){.value = value,
                          .name = (uint16_t)(++t->writes * MODEL_THREADS + m.self + 1),
                          .view = releases(order) ? t->now : t->released};
    x->view.seen[self] = id;
    if (before) /* release sequence */
        join_view(&x->view, &before->view);
    model_note(x->name);
    t->now.clock[m.self]++;
    if (at == l->count - 1u)
        put(word, size, value);
}

uint64_t model_load(const volatile void *word, unsigned size, int order)
{
    struct location *l = m.active ? touch(word, size, false, false) : NULL;
    if (!l)
        return get(word, size);
    order = weakened(MODEL_LOAD, word, order);
    const struct message *x = pick(l, false);
    read_message(l, x, order);
    model_trace("load", word, x->value, order);
    return x->value;
}

void model_store(volatile void *word, unsigned size, uint64_t value, int order)
{
    if (m.active && model_omits(MODEL_OMIT, word))
        return;
    struct location *l = m.active ? touch(word, size, true, false) : NULL;
    if (!l) {
        put(word, size, value);
        return;
    }
    order = weakened(MODEL_STORE, word, order);
    model_trace("store", word, value, order);
    write_message(l, NULL, word, size, value, order);
}

uint64_t model_update(volatile void *word, unsigned size, uint64_t (*change)(uint64_t, uint64_t), uint64_t operand,
                      int order)
{
    if (m.active && model_omits(MODEL_OMIT, word))
        return model_load(word, size, order);
    struct location *l = m.active ? touch(word, size, true, false) : NULL;
    if (!l) {
        uint64_t old = get(word, size);
        put(word, size, change(old, operand));
        return old;
    }
    order = weakened(MODEL_UPDATE, word, order);
    struct message *x = pick(l, true);
    read_message(l, x, order);
    uint64_t value = 0;
    put(&value, size, change(x->value, operand)); /* as wide as the word */
    model_trace("update", word, value, order);
    write_message(l, x, word, size, value, order);
    return x->value;
}

bool model_compare_exchange(volatile void *word, unsigned size, uint64_t *expected, uint64_t desired, int order,
                            int failure)
{
    if (m.active && model_omits(MODEL_OMIT, word)) {
        uint64_t wanted = *expected;
        *expected = model_load(word, size, order);
        return *expected == wanted;
    }
    struct location *l = m.active ? touch(word, size, true, false) : NULL;
    if (!l) {
        uint64_t old = get(word, size);
        if (old == *expected)
            put(word, size, desired);
        bool done = old == *expected;
        *expected = old;
        return done;
    }
    order = weakened(MODEL_UPDATE, word, order);
    failure = weakened(MODEL_UPDATE, word, failure);
    uint8_t can[MESSAGES];
    unsigned n = 0;
    for (unsigned i = l->place[m.threads[m.self].now.seen[number(l)]]; i < l->count; i++) {
        const struct message *x = &l->messages[l->order[i]];
        if (x->value != *expected || !x->updated)
            can[n++] = l->order[i];
    }
    struct message *x = &l->messages[can[model_choose(n)]];
    bool done = x->value == *expected;
    read_message(l, x, done ? order : failure);
    model_trace(done ? "swap" : "no swap", word, done ? desired : x->value, done ? order : failure);
    if (done)
        write_message(l, x, word, size, desired, order);
    *expected = x->value;
    return done;
}

void model_fence(int order)
{
    if (!m.active)
        return;
    order = weakened(MODEL_FENCE, NULL, order);
    struct thread *t = &m.threads[m.self];
    if (order == memory_order_seq_cst)
        model_step(NULL, NULL);
    if (acquires(order))
        join_view(&t->now, &t->acquired);
    if (order == memory_order_seq_cst) {
        join_seen(&t->now, &m.fences);
        join_seen(&m.fences, &t->now);
        for (unsigned l = 0; l < m.location_count; l++)
            model_note(m.locations[l].messages[t->now.seen[l]].name);
        model_trace("fence", NULL, 0, order);
    }
    if (releases(order)) {
        t->released = t->now;
        t->now.clock[m.self]++;
    }
    join_view(&t->acquired, &t->now);
}

uint32_t model_futex(const volatile void *word, bool wait)
{
    struct location *l = touch(word, 4, false, true);
    struct thread *t = &m.threads[m.self];
    join(number(l), &t->now.seen[number(l)], l->futex);
    const struct message *x = &l->messages[t->now.seen[number(l)]];
    if (wait) {
        x = pick(l, false);
        read_message(l, x, memory_order_relaxed);
    } else {
        model_note(x->name);
    }
    l->futex = t->now.seen[number(l)];
    model_trace(wait ? "futex wait" : "futex wake", word, x->value, memory_order_relaxed);
    return (uint32_t)x->value;
}

static struct view *lock_view(const void *lock)
{
    unsigned i = 0;
    while (i < LOCKS && m.lock_of[i] && m.lock_of[i] != lock)
        i++;
    if (i == LOCKS)
        model_fail("too many locks");
    m.lock_of[i] = lock;
    return &m.locks[i];
}

void model_acquire_from(const void *lock)
{
    join_view(&m.threads[m.self].now, lock_view(lock));
    join_view(&m.threads[m.self].acquired, lock_view(lock));
}

void model_release_to(const void *lock)
{
    *lock_view(lock) = m.threads[m.self].now;
    m.threads[m.self].now.clock[m.self]++;
}

/* ---- Plain accesses ---- */

/* NULL: nobody else is concerned. */
static struct cell *cells_of(uintptr_t granule, bool write)
{
    unsigned at = (unsigned)(granule * UINT64_C(0x9e3779b97f4a7c15) >> 51) % SHADOW;
    for (unsigned tried = 0; shadows[at].granule && shadows[at].granule != granule; at = (at + 1) % SHADOW)
        if (++tried == SHADOW)
            model_fail("too much plain memory");
    struct shadow *x = &shadows[at];
    x->granule = granule;
    x->touched |= (uint8_t)(1u << m.self);
    x->written |= (uint8_t)(write << m.self);
    if (!x->shared && x->written && (x->touched & (x->touched - 1))) {
        x->shared = m.restart = true;
        model_leave();
    }
    if (x->shared && x->execution != m.execution) {
        x->execution = m.execution;
        memset(x->bytes, 0, sizeof x->bytes);
        for (unsigned i = 0; i < 8; i++)
            x->bytes[i].writer = NOBODY;
    }
    return x->shared ? x->bytes : NULL;
}

static void plain_byte(struct cell *c, const volatile void *address, bool write)
{
    const uint16_t *clock = m.threads[m.self].now.clock;
    bool race = c->writer != NOBODY && c->writer != m.self && c->written > clock[c->writer];
    for (unsigned t = 0; write && t < m.count; t++)
        race = race || (t != m.self && c->read[t] > clock[t]);
    if (race) {
        m.steps++;
        model_trace(write ? "racing write" : "racing read", address, 0, 0);
        model_fail("a data race");
    }
    if (write)
        *c = (struct cell){.writer = (uint8_t)m.self, .written = clock[m.self]};
    else
        c->read[m.self] = clock[m.self];
}

void model_plain(const volatile void *address, unsigned size, bool write)
{
    if (!m.active || (uintptr_t)address - (uintptr_t)stacks[m.self] < STACK) /* its own stack is taken for private */
        return;
    for (uintptr_t at = (uintptr_t)address, end = at + size; at < end; at = (at / 8 + 1) * 8) {
        struct cell *cells = cells_of(at / 8, write);
        for (uintptr_t byte = at; cells && byte < end && byte / 8 == at / 8; byte++)
            plain_byte(&cells[byte % 8], address, write);
    }
}
