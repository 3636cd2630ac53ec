/* SPDX-License-Identifier: Apache-2.0
 *
 * What is said to selened, and what selened and selened-dp say: answers, routes, announcements, edges.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

#define REQUEST_NS 5000000000u
#define MAX_ORPHANS 256

/* ---- Requests ---- */

static void pump(struct selene_session *s, struct request *r, uint64_t deadline)
{
    while (!r->done && s->control_fd >= 0 && qos_clock_monotonic_ns() < deadline) {
        struct pollfd p[2] = {{s->control_fd, POLLIN, 0}, {s->session_fd, POLLIN, 0}};
        (void)poll(p, 2, 100);
        selene_sync_control(s);
        if (p[0].revents & (POLLHUP | POLLERR))
            break;
    }
}

/* Send and wait for the answer. The service thread, which would wait for itself, reads the socket meanwhile. */
int selene_request(struct selene_session *s, struct request *r, void *packet, uint32_t length, int type, int fd)
{
    uint64_t deadline = qos_clock_monotonic_ns() + REQUEST_NS;
    pthread_mutex_lock(&s->lock);
    r->number = ++s->request_number ? s->request_number : ++s->request_number;
    int rc = s->control_fd < 0
                 ? -ENOTCONN
                 : selene_send_packet(s->control_fd, packet, length, type, r->number, &fd, fd >= 0 ? 1 : 0);
    if (rc < 0) {
        pthread_mutex_unlock(&s->lock);
        return selene_fail(rc, "selened at %s is not there: %s; the session reconnects when it is back", s->socket_path,
                           strerror(-rc));
    }
    r->next = s->requests;
    s->requests = r;
    if (pthread_equal(pthread_self(), s->service)) {
        pthread_mutex_unlock(&s->lock);
        pump(s, r, deadline);
        pthread_mutex_lock(&s->lock);
    } else {
        struct timespec until = {(time_t)(deadline / 1000000000u), (long)(deadline % 1000000000u)};
        while (!r->done && s->control_fd >= 0 && pthread_cond_timedwait(&s->cond, &s->lock, &until) == 0)
            ;
    }
    for (struct request **at = &s->requests; *at; at = &(*at)->next) {
        if (*at == r) {
            *at = r->next;
            break;
        }
    }
    rc = r->done ? r->error : -ETIMEDOUT;
    pthread_mutex_unlock(&s->lock);
    if (rc < 0)
        selene_fail(rc, "%s", r->done && r->text[0] ? r->text : "selened did not answer within 5 s");
    return rc;
}

int selene_declare_stream(struct selene_stream *stream)
{
    const selene_options *o = &stream->options;
    struct selene_stream_open packet = {
        .handle = stream->handle,
        .stream = o->stream,
        .acceleration = o->acceleration,
        .resources = o->resources,
        .delivery = o->delivery,
        .time_sensitive = o->time_sensitive,
        .traffic_class = o->traffic_class,
        .period_ns = o->period_ns,
        .offset_ns = o->offset_ns,
    };
    struct request r = {0};
    int rc = selene_request(stream->session, &r, &packet, sizeof packet, SELENE_C_STREAM, -1);
    if (rc < 0)
        return rc;
    static const char *const NAMES[] = {"none", "udp", "xdp", "dpdk", "rdma"};
    uint32_t technology = r.answer.stream.technology;
    strcpy(stream->technology, technology < sizeof NAMES / sizeof *NAMES ? NAMES[technology] : "unknown");
    memcpy(stream->reason, r.answer.stream.text, sizeof stream->reason);
    stream->reason[sizeof stream->reason - 1] = 0;
    return 0;
}

/* Announce an endpoint and wait until it is in force: its edges are attached and its remote side is known. */
int selene_declare_endpoint(struct selene_stream *stream, struct endpoint *e, int type, int event_fd)
{
    struct selene_session *s = stream->session;
    struct selene_endpoint_open packet = {
        .handle = stream->handle,
        .index = e->index,
        .channel = e->channel,
        .id = e->id,
        .epoch = e->epoch,
        .name_length = (uint32_t)strlen(e->name),
    };
    memcpy(packet.name, e->name, packet.name_length);
    struct request r = {.endpoint = e};
    int rc = selene_request(s, &r, &packet, sizeof packet, type, event_fd);
    if (rc < 0)
        return rc;
    uint64_t deadline = qos_clock_monotonic_ns() + REQUEST_NS;
    struct timespec until = {(time_t)(deadline / 1000000000u), (long)(deadline % 1000000000u)};
    pthread_mutex_lock(&s->lock);
    while (!pthread_equal(pthread_self(), s->service) && e->edges_seen < e->edges_expected && s->session_fd >= 0 &&
           pthread_cond_timedwait(&s->cond, &s->lock, &until) == 0)
        ;
    pthread_mutex_unlock(&s->lock);
    return 0;
}

