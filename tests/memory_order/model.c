/* SPDX-License-Identifier: Apache-2.0 */
#include "model.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define LOCATIONS 32 /* words that threads share */
#define MESSAGES 48  /* writes to one of them in one execution */
#define WORDS 4096   /* atomic words, shared or not; a power of two */
#define LOCKS 8
#define DEPTH 4096 /* choices in one execution */
#define STEPS 4096 /* steps in one execution: more is a loop without end */
#define SHADOW (1u << 13)
#define STACK 65536
#define NOBODY MODEL_THREADS

/* What a thread knows, or a message tells. seen: for each location the oldest message it may still read. clock: events of each
 * thread that happened before. */
struct view {
    uint8_t seen[LOCATIONS];
    uint16_t clock[MODEL_THREADS];
};

/* One write. Its name is the same in every interleaving of one execution graph. */
struct message {
    uint64_t value;
    uint16_t name;
    bool updated; /* a read-modify-write follows it immediately */
    struct view view;
};

struct location {
    const volatile void *address;
    unsigned size;
    struct message messages[MESSAGES]; /* in the order of execution; the first is what setup() left there */
    uint8_t order[MESSAGES];           /* modification order */
    uint8_t place[MESSAGES];           /* its inverse */
    uint8_t count;
    uint8_t futex; /* what futex operations have seen */
};

/* An atomic word. Those that one thread alone touches, or nobody writes, need no interleaving. What we learn about that stays, and a
 * word that turns out to be shared starts the exploration anew. */
struct word {
    const volatile void *address;
    uint8_t touched, written; /* by which threads */
    bool shared;
    uint8_t location;
};

/* Plain accesses to one byte: the last write and the last reads since then. */
struct cell {
    uint16_t written, read[MODEL_THREADS];
    uint8_t writer;
};
/* Eight bytes. As with words, only those are watched that one thread writes and another touches. */
struct shadow {
    uintptr_t granule; /* address / 8 */
    uint8_t touched, written;
    bool shared;
    uint64_t execution;
    struct cell bytes[8];
};

struct thread {
    ucontext_t context;
    bool finished;
    bool (*ready)(const void *);
    const void *argument;
    struct view now, acquired, released; /* the last two: what a fence would add, and what relaxed writes tell */
    uint64_t history;
    uint16_t writes;
};

struct event {
    uint8_t thread;
    const char *what;
    const volatile void *word;
    uint64_t value;
    int order;
};

static struct {
    const struct model *model;
    const struct model_mutant *mutant;
    struct model_result result;
    bool active, restart;
    unsigned count; /* threads */
    unsigned begun; /* those that stand before their first step */
    unsigned self;
    uint64_t execution;
    uint32_t steps;
    ucontext_t main;
    struct thread threads[MODEL_THREADS];
    struct location locations[LOCATIONS];
    struct view locks[LOCKS];
    const void *lock_of[LOCKS];
    struct view fences; /* of the seq_cst ones so far */
    unsigned location_count;
    /* depth first: the choices of this execution, and how many there were */
    uint16_t choice[DEPTH], choices[DEPTH];
    uint32_t depth, replayed;
    struct event trace[STEPS];
} m;

static struct word words[WORDS];
static struct shadow shadows[SHADOW];
static _Alignas(64) uint8_t stacks[MODEL_THREADS][STACK];

/* Hashes of the states seen; 64 bits for some millions of states. */
static struct {
    uint64_t *slots;
    size_t size, used;
} seen;

static uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * UINT64_C(0x9e3779b97f4a7c15);
    h ^= h >> 32;
    h *= UINT64_C(0xd6e8feb86659fd93);
    return h ^ h >> 29;
}

static bool seen_before(uint64_t state)
{
    state += state == 0;
    if (seen.used * 2 >= seen.size) {
        uint64_t *old = seen.slots;
        size_t size = seen.size;
        seen.size = size ? size * 2 : 1u << 16;
        seen.slots = calloc(seen.size, sizeof *seen.slots);
        if (!seen.slots)
            abort();
        seen.used = 0;
        for (size_t i = 0; i < size; i++)
            if (old[i])
                (void)seen_before(old[i]);
        free(old);
    }
    size_t at = state & (seen.size - 1);
    while (seen.slots[at] && seen.slots[at] != state)
        at = (at + 1) & (seen.size - 1);
    if (seen.slots[at])
        return true;
    seen.slots[at] = state;
    seen.used++;
    return false;
}

