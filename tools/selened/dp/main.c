/* SPDX-License-Identifier: Apache-2.0 */
/*
 * selened-dp: the datapath process of SELENE. selened starts it and gives it orders; it outlives selened while sessions are there.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "control.h"
#include "log.h"
#include "rt.h"

#define SPIN_BY_CLASS UINT32_MAX
#define SPIN_US 50 /* a few hops of a round trip; a real-time thread would keep the CPU from those it waits for: 0 */
#define PRIORITY_DEFAULT 80 /* 99 starves softirq threads and meets the kernel's 95 % throttle */

static const char usage[] =
    "usage: selened-dp --socket PATH [options]\n"
    "The datapath process of SELENE. selened starts it; there is rarely a reason to do so by hand.\n"
    "\n"
    "  --socket PATH      where selened connects (mode 0600)\n"
    "  --ready-fd N       write \"ready\" to this descriptor and close it when PATH is there\n"
    "  --sched CLASS      of the data thread: other (default), fifo, rr\n"
    "  --priority N       1 to 99 for fifo and rr (default 80)\n"
    "  --cpu N            run the data thread on this CPU only\n"
    "  --lock-memory      keep memory in RAM\n"
    "  --spin-us N        look for work this long before sleeping, while it comes that fast (default 50; fifo, rr: 0)\n"
    "  --host HEX         upper half of every id on this host, as a predecessor had it (default: random)\n"
    "  --fault SETTINGS   be a bad network on purpose: loss=0.01,delay=2ms,jitter=1ms,reorder=0.05,duplicate=0.01,\n"
    "                     corrupt=0.001,seed=7,direction=both; each may be left out\n"
    "  --idle-exit-s N    end after so long without controller and sessions (default 10)\n"
    "  --log-level LEVEL  what is logged: debug, info (default), warning, error\n"
    "  --log-format WHAT  text (default) for a person, json for a machine\n"
    "  --version, --help\n";

struct options {
    const char *socket;
    int ready_fd;
    bool lock_memory;
    uint32_t idle_exit_s;
    uint32_t host;
    const char *log_level;
    bool log_json;
    struct dp_settings settings;
};

enum {
    OPTION_SOCKET = 256,
    OPTION_READY,
    OPTION_SCHED,
    OPTION_PRIORITY,
    OPTION_CPU,
    OPTION_LOCK,
    OPTION_SPIN,
    OPTION_FAULT,
    OPTION_IDLE,
    OPTION_HOST,
    OPTION_LOG_LEVEL,
    OPTION_LOG_FORMAT,
    OPTION_VERSION,
    OPTION_HELP
};

static const struct option long_options[] = {
    {"socket", required_argument, NULL, OPTION_SOCKET},
    {"ready-fd", required_argument, NULL, OPTION_READY},
    {"sched", required_argument, NULL, OPTION_SCHED},
    {"priority", required_argument, NULL, OPTION_PRIORITY},
    {"cpu", required_argument, NULL, OPTION_CPU},
    {"lock-memory", no_argument, NULL, OPTION_LOCK},
    {"spin-us", required_argument, NULL, OPTION_SPIN},
    {"fault", required_argument, NULL, OPTION_FAULT},
    {"idle-exit-s", required_argument, NULL, OPTION_IDLE},
    {"host", required_argument, NULL, OPTION_HOST},
    {"log-level", required_argument, NULL, OPTION_LOG_LEVEL},
    {"log-format", required_argument, NULL, OPTION_LOG_FORMAT},
    {"version", no_argument, NULL, OPTION_VERSION},
    {"help", no_argument, NULL, OPTION_HELP},
    {NULL, 0, NULL, 0},
};

/* A number from `low` to `high`, or the end of the process. */
static int number(const char *option, const char *text, long low, long high)
{
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value < low || value > high) {
        dp_log("error", "--%s %s: a number from %ld to %ld is expected", option, text, low, high);
        exit(2);
    }
    return (int)value;
}

static uint32_t host_id(const char *text)
{
    char *end;
    errno = 0;
    unsigned long value = strtoul(text, &end, 16);
    if (errno != 0 || end == text || *end != '\0' || value == 0 || value > UINT32_MAX) {
        dp_log("error", "--host %s: 1 to ffffffff in hexadecimal is expected", text);
        exit(2);
    }
    return (uint32_t)value;
}

static int sched_class(const char *text)
{
    static const char *const names[] = {"other", "fifo", "rr"};
    static const int classes[] = {QOS_RT_OTHER, QOS_RT_FIFO, QOS_RT_RR};
    for (unsigned i = 0; i < 3; i++)
        if (strcmp(text, names[i]) == 0)
            return classes[i];
    dp_log("error", "--sched %s: other, fifo or rr is expected", text);
    exit(2);
}

static void faults(const char *text, struct dp_settings *settings)
{
    char problem[SELENE_MAX_TEXT];
    if (qos_fault_parse(&settings->fault, text, problem, sizeof problem) < 0) {
        dp_log("error", "--fault %s: %s", text, problem);
        exit(2);
    }
    settings->faulty = true;
    dp_log("warning", "fault injection: datagrams of relayed sessions meet %s", text);
}

