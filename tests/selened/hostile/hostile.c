/* SPDX-License-Identifier: Apache-2.0
 *
 * A client that means harm, for test_hostile.py.
 *
 *   hostile UID SOCKET BEHAVIOUR SEED MILLISECONDS
 *
 * It becomes that user, connects like a client, and misbehaves in one way, or in all of them by seed (`random`). What it gets away
 * with and must not is a breach: told on stderr, exit status 1. At the end it says on stdout what became of its sessions.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "client.h"
#include "clock.h"
#include "frame.h"

static uint64_t state, deadline_ns;
static bool
    owed; /* what this has to bring about has not come about: on a busy machine that may take longer than the time */
static uint32_t breaches;

/* xorshift64* (Vigna 2016): the same deeds for the same seed. */
uint64_t word(void)
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * UINT64_C(2685821657736338717);
}

uint32_t draw(uint32_t below)
{
    return (uint32_t)(word() >> 33) % below;
}

static bool in_time(void)
{
    return owed || qos_clock_monotonic_ns() < deadline_ns;
}

void breach(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("breach: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    breaches++;
}

/* ---- What can be done to a session, a little at a time ---- */

/* Anything anywhere in the page and in front of the pool. */
static void words(struct session *s)
{
    for (int i = 0; i < MANY; i++) {
        uint64_t value = draw(2) ? word() : draw(5000);
        memcpy(s->page + draw(SELENE_PAGE_COUNTERS / 8 + 512) * 8, &value, sizeof value);
        value = word();
        memcpy(s->tx + draw(1 << 16) * 8, &value, sizeof value);
    }
    wake(s);
}

static void indices(struct session *s)
{
    struct qos_ring *r = ring(s);
    uint64_t value = draw(2) ? word() : qos_load_relaxed(&r->head) + draw(3 * SELENE_RING_CAPACITY);
    qos_store_release(draw(2) ? &r->tail : &r->head, value);
    wake(s);
}

static uint64_t slice(void)
{
    return qos_slice_make(draw(2) ? 0 : draw(1 << 20), draw(2) ? 112 : draw(1 << 16), draw(1 << 15), (uint16_t)word());
}

/* Entries of a correct ring, with headers that are nearly right: sources of others, wrong lengths, sequences, windows. */
static void entries(struct session *s)
{
    struct qos_ring *r = (void *)(s->page + SELENE_PAGE_TX);
    uint64_t tail = qos_load_relaxed(&r->tail);
    uint64_t room = SELENE_RING_CAPACITY - (tail - qos_load_acquire(&r->head));
    struct qos_wire wire = {.type = (uint8_t)(1 + draw(5)), .flags = (uint16_t)word(), .count = 1, .source = s->source};
    if (draw(2))
        wire.source = (uint64_t)s->host << 32 | draw(64);
    wire.sequence = word();
    wire.credit = (uint32_t)word();
    wire.frag_offset = (uint32_t)word();
    wire.epoch = draw(4);
    wire.length = draw(2) ? 8 : (uint16_t)word();
    qos_frame_encode(s->tx + SELENE_BELL_BYTES + qos_region_owner_bytes(SELENE_TX_BUFFERS) + 112, &wire);
    for (uint64_t i = 0; i + 2 <= room && i < 64; i += 2, tail += 2) {
        uint32_t length = draw(2) ? QOS_WIRE_HEADER + 8 : (uint32_t)word();
        r->words[tail % SELENE_RING_CAPACITY] = draw(2) ? qos_slice_make(0, 112, 0, 0) : slice();
        r->words[(tail + 1) % SELENE_RING_CAPACITY] = length | (uint64_t)draw(3) << 32;
    }
    qos_store_release(&r->tail, tail);
    /* outcomes are taken, or there would soon be no room */
    struct qos_ring *done = (void *)(s->page + SELENE_PAGE_DONE);
    qos_store_release(&done->head, qos_load_acquire(&done->tail));
    wake(s);
}

static void returns(struct session *s)
{
    struct qos_ring *r = (void *)(s->page + SELENE_PAGE_RELEASE);
    uint64_t tail = qos_load_relaxed(&r->tail);
    r->words[tail % SELENE_RING_CAPACITY] = slice();
    qos_store_release(&r->tail, tail + 1);
    wake(s);
}

static void wakes(struct session *s)
{
    for (int i = 0; i < MANY; i++)
        wake(s);
    if (draw(64) == 0)
        eventfd_write(s->fds[WAKE], UINT64_MAX - 1 - draw(MANY)); /* to the limit: nobody may sleep on it */
}

/* What the datapath process would read, if it read. */
static void noise(struct session *s)
{
    static const uint8_t much[4096];
    int at = draw(2) ? s->link : s->fds[BELL];
    if (put(at, much, draw(2) ? 0 : draw(sizeof much), s->fds, draw(2) ? MEMORIES : 0) == 0 && at == s->link)
        breach("selened-dp can be sent something on the session socket");
    if (draw(64) == 0)
        shutdown(s->fds[BELL], (int)draw(3));
}

/* Requests that are nearly right, answered or not. */
static void requests(struct session *s)
{
    union {
        struct selene_msg msg;
        struct selene_stream_open stream;
        struct selene_endpoint_open end;
        struct selene_close close;
        uint8_t bytes[sizeof(struct selene_endpoint_open)];
    } packet;
    for (unsigned i = 0; i < sizeof packet; i++)
        packet.bytes[i] = draw(4) ? 0 : (uint8_t)word();
    static const uint32_t lengths[] = {sizeof packet.stream, sizeof packet.end, sizeof packet.close};
    uint32_t kind = draw(3);
    uint16_t type = kind == 0   ? SELENE_C_STREAM
                    : kind == 1 ? (uint16_t)(SELENE_C_SOURCE + draw(2))
                                : (uint16_t)(SELENE_C_CLOSE + draw(3));
    if (draw(2))
        packet.end.handle = 1;
    if (type != SELENE_C_RESTORED && draw(64) == 0)
        type = (uint16_t)word();
    say(s->control, &packet, draw(256) ? lengths[kind] : draw(sizeof packet), type, ++s->number, s->fds, (int)draw(3));
}

/* Ids of this host that are somebody's: of its first clients. */
static void ids(struct session *s)
{
    uint64_t wanted = (uint64_t)s->host << 32 | (1 + draw(6));
    uint64_t id = open_end(s, draw(2) ? SELENE_C_SOURCE : SELENE_C_SINK, draw(64), wanted);
    if (id == wanted && id != 0)
        breach("endpoint %llx was given to who only asked for it", (unsigned long long)id);
    struct selene_close close = {.id = wanted, .kind = 1 + draw(2)};
    if (ask(s, &close, sizeof close, SELENE_C_CLOSE, NULL, 0, NULL, NULL) == SELENE_S_OK)
        breach("endpoint %llx of somebody else was closed", (unsigned long long)wanted);
}

/* What was given read-only stays so, and what was given writable keeps its size. */
static void memories(struct session *s)
{
    static const char *const names[] = {"transmit pool", "session page", "receive pool"};
    const size_t sizes[] = {TX_BYTES, SELENE_PAGE_SIZE, RX_BYTES};
    for (int i = TX_POOL; i <= RX_POOL; i++) {
        char link[32];
        snprintf(link, sizeof link, "/proc/self/fd/%d", s->fds[i]);
        int again = open(link, O_RDWR | O_CLOEXEC);
        if (again >= 0)
            breach("the %s was opened again for writing", names[i]);
        int tries[] = {s->fds[i], again};
        for (int k = 0; k < 2; k++) {
            off_t size = draw(2) ? 0 : (off_t)word() & 0xfffffff;
            if (tries[k] >= 0 && ftruncate(tries[k], size) == 0)
                breach("the %s was truncated", names[i]);
            if (tries[k] >= 0 && fcntl(tries[k], F_ADD_SEALS, F_SEAL_WRITE) == 0)
                breach("the %s was sealed", names[i]);
            if (tries[k] >= 0 && i == RX_POOL &&
                (fallocate(tries[k], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == 0 ||
                 pwrite(tries[k], "x", 1, 0) == 1))
                breach("the %s was written", names[i]);
            if (tries[k] >= 0 && fallocate(tries[k], 0, (off_t)sizes[i], 4096) == 0)
                breach("the %s was made larger", names[i]);
        }
        if (fchmod(s->fds[i], 0666) == 0 || fchown(s->fds[i], geteuid(), getegid()) == 0)
            breach("the %s has another owner or mode", names[i]);
        if (again >= 0)
            close(again);
    }
    if (mmap(NULL, RX_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, s->fds[RX_POOL], 0) != MAP_FAILED)
        breach("the receive pool was mapped for writing");
    void *view = mmap(NULL, RX_BYTES, PROT_READ, MAP_SHARED, s->fds[RX_POOL], 0);
    if (view == MAP_FAILED || mprotect(view, RX_BYTES, PROT_READ | PROT_WRITE) == 0 ||
        madvise(view, RX_BYTES, MADV_REMOVE) == 0)
        breach("the receive pool became writable");
    munmap(view, RX_BYTES);
    /* its own it may empty */
    fallocate(s->fds[draw(2) ? TX_POOL : PAGE], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, SELENE_PAGE_SIZE);
    wake(s);
}

static void (*const acts[])(struct session *) = {words,    indices, entries, returns, wakes,
                                                 requests, noise,   ids,     memories};

/* One after the other, each until it is cut off. Channel 0 has a sink, so that its source is routed where users share no memory. */
static void sessions_of(void (*act)(struct session *))
{
    struct session sink, s;
    uint64_t begin_ns = qos_clock_monotonic_ns();
    bool listens = open_session(&sink, SELENE_RELAYED) && open_stream(&sink, 1) && open_end(&sink, SELENE_C_SINK, 0, 0);
    do {
        if (!open_session(&s, draw(2) ? SELENE_RELAYED : 0))
            continue;
        open_stream(&s, 1);
        s.source = open_end(&s, SELENE_C_SOURCE, 0, 0);
        if (opened <= 2) /* on a busy machine it takes long to get so far */
            deadline_ns += qos_clock_monotonic_ns() - begin_ns;
        while (in_time() && !gone(&s))
            (act != NULL ? act : acts[draw(sizeof acts / sizeof acts[0])])(&s);
        owed = owed && !s.cut;
        close_session(&s);
    } while (in_time());
    if (listens)
        close_session(&sink);
}

/* ---- What takes more than one session ---- */

/* As many sessions and greetings half-way as there may be, for all the time. */
static void crowd(void)
{
    static struct session held[SELENE_MAX_SESSIONS];
    static int silent[SELENE_MAX_SESSIONS];
    uint32_t n = 0, m = 0;
    while (n < SELENE_MAX_SESSIONS && open_session(&held[n], draw(2) ? SELENE_RELAYED : 0))
        n++;
    while (m < SELENE_MAX_SESSIONS && (silent[m] = dial("")) >= 0)
        m++;
    struct session more; /* its refusal comes after theirs */
    if (open_session(&more, 0))
        breach("more sessions than the limit");
    puts("full");
    fflush(stdout);
    (void)qos_clock_sleep_until(CLOCK_MONOTONIC, deadline_ns, 0);
    for (uint32_t i = 0; i < n; i++)
        close_session(&held[i]);
    close_all(silent, (int)m);
}

/* All streams, sources and sinks that are given; the answers and what the edges bring are not read until the session is cut off. */
static void greed(void)
{
    struct session s[2];
    while (in_time()) {
        if (!open_session(&s[0], 0))
            continue;
        if (open_session(&s[1], 0)) {
            for (uint32_t i = 1; i < 3 * MANY && in_time() && !s[1].cut; i++)
                open_stream(&s[1], i);
            open_stream(&s[0], 1);
            for (uint32_t i = 0; in_time() && !s[0].cut && !s[1].cut; i++)
                open_end(&s[i % 2], i % 4 < 2 ? SELENE_C_SOURCE : SELENE_C_SINK, i / 64, 0);
            close_session(&s[1]);
        }
        close_session(&s[0]);
    }
}

/* Asks all the time and never reads. */
static void deafness(void)
{
    struct session s;
    while (in_time()) {
        if (!open_session(&s, 0))
            continue;
        struct selene_close nothing = {.id = 1, .kind = 3};
        int rc = 0;
        for (uint32_t i = 1; in_time() && (rc == 0 || rc == -EAGAIN); i++)
            rc = say(s.control, &nothing, sizeof nothing, SELENE_C_CLOSE, i, NULL, 0);
        s.cut = rc != 0 && rc != -EAGAIN;
        owed = owed && !s.cut;
        close_session(&s);
    }
}

/* A sink that gives nothing back, and a source that sends to it through the datapath process. */
static void hoard(void)
{
    struct session from, to;
    if (!open_session(&to, SELENE_RELAYED) || !open_session(&from, SELENE_RELAYED))
        return;
    open_stream(&to, 1);
    open_stream(&from, 1);
    open_end(&to, SELENE_C_SINK, 5, 0);
    from.source = open_end(&from, SELENE_C_SOURCE, 5, 0);
    struct qos_ring *rx = (void *)(to.page + SELENE_PAGE_RX);
    while (in_time() && !gone(&from) && !gone(&to)) {
        struct qos_ring *r = (void *)(from.page + SELENE_PAGE_TX), *done = (void *)(from.page + SELENE_PAGE_DONE);
        uint64_t tail = qos_load_relaxed(&r->tail), room = SELENE_RING_CAPACITY - (tail - qos_load_acquire(&r->head));
        struct qos_wire wire = {
            .type = QOS_WIRE_DATA, .source = from.source, .sequence = tail / 2, .count = 1, .length = 8 + 8000};
        qos_frame_encode(from.tx + SELENE_BELL_BYTES + qos_region_owner_bytes(SELENE_TX_BUFFERS) + 112, &wire);
        for (uint64_t i = 0; i + 2 <= room && i < 64; i += 2, tail += 2) {
            r->words[tail % SELENE_RING_CAPACITY] = qos_slice_make(0, 112, 0, 0);
            r->words[(tail + 1) % SELENE_RING_CAPACITY] = QOS_WIRE_HEADER + 8 + 8000;
        }
        qos_store_release(&r->tail, tail);
        qos_store_release(&done->head, qos_load_acquire(&done->tail));
        wake(&from);
        qos_store_release(&rx->head, qos_load_acquire(&rx->tail)); /* read, and kept */
        owed = qos_load_relaxed(&rx->tail) == 0;
    }
    if (qos_load_relaxed(&rx->tail) == 0)
        breach("nothing came that could be kept");
    close_session(&from);
    close_session(&to);
}

/* Connections by the thousand: at once gone again, half-greeted, with rubbish, with too much, with descriptors. */
static void connects(void)
{
    static uint8_t much[2 * SELENE_MAX_PACKET];
    while (in_time()) {
        int fd = dial(draw(8) ? "" : ".status"), files[253];
        if (fd < 0)
            continue;
        opened++;
        for (unsigned i = 0; i < 253; i++)
            files[i] = fd;
        struct selene_hello hello = {.flags = (uint32_t)word(), .session = word(), .token = word()};
        switch (draw(5)) {
        case 0:
            break;
        case 1:
            for (unsigned i = 0; i < 64; i++)
                much[i] = (uint8_t)word();
            put(fd, much, 1 + draw(sizeof much - 1), files, (int)draw(254));
            break;
        case 2:
            say(fd, &hello, draw(sizeof hello), SELENE_C_HELLO, 1, files, (int)draw(254));
            break;
        case 3:
            say(fd, &hello, sizeof hello, SELENE_C_HELLO, 1, files, (int)draw(9));
            break;
        default:
            for (unsigned i = 0; i < sizeof hello / 8; i++)
                ((uint64_t *)(void *)&hello)[i] = word();
            put(fd, &hello, sizeof hello, files, (int)draw(9));
        }
        close(fd);
    }
}

/* A connection whose close waits for an hour: what it sent is never taken. */
static int lingering(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    static uint8_t much[1 << 16];
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct linger linger = {1, 3600};
    if (bind(listener, (const void *)&address, size) < 0 || listen(listener, 1) < 0 ||
        getsockname(listener, (void *)&address, &size) < 0 || connect(fd, (const void *)&address, size) < 0)
        breach("no connection of its own: %s", strerror(errno));
    while (send(fd, much, sizeof much, MSG_DONTWAIT) > 0)
        continue;
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    (void)listener; /* stays open */
    return fd;
}

/* Descriptors whose last close, the daemons', would wait for ever. */
static void lingers(void)
{
    for (uint32_t round = 0; in_time() && round < 24; round++) {
        struct selene_hello hello = {.program = "hostile"};
        struct session s;
        int fd = lingering(), to = -1, many[16];
        for (unsigned i = 0; i < 16; i++)
            many[i] = fd;
        int passed = -1;
        switch (round % 6) {
        case 0: /* in a greeting */
            to = dial("");
            passed = say(to, &hello, sizeof hello, SELENE_C_HELLO, 1, &fd, 1);
            break;
        case 1: /* more than there may be */
            to = dial("");
            passed = say(to, &hello, sizeof hello, SELENE_C_HELLO, 1, many, 16);
            break;
        case 2: /* behind what ends the connection, never read */
            to = dial("");
            put(to, "rubbish", 7, NULL, 0);
            passed = put(to, "rubbish", 7, &fd, 1);
            break;
        case 3:
            to = dial(".status");
            passed = put(to, "{}\n", 3, &fd, 1);
            break;
        case 4: /* to the datapath process */
            if (open_session(&s, 0)) {
                passed = put(s.link, "x", 1, &fd, 1) & put(s.fds[BELL], "x", 1, &fd, 1);
                close_session(&s);
            }
            break;
        default: /* in a request */
            if (open_session(&s, 0)) {
                struct selene_close nothing = {.kind = 3};
                passed = say(s.control, &nothing, sizeof nothing, SELENE_C_CLOSE, 9, &fd, 1);
                close_session(&s);
            }
        }
        if (passed < 0) /* or it would be us who wait */
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){0}, sizeof(struct linger));
        close(fd);
        if (to >= 0)
            close(to);
        if (open_session(&s, 0)) /* answered, or a breach */
            close_session(&s);
    }
}

