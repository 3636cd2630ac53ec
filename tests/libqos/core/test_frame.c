/* SPDX-License-Identifier: Apache-2.0 */
#include "frame.h"

#include <errno.h>
#include <sys/mman.h>

#include "check.h"
#include "random.h"

/* The example of docs/wire-format.md, byte by byte. */
static const uint8_t EXAMPLE[98] = {
    0x53, 0x45, 0x01, 0x01, 0x01, 0x00, 0x02, 0x00, 0x1a, 0x00, 0x00, 0x00, 0x07, 0x00, 0x00, 0x00, /* 0 */
    0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01, 0x05, 0x00, 0x00, 0x00, 0x01, 0xee, 0xff, 0xc0, /* 16 */
    0x29, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x2a, 0x36, 0xfe, 0x9c, 0x97, 0x17, /* 32 */
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x03, 0x00, 0x00, 0x00, 0xb2, 0x06, 0x00, 0x00, /* 48 */
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x04, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, /* 64 */
    '2',  '1',  '.',  '5',  0x00, 0x00, 0x00, 0x00, 0x02, 0x00, 0x00, 0x00, 0xdc, 0x05, 0x00, 0x00, /* 80 */
    'o',  'k',                                                                                      /* 96 */
};

static const struct qos_wire EXAMPLE_WIRE = {
    .type = QOS_WIRE_DATA,
    .flags = QOS_WIRE_RELIABLE,
    .count = 2,
    .length = 26,
    .stream = 7,
    .channel = UINT64_C(0x0123456789abcdef),
    .source = UINT64_C(0xc0ffee0100000005),
    .sequence = 41,
    .send_ns = UINT64_C(1700000000000000000),
    .epoch = 3,
    .credit = 1714,
};

/* Values that use their fields' whole width. */
static const struct qos_wire FRAGMENT_WIRE = {
    .type = QOS_WIRE_DATA,
    .flags = 0xffff,
    .count = 1,
    .length = 1008,
    .stream = UINT32_MAX,
    .channel = UINT64_MAX,
    .source = UINT64_MAX,
    .sequence = UINT64_MAX,
    .send_ns = UINT64_MAX,
    .launch_ns = UINT64_MAX,
    .epoch = UINT32_MAX,
    .credit = UINT32_MAX,
    .frag_offset = 0x7ffffff8,
    .frag_total = UINT32_MAX,
};
static const struct qos_wire CREDIT_WIRE = {.type = QOS_WIRE_CREDIT,
                                            .source = 0x0102030405060708,
                                            .sequence = 9,
                                            .credit = 0x80000001,
                                            .frag_offset = UINT32_MAX};

/* Datagrams as they come out of a socket in one piece. */
static void test_datagrams_in_one_piece_are_told_apart(void)
{
    uint8_t data[4 * 256] = {0};
    CHECK_EQ(qos_frame_segment(EXAMPLE, sizeof EXAMPLE), sizeof EXAMPLE);
    CHECK_EQ(qos_frame_segment(data, sizeof data), sizeof data);
    for (uint32_t segment = sizeof EXAMPLE; segment <= 256; segment = (segment + 8) & ~7u) {
        memset(data, 0, sizeof data);
        for (uint32_t i = 0; i < 3; i++)
            memcpy(data + i * segment, EXAMPLE, sizeof EXAMPLE);
        CHECK_EQ(qos_frame_segment(data, 2 * segment + sizeof EXAMPLE), segment);
        CHECK_EQ(qos_frame_segment(data, 3 * segment), segment);
        /* the rest is no datagram: it is left to whoever decodes the first */
        CHECK_EQ(qos_frame_segment(data, segment + QOS_WIRE_HEADER - 1), segment + QOS_WIRE_HEADER - 1);
    }
}

static int same(const struct qos_wire *a, const struct qos_wire *b)
{
    return a->type == b->type && a->flags == b->flags && a->count == b->count && a->length == b->length &&
           a->stream == b->stream && a->channel == b->channel && a->source == b->source && a->sequence == b->sequence &&
           a->send_ns == b->send_ns && a->launch_ns == b->launch_ns && a->epoch == b->epoch && a->credit == b->credit &&
           a->frag_offset == b->frag_offset && a->frag_total == b->frag_total;
}

