/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Cyclone DDS over UDP, as its own ddsperf uses it: listeners, which run in the receive thread; polling with dds_take where a program
 * is to spin. Round trips are best-effort; a flood, of which nothing may be lost, is reliable with keep-all and writer batching.
 */
#include <dds/dds.h>
#include <semaphore.h>

#include "message.h"
#include "peer.h"

#define TAKE 64

static dds_entity_t participant, writer, reader;
static peer_Message out;
static sem_t ended;

static dds_return_t must(dds_return_t rc, const char *what)
{
    if (rc < 0)
        peer_fail(what, dds_strretcode(rc));
    return rc;
}

static int take(void)
{
    void *samples[TAKE] = {NULL}; /* loaned */
    dds_sample_info_t info[TAKE];
    dds_return_t n = must(dds_take(reader, samples, info, TAKE, TAKE), "dds_take");
    for (int i = 0; i < n; i++) {
        const peer_Message *message = samples[i];
        if (info[i].valid_data)
            received(message->bytes._buffer, message->bytes._length);
    }
    if (n > 0)
        must(dds_return_loan(reader, samples, n), "dds_return_loan");
    return n;
}

static void on_data(dds_entity_t which, void *arg)
{
    (void)which;
    (void)arg;
    while (take() > 0)
        ;
    if (peer_done())
        sem_post(&ended);
}

static void peer_open(void)
{
    out.bytes = (dds_sequence_octet){
        ._maximum = (uint32_t)peer_size, ._length = (uint32_t)peer_size, ._buffer = calloc(1, peer_size)};
    sem_init(&ended, 0, 0);
    participant = must(dds_create_participant(DDS_DOMAIN_DEFAULT, NULL, NULL), "dds_create_participant");
    dds_qos_t *qos = dds_create_qos();
    dds_qset_history(qos, peer_reliable ? DDS_HISTORY_KEEP_ALL : DDS_HISTORY_KEEP_LAST, 1);
    dds_qset_reliability(qos, peer_reliable ? DDS_RELIABILITY_RELIABLE : DDS_RELIABILITY_BEST_EFFORT, DDS_INFINITY);
    dds_write_set_batch(peer_role == PEER_PUBLISHER);
    dds_entity_t to = must(dds_create_topic(participant, &peer_Message_desc, "to", qos, NULL), "dds_create_topic");
    dds_entity_t back = must(dds_create_topic(participant, &peer_Message_desc, "back", qos, NULL), "dds_create_topic");
    dds_listener_t *listener = dds_create_listener(NULL);
    writer = must(dds_create_writer(participant, peer_asks ? to : back, qos, NULL), "dds_create_writer");
    dds_lset_data_available(listener, on_data);
    /* created without it, so that no message comes before `reader` is set */
    reader = must(dds_create_reader(participant, peer_asks ? back : to, qos, NULL), "dds_create_reader");
    if (!peer_spin)
        must(dds_set_listener(reader, listener), "dds_set_listener");
    dds_delete_listener(listener);
    dds_delete_qos(qos);
}

static void peer_send(uint64_t sequence)
{
    memcpy(out.bytes._buffer, &sequence, sizeof(sequence));
    must(dds_write(writer, &out), "dds_write");
}

static void peer_flush(void)
{
    dds_write_flush(writer);
}

static void peer_wait(void)
{
    uint64_t until = raw_now_ns() + PEER_LOOK_MS * 1000000u;
    if (peer_spin) {
        for (uint64_t looks = 1; !peer_done() && (looks % 256 || raw_now_ns() < until); looks++)
            if (take() == 0)
                sched_yield(); /* its receive thread is on the same CPU */
        return;
    }
    uint64_t at = raw_realtime_ns() + PEER_LOOK_MS * 1000000u;
    struct timespec limit = {(time_t)(at / 1000000000u), (long)(at % 1000000000u)};
    while (sem_timedwait(&ended, &limit) != 0 && errno == EINTR)
        ;
}

static void peer_close(void)
{
    if (peer_reliable)
        (void)dds_wait_for_acks(writer, DDS_SECS(5));
    dds_delete(participant);
}

PEER_MAIN
