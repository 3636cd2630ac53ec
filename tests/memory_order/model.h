/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exhaustive check of concurrent code under a weak memory model: RC11 as an operational semantics of views (README.md says which,
 * what is left out, and where it comes from).
 *
 * The code under test is the real one, compiled with -fsanitize=thread: every access to memory that others may see is then a call
 * (tsan.c), which comes here instead of into ThreadSanitizer. A load may return any value that the model allows, not just the one this
 * processor would give; a plain access that races is an error. Threads are coroutines, and all interleavings and all such
 * values are tried. What waits in the kernel (futex, mutex, eventfd) waits in the model (kernel.c); a thread that waits for ever is an
 * error: a lost wake-up. Time-outs never expire, so nothing hides behind them.
 *
 * Code under test must be deterministic, and every run starts from what setup() makes of static memory.
 */
#ifndef MODEL_H
#define MODEL_H

#include <stdbool.h>
#include <stdint.h>

#define MODEL_THREADS 4

struct model {
    void (*setup)(void);                  /* before each execution */
    void (*threads[MODEL_THREADS])(void); /* up to the first NULL */
    void (*check)(void);                  /* after each that ended, or NULL; calls model_fail */
};

enum model_access {
    MODEL_LOAD = 1,
    MODEL_STORE = 2,
    MODEL_UPDATE = 4,
    MODEL_FENCE = 8,
    MODEL_WAKE = 16,
    MODEL_OMIT = 32
};

/* A deliberate mistake: these accesses of this thread to this word (NULL: any) are made relaxed. Left out are a fence, the wake-up of who
 * sleeps on this futex (MODEL_WAKE), and what would be written (MODEL_OMIT). */
struct model_mutant {
    const char *what;
    unsigned thread;
    unsigned access; /* enum model_access, several with | */
    const volatile void *word;
};

struct model_result {
    uint64_t executions; /* distinct complete ones */
    uint64_t states;     /* distinct execution graphs, partial ones included */
    const char *error;   /* what the first bad execution did; NULL: there is none */
};

/* All executions, or those up to the first bad one. `mutant` may be NULL. */
struct model_result model_explore(const struct model *model, const struct model_mutant *mutant);
/* The accesses of the last execution: what a bad one did, on stdout. */
void model_print_trace(void);

/* From a thread, or from check(): this execution is bad. From a thread it does not return. `what` is constant. */
void model_fail(const char *what);
#define MODEL_ASSERT(condition) ((condition) ? (void)0 : model_fail(#condition))
/* Is a model running? Else the entry points below act as they would without one. */
bool model_active(void);
unsigned model_self(void);

/* ---- For tsan.c: accesses. `order` is a memory_order. ---- */
uint64_t model_load(const volatile void *word, unsigned size, int order);
void model_store(volatile void *word, unsigned size, uint64_t value, int order);
/* Returns the value from before. */
uint64_t model_update(volatile void *word, unsigned size, uint64_t (*change)(uint64_t, uint64_t), uint64_t operand,
                      int order);
bool model_compare_exchange(volatile void *word, unsigned size, uint64_t *expected, uint64_t desired, int order,
                            int failure);
void model_fence(int order);
void model_plain(const volatile void *address, unsigned size, bool write);

/* ---- For kernel.c ---- */
/* A step that others can see: let any thread go first. `ready` (or NULL): when this one can go on. */
void model_step(bool (*ready)(const void *), const void *argument);
/* One of n that are possible. */
unsigned model_choose(unsigned n);
/* Whether the mutant leaves it out. */
bool model_omits(enum model_access access, const volatile void *word);
/* What this step has found goes into the state. */
void model_note(uint64_t value);
/* A futex operation on a word: the value that a wait found. Those on one word follow one another, and each sees what those before it
 * saw of this word, but nothing else. */
uint32_t model_futex(const volatile void *word, bool wait);
/* A lock: whoever takes it sees all that its last holder had seen. */
void model_acquire_from(const void *lock);
void model_release_to(const void *lock);

/* kernel.c: between executions; and what it adds to the state. */
void model_kernel_reset(void);
uint64_t model_kernel_state(void);
/* eventfds, and sockets of which only one thing matters, whether they are readable: descriptors that exist in the model alone. */
#define MODEL_FD 1000
#define MODEL_FDS 4
/* The only epoll there is looks at it, edge triggered. */
void model_watch(int fd, void *tag);

#endif
