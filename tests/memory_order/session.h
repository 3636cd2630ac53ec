/* SPDX-License-Identifier: Apache-2.0 */
/* What scenarios with the client library are put together from. */
#ifndef MODEL_SESSION_H
#define MODEL_SESSION_H

#include "internal.h"
#include "model_check.h"

static inline int model_rx_nothing(struct qos_datapath *udp, struct qos_packet *packets, unsigned n)
{
    (void)udp;
    (void)packets;
    (void)n;
    return 0;
}

static inline int model_no_fd(const struct qos_datapath *udp)
{
    (void)udp;
    return -1;
}

/* A socket to which nothing comes. */
static inline struct qos_datapath *model_silent_udp(void)
{
    static const struct qos_datapath_ops ops = {.rx = model_rx_nothing, .wait_fd = model_no_fd};
    static struct qos_datapath udp = {.ops = &ops};
    return &udp;
}

/* A sink without sources, which the application does not poll. */
static inline struct selene_sink model_sink(struct selene_session *session, struct selene_stream *stream,
                                            struct memory *memory, struct selene_counters *counters)
{
    return (struct selene_sink){
        .session = session, .stream = stream, .memory = memory, .counters = counters, .poll_fd = -1};
}

/* Consumes and releases a message that carries its sequence number, which it returns; 0 if there is none. */
static inline uint64_t model_consume(struct selene_sink *sink, int flags)
{
    selene_buffer buffer;
    if (selene_consume_data(sink, flags, &buffer) != 1)
        return 0;
    uint64_t number = *(uint64_t *)buffer.data;
    MODEL_ASSERT(number == buffer.sequence && number > 0);
    MODEL_ASSERT(selene_release_buffer(sink, &buffer) == 0);
    return number;
}

#endif
