/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the compiler calls for each access when it compiles with -fsanitize=thread, led to the model. The names and signatures are those
 * of ThreadSanitizer's runtime (LLVM, compiler-rt/lib/tsan/rtl/tsan_interface*.h), which is not linked.
 */
#include <string.h>

#include "model.h"

#pragma GCC diagnostic ignored "-Wmissing-prototypes"

void __tsan_init(void)
{
}

void __tsan_func_entry(void *caller)
{
    (void)caller;
}

void __tsan_func_exit(void)
{
}

#define PLAIN(size)                                                                                                    \
    void __tsan_read##size(void *at)                                                                                   \
    {                                                                                                                  \
        model_plain(at, size, false);                                                                                  \
    }                                                                                                                  \
    void __tsan_write##size(void *at)                                                                                  \
    {                                                                                                                  \
        model_plain(at, size, true);                                                                                   \
    }                                                                                                                  \
    void __tsan_unaligned_read##size(void *at)                                                                         \
    {                                                                                                                  \
        model_plain(at, size, false);                                                                                  \
    }                                                                                                                  \
    void __tsan_unaligned_write##size(void *at)                                                                        \
    {                                                                                                                  \
        model_plain(at, size, true);                                                                                   \
    }
PLAIN(1)
PLAIN(2)
PLAIN(4)
PLAIN(8)
PLAIN(16)

void __tsan_read_range(void *at, unsigned long size)
{
    model_plain(at, (unsigned)size, false);
}

void __tsan_write_range(void *at, unsigned long size)
{
    model_plain(at, (unsigned)size, true);
}

static uint64_t change_exchange(uint64_t old, uint64_t operand)
{
    (void)old;
    return operand;
}

static uint64_t change_add(uint64_t old, uint64_t operand)
{
    return old + operand;
}

static uint64_t change_sub(uint64_t old, uint64_t operand)
{
    return old - operand;
}

static uint64_t change_or(uint64_t old, uint64_t operand)
{
    return old | operand;
}

static uint64_t change_and(uint64_t old, uint64_t operand)
{
    return old & operand;
}

#define UPDATE(bits, name, change)                                                                                     \
    uint##bits##_t __tsan_atomic##bits##_##name(volatile void *word, uint##bits##_t operand, int order)                \
    {                                                                                                                  \
        return (uint##bits##_t)model_update(word, bits / 8, change, operand, order);                                   \
    }
#define ATOMIC(bits)                                                                                                   \
    uint##bits##_t __tsan_atomic##bits##_load(const volatile void *word, int order)                                    \
    {                                                                                                                  \
        return (uint##bits##_t)model_load(word, bits / 8, order);                                                      \
    }                                                                                                                  \
    void __tsan_atomic##bits##_store(volatile void *word, uint##bits##_t value, int order)                             \
    {                                                                                                                  \
        model_store(word, bits / 8, value, order);                                                                     \
    }                                                                                                                  \
    UPDATE(bits, exchange, change_exchange)                                                                            \
    UPDATE(bits, fetch_add, change_add)                                                                                \
    UPDATE(bits, fetch_sub, change_sub)                                                                                \
    UPDATE(bits, fetch_or, change_or)                                                                                  \
    UPDATE(bits, fetch_and, change_and)                                                                                \
    int __tsan_atomic##bits##_compare_exchange_strong(volatile void *word, void *expected, uint##bits##_t desired,     \
                                                      int order, int failure)                                          \
    {                                                                                                                  \
        uint64_t wide = 0;                                                                                             \
        memcpy(&wide, expected, bits / 8);                                                                             \
        bool done = model_compare_exchange(word, bits / 8, &wide, desired, order, failure);                            \
        memcpy(expected, &wide, bits / 8);                                                                             \
        return done;                                                                                                   \
    }
ATOMIC(8)
ATOMIC(16)
ATOMIC(32)
ATOMIC(64)

void __tsan_atomic_thread_fence(int order)
{
    model_fence(order);
}

/* Orders nothing between threads. */
void __tsan_atomic_signal_fence(int order)
{
    (void)order;
}
