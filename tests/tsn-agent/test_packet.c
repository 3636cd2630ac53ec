/* SPDX-License-Identifier: Apache-2.0 */
#include "packet.h"

#include <errno.h>

#include "check.h"

static const uint8_t wire[QOS_PACKET_SIZE] = {
    0x51, 0x54, 1,    1,    0x89, 0xab, 0xcd, 0xef, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08,
    0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28,
};
static const struct qos_packet packet = {
    .flags = QOS_PACKET_LAUNCH,
    .stream = 0x89abcdef,
    .sequence = 0x0102030405060708,
    .launch_ns = 0x1112131415161718,
    .send_ns = 0x2122232425262728,
};

static void test_the_wire_is_as_documented(void)
{
    uint8_t out[QOS_PACKET_SIZE];
    qos_packet_encode(out, &packet);
    CHECK(memcmp(out, wire, sizeof wire) == 0);
}

static void test_it_is_read_back(void)
{
    struct qos_packet found;
    CHECK_EQ(qos_packet_decode(wire, sizeof wire, &found), 0);
    CHECK_EQ(found.flags, packet.flags);
    CHECK_EQ(found.stream, packet.stream);
    CHECK_EQ(found.sequence, packet.sequence);
    CHECK_EQ(found.launch_ns, packet.launch_ns);
    CHECK_EQ(found.send_ns, packet.send_ns);
}

static int decoded_with(uint32_t place, uint8_t value, uint64_t size)
{
    uint8_t data[QOS_PACKET_SIZE];
    struct qos_packet found;
    memcpy(data, wire, sizeof data);
    data[place] = value;
    return qos_packet_decode(data, size, &found);
}

static void test_what_is_none_of_ours_is_refused(void)
{
    for (uint64_t size = 0; size < QOS_PACKET_SIZE; size++)
        CHECK_EQ(decoded_with(2, 1, size), -EMSGSIZE);
    CHECK_EQ(decoded_with(0, 0x50, 64), -EPROTO);
    CHECK_EQ(decoded_with(1, 0, 64), -EPROTO);
    CHECK_EQ(decoded_with(2, 2, 64), -EPROTONOSUPPORT);
    CHECK_EQ(decoded_with(16, 0x80, 64), -EPROTO);
    CHECK_EQ(decoded_with(24, 0xff, 64), -EPROTO);
    CHECK_EQ(decoded_with(8, 0xff, 64), 0);
}

int main(void)
{
    CHECK_RUN(test_the_wire_is_as_documented);
    CHECK_RUN(test_it_is_read_back);
    CHECK_RUN(test_what_is_none_of_ours_is_refused);
    return check_done();
}
