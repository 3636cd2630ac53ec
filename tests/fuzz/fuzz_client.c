/* SPDX-License-Identifier: Apache-2.0
 *
 * What selened, selened-dp, other processes and other hosts tell a session of libselene: tools/selened/client/control.c, receive.c,
 * remote.c, source.c, sink.c, consume.c. The input says what the application does, what the daemons answer and announce, what comes
 * over the network, and what the other side of an edge writes into the memory that it shares.
 */
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client.h"

#define ENDS 3
#define EDGES 4
#define KEPT 4

static struct input input;
static bool fuzzing;
static selene_session *session;
static selene_stream *streams[ENDS];
static selene_source *sources[ENDS];
static selene_sink *sinks[ENDS];
static struct {
    uint8_t *memory;
    uint32_t depth;
} edges[EDGES];
static unsigned edge_count;
static struct {
    selene_source *source; /* NULL: none */
    selene_buffer buffer;
} kept[KEPT];

static void open_session(void)
{
    selene_session_options options = {.socket = socket_path, .program = "fuzz"};
    fuzzing = false;
    HOLDS(selene_init_session(&session, &options) == 0);
    fuzzing = true;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    daemons_start();
    return 0;
}

static uint64_t id(void)
{
    uint64_t byte = input_number(&input, 1);
    return byte < 0xf0 ? HOST | (byte % 4 + 1) : byte < 0xf8 ? 0 : input_number(&input, 8);
}

static uint32_t number(void)
{
    uint64_t byte = input_number(&input, 1);
    return byte < 0xf0 ? (uint32_t)byte : (uint32_t)input_number(&input, 4);
}

static struct selene_addr address(void)
{
    const struct sockaddr_in *a = &daemons.peer_address;
    struct selene_addr out = {.ip = {[10] = 0xff, [11] = 0xff}, .port = ntohs(a->sin_port)};
    uint8_t byte = (uint8_t)input_number(&input, 1);
    memcpy(out.ip + 12, &a->sin_addr, 4);
    if (byte & 0x80)
        out.port = (uint16_t)(out.port ^ byte);
    if (byte >= 0xf8)
        input_copy(&input, &out, sizeof out);
    return out;
}

/* ---- The daemons ---- */

static void announce_route(void)
{
    static _Alignas(8) uint8_t bytes[sizeof(struct selene_route) + SELENE_MAX_DESTS * sizeof(struct selene_dest)];
    struct selene_route *p = (void *)bytes;
    uint32_t count = number() % 72, written = count < 4 ? count : 4;
    *p = (struct selene_route){.source = id(),
                               .epoch = number(),
                               .flags = number() & SELENE_RELAYED,
                               .count = count,
                               .window = number() * 1024};
    for (uint32_t i = 0; i < written; i++)
        p->dests[i] = (struct selene_dest){.address = address(), .window = number() * 1024};
    size_t size = sizeof *p + (count <= SELENE_MAX_DESTS ? count : 1) * sizeof p->dests[0];
    daemons_send(daemons.control, p, size - (number() == 1), SELENE_S_ROUTE, 0, NULL, 0);
}

static void announce_accept(uint32_t request)
{
    static _Alignas(8) uint8_t bytes[sizeof(struct selene_accept) + 8 * sizeof(struct selene_accept_entry)];
    struct selene_accept *p = (void *)bytes;
    uint32_t count = number() % 9;
    *p = (struct selene_accept){.sink = id(), .count = count == 8 ? number() : count};
    for (uint32_t i = 0; i < count; i++)
        p->entries[i] = (struct selene_accept_entry){
            .source = id(), .address = address(), .flags = number() & SELENE_RELAYED, .window = number() * 256};
    daemons_send(daemons.control, p, sizeof *p + count * sizeof p->entries[0], SELENE_S_ACCEPT, request, NULL, 0);
}