int selene_withdraw(struct selene_session *s, uint64_t id, uint32_t kind)
{
    struct selene_close packet = {.id = id, .kind = kind};
    struct request r = {0};
    return selene_request(s, &r, &packet, sizeof packet, SELENE_C_CLOSE, -1);
}

/* ---- Endpoints by id; session->lock held ---- */

static struct selene_source *source_of(struct selene_session *s, uint64_t id)
{
    for (struct selene_source *x = s->sources; x; x = x->next)
        if (x->endpoint.id == id)
            return x;
    for (struct selene_source *x = s->closing; x; x = x->next)
        if (x->endpoint.id == id)
            return x;
    return NULL;
}

static struct selene_sink *sink_of(struct selene_session *s, uint64_t id)
{
    for (struct selene_sink *x = s->sinks; x; x = x->next)
        if (x->endpoint.id == id)
            return x;
    return NULL;
}

/* ---- Announcements ---- */

static int handle_route(struct selene_source *source, const struct selene_route *route)
{
    struct dest *dests = calloc(route->count ? route->count : 1, sizeof *dests);
    if (!dests)
        return -ENOMEM;
    for (uint32_t i = 0; i < route->count; i++) {
        dests[i].address = selene_address(&route->dests[i].address);
        dests[i].window = route->dests[i].window;
    }
    free(source->new_dests);
    source->new_dests = dests;
    source->new_count = route->count;
    source->new_epoch = route->epoch;
    source->new_flags = route->flags;
    source->new_window = route->window;
    source->new_route = true;
    if (route->flags & SELENE_RELAYED)
        qos_store_release(&source->session->ring_used, true);
    /* release: pairs with the acquire in selene_source_apply's caller */
    qos_store_release(&source->changed, true);
    return 0;
}

/* Whether an endpoint waits for its name. If none does, what came for names that nobody has was for endpoints closed meanwhile. */
static bool expecting(const struct selene_session *s)
{
    for (const struct selene_source *x = s->sources; x; x = x->next)
        if (!qos_load_relaxed(&x->endpoint.named))
            return true;
    for (const struct selene_sink *x = s->sinks; x; x = x->next)
        if (!qos_load_relaxed(&x->endpoint.named))
            return true;
    return false;
}

void selene_orphans_free(struct selene_session *s)
{
    while (s->orphans) {
        struct orphan *o = s->orphans;
        s->orphans = o->next;
        free(o);
    }
    s->orphan_count = 0;
    while (s->orphans_out) {
        struct edge_out *e = s->orphans_out;
        s->orphans_out = e->next;
        qos_shm_producer_close(&e->shm);
        close(e->event_fd);
        free(e);
    }
    while (s->orphans_in) {
        struct edge_in *e = s->orphans_in;
        s->orphans_in = e->next;
        qos_shm_consumer_close(&e->shm);
        selene_view_drop(s, e->view);
        free(e);
    }
}

/* Keep an announcement whose endpoint the daemon has not named to us yet. */
static int keep(struct selene_session *s, const void *packet, size_t length)
{
    if (!expecting(s) || s->orphan_count >= MAX_ORPHANS)
        return 0; /* of endpoints that were closed meanwhile */
    struct orphan *o = malloc(sizeof *o + length);
    if (!o)
        return -ENOMEM;
    o->length = (uint32_t)length;
    memcpy(o->packet, packet, length);
    o->next = s->orphans;
    s->orphans = o;
    s->orphan_count++;
    return 0;
}

static int handle_announcement(struct selene_session *s, const void *packet, size_t length)
{
    const struct selene_msg *m = packet;
    if (m->type == SELENE_S_ROUTE) {
        const struct selene_route *route = packet;
        if (length < sizeof *route || route->count > SELENE_MAX_DESTS ||
            length < sizeof *route + route->count * sizeof route->dests[0])
            return -EPROTO;
        struct selene_source *source = source_of(s, route->source);
        return source ? handle_route(source, route) : keep(s, packet, length);
    }
    const struct selene_accept *accept = packet;
    if (length < sizeof *accept || accept->count > SELENE_MAX_ACCEPT ||
        length < sizeof *accept + accept->count * sizeof accept->entries[0])
        return -EPROTO;
    struct selene_sink *sink = sink_of(s, accept->sink);
    if (sink)
        selene_accept_update(s, sink, accept);
    else if (keep(s, packet, length) < 0)
        return -ENOMEM;
    /* the sources may send from here on */
    struct selene_close done = {.id = accept->sink, .kind = 2};
    if (accept->msg.request && s->control_fd >= 0)
        (void)selene_send_packet(s->control_fd, &done, sizeof done, SELENE_C_ACCEPTED, accept->msg.request, NULL, 0);
    return 0;
}

