/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The checker itself: the litmus tests of the literature, under their usual names. For each the outcome that is in question must be
 * seen, or must not.
 */
#include "model.h"

#include <stdatomic.h>

#include "check.h"

static atomic_int x, y, z;
static int plain;
static int r[4];
static bool seen; /* the outcome in question */

static void setup(void)
{
    atomic_init(&x, 0);
    atomic_init(&y, 0);
    atomic_init(&z, 0);
    plain = 0;
    memset(r, -1, sizeof r);
}

#define W(word, value) atomic_store_explicit(&word, value, memory_order_relaxed)
#define WREL(word, value) atomic_store_explicit(&word, value, memory_order_release)
#define R(word) atomic_load_explicit(&word, memory_order_relaxed)
#define RACQ(word) atomic_load_explicit(&word, memory_order_acquire)
#define F(order) atomic_thread_fence(memory_order_##order)
#define ADD(word, order) atomic_fetch_add_explicit(&word, 1, memory_order_##order)

/* Explore threads t0..t3; whether an execution ends with `outcome`. */
static const char *error;
static bool run(void (*t0)(void), void (*t1)(void), void (*t2)(void), void (*t3)(void), void (*outcome)(void))
{
    struct model model = {setup, {t0, t1, t2, t3}, outcome};
    seen = false;
    struct model_result result = model_explore(&model, NULL);
    error = result.error;
    CHECK(error || result.executions > 0);
    return seen;
}

#define THREAD(name, body)                                                                                             \
    static void name(void)                                                                                             \
    {                                                                                                                  \
        body;                                                                                                          \
    }
#define OUTCOME(name, condition) THREAD(name, seen = seen || (condition))

OUTCOME(both_zero, r[0] == 0 && r[1] == 0)
OUTCOME(flag_without_data, r[0] == 1 && r[1] == 0)

/* SB, store buffering */
THREAD(sb0, W(x, 1); r[0] = R(y))
THREAD(sb1, W(y, 1); r[1] = R(x))
THREAD(sb0_f, W(x, 1); F(seq_cst); r[0] = R(y))
THREAD(sb1_f, W(y, 1); F(seq_cst); r[1] = R(x))
THREAD(sb0_ar, WREL(x, 1); F(acq_rel); r[0] = RACQ(y))
THREAD(sb1_ar, WREL(y, 1); F(acq_rel); r[1] = RACQ(x))
THREAD(sb0_x, atomic_exchange(&x, 1); r[0] = R(y))

static void test_store_buffering(void)
{
    CHECK(run(sb0, sb1, NULL, NULL, both_zero));
    CHECK(run(sb0_ar, sb1_ar, NULL, NULL, both_zero));
    CHECK(run(sb0_f, sb1, NULL, NULL, both_zero));
    CHECK(!run(sb0_f, sb1_f, NULL, NULL, both_zero));
    /* a seq_cst read-modify-write is no fence */
    CHECK(run(sb0_x, sb1_f, NULL, NULL, both_zero));
}

/* MP, message passing */
THREAD(mp0, W(x, 1); W(y, 1))
THREAD(mp0_rel, W(x, 1); WREL(y, 1))
THREAD(mp0_f, W(x, 1); F(release); W(y, 1))
THREAD(mp1, r[0] = R(y); r[1] = R(x))
THREAD(mp1_acq, r[0] = RACQ(y); r[1] = R(x))
THREAD(mp1_f, r[0] = R(y); F(acquire); r[1] = R(x))

static void test_message_passing(void)
{
    CHECK(run(mp0, mp1_acq, NULL, NULL, flag_without_data));
    CHECK(run(mp0_rel, mp1, NULL, NULL, flag_without_data));
    CHECK(!run(mp0_rel, mp1_acq, NULL, NULL, flag_without_data));
    CHECK(!run(mp0_f, mp1_f, NULL, NULL, flag_without_data));
    CHECK(!run(mp0_f, mp1_acq, NULL, NULL, flag_without_data));
    CHECK(!run(mp0_rel, mp1_f, NULL, NULL, flag_without_data));
}

/* A release sequence: a read-modify-write in between keeps what was released, a plain store to the same word does not (C++20). */
THREAD(rs_update, if (R(y) == 1) ADD(y, relaxed))
THREAD(rs_store, if (R(y) == 1) W(y, 2))
THREAD(rs_own, W(x, 1); WREL(y, 1); W(y, 2))
THREAD(rs_read, r[0] = RACQ(y) == 2; r[1] = R(x))

static void test_release_sequence(void)
{
    CHECK(!run(mp0_rel, rs_update, rs_read, NULL, flag_without_data));
    CHECK(run(mp0_rel, rs_store, rs_read, NULL, flag_without_data));
    CHECK(run(rs_own, rs_read, NULL, NULL, flag_without_data));
}

/* LB, load buffering: forbidden here as in RC11, though C11 allows it */
THREAD(lb0, r[0] = R(x); W(y, 1))
THREAD(lb1, r[1] = R(y); W(x, 1))
OUTCOME(both_one, r[0] == 1 && r[1] == 1)

