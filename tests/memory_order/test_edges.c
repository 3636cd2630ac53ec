/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Messages between processes of one host: borrow, emit, consume, release through the whole client library, with each way in which a
 * sink sleeps when all its sources are local (tools/selened/client/sleep.c). Nobody sleeps for ever; nobody reads or overwrites a
 * payload that is not his.
 */
#include <malloc.h>
#include <poll.h>

#include "session.h"

#define SOURCES 2
#define SINKS 2
#define DEPTH 8
#define SLOT 60000 /* bytes of payload for which a slot is a whole buffer */
#define FD(sink) (MODEL_FD + (sink))

static struct selene_session source_sessions[SOURCES], sink_sessions[SINKS];
static struct selene_stream stream;
static struct selene_source sources[SOURCES];
static struct selene_sink sinks[SINKS];
static struct memory memories[SOURCES];
static struct pool_view views[SOURCES];
static struct selene_counters counters[SOURCES + SINKS];
static struct edge_out outs[SOURCES][SINKS], *out_lists[SOURCES][SINKS];
static struct edge_in ins[SOURCES][SINKS], *in_lists[SINKS][SOURCES];
static struct local_flow flows[SOURCES][SINKS];
static _Alignas(4096) uint8_t pools[SOURCES][SELENE_BELL_BYTES + 4096 + QOS_POOL_STRIDE];
static _Alignas(4096) uint8_t page[SELENE_PAGE_SIZE];
static _Alignas(QOS_CACHE_LINE) uint8_t links[SOURCES][SINKS][1024];
static struct {
    uint8_t pool[1024], cache[128];
} saved[SOURCES]; /* both with a buffer cut for messages of 8 bytes; to make them anew takes longer than an execution */
static unsigned emitted[SOURCES];

#define FORWARD(source, sink) ((struct qos_ring *)(void *)(links[source][sink] + QOS_SHM_RINGS))
#define BACK(source, sink)                                                                                             \
    ((struct qos_ring *)(void *)(links[source][sink] + QOS_SHM_RINGS + sizeof(struct qos_ring) + 2 * DEPTH * 8))

#define WAITING(source, sink) (&((struct qos_shm_link *)(void *)links[source][sink])->waiting)
#define BELL(source) ((const void *)pools[source])

/* Have a buffer cut for messages of this size. */
static void cut(unsigned source, uint32_t size)
{
    uint64_t slice;
    MODEL_ASSERT(qos_cache_borrow(sources[source].cache, size, &slice) == 0);
    MODEL_ASSERT(qos_cache_drop(sources[source].cache, slice) == 0);
}

static void join(unsigned source, unsigned sink, bool alone)
{
    struct selene_source *from = &sources[source];
    struct selene_sink *to = &sinks[sink];
    struct edge_out *out = &outs[source][sink];
    struct edge_in *in = &ins[source][sink];
    struct local_flow *flow = &flows[source][sink];
    void *link = links[source][sink];
    free(out->shm.holds);
    *out = (struct edge_out){.event_fd = FD(sink)};
    *flow = (struct local_flow){.next = to->flows, .source = source, .edges = 1};
    *in = (struct edge_in){.source = source, .view = &views[source], .flow = flow};
    to->flows = flow;
    MODEL_ASSERT(qos_shm_size(DEPTH) <= sizeof links[0][0] && qos_shm_init(link, DEPTH) == 0);
    MODEL_ASSERT(qos_shm_producer_open(&out->shm, link, DEPTH, &views[source].region) == 0);
    MODEL_ASSERT(qos_shm_consumer_open(&in->shm, link, DEPTH, &views[source].region) == 0);
    out->shm.link->alone = alone;
    from->edges = out_lists[source];
    from->edges[from->edge_count++] = out;
    to->edges = in_lists[sink];
    to->edge_room = SOURCES;
    to->edges[to->edge_count++] = in;
}

static void setup_ends(void)
{
    struct qos_datapath *udp = model_silent_udp(); /* from the network comes nothing */
    memset(source_sessions, 0, sizeof source_sessions);
    memset(sink_sessions, 0, sizeof sink_sessions);
    memset(counters, 0, sizeof counters);
    memset(emitted, 0, sizeof emitted);
    for (unsigned i = 0; i < SOURCES; i++) {
        struct memory *m = &memories[i];
        struct qos_pool *pool = m->pool;
        struct qos_cache *cache = sources[i].cache;
        *m = (struct memory){.references = SINKS + 1,
                             .tx_base = pools[i],
                             .pool = pool,
                             .page = (struct selene_page *)(void *)page,
                             .tx_buffers = 1,
                             .udp = udp,
                             .net = udp};
        memset(&sources[i], 0, sizeof sources[i]);
        sources[i].sequence = 1; /* at 0 it would look for what came back */
        sources[i].session = &source_sessions[i];
        sources[i].stream = &stream;
        sources[i].memory = m;
        sources[i].cache = cache;
        sources[i].counters = &counters[i];
        memset(pools[i], 0, SELENE_BELL_BYTES + 4096);
        if (pool) {
            memcpy(pool, saved[i].pool, malloc_usable_size(pool));
            memcpy(cache, saved[i].cache, malloc_usable_size(cache));
            continue;
        }
        m->pool = pool = qos_pool_new(pools[i] + SELENE_BELL_BYTES, 1);
        sources[i].cache = cache = qos_cache_new(pool);
        views[i] = (struct pool_view){.base = pools[i], .region = *qos_pool_region(pool)};
        cut(i, 8);
        MODEL_ASSERT(malloc_usable_size(pool) <= sizeof saved[i].pool);
        memcpy(saved[i].pool, pool, malloc_usable_size(pool));
        memcpy(saved[i].cache, cache, malloc_usable_size(cache));
    }
    for (unsigned i = 0; i < SINKS; i++) {
        sink_sessions[i].memory = &memories[0];
        sinks[i] = model_sink(&sink_sessions[i], &stream, &memories[0], &counters[SOURCES + i]);
        sinks[i].event_fd = FD(i);
        sinks[i].courtesy.skip = UINT32_MAX; /* it would look at the clock */
    }
}

