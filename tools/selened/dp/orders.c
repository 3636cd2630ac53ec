/* SPDX-License-Identifier: Apache-2.0 */
#include "control.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "fsck.h"
#include "log.h"

#define GRACE_NS 2000000000u /* what a withdrawn remote source has under way still arrives */
#define FORGETS_MAX 4096
#define ANSWER_WAIT_MS 1000

_Static_assert(sizeof(struct selene_stats) + (SELENE_MAX_SESSIONS + 1) * sizeof(struct selene_dp_counters) <=
                   SELENE_MAX_PACKET,
               "the counters of all sessions fit one packet");

struct dp_forget {
    struct dp_forget *next;
    uint64_t source;
    uint64_t deadline_ns;
};

_Static_assert(sizeof(struct selene_fsck) + DP_POOL_SLOTS * sizeof(struct selene_fsck_row) <= SELENE_MAX_PACKET,
               "a row for each pool fits one packet");

/* A handler returns 0 (answered with S_OK), ANSWERED, UNANSWERED, or a negative errno (answered with S_ERROR and c->reason), which is
 * never about the controller: one of a client that has just died must not look like it. */
#define ANSWERED 1
#define UNANSWERED 2 /* the controller is not to be reached */

static int answer(struct dp_control *c, void *packet, size_t length, uint16_t type, const int *fds, int fd_count)
{
    uint32_t request = ((const struct selene_msg *)(const void *)c->packet.data)->request;
    int rc = dp_packet_send(c->controller, packet, length, type, request, fds, fd_count, ANSWER_WAIT_MS);
    return rc < 0 ? UNANSWERED : ANSWERED;
}

static int take_fd(struct dp_control *c)
{
    int fd = c->packet.fds[0];
    c->packet.fds[0] = -1;
    return fd;
}

static int order_hello(struct dp_control *c)
{
    struct selene_ready ready = {
        .host = c->host,
        .pid = (uint32_t)getpid(),
        .sessions = c->session_count,
        .flags = (c->listening ? 1u : 0u) | 2u, /* 2: SELENE_RESUME */
        .version = QOS_VERSION,
    };
    c->greeted = true;
    return answer(c, &ready, sizeof ready, SELENE_E_READY, NULL, 0);
}

static int order_listen(struct dp_control *c)
{
    struct dp_command command = {.request = DP_LISTEN, .fd = c->packet.fds[0]};
    int rc = dp_net_check(command.fd, &command.family);
    if (rc < 0) {
        snprintf(c->reason, sizeof c->reason, "not a UDP socket");
        return rc;
    }
    take_fd(c);
    int given = command.fd;
    rc = dp_data_call(c->data, &command);
    int unused = rc < 0 ? given : command.fd;
    if (unused >= 0)
        close(unused);
    c->listening |= rc == 0;
    return rc;
}

static struct dp_session *need_session(struct dp_control *c, uint64_t id);

static int order_session(struct dp_control *c)
{
    const struct selene_order *o = (const void *)c->packet.data;
    struct selene_msg ok;
    if (o->flags & SELENE_RESUME) {
        struct dp_session *s = need_session(c, o->session);
        if (s == NULL || s->uid != o->uid || s->token != o->id || c->packet.fd_count != 0)
            return -ENOENT;
        return answer(c, &ok, sizeof ok, SELENE_S_OK, &s->page_fd, 1);
    }
    if (c->packet.fd_count != 1) {
        snprintf(c->reason, sizeof c->reason, "a session comes with its socket");
        return -EINVAL;
    }
    struct dp_session *s;
    int rc = dp_control_session_open(c, o, c->packet.fds[0], &s);
    if (rc < 0)
        return rc;
    take_fd(c);
    return answer(c, &ok, sizeof ok, SELENE_S_OK, &s->page_fd, 1);
}

static int order_session_end(struct dp_control *c)
{
    const struct selene_order *o = (const void *)c->packet.data;
    struct dp_session *s = dp_control_find(c, o->session);
    if (s != NULL) {
        dp_session_end(s, 0, NULL);
        dp_control_end_due(c);
    }
    return 0; /* also if it has ended on its own: what is ordered holds */
}