static void test_the_example_is_what_it_says(void)
{
    uint8_t out[sizeof EXAMPLE] = {0};
    struct qos_wire got;
    qos_frame_encode(out, &EXAMPLE_WIRE);
    qos_frame_put_record(out + 72, 4, 0);
    memcpy(out + 80, "21.5", 4);
    qos_frame_put_record(out + 72 + qos_frame_record_size(4), 2, 1500);
    memcpy(out + 96, "ok", 2);
    CHECK_EQ(memcmp(out, EXAMPLE, sizeof EXAMPLE), 0);
    CHECK_EQ(qos_frame_decode(EXAMPLE, sizeof EXAMPLE, &got), 0);
    CHECK(same(&got, &EXAMPLE_WIRE));
    CHECK_EQ(qos_frame_cost(sizeof EXAMPLE), 98 + 768);
}

static void test_what_was_encoded_is_decoded(void)
{
    static uint8_t out[QOS_WIRE_MAX_DATAGRAM];
    const struct qos_wire *wires[] = {&EXAMPLE_WIRE, &FRAGMENT_WIRE, &CREDIT_WIRE};
    for (size_t i = 0; i < sizeof wires / sizeof *wires; i++) {
        struct qos_wire got;
        qos_frame_encode(out, wires[i]);
        CHECK_EQ(qos_frame_decode(out, QOS_WIRE_HEADER + wires[i]->length, &got), 0);
        CHECK(same(&got, wires[i]));
        /* what follows the records is padding */
        CHECK_EQ(qos_frame_decode(out, QOS_WIRE_MAX_DATAGRAM, &got), 0);
        CHECK(same(&got, wires[i]));
    }
}

static void test_single_fields_are_patched(void)
{
    uint8_t out[QOS_WIRE_HEADER];
    struct qos_wire expected = CREDIT_WIRE, got;
    qos_frame_encode(out, &expected);
    qos_frame_set_sequence(out, expected.sequence = UINT64_C(0x1122334455667788));
    qos_frame_set_credit(out, expected.credit = 0xa1a2a3a4);
    qos_frame_set_epoch(out, expected.epoch = 0xb1b2b3b4);
    CHECK_EQ(qos_frame_decode(out, sizeof out, &got), 0);
    CHECK(same(&got, &expected));
}

/* ---- Refusals ---- */

static int decode_with(size_t at, uint8_t byte)
{
    uint8_t data[sizeof EXAMPLE];
    struct qos_wire got;
    memcpy(data, EXAMPLE, sizeof data);
    data[at] = byte;
    return qos_frame_decode(data, sizeof data, &got);
}

static int decode_wire(const struct qos_wire *wire, uint32_t size)
{
    static uint8_t data[QOS_WIRE_MAX_DATAGRAM];
    struct qos_wire got;
    qos_frame_encode(data, wire);
    return qos_frame_decode(data, size, &got);
}

static void test_other_headers_are_refused(void)
{
    CHECK_EQ(decode_with(0, 0x54), -EPROTO);
    CHECK_EQ(decode_with(1, 0x53), -EPROTO);
    CHECK_EQ(decode_with(2, 0), -EPROTONOSUPPORT);
    CHECK_EQ(decode_with(2, 2), -EPROTONOSUPPORT);
    CHECK_EQ(decode_with(3, 0), -EPROTO);
    CHECK_EQ(decode_with(3, QOS_WIRE_MARKER + 1), -EPROTO);
    CHECK_EQ(decode_with(3, 255), -EPROTO);
    CHECK_EQ(decode_with(10, 1), -EPROTO);
    CHECK_EQ(decode_with(11, 0x80), -EPROTO);
}

static void test_every_short_datagram_is_refused(void)
{
    struct qos_wire got;
    for (uint32_t size = 0; size < sizeof EXAMPLE; size++)
        CHECK_EQ(qos_frame_decode(EXAMPLE, size, &got), -EPROTO);
}

static void test_impossible_counts_are_refused(void)
{
    struct qos_wire w = EXAMPLE_WIRE;
    w.count = 0;
    CHECK_EQ(decode_wire(&w, 98), -EPROTO);
    w.count = 3; /* 24 of the 26 bytes */
    CHECK_EQ(decode_wire(&w, 98), 0);
    w.count = 4;
    CHECK_EQ(decode_wire(&w, 98), -EPROTO);
    w.count = 8179; /* as many empty records as fit into the largest datagram */
    w.length = 8179 * QOS_WIRE_RECORD;
    CHECK_EQ(decode_wire(&w, QOS_WIRE_MAX_DATAGRAM), 0);
    w.count = QOS_WIRE_MAX_RECORDS + 1;
    w.length = UINT16_MAX;
    CHECK_EQ(decode_wire(&w, QOS_WIRE_MAX_DATAGRAM), -EPROTO);
}