static void announce_edge(uint16_t type)
{
    uint8_t how = (uint8_t)input_number(&input, 1);
    struct selene_edge_open open = {.edge = id(),
                                    .source = id(),
                                    .sink = id(),
                                    .session = id(),
                                    .depth = how & 0x80 ? number() : 8u << how % 4,
                                    .tx_buffers = how & 0x40 ? number() : 4};
    uint32_t depth = 8u << how % 4;
    int memory = memfd_create("edge", MFD_CLOEXEC),
        other = type == SELENE_D_EDGE_SINK ? dup(daemons.pool) : eventfd(0, EFD_CLOEXEC);
    size_t size = how & 0x20 ? number() : qos_shm_size(depth);
    HOLDS(memory >= 0 && other >= 0 && ftruncate(memory, (off_t)size) == 0);
    if (size >= qos_shm_size(depth)) {
        uint8_t *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
        HOLDS(base != MAP_FAILED && qos_shm_init(base, depth) == 0);
        if (edge_count < EDGES && size == qos_shm_size(depth)) {
            edges[edge_count].memory = base;
            edges[edge_count++].depth = depth;
        } else {
            munmap(base, size);
        }
    }
    int fds[] = {memory, other};
    daemons_send(daemons.session, &open, sizeof open, type, 0, fds, how & 0x10 ? number() % 3 : 2);
    close(memory);
    close(other);
}

/* Say something, as an answer to a request or by oneself. */
static void say(uint32_t request)
{
    static _Alignas(8) uint8_t p[2048];
    uint8_t what = (uint8_t)input_number(&input, 1);
    struct selene_endpoint_ok endpoint;
    struct selene_edge_gone gone;
    switch (what % 16) {
    case 0:
        announce_route();
        break;
    case 1:
        announce_accept(what & 0x80 ? 1 : 0);
        break;
    case 2:
        announce_edge(SELENE_D_EDGE_SOURCE);
        break;
    case 3:
        announce_edge(SELENE_D_EDGE_SINK);
        break;
    case 4:
        gone = (struct selene_edge_gone){.edge = id()};
        daemons_send(daemons.session, &gone, sizeof gone, SELENE_D_EDGE_GONE, 0, NULL, 0);
        break;
    case 5: /* any packet */
        input_copy(&input, p + sizeof(struct selene_msg), 64);
        daemons_send(what & 0x80 ? daemons.session : daemons.control, p, input_number(&input, 2) % sizeof p,
                     (uint16_t)input_number(&input, 1), request, NULL, 0);
        break;
    case 6:
        daemons_send(daemons.control, p, sizeof(struct selene_error), SELENE_S_ERROR, request, NULL, 0);
        break;
    case 7:
        if (what & 0x80)
            daemons_hang_up();
        break;
    case 8:
        daemons_send(daemons.control, p, sizeof(struct selene_stream_ok), SELENE_S_STREAM, request, NULL, 0);
        break;
    default:
        endpoint = (struct selene_endpoint_ok){.id = id()};
        daemons_send(daemons.control, &endpoint, sizeof endpoint, SELENE_S_ENDPOINT, request, NULL, 0);
    }
}

void daemons_asked(int fd, const struct selene_msg *packet)
{
    if (packet->type == SELENE_C_HELLO) {
        struct selene_welcome welcome = daemons_honest_welcome();
        struct selene_dp_session memory = daemons_honest_memory();
        daemons_welcome(&welcome, sizeof welcome, &memory, sizeof memory, 0);
        return;
    }
    if (!fuzzing || fd != session->control_fd || packet->type == SELENE_C_ACCEPTED)
        return;
    struct selene_msg ok;
    uint8_t first = (uint8_t)input_number(&input, 1);
    for (unsigned i = 0; i < first % 4; i++)
        say(packet->request);
    /* whoever waits is answered in the end, or sees that nobody is there */
    if (packet->type == SELENE_C_STREAM || packet->type == SELENE_C_CLOSE || first & 0x80)
        daemons_send(daemons.control, &ok, sizeof ok, SELENE_S_OK, packet->request, NULL, 0);
    else if (first & 0x40)
        daemons_hang_up();
    else {
        struct selene_endpoint_ok endpoint = {.id = id()};
        daemons_send(daemons.control, &endpoint, sizeof endpoint, SELENE_S_ENDPOINT, packet->request, NULL, 0);
    }
    char drop[SELENE_MAX_TEXT];
    while (daemons.control >= 0 && recv(daemons.control, drop, sizeof drop, MSG_DONTWAIT) > 0)
        ;
}

/* ---- The network, the datapath process, the other side of an edge ---- */

