/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a hostile client needs of an honest one: greeting, requests, and the memory that comes with a session.
 */
#ifndef HOSTILE_CLIENT_H
#define HOSTILE_CLIENT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "pool.h"
#include "proto.h"
#include "ring.h"

#define PATIENCE_S 15
#define STREAM 4711u /* nobody else's */
#define MANY 512
#define TX_BYTES (SELENE_BELL_BYTES + qos_region_size(SELENE_TX_BUFFERS))
#define RX_BYTES qos_region_size(SELENE_RX_BUFFERS)

enum { TX_POOL, PAGE, RX_POOL, WAKE, BELL, MEMORIES };

struct session {
    int control, link, udp;
    int fds[MEMORIES];
    uint8_t *tx, *page;
    uint32_t host, number;
    uint64_t source;
    bool cut;
};

extern const char *path; /* of the control socket */
extern uint32_t opened, cut_off, refused;
extern uint8_t answer[SELENE_MAX_PACKET]; /* the last one */

void close_all(const int *fds, int n);
int put(int fd, const void *data, size_t length, const int *fds, int count);
int say(int fd, void *packet, size_t length, uint16_t type, uint32_t request, const int *fds, int count);
ssize_t get(int fd, void *data, int *fds, int *count, int flags);
int dial(const char *suffix);
uint16_t ask(struct session *s, void *packet, size_t length, uint16_t type, const int *given, int given_count, int *fds,
             int *count);
void close_session(struct session *s);
bool open_session(struct session *s, uint32_t flags);
uint16_t open_stream(struct session *s, uint32_t handle);
uint64_t open_end(struct session *s, uint16_t type, uint64_t channel, uint64_t id);
bool gone(struct session *s);
void wake(const struct session *s);
struct qos_ring *ring(const struct session *s);

/* Of the program: words and numbers from the seed, and what must not have been possible. */
uint64_t word(void);
uint32_t draw(uint32_t below);
void breach(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
