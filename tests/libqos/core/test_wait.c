/* SPDX-License-Identifier: Apache-2.0 */
#include "wait.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "check.h"
#include "clock.h"

#define LONG_NS 3600000000000ull /* an hour: the watchdog ends the test long before */

/*
 * These take the place of libc's and the core's for the whole program: yields are counted, and each takes as long as the
 * test says, on a clock that nothing else moves.
 */
static _Atomic uint64_t yields, yield_ns, now_ns;

int sched_yield(void)
{
    qos_add_relaxed(&yields, 1);
    qos_add_relaxed(&now_ns, qos_load_relaxed(&yield_ns));
    return (int)syscall(SYS_sched_yield);
}

uint64_t qos_clock_monotonic_ns(void)
{
    return qos_load_relaxed(&now_ns);
}

/* Restrict this thread to one of its processors; `before` is what it had. */
static int pin_to_one(cpu_set_t *before)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    if (sched_getaffinity(0, sizeof *before, before) < 0)
        return -errno;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, before)) {
            CPU_SET(cpu, &one);
            break;
        }
    }
    return sched_setaffinity(0, sizeof one, &one) < 0 ? -errno : 0;
}

static void test_processors_are_those_of_the_thread(void)
{
    cpu_set_t before;
    if (!CHECK_EQ(pin_to_one(&before), 0))
        return;
    CHECK_EQ(qos_wait_processors(), 1);
    CHECK_EQ(sched_setaffinity(0, sizeof before, &before), 0);
    CHECK_EQ(qos_wait_processors(), CPU_COUNT(&before));
}

/* Yields in so many steps, each of which takes `ns`. */
static uint64_t step(struct qos_spin *spin, uint32_t steps, uint64_t ns)
{
    qos_store_relaxed(&yield_ns, ns);
    qos_store_relaxed(&yields, 0);
    for (uint32_t i = 0; i < steps; i++)
        qos_spin_step(spin);
    return qos_load_relaxed(&yields);
}

static void test_a_spinner_with_one_processor_yields_at_every_look(void)
{
    struct qos_spin spin = qos_spin_new(1);
    CHECK_EQ(step(&spin, 10, QOS_YIELD_LONG_NS + 1), 10);
    qos_spin_start(&spin);
    CHECK_EQ(step(&spin, 10000, QOS_YIELD_LONG_NS + 1), 10000);
}

static void test_a_spinner_that_is_alone_yields_now_and_then(void)
{
    struct qos_spin spin = qos_spin_new(2);
    CHECK_EQ(step(&spin, QOS_SPIN_LOOKS - 1, QOS_YIELD_LONG_NS), 0);
    CHECK_EQ(step(&spin, 1, QOS_YIELD_LONG_NS), 1);
    CHECK_EQ(step(&spin, QOS_SPIN_LOOKS - 1, QOS_YIELD_LONG_NS), 0);
    /* a find starts it anew */
    qos_spin_start(&spin);
    CHECK_EQ(step(&spin, QOS_SPIN_LOOKS - 1, QOS_YIELD_LONG_NS), 0);
    CHECK_EQ(step(&spin, 9 * QOS_SPIN_LOOKS, QOS_YIELD_LONG_NS), 9);
}

static void test_a_long_yield_tells_that_the_processor_is_shared(void)
{
    struct qos_spin spin = qos_spin_new(2);
    CHECK_EQ(step(&spin, QOS_SPIN_LOOKS, QOS_YIELD_LONG_NS + 1), 1);
    CHECK_EQ(step(&spin, 10, QOS_YIELD_LONG_NS + 1), 10);
    /* and stays known for the next wait */
    qos_spin_start(&spin);
    CHECK_EQ(step(&spin, 10, QOS_YIELD_LONG_NS + 1), 10);
}

