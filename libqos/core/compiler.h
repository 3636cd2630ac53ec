/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one place for what depends on the compiler: atomics, hints, cache lines, symbol visibility.
 *
 * Words that several threads or processes share are _Atomic fixed-width integers. The sizes asserted below hold with gcc
 * and clang on every architecture Linux runs on, so the layout of shared memory is the same in every C library and the
 * operations are lock-free, hence valid between processes. A struct that Python reads by field has no such member.
 *
 * Each acquire or release in the sources carries a comment that names its partner.
 */
#ifndef QOS_COMPILER_H
#define QOS_COMPILER_H

/* Words of two writers are at least this far apart, so that they never share a cache line. */
#define QOS_CACHE_LINE 64

#ifndef QOS_CDEF

#include <stdatomic.h>
#include <stdint.h>

/* Marks what a shared library shows; everything else is built with -fvisibility=hidden. */
#define QOS_EXPORT __attribute__((visibility("default")))
#define QOS_CACHE_ALIGNED _Alignas(QOS_CACHE_LINE)

#define QOS_LIKELY(x) __builtin_expect(!!(x), 1)
#define QOS_UNLIKELY(x) __builtin_expect(!!(x), 0)

#define qos_load_relaxed(p) atomic_load_explicit((p), memory_order_relaxed)
#define qos_load_acquire(p) atomic_load_explicit((p), memory_order_acquire)
#define qos_store_relaxed(p, v) atomic_store_explicit((p), (v), memory_order_relaxed)
#define qos_store_release(p, v) atomic_store_explicit((p), (v), memory_order_release)

/* Read-modify-write: each returns the value from before. */
#define qos_add_relaxed(p, v) atomic_fetch_add_explicit((p), (v), memory_order_relaxed)
#define qos_add_acq_rel(p, v) atomic_fetch_add_explicit((p), (v), memory_order_acq_rel)
#define qos_sub_relaxed(p, v) atomic_fetch_sub_explicit((p), (v), memory_order_relaxed)
#define qos_sub_acq_rel(p, v) atomic_fetch_sub_explicit((p), (v), memory_order_acq_rel)
#define qos_exchange_acq_rel(p, v) atomic_exchange_explicit((p), (v), memory_order_acq_rel)

/*
 * Compare and swap: true when *p was *expected and is now desired, else *expected holds what was found. It never fails
 * without cause. Acquire and release when it succeeds, acquire when it does not.
 */
#define qos_cas_acq_rel(p, expected, desired)                                                                          \
    atomic_compare_exchange_strong_explicit((p), (expected), (desired), memory_order_acq_rel, memory_order_acquire)

#define qos_fence_acquire() atomic_thread_fence(memory_order_acquire)
#define qos_fence_release() atomic_thread_fence(memory_order_release)
#define qos_fence_seq_cst() atomic_thread_fence(memory_order_seq_cst)

_Static_assert(sizeof(_Atomic uint32_t) == 4 && sizeof(_Atomic uint64_t) == 8,
               "atomics have the layout of plain words");
_Static_assert(ATOMIC_INT_LOCK_FREE == 2 && ATOMIC_LLONG_LOCK_FREE == 2, "atomics must work between processes");

/* Tells the CPU that this is a spin loop: it uses less power, and the sibling hyper-thread gets on. */
static inline void qos_cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
    __asm__ volatile("yield" ::: "memory");
#else
    __asm__ volatile("" ::: "memory");
#endif
}

#endif /* QOS_CDEF */
#endif /* QOS_COMPILER_H */
