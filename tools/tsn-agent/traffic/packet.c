/* SPDX-License-Identifier: Apache-2.0 */
#include "packet.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

static void put64(uint8_t *out, uint64_t value)
{
    value = htobe64(value);
    memcpy(out, &value, sizeof value);
}

static uint64_t get64(const uint8_t *data)
{
    uint64_t value;
    memcpy(&value, data, sizeof value);
    return be64toh(value);
}

void qos_packet_encode(uint8_t *out, const struct qos_packet *packet)
{
    put64(out, (uint64_t)QOS_PACKET_MAGIC << 48 | (uint64_t)QOS_PACKET_VERSION << 40 | (uint64_t)packet->flags << 32 |
                   packet->stream);
    put64(out + 8, packet->sequence);
    put64(out + 16, packet->launch_ns);
    put64(out + 24, packet->send_ns);
}

int qos_packet_decode(const uint8_t *data, uint64_t size, struct qos_packet *packet)
{
    if (size < QOS_PACKET_SIZE)
        return -EMSGSIZE;
    uint64_t head = get64(data);
    if (head >> 48 != QOS_PACKET_MAGIC)
        return -EPROTO;
    if ((head >> 40 & 0xff) != QOS_PACKET_VERSION)
        return -EPROTONOSUPPORT;
    *packet = (struct qos_packet){
        .flags = (uint8_t)(head >> 32),
        .stream = (uint32_t)head,
        .sequence = get64(data + 8),
        .launch_ns = get64(data + 16),
        .send_ns = get64(data + 24),
    };
    return (packet->launch_ns | packet->send_ns) >> 63 ? -EPROTO : 0;
}
