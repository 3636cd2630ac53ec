/* SPDX-License-Identifier: Apache-2.0
 *
 * libselene: quality of service for one process' messages. The API of thesis 5.3.1, Figure 5.11, with handles, bursts and flush.
 *
 *   session   a connection to the local selened; reconnects by itself when the daemon comes back
 *   stream    a set of quality requirements (thesis 5.3.2) for the channels in it
 *   channel   a one-way flow from sources to sinks; they meet by stream id, channel id and name, on this host and on peers
 *
 * Functions return 0 or a positive result, or a negative errno. A session and a stream may be used from several threads. A source or
 * a sink is used by one thread at a time; different ones in parallel. Payloads are borrowed: between get_buffer and emit the buffer is
 * the caller's to write, between consume and release it is the caller's to read. A local source of the same user is shared memory:
 * what it writes after emit can be seen by its sinks.
 */
#ifndef SELENE_H
#define SELENE_H

#ifndef QOS_CDEF
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
#endif

#define SELENE_VERSION "0.1.0"
#define SELENE_MAX_MESSAGE 65536 /* bytes of a local message */
#define SELENE_OUTCOMES 4096     /* emit outcomes kept per source */

/* Flags of get_buffer, emit, consume, data_available. */
#define SELENE_DONTWAIT 1 /* never sleep: -EAGAIN instead */

typedef struct selene_session selene_session;
typedef struct selene_stream selene_stream;
typedef struct selene_source selene_source;
typedef struct selene_sink selene_sink;

/* How a waiting call waits. */
enum selene_wait {
    SELENE_WAIT_AUTO = 0,  /* by the stream's resource policy: low sleeps, any spins */
    SELENE_WAIT_SLEEP = 1, /* sleep at once */
    SELENE_WAIT_SPIN = 2,  /* spin; yields as soon as threads outnumber processors */
};

typedef struct selene_session_options {
    const char *socket;  /* NULL: SELENE_SOCKET, else QOS_SELENE_SOCKET, else the default path */
    const char *program; /* name in reports; NULL: the process' name */
    int relayed;         /* 1: through the datapath process even where direct is possible */
    int reconnect;       /* 1 (default of selene_session_defaults): come back by itself after a daemon restart */
    int reserved[4];
} selene_session_options;

typedef struct selene_options {
    uint32_t stream;         /* id; sources and sinks meet only within the same one */
    uint32_t acceleration;   /* 0 slow, 1 fast */
    uint32_t resources;      /* 0 low, 1 any */
    uint32_t delivery;       /* 0 best-effort: counts what it drops; 1 reliable: waits for credit and for slow sinks */
    uint32_t time_sensitive; /* 0; other values are refused until the gate engine is there */
    uint32_t traffic_class;  /* 0-7 */
    uint64_t period_ns;
    uint64_t offset_ns;
    uint32_t wait;     /* enum selene_wait */
    uint32_t coalesce; /* 1 (default): opportunistic batching; 0: every emit is a datagram */
} selene_options;

/* A borrowed message. */
typedef struct selene_buffer {
    void *data;
    uint32_t size; /* get_buffer: the size asked for, may be lowered before emit; consume: of the message */
    uint32_t reserved;
    uint64_t sequence; /* consume: of the source */
    uint64_t source;   /* consume: id of the source */
    uint64_t token[2]; /* the library's */
} selene_buffer;

typedef struct selene_source_stats {
    uint64_t messages, bytes, datagrams, dropped, dropped_slow, failed, again;
    uint32_t local_sinks, remote_sinks;
} selene_source_stats;

typedef struct selene_sink_stats {
    uint64_t messages, bytes, datagrams, lost, duplicated, reordered, dropped, refused;
    uint32_t local_sources, remote_sources;
} selene_sink_stats;

/* When the last message passed through this library, Unix time in ns, to see where a round trip's time goes. */
typedef struct selene_stamps {
    uint64_t api_ns; /* source: emit was called; sink: consume had it */
    uint64_t
        system_ns; /* source: just before it went to the kernel or a ring, 0 if into a batch; sink: it had come from there */
} selene_stamps;

/* Called for each message; the buffer is released when it returns. */
typedef void (*selene_data_cb)(selene_sink *sink, const selene_buffer *buffer, void *arg);

#ifndef QOS_CDEF
#if defined(__GNUC__)
#define SELENE_API __attribute__((visibility("default")))
#else
#define SELENE_API
#endif
#else
#define SELENE_API
#endif

/* ---- Session ---- */
SELENE_API void selene_session_defaults(selene_session_options *options);
/* Errors: -ENOENT, -ECONNREFUSED (no daemon), -EPROTONOSUPPORT (daemon of another version), -EACCES, -EUSERS (too many sessions). */
SELENE_API int selene_init_session(selene_session **session, const selene_session_options *options);
SELENE_API int selene_close_session(selene_session *session);
/* Why the last call of this thread failed, in a sentence that says what to do. Never NULL. -EAGAIN and -ETIMEDOUT set none: they are part
 * of the normal course. */
SELENE_API const char *selene_last_error(void);
/* 1 connected, 0 reconnecting. */
SELENE_API int selene_connected(const selene_session *session);
/* 1 if this session sends and receives by itself, 0 if it is relayed. */
SELENE_API int selene_is_direct(const selene_session *session);
SELENE_API uint64_t selene_session_id(const selene_session *session);
/* Run callbacks of the session's sinks in this thread instead of the library's, for up to timeout_ms (-1: until there was one).
 * The number of messages handled. */
