/* SPDX-License-Identifier: Apache-2.0
 *
 * A lock between one thread that comes at every message and others that come rarely. The owner passes with two plain stores and a load,
 * where a mutex costs two read-modify-writes; a visitor pays for it with membarrier(2), which makes every thread of the process pass a
 * barrier, and goes away again if the owner is inside.
 *
 * Without membarrier (before Linux 4.14, or forbidden) the owner passes a fence.
 */
#ifndef QOS_GATE_H
#define QOS_GATE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "compiler.h"

struct qos_gate {
    _Atomic uint32_t inside; /* the owner's */
    _Atomic uint32_t wanted; /* by the visitor that has the lock */
    bool fenced;             /* no membarrier */
    pthread_mutex_t lock;    /* among visitors, and where the owner waits for one */
};

void qos_gate_init(struct qos_gate *gate);
void qos_gate_destroy(struct qos_gate *gate);
void qos_gate_wait(struct qos_gate *gate);

/* The owner: one thread at a time. It waits while a visitor is inside. */
static inline void qos_gate_enter(struct qos_gate *gate)
{
    qos_store_relaxed(&gate->inside, 1);
    /* pairs with the membarrier in qos_gate_visit: either it sees that we are inside, or we see that it wants in */
    if (QOS_UNLIKELY(gate->fenced))
        qos_fence_seq_cst();
    else
        atomic_signal_fence(memory_order_seq_cst);
    /* acquire: pairs with the release in qos_gate_visited */
    if (QOS_UNLIKELY(qos_load_acquire(&gate->wanted)))
        qos_gate_wait(gate);
}

static inline void qos_gate_leave(struct qos_gate *gate)
{
    qos_store_release(&gate->inside, 0); /* pairs with the acquire in qos_gate_visit */
}

/* Anybody else. False: somebody is inside. */
bool qos_gate_visit(struct qos_gate *gate);
void qos_gate_visited(struct qos_gate *gate);

#endif
