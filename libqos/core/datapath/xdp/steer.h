/* SPDX-License-Identifier: Apache-2.0 */
#ifndef QOS_STEER_H
#define QOS_STEER_H

#define QOS_STEER_QUEUES 256
#define QOS_STEER_PORTS 4096
#define QOS_STEER_ANY_QUEUE 0xffffffffu

#endif
