/* SPDX-License-Identifier: Apache-2.0
 *
 * What selened orders from selened-dp: tools/selened/dp/orders.c, control.c, sessions.c, edge.c, packet.c. The input is a list of
 * orders, well formed or not, and of what happens meanwhile at the other ends of the descriptors that come with them.
 */
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "dp.h"

#define PEERS 8

static int peers[PEERS]; /* our ends of the sockets that came with orders */
static unsigned peer_count;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    dp_start();
    return 0;
}

/* One of a few numbers, so that orders meet; any number now and then. */
static uint64_t number(struct input *in)
{
    uint64_t byte = input_number(in, 1);
    return byte < 0xf0 ? byte % 5 : input_number(in, 8);
}

static struct selene_addr address(struct input *in)
{
    uint64_t byte = input_number(in, 1);
    struct selene_addr a = {.ip = {[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 1}, .port = (uint16_t)(byte + 1)};
    if (byte == 0)
        memset(a.ip, 0, sizeof a.ip);
    else if (byte >= 0xf8)
        input_copy(in, &a, sizeof a);
    return a;
}

static int descriptor(unsigned kind)
{
    int pair[2];
    switch (kind % 4) {
    case 0:
        HOLDS(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
        if (peer_count < PEERS)
            peers[peer_count++] = pair[0];
        else
            close(pair[0]);
        return pair[1];
    case 1:
        return dp_udp();
    case 2:
        return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    default:
        return dup(STDERR_FILENO);
    }
}

static size_t fill(struct input *in, uint16_t type, void *packet)
{
    if (type == SELENE_O_EDGE) {
        struct selene_order_edge *o = packet;
        *o = (struct selene_order_edge){.edge = number(in),
                                        .source = number(in),
                                        .sink = number(in),
                                        .source_session = number(in),
                                        .sink_session = number(in),
                                        .depth = (uint32_t)input_number(in, input_number(in, 1) % 5)};
        return sizeof *o;
    }
    if (type == SELENE_O_ROUTE) {
        struct selene_order_route *o = packet;
        *o = (struct selene_order_route){.source = number(in),
                                         .session = number(in),
                                         .channel = number(in),
                                         .stream = (uint32_t)number(in),
                                         .epoch = (uint32_t)number(in),
                                         .dests_count = (uint32_t)number(in),
                                         .sessions_count = (uint32_t)number(in)};
        for (uint32_t i = 0; i < 5; i++) {
            o->dests[i] = (struct selene_dest){.address = address(in), .window = (uint32_t)number(in)};
            o->sessions[i] = number(in);
        }
        return sizeof *o;
    }
    if (type == SELENE_O_ACCEPT) {
        struct selene_order_accept *o = packet;
        *o = (struct selene_order_accept){.source = number(in),
                                          .address = address(in),
                                          .flags = (uint32_t)number(in),
                                          .sessions_count = (uint32_t)number(in)};
        for (uint32_t i = 0; i < 5; i++)
            o->sessions[i] = number(in);
        return sizeof *o;
    }
    struct selene_order *o = packet;
    *o = (struct selene_order){
        .session = number(in), .id = number(in), .uid = (uint32_t)number(in), .flags = (uint32_t)number(in)};
    return sizeof *o;
}

static void order(struct input *in)
{
    static _Alignas(8) uint8_t packet[SELENE_MAX_PACKET];
    static const uint8_t kinds[] = {[SELENE_O_LISTEN - SELENE_O_HELLO] = 1, [SELENE_O_EDGE - SELENE_O_HELLO] = 2};
    uint16_t type = (uint16_t)(SELENE_O_HELLO + input_number(in, 1) % 11);
    unsigned how = (unsigned)input_number(in, 1), kind = 0;
    int fds[16], fd_count = type == SELENE_O_LISTEN || type == SELENE_O_SESSION || type == SELENE_O_EDGE;
    size_t size = fill(in, type, packet);
    if ((size_t)(type - SELENE_O_HELLO) < sizeof kinds)
        kind = kinds[type - SELENE_O_HELLO];
    if (how & 0x80) { /* not what belongs to it */
        fd_count = (int)(how & 15);
        kind = how >> 4;
    }
    if ((how & 0xc0) == 0x40)
        size = (how & 0x20) ? sizeof(struct selene_msg) : input_number(in, 2);
    for (int i = 0; i < fd_count; i++)
        fds[i] = descriptor(kind);
    dp_order(packet, size, type, fds, fd_count, false);
    for (int i = 0; i < fd_count; i++)
        close(fds[i]);
}

static void raw(struct input *in)
{
    static _Alignas(8) uint8_t packet[SELENE_MAX_PACKET + 16];
    size_t size = input_number(in, 2) % sizeof packet;
    input_copy(in, packet, size);
    dp_order(packet, size, 0, NULL, 0, true);
}

static void peer(struct input *in)
{
    unsigned what = (unsigned)input_number(in, 1);
    if (peer_count == 0)
        return;
    unsigned i = what % peer_count;
    if (what & 0x80)
        (void)send(peers[i], "x", what >> 6 & 1, MSG_NOSIGNAL | MSG_DONTWAIT);
    else if (what & 0x40)
        shutdown(peers[i], SHUT_RDWR);
    else
        while (dp_read(peers[i], NULL, false) >= 0)
            ;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    dp_begin();
    for (int steps = 0; in.left > 0 && steps < 64; steps++) {
        unsigned what = (unsigned)input_number(&in, 1) % 16;
        steps_taken++;
        if (what < 11)
            order(&in);
        else if (what == 11)
            raw(&in);
        else if (what < 14)
            peer(&in);
        else
            dp_settle(what == 14 ? 0 : 1500000000);
        if (dp.control.controller < 0)
            dp_greet();
    }
    while (peer_count > 0)
        close(peers[--peer_count]);
    dp_end();
    return 0;
}
