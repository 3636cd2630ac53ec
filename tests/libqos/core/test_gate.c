/* SPDX-License-Identifier: Apache-2.0 */
#include "gate.h"

#include <pthread.h>
#include <sched.h>

#include "check.h"

#define PASSES 300000
#define VISITS 300

static struct qos_gate gate;
static uint64_t sum; /* of whoever is inside: not atomic */
static _Atomic uint32_t visits;

static void *visitor(void *arg)
{
    (void)arg;
    for (uint32_t n = 0; n < VISITS;) {
        if (!qos_gate_visit(&gate)) {
            sched_yield();
            continue;
        }
        for (int i = 0; i < 100; i++)
            sum++;
        qos_gate_visited(&gate);
        qos_add_relaxed(&visits, 1);
        n++;
    }
    return NULL;
}

/* The owner comes and goes until the visitors have had theirs. */
static void pass(void)
{
    pthread_t visitors[2];
    uint64_t passes = 0;
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&visitors[i], NULL, visitor, NULL) == 0);
    while (passes < PASSES || qos_load_relaxed(&visits) < 2 * VISITS) {
        qos_gate_enter(&gate);
        sum++;
        qos_gate_leave(&gate);
        /* one that is always inside would let nobody in */
        if (++passes % 64 == 0)
            sched_yield();
    }
    for (int i = 0; i < 2; i++)
        CHECK(pthread_join(visitors[i], NULL) == 0);
    CHECK(sum == passes + 2 * VISITS * 100);
}

static void test_one_is_inside_at_a_time(void)
{
    sum = visits = 0;
    qos_gate_init(&gate);
    pass();
    qos_gate_destroy(&gate);
}

static void test_the_same_with_fences(void)
{
    sum = visits = 0;
    qos_gate_init(&gate);
    gate.fenced = true;
    pass();
    qos_gate_destroy(&gate);
}

static void test_a_visitor_goes_away_when_the_owner_is_inside(void)
{
    qos_gate_init(&gate);
    qos_gate_enter(&gate);
    CHECK(!qos_gate_visit(&gate));
    qos_gate_leave(&gate);
    CHECK(qos_gate_visit(&gate));
    CHECK(!qos_gate_visit(&gate));
    qos_gate_visited(&gate);
    qos_gate_enter(&gate);
    qos_gate_leave(&gate);
    qos_gate_destroy(&gate);
}

int main(void)
{
    CHECK_RUN(test_one_is_inside_at_a_time);
    CHECK_RUN(test_the_same_with_fences);
    CHECK_RUN(test_a_visitor_goes_away_when_the_owner_is_inside);
    return check_done();
}
