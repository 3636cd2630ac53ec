/* SPDX-License-Identifier: Apache-2.0
 *
 * Lunar: publish and subscribe by topic name (thesis 6.2.1), on the public client library of SELENE and nothing else.
 *
 *     lunar *moon;
 *     if (lunar_open(&moon, NULL) < 0)
 *         errx(1, "%s", lunar_last_error());
 *     lunar_subscribe(moon, "plant/alarm", on_alarm, NULL);
 *     lunar_publish(moon, "plant/temperature", 64, fill, &reading);
 *     lunar_close(moon);
 *
 * A topic is a name of 1 to LUNAR_MAX_TOPIC bytes. Publishers and subscribers of one name meet on this host and on its
 * peers, if they use the same stream id. The name itself is compared, not its hash alone: two topics never share a
 * channel. Functions return 0, or a negative errno whose reason is lunar_last_error(); all may be called from any
 * thread, and from callbacks, except lunar_close, which is the last call, and those of a lunar_publisher, which one thread
 * at a time may use.
 */
#ifndef LUNAR_H
#define LUNAR_H

#include <stdint.h>

#include "selene.h"

#ifdef __cplusplus
extern "C" {
#endif

#define LUNAR_MAX_TOPIC 255 /* bytes, the final 0 not counted */

typedef struct lunar lunar;
typedef struct lunar_publisher lunar_publisher;

typedef struct lunar_options {
    selene_session_options session; /* daemon, relayed */
    selene_options stream;          /* quality of everything that is published and subscribed */
} lunar_options;

/* Fills the borrowed buffer of `size` bytes. How many were used (0 to size), or a negative number to publish nothing. */
typedef int (*lunar_fill_cb)(void *buffer, uint32_t size, void *arg);

/* Takes one message, in the library's thread; `data` is valid until it returns. `sent_ns` is Unix time of publication,
 * `sequence` counts what that publisher has published on the topic. */
typedef void (*lunar_data_cb)(const char *topic, const void *data, uint32_t size, uint64_t sent_ns, uint64_t sequence,
                              void *arg);

/* Direct session, best-effort stream 0 in the kernel's UDP: what selene_session_defaults and selene_options_defaults say. */
SELENE_API void lunar_defaults(lunar_options *options);

/* Connect to the local selened. `options` may be NULL. Errors: those of selene_init_session and selene_create_stream. */
SELENE_API int lunar_open(lunar **moon, const lunar_options *options);

/* Ends all subscriptions, sends what is still to be sent (with reliable delivery it waits up to a second per topic for the
 * subscribers), and frees. NULL is allowed. */
SELENE_API void lunar_close(lunar *moon);

/* Borrow a buffer of `size` bytes, let `fill` write the message into it, and send it, without a copy. The first
 * publication on a topic opens its source. `fill` runs once, in this thread, or not at all on an error; its negative
 * result is returned. Errors: -EINVAL (topic), -EMSGSIZE (more than a message can have, or `fill` said more than size),
 * -EAGAIN (best-effort only: subscribers hold every buffer). Reliable delivery waits for slow subscribers instead. */
SELENE_API int lunar_publish(lunar *moon, const char *topic, uint32_t size, lunar_fill_cb fill, void *arg);

/* For a thread that publishes very many messages on one topic: looks the topic up once, and lunar_publish_by, else like
 * lunar_publish, takes no lock. Each publisher counts its messages by itself. It is closed before the lunar is (NULL is
 * allowed); with reliable delivery that waits up to a second for the subscribers. Errors: -EINVAL (topic), and those of
 * selene_create_named_source. */
SELENE_API int lunar_open_publisher(lunar *moon, const char *topic, lunar_publisher **publisher);
SELENE_API int lunar_publish_by(lunar_publisher *publisher, uint32_t size, lunar_fill_cb fill, void *arg);
SELENE_API int lunar_flush_publisher(lunar_publisher *publisher);
SELENE_API void lunar_close_publisher(lunar_publisher *publisher);

/* Call `callback` for every message on a topic from now on, one at a time. -EEXIST: already subscribed; -EINVAL. */
SELENE_API int lunar_subscribe(lunar *moon, const char *topic, lunar_data_cb callback, void *arg);

/* No callback for this topic runs after it has returned, unless it was called by that very callback. -ENOENT. */
SELENE_API int lunar_unsubscribe(lunar *moon, const char *topic);

/* Send what is batched by lunar_publish, on all topics, now. */
SELENE_API int lunar_flush(lunar *moon);

/* Why the last call of this thread failed. Never NULL. */
SELENE_API const char *lunar_last_error(void);

#ifdef __cplusplus
}
#endif
#endif
