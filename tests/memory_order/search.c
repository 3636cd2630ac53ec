/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The search: threads as coroutines, choices depth first, each execution from the beginning, and no state twice.
 */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "state.h"

struct run m;
_Alignas(64) uint8_t stacks[MODEL_THREADS][STACK];

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

_Noreturn void model_leave(void)
{
    m.active = false;
    setcontext(&m.main);
    abort();
}

void model_fail(const char *what)
{
    m.result.error = what;
    if (m.active)
        model_leave();
}

bool model_active(void)
{
    return m.active;
}

unsigned model_self(void)
{
    return m.self;
}

unsigned model_choose(unsigned n)
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
        model_leave();
    }
    if (n == 0)
        model_fail("a thread sleeps for ever");
    if (++m.steps == STEPS)
        model_fail("an execution without end");
    switch_to(able[model_choose(n)]);
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

void model_trace(const char *what, const volatile void *word, uint64_t value, int order)
{
    m.trace[m.steps % STEPS] = (struct event){(uint8_t)m.self, what, word, value, order};
}

static void run_thread(void)
{
    m.model->threads[m.self]();
    m.threads[m.self].finished = true;
    schedule();
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
    getcontext(&m.main); /* model_leave() comes back here */
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
