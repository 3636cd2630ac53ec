/* SPDX-License-Identifier: Apache-2.0 */
#include "rt.h"

#include <errno.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

_Static_assert(QOS_RT_CPU_MAX <= CPU_SETSIZE, "a cpu_set_t holds every CPU that is accepted");

/* In the order of enum qos_rt_class. */
static const int policies[] = {SCHED_OTHER, SCHED_BATCH, SCHED_IDLE, SCHED_FIFO, SCHED_RR};
#define POLICIES (sizeof(policies) / sizeof(policies[0]))

int qos_rt_set_scheduler(enum qos_rt_class class_, int priority)
{
    if ((unsigned int)class_ >= POLICIES)
        return -EINVAL;
    struct sched_param param = {.sched_priority = priority};
    return sched_setscheduler(0, policies[class_], &param) == 0 ? 0 : -errno;
}

int qos_rt_get_scheduler(enum qos_rt_class *class_, int *priority)
{
    struct sched_param param;
    int policy = sched_getscheduler(0);
    if (policy < 0 || sched_getparam(0, &param) != 0)
        return -errno;
    policy &= ~SCHED_RESET_ON_FORK;
    for (unsigned int i = 0; i < POLICIES; i++) {
        if (policies[i] == policy) {
            *class_ = (enum qos_rt_class)i;
            *priority = param.sched_priority;
            return 0;
        }
    }
    return -ENOTSUP; /* SCHED_DEADLINE, set by somebody else */
}

int qos_rt_set_affinity(const uint32_t *cpus, size_t count)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    for (size_t i = 0; i < count; i++) {
        if (cpus[i] >= QOS_RT_CPU_MAX)
            return -EINVAL;
        CPU_SET(cpus[i], &set);
    }
    return sched_setaffinity(0, sizeof(set), &set) == 0 ? 0 : -errno;
}

int qos_rt_get_affinity(uint32_t *cpus, size_t room)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) != 0)
        return -errno;
    size_t found = 0;
    for (uint32_t cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &set))
            continue;
        if (found < room)
            cpus[found] = cpu;
        found++;
    }
    return (int)found;
}

static bool has_capability(unsigned int capability)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {{0}};
    if (syscall(SYS_capget, &header, data) != 0)
        return false;
    return (data[CAP_TO_INDEX(capability)].effective & CAP_TO_MASK(capability)) != 0;
}

int qos_rt_lock_memory(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0)
        return -errno;
    if (limit.rlim_cur != RLIM_INFINITY && !has_capability(CAP_IPC_LOCK))
        return -EPERM;
    return mlockall(MCL_CURRENT | MCL_FUTURE) == 0 ? 0 : -errno;
}

int qos_rt_unlock_memory(void)
{
    return munlockall() == 0 ? 0 : -errno;
}

int qos_rt_set_name(const char *name)
{
    if (strlen(name) > QOS_RT_NAME_MAX)
        return -ENAMETOOLONG;
    return prctl(PR_SET_NAME, name, 0, 0, 0) == 0 ? 0 : -errno;
}

int qos_rt_set_timer_slack(uint64_t slack_ns)
{
    if (slack_ns == 0) /* the kernel would take it as "the default again" */
        return -EINVAL;
    return prctl(PR_SET_TIMERSLACK, slack_ns, 0, 0, 0) == 0 ? 0 : -errno;
}

/* sched_setattr(2), which the C library does not have. */
struct scheduling {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

int qos_rt_set_slice(uint64_t slice_ns)
{
    struct scheduling s = {.size = sizeof s};
    if (slice_ns < QOS_RT_SLICE_MIN_NS || slice_ns > QOS_RT_SLICE_MAX_NS)
        return -EINVAL;
    if (syscall(SYS_sched_getattr, 0, &s, sizeof s, 0) != 0)
        return -errno;
    if (s.policy != SCHED_OTHER && s.policy != SCHED_BATCH)
        return -EINVAL;
    s.runtime = slice_ns;
    return syscall(SYS_sched_setattr, 0, &s, 0) == 0 ? 0 : -errno;
}

struct remedy {
    enum qos_rt_request request;
    int error;
    const char *text;
};

static const struct remedy remedies[] = {
    {QOS_RT_SCHEDULER, EPERM,
     "not allowed to use a real-time priority: run with CAP_SYS_NICE (systemd: AmbientCapabilities=CAP_SYS_NICE), or "
     "raise "
     "the limit (systemd: LimitRTPRIO=99; a login: 'rtprio 99' in /etc/security/limits.conf); if it is root that is "
     "refused, "
     "the control group has no real-time time (cpu.rt_runtime_us)"},
    {QOS_RT_SCHEDULER, EINVAL, "no such scheduling class and priority: fifo and rr take 1 to 99, the others 0"},
    {QOS_RT_AFFINITY, EINVAL,
     "none of these CPUs exists and is allowed here: see 'nproc --all' and Cpus_allowed_list in /proc/self/status"},
    {QOS_RT_AFFINITY, EPERM,
     "not allowed to choose CPUs: run with CAP_SYS_NICE, or permit sched_setaffinity in the sandbox"},
    {QOS_RT_MEMORY, EPERM,
     "not allowed to lock memory: run with CAP_IPC_LOCK, or lift the limit (systemd: LimitMEMLOCK=infinity; a login: "
     "'memlock unlimited' in /etc/security/limits.conf)"},
    {QOS_RT_MEMORY, ENOMEM, "too little memory to lock all of the process: free some, or make its pools smaller"},
    {QOS_RT_MEMORY, EAGAIN, "too little memory to lock all of the process: free some, or make its pools smaller"},
    {QOS_RT_NAME, ENAMETOOLONG, "a thread's name has at most 15 bytes"},
    {QOS_RT_TIMER_SLACK, EINVAL, "the timer slack is 1 ns or more"},
    {QOS_RT_SLICE, EINVAL, "a slice is 100 us to 100 ms, of a thread of a fair class"},
};

const char *qos_rt_explain(enum qos_rt_request request, int error)
{
    if (error < 0)
        error = -error;
    if (error == 0)
        return "granted";
    for (size_t i = 0; i < sizeof(remedies) / sizeof(remedies[0]); i++)
        if (remedies[i].request == request && remedies[i].error == error)
            return remedies[i].text;
    const char *text = strerrordesc_np(error);
    return text != NULL ? text : "unknown error";
}