/* ---- What the threads do ---- */

static void emit(unsigned source, uint32_t size)
{
    selene_buffer buffer;
    if (selene_get_buffer(&sources[source], size, SELENE_DONTWAIT, &buffer) < 0)
        return; /* the sink still has the only one */
    *(uint64_t *)buffer.data = ++emitted[source];
    MODEL_ASSERT(selene_emit(&sources[source], &buffer, 0) >= 0);
}

static void consume(unsigned sink)
{
    MODEL_ASSERT(model_consume(&sinks[sink], 0) > 0);
}

static void emit_two(void)
{
    emit(0, 8);
    emit(0, 8);
}

static void consume_two(void)
{
    consume(0);
    consume(0);
}

static void emit_one(void)
{
    emit(model_self(), 8);
}

/* Of sink 0, after the threads of the sources; or of the sink with the number of its thread, after one source. */
static void consume_as_second(void)
{
    consume(model_self() - 1);
}

/* The only slot there is, again and again. */
static void emit_in_one_slot(void)
{
    for (int i = 0; i < 3; i++) {
        emit(0, SLOT);
        selene_source_drain(&sources[0]);
    }
}

static void consume_if_any(void)
{
    uint64_t last = 0;
    for (int i = 0; i < 3; i++) {
        uint64_t number = model_consume(&sinks[0], SELENE_DONTWAIT);
        MODEL_ASSERT(number == 0 || number == ++last);
    }
}

/* The service thread: something of the sink has changed. It must look, though no message comes. */
static void change(void)
{
    qos_store_release(&sinks[0].changed, true);
    selene_sink_wake(&sinks[0]);
}

static void await_change(void)
{
    while (!qos_exchange_acq_rel(&sinks[0].changed, false))
        selene_sink_sleep(&sinks[0], UINT64_MAX);
}

/* ---- A sink of one source, alone: asleep on its link ---- */

static void setup_link(void)
{
    setup_ends();
    join(0, 0, true);
}

static void test_sleep_on_link(void)
{
    static const struct model model = {setup_link, {emit_two, consume_two}, NULL};
    MODEL_CHECK(&model, {"no fence in the waker", 0, MODEL_FENCE, NULL},
                {"no fence in the sleeper", 1, MODEL_FENCE, NULL},
                {"publish relaxed", 0, MODEL_STORE, &FORWARD(0, 0)->tail},
                {"the sink's look relaxed", 1, MODEL_LOAD, &FORWARD(0, 0)->tail},
                {"no wake-up", 0, MODEL_WAKE, WAITING(0, 0)}, );
}

static void test_change_on_link(void)
{
    static const struct model model = {setup_link, {change, await_change}, NULL};
    MODEL_CHECK(&model, {"no fence in the waker", 0, MODEL_FENCE, NULL},
                {"no fence in the sleeper", 1, MODEL_FENCE, NULL}, {"no wake-up", 0, MODEL_WAKE, WAITING(0, 0)},
                {"the word does not change", 0, MODEL_OMIT, WAITING(0, 0)}, );
}

/* The service thread has found the sink on its link, but a message wakes it first, and it goes to sleep on its descriptors, for a remote
 * source was announced. */
static void setup_just_woken(void)
{
    setup_link();
    sinks[0].sleeping = SLEEP_LINK;
}

static void announce_remote(void)
{
    qos_add_acq_rel(&sinks[0].remotes, 1);
    selene_sink_wake(&sinks[0]);
}

static void consume_one(void)
{
    consume(0);
}

static void test_link_becomes_fd(void)
{
    static const struct model model = {setup_just_woken, {emit_one, announce_remote, consume_one}, NULL};
    MODEL_CHECK(&model, {"no fence in the source", 0, MODEL_FENCE, NULL},
                {"no fence in the sleeper", 2, MODEL_FENCE, NULL}, );
}

/* ---- Several sinks of one source: asleep on its bell ---- */

static void setup_bell(void)
{
    setup_ends();
    join(0, 0, false);
}