static struct dp_session *need_session(struct dp_control *c, uint64_t id)
{
    struct dp_session *s = dp_control_find(c, id);
    if (s == NULL)
        snprintf(c->reason, sizeof c->reason, "no session %llx", (unsigned long long)id);
    return s;
}

static int order_edge(struct dp_control *c)
{
    const struct selene_order_edge *o = (const void *)c->packet.data;
    struct dp_session *from = need_session(c, o->source_session), *to = need_session(c, o->sink_session);
    if (from == NULL || to == NULL)
        return -ENOENT;
    if (from->uid != to->uid) {
        snprintf(c->reason, sizeof c->reason, "source of user %u, sink of user %u: only relayed", from->uid, to->uid);
        return -EACCES;
    }
    int rc = dp_edge_create(&c->edges, o, from, to, c->packet.fds[0]);
    if (rc < 0)
        snprintf(c->reason, sizeof c->reason, "edge %llx: %s", (unsigned long long)o->edge, strerror(-rc));
    return rc;
}

static int order_edge_end(struct dp_control *c)
{
    dp_edge_end(&c->edges, ((const struct selene_order *)(const void *)c->packet.data)->id);
    return 0;
}

static int compare_pools(const void *a, const void *b)
{
    const struct dp_session *const *x = a, *const *y = b;
    uint64_t p = (*x)->uid, q = (*y)->uid;
    return p < q ? -1 : p > q;
}

/* Those of the named sessions that are there (one may just have ended), each once, sorted by user. How many. */
static uint32_t resolve(const struct dp_control *c, const uint64_t *ids, uint32_t n, struct dp_session **sessions)
{
    uint32_t found = 0;
    for (uint32_t i = 0; i < n; i++) {
        struct dp_session *s = dp_control_find(c, ids[i]);
        for (uint32_t k = 0; s != NULL && k < found; k++)
            if (sessions[k] == s)
                s = NULL;
        if (s != NULL)
            sessions[found++] = s;
    }
    qsort(sessions, found, sizeof sessions[0], compare_pools);
    return found;
}

static void prefault(struct dp_control *c, struct dp_session *s)
{
    if (!s->prefaulted)
        dp_session_prefault(&c->memory, s);
    if (!s->pool->prefaulted)
        dp_rxpool_prefault(&c->memory, s->pool);
    s->prefaulted = s->pool->prefaulted = true;
}

static int order_route(struct dp_control *c)
{
    const struct selene_order_route *o = (const void *)c->packet.data;
    if (o->dests_count > SELENE_MAX_DESTS || o->sessions_count > SELENE_MAX_DESTS) {
        snprintf(c->reason, sizeof c->reason, "more than %u destinations", SELENE_MAX_DESTS);
        return -EINVAL;
    }
    struct dp_session *owner = need_session(c, o->session);
    if (owner == NULL)
        return o->dests_count + o->sessions_count == 0 ? 0 : -ENOENT;
    struct dp_route *r = calloc(1, sizeof *r);
    if (r == NULL)
        return -ENOMEM;
    r->source = o->source;
    r->owner = owner;
    r->channel = o->channel;
    r->stream = o->stream;
    r->epoch = o->epoch;
    r->dests_count = o->dests_count;
    for (uint32_t i = 0; i < o->dests_count; i++)
        dp_target_set(&r->dests[i], &o->dests[i].address);
    r->sessions_count = resolve(c, o->sessions, o->sessions_count, r->sessions);
    prefault(c, owner);
    for (uint32_t i = 0; i < r->sessions_count; i++)
        prefault(c, r->sessions[i]);
    struct dp_command command = {.request = DP_SET_ROUTE, .route = r};
    int rc = dp_data_call(c->data, &command);
    if (rc < 0)
        snprintf(c->reason, sizeof c->reason, "source %llx: %s", (unsigned long long)o->source,
                 rc == -EEXIST ? "it belongs to another session" : "too many");
    return rc;
}

static struct dp_forget **find_forget(struct dp_control *c, uint64_t source)
{
    struct dp_forget **p = &c->forgets;
    while (*p != NULL && (*p)->source != source)
        p = &(*p)->next;
    return p;
}

