/* SPDX-License-Identifier: Apache-2.0 */
#include "sequence.h"

#include "check.h"

#define PERIOD 1000000ull
#define BASE 1000000000000ull

static uint64_t gap;
static uint64_t received;

/* Packet `number` of a run that began at BASE + `later` ns. */
static enum qos_sequence_verdict take_of(struct qos_sequence *s, uint64_t number, uint64_t later)
{
    enum qos_sequence_verdict verdict = qos_sequence_take(s, number, BASE + later + number * PERIOD, PERIOD, &gap);
    received += verdict == QOS_SEQUENCE_AHEAD || verdict == QOS_SEQUENCE_REORDERED || verdict == QOS_SEQUENCE_RESTARTED;
    return verdict;
}

static enum qos_sequence_verdict take(struct qos_sequence *s, uint64_t number)
{
    return take_of(s, number, 0);
}

static uint64_t accounted(const struct qos_sequence *s)
{
    return s->before + s->newest - s->first + 1;
}

static struct qos_sequence fresh(void)
{
    received = 0;
    return (struct qos_sequence){0};
}

static void test_in_order(void)
{
    struct qos_sequence s = fresh();
    for (uint64_t n = 7; n < 20000; n++) {
        CHECK_EQ(take(&s, n), QOS_SEQUENCE_AHEAD);
        CHECK_EQ(gap, 0);
    }
    CHECK_EQ(s.lost, 0);
    CHECK_EQ(accounted(&s), received);
}

static void test_a_gap_is_lost_until_it_comes(void)
{
    struct qos_sequence s = fresh();
    take(&s, 0);
    CHECK_EQ(take(&s, 5), QOS_SEQUENCE_AHEAD);
    CHECK_EQ(gap, 4);
    CHECK_EQ(s.lost, 4);
    CHECK_EQ(take(&s, 3), QOS_SEQUENCE_REORDERED);
    CHECK_EQ(s.lost, 3);
    CHECK_EQ(take(&s, 3), QOS_SEQUENCE_DUPLICATED);
    CHECK_EQ(take(&s, 5), QOS_SEQUENCE_DUPLICATED);
    CHECK_EQ(s.lost, 3);
    CHECK_EQ(accounted(&s), received + s.lost);
}

static void test_one_from_before_the_first(void)
{
    struct qos_sequence s = fresh();
    take(&s, 10);
    CHECK_EQ(take(&s, 7), QOS_SEQUENCE_REORDERED);
    CHECK_EQ(s.lost, 2);
    CHECK_EQ(take(&s, 9), QOS_SEQUENCE_REORDERED);
    CHECK_EQ(s.lost, 1);
    CHECK_EQ(accounted(&s), received + s.lost);
}

static void test_the_window_has_no_old_bits(void)
{
    struct qos_sequence s = fresh();
    for (uint64_t n = 0; n < QOS_SEQUENCE_WINDOW; n++)
        take(&s, n);
    take(&s, QOS_SEQUENCE_WINDOW + 100);
    CHECK_EQ(s.lost, 100);
    for (uint64_t n = QOS_SEQUENCE_WINDOW; n < QOS_SEQUENCE_WINDOW + 100; n++)
        CHECK_EQ(take(&s, n), QOS_SEQUENCE_REORDERED);
    CHECK_EQ(s.lost, 0);
    take(&s, 3 * QOS_SEQUENCE_WINDOW);
    CHECK_EQ(take(&s, 3 * QOS_SEQUENCE_WINDOW - 1), QOS_SEQUENCE_REORDERED);
    CHECK_EQ(accounted(&s), received + s.lost);
}

static void test_a_long_outage_is_believed_if_the_launch_instants_have_moved_on(void)
{
    struct qos_sequence s = fresh();
    take(&s, 0);
    CHECK_EQ(take(&s, 120000), QOS_SEQUENCE_AHEAD);
    CHECK_EQ(s.lost, 119999);
}