static void test_records_come_with_data_only(void)
{
    for (uint8_t type = QOS_WIRE_CREDIT; type <= QOS_WIRE_MARKER; type++) {
        struct qos_wire w = {.type = type};
        CHECK_EQ(decode_wire(&w, QOS_WIRE_HEADER), 0);
        CHECK_EQ(decode_wire(&w, QOS_WIRE_HEADER + 100), 0);
        w.count = 1;
        CHECK_EQ(decode_wire(&w, QOS_WIRE_HEADER + 100), -EPROTO);
        w.length = 8;
        CHECK_EQ(decode_wire(&w, QOS_WIRE_HEADER + 100), -EPROTO);
        w.count = 0;
        CHECK_EQ(decode_wire(&w, QOS_WIRE_HEADER + 100), -EPROTO);
    }
}

static void test_impossible_fragments_are_refused(void)
{
    static const struct {
        uint16_t flags, count, length;
        uint32_t offset, total;
        int rc;
    } cases[] = {
        {QOS_WIRE_FRAGMENT, 1, 8 + 100, 0, 200, 0},
        {QOS_WIRE_FRAGMENT, 1, 8 + 100, 100, 200, 0},
        {QOS_WIRE_FRAGMENT, 1, 8 + 104, 100, 200, 0},       /* padded */
        {QOS_WIRE_FRAGMENT, 1, 8 + 108, 100, 200, -EPROTO}, /* ends behind the message */
        {QOS_WIRE_FRAGMENT, 1, 8 + 0, 200, 200, -EPROTO},
        {QOS_WIRE_FRAGMENT, 1, 8 + 8, 201, 200, -EPROTO},
        {QOS_WIRE_FRAGMENT, 1, 8 + 8, 0, 0, -EPROTO},
        {QOS_WIRE_FRAGMENT, 2, 16 + 8, 0, 200, -EPROTO},
        {QOS_WIRE_FRAGMENT, 1, 8 + 100, 0, UINT32_MAX, 0}, /* sums that pass 2^32 */
        {QOS_WIRE_FRAGMENT, 1, 8 + 8, UINT32_MAX - 3, UINT32_MAX, 0},
        {QOS_WIRE_FRAGMENT, 1, 8 + 16, UINT32_MAX - 3, UINT32_MAX, -EPROTO},
        {QOS_WIRE_FRAGMENT, 1, 8 + 8, UINT32_MAX, UINT32_MAX, -EPROTO},
        {0, 1, 8 + 8, 0, 8, -EPROTO}, /* not a fragment */
        {0, 1, 8 + 8, 8, 0, -EPROTO},
        {QOS_WIRE_LAUNCH | QOS_WIRE_RELAYED, 1, 8 + 8, 0, 0, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct qos_wire w = {.type = QOS_WIRE_DATA,
                             .flags = cases[i].flags,
                             .count = cases[i].count,
                             .length = cases[i].length,
                             .frag_offset = cases[i].offset,
                             .frag_total = cases[i].total};
        if (!CHECK_EQ(decode_wire(&w, 1000), cases[i].rc))
            printf("    case %zu\n", i);
    }
}

/* ---- Records ---- */

struct walk {
    uint8_t data[256];
    struct qos_wire wire;
    uint32_t offset;
    const uint8_t *payload;
    uint32_t length, delta_ns;
};

/* A datagram of `length` bytes of records, to be filled in from walk.data + QOS_WIRE_HEADER. */
static struct walk walk_of(uint16_t count, uint16_t length)
{
    struct walk w = {.wire = {.type = QOS_WIRE_DATA, .count = count, .length = length}};
    memset(w.data, 0xee, sizeof w.data);
    return w;
}

static int next(struct walk *w)
{
    return qos_frame_next(w->data, &w->wire, &w->offset, &w->payload, &w->length, &w->delta_ns);
}

static void test_records_are_walked(void)
{
    struct walk w = walk_of(4, 16 + 8 + 16 + 11);
    uint8_t *records = w.data + QOS_WIRE_HEADER;
    qos_frame_put_record(records, 8, 0);
    qos_frame_put_record(records + 16, 0, 77); /* empty */
    qos_frame_put_record(records + 24, 1, UINT32_MAX);
    qos_frame_put_record(records + 40, 3, 5); /* the last need not be padded */
    static const uint32_t expected[4][3] = {{8, 8, 0}, {24, 0, 77}, {32, 1, UINT32_MAX}, {48, 3, 5}};
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(next(&w), 1);
        CHECK_EQ(w.payload - records, expected[i][0]);
        CHECK_EQ(w.length, expected[i][1]);
        CHECK_EQ(w.delta_ns, expected[i][2]);
    }
    CHECK_EQ(next(&w), 0);
    CHECK_EQ(next(&w), 0);
}

