/* SPDX-License-Identifier: Apache-2.0 */
#include "frame.h"

#include <endian.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>

/* The header as it lies on the wire. */
struct wire_bytes {
    uint16_t magic;
    uint8_t version;
    uint8_t type;
    uint16_t flags;
    uint16_t count;
    uint16_t length;
    uint16_t reserved;
    uint32_t stream;
    uint64_t channel;
    uint64_t source;
    uint64_t sequence;
    uint64_t send_ns;
    uint64_t launch_ns;
    uint32_t epoch;
    uint32_t credit;
    uint32_t frag_offset;
    uint32_t frag_total;
};
_Static_assert(sizeof(struct wire_bytes) == QOS_WIRE_HEADER, "the wire header has no padding");

struct record_bytes {
    uint32_t length;
    uint32_t delta_ns;
};
_Static_assert(sizeof(struct record_bytes) == QOS_WIRE_RECORD, "a record header has no padding");

void qos_frame_encode(uint8_t *out, const struct qos_wire *w)
{
    struct wire_bytes b = {
        .magic = htole16(QOS_WIRE_MAGIC),
        .version = QOS_WIRE_VERSION,
        .type = w->type,
        .flags = htole16(w->flags),
        .count = htole16(w->count),
        .length = htole16(w->length),
        .stream = htole32(w->stream),
        .channel = htole64(w->channel),
        .source = htole64(w->source),
        .sequence = htole64(w->sequence),
        .send_ns = htole64(w->send_ns),
        .launch_ns = htole64(w->launch_ns),
        .epoch = htole32(w->epoch),
        .credit = htole32(w->credit),
        .frag_offset = htole32(w->frag_offset),
        .frag_total = htole32(w->frag_total),
    };
    memcpy(out, &b, sizeof b);
}

int qos_frame_decode(const uint8_t *data, uint32_t size, struct qos_wire *w)
{
    struct wire_bytes b;
    if (size < sizeof b)
        return -EPROTO;
    memcpy(&b, data, sizeof b);
    if (le16toh(b.magic) != QOS_WIRE_MAGIC)
        return -EPROTO;
    if (b.version != QOS_WIRE_VERSION)
        return -EPROTONOSUPPORT;
    *w = (struct qos_wire){
        .type = b.type,
        .flags = le16toh(b.flags),
        .count = le16toh(b.count),
        .length = le16toh(b.length),
        .stream = le32toh(b.stream),
        .channel = le64toh(b.channel),
        .source = le64toh(b.source),
        .sequence = le64toh(b.sequence),
        .send_ns = le64toh(b.send_ns),
        .launch_ns = le64toh(b.launch_ns),
        .epoch = le32toh(b.epoch),
        .credit = le32toh(b.credit),
        .frag_offset = le32toh(b.frag_offset),
        .frag_total = le32toh(b.frag_total),
    };
    if (w->type < QOS_WIRE_DATA || w->type > QOS_WIRE_MARKER || b.reserved != 0)
        return -EPROTO;
    if (w->length > size - QOS_WIRE_HEADER || w->count > QOS_WIRE_MAX_RECORDS)
        return -EPROTO;
    if (w->type != QOS_WIRE_DATA)
        return w->count == 0 && w->length == 0 ? 0 : -EPROTO;
    if (w->count == 0 || w->length < (uint32_t)w->count * QOS_WIRE_RECORD)
        return -EPROTO;
    if (w->flags & QOS_WIRE_FRAGMENT) {
        /* its record may be padded by up to 7 bytes; qos_frame_next looks at the exact length */
        if (w->count != 1 || w->frag_offset >= w->frag_total ||
            w->length - (uint32_t)QOS_WIRE_RECORD > (uint64_t)(w->frag_total - w->frag_offset) + 7)
            return -EPROTO;
    } else if (w->frag_total != 0 || w->frag_offset != 0) {
        return -EPROTO;
    }
    return 0;
}

void qos_frame_set_sequence(uint8_t *header, uint64_t sequence)
{
    uint64_t v = htole64(sequence);
    memcpy(header + offsetof(struct wire_bytes, sequence), &v, sizeof v);
}

void qos_frame_set_credit(uint8_t *header, uint32_t credit)
{
    uint32_t v = htole32(credit);
    memcpy(header + offsetof(struct wire_bytes, credit), &v, sizeof v);
}

void qos_frame_set_epoch(uint8_t *header, uint32_t epoch)
{
    uint32_t v = htole32(epoch);
    memcpy(header + offsetof(struct wire_bytes, epoch), &v, sizeof v);
}

void qos_frame_put_record(uint8_t *out, uint32_t length, uint32_t delta_ns)
{
    struct record_bytes r = {htole32(length), htole32(delta_ns)};
    memcpy(out, &r, sizeof r);
}

int qos_frame_next(const uint8_t *data, const struct qos_wire *wire, uint32_t *offset, const uint8_t **payload,
                   uint32_t *length, uint32_t *delta_ns)
{
    uint32_t left = wire->length - *offset;
    if (*offset >= wire->length)
        return 0;
    struct record_bytes r;
    if (left < sizeof r)
        return -EPROTO;
    memcpy(&r, data + QOS_WIRE_HEADER + *offset, sizeof r);
    uint32_t size = le32toh(r.length);
    /* the last record need not be padded */
    if (size > left - sizeof r)
        return -EPROTO;
    if (wire->flags & QOS_WIRE_FRAGMENT && size > wire->frag_total - wire->frag_offset)
        return -EPROTO;
    *payload = data + QOS_WIRE_HEADER + *offset + sizeof r;
    *length = size;
    *delta_ns = le32toh(r.delta_ns);
    uint32_t whole = qos_frame_record_size(size);
    *offset += whole < left ? whole : left;
    return 1;
}

uint32_t qos_frame_segment(const uint8_t *data, uint32_t size)
{
    struct qos_wire w;
    if (qos_frame_decode(data, size, &w) < 0)
        return size;
    /* one that was sent alone ends with its last byte, one of a batch may be padded to a multiple of eight */
    for (uint32_t at = QOS_WIRE_HEADER + w.length; at + QOS_WIRE_HEADER <= size; at = (at + 8) & ~7u)
        if (qos_frame_decode(data + at, size - at < at ? size - at : at, &w) == 0)
            return at;
    return size;
}
