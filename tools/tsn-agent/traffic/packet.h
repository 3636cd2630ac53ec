/* SPDX-License-Identifier: Apache-2.0
 *
 * The packet of tsn-talker: 32 bytes in network order, then padding up to the payload's size (docs/tsn-talker.md).
 *
 *   0  u16 magic      0x5154, "QT"
 *   2  u8  version    1
 *   3  u8  flags      QOS_PACKET_LAUNCH
 *   4  u32 stream
 *   8  u64 sequence   number of the period since the talker began; those it did not send are left out
 *  16  u64 launch_ns  TAI instant it is to leave at
 *  24  u64 send_ns    TAI before the call that sent it
 */
#ifndef QOS_TRAFFIC_PACKET_H
#define QOS_TRAFFIC_PACKET_H

#ifndef QOS_CDEF
#include <stdint.h>
#endif

#define QOS_PACKET_MAGIC 0x5154
#define QOS_PACKET_VERSION 1
#define QOS_PACKET_SIZE 32
#define QOS_PACKET_ETHERTYPE 0x88B5 /* local experimental, IEEE 802 */

enum qos_packet_flag { QOS_PACKET_LAUNCH = 1 /* the kernel was given launch_ns (SO_TXTIME) */ };

/* Host byte order, as decoded. */
struct qos_packet {
    uint8_t flags;
    uint32_t stream;
    uint64_t sequence;
    uint64_t launch_ns;
    uint64_t send_ns;
};

/* Write it to `out`, QOS_PACKET_SIZE bytes. */
void qos_packet_encode(uint8_t *out, const struct qos_packet *packet);

/* Read and check `size` bytes. 0, or -EMSGSIZE (too short), -EPROTO (other magic, or an instant of 2^63 ns or more),
 * -EPROTONOSUPPORT (another version). */
int qos_packet_decode(const uint8_t *data, uint64_t size, struct qos_packet *packet);

#endif
