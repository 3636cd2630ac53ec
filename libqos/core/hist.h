/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Log-linear histogram of unsigned 64-bit values (latencies in ns), mergeable, in memory of a fixed size.
 *
 * Values below 64 have a bucket each; every power of two above is cut into 64 buckets, up to the largest 64-bit value, so
 * nothing overflows. A quantile is reported as the middle of its bucket: it is off by at most 1/128 (0.8 %) of the value.
 * Count, minimum, maximum and sum (hence the mean) are exact; the standard deviation is taken from the buckets.
 *
 * One writer, any number of readers, also in other processes (the struct holds no pointer and may lie in shared memory).
 * A record goes into sum, minimum and maximum first and into its bucket last, with release; a reader takes the buckets
 * first, with acquire. So whatever a reader finds in the buckets lies between its minimum and maximum, and its
 * sum holds at least those records, and at most those made while it was reading in addition. For several readings that
 * belong together take a snapshot. The reader trusts nothing but the size of the memory.
 */
#ifndef QOS_HIST_H
#define QOS_HIST_H

#ifndef QOS_CDEF
#include <stddef.h>
#include <stdint.h>

#include "compiler.h"
#endif

#define QOS_HIST_MAGIC 0x31534948u /* "HIS1" */
#define QOS_HIST_SUB_BITS 6
#define QOS_HIST_SUB_BUCKETS (1u << QOS_HIST_SUB_BITS)
#define QOS_HIST_BUCKETS ((64 - QOS_HIST_SUB_BITS + 1) * QOS_HIST_SUB_BUCKETS)

struct qos_hist;

struct qos_hist_summary {
    uint64_t count;
    uint64_t min; /* 0 when empty, as all that follows */
    uint64_t p50;
    uint64_t p90;
    uint64_t p99;
    uint64_t p999;
    uint64_t max;
    double mean;
    double stddev; /* of the population */
};

/* Bytes a histogram takes; place it at a multiple of 64. */
size_t qos_hist_size(void);

/* Make `hist` empty. Only the writer may, and no reader may be attached. */
void qos_hist_init(struct qos_hist *hist);

/* Is this memory of `size` bytes a histogram of this layout? 0, or -EPROTO. Look once, before the first use of foreign memory. */
int qos_hist_check(const struct qos_hist *hist, size_t size);

/* Record `count` values. Writer only. */
void qos_hist_record_many(struct qos_hist *hist, const uint64_t *values, size_t count);

/* Add all that is in `from` (which may be written meanwhile) to `into`, whose writer is the caller. */
void qos_hist_merge(struct qos_hist *into, const struct qos_hist *from);

/* Make `into`, private to the caller, a copy of `from`: its count is the sum of its buckets. */
void qos_hist_snapshot(struct qos_hist *into, const struct qos_hist *from);

uint64_t qos_hist_count(const struct qos_hist *hist);
uint64_t qos_hist_min(const struct qos_hist *hist); /* 0 when empty, as the next four */
uint64_t qos_hist_max(const struct qos_hist *hist);
double qos_hist_mean(const struct qos_hist *hist);
double qos_hist_stddev(const struct qos_hist *hist);

/* The smallest value that at least the share `quantile` (0 to 1, clamped) of the records does not exceed, as its bucket's middle. */
uint64_t qos_hist_quantile(const struct qos_hist *hist, double quantile);

/* All of the above at once, from one snapshot taken inside. 0, or -ENOMEM. */
int qos_hist_summarize(const struct qos_hist *hist, struct qos_hist_summary *summary);

#ifndef QOS_CDEF

struct qos_hist {
    uint32_t magic;
    uint32_t buckets_len;
    _Atomic uint64_t count;
    _Atomic uint64_t sum;
    _Atomic uint64_t min; /* UINT64_MAX when empty */
    _Atomic uint64_t max;
    uint64_t reserved[3];
    _Atomic uint64_t buckets[QOS_HIST_BUCKETS];
};

_Static_assert(sizeof(struct qos_hist) == 64 + 8 * QOS_HIST_BUCKETS, "the layout is the same in every process");

/* Bucket of a value: its own below 64, else the six bits behind the leading one within its power of two. */
static inline uint32_t qos_hist_bucket(uint64_t value)
{
    if (value < QOS_HIST_SUB_BUCKETS)
        return (uint32_t)value;
    uint32_t shift = 63u - (uint32_t)__builtin_clzll(value) - QOS_HIST_SUB_BITS;
    return (shift << QOS_HIST_SUB_BITS) + (uint32_t)(value >> shift);
}

/* Record one value. Writer only, so plain additions do: no locked instruction. */
static inline void qos_hist_record(struct qos_hist *hist, uint64_t value)
{
    _Atomic uint64_t *bucket = &hist->buckets[qos_hist_bucket(value)];
    qos_store_relaxed(&hist->sum, qos_load_relaxed(&hist->sum) + value);
    if (value < qos_load_relaxed(&hist->min))
        qos_store_relaxed(&hist->min, value);
    if (value > qos_load_relaxed(&hist->max))
        qos_store_relaxed(&hist->max, value);
    qos_store_relaxed(&hist->count, qos_load_relaxed(&hist->count) + 1);
    /* release: pairs with the acquire in read_bucket (hist.c): a record in a bucket is in sum, minimum and maximum */
    qos_store_release(bucket, qos_load_relaxed(bucket) + 1);
}

#endif /* QOS_CDEF */
#endif /* QOS_HIST_H */
