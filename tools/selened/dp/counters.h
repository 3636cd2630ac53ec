/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the datapath counts, for the process and for each session: struct selene_dp_counters of proto.h, without its id.
 *
 * The data thread writes, the control thread reads: relaxed, because a counter says nothing about other memory.
 */
#ifndef DP_COUNTERS_H
#define DP_COUNTERS_H

#include <stddef.h>

#include "compiler.h"
#include "proto.h"

enum dp_counter {
    DP_TX_DATAGRAMS,
    DP_TX_BYTES,
    DP_TX_ERRORS,
    DP_RX_DATAGRAMS,
    DP_RX_BYTES,
    DP_RX_RUBBISH,
    DP_RX_VERSION,
    DP_RX_UNKNOWN,
    DP_RX_OVERFLOW,
    DP_DROPPED_QUOTA,
    DP_WAKEUPS,
    DP_WAKEUPS_EMPTY,
    DP_VIOLATIONS,
    DP_COUNTERS,
};

_Static_assert(offsetof(struct selene_dp_counters, tx_datagrams) == 8 * (1 + DP_TX_DATAGRAMS), "order of proto.h");
_Static_assert(offsetof(struct selene_dp_counters, rx_overflow) == 8 * (1 + DP_RX_OVERFLOW), "order of proto.h");
_Static_assert(sizeof(struct selene_dp_counters) == 8 * (1 + DP_COUNTERS), "every counter of proto.h");

struct dp_counters {
    _Atomic uint64_t value[DP_COUNTERS];
};

/* Only from the data thread (a load and a store, no locked instruction). */
static inline void dp_count(struct dp_counters *counters, enum dp_counter which, uint64_t n)
{
    qos_store_relaxed(&counters->value[which], qos_load_relaxed(&counters->value[which]) + n);
}

static inline void dp_counters_read(struct dp_counters *counters, uint64_t session, struct selene_dp_counters *out)
{
    uint64_t words[1 + DP_COUNTERS] = {session};
    for (unsigned i = 0; i < DP_COUNTERS; i++)
        words[1 + i] = qos_load_relaxed(&counters->value[i]);
    __builtin_memcpy(out, words, sizeof words);
}

#endif