static size_t datagram(uint8_t *out, size_t room)
{
    uint8_t how = (uint8_t)input_number(&input, 1);
    struct qos_wire w = {.type = how & 3 ? how & 3 : QOS_WIRE_DATA,
                         .flags = how & QOS_WIRE_RELIABLE * 4 ? QOS_WIRE_RELIABLE : 0,
                         .source = id(),
                         .sequence = number(),
                         .credit = number()};
    size_t size = QOS_WIRE_HEADER;
    if (w.type == QOS_WIRE_DATA) {
        w.count = (uint16_t)(1 + (how >> 4 & 3));
        for (unsigned i = 0; i < w.count && size + 300 < room; i++) {
            uint32_t length = (uint32_t)input_number(&input, 1);
            qos_frame_put_record(out + size, how & 8 ? length + number() : length, 0);
            memset(out + size + QOS_WIRE_RECORD, 'x', qos_frame_record_size(length) - QOS_WIRE_RECORD);
            size += qos_frame_record_size(length);
        }
        w.length = (uint16_t)(size - QOS_WIRE_HEADER);
    }
    qos_frame_encode(out, &w);
    if (how & 0x40)
        out[input_number(&input, 1) % QOS_WIRE_HEADER] ^= (uint8_t)input_number(&input, 1);
    return how & 0x80 ? input_number(&input, 2) % (size + 1) : size;
}

static void from_network(void)
{
    uint8_t bytes[4096];
    size_t size = datagram(bytes, sizeof bytes);
    (void)sendto(daemons.peer, bytes, size, MSG_DONTWAIT, (void *)&daemons.udp_address, sizeof daemons.udp_address);
}

static struct qos_ring *ring(uint32_t offset)
{
    return (struct qos_ring *)(void *)(daemons.page + offset);
}

static void push(struct qos_ring *r, uint32_t capacity, uint64_t word)
{
    uint64_t tail = qos_load_relaxed(&r->tail);
    r->words[tail % capacity] = word;
    qos_store_relaxed(&r->tail, tail + 1);
}

static void from_datapath(void)
{
    uint8_t how = (uint8_t)input_number(&input, 1);
    struct qos_region rx = qos_region_at(daemons.rx_base, RX_BUFFERS);
    uint32_t buffer = how % RX_BUFFERS;
    uint64_t slice = qos_slice_make(buffer, 0, 0, 0),
             size = datagram(rx.buffers + buffer * (size_t)QOS_POOL_STRIDE, 4096);
    if (how & 0x80)
        slice = input_number(&input, 8);
    if (how & 0x40)
        size = input_number(&input, 8);
    struct qos_ring *r = ring(how & 0x20 ? SELENE_PAGE_DONE : SELENE_PAGE_RX);
    push(r, SELENE_RING_CAPACITY, slice);
    if (how & 0x18)
        push(r, SELENE_RING_CAPACITY, size);
    if ((how & 0x1f) == 0x1f)
        qos_store_relaxed(&r->tail, input_number(&input, 8));
}

/* The forward ring is ours if the session has the sink, the release ring if it has the source; both are written, as anybody could. */
static void from_edge(void)
{
    uint8_t how = (uint8_t)input_number(&input, 1);
    if (edge_count == 0)
        return;
    unsigned e = how % edge_count;
    struct qos_ring *forward = (void *)(edges[e].memory + QOS_SHM_RINGS);
    struct qos_ring *back = (void *)((uint8_t *)forward + qos_ring_size(2 * edges[e].depth));
    uint64_t raw = how & 0x40 ? input_number(&input, 8) : 0, length = number();
    if (how & 0x20) {
        uint64_t head = qos_load_relaxed(&forward->head), tail = qos_load_relaxed(&forward->tail);
        uint64_t slice = tail != head ? forward->words[head % (2 * edges[e].depth)] : 0;
        qos_store_relaxed(&forward->head, head + (tail - head >= 2 ? 2 : 0));
        push(back, edges[e].depth, slice ^ raw);
    } else {
        uint64_t slice = qos_slice_make(how >> 2 & 3, QOS_POOL_HEADROOM, 0, 0);
        push(forward, 2 * edges[e].depth, slice ^ raw);
        push(forward, 2 * edges[e].depth, length);
    }
    if (how & 0x80)
        qos_store_relaxed(how & 0x10 ? &forward->tail : &back->tail, input_number(&input, 8));
}

/* ---- The application ---- */

