/* SPDX-License-Identifier: Apache-2.0
 *
 * The wire header and its records: libqos/core/frame.c. The input is a datagram.
 */
#include "frame.h"

#include "input.h"

/* Every record lies inside the datagram, behind the one before it. */
static void walk(const uint8_t *data, const struct qos_wire *w)
{
    const uint8_t *end = data + QOS_WIRE_HEADER + w->length, *payload = data + QOS_WIRE_HEADER;
    uint32_t offset = 0, length = 0, delta, before = 0;
    int rc;
    while ((rc = qos_frame_next(data, w, &offset, &payload, &length, &delta)) == 1) {
        HOLDS(payload == data + QOS_WIRE_HEADER + before + QOS_WIRE_RECORD);
        HOLDS(length <= (uint64_t)(end - payload));
        HOLDS(offset > before && offset <= w->length);
        HOLDS(!(w->flags & QOS_WIRE_FRAGMENT) || length <= w->frag_total - w->frag_offset);
        for (uint32_t i = 0; i < length; i += 64)
            (void)*(const volatile uint8_t *)(payload + i);
        before = offset;
    }
    HOLDS(rc == 0 ? offset == w->length : rc < 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct qos_wire w;
    if (size > QOS_WIRE_MAX_DATAGRAM || qos_frame_decode(data, (uint32_t)size, &w) < 0)
        return 0;
    HOLDS(w.count <= QOS_WIRE_MAX_RECORDS && w.length <= size - QOS_WIRE_HEADER);
    walk(data, &w);
    /* what was read is all there is to read */
    uint8_t again[QOS_WIRE_HEADER];
    qos_frame_encode(again, &w);
    HOLDS(memcmp(again, data, sizeof again) == 0);
    return 0;
}

/* Most mutants get a header that is worth a look: ours, and with a length that fits. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed)
{
    size = LLVMFuzzerMutate(data, size, room);
    if (seed % 8 == 0 || size < QOS_WIRE_HEADER || size > QOS_WIRE_MAX_DATAGRAM)
        return size;
    struct qos_wire w = {.type = data[3]};
    uint16_t length = (uint16_t)(size - QOS_WIRE_HEADER), magic = QOS_WIRE_MAGIC;
    memcpy(data, &magic, sizeof magic);
    data[2] = QOS_WIRE_VERSION;
    if (seed & 8)
        data[3] = (uint8_t)(1 + w.type % 4);
    if (seed & 16)
        memcpy(data + 8, &length, sizeof length);
    if (seed & 32)
        memset(data + 10, 0, 2);
    if (seed & 64)
        memset(data + 64, 0, 8);
    return size;
}
