/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ZeroMQ over TCP: a PUSH and a PULL socket each way, as its own programs for latency and throughput use them (PUB sockets drop
 * when a subscriber is slow). One I/O thread, TCP_NODELAY, high-water marks: all as they come, which is what its guide advises.
 */
#include <zmq.h>

#include "peer.h"

static void *context, *out, *in;
static char *filled;

static void must(int rc, const char *what)
{
    if (rc < 0)
        peer_fail(what, zmq_strerror(zmq_errno()));
}

static void *open_socket(int type, const char *address, uint64_t port, bool listens)
{
    char endpoint[128];
    int look_ms = PEER_LOOK_MS;
    void *socket = zmq_socket(context, type);
    snprintf(endpoint, sizeof(endpoint), "tcp://%s:%" PRIu64, address, port);
    if (!socket)
        peer_fail("zmq_socket", zmq_strerror(zmq_errno()));
    must(zmq_setsockopt(socket, ZMQ_RCVTIMEO, &look_ms, sizeof(look_ms)), "ZMQ_RCVTIMEO");
    must(listens ? zmq_bind(socket, endpoint) : zmq_connect(socket, endpoint), endpoint);
    return socket;
}

static void peer_open(void)
{
    filled = calloc(1, peer_size);
    context = zmq_ctx_new();
    in = open_socket(ZMQ_PULL, peer_own, peer_port + peer_asks, true);
    out = open_socket(ZMQ_PUSH, peer_other, peer_port + !peer_asks, false);
}

static void peer_send(uint64_t sequence)
{
    memcpy(filled, &sequence, sizeof(sequence));
    must(zmq_send(out, filled, peer_size, 0), "zmq_send");
}

static void peer_flush(void)
{
}

static void peer_wait(void)
{
    zmq_msg_t message;
    zmq_msg_init(&message);
    uint64_t until = raw_now_ns() + PEER_LOOK_MS * 1000000u;
    for (uint64_t looks = 0; !peer_done(); looks++) {
        int size = zmq_msg_recv(&message, in, peer_spin ? ZMQ_DONTWAIT : 0);
        if (size >= 0) {
            received(zmq_msg_data(&message), (size_t)size);
            continue;
        }
        if (zmq_errno() != EAGAIN)
            must(size, "zmq_msg_recv");
        if (!peer_spin || (looks % 256 == 0 && raw_now_ns() > until))
            break;
        sched_yield(); /* its I/O thread is on the same CPU */
    }
    zmq_msg_close(&message);
}

static void peer_close(void)
{
    zmq_close(out);
    zmq_close(in);
    zmq_ctx_term(context); /* waits until everything is sent */
}

PEER_MAIN
