/* SPDX-License-Identifier: Apache-2.0
 *
 * The SELENE wire header, version 1. One datagram is one header, then `count` records; a record is a length and a payload.
 * Everything is little endian and of fixed width. docs/wire-format.md documents it byte by byte; tests hold the two together.
 *
 *   0  u16 magic      0x4553, "SE" on the wire
 *   2  u8  version    1
 *   3  u8  type       QOS_WIRE_DATA, _CREDIT, _PROBE, _MARKER
 *   4  u16 flags      QOS_WIRE_RELIABLE, _LAUNCH, _FRAGMENT, _RELAYED, _ANSWER
 *   6  u16 count      records in this datagram (0 unless DATA)
 *   8  u16 length     bytes of records after the header; what follows is padding (equal GSO segments) and ignored
 *  10  u16 reserved   0
 *  12  u32 stream
 *  16  u64 channel
 *  24  u64 source     host id << 32 | number
 *  32  u64 sequence   of the first record; record i has sequence + i. CREDIT: next sequence the sink expects
 *  40  u64 send_ns    Unix time of the first record's emit
 *  48  u64 launch_ns  TAI instant this datagram must leave at; 0: none
 *  56  u32 epoch      path epoch of the source; changes when the path does
 *  60  u32 credit     DATA: cost of all datagrams sent on this path, this one included, modulo 2^32. PROBE: the same value again.
 *                     CREDIT: the highest such value the sink has taken in
 *  64  u32 frag_offset  FRAGMENT: offset of this part; CREDIT: the window in bytes
 *  68  u32 frag_total   FRAGMENT: size of the whole message; otherwise 0
 *  72  records: { u32 length, u32 delta_ns after send_ns, payload, zero padding to a multiple of 8 }
 *
 * The record of a single message ends at byte 80: in a slot whose payload is cache-line aligned, everything a local sink may want
 * to read (bytes 16 to 79) is the one line in front of the payload.
 */
#ifndef QOS_FRAME_H
#define QOS_FRAME_H

#ifndef QOS_CDEF
#include <stdint.h>
#endif

#define QOS_WIRE_MAGIC 0x4553
#define QOS_WIRE_VERSION 1
#define QOS_WIRE_HEADER 72
#define QOS_WIRE_RECORD 8
#define QOS_WIRE_OVERHEAD 80        /* header and the record of a single message */
#define QOS_WIRE_MAX_DATAGRAM 65507 /* UDP over IPv4 */
#define QOS_WIRE_MAX_RECORDS 8192
#define QOS_WIRE_SKB_COST 768 /* what the kernel books for a small datagram beside its bytes; credit counts it */

enum qos_wire_type { QOS_WIRE_DATA = 1, QOS_WIRE_CREDIT = 2, QOS_WIRE_PROBE = 3, QOS_WIRE_MARKER = 4 };

enum qos_wire_flag {
    QOS_WIRE_RELIABLE = 1,    /* the source waits for credit instead of dropping */
    QOS_WIRE_LAUNCH = 2,      /* launch_ns is valid */
    QOS_WIRE_FRAGMENT = 4,    /* the one record is part of a larger message */
    QOS_WIRE_RELAYED = 8,     /* sent by a datapath process on behalf of the source */
    QOS_WIRE_ANSWER = 0x8000, /* CREDIT: a PROBE asked for it, so a datapath process passes it on at once */
};

/* Host byte order, as decoded. */
struct qos_wire {
    uint8_t type;
    uint16_t flags;
    uint16_t count;
    uint16_t length;
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

/* Write the header into `out` (QOS_WIRE_HEADER bytes). */
void qos_frame_encode(uint8_t *out, const struct qos_wire *wire);

/* Read and check a datagram of `size` bytes. 0, or -EPROTO: too short, other magic, unknown type, impossible lengths, counts or
 * fragment bounds; -EPROTONOSUPPORT: another version. Nothing outside the `size` bytes is read; the records are checked as they are
 * walked (qos_frame_next). */
int qos_frame_decode(const uint8_t *data, uint32_t size, struct qos_wire *wire);

/* Patch single fields of an encoded header. */
void qos_frame_set_sequence(uint8_t *header, uint64_t sequence);
void qos_frame_set_credit(uint8_t *header, uint32_t credit);
void qos_frame_set_epoch(uint8_t *header, uint32_t epoch);

/* Append one record header at `out`; the payload follows it. Bytes the whole record takes: qos_frame_record_size(length). */
void qos_frame_put_record(uint8_t *out, uint32_t length, uint32_t delta_ns);

static inline uint32_t qos_frame_record_size(uint32_t length)
{
    return QOS_WIRE_RECORD + ((length + 7) & ~7u);
}

/* Walk the records of a decoded datagram: `*offset` starts at 0 and counts from the end of the header. 1 and the record, 0 at the
 * end, -EPROTO when the record does not fit into the `length` bytes. */
int qos_frame_next(const uint8_t *data, const struct qos_wire *wire, uint32_t *offset, const uint8_t **payload,
                   uint32_t *length, uint32_t *delta_ns);

/* What the kernel put together before coalescing was switched off comes out in one piece, and nothing says of how many: equal segments,
 * each a datagram of ours, padded. The size of one; `size` if it is a plain datagram or none of ours. */
uint32_t qos_frame_segment(const uint8_t *data, uint32_t size);
/* Bytes of credit a datagram of `size` bytes costs. */
static inline uint32_t qos_frame_cost(uint32_t size)
{
    return size + QOS_WIRE_SKB_COST;
}

#endif