static const struct behaviour {
    const char *name;
    void (*act)(struct session *);
    void (*run)(void);
    bool sure; /* it is cut off, or gets what it wants */
} behaviours[] = {
    {"words", words, NULL, false},      {"indices", indices, NULL, true},    {"entries", entries, NULL, true},
    {"returns", returns, NULL, true},   {"wakes", wakes, NULL, false},       {"noise", noise, NULL, false},
    {"requests", requests, NULL, true}, {"ids", ids, NULL, false},           {"memories", memories, NULL, false},
    {"crowd", NULL, crowd, false},      {"greed", NULL, greed, false},       {"deafness", NULL, deafness, true},
    {"hoard", NULL, hoard, true},       {"connects", NULL, connects, false}, {"lingers", NULL, lingers, false},
    {"random", NULL, NULL, false},
};

static void become(uint32_t uid)
{
    if (setgroups(0, NULL) < 0 || setgid(uid) < 0 || setuid(uid) < 0) {
        perror("hostile: setuid");
        exit(2);
    }
    prctl(PR_SET_DUMPABLE, 1); /* or /proc/self is root's */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

int main(int argc, char **argv)
{
    if (argc != 6) {
        fputs("usage: hostile UID SOCKET BEHAVIOUR SEED MILLISECONDS\n", stderr);
        return 2;
    }
    become((uint32_t)strtoul(argv[1], NULL, 10));
    path = argv[2];
    state = strtoull(argv[4], NULL, 10) * 2 + 1;
    const struct behaviour *b = behaviours;
    while (b < behaviours + sizeof behaviours / sizeof behaviours[0] && strcmp(b->name, argv[3]) != 0)
        b++;
    if (b == behaviours + sizeof behaviours / sizeof behaviours[0]) {
        fprintf(stderr, "hostile: no behaviour %s\n", argv[3]);
        return 2;
    }
    alarm(60);
    deadline_ns = qos_clock_monotonic_ns() + strtoull(argv[5], NULL, 10) * 1000000;
    owed = b->sure;
    if (b->run != NULL)
        b->run();
    else
        sessions_of(b->act);
    printf("{\"opened\":%u,\"cut_off\":%u,\"refused\":%u,\"breaches\":%u}\n", opened, cut_off, refused, breaches);
    return breaches != 0;
}