static void test_a_padded_last_record_ends_the_walk(void)
{
    struct walk w = walk_of(1, 16);
    qos_frame_put_record(w.data + QOS_WIRE_HEADER, 3, 0);
    CHECK_EQ(next(&w), 1);
    CHECK_EQ(w.length, 3);
    CHECK_EQ(next(&w), 0);
}

static void test_truncated_records_are_refused(void)
{
    static const uint32_t lengths[] = {9, 10, 100, 65536, UINT32_MAX - 8, UINT32_MAX - 7, UINT32_MAX};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        struct walk w = walk_of(2, 32);
        qos_frame_put_record(w.data + QOS_WIRE_HEADER, 8, 0);
        qos_frame_put_record(w.data + QOS_WIRE_HEADER + 16, lengths[i], 0);
        CHECK_EQ(next(&w), 1);
        CHECK_EQ(next(&w), -EPROTO);
        CHECK_EQ(next(&w), -EPROTO);
        CHECK_EQ(w.offset, 16);
    }
}

static void test_half_a_record_header_is_refused(void)
{
    for (uint16_t rest = 1; rest < QOS_WIRE_RECORD; rest++) {
        struct walk w = walk_of(1, 16 + rest);
        qos_frame_put_record(w.data + QOS_WIRE_HEADER, 8, 0);
        CHECK_EQ(next(&w), 1);
        CHECK_EQ(next(&w), -EPROTO);
    }
}

static void test_a_fragment_ends_within_its_message(void)
{
    for (uint32_t length = 4; length <= 8; length++) {
        struct walk w = walk_of(1, 16);
        w.wire.flags = QOS_WIRE_FRAGMENT;
        w.wire.frag_offset = 100;
        w.wire.frag_total = 105;
        qos_frame_put_record(w.data + QOS_WIRE_HEADER, length, 0);
        CHECK_EQ(next(&w), length <= 5 ? 1 : -EPROTO);
    }
}

static void test_records_take_multiples_of_eight(void)
{
    CHECK_EQ(qos_frame_record_size(0), 8);
    CHECK_EQ(qos_frame_record_size(1), 16);
    CHECK_EQ(qos_frame_record_size(8), 16);
    CHECK_EQ(qos_frame_record_size(9), 24);
    CHECK_EQ(qos_frame_record_size(65536), 65544);
    CHECK_EQ(QOS_WIRE_OVERHEAD, QOS_WIRE_HEADER + QOS_WIRE_RECORD);
}

/* ---- Any bytes: nothing outside them is read, and what is accepted means what it says. ---- */

enum { FUZZ_INPUTS = 1000000, FUZZ_MOST = 400 };

/* Well-formed, then perhaps cut and with some bytes changed. The number of bytes. */
static uint32_t almost_valid(struct random *r, uint8_t *out)
{
    uint32_t used = QOS_WIRE_HEADER, count = 1 + random_below(r, 5);
    struct qos_wire w = {.type = (uint8_t)(random_below(r, 8) ? QOS_WIRE_DATA : random_below(r, 6)),
                         .flags = (uint16_t)random_below(r, 16),
                         .stream = (uint32_t)random_u64(r),
                         .source = random_u64(r),
                         .sequence = random_u64(r),
                         .credit = (uint32_t)random_u64(r)};
    if (w.flags & QOS_WIRE_FRAGMENT) {
        count = 1;
        w.frag_offset = random_below(r, 3) ? random_below(r, 100) : (uint32_t)random_u64(r);
        w.frag_total = w.frag_offset + random_below(r, 200);
    }
    for (uint32_t i = 0; w.type == QOS_WIRE_DATA && i < count; i++) {
        uint32_t length = random_below(r, 40);
        memset(out + used, (int)i, qos_frame_record_size(length));
        qos_frame_put_record(out + used, length, (uint32_t)random_u64(r));
        used += qos_frame_record_size(length);
        w.count++;
    }
    w.length = (uint16_t)(used - QOS_WIRE_HEADER - (used > QOS_WIRE_HEADER + 8 ? random_below(r, 9) : 0));
    qos_frame_encode(out, &w);
    for (uint32_t changes = random_below(r, 4); changes > 0; changes--)
        out[random_below(r, 3) ? random_below(r, QOS_WIRE_HEADER) : random_below(r, used)] = (uint8_t)random_u64(r);
    return random_below(r, 8) ? used : random_below(r, used + 1);
}