SELENE_API int selene_poll(selene_session *session, int timeout_ms);

/* ---- Stream ---- */
SELENE_API void selene_options_defaults(selene_options *options);
SELENE_API int selene_create_stream(selene_session *session, const selene_options *options, selene_stream **stream);
/* Its sources and sinks may be closed before or after. */
SELENE_API void selene_close_stream(selene_stream *stream);
/* The technology in use ("udp") and the reason, as the daemon decided. */
SELENE_API const char *selene_stream_technology(const selene_stream *stream);
SELENE_API const char *selene_stream_reason(const selene_stream *stream);

/* ---- Source ---- */
SELENE_API int selene_create_source(selene_stream *stream, uint64_t channel, selene_source **source);
/* The channel is selene_channel_of(name); the name itself is compared too, so that two names never share a channel. */
SELENE_API int selene_create_named_source(selene_stream *stream, const char *name, selene_source **source);
SELENE_API uint64_t selene_channel_of(const char *name);
/* Flushes, and with reliable delivery waits up to a second until the sinks have taken what was sent. */
SELENE_API void selene_close_source(selene_source *source);
/* -EAGAIN: the pool is empty (sinks hold too much), -EMSGSIZE. */
SELENE_API int selene_get_buffer(selene_source *source, uint32_t size, int flags, selene_buffer *buffer);
/* Give a borrowed buffer back unsent. */
SELENE_API void selene_cancel_buffer(selene_source *source, selene_buffer *buffer);
/* A token (>= 0), or -EAGAIN (reliable and SELENE_DONTWAIT: no credit or a full ring; the buffer stays the caller's), -EMSGSIZE (a
 * remote sink and more than one datagram). On other errors the buffer is taken. */
SELENE_API int64_t selene_emit_data(selene_source *source, selene_buffer *buffer);
SELENE_API int64_t selene_emit(selene_source *source, selene_buffer *buffer, int flags);
/* Copy and emit in one call. */
SELENE_API int64_t selene_send(selene_source *source, const void *data, uint32_t size, int flags);
/* Several at once: how many were borrowed/emitted (from the first), or a negative errno if none. */
SELENE_API int selene_get_burst(selene_source *source, uint32_t size, int flags, selene_buffer *buffers, uint32_t n);
SELENE_API int selene_emit_burst(selene_source *source, selene_buffer *buffers, uint32_t n, int flags);
/* Send what is batched now, and take back what sinks have given back. */
SELENE_API int selene_flush(selene_source *source);
/* 1 sent, 0 pending, a negative errno (failed), -ESTALE (older than the last SELENE_OUTCOMES). */
SELENE_API int selene_check_emit_outcome(selene_source *source, int64_t token);
SELENE_API uint64_t selene_source_id(const selene_source *source);
/* Stamp each message from now on (costs a look at the clock); NULL: no more. In the thread that uses the source. */
SELENE_API void selene_source_stamp(selene_source *source, selene_stamps *stamps);
/* The counters so far; from any thread. */
SELENE_API void selene_source_get_stats(const selene_source *source, selene_source_stats *stats);

/* ---- Sink ---- */
/* With a callback (may be NULL) messages are handed to it by the library's thread or in selene_poll; consume is then -EBUSY. */
SELENE_API int selene_create_sink(selene_stream *stream, uint64_t channel, selene_data_cb callback, void *arg,
                                  selene_sink **sink);
SELENE_API int selene_create_named_sink(selene_stream *stream, const char *name, selene_data_cb callback, void *arg,
                                        selene_sink **sink);
SELENE_API void selene_close_sink(selene_sink *sink);
/* 1 if consume would return a message now. Without SELENE_DONTWAIT it waits for one. */
SELENE_API int selene_data_available(selene_sink *sink, int flags);
/* 1 and a message; -EAGAIN (SELENE_DONTWAIT, nothing there). */
SELENE_API int selene_consume_data(selene_sink *sink, int flags, selene_buffer *buffer);
/* As consume, waiting at most timeout_ns: -ETIMEDOUT. */
SELENE_API int selene_consume_timeout(selene_sink *sink, uint64_t timeout_ns, selene_buffer *buffer);
/* Up to n messages that are there, waiting for the first unless SELENE_DONTWAIT. */
SELENE_API int selene_consume_burst(selene_sink *sink, int flags, selene_buffer *buffers, uint32_t n);
/* -EINVAL: not a buffer that this sink holds. */
SELENE_API int selene_release_buffer(selene_sink *sink, selene_buffer *buffer);
SELENE_API int selene_release_burst(selene_sink *sink, selene_buffer *buffers, uint32_t n);
/* When the message was emitted, Unix time in ns. Valid until release. */
SELENE_API uint64_t selene_buffer_sent_ns(const selene_buffer *buffer);
/* Readable when consume may return a message: for poll, select, epoll, asyncio. Consume until -EAGAIN after each wake-up. */
SELENE_API int selene_sink_fd(selene_sink *sink);
/* The counters so far; from any thread. */
SELENE_API void selene_sink_get_stats(const selene_sink *sink, selene_sink_stats *stats);
SELENE_API uint64_t selene_sink_id(const selene_sink *sink);
/* As selene_source_stamp: the message that was consumed last. */
SELENE_API void selene_sink_stamp(selene_sink *sink, selene_stamps *stamps);

#ifndef QOS_CDEF
#ifdef __cplusplus
}
#endif
#endif
#endif