/* ---- One execution ---- */

static _Noreturn void leave(void)
{
    m.active = false;
    setcontext(&m.main);
    abort();
}

void model_fail(const char *what)
{
    m.result.error = what;
    if (m.active)
        leave();
}

bool model_active(void)
{
    return m.active;
}

unsigned model_self(void)
{
    return m.self;
}

static unsigned choose(unsigned n)
{
    if (n == 1)
        return 0;
    if (m.depth == DEPTH)
        model_fail("too many choices");
    if (m.depth == m.replayed) {
        m.choice[m.depth] = 0;
        m.choices[m.depth] = (uint16_t)n;
        m.replayed++;
    } else if (m.choices[m.depth] != n) {
        model_fail("the code under test is not deterministic");
    }
    return m.choice[m.depth++];
}

static uint64_t state(void)
{
    uint64_t h = model_kernel_state();
    for (unsigned t = 0; t < m.count; t++)
        h = mix(h, m.threads[t].history + m.threads[t].finished);
    for (unsigned l = 0; l < m.location_count; l++) {
        const struct location *at = &m.locations[l];
        for (unsigned i = 0; i < at->count; i++)
            h = mix(h, at->messages[at->order[i]].name);
        h = mix(h, (uint64_t)at->place[m.fences.seen[l]] << 8 | at->place[at->futex]);
    }
    return h;
}

static void switch_to(unsigned thread)
{
    unsigned before = m.self;
    m.self = thread;
    if (thread != before)
        swapcontext(&m.threads[before].context, &m.threads[thread].context);
}

/* Go on with any thread that can, once each stands before its first step. */
static void schedule(void)
{
    unsigned able[MODEL_THREADS], n = 0;
    bool all = true;
    if (m.begun < m.count) {
        switch_to(m.begun++);
        return;
    }
    for (unsigned t = 0; t < m.count; t++) {
        struct thread *x = &m.threads[t];
        all = all && x->finished;
        if (!x->finished && (!x->ready || x->ready(x->argument)))
            able[n++] = t;
    }
    bool known = m.depth == m.replayed && seen_before(state());
    if (all || known) {
        m.result.executions += all && !known;
        leave();
    }
    if (n == 0)
        model_fail("a thread sleeps for ever");
    if (++m.steps == STEPS)
        model_fail("an execution without end");
    switch_to(able[choose(n)]);
}

void model_step(bool (*ready)(const void *), const void *argument)
{
    struct thread *x = &m.threads[m.self];
    x->ready = ready;
    x->argument = argument;
    schedule();
    x->ready = NULL;
    model_note(0); /* a step leads to another state even if it found nothing */
}

void model_note(uint64_t value)
{
    m.threads[m.self].history = mix(m.threads[m.self].history, value);
}

static void trace(const char *what, const volatile void *word, uint64_t value, int order)
{
    m.trace[m.steps % STEPS] = (struct event){(uint8_t)m.self, what, word, value, order};
}

static void run_thread(void)
{
    m.model->threads[m.self]();
    m.threads[m.self].finished = true;
    schedule();
}

/* ---- Memory ---- */

static uint64_t get(const volatile void *word, unsigned size)
{
    uint64_t value = 0;
    memcpy(&value, (const void *)word, size);
    return value;
}

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

/* A seq_cst access is taken for an acquire or release, which is less than the standard promises. */
static int weakened(enum model_access access, const volatile void *word, int order)
{
    const struct model_mutant *x = m.mutant;
    bool hit = x && x->thread == m.self && (x->access & access) && (!x->word || x->word == word);
    return hit ? memory_order_relaxed : order;
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
        leave();
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
    return &l->messages[can[choose(n)]];
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
        at = can[n - 1 - choose(n)];
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
    trace("load", word, x->value, order);
    return x->value;
}

