/* SPDX-License-Identifier: Apache-2.0
 *
 * selened-dp inside the fuzzer: all of its code, real sockets and real shared memory, but one thread and a clock of our own, so that
 * an input always does the same. Whoever includes this plays the controller, the clients and the network.
 */
#ifndef FUZZ_DP_H
#define FUZZ_DP_H

#include "control.h"
#include "input.h"

struct dp {
    struct dp_data data;
    struct dp_control control;
    int controller; /* our end; -1: none */
    uint64_t now_ns;
};

extern struct dp dp;

void dp_start(void);
void dp_begin(void); /* an input */
void dp_greet(void); /* connect as the controller, if nobody is */
/* Give an order as it stands, its header filled in unless `raw`. The answers are read and thrown away. */
void dp_order(void *packet, size_t size, uint16_t type, const int *fds, int fd_count, bool raw);
/* Let both threads do all there is to do, and as much time pass. */
void dp_settle(uint64_t ns);
/* One round of the data thread, even if it has nothing to do. */
void dp_round(void);
/* Read one packet from a socket; its descriptors are closed unless asked for. How many descriptors, or -1. */
int dp_read(int socket, int fds[SELENE_MAX_FDS], bool keep);
int dp_udp(void); /* a UDP socket on the loopback address */
/* End every session; then nothing of any input may be left, not even a descriptor. */
void dp_end(void);

#endif