static void test_absurd_numbers_are_refused_and_change_nothing(void)
{
    static const uint64_t absurd[] = {UINT64_MAX, 1ull << 63, QOS_SEQUENCE_GAP_MAX * 2, UINT64_MAX - 1};
    struct qos_sequence s = fresh();
    take(&s, 0);
    for (unsigned i = 0; i < sizeof absurd / sizeof absurd[0]; i++)
        CHECK_EQ(qos_sequence_take(&s, absurd[i], BASE + PERIOD, PERIOD, &gap), QOS_SEQUENCE_REFUSED);
    CHECK_EQ(take(&s, 1), QOS_SEQUENCE_AHEAD);
    CHECK_EQ(gap, 0);
    CHECK_EQ(s.lost, 0);
}

static void test_the_first_number_may_be_the_largest(void)
{
    struct qos_sequence s = fresh();
    CHECK_EQ(take(&s, UINT64_MAX), QOS_SEQUENCE_AHEAD);
    CHECK_EQ(take_of(&s, 0, 1ull << 60), QOS_SEQUENCE_REFUSED);
    CHECK_EQ(take_of(&s, 1, 1ull << 60), QOS_SEQUENCE_RESTARTED);
}

static void test_too_old(void)
{
    struct qos_sequence s = fresh();
    take(&s, 2 * QOS_SEQUENCE_WINDOW);
    CHECK_EQ(take(&s, QOS_SEQUENCE_WINDOW - 1), QOS_SEQUENCE_REFUSED);
    CHECK_EQ(take(&s, QOS_SEQUENCE_WINDOW), QOS_SEQUENCE_REFUSED);
    CHECK_EQ(s.lost, 0);
}

static void test_a_talker_that_starts_again(void)
{
    struct qos_sequence s = fresh();
    for (uint64_t n = 0; n < 1000; n++)
        take(&s, n);
    uint64_t later = 5000 * PERIOD;
    CHECK_EQ(take_of(&s, 0, later), QOS_SEQUENCE_REFUSED);
    CHECK_EQ(take_of(&s, 1, later), QOS_SEQUENCE_RESTARTED);
    CHECK_EQ(take_of(&s, 2, later), QOS_SEQUENCE_AHEAD);
    CHECK_EQ(take_of(&s, 2, later), QOS_SEQUENCE_DUPLICATED);
    CHECK_EQ(s.first, 1);
    CHECK_EQ(accounted(&s), received);
}

static void test_a_talker_whose_clock_was_set_back(void)
{
    struct qos_sequence s = fresh();
    for (uint64_t n = 100000; n < 100010; n++)
        take(&s, n);
    for (uint64_t n = 0; n + 1 < QOS_SEQUENCE_PROOF_BACK; n++)
        CHECK_EQ(take(&s, n), QOS_SEQUENCE_REFUSED);
    CHECK_EQ(take(&s, QOS_SEQUENCE_PROOF_BACK - 1), QOS_SEQUENCE_RESTARTED);
}

static void test_everything_is_accounted_whatever_comes(void)
{
    struct qos_sequence s = fresh();
    uint64_t state = 1, number = 0;
    for (int i = 0; i < 200000; i++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        uint64_t dice = state >> 33;
        number += dice % 16 == 0 ? dice >> 4 & 7 : 1;
        uint64_t behind = dice % 8 == 1 ? dice >> 8 & 15 : 0;
        take(&s, number > behind ? number - behind : 0);
        if (s.started && !CHECK_EQ(accounted(&s), received + s.lost))
            return;
    }
    CHECK(s.lost > 0);
}

int main(void)
{
    CHECK_RUN(test_in_order);
    CHECK_RUN(test_a_gap_is_lost_until_it_comes);
    CHECK_RUN(test_one_from_before_the_first);
    CHECK_RUN(test_the_window_has_no_old_bits);
    CHECK_RUN(test_a_long_outage_is_believed_if_the_launch_instants_have_moved_on);
    CHECK_RUN(test_absurd_numbers_are_refused_and_change_nothing);
    CHECK_RUN(test_the_first_number_may_be_the_largest);
    CHECK_RUN(test_too_old);
    CHECK_RUN(test_a_talker_that_starts_again);
    CHECK_RUN(test_a_talker_whose_clock_was_set_back);
    CHECK_RUN(test_everything_is_accounted_whatever_comes);
    return check_done();
}
