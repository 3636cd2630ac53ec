/* SPDX-License-Identifier: Apache-2.0
 *
 * Sessions and streams.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

/* The first place that has the daemon's socket, else where a daemon of this user would make it. As libqos.paths.client_socket. */
static void find_socket(char *out, size_t room, const char *given)
{
    const char *path = given && *given ? given : getenv("SELENE_SOCKET");
    if (!path || !*path)
        path = getenv("QOS_SELENE_SOCKET");
    if (path && *path) {
        snprintf(out, room, "%s", path);
        return;
    }
    const char *runtime = getenv("RUNTIME_DIRECTORY"), *xdg = getenv("XDG_RUNTIME_DIR");
    char places[5][128];
    int n = 0;
    if (runtime && *runtime)
        snprintf(places[n++], sizeof places[0], "%.*s/selened.sock", (int)strcspn(runtime, ":"), runtime);
    if (xdg && *xdg)
        snprintf(places[n++], sizeof places[0], "%s/qos/selened.sock", xdg);
    snprintf(places[n++], sizeof places[0], "/run/user/%u/qos/selened.sock", (unsigned)getuid());
    snprintf(places[n++], sizeof places[0], "/tmp/qos-%u/selened.sock", (unsigned)getuid());
    snprintf(places[n++], sizeof places[0], "/run/qos/selened.sock");
    for (int i = 0; i < n; i++) {
        struct stat st;
        if (stat(places[i], &st) == 0 && S_ISSOCK(st.st_mode)) {
            memcpy(out, places[i], strnlen(places[i], room - 1));
            return;
        }
    }
    memcpy(out, places[0], strnlen(places[0], room - 1));
}

void selene_session_defaults(selene_session_options *options)
{
    *options = (selene_session_options){.reconnect = 1};
}

static void session_free(struct selene_session *s)
{
    if (s->control_fd >= 0)
        close(s->control_fd);
    if (s->session_fd >= 0)
        close(s->session_fd);
    if (s->kick_fd >= 0)
        close(s->kick_fd);
    if (s->callback_fd >= 0)
        close(s->callback_fd);
    selene_memory_drop(s->memory);
    selene_memory_drop(s->retired);
    if (s->items)
        selene_receive_free(s);
    selene_orphans_free(s);
    pthread_mutex_destroy(&s->lock);
    pthread_mutex_destroy(&s->remote_lock);
    pthread_mutex_destroy(&s->relay_lock);
    pthread_mutex_destroy(&s->dispatch_lock);
    pthread_cond_destroy(&s->cond);
    free(s);
}

static void locks_init(struct selene_session *s)
{
    pthread_mutexattr_t recursive;
    pthread_mutexattr_init(&recursive);
    pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&s->dispatch_lock, &recursive);
    pthread_mutexattr_destroy(&recursive);
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->remote_lock, NULL);
    pthread_mutex_init(&s->relay_lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&s->cond, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

int selene_init_session(selene_session **out, const selene_session_options *options)
{
    struct selene_session *s = calloc(1, sizeof *s);
    if (!s)
        return selene_fail(-ENOMEM, "no memory for a session");
    if (options)
        s->options = *options;
    else
        selene_session_defaults(&s->options);
    find_socket(s->socket_path, sizeof s->socket_path, s->options.socket);
    snprintf(s->program, sizeof s->program, "%s",
             s->options.program ? s->options.program : program_invocation_short_name);
    s->options.socket = s->options.program = NULL; /* the caller's strings */
    s->control_fd = s->session_fd = -1;
    s->indices[0] = 1; /* block 0 is the session's own */
    locks_init(s);
    s->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    s->callback_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int rc = s->kick_fd < 0 || s->callback_fd < 0 ? selene_fail(-errno, "eventfd: %s", strerror(errno))
                                                  : selene_receive_init(s);
    if (rc == 0)
        rc = selene_connect(s);
    if (rc == 0) {
        qos_store_relaxed(&s->ring_used, !s->direct);
        qos_store_release(&s->connected, true);
        rc = -pthread_create(&s->service, NULL, selene_service, s);
        if (rc < 0)
            selene_fail(rc, "cannot start the session's thread: %s", strerror(-rc));
    }
    if (rc < 0) {
        session_free(s);
        return rc;
    }
    *out = s;
    return 0;
}

int selene_close_session(selene_session *s)
{
    if (!s)
        return 0;
    while (s->sinks)
        selene_close_sink(s->sinks);
    while (s->sources)
        selene_close_source(s->sources);
    qos_store_release(&s->stop, true);
    selene_kick(s);
    pthread_join(s->service, NULL);
    selene_dispatch_stop(s);
    if (s->control_fd >= 0)
        close(s->control_fd); /* nobody reads answers any more; the daemon forgets what was this session's */
    s->control_fd = -1;
    while (s->closing) {
        struct selene_source *source = s->closing;
        s->closing = source->next;
        selene_source_free(source);
    }
    while (s->streams)
        selene_stream_drop(s->streams);
    session_free(s);
    return 0;
}

int selene_connected(const selene_session *s)
{
    return qos_load_acquire(&s->connected);
}

int selene_is_direct(const selene_session *s)
{
    return s->direct;
}

uint64_t selene_session_id(const selene_session *s)
{
    return s->id;
}

int selene_index_take(struct selene_session *s, uint32_t *index)
{
    for (uint32_t w = 0; w < SELENE_MAX_ENDPOINTS / 64; w++) {
        if (s->indices[w] == UINT64_MAX)
            continue;
        uint32_t bit = (uint32_t)__builtin_ctzll(~s->indices[w]);
        s->indices[w] |= UINT64_C(1) << bit;
        *index = w * 64 + bit;
        return 0;
    }
    return -ENOSPC;
}

void selene_options_defaults(selene_options *options)
{
    *options = (selene_options){.coalesce = 1};
}

int selene_create_stream(selene_session *s, const selene_options *options, selene_stream **out)
{
    struct selene_stream *stream = calloc(1, sizeof *stream);
    if (!stream)
        return selene_fail(-ENOMEM, "no memory for a stream");
    stream->session = s;
    stream->references = 1;
    if (options)
        stream->options = *options;
    else
        selene_options_defaults(&stream->options);
    pthread_mutex_lock(&s->lock);
    stream->handle = ++s->handle_number;
    pthread_mutex_unlock(&s->lock);
    int rc = selene_declare_stream(stream);
    if (rc < 0) {
        free(stream);
        return rc;
    }
    pthread_mutex_lock(&s->lock);
    stream->next = s->streams;
    s->streams = stream;
    pthread_mutex_unlock(&s->lock);
    *out = stream;
    return 0;
}

/* The last of the application and the endpoints lets go: until then they use its options, and it is declared again after a restart. */
void selene_stream_drop(struct selene_stream *stream)
{
    struct selene_session *s = stream->session;
    if (qos_sub_acq_rel(&stream->references, 1) > 1)
        return;
    pthread_mutex_lock(&s->lock);
    for (struct selene_stream **at = &s->streams; *at; at = &(*at)->next) {
        if (*at == stream) {
            *at = stream->next;
            break;
        }
    }
    pthread_mutex_unlock(&s->lock);
    (void)selene_withdraw(s, stream->handle, 3);
    free(stream);
}

void selene_close_stream(selene_stream *stream)
{
    if (stream)
        selene_stream_drop(stream);
}

const char *selene_stream_technology(const selene_stream *stream)
{
    return stream->technology;
}

const char *selene_stream_reason(const selene_stream *stream)
{
    return stream->reason;
}
