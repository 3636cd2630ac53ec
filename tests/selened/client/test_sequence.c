/* SPDX-License-Identifier: Apache-2.0 */
#include "internal.h"

#include "check.h"
#include "random.h"

struct flow {
    struct sequence of;
    struct selene_counters c;
};

static enum sequence_verdict take(struct flow *f, uint64_t sequence)
{
    return selene_sequence(&f->of, sequence, &f->c);
}

/* A flow of which 1000 messages came, 0 to 999. */
static struct flow flow_of_1000(void)
{
    struct flow f = {0};
    for (uint64_t i = 0; i < 1000; i++)
        CHECK_EQ(take(&f, i), SEQUENCE_NEW);
    return f;
}

static void check_counts(const struct flow *f, uint64_t lost, uint64_t duplicated, uint64_t reordered)
{
    CHECK_EQ(f->c.lost, lost);
    CHECK_EQ(f->c.duplicated, duplicated);
    CHECK_EQ(f->c.reordered, reordered);
}

static void test_messages_in_order_count_nothing(void)
{
    struct flow f = flow_of_1000();
    CHECK_EQ(f.of.expected, 1000);
    check_counts(&f, 0, 0, 0);
}

static void test_whoever_joins_late_has_lost_nothing(void)
{
    struct flow f = {0};
    CHECK_EQ(take(&f, UINT64_C(1) << 40), SEQUENCE_NEW);
    check_counts(&f, 0, 0, 0);
    /* what was before it is not wanted */
    CHECK_EQ(take(&f, (UINT64_C(1) << 40) - 1), SEQUENCE_DUPLICATE);
    check_counts(&f, 0, 1, 0);
    CHECK_EQ(take(&f, (UINT64_C(1) << 40) + 1), SEQUENCE_NEW);
    check_counts(&f, 0, 1, 0);
}

static void test_the_first_message_may_have_any_number(void)
{
    struct flow f = {0};
    CHECK_EQ(take(&f, UINT64_MAX - 1), SEQUENCE_NEW);
    CHECK_EQ(take(&f, UINT64_MAX), SEQUENCE_NEW);
    CHECK_EQ(take(&f, 0), SEQUENCE_NEW);
    CHECK_EQ(take(&f, 1), SEQUENCE_NEW);
    check_counts(&f, 0, 0, 0);
}

static void test_a_gap_is_lost_at_once(void)
{
    struct flow f = flow_of_1000();
    CHECK_EQ(take(&f, 1003), SEQUENCE_NEW);
    check_counts(&f, 3, 0, 0);
    CHECK_EQ(take(&f, 1004), SEQUENCE_NEW);
    check_counts(&f, 3, 0, 0);
}

static void test_a_late_message_is_no_longer_lost(void)
{
    struct flow f = flow_of_1000();
    CHECK_EQ(take(&f, 1003), SEQUENCE_NEW);
    CHECK_EQ(take(&f, 1001), SEQUENCE_LATE);
    check_counts(&f, 2, 0, 1);
    CHECK_EQ(take(&f, 1000), SEQUENCE_LATE);
    CHECK_EQ(take(&f, 1002), SEQUENCE_LATE);
    check_counts(&f, 0, 0, 3);
    CHECK_EQ(take(&f, 1004), SEQUENCE_NEW);
    check_counts(&f, 0, 0, 3);
}

static void test_a_message_that_came_is_a_duplicate(void)
{
    struct flow f = flow_of_1000();
    CHECK_EQ(take(&f, 999), SEQUENCE_DUPLICATE);
    CHECK_EQ(take(&f, 0), SEQUENCE_DUPLICATE);
    CHECK_EQ(take(&f, 1002), SEQUENCE_NEW);
    CHECK_EQ(take(&f, 1001), SEQUENCE_LATE);
    CHECK_EQ(take(&f, 1001), SEQUENCE_DUPLICATE);
    CHECK_EQ(take(&f, 1002), SEQUENCE_DUPLICATE);
    check_counts(&f, 1, 4, 1);
}

static void test_the_window_is_64_messages(void)
{
    struct flow f = flow_of_1000();
    CHECK_EQ(take(&f, 1001), SEQUENCE_NEW); /* 1000 is missing */
    for (uint64_t i = 1002; i <= 1063; i++)
        CHECK_EQ(take(&f, i), SEQUENCE_NEW);
    struct flow later = f;
    CHECK_EQ(take(&f, 1000), SEQUENCE_LATE); /* the oldest of the last 64 */
    check_counts(&f, 0, 0, 1);
    CHECK_EQ(take(&later, 1064), SEQUENCE_NEW);
    CHECK_EQ(take(&later, 1000), SEQUENCE_DUPLICATE); /* nobody knows any more; it stays lost */
    check_counts(&later, 1, 1, 0);
}