static void create(unsigned what)
{
    unsigned at = what >> 4 & 1;
    selene_options options = {.stream = 1, .delivery = what >> 5 & 1, .wait = what >> 6 & 1, .coalesce = what >> 7 & 1};
    if (!streams[at] && selene_create_stream(session, &options, &streams[at]) < 0)
        streams[at] = NULL;
    if (!streams[at])
        return;
    unsigned end = what >> 6 & 1;
    if (what & 8 && !sinks[end] && selene_create_sink(streams[at], 5, NULL, NULL, &sinks[end]) < 0)
        sinks[end] = NULL;
    if (!(what & 8) && !sources[end] && selene_create_named_source(streams[at], "name", &sources[end]) < 0)
        sources[end] = NULL;
}

static void consume(void)
{
    for (unsigned i = 0; i < ENDS; i++) {
        selene_buffer buffers[8];
        int n = sinks[i] ? selene_consume_burst(sinks[i], SELENE_DONTWAIT, buffers, 8) : 0;
        for (int k = 0; k < n; k++) {
            uint64_t sum = selene_buffer_sent_ns(&buffers[k]);
            for (uint32_t b = 0; b < buffers[k].size; b++)
                sum += ((const volatile uint8_t *)buffers[k].data)[b];
            (void)sum;
        }
        if (n > 0)
            HOLDS(selene_release_burst(sinks[i], buffers, (uint32_t)n) == 0);
    }
}

static void transmit(void)
{
    static const uint8_t bytes[70000];
    for (unsigned i = 0; i < ENDS; i++)
        if (sources[i])
            (void)selene_send(sources[i], bytes, number(), SELENE_DONTWAIT);
}

/* Give back a buffer that was kept. */
static void give_back(unsigned i, bool cancel)
{
    selene_buffer *b = &kept[i].buffer;
    if (!cancel) {
        b->size = b->size > 0 ? (uint32_t)input_number(&input, 2) % b->size : 0;
        (void)selene_emit(kept[i].source, b, SELENE_DONTWAIT);
    }
    if (b->data)
        selene_cancel_buffer(kept[i].source, b);
    kept[i].source = NULL;
}

/* Borrow a buffer and keep it while other things happen, or give it back. */
static void keep(unsigned what)
{
    unsigned i = what >> 3 & 3;
    selene_source *source = sources[what >> 5 & 1];
    if (kept[i].source)
        give_back(i, what & 0x20);
    else if (source && selene_get_buffer(source, number(), SELENE_DONTWAIT, &kept[i].buffer) == 0) {
        kept[i].source = source;
        memset(kept[i].buffer.data, 'x', kept[i].buffer.size);
    }
}

static void close_source(unsigned at)
{
    for (unsigned i = 0; i < KEPT; i++)
        if (kept[i].source && kept[i].source == sources[at])
            give_back(i, true);
    selene_close_source(sources[at]);
    sources[at] = NULL;
}

static void close_some(unsigned what)
{
    unsigned at = what >> 4 & 1;
    if (what & 0x80) {
        selene_close_sink(sinks[at]);
        sinks[at] = NULL;
    } else if (what & 0x40) {
        close_source(at);
    } else {
        selene_close_stream(streams[at]);
        streams[at] = NULL;
    }
}

/* ---- ---- */

/* The application closes everything. */
static void end(void)
{
    for (unsigned i = 0; i < ENDS; i++) {
        if (sinks[i])
            selene_close_sink(sinks[i]);
        if (sources[i])
            close_source(i);
        if (streams[i])
            selene_close_stream(streams[i]);
        sinks[i] = NULL;
        streams[i] = NULL;
    }
    HOLDS(session->sinks == NULL && session->sources == NULL && session->open_batches == 0);
    while (edge_count > 0) {
        edge_count--;
        munmap(edges[edge_count].memory, qos_shm_size(edges[edge_count].depth));
    }
    selene_close_session(session);
    daemons_hang_up();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int before = descriptors();
    input = (struct input){data, size};
    open_session();
    qos_store_relaxed(&session->ring_used, input_number(&input, 1) % 2);
    for (unsigned steps = 0; input.left > 0 && steps < 100; steps++) {
        unsigned what = (unsigned)input_number(&input, 1);
        steps_taken++;
        switch (what % 8) {
        case 0:
            create(what);
            break;
        case 1:
            say(0);
            selene_sync_control(session);
            break;
        case 2:
            from_network();
            break;
        case 3:
            from_datapath();
            break;
        case 4:
            from_edge();
            break;
        case 5:
            consume();
            break;
        case 6:
            if (what >= 0xc0)
                keep(what);
            else
                transmit();
            break;
        default:
            close_some(what);
        }
    }
    consume();
    end();
    HOLDS(descriptors() == before);
    return 0;
}
