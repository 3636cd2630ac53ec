/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The system calls by which the code under test waits and wakes, in the model. Linked with --wrap: each __wrap_NAME stands for NAME.
 * What is not ours to model goes to the real one. No time-out ever expires.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "model.h"

#pragma GCC diagnostic ignored "-Wmissing-prototypes"

#define MUTEXES 8

static struct {
    const volatile void *asleep[MODEL_THREADS]; /* on which futex */
    uint32_t counts[MODEL_FDS];                 /* of eventfds; of bytes in sockets */
    struct {
        const void *mutex;
        bool held;
        uint32_t taken;
    } mutexes[MUTEXES];
} k;

void model_kernel_reset(void)
{
    memset(&k, 0, sizeof k);
}

uint64_t model_kernel_state(void)
{
    uint64_t h = 0;
    const uint8_t *bytes = (const uint8_t *)&k;
    for (size_t i = 0; i < offsetof(__typeof__(k), mutexes);
         i++) /* who holds a mutex follows from what the threads did */
        h = (h ^ bytes[i]) * UINT64_C(0x100000001b3);
    return h;
}

/* ---- Futexes ---- */

static bool awake(const void *asleep)
{
    return *(const volatile void *const *)asleep == NULL;
}

int __wrap_qos_futex_wait(const _Atomic uint32_t *word, uint32_t value, uint64_t timeout_ns)
{
    (void)timeout_ns;
    if (model_futex(word, true) != value)
        return -EAGAIN;
    const volatile void **asleep = &k.asleep[model_self()];
    *asleep = word;
    model_step(awake, asleep);
    return 0;
}

int __wrap_qos_futex_wake(const _Atomic uint32_t *word, int count)
{
    unsigned asleep[MODEL_THREADS], n = 0;
    int woken = 0;
    if (model_omits(MODEL_WAKE, word))
        return 0;
    (void)model_futex(word, false);
    for (unsigned t = 0; t < MODEL_THREADS; t++)
        if (k.asleep[t] == word)
            asleep[n++] = t;
    bool all = count >= (int)n;
    for (; n > 0 && woken < count; woken++) {
        unsigned i = all ? 0 : model_choose(n); /* whom it likes */
        model_note(asleep[i]);
        k.asleep[asleep[i]] = NULL;
        asleep[i] = asleep[--n];
    }
    model_note((uint64_t)woken);
    return woken;
}

/* ---- Mutexes ---- */

static bool is_free(const void *at)
{
    return !*(const bool *)at;
}

static unsigned mutex_at(const pthread_mutex_t *mutex)
{
    unsigned i = 0;
    while (i < MUTEXES && k.mutexes[i].mutex && k.mutexes[i].mutex != mutex)
        i++;
    if (i == MUTEXES)
        model_fail("too many mutexes");
    k.mutexes[i].mutex = mutex;
    return i;
}

int __real_pthread_mutex_lock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex)
{
    if (!model_active())
        return __real_pthread_mutex_lock(mutex);
    unsigned i = mutex_at(mutex);
    model_step(is_free, &k.mutexes[i].held);
    k.mutexes[i].held = true;
    model_note(++k.mutexes[i].taken);
    model_acquire_from(mutex);
    return 0;
}

int __real_pthread_mutex_trylock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_trylock(pthread_mutex_t *mutex)
{
    if (!model_active())
        return __real_pthread_mutex_trylock(mutex);
    unsigned i = mutex_at(mutex);
    model_step(NULL, NULL);
    model_note(k.mutexes[i].held);
    if (k.mutexes[i].held)
        return EBUSY;
    k.mutexes[i].held = true;
    model_note(++k.mutexes[i].taken);
    model_acquire_from(mutex);
    return 0;
}

int __real_pthread_mutex_unlock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_unlock(pthread_mutex_t *mutex)
{
    if (!model_active())
        return __real_pthread_mutex_unlock(mutex);
    model_release_to(mutex);
    k.mutexes[mutex_at(mutex)].held = false;
    return 0;
}