/* ---- Edges ---- */

static void attach_out(struct selene_session *s, struct selene_source *source, struct edge_out *edge)
{
    edge->next = source->inbox;
    source->inbox = edge;
    source->endpoint.edges_seen++;
    qos_store_release(&source->changed, true);
    pthread_cond_broadcast(&s->cond);
}

static void attach_in(struct selene_session *s, struct selene_sink *sink, struct edge_in *edge)
{
    edge->next = sink->inbox;
    sink->inbox = edge;
    sink->endpoint.edges_seen++;
    qos_store_release(&sink->changed, true);
    selene_sink_wake(sink);
    pthread_cond_broadcast(&s->cond);
}

/* The daemon has named an endpoint: hand it what came earlier. */
static void adopt(struct selene_session *s, uint64_t id)
{
    struct selene_source *source = source_of(s, id);
    struct selene_sink *sink = sink_of(s, id);
    for (struct edge_out **at = &s->orphans_out; *at;) {
        struct edge_out *edge = *at;
        if (source && edge->source == id) {
            *at = edge->next;
            attach_out(s, source, edge);
        } else {
            at = &edge->next;
        }
    }
    for (struct edge_in **at = &s->orphans_in; *at;) {
        struct edge_in *edge = *at;
        if (sink && edge->sink == id) {
            *at = edge->next;
            attach_in(s, sink, edge);
        } else {
            at = &edge->next;
        }
    }
    /* the list is newest first and each announcement replaces the one before: take them oldest first */
    struct orphan *oldest = NULL;
    for (struct orphan **at = &s->orphans; *at;) {
        struct orphan *o = *at;
        const struct selene_msg *m = (const void *)o->packet;
        uint64_t of = m->type == SELENE_S_ROUTE ? ((const struct selene_route *)m)->source
                                                : ((const struct selene_accept *)m)->sink;
        if (of == id) {
            *at = o->next;
            o->next = oldest;
            oldest = o;
            s->orphan_count--;
        } else {
            at = &o->next;
        }
    }
    while (oldest) {
        struct orphan *o = oldest;
        oldest = o->next;
        ((struct selene_msg *)(void *)o->packet)->request = 0; /* confirmed when it came */
        (void)handle_announcement(s, o->packet, o->length);
        free(o);
    }
}

static int open_edge_out(struct selene_session *s, const struct selene_edge_open *open, void *memory, int event_fd)
{
    struct edge_out *edge = calloc(1, sizeof *edge);
    int rc = edge ? qos_shm_producer_open(&edge->shm, memory, open->depth, qos_pool_region(s->memory->pool)) : -ENOMEM;
    if (rc < 0) {
        free(edge);
        return rc;
    }
    edge->id = open->edge;
    edge->source = open->source;
    edge->sink = open->sink;
    edge->event_fd = event_fd;
    struct selene_source *source = source_of(s, open->source);
    if (source) {
        attach_out(s, source, edge);
    } else {
        edge->next = s->orphans_out;
        s->orphans_out = edge;
        if (!expecting(s))
            selene_orphans_free(s);
    }
    return 0;
}

static int open_edge_in(struct selene_session *s, const struct selene_edge_open *open, void *memory, int pool_fd)
{
    struct pool_view *view = selene_view_get(s, open->session, pool_fd, open->tx_buffers);
    struct edge_in *edge = calloc(1, sizeof *edge);
    int rc = view && edge ? qos_shm_consumer_open(&edge->shm, memory, open->depth, &view->region) : -ENOMEM;
    if (rc < 0) {
        free(edge);
        if (view)
            selene_view_drop(s, view);
        return rc;
    }
    close(pool_fd); /* the mapping stays */
    edge->id = open->edge;
    edge->source = open->source;
    edge->sink = open->sink;
    edge->view = view;
    struct selene_sink *sink = sink_of(s, open->sink);
    if (sink) {
        attach_in(s, sink, edge);
    } else {
        edge->next = s->orphans_in;
        s->orphans_in = edge;
        if (!expecting(s))
            selene_orphans_free(s);
    }
    return 0;
}