/* CoRR, coherence of reads; 2+2W; S; R */
THREAD(corr0, W(x, 1))
THREAD(corr1, W(x, 2))
THREAD(corr2, r[0] = R(x); r[1] = R(x))
THREAD(corr3, r[2] = R(x); r[3] = R(x))
OUTCOME(corr, (r[0] == 1 && r[1] == 2 && r[2] == 2 && r[3] == 1) || (r[0] > 0 && r[1] == 0))
THREAD(ww0, W(x, 1); W(y, 2))
THREAD(ww1, W(y, 1); W(x, 2))
OUTCOME(ww, R(x) == 1 && R(y) == 1)
THREAD(ww0_f, W(x, 1); F(seq_cst); W(y, 2))
THREAD(ww1_f, W(y, 1); F(seq_cst); W(x, 2))
THREAD(s1, r[0] = RACQ(y); W(x, 2))
THREAD(s0, W(x, 3); WREL(y, 1))
OUTCOME(s, r[0] == 1 && R(x) == 3)
THREAD(r0, W(x, 1); F(seq_cst); W(y, 1))
THREAD(r1, W(y, 2); F(seq_cst); r[0] = R(x))
OUTCOME(r_bad, R(y) == 2 && r[0] == 0)

static void test_coherence(void)
{
    CHECK(!run(lb0, lb1, NULL, NULL, both_one));
    CHECK(!run(corr0, corr1, corr2, corr3, corr));
    CHECK(run(ww0, ww1, NULL, NULL, ww));
    CHECK(!run(ww0_f, ww1_f, NULL, NULL, ww));
    CHECK(!run(s0, s1, NULL, NULL, s));
    CHECK(!run(r0, r1, NULL, NULL, r_bad));
}

/* IRIW, independent reads of independent writes; WRC, write-to-read causality */
THREAD(iriw0, W(x, 1))
THREAD(iriw1, W(y, 1))
THREAD(iriw2, r[0] = RACQ(x); r[1] = RACQ(y))
THREAD(iriw3, r[2] = RACQ(y); r[3] = RACQ(x))
THREAD(iriw2_f, r[0] = R(x); F(seq_cst); r[1] = R(y))
THREAD(iriw3_f, r[2] = R(y); F(seq_cst); r[3] = R(x))
OUTCOME(iriw, r[0] == 1 && r[1] == 0 && r[2] == 1 && r[3] == 0)
THREAD(wrc1, if (R(x) == 1) WREL(y, 1))
THREAD(wrc1_acq, if (RACQ(x) == 1) WREL(y, 1))

static void test_many_threads(void)
{
    CHECK(run(iriw0, iriw1, iriw2, iriw3, iriw));
    CHECK(!run(iriw0, iriw1, iriw2_f, iriw3_f, iriw));
    CHECK(!run(iriw0, wrc1, mp1_acq, NULL, flag_without_data));
    CHECK(run(iriw0, wrc1_acq, mp1, NULL, flag_without_data));
}

/* Read-modify-writes: none is lost, one compare-and-swap wins */
THREAD(add_twice, ADD(x, relaxed); ADD(x, relaxed))
OUTCOME(lost_add, R(x) != 6)
static void cas(void)
{
    int none = 0;
    r[model_self()] = atomic_compare_exchange_strong(&x, &none, 1);
}
OUTCOME(not_one_winner, r[0] + r[1] + r[2] != 1)

static void test_updates(void)
{
    CHECK(!run(add_twice, add_twice, add_twice, NULL, lost_add));
    CHECK(!run(cas, cas, cas, NULL, not_one_winner));
}

/* Plain data: a race is an error, whichever side comes first */
THREAD(plain0, plain = 1; WREL(y, 1))
THREAD(plain0_late, WREL(y, 1); plain = 1)
THREAD(plain0_relaxed, plain = 1; W(y, 1))
THREAD(plain1, if (RACQ(y)) r[0] = plain)
THREAD(plain1_relaxed, if (R(y)) r[0] = plain)
THREAD(
    plain1_fence, if (R(y)) {
        F(acquire);
        r[0] = plain;
    })
OUTCOME(stale, r[0] == 0)

static void test_plain_races(void)
{
    CHECK(!run(plain0, plain1, NULL, NULL, stale));
    CHECK(error == NULL);
    CHECK(!run(plain0, plain1_fence, NULL, NULL, stale));
    CHECK(error == NULL);
    (void)run(plain0_late, plain1, NULL, NULL, stale);
    CHECK(error != NULL);
    (void)run(plain0_relaxed, plain1, NULL, NULL, stale);
    CHECK(error != NULL);
    (void)run(plain0, plain1_relaxed, NULL, NULL, stale);
    CHECK(error != NULL);
}

/* The numbers of executions that a pencil gives. */
THREAD(nothing, r[0] = 0)
THREAD(one_write, W(x, 1))
THREAD(one_read, r[1] = R(x))

static uint64_t executions(void (*t0)(void), void (*t1)(void), void (*t2)(void), void (*t3)(void))
{
    struct model model = {setup, {t0, t1, t2, t3}, NULL};
    return model_explore(&model, NULL).executions;
}

static void test_counts(void)
{
    CHECK_EQ(executions(nothing, one_write, NULL, NULL), 1);
    CHECK_EQ(executions(one_write, one_read, NULL, NULL), 2);
    CHECK_EQ(executions(sb0, sb1, NULL, NULL), 4);
    CHECK_EQ(executions(iriw0, iriw1, iriw2, iriw3), 16);
    CHECK_EQ(executions(one_write, one_write, one_write, NULL), 6); /* orders of modification */
    CHECK_EQ(executions(lb0, lb1, NULL, NULL), 3);
    /* two fences are in one order or the other: SB's 4, less both_zero; each fence order shown by the reads but for r = (1, 1) */
    CHECK_EQ(executions(sb0_f, sb1_f, NULL, NULL), 4);
}

int main(void)
{
    CHECK_RUN(test_store_buffering);
    CHECK_RUN(test_message_passing);
    CHECK_RUN(test_release_sequence);
    CHECK_RUN(test_coherence);
    CHECK_RUN(test_many_threads);
    CHECK_RUN(test_updates);
    CHECK_RUN(test_plain_races);
    CHECK_RUN(test_counts);
    return check_done();
}
