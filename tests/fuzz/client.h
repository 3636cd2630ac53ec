/* SPDX-License-Identifier: Apache-2.0
 *
 * libselene inside the fuzzer: a session whose service thread is the fuzzer's own, and daemons that are the input. Whoever includes this
 * says what they answer.
 */
#ifndef FUZZ_CLIENT_H
#define FUZZ_CLIENT_H

#include <netinet/in.h>

#include "input.h"
#include "internal.h"

#define TX_BUFFERS 16
#define RX_BUFFERS 8
#define HOST UINT64_C(0x700000000)

struct daemons {
    int control, session; /* our ends; -1: closed */
    int udp, peer;        /* the session's socket, and one that sends to it */
    struct sockaddr_in udp_address, peer_address;
    int tx, page_fd, rx; /* memory of the session */
    uint8_t *page, *rx_base;
    int pool; /* another session's transmit pool */
    uint8_t *pool_base;
};

extern struct daemons daemons;
extern uint64_t clock_ns;
extern char socket_path[64];

void daemons_start(void);
/* Called when the library says something on its control socket: `fd` is that socket, `packet` what it says. */
void daemons_asked(int fd, const struct selene_msg *packet);
/* Send what belongs to a welcome; `welcome` and `memory` may be of any content, and so may their descriptors' number. */
void daemons_welcome(struct selene_welcome *welcome, size_t welcome_size, struct selene_dp_session *memory,
                     size_t memory_size, unsigned fds_left_out);
/* What an honest daemon says. */
struct selene_welcome daemons_honest_welcome(void);
struct selene_dp_session daemons_honest_memory(void);
/* Fill in a header and send. */
void daemons_send(int socket, void *packet, size_t size, uint16_t type, uint32_t request, const int *fds, int fd_count);
void daemons_hang_up(void);

#endif