static void test_gaps_as_wide_as_the_window(void)
{
    static const uint64_t gaps[] = {61, 62, 63, 64, 65, 1000, UINT64_C(1) << 50};
    for (size_t i = 0; i < sizeof gaps / sizeof *gaps; i++) {
        struct flow f = flow_of_1000();
        uint64_t newest = 1000 + gaps[i];
        CHECK_EQ(take(&f, newest), SEQUENCE_NEW);
        check_counts(&f, gaps[i], 0, 0);
        /* all of the gap that the window holds may still come */
        uint64_t oldest = newest - 63 > 1000 ? newest - 63 : 1000, late = 0;
        for (uint64_t s = oldest; s < newest; s++, late++)
            CHECK_EQ(take(&f, s), SEQUENCE_LATE);
        check_counts(&f, gaps[i] - late, 0, late);
        CHECK_EQ(take(&f, oldest - 1), SEQUENCE_DUPLICATE);
        CHECK_EQ(take(&f, newest), SEQUENCE_DUPLICATE);
    }
}

/* ---- Against a model that remembers everything ---- */

enum { MODEL_MESSAGES = 20000, MODEL_FIRST = 100 };

static uint8_t arrived[MODEL_MESSAGES];

static enum sequence_verdict model_take(struct flow *f, uint64_t sequence)
{
    uint64_t newest = f->of.expected - 1;
    if (sequence > newest) {
        f->c.lost += sequence - newest - 1;
        f->of.expected = sequence + 1;
        arrived[sequence] = 1;
        return SEQUENCE_NEW;
    }
    if (newest - sequence >= 64 || arrived[sequence]) {
        f->c.duplicated++;
        return SEQUENCE_DUPLICATE;
    }
    arrived[sequence] = 1;
    f->c.lost--;
    f->c.reordered++;
    return SEQUENCE_LATE;
}

static void test_any_order_agrees_with_a_model(void)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct random r = {seed};
        struct flow f = {0}, model = {.of.expected = MODEL_FIRST + 1};
        memset(arrived, 0, sizeof arrived);
        memset(arrived, 1, MODEL_FIRST + 1);
        CHECK_EQ(take(&f, MODEL_FIRST), SEQUENCE_NEW);
        for (uint64_t newest = MODEL_FIRST; newest < MODEL_MESSAGES - 300;) {
            uint32_t dice = random_below(&r, 100);
            uint64_t sequence = newest + 1;
            if (dice < 30)
                sequence = newest - random_below(&r, 70);
            else if (dice < 50)
                sequence = newest + 1 + random_below(&r, dice < 32 ? 200 : 8);
            if (!CHECK_EQ(take(&f, sequence), model_take(&model, sequence)) || !CHECK_EQ(f.c.lost, model.c.lost)) {
                printf("    seed %" PRIu64 ", sequence %" PRIu64 "\n", seed, sequence);
                return;
            }
            newest = f.of.expected - 1;
        }
        check_counts(&f, model.c.lost, model.c.duplicated, model.c.reordered);
        CHECK(f.c.reordered > 100 && f.c.duplicated > 100 && f.c.lost > 0);
    }
}

static void test_a_leap_that_nobody_follows_is_taken_back(void)
{
    for (unsigned bit = 10; bit < 64; bit++) {
        struct flow f = flow_of_1000();
        uint64_t leap = UINT64_C(1) << bit;
        CHECK_EQ(take(&f, 1000 + leap), SEQUENCE_NEW); /* 1000 with one bit turned */
        for (uint64_t i = 1001; i < 1200; i++)
            CHECK_EQ(take(&f, i), SEQUENCE_NEW);
        check_counts(&f, 1, 0, 0);
        CHECK_EQ(take(&f, 1100), SEQUENCE_DUPLICATE);
    }
}

static void test_a_leap_that_is_followed_stands(void)
{
    struct flow f = flow_of_1000();
    for (uint64_t i = 5000; i < 5100; i++)
        CHECK_EQ(take(&f, i), SEQUENCE_NEW);
    check_counts(&f, 4000, 0, 0);
    CHECK_EQ(take(&f, 1000), SEQUENCE_DUPLICATE);
    CHECK_EQ(take(&f, 999), SEQUENCE_DUPLICATE);
    CHECK_EQ(take(&f, 5100), SEQUENCE_NEW);
    check_counts(&f, 4000, 2, 0);
}

int main(void)
{
    CHECK_RUN(test_a_leap_that_nobody_follows_is_taken_back);
    CHECK_RUN(test_a_leap_that_is_followed_stands);
    CHECK_RUN(test_messages_in_order_count_nothing);
    CHECK_RUN(test_whoever_joins_late_has_lost_nothing);
    CHECK_RUN(test_the_first_message_may_have_any_number);
    CHECK_RUN(test_a_gap_is_lost_at_once);
    CHECK_RUN(test_a_late_message_is_no_longer_lost);
    CHECK_RUN(test_a_message_that_came_is_a_duplicate);
    CHECK_RUN(test_the_window_is_64_messages);
    CHECK_RUN(test_gaps_as_wide_as_the_window);
    CHECK_RUN(test_any_order_agrees_with_a_model);
    return check_done();
}