static void remove_forget(struct dp_control *c, struct dp_forget **p)
{
    struct dp_forget *f = *p;
    *p = f->next;
    c->forget_count--;
    free(f);
}

static int set_accept(struct dp_control *c, const struct selene_order_accept *o)
{
    static const uint8_t zero[16];
    struct dp_accept *a = calloc(1, sizeof *a);
    if (a == NULL)
        return -ENOMEM;
    a->source = o->source;
    a->local = memcmp(o->address.ip, zero, sizeof zero) == 0;
    dp_target_set(&a->address, &o->address);
    a->sessions_count = resolve(c, o->sessions, o->sessions_count, a->sessions);
    for (uint32_t i = 0; i < a->sessions_count; i++)
        prefault(c, a->sessions[i]);
    struct dp_command command = {.request = DP_SET_ACCEPT, .accept = a};
    return dp_data_call(c->data, &command);
}

static int order_accept(struct dp_control *c)
{
    const struct selene_order_accept *o = (const void *)c->packet.data;
    if (o->sessions_count > SELENE_MAX_DESTS) {
        snprintf(c->reason, sizeof c->reason, "more than %u sessions", SELENE_MAX_DESTS);
        return -EINVAL;
    }
    struct dp_forget **p = find_forget(c, o->source);
    if (*p != NULL)
        remove_forget(c, p);
    if (o->sessions_count > 0 || c->forget_count == FORGETS_MAX)
        return set_accept(c, o);
    struct dp_forget *f = calloc(1, sizeof *f);
    if (f == NULL)
        return set_accept(c, o);
    /* appended: the grace is the same for all, so the list is in order of time */
    for (p = &c->forgets; *p != NULL; p = &(*p)->next)
        continue;
    *f = (struct dp_forget){.source = o->source, .deadline_ns = qos_clock_monotonic_ns() + GRACE_NS};
    *p = f;
    c->forget_count++;
    return 0;
}

int dp_control_forget_due(struct dp_control *c)
{
    while (c->forgets != NULL) {
        uint64_t now = qos_clock_monotonic_ns();
        if (now < c->forgets->deadline_ns)
            return (int)((c->forgets->deadline_ns - now) / 1000000 + 1);
        struct selene_order_accept o = {.source = c->forgets->source};
        if (set_accept(c, &o) < 0)
            dp_log("warning", "no memory to forget source %llx", (unsigned long long)o.source);
        remove_forget(c, &c->forgets);
    }
    return -1;
}

static int order_stats(struct dp_control *c)
{
    static _Alignas(8) uint8_t packet[SELENE_MAX_PACKET];
    struct selene_stats *stats = (void *)packet;
    uint32_t n = 0;
    dp_counters_read(&c->data->totals, 0, &stats->counters[n++]);
    for (unsigned i = 0; i < SELENE_MAX_SESSIONS; i++)
        if (c->sessions[i] != NULL)
            dp_counters_read(&c->sessions[i]->counters, c->sessions[i]->id, &stats->counters[n++]);
    stats->count = n;
    stats->reserved = 0;
    dp_data_faults(c->data, &stats->fault);
    return answer(c, stats, sizeof *stats + n * sizeof stats->counters[0], SELENE_E_STATS, NULL, 0);
}

static int order_fsck(struct dp_control *c)
{
    static _Alignas(8) uint8_t packet[SELENE_MAX_PACKET];
    struct selene_fsck *f = (void *)packet;
    dp_edge_sweep(&c->edges);
    *f = (struct selene_fsck){
        .sessions = c->session_count,
        .edges = c->edges.count,
        .leaving = c->edges.leaving_count,
        .routes = c->data->table.route_count,
        .accepts = c->data->table.accept_count,
        .expected = c->session_count,
    };
    for (unsigned i = 0; i < DP_POOL_SLOTS; i++)
        f->mapped += c->memory.used[i];
    for (unsigned i = 0; i < SELENE_MAX_SESSIONS; i++)
        if (c->sessions[i] != NULL)
            dp_fsck_session(c->sessions[i], &c->edges, &f->rows[f->count++]);
    for (struct dp_rxpool *pool = c->pools; pool != NULL; pool = pool->next) {
        struct dp_command command = {.request = DP_FSCK, .pool = pool, .row = &f->rows[f->count++]};
        dp_data_call(c->data, &command);
        f->expected++;
    }
    return answer(c, f, sizeof *f + f->count * sizeof f->rows[0], SELENE_E_FSCK, NULL, 0);
}

