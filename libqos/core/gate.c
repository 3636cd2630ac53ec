/* SPDX-License-Identifier: Apache-2.0 */
#include "gate.h"

#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

static long barrier(int command)
{
    return syscall(SYS_membarrier, command, 0, 0);
}

void qos_gate_init(struct qos_gate *gate)
{
    *gate = (struct qos_gate){.fenced = barrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) < 0};
    pthread_mutex_init(&gate->lock, NULL);
}

void qos_gate_destroy(struct qos_gate *gate)
{
    pthread_mutex_destroy(&gate->lock);
}

/* The visitor has the lock for as long as it is inside, or looks whether it may be. */
void qos_gate_wait(struct qos_gate *gate)
{
    qos_store_release(&gate->inside, 0);
    pthread_mutex_lock(&gate->lock);
    qos_store_relaxed(&gate->inside, 1); /* seen by the next visitor, which takes the lock after us */
    pthread_mutex_unlock(&gate->lock);
}

bool qos_gate_visit(struct qos_gate *gate)
{
    if (pthread_mutex_trylock(&gate->lock) != 0)
        return false;
    qos_store_relaxed(&gate->wanted, 1);
    /* pairs with what stands between the owner's store and its load in qos_gate_enter */
    if (gate->fenced)
        qos_fence_seq_cst();
    else
        (void)barrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED);
    /* acquire: pairs with the release in qos_gate_leave */
    if (qos_load_acquire(&gate->inside) == 0)
        return true;
    qos_gate_visited(gate);
    return false;
}

void qos_gate_visited(struct qos_gate *gate)
{
    qos_store_release(&gate->wanted, 0); /* pairs with the acquire in qos_gate_enter */
    pthread_mutex_unlock(&gate->lock);
}
