/* SPDX-License-Identifier: Apache-2.0 */
#include "data.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "fsck.h"
#include "log.h"
#include "relay.h"
#include "rt.h"
#include "wake.h"

#define STACK_BYTES (256 * 1024)
#define COMMANDS 16
#define EVENTS 64
#define SLICE_NS 200000u
#define ROUNDS 8u /* of spinning, with a look at the socket itself, until epoll is asked for what else there is */

static void ring_eventfd(int fd)
{
    uint64_t one = 1;
    if (write(fd, &one, sizeof one) < 0)
        return; /* only when its count is at the limit: then it is readable */
}

static void clear_eventfd(int fd)
{
    uint64_t count;
    if (read(fd, &count, sizeof count) < 0)
        return; /* nothing to clear */
}

void dp_cut_off(struct dp_data *d, struct dp_session *s, int error, const char *text)
{
    if (s->dead)
        return;
    s->dead = true;
    s->cut_error = error;
    s->cut_text = text;
    dp_count_both(d, s, DP_VIOLATIONS, 1);
    uint64_t id = s->id;
    if (qos_ring_push(&d->notice_in, &id, 1) == 0)
        ring_eventfd(d->notice_fd);
}

uint64_t dp_data_notice(struct dp_data *d)
{
    uint64_t id = 0;
    clear_eventfd(d->notice_fd);
    return qos_ring_pop(&d->notice_out, &id, 1) == 1 ? id : 0;
}

_Static_assert(sizeof(struct selene_fault_counters) == sizeof(struct qos_fault_counters), "the same counters");