static void test_many_short_yields_tell_that_it_no_longer_is(void)
{
    struct qos_spin spin = qos_spin_new(1);
    CHECK_EQ(step(&spin, QOS_YIELD_SHORT_RUN - 1, 0), QOS_YIELD_SHORT_RUN - 1);
    CHECK_EQ(step(&spin, 1, QOS_YIELD_LONG_NS + 1), 1); /* in a row */
    CHECK_EQ(step(&spin, QOS_YIELD_SHORT_RUN, 0), QOS_YIELD_SHORT_RUN);
    CHECK_EQ(step(&spin, 100, 0), 0);
}

/* Waits until the next yield is tried. */
static uint32_t waits(struct qos_courtesy *c)
{
    uint32_t n = 0;
    while (!qos_courtesy_due(c))
        n++;
    return n;
}

static void test_a_yield_that_pays_is_done_again_and_one_in_vain_ever_less(void)
{
    struct qos_courtesy c = {0};
    CHECK_EQ(waits(&c), 0);
    qos_courtesy_learn(&c, true, 1000);
    CHECK_EQ(waits(&c), 0);
    uint32_t before = 0;
    for (int i = 0; i < 20; i++) {
        qos_courtesy_learn(&c, false, 1000);
        uint32_t n = waits(&c);
        CHECK(n > before || (n == before && n >= QOS_COURTESY_BACKOFF));
        before = n;
    }
    qos_courtesy_learn(&c, true, 1000);
    CHECK_EQ(waits(&c), 0);
    /* somebody else had the processor for long: it pays no more than to sleep */
    qos_courtesy_learn(&c, true, QOS_COURTESY_MAX_NS);
    CHECK_EQ(waits(&c), 1);
}

/* ---- Two spinners on one processor: each turn needs the other to be given the processor. ---- */

#define TURNS 20000u

static _Atomic uint32_t turn;

static void take_turns(uint32_t mine)
{
    struct qos_spin spin = qos_spin_new(qos_wait_processors());
    for (uint32_t t = mine; t < TURNS; t += 2) {
        qos_spin_start(&spin);
        while (qos_load_acquire(&turn) != t)
            qos_spin_step(&spin);
        qos_store_release(&turn, t + 1);
    }
}

static void *odd_turns(void *unused)
{
    take_turns(1);
    return unused;
}

static void test_two_spinners_share_a_processor(void)
{
    cpu_set_t before;
    pthread_t thread;
    qos_store_relaxed(&yield_ns, QOS_YIELD_LONG_NS + 1);
    if (!CHECK_EQ(pin_to_one(&before), 0))
        return;
    if (CHECK_EQ(pthread_create(&thread, NULL, odd_turns, NULL), 0)) { /* it inherits the one processor */
        take_turns(0);
        pthread_join(thread, NULL);
    }
    CHECK_EQ(qos_load_relaxed(&turn), TURNS);
    CHECK_EQ(sched_setaffinity(0, sizeof before, &before), 0);
}

/* ---- Futexes ---- */

static void test_a_wait_ends_at_its_time_out(void)
{
    _Atomic uint32_t word = 7;
    CHECK_EQ(qos_futex_wait(&word, 7, 1000000), -ETIMEDOUT);
    CHECK_EQ(qos_futex_wait(&word, 7, 0), -ETIMEDOUT);
}

static void test_a_wait_for_what_has_happened_does_not_sleep(void)
{
    _Atomic uint32_t word = 7;
    CHECK_EQ(qos_futex_wait(&word, 8, LONG_NS), -EAGAIN);
}

static void test_a_wake_without_sleepers_wakes_nobody(void)
{
    _Atomic uint32_t word = 7;
    CHECK_EQ(qos_futex_wake(&word, 1), 0);
    CHECK_EQ(qos_futex_wake(&word, 100), 0);
}

static void on_signal(int number)
{
    (void)number;
}