static void setup_two_on_bell(void)
{
    setup_bell();
    join(0, 1, false);
}

static void test_sleep_on_bell(void)
{
    static const struct model model = {setup_bell, {emit_two, consume_two}, NULL};
    MODEL_CHECK(&model, {"no fence in the waker", 0, MODEL_FENCE, NULL},
                {"no fence in the sleeper", 1, MODEL_FENCE, NULL}, );
}

static void test_two_sleep_on_bell(void)
{
    static const struct model model = {setup_two_on_bell, {emit_one, consume_as_second, consume_as_second}, NULL};
    MODEL_CHECK(&model, {"no fence in the waker", 0, MODEL_FENCE, NULL},
                {"no fence in one sleeper", 2, MODEL_FENCE, NULL}, {"the bell does not change", 0, MODEL_OMIT, BELL(0)},
                {"no wake-up", 0, MODEL_WAKE, BELL(0)}, {"who was woken wakes nobody", 1, MODEL_WAKE, BELL(0)}, );
}

/* ---- Several sources: asleep on the eventfd ---- */

static void setup_two_sources(void)
{
    setup_ends();
    join(0, 0, true);
    join(1, 0, true);
}

static void consume_of_two(void)
{
    consume(0);
    consume(0);
}

static void test_sleep_on_eventfd(void)
{
    static const struct model model = {setup_two_sources, {emit_one, emit_one, consume_of_two}, NULL};
    MODEL_CHECK(&model, {"no fence in one waker", 1, MODEL_FENCE, NULL},
                {"no fence in the sleeper", 2, MODEL_FENCE, NULL}, );
}

static void test_change_on_eventfd(void)
{
    static const struct model model = {setup_two_sources, {change, await_change}, NULL};
    MODEL_CHECK(&model, {"no fence in the waker", 0, MODEL_FENCE, NULL},
                {"no fence in the sleeper", 1, MODEL_FENCE, NULL}, );
}

/* ---- A sink whose descriptor the application polls, and consumes from when it is readable ---- */

static void setup_polled(void)
{
    setup_link();
    sinks[0].poll_fd = FD(0); /* what it is made of: here the eventfd alone */
}

static void poll_and_consume(void)
{
    while (model_consume(&sinks[0], SELENE_DONTWAIT) == 0) {
        struct pollfd readable = {FD(0), POLLIN, 0};
        MODEL_ASSERT(ppoll(&readable, 1, NULL, NULL) == 1);
    }
}

static void test_armed_for_poll(void)
{
    static const struct model model = {setup_polled, {emit_one, poll_and_consume}, NULL};
    MODEL_CHECK(&model, {"no fence in the waker", 0, MODEL_FENCE, NULL},
                {"no fence in the sink", 1, MODEL_FENCE, NULL}, );
}

/* ---- Slots come back and are used again ---- */

static void setup_slot(void)
{
    setup_link();
    cut(0, SLOT);
}

static void test_slot_is_used_again(void)
{
    static const struct model model = {setup_slot, {emit_in_one_slot, consume_if_any}, NULL};
    MODEL_CHECK(&model, {"publish relaxed", 0, MODEL_STORE, &FORWARD(0, 0)->tail},
                {"the sink's look relaxed", 1, MODEL_LOAD, &FORWARD(0, 0)->tail},
                {"release relaxed", 1, MODEL_STORE, &BACK(0, 0)->tail},
                {"the source's look relaxed", 0, MODEL_LOAD, &BACK(0, 0)->tail}, );
}

/* ---- A source that is announced while the application asks whether there is anything: it is not forgotten ---- */

static void setup_announced(void)
{
    setup_two_sources();
    sinks[0].edge_count = 1;
    flows[1][0].edges = 0;
}

static void announce(void)
{
    pthread_mutex_lock(&sink_sessions[0].lock);
    sinks[0].inbox = &ins[1][0];
    qos_store_release(&sinks[0].changed, true);
    pthread_mutex_unlock(&sink_sessions[0].lock);
}

static void ask(void)
{
    MODEL_ASSERT(selene_data_available(&sinks[0], SELENE_DONTWAIT) >= 0);
}

static void check_announced(void)
{
    if (sinks[0].edge_count == 1 && !sinks[0].changed)
        model_fail("a source was announced, and nobody will look");
}

static void test_source_is_announced(void)
{
    static const struct model model = {setup_announced, {announce, ask}, check_announced};
    MODEL_SOUND(&model);
}

int main(void)
{
    CHECK_RUN(test_sleep_on_link);
    CHECK_RUN(test_change_on_link);
    CHECK_RUN(test_link_becomes_fd);
    CHECK_RUN(test_sleep_on_bell);
    CHECK_RUN(test_two_sleep_on_bell);
    CHECK_RUN(test_sleep_on_eventfd);
    CHECK_RUN(test_change_on_eventfd);
    CHECK_RUN(test_armed_for_poll);
    CHECK_RUN(test_slot_is_used_again);
    CHECK_RUN(test_source_is_announced);
    return check_done();
}
