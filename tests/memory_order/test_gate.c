/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libqos/core/gate.[ch]. What it keeps apart is plain memory: two inside at once are a race. With fences; membarrier(2) promises the same
 * and costs the visitor alone.
 */
#include "gate.h"

#include "model_check.h"

static struct qos_gate gate;
static uint64_t sum, passes, visits;

static void setup(void)
{
    gate = (struct qos_gate){.fenced = true, .lock = PTHREAD_MUTEX_INITIALIZER};
    sum = passes = visits = 0;
}

static void pass(void)
{
    for (int i = 0; i < 2; i++) {
        qos_gate_enter(&gate);
        sum++;
        passes++;
        qos_gate_leave(&gate);
    }
}

static void visit(void)
{
    if (!qos_gate_visit(&gate))
        return;
    sum++;
    visits++;
    qos_gate_visited(&gate);
}

static void check_sum(void)
{
    MODEL_ASSERT(passes == 2);
    MODEL_ASSERT(sum == passes + visits);
}

#define GATE_MUTANTS                                                                                                   \
    {"no fence in the owner", 0, MODEL_FENCE, NULL}, {"no fence in the visitor", 1, MODEL_FENCE, NULL},                \
        {"the owner leaves relaxed", 0, MODEL_STORE, &gate.inside},                                                    \
        {"the visitor's look relaxed", 1, MODEL_LOAD, &gate.inside},

static void test_owner_and_visitor(void)
{
    static const struct model model = {setup, {pass, visit}, check_sum};
    MODEL_CHECK(&model, GATE_MUTANTS{"the visitor leaves relaxed", 1, MODEL_STORE, &gate.wanted},
                {"the owner's look relaxed", 0, MODEL_LOAD, &gate.wanted}, );
}

static void test_two_visitors(void)
{
    static const struct model model = {setup, {pass, visit, visit}, check_sum};
    MODEL_CHECK(&model, GATE_MUTANTS);
}

int main(void)
{
    CHECK_RUN(test_owner_and_visitor);
    CHECK_RUN(test_two_visitors);
    return check_done();
}
