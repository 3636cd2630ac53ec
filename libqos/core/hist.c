/* SPDX-License-Identifier: Apache-2.0 */
#include "hist.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

/* The middle of a bucket, rounded down; exact below 2 * QOS_HIST_SUB_BUCKETS. */
static uint64_t bucket_middle(uint32_t bucket)
{
    if (bucket < QOS_HIST_SUB_BUCKETS)
        return bucket;
    uint32_t shift = (bucket >> QOS_HIST_SUB_BITS) - 1;
    uint64_t low = (uint64_t)(bucket - (shift << QOS_HIST_SUB_BITS)) << shift;
    return low + ((1ull << shift) >> 1);
}

static uint64_t read_bucket(const struct qos_hist *hist, uint32_t bucket)
{
    /* acquire: pairs with the release in qos_hist_record */
    return qos_load_acquire(&hist->buckets[bucket]);
}

size_t qos_hist_size(void)
{
    return sizeof(struct qos_hist);
}

void qos_hist_init(struct qos_hist *hist)
{
    hist->magic = QOS_HIST_MAGIC;
    hist->buckets_len = QOS_HIST_BUCKETS;
    qos_store_relaxed(&hist->count, 0);
    qos_store_relaxed(&hist->sum, 0);
    qos_store_relaxed(&hist->min, UINT64_MAX);
    qos_store_relaxed(&hist->max, 0);
    for (uint32_t i = 0; i < sizeof(hist->reserved) / sizeof(hist->reserved[0]); i++)
        hist->reserved[i] = 0;
    for (uint32_t i = 0; i < QOS_HIST_BUCKETS; i++)
        qos_store_relaxed(&hist->buckets[i], 0);
}

int qos_hist_check(const struct qos_hist *hist, size_t size)
{
    if (size < sizeof(*hist) || hist->magic != QOS_HIST_MAGIC || hist->buckets_len != QOS_HIST_BUCKETS)
        return -EPROTO;
    return 0;
}

void qos_hist_record_many(struct qos_hist *hist, const uint64_t *values, size_t count)
{
    for (size_t i = 0; i < count; i++)
        qos_hist_record(hist, values[i]);
}

void qos_hist_merge(struct qos_hist *into, const struct qos_hist *from)
{
    uint64_t added[QOS_HIST_BUCKETS];
    uint64_t count = 0;
    for (uint32_t i = 0; i < QOS_HIST_BUCKETS; i++) {
        added[i] = read_bucket(from, i);
        count += added[i];
    }
    if (count == 0)
        return;
    uint64_t min = qos_load_relaxed(&from->min);
    uint64_t max = qos_load_relaxed(&from->max);
    /* The same order as in qos_hist_record: `into` may have readers. */
    qos_store_relaxed(&into->sum, qos_load_relaxed(&into->sum) + qos_load_relaxed(&from->sum));
    if (min < qos_load_relaxed(&into->min))
        qos_store_relaxed(&into->min, min);
    if (max > qos_load_relaxed(&into->max))
        qos_store_relaxed(&into->max, max);
    qos_store_relaxed(&into->count, qos_load_relaxed(&into->count) + count);
    for (uint32_t i = 0; i < QOS_HIST_BUCKETS; i++)
        if (added[i] != 0)
            /* release: pairs with the acquire in read_bucket */
            qos_store_release(&into->buckets[i], qos_load_relaxed(&into->buckets[i]) + added[i]);
}

void qos_hist_snapshot(struct qos_hist *into, const struct qos_hist *from)
{
    qos_hist_init(into);
    qos_hist_merge(into, from);
}

uint64_t qos_hist_count(const struct qos_hist *hist)
{
    return qos_load_relaxed(&hist->count);
}

uint64_t qos_hist_min(const struct qos_hist *hist)
{
    uint64_t min = qos_load_relaxed(&hist->min);
    return min == UINT64_MAX && qos_load_relaxed(&hist->max) != UINT64_MAX ? 0 : min;
}

uint64_t qos_hist_max(const struct qos_hist *hist)
{
    return qos_load_relaxed(&hist->max);
}

double qos_hist_mean(const struct qos_hist *hist)
{
    uint64_t count = qos_load_relaxed(&hist->count);
    return count == 0 ? 0.0 : (double)qos_load_relaxed(&hist->sum) / (double)count;
}

/* Weighted incremental mean and variance (West 1979), so that large values lose no precision. */
double qos_hist_stddev(const struct qos_hist *hist)
{
    double count = 0.0;
    double mean = 0.0;
    double squares = 0.0;
    for (uint32_t i = 0; i < QOS_HIST_BUCKETS; i++) {
        double weight = (double)read_bucket(hist, i);
        if (weight == 0.0)
            continue;
        double delta = (double)bucket_middle(i) - mean;
        count += weight;
        mean += delta * weight / count;
        squares += delta * delta * weight * (count - weight) / count;
    }
    return count == 0.0 ? 0.0 : sqrt(squares / count);
}

uint64_t qos_hist_quantile(const struct qos_hist *hist, double quantile)
{
    uint64_t count = 0;
    for (uint32_t i = 0; i < QOS_HIST_BUCKETS; i++)
        count += read_bucket(hist, i);
    if (count == 0)
        return 0;
    double share = quantile > 0.0 ? (quantile < 1.0 ? quantile : 1.0) : 0.0; /* a NaN counts as 0 */
    double rank = ceil(share * (double)count);
    uint64_t seen = 0;
    uint32_t last = 0; /* the highest filled bucket, should the buckets have changed since they were counted */
    for (uint32_t i = 0; i < QOS_HIST_BUCKETS; i++) {
        uint64_t here = read_bucket(hist, i);
        if (here == 0)
            continue;
        last = i;
        seen += here;
        if ((double)seen >= rank)
            break;
    }
    uint64_t value = bucket_middle(last);
    uint64_t min = qos_hist_min(hist);
    uint64_t max = qos_hist_max(hist);
    return value < min ? min : value > max ? max : value;
}

int qos_hist_summarize(const struct qos_hist *hist, struct qos_hist_summary *summary)
{
    struct qos_hist *copy = aligned_alloc(QOS_CACHE_LINE, sizeof(*copy));
    if (copy == NULL)
        return -ENOMEM;
    qos_hist_snapshot(copy, hist);
    *summary = (struct qos_hist_summary){
        .count = qos_hist_count(copy),
        .min = qos_hist_min(copy),
        .p50 = qos_hist_quantile(copy, 0.5),
        .p90 = qos_hist_quantile(copy, 0.9),
        .p99 = qos_hist_quantile(copy, 0.99),
        .p999 = qos_hist_quantile(copy, 0.999),
        .max = qos_hist_max(copy),
        .mean = qos_hist_mean(copy),
        .stddev = qos_hist_stddev(copy),
    };
    free(copy);
    return 0;
}