static void parse(int argc, char **argv, struct options *o)
{
    *o = (struct options){.ready_fd = -1,
                          .idle_exit_s = 10,
                          .log_level = "info",
                          .settings = {.class_ = QOS_RT_OTHER, .cpu = -1, .spin_us = SPIN_BY_CLASS}};
    for (int c; (c = getopt_long(argc, argv, "", long_options, NULL)) != -1;)
        switch (c) {
        case OPTION_SOCKET:
            o->socket = optarg;
            break;
        case OPTION_READY:
            o->ready_fd = number("ready-fd", optarg, 0, 1 << 20);
            break;
        case OPTION_SCHED:
            o->settings.class_ = sched_class(optarg);
            break;
        case OPTION_PRIORITY:
            o->settings.priority = number("priority", optarg, 1, 99);
            break;
        case OPTION_CPU:
            o->settings.cpu = number("cpu", optarg, 0, QOS_RT_CPU_MAX - 1);
            break;
        case OPTION_LOCK:
            o->lock_memory = true;
            break;
        case OPTION_SPIN:
            o->settings.spin_us = (uint32_t)number("spin-us", optarg, 0, 1000000);
            break;
        case OPTION_FAULT:
            faults(optarg, &o->settings);
            break;
        case OPTION_IDLE:
            o->idle_exit_s = (uint32_t)number("idle-exit-s", optarg, 0, 1000000);
            break;
        case OPTION_HOST:
            o->host = host_id(optarg);
            break;
        case OPTION_LOG_LEVEL:
            o->log_level = optarg;
            break;
        case OPTION_LOG_FORMAT:
            o->log_json = strcmp(optarg, "json") == 0;
            if (!o->log_json && strcmp(optarg, "text") != 0) {
                dp_log("error", "--log-format %s: text or json is expected", optarg);
                exit(2);
            }
            break;
        case OPTION_VERSION:
            printf("selened-dp %s\n", QOS_VERSION);
            exit(0);
        case OPTION_HELP:
            fputs(usage, stdout);
            exit(0);
        default:
            fputs(usage, stderr);
            exit(2);
        }
    if (dp_log_set(o->log_level, o->log_json) < 0) {
        (void)dp_log_set("info", o->log_json);
        dp_log("error", "--log-level %s: debug, info, warning or error is expected", o->log_level);
        exit(2);
    }
    if (o->socket == NULL || optind != argc) {
        fputs(usage, stderr);
        exit(2);
    }
    bool fair = o->settings.class_ == QOS_RT_OTHER;
    if (fair && o->settings.priority != 0) {
        dp_log("error", "--priority is for --sched fifo and rr");
        exit(2);
    }
    if (o->settings.spin_us == SPIN_BY_CLASS)
        o->settings.spin_us = fair ? SPIN_US : 0;
    if (!fair && o->settings.priority == 0)
        o->settings.priority = PRIORITY_DEFAULT;
    if (o->settings.priority == 99)
        dp_log("warning", "priority 99 starves the kernel's own threads; 80 or less is advised");
}

/* Whoever starts selened again may open the same log file: without this each would write over the other's lines. */
static void append_to_log(void)
{
    int flags = fcntl(STDERR_FILENO, F_GETFL);
    if (flags >= 0)
        (void)fcntl(STDERR_FILENO, F_SETFL, flags | O_APPEND);
}

static int block_signals(void)
{
    sigset_t all, ends;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    return signalfd(-1, &ends, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* Four descriptors per session, and one each for whoever is at the door. */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
            dp_log("warning", "limit on open files not raised: %s", strerror(errno));
    }
}

static void tell_ready(int fd)
{
    static const char text[] = "ready\n";
    if (fd < 0)
        return;
    if (write(fd, text, sizeof text - 1) < 0)
        dp_log("warning", "--ready-fd %d: %s", fd, strerror(errno));
    close(fd);
}

int main(int argc, char **argv)
{
    /* large, and touched all the time: neither belongs on a stack */
    static struct dp_data data;
    static struct dp_control control;
    struct options options;
    append_to_log();
    parse(argc, argv, &options);
    int signal_fd = block_signals();
    if (signal_fd < 0) {
        dp_log("error", "signalfd: %s", strerror(errno));
        return 1;
    }
    raise_descriptor_limit();
    int rc = dp_data_start(&data, &options.settings);
    if (rc < 0) {
        dp_log("error", "data thread: %s", strerror(-rc));
        return 1;
    }
    /* Before the pools' address range is reserved: that one is pinned where it is used. */
    if (options.lock_memory) {
        control.memory.locked = mlockall(MCL_CURRENT) == 0;
        if (!control.memory.locked)
            dp_log("warning", "memory not locked: %s", qos_rt_explain(QOS_RT_MEMORY, errno));
    }
    control.data = &data;
    control.path = options.socket;
    control.idle_exit_s = options.idle_exit_s;
    control.host = options.host;
    if (dp_control_open(&control, signal_fd) < 0) {
        dp_data_stop(&data);
        return 1;
    }
    tell_ready(options.ready_fd);
    dp_control_run(&control);
    dp_control_close(&control);
    dp_data_stop(&data);
    dp_log("info", "ended");
    return 0;
}
