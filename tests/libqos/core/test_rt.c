/* SPDX-License-Identifier: Apache-2.0 */
#include "rt.h"

#include <errno.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

static int explained(enum qos_rt_request request, int error)
{
    const char *text = qos_rt_explain(request, error);
    return text != NULL && strlen(text) > 5;
}

static void test_fair_classes_need_no_privilege(void)
{
    enum qos_rt_class class_;
    int priority = -1;
    CHECK_EQ(qos_rt_set_scheduler(QOS_RT_BATCH, 0), 0);
    CHECK_EQ(qos_rt_get_scheduler(&class_, &priority), 0);
    CHECK_EQ(class_, QOS_RT_BATCH);
    CHECK_EQ(priority, 0);
    CHECK_EQ(qos_rt_set_scheduler(QOS_RT_OTHER, 0), 0);
}

static void test_impossible_priorities_are_refused(void)
{
    CHECK_EQ(qos_rt_set_scheduler(QOS_RT_OTHER, 1), -EINVAL);
    CHECK_EQ(qos_rt_set_scheduler(QOS_RT_FIFO, 0), -EINVAL);
    CHECK_EQ(qos_rt_set_scheduler(QOS_RT_FIFO, 100), -EINVAL);
    CHECK_EQ(qos_rt_set_scheduler((enum qos_rt_class)77, 1), -EINVAL);
}

static void test_real_time_priority(void)
{
    enum qos_rt_class class_;
    int priority;
    int rc = qos_rt_set_scheduler(QOS_RT_FIFO, 10);
    if (rc != 0) {
        CHECK_SKIP("rt", qos_rt_explain(QOS_RT_SCHEDULER, rc));
        return;
    }
    CHECK_EQ(qos_rt_get_scheduler(&class_, &priority), 0);
    CHECK_EQ(class_, QOS_RT_FIFO);
    CHECK_EQ(priority, 10);
    CHECK_EQ(qos_rt_set_scheduler(QOS_RT_OTHER, 0), 0);
}

static void test_affinity(void)
{
    uint32_t cpus[QOS_RT_CPU_MAX];
    uint32_t one[1];
    int count = qos_rt_get_affinity(cpus, QOS_RT_CPU_MAX);
    if (!CHECK(count >= 1))
        return;
    uint32_t last = cpus[count - 1];
    CHECK_EQ(qos_rt_set_affinity(&last, 1), 0);
    CHECK_EQ(qos_rt_get_affinity(one, 1), 1);
    CHECK_EQ(one[0], last);
    CHECK_EQ(qos_rt_set_affinity(cpus, (size_t)count), 0);
    CHECK_EQ(qos_rt_get_affinity(one, 1), count);
    CHECK_EQ(one[0], cpus[0]);
}

static void test_affinity_refuses_what_does_not_exist(void)
{
    static const uint32_t beyond[] = {QOS_RT_CPU_MAX};
    CHECK_EQ(qos_rt_set_affinity(beyond, 1), -EINVAL);
    CHECK_EQ(qos_rt_set_affinity(NULL, 0), -EINVAL);
}

static void test_memory_is_locked_or_refused(void)
{
    int rc = qos_rt_lock_memory();
    CHECK(rc == 0 || rc == -EPERM || rc == -ENOMEM || rc == -EAGAIN);
    CHECK(explained(QOS_RT_MEMORY, rc));
    if (rc == 0)
        CHECK_EQ(qos_rt_unlock_memory(), 0);
}

static void lock_without_privilege(void)
{
    struct rlimit limit = {.rlim_cur = 65536, .rlim_max = 65536};
    CHECK_EQ(setrlimit(RLIMIT_MEMLOCK, &limit), 0);
    if (getuid() == 0)
        CHECK_EQ(setuid(65534), 0);
    CHECK_EQ(qos_rt_lock_memory(), -EPERM);
    /* Nothing changed: more than the limit can still be had. */
    void *memory = malloc(1 << 20);
    CHECK(memory != NULL);
    if (memory != NULL)
        memset(memory, 1, 1 << 20);
    free(memory);
}

static void test_memory_is_not_half_locked_under_a_limit(void)
{
    pid_t child = check_fork();
    if (child == 0) {
        lock_without_privilege();
        check_exit_child();
    }
    int status = -1;
    waitpid(child, &status, 0);
    CHECK_EQ(status, 0);
}

static void test_thread_name(void)
{
    char name[16] = "";
    CHECK_EQ(qos_rt_set_name("qos-test-thread"), 0);
    prctl(PR_GET_NAME, name, 0, 0, 0);
    CHECK_EQ(strcmp(name, "qos-test-thread"), 0);
    CHECK_EQ(qos_rt_set_name("sixteen-letters."), -ENAMETOOLONG);
}

static void test_slice(void)
{
    CHECK_EQ(qos_rt_set_slice(QOS_RT_SLICE_MIN_NS - 1), -EINVAL);
    CHECK_EQ(qos_rt_set_slice(QOS_RT_SLICE_MAX_NS + 1), -EINVAL);
    CHECK(explained(QOS_RT_SLICE, -EINVAL));
    CHECK_EQ(qos_rt_set_slice(QOS_RT_SLICE_MIN_NS), 0);
    uint64_t attributes[7] = {0}; /* struct sched_attr; its runtime is at byte 24 */
    if (!CHECK_EQ(syscall(SYS_sched_getattr, 0, attributes, sizeof attributes, 0), 0))
        return;
    if (attributes[3] == 0) {
        CHECK_SKIP("slice", "this kernel has slices of one length (before Linux 6.12)");
        return;
    }
    CHECK_EQ(attributes[3], QOS_RT_SLICE_MIN_NS);
}

static void test_timer_slack(void)
{
    CHECK_EQ(qos_rt_set_timer_slack(1234), 0);
    CHECK_EQ(prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0), 1234);
    CHECK_EQ(qos_rt_set_timer_slack(0), -EINVAL);
    CHECK_EQ(prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0), 1234);
}

static void test_every_refusal_is_explained(void)
{
    for (int request = QOS_RT_SCHEDULER; request <= QOS_RT_TIMER_SLACK; request++) {
        CHECK(explained((enum qos_rt_request)request, EPERM));
        CHECK(explained((enum qos_rt_request)request, -EINVAL));
        CHECK(explained((enum qos_rt_request)request, 99999));
    }
    CHECK(strstr(qos_rt_explain(QOS_RT_SCHEDULER, -EPERM), "CAP_SYS_NICE") != NULL);
    CHECK(strstr(qos_rt_explain(QOS_RT_MEMORY, EPERM), "CAP_IPC_LOCK") != NULL);
}

int main(void)
{
    CHECK_RUN(test_fair_classes_need_no_privilege);
    CHECK_RUN(test_impossible_priorities_are_refused);
    CHECK_RUN(test_real_time_priority);
    CHECK_RUN(test_affinity);
    CHECK_RUN(test_affinity_refuses_what_does_not_exist);
    CHECK_RUN(test_memory_is_locked_or_refused);
    CHECK_RUN(test_memory_is_not_half_locked_under_a_limit);
    CHECK_RUN(test_thread_name);
    CHECK_RUN(test_timer_slack);
    CHECK_RUN(test_slice);
    CHECK_RUN(test_every_refusal_is_explained);
    return check_done();
}
