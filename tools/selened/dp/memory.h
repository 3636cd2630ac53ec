/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared memory: memfds that are created, mapped and then sealed here, and the range in which all pools lie side by side.
 *
 * Clients get descriptors of what they may write, and read-only reopened descriptors of what they may only read. A memfd is
 * private to its owner (mode 0600), so that another user cannot reopen a read-only descriptor for writing; what must not even
 * be written by the same user is sealed with FUTURE_WRITE.
 */
#ifndef DP_MEMORY_H
#define DP_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto.h"

#define DP_POOL_SLOTS (2 * SELENE_MAX_SESSIONS) /* a transmit pool per session, a receive pool per user */

struct dp_memory {
    uint8_t *base;
    size_t stride;
    bool locked; /* pin what the datapath touches */
    bool used[DP_POOL_SLOTS];
};

/* Reserve the address range, nothing of it accessible. 0 or a negative errno. */
int dp_memory_reserve(struct dp_memory *memory);
void dp_memory_release(struct dp_memory *memory);

/* Map `fd` into a free slot of the range. The address, or NULL with errno. */
void *dp_memory_map(struct dp_memory *memory, int fd, size_t size, int protection);
/* Give the slot that starts at `address` back; nothing is accessible there afterwards. */
void dp_memory_unmap(struct dp_memory *memory, void *address);

/* Fault pages in before they are needed (a fault costs as much as a message), and pin them if memory is locked. Best effort. */
void dp_memory_prefault(const struct dp_memory *memory, void *address, size_t size, bool writable);

/* A memfd of `size` zero bytes, close-on-exec, mode 0600; or a negative errno. */
int dp_memfd_create(const char *name, size_t size);
/* SHRINK, GROW and SEAL, and FUTURE_WRITE if `readonly`. 0 or a negative errno. */
int dp_memfd_seal(int fd, bool readonly);
/* A second, read-only open file of the same memory, or a negative errno. */
int dp_memfd_reopen(int fd);

#endif
