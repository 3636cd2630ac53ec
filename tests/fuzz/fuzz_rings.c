/* SPDX-License-Identifier: Apache-2.0
 *
 * What clients write into the memory that they share with selened-dp, and what comes from the network: tools/selened/dp/transmit.c,
 * receive.c, rxpool.c, wake.c, net.c. Two sessions of one user and one of another, with routes between them and to a peer. The input
 * says what each writes into its rings and buffers, honest or not, and when the data thread looks.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "dp.h"

#define CLIENTS 3
#define RELAYED_FROM_PEER UINT64_C(0x900000001)

struct client {
    struct dp_session *session; /* NULL: it has ended */
    uint64_t id;
    int socket;
    int wake_fd;
    uint8_t *tx; /* the memfd: bell page and pool */
    uint8_t *page;
};

static struct client clients[CLIENTS];
static int peer, network; /* our end, and the datapath's */
static struct sockaddr_in peer_address, network_address;
static const size_t tx_bytes = SELENE_BELL_BYTES + (1 << 20); /* as much of it as we use */

static struct selene_addr wire_address(const struct sockaddr_in *a)
{
    struct selene_addr out = {.ip = {[10] = 0xff, [11] = 0xff}, .port = ntohs(a->sin_port)};
    memcpy(out.ip + 12, &a->sin_addr, 4);
    return out;
}

/* ---- Sessions and routes, which outlive an input unless it ends them ---- */

static void leave(struct client *c)
{
    munmap(c->tx, tx_bytes);
    munmap(c->page, SELENE_PAGE_SIZE);
    close(c->socket);
    close(c->wake_fd);
    c->session = NULL;
}

static void join(unsigned i)
{
    struct client *c = &clients[i];
    struct selene_order order = {.session = c->id = 0x10 + i, .id = 1, .uid = i / 2};
    int pair[2], fds[SELENE_MAX_FDS];
    HOLDS(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0);
    dp_order(&order, sizeof order, SELENE_O_SESSION, &pair[1], 1, false);
    close(pair[1]);
    HOLDS(dp_read(pair[0], fds, true) == 5);
    c->socket = pair[0];
    c->tx = mmap(NULL, tx_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0);
    c->page = mmap(NULL, SELENE_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fds[1], 0);
    HOLDS(c->tx != MAP_FAILED && c->page != MAP_FAILED);
    c->wake_fd = fds[3];
    close(fds[0]);
    close(fds[1]);
    close(fds[2]);
    close(fds[4]);
    c->session = dp_control_find(&dp.control, c->id);
    HOLDS(c->session != NULL);
}

static uint64_t source_of(unsigned client)
{
    return 0x100 + client;
}

/* Each client has a source; all others, and the peer, get what it sends. The peer has one too. */
static void connect_all(void)
{
    for (unsigned i = 0; i < CLIENTS; i++) {
        struct selene_order_route route = {.source = source_of(i),
                                           .session = clients[i].id,
                                           .epoch = 1,
                                           .dests_count = 1,
                                           .dests = {{.address = wire_address(&peer_address)}}};
        struct selene_order_accept local = {.source = source_of(i)};
        for (unsigned k = 0; k < CLIENTS; k++)
            if (k / 2 != i / 2)
                route.sessions[route.sessions_count++] = local.sessions[local.sessions_count++] = clients[k].id;
        dp_order(&route, sizeof route, SELENE_O_ROUTE, NULL, 0, false);
        dp_order(&local, sizeof local, SELENE_O_ACCEPT, NULL, 0, false);
    }
    struct selene_order_accept remote = {.source = RELAYED_FROM_PEER,
                                         .address = wire_address(&peer_address),
                                         .sessions_count = CLIENTS,
                                         .sessions = {clients[0].id, clients[1].id, clients[2].id}};
    dp_order(&remote, sizeof remote, SELENE_O_ACCEPT, NULL, 0, false);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    socklen_t size = sizeof peer_address;
    dp_start();
    dp_greet();
    peer = dp_udp();
    network = dp_udp();
    HOLDS(getsockname(peer, (void *)&peer_address, &size) == 0);
    HOLDS(getsockname(network, (void *)&network_address, &size) == 0);
    struct selene_order listen = {0};
    dp_order(&listen, sizeof listen, SELENE_O_LISTEN, &network, 1, false);
    for (unsigned i = 0; i < CLIENTS; i++)
        join(i);
    connect_all();
    return 0;
}

