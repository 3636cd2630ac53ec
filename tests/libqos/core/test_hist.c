/* SPDX-License-Identifier: Apache-2.0 */
#include "hist.h"

#include <errno.h>
#include <math.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "check.h"

static struct qos_hist first, second, third;

static uint64_t xorshift(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void test_empty(void)
{
    struct qos_hist_summary summary;
    qos_hist_init(&first);
    CHECK_EQ(qos_hist_size(), sizeof(first));
    CHECK_EQ(qos_hist_count(&first), 0);
    CHECK_EQ(qos_hist_min(&first), 0);
    CHECK_EQ(qos_hist_quantile(&first, 0.5), 0);
    CHECK_EQ(qos_hist_summarize(&first, &summary), 0);
    CHECK_EQ(summary.count, 0);
    CHECK_EQ(summary.max, 0);
    CHECK(summary.mean == 0.0 && summary.stddev == 0.0);
}

static void test_buckets_are_ordered_and_cover_everything(void)
{
    uint64_t state = 88172645463325252ull;
    CHECK_EQ(qos_hist_bucket(0), 0);
    CHECK_EQ(qos_hist_bucket(UINT64_MAX), QOS_HIST_BUCKETS - 1);
    for (unsigned int bit = 1; bit < 64; bit++) {
        uint64_t power = 1ull << bit;
        CHECK_EQ(qos_hist_bucket(power), qos_hist_bucket(power - 1) + 1);
    }
    for (int i = 0; i < 100000; i++) {
        uint64_t a = xorshift(&state) >> (i % 64);
        uint64_t b = a + (UINT64_MAX - a) / 128;
        if (qos_hist_bucket(a) > qos_hist_bucket(b))
            CHECK(0);
    }
}

static void test_every_value_is_reported_within_the_stated_error(void)
{
    uint64_t state = 1234567;
    for (int i = 0; i < 2000; i++) {
        uint64_t value = xorshift(&state) >> (i % 64);
        qos_hist_init(&first);
        qos_hist_record(&first, value);
        /* A second, larger record: else the exact maximum would hide the error of the bucket. */
        qos_hist_record(&first, UINT64_MAX);
        uint64_t reported = qos_hist_quantile(&first, 0.5);
        uint64_t error = reported > value ? reported - value : value - reported;
        if (error > value / 128)
            CHECK_EQ(reported, value);
    }
}

static void test_extremes_are_exact(void)
{
    static const uint64_t values[] = {0, UINT64_MAX, 1000003};
    qos_hist_init(&first);
    qos_hist_record_many(&first, values, 3);
    CHECK_EQ(qos_hist_min(&first), 0);
    CHECK_EQ(qos_hist_max(&first), UINT64_MAX);
    CHECK_EQ(qos_hist_quantile(&first, 1.0), UINT64_MAX - (1ull << 56) + 1);
    qos_hist_init(&first);
    qos_hist_record(&first, UINT64_MAX);
    CHECK_EQ(qos_hist_min(&first), UINT64_MAX);
    CHECK_EQ(qos_hist_quantile(&first, 0.5), UINT64_MAX);
}

static void test_quantiles_follow_their_definition(void)
{
    qos_hist_init(&first);
    for (uint64_t value = 1; value <= 100; value++)
        qos_hist_record(&first, value);
    CHECK_EQ(qos_hist_quantile(&first, 0.0), 1);
    CHECK_EQ(qos_hist_quantile(&first, -1.0), 1);
    CHECK_EQ(qos_hist_quantile(&first, 0.01), 1);
    CHECK_EQ(qos_hist_quantile(&first, 0.5), 50);
    CHECK_EQ(qos_hist_quantile(&first, 0.505), 51);
    CHECK_EQ(qos_hist_quantile(&first, 1.0), 100);
    CHECK_EQ(qos_hist_quantile(&first, 2.0), 100);
    CHECK_EQ(qos_hist_quantile(&first, (double)NAN), 1);
}

static void test_moments(void)
{
    qos_hist_init(&first);
    for (uint64_t value = 1; value <= 100; value++)
        qos_hist_record(&first, value);
    CHECK(fabs(qos_hist_mean(&first) - 50.5) < 1e-9);
    CHECK(fabs(qos_hist_stddev(&first) - 28.866070047722118) < 1e-9);
    qos_hist_init(&first);
    for (int i = 0; i < 1000; i++)
        qos_hist_record(&first, 123456789);
    CHECK(qos_hist_mean(&first) == 123456789.0);
    CHECK(qos_hist_stddev(&first) == 0.0);
}

static void test_merge_equals_recording_into_one(void)
{
    uint64_t state = 42;
    qos_hist_init(&first);
    qos_hist_init(&second);
    qos_hist_init(&third);
    for (int i = 0; i < 10000; i++) {
        uint64_t value = xorshift(&state) >> (i % 60);
        qos_hist_record(i % 3 == 0 ? &first : &second, value);
        qos_hist_record(&third, value);
    }
    qos_hist_merge(&first, &second);
    CHECK_EQ(memcmp(&first, &third, sizeof(first)), 0);
    qos_hist_init(&second);
    qos_hist_merge(&first, &second);
    CHECK_EQ(memcmp(&first, &third, sizeof(first)), 0);
}

static void test_check_refuses_foreign_memory(void)
{
    qos_hist_init(&first);
    CHECK_EQ(qos_hist_check(&first, sizeof(first)), 0);
    CHECK_EQ(qos_hist_check(&first, sizeof(first) - 1), -EPROTO);
    first.magic++;
    CHECK_EQ(qos_hist_check(&first, sizeof(first)), -EPROTO);
    qos_hist_init(&first);
    first.buckets_len--;
    CHECK_EQ(qos_hist_check(&first, sizeof(first)), -EPROTO);
    qos_hist_init(&first);
}

/* A writer that goes on until it is told to stop; what the reader sees must be consistent at any moment. */
struct shared {
    struct qos_hist hist;
    _Atomic uint32_t stop;
};

static void write_until_told(struct shared *shared)
{
    uint64_t state = 99;
    /* relaxed: only a flag, nothing is read behind it */
    while (!qos_load_relaxed(&shared->stop))
        qos_hist_record(&shared->hist, 1000 + xorshift(&state) % 1000);
}

static void test_another_process_reads_while_it_is_written(void)
{
    struct shared *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (!CHECK(shared != MAP_FAILED))
        return;
    qos_hist_init(&shared->hist);
    pid_t writer = check_fork();
    if (writer == 0) {
        write_until_told(shared);
        check_exit_child();
    }
    uint64_t before = 0;
    for (int looks = 0; looks < 200;) {
        qos_hist_snapshot(&first, &shared->hist);
        uint64_t count = qos_hist_count(&first);
        if (count == 0)
            continue; /* the writer has not started */
        looks++;
        CHECK(count >= before);
        before = count;
        CHECK(qos_hist_min(&first) >= 1000 && qos_hist_max(&first) < 2000);
        CHECK(qos_hist_min(&first) <= qos_hist_quantile(&first, 0.0));
        CHECK(qos_hist_quantile(&first, 1.0) <= qos_hist_max(&first));
        /* The sum holds at least the records in the buckets. */
        CHECK(qos_hist_mean(&first) >= 1000.0);
    }
    qos_store_relaxed(&shared->stop, 1);
    int status = -1;
    waitpid(writer, &status, 0);
    CHECK_EQ(status, 0);
    qos_hist_snapshot(&first, &shared->hist);
    CHECK_EQ(memcmp(&first, &shared->hist, sizeof(first)), 0);
    munmap(shared, sizeof(*shared));
}

int main(void)
{
    CHECK_RUN(test_empty);
    CHECK_RUN(test_buckets_are_ordered_and_cover_everything);
    CHECK_RUN(test_every_value_is_reported_within_the_stated_error);
    CHECK_RUN(test_extremes_are_exact);
    CHECK_RUN(test_quantiles_follow_their_definition);
    CHECK_RUN(test_moments);
    CHECK_RUN(test_merge_equals_recording_into_one);
    CHECK_RUN(test_check_refuses_foreign_memory);
    CHECK_RUN(test_another_process_reads_while_it_is_written);
    return check_done();
}