static int handle_edge(struct selene_session *s, const struct selene_edge_open *open, const int *fds)
{
    struct stat st;
    size_t size = qos_shm_size(open->depth <= QOS_SHM_MAX_DEPTH ? open->depth : 0);
    if (fstat(fds[0], &st) < 0 || (size_t)st.st_size < size)
        return -EPROTO;
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fds[0], 0);
    if (memory == MAP_FAILED)
        return -errno;
    int rc = open->msg.type == SELENE_D_EDGE_SOURCE ? open_edge_out(s, open, memory, fds[1])
                                                    : open_edge_in(s, open, memory, fds[1]);
    if (rc < 0)
        munmap(memory, size);
    else
        close(fds[0]);
    return rc;
}

/* Mark edges gone whose id is `id`, or all. Their threads finish them. */
static void mark_gone(struct selene_session *s, uint64_t id, bool all)
{
    struct selene_source *lists[2] = {s->sources, s->closing};
    for (int l = 0; l < 2; l++) {
        for (struct selene_source *x = lists[l]; x; x = x->next) {
            for (struct edge_out *e = x->inbox; e; e = e->next)
                if (all || e->id == id)
                    qos_store_release(&e->gone, true);
            for (uint32_t i = 0; i < x->edge_count; i++)
                if (all || x->edges[i]->id == id)
                    qos_store_release(&x->edges[i]->gone, true);
            qos_store_release(&x->changed, true);
        }
    }
    for (struct edge_out *e = s->orphans_out; e; e = e->next)
        if (all || e->id == id)
            qos_store_release(&e->gone, true);
    for (struct edge_in *e = s->orphans_in; e; e = e->next)
        if (all || e->id == id)
            qos_store_release(&e->gone, true);
    for (struct selene_sink *x = s->sinks; x; x = x->next) {
        for (struct edge_in *e = x->inbox; e; e = e->next)
            if (all || e->id == id)
                qos_store_release(&e->gone, true);
        for (uint32_t i = 0; i < x->edge_count; i++)
            if (all || x->edges[i]->id == id)
                qos_store_release(&x->edges[i]->gone, true);
        qos_store_release(&x->changed, true);
        selene_sink_wake(x);
    }
}

void selene_edges_gone(struct selene_session *s)
{
    mark_gone(s, 0, true);
}

/* ---- Dispatch ---- */

static void answer(struct selene_session *s, const void *packet, size_t length)
{
    const struct selene_msg *m = packet;
    struct request *r = s->requests;
    while (r && r->number != m->request)
        r = r->next;
    if (!r)
        return;
    r->done = true;
    if (m->type == SELENE_S_ERROR && length >= sizeof(struct selene_error)) {
        const struct selene_error *e = packet;
        r->error = e->error > 0 ? -e->error : -EPROTO;
        memcpy(r->text, e->text, sizeof r->text);
        r->text[sizeof r->text - 1] = 0;
    } else if (m->type == SELENE_S_STREAM && length >= sizeof r->answer.stream) {
        memcpy(&r->answer.stream, packet, sizeof r->answer.stream);
    } else if (m->type == SELENE_S_ENDPOINT && length >= sizeof r->answer.endpoint && r->endpoint) {
        memcpy(&r->answer.endpoint, packet, sizeof r->answer.endpoint);
        r->endpoint->id = r->answer.endpoint.id;
        qos_store_relaxed(&r->endpoint->named, true);
        r->endpoint->edges_expected = r->answer.endpoint.edges;
        adopt(s, r->endpoint->id);
        if (!expecting(s))
            selene_orphans_free(s);
    } else if (m->type != SELENE_S_OK) {
        r->error = -EPROTO;
    }
    pthread_cond_broadcast(&s->cond);
}

int selene_handle_control(struct selene_session *s, const void *packet, size_t length)
{
    const struct selene_msg *m = packet;
    switch (m->type) {
    case SELENE_S_ROUTE:
    case SELENE_S_ACCEPT:
        return handle_announcement(s, packet, length);
    case SELENE_S_STREAM:
    case SELENE_S_ENDPOINT:
    case SELENE_S_OK:
    case SELENE_S_ERROR:
        answer(s, packet, length);
        return 0;
    default:
        return -EPROTO;
    }
}

int selene_handle_session(struct selene_session *s, const void *packet, size_t length, int *fds, int fd_count)
{
    const struct selene_msg *m = packet;
    int rc = -EPROTO;
    if ((m->type == SELENE_D_EDGE_SOURCE || m->type == SELENE_D_EDGE_SINK) &&
        length >= sizeof(struct selene_edge_open) && fd_count == 2) {
        rc = handle_edge(s, packet, fds);
        if (rc == 0)
            return 0;
    } else if (m->type == SELENE_D_EDGE_GONE && length >= sizeof(struct selene_edge_gone)) {
        mark_gone(s, ((const struct selene_edge_gone *)packet)->edge, false);
        rc = 0;
    }
    for (int i = 0; i < fd_count; i++)
        close(fds[i]);
    return rc;
}
