/* SPDX-License-Identifier: Apache-2.0
 *
 * The timestamps of a message (Linux Documentation/networking/timestamping.rst): the hardware's if there is one, else the kernel's.
 */
#ifndef QOS_TRAFFIC_STAMPS_H
#define QOS_TRAFFIC_STAMPS_H

#ifndef QOS_CDEF
#include <stdint.h>
#include <sys/socket.h>
#endif

/* TAI minus Unix time as the kernel has it: whole seconds, 0 while nobody has told it. */
uint64_t qos_stamps_offset(void);

#ifndef QOS_CDEF
/* Sets *at_ns to TAI and returns an enum qos_event_stamp; leaves it alone for QOS_STAMP_USER, where the message has none. Clocks of cards
 * are taken to count TAI, as PTP does. */
uint8_t qos_stamps_read(struct msghdr *message, uint64_t offset_ns, uint64_t *at_ns);
#endif

#endif
