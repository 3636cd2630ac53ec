/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside the model: what memory.c and search.c share.
 */
#ifndef STATE_H
#define STATE_H

#include <string.h>
#include <ucontext.h>

#include "model.h"

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

struct run {
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
};

extern struct run m;
extern struct word words[WORDS];
extern struct shadow shadows[SHADOW];
extern uint8_t stacks[MODEL_THREADS][STACK];

/* search.c: the end of this execution; what model_print_trace shows. */
_Noreturn void model_leave(void);
void model_trace(const char *what, const volatile void *word, uint64_t value, int order);

static inline uint64_t get(const volatile void *word, unsigned size)
{
    uint64_t value = 0;
    memcpy(&value, (const void *)word, size);
    return value;
}

#endif
