/* SPDX-License-Identifier: Apache-2.0 */
#include "control.h"

#include <errno.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clock.h"
#include "log.h"

#define CONTROLLER_WAIT_MS 1000

struct dp_session *dp_control_find(const struct dp_control *c, uint64_t id)
{
    for (unsigned i = 0; i < SELENE_MAX_SESSIONS; i++)
        if (c->sessions[i] != NULL && c->sessions[i]->id == id && !c->sessions[i]->ending)
            return c->sessions[i];
    return NULL;
}

static int get_pool(struct dp_control *c, uint32_t uid, struct dp_rxpool **pool)
{
    for (*pool = c->pools; *pool != NULL; *pool = (*pool)->next)
        if ((*pool)->uid == uid)
            return 0;
    int rc = dp_rxpool_create(&c->memory, uid, pool);
    if (rc == 0) {
        (*pool)->next = c->pools;
        c->pools = *pool;
    }
    return rc;
}

static void put_pool(struct dp_control *c, struct dp_rxpool *pool)
{
    if (pool->users != 0)
        return;
    struct dp_rxpool **p = &c->pools;
    while (*p != pool)
        p = &(*p)->next;
    *p = pool->next;
    dp_rxpool_destroy(&c->memory, pool);
}

static int start(struct dp_control *c, struct dp_session *s, uint32_t slot)
{
    struct dp_command command = {.request = DP_ADD_SESSION, .session = s};
    s->slot = slot;
    int rc = dp_control_watch(c, s->socket, DP_TAG_SESSION, slot);
    return rc < 0 ? rc : dp_data_call(c->data, &command);
}

int dp_control_session_open(struct dp_control *c, const struct selene_order *order, int socket,
                            struct dp_session **session)
{
    uint32_t slot = 0;
    while (slot < SELENE_MAX_SESSIONS && c->sessions[slot] != NULL)
        slot++;
    if (slot == SELENE_MAX_SESSIONS) {
        snprintf(c->reason, sizeof c->reason, "there are %u sessions already", SELENE_MAX_SESSIONS);
        return -EUSERS;
    }
    if (order->session == 0 || dp_control_find(c, order->session) != NULL) {
        snprintf(c->reason, sizeof c->reason, "session %llx is there already, or 0",
                 (unsigned long long)order->session);
        return -EEXIST;
    }
    struct dp_rxpool *pool;
    int rc = get_pool(c, order->uid, &pool);
    if (rc < 0)
        return rc;
    struct dp_session *s;
    rc = dp_session_create(&c->memory, pool, order->session, order->uid, socket, &s);
    if (rc == 0) {
        rc = start(c, s, slot);
        if (rc < 0) {
            epoll_ctl(c->epoll_fd, EPOLL_CTL_DEL, socket, NULL);
            s->socket = -1; /* still the caller's */
            dp_session_destroy(&c->memory, s);
        }
    }
    if (rc < 0) {
        put_pool(c, pool);
        return rc;
    }
    pool->users++;
    s->token = order->id;
    *session = s;
    c->sessions[slot] = s;
    c->session_count++;
    dp_log("info", "session %llx of user %u opened", (unsigned long long)s->id, s->uid);
    return 0;
}

void dp_control_session_event(struct dp_control *c, uint32_t slot)
{
    if (c->sessions[slot] != NULL)
        dp_session_end(c->sessions[slot], 0, "");
}

static void tell_controller(struct dp_control *c, const struct dp_session *s)
{
    struct selene_session_gone packet = {.session = s->id, .error = s->end_error};
    snprintf(packet.text, sizeof packet.text, "%s", s->end_text);
    if (c->controller < 0)
        return;
    /* A controller that misses this has a wrong picture; cut off, it comes back and asks anew. */
    if (dp_packet_send(c->controller, &packet, sizeof packet, SELENE_E_SESSION_GONE, 0, NULL, 0, CONTROLLER_WAIT_MS) <
        0) {
        dp_log("warning", "the controller does not read; connection shut down");
        shutdown(c->controller, SHUT_RDWR);
    }
}

static void end(struct dp_control *c, struct dp_session *s)
{
    struct dp_command command = {.request = DP_REMOVE_SESSION, .session = s, .violation = s->end_error != 0};
    epoll_ctl(c->epoll_fd, EPOLL_CTL_DEL, s->socket, NULL);
    dp_data_call(c->data, &command);
    if (s->end_error == 0 && s->cut_error != 0) { /* it left by itself, and behind it a breach */
        s->end_error = s->cut_error;
        s->end_text = s->cut_text;
    }
    dp_edge_end_all(&c->edges, s);
    if (s->end_error != 0) {
        dp_packet_send_error(s->socket, 0, s->end_error, "%s", s->end_text);
        dp_log("warning", "session %llx cut off: %s", (unsigned long long)s->id, s->end_text);
    } else {
        dp_log("info", "session %llx ended", (unsigned long long)s->id);
    }
    if (s->end_text != NULL)
        tell_controller(c, s);
    c->sessions[s->slot] = NULL;
    c->session_count--;
    s->pool->users--;
    put_pool(c, s->pool);
    dp_session_destroy(&c->memory, s);
    if (c->session_count == 0)
        c->idle_since_ns = qos_clock_monotonic_ns();
}

void dp_control_end_due(struct dp_control *c)
{
    bool again;
    do {
        again = false;
        for (unsigned i = 0; i < SELENE_MAX_SESSIONS; i++)
            if (c->sessions[i] != NULL && c->sessions[i]->ending) {
                end(c, c->sessions[i]);
                again = true; /* the end of one may doom another that does not read what it is told */
            }
    } while (again);
}
