/* SPDX-License-Identifier: Apache-2.0
 *
 * UDP over IP in user space: libqos/core/udpip.c. The input is a frame, after a byte that says whether its checksums count.
 */
#include "udpip.h"

#include "input.h"

/* What was taken out of a frame is what is in one that we make of it. */
static void make_again(const struct qos_udpip_datagram *d)
{
    static uint8_t room[QOS_UDPIP_HEADERS_MAX + 65536];
    struct qos_udpip_ends ends = {
        .from = d->from, .to = d->to, .tag = d->tag, .tagged = d->tagged, .traffic_class = d->traffic_class};
    memcpy(ends.from_mac, d->from_mac, sizeof ends.from_mac);
    memcpy(ends.to_mac, d->to_mac, sizeof ends.to_mac);
    struct qos_udpip_way way;
    if (qos_udpip_prepare(&way, &ends) < 0) {
        HOLDS(d->from.port == 0 || d->to.port == 0);
        return;
    }
    uint8_t *payload = memcpy(room + QOS_UDPIP_HEADERS_MAX, d->payload, d->length);
    uint8_t *frame = qos_udpip_put(&way, payload, d->length, QOS_UDPIP_SUM);
    struct qos_udpip_datagram again;
    HOLDS(qos_udpip_parse(frame, way.length + d->length, false, &again) == 0);
    HOLDS(again.payload == payload && again.length == d->length);
    HOLDS(qos_address_equal(&again.from, &d->from) && qos_address_equal(&again.to, &d->to));
    HOLDS(again.tag == d->tag && again.tagged == d->tagged && again.traffic_class == d->traffic_class);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct qos_udpip_datagram d;
    if (size == 0 || size > 65536)
        return 0;
    const uint8_t *frame = data + 1, *end = data + size;
    if (qos_udpip_parse(frame, (uint32_t)size - 1, data[0] & 1, &d) < 0)
        return 0;
    HOLDS(d.payload > frame && d.payload <= end && d.length <= (size_t)(end - d.payload));
    make_again(&d);
    return 0;
}