static uint32_t any_input(struct random *r, uint8_t *out)
{
    if (random_below(r, 4))
        return almost_valid(r, out);
    uint32_t size = random_below(r, FUZZ_MOST);
    for (uint32_t i = 0; i < size; i++)
        out[i] = (uint8_t)random_u64(r);
    return size;
}

static volatile uint8_t last_read; /* so that the compiler does not leave the reading out */

/* Walk an accepted datagram: false if a record leaves it, or if it does not end. */
static int walk_all(const uint8_t *data, const struct qos_wire *wire, uint32_t *records)
{
    const uint8_t *payload = NULL, *end = data + QOS_WIRE_HEADER;
    uint32_t offset = 0, length = 0, delta;
    for (uint32_t steps = 0; steps <= UINT16_MAX / QOS_WIRE_RECORD; steps++) {
        int rc = qos_frame_next(data, wire, &offset, &payload, &length, &delta);
        if (rc <= 0)
            return rc == 0 || rc == -EPROTO;
        if (payload < end + QOS_WIRE_RECORD || length > data + QOS_WIRE_HEADER + wire->length - payload)
            return 0;
        if (wire->flags & QOS_WIRE_FRAGMENT && length > wire->frag_total - wire->frag_offset)
            return 0;
        end = payload + length;
        for (uint32_t i = 0; i < length; i++)
            last_read = payload[i];
        ++*records;
    }
    return 0;
}

static void test_any_bytes(void)
{
    static uint8_t input[FUZZ_MOST];
    struct random r = {1};
    uint32_t accepted = 0, records = 0;
    /* The input ends where memory that nobody may read begins. */
    uint8_t *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!CHECK(pages != MAP_FAILED) || !CHECK_EQ(mprotect(pages + 4096, 4096, PROT_NONE), 0))
        return;
    for (uint32_t i = 0; i < FUZZ_INPUTS; i++) {
        uint64_t seed = r.state;
        uint8_t again[QOS_WIRE_HEADER];
        struct qos_wire wire;
        uint32_t size = any_input(&r, input);
        uint8_t *data = memcpy(pages + 4096 - size, input, size);
        int rc = qos_frame_decode(data, size, &wire), good = rc == -EPROTO || rc == -EPROTONOSUPPORT;
        if (rc == 0) {
            accepted++;
            qos_frame_encode(again, &wire);
            good = memcmp(again, data, sizeof again) == 0 && walk_all(data, &wire, &records);
        }
        if (!CHECK(good)) {
            printf("    input %u, seed %" PRIu64 "\n", i, seed);
            break;
        }
    }
    CHECK(accepted > FUZZ_INPUTS / 5);
    CHECK(records > FUZZ_INPUTS / 5);
    munmap(pages, 8192);
}

int main(void)
{
    CHECK_RUN(test_the_example_is_what_it_says);
    CHECK_RUN(test_what_was_encoded_is_decoded);
    CHECK_RUN(test_single_fields_are_patched);
    CHECK_RUN(test_other_headers_are_refused);
    CHECK_RUN(test_every_short_datagram_is_refused);
    CHECK_RUN(test_impossible_counts_are_refused);
    CHECK_RUN(test_records_come_with_data_only);
    CHECK_RUN(test_impossible_fragments_are_refused);
    CHECK_RUN(test_records_are_walked);
    CHECK_RUN(test_a_padded_last_record_ends_the_walk);
    CHECK_RUN(test_truncated_records_are_refused);
    CHECK_RUN(test_half_a_record_header_is_refused);
    CHECK_RUN(test_a_fragment_ends_within_its_message);
    CHECK_RUN(test_records_take_multiples_of_eight);
    CHECK_RUN(test_datagrams_in_one_piece_are_told_apart);
    CHECK_RUN(test_any_bytes);
    return check_done();
}
