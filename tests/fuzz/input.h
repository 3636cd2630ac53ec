/* SPDX-License-Identifier: Apache-2.0
 *
 * Reading the bytes of one input as a sequence of small values. When they run out, everything is 0.
 */
#ifndef FUZZ_INPUT_H
#define FUZZ_INPUT_H

#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t room);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed);

struct input {
    const uint8_t *at;
    size_t left;
};

static inline void input_copy(struct input *in, void *out, size_t size)
{
    size_t n = size < in->left ? size : in->left;
    memset(out, 0, size);
    memcpy(out, in->at, n);
    in->at += n;
    in->left -= n;
}

static inline uint64_t input_number(struct input *in, size_t bytes)
{
    uint64_t value = 0;
    input_copy(in, &value, bytes);
    return value;
}

/* How many orders, packets, datagrams and other steps all inputs had, told at the end. */
static unsigned long long steps_taken;

__attribute__((destructor)) static void tell_steps(void)
{
    if (steps_taken > 0)
        fprintf(stderr, "stat::steps: %llu\n", steps_taken);
}

/* How many descriptors this process has; that an input leaves none behind is checked with it. */
static inline int descriptors(void)
{
    struct pollfd fds[96];
    int count = 0;
    for (int fd = 0; fd < 96; fd++)
        fds[fd] = (struct pollfd){.fd = fd};
    (void)poll(fds, 96, 0);
    for (int fd = 0; fd < 96; fd++)
        count += !(fds[fd].revents & POLLNVAL);
    return count;
}

/* What must hold, whatever the input. */
#define HOLDS(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            abort();                                                                                                   \
    } while (0)

#endif