static int order_stop(struct dp_control *c)
{
    c->stop = true;
    return 0;
}

#define ANY_FDS 0xffff /* the order's own check */

static const struct order {
    uint16_t type;
    uint16_t fds;
    bool bare; /* the header alone will do */
    uint32_t size;
    int (*run)(struct dp_control *c);
} orders[] = {
    {SELENE_O_HELLO, 0, true, sizeof(struct selene_order), order_hello},
    {SELENE_O_LISTEN, 1, true, sizeof(struct selene_order), order_listen},
    {SELENE_O_SESSION, ANY_FDS, false, sizeof(struct selene_order), order_session},
    {SELENE_O_SESSION_END, 0, false, sizeof(struct selene_order), order_session_end},
    {SELENE_O_EDGE, 1, false, sizeof(struct selene_order_edge), order_edge},
    {SELENE_O_EDGE_END, 0, false, sizeof(struct selene_order), order_edge_end},
    {SELENE_O_ROUTE, 0, false, sizeof(struct selene_order_route), order_route},
    {SELENE_O_ACCEPT, 0, false, sizeof(struct selene_order_accept), order_accept},
    {SELENE_O_STATS, 0, true, sizeof(struct selene_order), order_stats},
    {SELENE_O_FSCK, 0, true, sizeof(struct selene_order), order_fsck},
    {SELENE_O_STOP, 0, true, sizeof(struct selene_order), order_stop},
};

/* The order of this packet, or NULL and the reason. */
static const struct order *recognise(struct dp_control *c, const struct selene_msg *msg)
{
    for (unsigned i = 0; i < sizeof orders / sizeof orders[0]; i++) {
        const struct order *o = &orders[i];
        if (o->type != msg->type)
            continue;
        if (msg->length != o->size && !(o->bare && msg->length == sizeof *msg))
            snprintf(c->reason, sizeof c->reason, "order %u of %u bytes, expected %u", msg->type, msg->length, o->size);
        else if (o->fds != ANY_FDS && c->packet.fd_count != o->fds)
            snprintf(c->reason, sizeof c->reason, "order %u with %d descriptors, expected %u", msg->type,
                     c->packet.fd_count, o->fds);
        else if (!c->greeted && o->type != SELENE_O_HELLO)
            snprintf(c->reason, sizeof c->reason, "order %u before the greeting", msg->type);
        else
            return o;
        return NULL;
    }
    snprintf(c->reason, sizeof c->reason, "unknown order %u", msg->type);
    return NULL;
}

int dp_control_order(struct dp_control *c)
{
    struct selene_msg msg = {0};
    int rc = dp_packet_check(&c->packet);
    if (c->packet.length >= sizeof msg)
        memcpy(&msg, c->packet.data, sizeof msg);
    if (rc < 0) {
        dp_packet_send_error(c->controller, msg.request, rc, "%s",
                             rc == -EPROTO ? "not a packet of this protocol" : "another version of the protocol");
        return -EPROTO;
    }
    c->reason[0] = '\0';
    const struct order *o = recognise(c, &msg);
    if (o == NULL) {
        dp_packet_send_error(c->controller, msg.request, EPROTO, "%s", c->reason);
        return -EPROTO;
    }
    rc = o->run(c);
    if (rc == 0)
        rc = answer(c, &(struct selene_msg){0}, sizeof msg, SELENE_S_OK, NULL, 0);
    if (rc > 0)
        return rc == ANSWERED ? 0 : -EPIPE;
    return dp_packet_send_error(c->controller, msg.request, rc, "%s", c->reason[0] != '\0' ? c->reason : strerror(-rc));
}