void model_store(volatile void *word, unsigned size, uint64_t value, int order)
{
    struct location *l = m.active ? touch(word, size, true, false) : NULL;
    if (!l) {
        put(word, size, value);
        return;
    }
    order = weakened(MODEL_STORE, word, order);
    trace("store", word, value, order);
    write_message(l, NULL, word, size, value, order);
}

uint64_t model_update(volatile void *word, unsigned size, uint64_t (*change)(uint64_t, uint64_t), uint64_t operand,
                      int order)
{
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
    trace("update", word, value, order);
    write_message(l, x, word, size, value, order);
    return x->value;
}

bool model_compare_exchange(volatile void *word, unsigned size, uint64_t *expected, uint64_t desired, int order,
                            int failure)
{
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
    struct message *x = &l->messages[can[choose(n)]];
    bool done = x->value == *expected;
    read_message(l, x, done ? order : failure);
    trace(done ? "swap" : "no swap", word, done ? desired : x->value, done ? order : failure);
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
        trace("fence", NULL, 0, order);
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
    trace(wait ? "futex wait" : "futex wake", word, x->value, memory_order_relaxed);
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
        leave();
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
        trace(write ? "racing write" : "racing read", address, 0, 0);
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

/* ---- All executions ---- */

static void run_once(void)
{
    m.model->setup();
    model_kernel_reset();
    m.execution++;
    m.steps = m.depth = 0;
    for (unsigned i = 0; i < m.location_count; i++) {
        struct location *l = &m.locations[i];
        l->messages[0] = (struct message){.value = get(l->address, l->size)};
        l->order[0] = l->place[0] = l->futex = 0;
        l->count = 1;
    }
    memset(&m.fences, 0, sizeof m.fences);
    memset(m.locks, 0, sizeof m.locks);
    for (unsigned t = 0; t < m.count; t++) {
        struct thread *x = &m.threads[t];
        x->finished = false;
        x->ready = NULL;
        x->history = t + 1;
        x->writes = 0;
        memset(&x->now, 0, sizeof x->now);
        x->now.clock[t] = 1;
        x->acquired = x->now;
        memset(&x->released, 0, sizeof x->released);
        getcontext(&x->context);
        x->context.uc_stack.ss_sp = stacks[t];
        x->context.uc_stack.ss_size = STACK;
        x->context.uc_link = NULL;
        makecontext(&x->context, run_thread, 0);
    }
    volatile bool started = false;
    getcontext(&m.main); /* leave() comes back here */
    if (!started) {
        started = m.active = true;
        m.self = 0;
        m.begun = 1;
        setcontext(&m.threads[0].context);
    }
}

static bool next_choices(void)
{
    while (m.replayed > 0 && m.choice[m.replayed - 1] + 1u == m.choices[m.replayed - 1])
        m.replayed--;
    if (m.replayed == 0)
        return false;
    m.choice[m.replayed - 1]++;
    return true;
}

struct model_result model_explore(const struct model *model, const struct model_mutant *mutant)
{
    m.model = model;
    m.mutant = mutant;
    m.location_count = 0;
    memset(words, 0, sizeof words);
    memset(shadows, 0, sizeof shadows);
    memset(m.lock_of, 0, sizeof m.lock_of);
    for (m.count = 0; m.count < MODEL_THREADS && model->threads[m.count];)
        m.count++;
    do {
        m.restart = false;
        m.result = (struct model_result){0};
        m.replayed = 0;
        if (seen.slots)
            memset(seen.slots, 0, seen.size * sizeof *seen.slots);
        seen.used = 0;
        do {
            uint64_t before = m.result.executions;
            run_once();
            if (m.result.executions > before && model->check)
                model->check();
        } while (!m.restart && !m.result.error && next_choices());
    } while (m.restart);
    m.result.states = seen.used;
    return m.result;
}

void model_print_trace(void)
{
    static const char *const orders[] = {"relaxed", "consume", "acquire", "release", "acq_rel", "seq_cst"};
    for (uint32_t i = 0; i <= m.steps && i < STEPS; i++)
        if (m.trace[i].what)
            printf("    %u: %-12s %p %s %lu\n", m.trace[i].thread, m.trace[i].what, (const void *)m.trace[i].word,
                   orders[m.trace[i].order], (unsigned long)m.trace[i].value);
}