static void test_a_signal_interrupts_a_wait(void)
{
    /* It fires again and again, so one comes after the wait has begun. */
    struct sigaction action = {.sa_handler = on_signal}, old;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    struct itimerspec every = {{0, 1000000}, {0, 1000000}};
    _Atomic uint32_t word = 7;
    timer_t timer;
    CHECK_EQ(sigaction(SIGUSR1, &action, &old), 0);
    if (!CHECK_EQ(timer_create(CLOCK_MONOTONIC, &event, &timer), 0))
        return;
    CHECK_EQ(timer_settime(timer, 0, &every, NULL), 0);
    CHECK_EQ(qos_futex_wait(&word, 7, LONG_NS), -EINTR);
    timer_delete(timer);
    CHECK_EQ(sigaction(SIGUSR1, &old, NULL), 0);
}

/* Wake until `count` sleepers were woken. */
static void wake_all(const _Atomic uint32_t *word, int count)
{
    while (count > 0) {
        int woken = qos_futex_wake(word, count);
        if (!CHECK(woken >= 0))
            return;
        count -= woken;
        (void)sched_yield();
    }
}

static void test_sleepers_in_other_processes_are_woken(void)
{
    enum { SLEEPERS = 3 };
    int fd = memfd_create("test-wait", MFD_CLOEXEC);
    if (!CHECK(fd >= 0) || !CHECK_EQ(ftruncate(fd, 4096), 0))
        return;
    _Atomic uint32_t *word = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    const _Atomic uint32_t *seen = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    if (!CHECK(word != MAP_FAILED && seen != MAP_FAILED))
        return;
    pid_t children[SLEEPERS];
    for (int i = 0; i < SLEEPERS; i++) {
        children[i] = check_fork();
        if (children[i] == 0) {
            /* by a mapping that it may not write, as a sink sleeps on its producer's bell */
            CHECK_EQ(qos_futex_wait(seen, 0, LONG_NS), 0);
            check_exit_child();
        }
    }
    wake_all(word, SLEEPERS);
    for (int i = 0; i < SLEEPERS; i++) {
        int status = -1;
        waitpid(children[i], &status, 0);
        CHECK_EQ(status, 0);
    }
    munmap((void *)(uintptr_t)seen, 4096);
    munmap(word, 4096);
    close(fd);
}

static void test_one_wake_wakes_one_sleeper(void)
{
    _Atomic uint32_t *words = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (!CHECK(words != MAP_FAILED))
        return;
    pid_t children[2];
    for (int i = 0; i < 2; i++) {
        children[i] = check_fork();
        if (children[i] == 0) {
            CHECK_EQ(qos_futex_wait(&words[0], 0, LONG_NS), 0);
            qos_add_acq_rel(&words[1], 1);
            check_exit_child();
        }
    }
    wake_all(&words[0], 1);
    int status = -1;
    CHECK(waitpid(-1, &status, 0) > 0);
    CHECK_EQ(status, 0);
    CHECK_EQ(qos_load_acquire(&words[1]), 1);
    wake_all(&words[0], 1);
    CHECK(waitpid(-1, &status, 0) > 0);
    CHECK_EQ(status, 0);
    CHECK_EQ(qos_load_acquire(&words[1]), 2);
    munmap(words, 4096);
}

int main(void)
{
    CHECK_RUN(test_processors_are_those_of_the_thread);
    CHECK_RUN(test_a_spinner_with_one_processor_yields_at_every_look);
    CHECK_RUN(test_a_spinner_that_is_alone_yields_now_and_then);
    CHECK_RUN(test_a_long_yield_tells_that_the_processor_is_shared);
    CHECK_RUN(test_many_short_yields_tell_that_it_no_longer_is);
    CHECK_RUN(test_a_yield_that_pays_is_done_again_and_one_in_vain_ever_less);
    CHECK_RUN(test_two_spinners_share_a_processor);
    CHECK_RUN(test_a_wait_ends_at_its_time_out);
    CHECK_RUN(test_a_wait_for_what_has_happened_does_not_sleep);
    CHECK_RUN(test_a_wake_without_sleepers_wakes_nobody);
    CHECK_RUN(test_a_signal_interrupts_a_wait);
    CHECK_RUN(test_sleepers_in_other_processes_are_woken);
    CHECK_RUN(test_one_wake_wakes_one_sleeper);
    return check_done();
}