void dp_data_faults(const struct dp_data *d, struct selene_fault_counters *counters)
{
    const uint64_t *from = &d->net.faults.lost;
    uint64_t words[sizeof *counters / sizeof(uint64_t)];
    for (unsigned i = 0; i < sizeof words / sizeof *words; i++)
        words[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
    memcpy(counters, words, sizeof words);
}

static int watch(const struct dp_data *d, int fd, void *tag, uint32_t events)
{
    struct epoll_event event = {.events = events, .data = {.ptr = tag}};
    return epoll_ctl(d->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

static int add_session(struct dp_data *d, struct dp_session *s)
{
    int rc = watch(d, s->wake_fd, s, EPOLLIN | EPOLLET);
    if (rc == 0)
        dp_rxpool_join(s->pool, s);
    return rc;
}

static int remove_session(struct dp_data *d, struct dp_command *c)
{
    struct dp_session *s = c->session;
    /* a client that has ended may have left a last burst; it is sent as if it still lived */
    dp_transmit_all(d, s, true);
    if (c->violation && !s->dead)
        dp_count_both(d, s, DP_VIOLATIONS, 1);
    s->dead = true;
    epoll_ctl(d->epoll_fd, EPOLL_CTL_DEL, s->wake_fd, NULL);
    dp_wake_forget(d, s);
    dp_table_forget(&d->table, s, &c->garbage);
    dp_rxpool_leave(s->pool, s);
    return 0;
}

static int use_socket(struct dp_data *d, struct dp_command *c)
{
    int old = d->net.fd, old_wait_fd = dp_net_wait_fd(&d->net);
    if (old_wait_fd >= 0)
        epoll_ctl(d->epoll_fd, EPOLL_CTL_DEL, old_wait_fd, NULL);
    int rc = dp_net_use(&d->net, c->fd, c->family);
    if (rc == 0)
        c->fd = old;
    /* by its level: to find it empty by receiving would cost a call for each datagram */
    int watched = watch(d, dp_net_wait_fd(&d->net), &d->net, EPOLLIN);
    return rc < 0 ? rc : watched;
}

static void run_command(struct dp_data *d, struct dp_command *c)
{
    switch (c->request) {
    case DP_ADD_SESSION:
        c->result = add_session(d, c->session);
        break;
    case DP_REMOVE_SESSION:
        c->result = remove_session(d, c);
        break;
    case DP_SET_ROUTE:
        /* what was pushed before the change leaves by the old route */
        dp_transmit_all(d, c->route->owner, false);
        c->result = dp_table_set_route(&d->table, c->route, &c->garbage);
        break;
    case DP_SET_ACCEPT:
        c->result = dp_table_set_accept(&d->table, c->accept, &c->garbage);
        break;
    case DP_LISTEN:
        c->result = use_socket(d, c);
        break;
    case DP_FSCK:
        /* nobody wakes us for what is given back */
        for (struct dp_session *s = c->pool->sessions; s != NULL; s = s->pool_next)
            if (!s->dead)
                dp_release(d, s);
        dp_fsck_rxpool(c->pool, c->row);
        c->result = 0;
        break;
    case DP_STOP:
        d->stop = true;
        c->result = 0;
        break;
    }
    sem_post(&c->done);
}

static void run_commands(struct dp_data *d)
{
    uint64_t word = 0;
    clear_eventfd(d->command_fd);
    d->commanded = false;
    while (qos_ring_pop(&d->command_out, &word, 1) == 1)
        run_command(d, (struct dp_command *)(uintptr_t)word);
}

static bool serve(struct dp_data *d, struct dp_session *s)
{
    if (s->dead)
        return false;
    uint32_t n = dp_release(d, s);
    if (!s->dead)
        n += dp_transmit(d, s);
    if (n > 0)
        s->empty_wakeups = 0;
    else if (s->rung && !s->dead)
        dp_wake_empty(d, s);
    s->rung = false;
    return n > 0;
}

static void take_events(struct dp_data *d, const struct epoll_event *events, int n)
{
    for (int i = 0; i < n; i++) {
        void *tag = events[i].data.ptr;
        if (tag == &d->net) {
            d->readable = true;
        } else if (tag == &d->command_fd) {
            d->commanded = true;
        } else if (tag == &d->timer_fd) {
            dp_wake_due(d);
        } else {
            struct dp_session *s = tag;
            s->rung = true;
            dp_count_both(d, s, DP_WAKEUPS, 1);
            dp_wake_activate(d, s);
        }
    }
}

static void apply_settings(const struct dp_settings *settings)
{
    qos_rt_set_name("selened-dp/data");
    if (settings->cpu >= 0) {
        uint32_t cpu = (uint32_t)settings->cpu;
        int rc = qos_rt_set_affinity(&cpu, 1);
        if (rc < 0)
            dp_log("warning", "not bound to CPU %u: %s", cpu, qos_rt_explain(QOS_RT_AFFINITY, rc));
    }
    if (settings->class_ == QOS_RT_OTHER) {
        /* datagrams wait for it: let in at once where all processors are busy. A kernel that cannot goes on as it is. */
        (void)qos_rt_set_slice(SLICE_NS);
    } else {
        int rc = qos_rt_set_scheduler((enum qos_rt_class)settings->class_, settings->priority);
        if (rc < 0)
            dp_log("warning", "no real-time priority: %s", qos_rt_explain(QOS_RT_SCHEDULER, rc));
    }
}

/* Find out what there is to do; sleep until there is something. */
static void look(struct dp_data *d)
{
    int timeout = dp_wake_prepare(d);
    if (d->spinning && ++d->rounds < ROUNDS) {
        d->readable = d->net.fd >= 0;
        return;
    }
    struct epoll_event events[EVENTS];
    /* without a cancellation point */
    long n = syscall(SYS_epoll_pwait, d->epoll_fd, events, EVENTS, timeout, NULL, 0);
    d->rounds = 0;
    take_events(d, events, n < 0 ? 0 : (int)n);
}

void dp_data_round(struct dp_data *d)
{
    look(d);
    if (d->commanded)
        run_commands(d);
    bool worked = d->readable && dp_receive(d);
    for (uint32_t i = 0; i < d->active_count; i++)
        worked |= serve(d, d->active[i]);
    dp_wake_flush(d);
    if (worked && d->settings.spin_us > 0)
        dp_wake_worked(d);
}

static void *data_main(void *arg)
{
    struct dp_data *d = arg;
    apply_settings(&d->settings);
    while (!d->stop)
        dp_data_round(d);
    return NULL;
}

static int open_rings(struct dp_data *d)
{
    d->command_mem = aligned_alloc(QOS_CACHE_LINE, qos_ring_size(COMMANDS));
    d->notice_mem = aligned_alloc(QOS_CACHE_LINE, qos_ring_size(DP_NOTICES));
    if (d->command_mem == NULL || d->notice_mem == NULL)
        return -ENOMEM;
    int rc = qos_ring_init(d->command_mem, COMMANDS);
    if (rc == 0)
        rc = qos_ring_init(d->notice_mem, DP_NOTICES);
    if (rc == 0)
        rc = qos_ring_producer_open(&d->command_in, d->command_mem, COMMANDS);
    if (rc == 0)
        rc = qos_ring_consumer_open(&d->command_out, d->command_mem, COMMANDS);
    if (rc == 0)
        rc = qos_ring_producer_open(&d->notice_in, d->notice_mem, DP_NOTICES);
    if (rc == 0)
        rc = qos_ring_consumer_open(&d->notice_out, d->notice_mem, DP_NOTICES);
    return rc;
}

int dp_data_start(struct dp_data *d, const struct dp_settings *settings)
{
    d->settings = *settings;
    int rc = open_rings(d);
    if (rc == 0)
        rc = dp_net_init(&d->net, settings->faulty ? &d->settings.fault : NULL);
    if (rc < 0)
        return rc;
    d->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    d->command_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    d->notice_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    d->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (d->epoll_fd < 0 || d->command_fd < 0 || d->notice_fd < 0 || d->timer_fd < 0)
        return -errno;
    rc = watch(d, d->command_fd, &d->command_fd, EPOLLIN | EPOLLET);
    if (rc == 0)
        rc = watch(d, d->timer_fd, &d->timer_fd, EPOLLIN | EPOLLET);
    if (rc < 0)
        return rc;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    rc = -pthread_create(&d->thread, &attributes, data_main, d);
    pthread_attr_destroy(&attributes);
    return rc;
}

int dp_data_call(struct dp_data *d, struct dp_command *c)
{
    c->garbage = (struct dp_garbage){0};
    sem_init(&c->done, 0, 0);
    uint64_t word = (uintptr_t)c;
    /* one at a time, so there is room */
    int rc = qos_ring_push(&d->command_in, &word, 1);
    if (rc == 0) {
        ring_eventfd(d->command_fd);
        while (sem_wait(&c->done) < 0)
            continue;
        rc = c->result;
    }
    sem_destroy(&c->done);
    dp_garbage_free(&c->garbage);
    return rc;
}

void dp_data_stop(struct dp_data *d)
{
    struct dp_command stop = {.request = DP_STOP};
    dp_data_call(d, &stop);
    pthread_join(d->thread, NULL);
    dp_net_free(&d->net);
    close(d->epoll_fd);
    close(d->command_fd);
    close(d->notice_fd);
    close(d->timer_fd);
    free(d->command_mem);
    free(d->notice_mem);
}