/* ---- What a client does ---- */

static struct qos_ring *ring(const struct client *c, unsigned which)
{
    static const uint32_t offsets[] = {SELENE_PAGE_TX, SELENE_PAGE_DONE, SELENE_PAGE_RX, SELENE_PAGE_RELEASE};
    return (struct qos_ring *)(void *)(c->page + offsets[which % 4]);
}

static void push(struct qos_ring *r, uint64_t word)
{
    uint64_t tail = qos_load_relaxed(&r->tail);
    r->words[tail % SELENE_RING_CAPACITY] = word;
    qos_store_relaxed(&r->tail, tail + 1);
}

/* A header that mostly is one: its fields are small numbers, or any. */
static void header(struct input *in, uint8_t out[QOS_WIRE_HEADER], unsigned client, bool theirs)
{
    uint8_t how = (uint8_t)input_number(in, 1), flags = (uint8_t)input_number(in, 1);
    struct qos_wire w = {.type = how & 3 ? how & 3 : QOS_WIRE_MARKER,
                         .flags = flags & 0xf,
                         .credit = (uint32_t)input_number(in, how >> 2 & 3),
                         .source = theirs ? RELAYED_FROM_PEER : source_of(client)};
    if (flags & 0x80)
        w.flags |= QOS_WIRE_ANSWER;
    if (flags & 0x40)
        w.source = source_of(flags % CLIENTS);
    if (flags & 0x20)
        w.frag_offset = (uint32_t)input_number(in, 4);
    if (flags & 0x10)
        w.frag_total = (uint32_t)input_number(in, 4);
    if (w.type == QOS_WIRE_DATA) {
        w.count = 1;
        w.length = (uint16_t)input_number(in, how & 0x40 ? 2 : 1);
    }
    qos_frame_encode(out, &w);
    if (how & 0x80) {
        uint64_t at = input_number(in, 1);
        out[at % QOS_WIRE_HEADER] ^= (uint8_t)input_number(in, 1);
    }
}

static void transmit(struct input *in, struct client *c, unsigned client)
{
    unsigned how = (unsigned)input_number(in, 1);
    uint32_t buffer = how & 7, offset = (uint32_t)input_number(in, 1) * 8, length = QOS_WIRE_HEADER;
    struct qos_region pool = qos_region_at(c->tx + SELENE_BELL_BYTES, SELENE_TX_BUFFERS);
    header(in, pool.buffers + (size_t)buffer * QOS_POOL_STRIDE + offset, client, (how & 8) != 0);
    length += (uint32_t)input_number(in, how & 0x10 ? 2 : 1);
    uint64_t slice = how & 0x20 ? input_number(in, 8) : qos_slice_make(buffer, offset, 0, 0);
    uint64_t kind = how & 0x40 ? input_number(in, 4) : (how & 8 ? SELENE_TO_SOURCE : SELENE_TO_ROUTE);
    push(ring(c, 0), slice);
    if (!(how & 0x80))
        push(ring(c, 0), length | kind << 32);
}

/* Take what came, and give it back; or something else. */
static void receive(struct input *in, struct client *c)
{
    unsigned how = (unsigned)input_number(in, 1);
    struct qos_ring *rx = ring(c, 2);
    uint64_t head = qos_load_relaxed(&rx->head), ready = qos_load_relaxed(&rx->tail) - head;
    for (unsigned n = how % 8; n > 0 && ready >= 2 && ready <= SELENE_RING_CAPACITY; n--, ready -= 2, head += 2)
        push(ring(c, 3), rx->words[head % SELENE_RING_CAPACITY] ^ (how & 0x40 ? input_number(in, 8) : 0));
    qos_store_relaxed(&rx->head, head);
    if (how & 0x80)
        push(ring(c, 3), input_number(in, 8));
    if (how & 8)
        qos_store_relaxed(&ring(c, 1)->head, qos_load_relaxed(&ring(c, 1)->tail));
}

