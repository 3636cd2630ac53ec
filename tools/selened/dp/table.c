/* SPDX-License-Identifier: Apache-2.0 */
#include "table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static unsigned bucket(uint64_t source)
{
    return (unsigned)(source * 0x9e3779b97f4a7c15u >> 52) % DP_TABLE_BUCKETS;
}

/* Where the pointer to the entry of `source` is, or would be. */
static struct dp_route **find_route(const struct dp_table *table, uint64_t source)
{
    struct dp_route **p = (struct dp_route **)(uintptr_t)&table->routes[bucket(source)];
    while (*p != NULL && (*p)->source != source)
        p = &(*p)->next;
    return p;
}

static struct dp_accept **find_accept(const struct dp_table *table, uint64_t source)
{
    struct dp_accept **p = (struct dp_accept **)(uintptr_t)&table->accepts[bucket(source)];
    while (*p != NULL && (*p)->source != source)
        p = &(*p)->next;
    return p;
}

struct dp_route *dp_table_route(const struct dp_table *table, uint64_t source)
{
    return *find_route(table, source);
}

struct dp_accept *dp_table_accept(const struct dp_table *table, uint64_t source)
{
    return *find_accept(table, source);
}

/* Credit of a session of the new entry: what the old one knew of it, or as of one that joins. */
static struct dp_credit carry_session(const struct dp_session *session, struct dp_session *const *sessions,
                                      const struct dp_credit *credits, uint32_t n, const struct dp_sent *sent)
{
    for (uint32_t i = 0; i < n; i++)
        if (sessions[i] == session)
            return credits[i];
    return dp_credit_join(sent);
}

static void carry_route(struct dp_route *to, const struct dp_route *from)
{
    to->sent = from->sent;
    for (uint32_t i = 0; i < to->dests_count; i++) {
        to->credits[i] = dp_credit_join(&from->sent);
        for (uint32_t k = 0; k < from->dests_count; k++)
            if (memcmp(&to->dests[i].v6, &from->dests[k].v6, sizeof to->dests[i].v6) == 0)
                to->credits[i] = from->credits[k];
    }
    for (uint32_t i = 0; i < to->sessions_count; i++)
        to->credits[to->dests_count + i] = carry_session(
            to->sessions[i], from->sessions, from->credits + from->dests_count, from->sessions_count, &from->sent);
}

static void discard_route(struct dp_garbage *garbage, struct dp_route *route)
{
    route->next = garbage->routes;
    garbage->routes = route;
}

static void discard_accept(struct dp_garbage *garbage, struct dp_accept *accept)
{
    accept->next = garbage->accepts;
    garbage->accepts = accept;
}

int dp_table_set_route(struct dp_table *table, struct dp_route *route, struct dp_garbage *garbage)
{
    struct dp_route **p = find_route(table, route->source);
    struct dp_route *current = *p;
    bool removes = route->dests_count == 0 && route->sessions_count == 0;
    int rc = 0;
    if (current != NULL && current->owner != route->owner)
        rc = -EEXIST;
    else if (current == NULL && !removes && table->route_count == DP_TABLE_MAX)
        rc = -ENOSPC;
    if (rc < 0) {
        discard_route(garbage, route);
        return rc;
    }
    if (current != NULL) {
        carry_route(route, current);
        *p = current->next;
        table->route_count--;
        discard_route(garbage, current);
    }
    if (removes) {
        discard_route(garbage, route);
        return 0;
    }
    p = &table->routes[bucket(route->source)];
    route->next = *p;
    *p = route;
    table->route_count++;
    return 0;
}

static void carry_accept(struct dp_accept *to, const struct dp_accept *from)
{
    to->sent = from->sent;
    to->forwarded = from->forwarded;
    to->forwarded_any = from->forwarded_any;
    for (uint32_t i = 0; i < to->sessions_count; i++)
        to->credits[i] =
            carry_session(to->sessions[i], from->sessions, from->credits, from->sessions_count, &from->sent);
}

int dp_table_set_accept(struct dp_table *table, struct dp_accept *accept, struct dp_garbage *garbage)
{
    struct dp_accept **p = find_accept(table, accept->source);
    struct dp_accept *current = *p;
    if (current == NULL && accept->sessions_count != 0 && table->accept_count == DP_TABLE_MAX) {
        discard_accept(garbage, accept);
        return -ENOSPC;
    }
    if (current != NULL) {
        carry_accept(accept, current);
        *p = current->next;
        table->accept_count--;
        discard_accept(garbage, current);
    }
    if (accept->sessions_count == 0) {
        discard_accept(garbage, accept);
        return 0;
    }
    p = &table->accepts[bucket(accept->source)];
    accept->next = *p;
    *p = accept;
    table->accept_count++;
    return 0;
}

/* Remove a session from a list and its parallel credits. How many are left. */
static uint32_t strike(const struct dp_session *session, struct dp_session **sessions, struct dp_credit *credits,
                       uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (sessions[i] != session)
            continue;
        memmove(sessions + i, sessions + i + 1, (n - i - 1) * sizeof sessions[0]);
        memmove(credits + i, credits + i + 1, (n - i - 1) * sizeof credits[0]);
        return n - 1;
    }
    return n;
}

static void forget_routes(struct dp_table *table, unsigned b, const struct dp_session *session,
                          struct dp_garbage *garbage)
{
    for (struct dp_route **p = &table->routes[b], *r = *p; r != NULL; r = *p) {
        if (r->owner == session) {
            *p = r->next;
            table->route_count--;
            discard_route(garbage, r);
            continue;
        }
        r->sessions_count = strike(session, r->sessions, r->credits + r->dests_count, r->sessions_count);
        p = &r->next;
    }
}

static void forget_accepts(struct dp_table *table, unsigned b, const struct dp_session *session,
                           struct dp_garbage *garbage)
{
    for (struct dp_accept **p = &table->accepts[b], *a = *p; a != NULL; a = *p) {
        a->sessions_count = strike(session, a->sessions, a->credits, a->sessions_count);
        if (a->sessions_count == 0) {
            *p = a->next;
            table->accept_count--;
            discard_accept(garbage, a);
            continue;
        }
        p = &a->next;
    }
}

void dp_table_forget(struct dp_table *table, const struct dp_session *session, struct dp_garbage *garbage)
{
    for (unsigned b = 0; b < DP_TABLE_BUCKETS; b++) {
        forget_routes(table, b, session, garbage);
        forget_accepts(table, b, session, garbage);
    }
}

void dp_garbage_free(struct dp_garbage *garbage)
{
    for (struct dp_route *r = garbage->routes, *next; r != NULL; r = next) {
        next = r->next;
        free(r);
    }
    for (struct dp_accept *a = garbage->accepts, *next; a != NULL; a = next) {
        next = a->next;
        free(a);
    }
    *garbage = (struct dp_garbage){0};
}
