/* SPDX-License-Identifier: Apache-2.0 */
#include "wake.h"

#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "clock.h"
#include "wait.h"

#define DEFER_NS 1000000u     /* an outcome is known to a sleeping client this late at most */
#define DEFER_BURST 32u       /* so many outcomes are worth a wake-up of their own */
#define BACKOFF_MAX_MS 64     /* between looks at a client that leaves its DONE ring full */
#define YIELD_LONG_NS 200000u /* who got the processor keeps it: a sleeper would have been given it back at once */
#define NO_SPIN_NS 1000000u   /* then not again for so long, twice as long each time in a row */
#define STRIKES_MAX 10u
#define YIELD_SHORT_RUN 256u /* short ones end the row */
#define FLOOD_WAKEUPS 50000u /* without a message within FLOOD_NS */
#define FLOOD_NS 1000000000u

/* The client's word is read once; whatever it holds, the worst is a needless wake-up. */
static uint32_t waiting(const struct dp_session *s)
{
    return __atomic_load_n(&s->page->waiting, __ATOMIC_RELAXED);
}

static void set_sleeping(struct dp_session *s, uint32_t value)
{
    __atomic_store_n(&s->page->dp_sleeping, value, __ATOMIC_RELAXED);
}

static void wake(struct dp_session *s)
{
    uint32_t how = waiting(s);
    if (how == SELENE_WAIT_FUTEX) {
        /* the word changes first, so that this cannot come between the client's last look and its sleep */
        _Atomic uint32_t *word = (_Atomic uint32_t *)(void *)&s->page->waiting;
        if (qos_cas_acq_rel(word, &how, SELENE_AWAKE))
            qos_futex_wake(word, INT_MAX);
    } else if (how == SELENE_WAIT_FD) {
        /* a full socket is readable already */
        if (send(s->doorbell, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
            return;
    }
}

void dp_wake_later(struct dp_data *d, struct dp_session *s)
{
    if (s->to_wake)
        return;
    s->to_wake = true;
    d->wake[d->wake_count++] = s;
}

static void drop_deferred(struct dp_data *d, struct dp_session *s)
{
    s->done_unsignalled = 0;
    if (!s->deferred)
        return;
    s->deferred = false;
    for (uint32_t i = 0; i < d->deferred_count; i++)
        if (d->deferred[i] == s) {
            d->deferred[i] = d->deferred[--d->deferred_count];
            break;
        }
}

static void set_timer(struct dp_data *d)
{
    struct itimerspec due = {.it_value = {.tv_nsec = DEFER_NS}};
    d->timer_set = timerfd_settime(d->timer_fd, 0, &due, NULL) == 0;
}

void dp_wake_due(struct dp_data *d)
{
    uint64_t expired;
    d->timer_set = false;
    if (read(d->timer_fd, &expired, sizeof expired) < 0)
        return;
    while (d->deferred_count > 0) {
        struct dp_session *s = d->deferred[d->deferred_count - 1];
        drop_deferred(d, s);
        /* unless it has taken them in the meantime */
        if (qos_load_relaxed(&s->ring_done.ring->head) != s->ring_done.tail)
            dp_wake_later(d, s);
    }
}

void dp_wake_activate(struct dp_data *d, struct dp_session *s)
{
    if (s->active || s->dead)
        return;
    s->active = true;
    set_sleeping(s, 0);
    d->active[d->active_count++] = s;
}

void dp_wake_flush(struct dp_data *d)
{
    if (d->wake_count == 0)
        return;
    /* seq_cst: pairs with the client's fence between its `waiting` and its last look at the rings */
    qos_fence_seq_cst();
    for (uint32_t i = 0; i < d->wake_count; i++) {
        struct dp_session *s = d->wake[i];
        s->to_wake = false;
        drop_deferred(d, s);
        if (s->dead)
            continue;
        /* we are going to look for its answer: it need not ring */
        if (d->brisk)
            dp_wake_activate(d, s);
        wake(s);
    }
    d->wake_count = 0;
}

void dp_wake_done(struct dp_data *d, struct dp_session *s, uint32_t n)
{
    s->done_unsignalled += n;
    if (s->to_wake)
        return;
    if (s->done_unsignalled >= DEFER_BURST) {
        dp_wake_later(d, s);
        return;
    }
    if (s->deferred)
        return;
    /* seq_cst: as in dp_wake_flush */
    qos_fence_seq_cst();
    if (waiting(s) == SELENE_AWAKE) {
        s->done_unsignalled = 0;
        return;
    }
    s->deferred = true;
    /* The timer is never cancelled: to set it costs more than a wake-up, and in most rounds something else comes first. */
    if (!d->timer_set)
        set_timer(d);
    d->deferred[d->deferred_count++] = s;
}

void dp_wake_forget(struct dp_data *d, struct dp_session *s)
{
    for (uint32_t i = 0; i < d->active_count; i++)
        if (d->active[i] == s)
            d->active[i--] = d->active[--d->active_count];
    for (uint32_t i = 0; i < d->wake_count; i++)
        if (d->wake[i] == s)
            d->wake[i--] = d->wake[--d->wake_count];
    drop_deferred(d, s);
    s->active = s->to_wake = false;
}

/* Is there anything in the rings that the client fills? A violation counts as something: whoever serves it finds it. */
static bool has_work(struct dp_session *s)
{
    if (s->dead)
        return false;
    return (!s->blocked && qos_ring_peek(&s->ring_tx) != 0) || qos_ring_peek(&s->ring_release) != 0;
}

static bool any_work(struct dp_data *d)
{
    for (uint32_t i = 0; i < d->active_count; i++)
        if (has_work(d->active[i]))
            return true;
    return false;
}

/* Tell the active sessions that nobody looks any more, and look once more. False if there was something. */
static bool retire(struct dp_data *d)
{
    for (uint32_t i = 0; i < d->active_count; i++)
        set_sleeping(d->active[i], 1);
    /* seq_cst: pairs with the client's fence between its push and its look at dp_sleeping */
    qos_fence_seq_cst();
    if (any_work(d)) {
        for (uint32_t i = 0; i < d->active_count; i++)
            set_sleeping(d->active[i], 0);
        return false;
    }
    uint32_t kept = 0;
    for (uint32_t i = 0; i < d->active_count; i++) {
        struct dp_session *s = d->active[i];
        /* nobody rings for a DONE ring that has room again, so these are looked at by the clock */
        if (s->blocked && !s->dead)
            d->active[kept++] = s;
        else
            s->active = false;
    }
    d->active_count = kept;
    return true;
}

void dp_wake_worked(struct dp_data *d)
{
    uint64_t now = qos_clock_monotonic_ns();
    /* only for answers that come at once: something every millisecond is not worth a busy processor */
    d->brisk = now - d->last_work_ns < d->settings.spin_us * (uint64_t)1000;
    d->last_work_ns = now;
}

/* Nothing to do: wait a little, giving the processor to whoever may be about to have something for us. False: sleep. */
static bool spin(struct dp_data *d)
{
    uint64_t now = qos_clock_monotonic_ns();
    if (now - d->last_work_ns >= d->settings.spin_us * (uint64_t)1000 || now < d->no_spin_ns) {
        d->brisk = false;
        return false;
    }
    sched_yield();
    uint64_t after = qos_clock_monotonic_ns();
    if (after - now > YIELD_LONG_NS) {
        d->no_spin_ns = after + ((uint64_t)NO_SPIN_NS << d->yield_strikes);
        d->yield_strikes += d->yield_strikes < STRIKES_MAX;
        d->yields_short = 0;
    } else if (++d->yields_short == YIELD_SHORT_RUN) {
        d->yield_strikes = d->yields_short = 0;
    }
    return true;
}

int dp_wake_prepare(struct dp_data *d)
{
    d->spinning = false;
    if (d->readable || any_work(d)) {
        d->backoff_ms = 0;
        return 0;
    }
    if (d->brisk && spin(d)) {
        d->spinning = true;
        return 0;
    }
    if (d->active_count > 0 && !retire(d))
        return 0;
    int timeout = -1;
    if (d->active_count > 0) {
        d->backoff_ms = d->backoff_ms == 0                   ? 1
                        : d->backoff_ms * 2 < BACKOFF_MAX_MS ? d->backoff_ms * 2
                                                             : BACKOFF_MAX_MS;
        timeout = d->backoff_ms;
    }
    return timeout;
}

void dp_wake_empty(struct dp_data *d, struct dp_session *s)
{
    dp_count_both(d, s, DP_WAKEUPS_EMPTY, 1);
    if (s->empty_wakeups++ == 0)
        s->empty_since_ns = qos_clock_monotonic_ns();
    if (s->empty_wakeups < FLOOD_WAKEUPS)
        return;
    if (qos_clock_monotonic_ns() - s->empty_since_ns < FLOOD_NS)
        dp_cut_off(d, s, ECONNABORTED, "more than 50,000 wake-ups a second without a message");
    s->empty_wakeups = 0;
}