static void scribble(struct input *in, struct client *c)
{
    unsigned how = (unsigned)input_number(in, 1);
    struct qos_ring *r = ring(c, how);
    _Atomic uint64_t *index = how & 4 ? &r->head : &r->tail;
    if (how & 8)
        qos_store_relaxed(index, input_number(in, 8));
    else if (how & 16)
        qos_store_relaxed(index, qos_load_relaxed(index) + input_number(in, 1));
    else if (how & 32)
        input_copy(in, c->page + input_number(in, 3) % (SELENE_PAGE_SIZE - 8), 8);
    else
        __atomic_store_n(&((struct selene_page *)(void *)c->page)->waiting, input_number(in, 1), __ATOMIC_RELAXED);
}

static void call(struct client *c)
{
    uint64_t one = 1;
    HOLDS(write(c->wake_fd, &one, sizeof one) == sizeof one);
    dp_round();
}

static void datagram(struct input *in, bool known)
{
    static uint8_t bytes[4096];
    unsigned from = (unsigned)input_number(in, 1);
    header(in, bytes, from % CLIENTS, known && !(from & 0x80));
    size_t size = QOS_WIRE_HEADER + input_number(in, from & 0x40 ? 2 : 1) % (sizeof bytes - QOS_WIRE_HEADER);
    if (from & 0x20)
        size = input_number(in, 1) % (QOS_WIRE_HEADER + 8);
    (void)sendto(known ? peer : network, bytes, size, MSG_DONTWAIT, (void *)&network_address, sizeof network_address);
}

/* ---- ---- */

/* Back to the beginning: what was held comes back, and nothing more is held anywhere. */
static void tidy(void)
{
    bool again = false;
    dp_settle(1000000);
    for (unsigned i = 0; i < CLIENTS; i++) {
        struct client *c = &clients[i];
        struct dp_session *s = dp_control_find(&dp.control, c->id);
        if (s == NULL) {
            leave(c);
            continue;
        }
        for (uint32_t b = 0; b < SELENE_RX_BUFFERS && s->held > 0; b++)
            while (s->holds[b] > 0)
                HOLDS(dp_rxpool_drop(s->pool, s, qos_slice_make(b, 0, 0, s->pool->generation[b])) == 0);
        HOLDS(s->slices == 0);
        qos_store_relaxed(&ring(c, 0)->tail, s->ring_tx.head);
        qos_store_relaxed(&ring(c, 1)->head, s->ring_done.tail);
        qos_store_relaxed(&ring(c, 2)->head, s->ring_rx.tail);
        qos_store_relaxed(&ring(c, 3)->tail, s->ring_release.head);
        s->ring_tx.tail = s->ring_tx.head;
        s->ring_release.tail = s->ring_release.head;
        s->ring_rx.head = s->ring_rx.tail;
        s->ring_done.head = s->ring_done.tail;
        s->empty_wakeups = 0;
    }
    dp_settle(1000000);
    for (const struct dp_rxpool *p = dp.control.pools; p != NULL; p = p->next) {
        HOLDS(p->free_count + (p->current >= 0) == SELENE_RX_BUFFERS);
        for (uint32_t b = 0; b < SELENE_RX_BUFFERS; b++)
            HOLDS(p->references[b] == 0);
    }
    for (unsigned i = 0; i < CLIENTS; i++)
        if (clients[i].session == NULL) {
            join(i);
            again = true;
        }
    if (again)
        connect_all();
    while (recv(peer, &again, sizeof again, MSG_DONTWAIT) >= 0)
        ;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    dp_begin();
    for (int steps = 0; in.left > 0 && steps < 200; steps++) {
        steps_taken++;
        unsigned what = (unsigned)input_number(&in, 1), client = (what >> 4) % CLIENTS;
        struct client *c = &clients[client];
        unsigned step = what % 16;
        if (step < 5)
            transmit(&in, c, client);
        else if (step < 7)
            receive(&in, c);
        else if (step == 7)
            scribble(&in, c);
        else if (step < 11)
            datagram(&in, step != 8);
        else if (step < 13)
            call(c);
        else if (step == 13)
            dp_settle((uint64_t)what << 10);
        else if (what == 0xfe)
            (void)send(c->socket, "x", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
        else
            dp_round();
    }
    tidy();
    return 0;
}