/* ---- Descriptors: nothing but whether they are readable goes through them ---- */

static bool ours(int fd)
{
    return fd >= MODEL_FD && fd < MODEL_FD + MODEL_FDS;
}

static void add(int fd)
{
    if (!ours(fd))
        model_fail("a descriptor that is not modelled");
    model_step(NULL, NULL);
    k.counts[fd - MODEL_FD]++;
}

static ssize_t take(int fd, ssize_t size)
{
    if (!ours(fd))
        model_fail("a descriptor that is not modelled");
    model_step(NULL, NULL);
    uint32_t count = k.counts[fd - MODEL_FD];
    k.counts[fd - MODEL_FD] = 0;
    model_note(count);
    if (count > 0)
        return size;
    errno = EAGAIN;
    return -1;
}

ssize_t __real_write(int fd, const void *data, size_t size);
ssize_t __wrap_write(int fd, const void *data, size_t size)
{
    if (!ours(fd))
        return __real_write(fd, data, size);
    add(fd);
    return (ssize_t)size;
}

ssize_t __wrap_send(int fd, const void *data, size_t size, int flags)
{
    (void)data;
    (void)flags;
    add(fd);
    return (ssize_t)size;
}

ssize_t __wrap_read(int fd, void *data, size_t size)
{
    memset(data, 0, size);
    return take(fd, (ssize_t)size);
}

ssize_t __wrap_recv(int fd, void *data, size_t size, int flags)
{
    (void)data;
    (void)flags;
    return take(fd, (ssize_t)size);
}

struct polled {
    struct pollfd *fds;
    nfds_t n;
};

static bool any_readable(const void *argument)
{
    const struct polled *p = argument;
    for (nfds_t i = 0; i < p->n; i++)
        if (ours(p->fds[i].fd) && k.counts[p->fds[i].fd - MODEL_FD] > 0)
            return true;
    return false;
}

int __wrap_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *timeout, const void *mask)
{
    (void)timeout;
    (void)mask;
    struct polled p = {fds, n};
    model_step(any_readable, &p);
    int found = 0;
    for (nfds_t i = 0; i < n; i++) {
        fds[i].revents = ours(fds[i].fd) && k.counts[fds[i].fd - MODEL_FD] > 0 ? POLLIN : 0;
        found += fds[i].revents != 0;
        model_note((uint64_t)fds[i].revents);
    }
    return found;
}

/* ---- epoll, edge triggered: a descriptor is reported once for all that was written to it since ---- */

static void *watched[MODEL_FDS];

void model_watch(int fd, void *tag)
{
    watched[fd - MODEL_FD] = tag;
}

static bool any_event(const void *argument)
{
    (void)argument;
    for (int i = 0; i < MODEL_FDS; i++)
        if (watched[i] && k.counts[i] > 0)
            return true;
    return false;
}

static long epoll_pwait_events(struct epoll_event *events, int room, int timeout)
{
    int n = 0;
    model_step(timeout ? any_event : NULL, NULL);
    for (int i = 0; i < MODEL_FDS && n < room; i++) {
        if (!watched[i] || k.counts[i] == 0)
            continue;
        events[n++] = (struct epoll_event){.events = EPOLLIN, .data.ptr = watched[i]};
        k.counts[i] = 0;
        model_note((uint64_t)i + 1);
    }
    return n;
}

long __wrap_syscall(long number, ...)
{
    va_list list;
    va_start(list, number);
    (void)va_arg(list, int); /* there is but one epoll */
    struct epoll_event *events = va_arg(list, struct epoll_event *);
    int room = va_arg(list, int), timeout = va_arg(list, int);
    va_end(list);
    if (number != SYS_epoll_pwait)
        model_fail("a system call that is not modelled");
    return epoll_pwait_events(events, room, timeout);
}
