/* SPDX-License-Identifier: Apache-2.0 */
#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pool.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

static size_t slot_stride(void)
{
    size_t tx = SELENE_BELL_BYTES + qos_region_size(SELENE_TX_BUFFERS);
    size_t rx = qos_region_size(SELENE_RX_BUFFERS);
    return tx > rx ? tx : rx;
}

int dp_memory_reserve(struct dp_memory *memory)
{
    memory->stride = slot_stride();
    void *base =
        mmap(NULL, memory->stride * DP_POOL_SLOTS, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        return -errno;
    memory->base = base;
    return 0;
}

void dp_memory_release(struct dp_memory *memory)
{
    munmap(memory->base, memory->stride * DP_POOL_SLOTS);
    memory->base = NULL;
}

void *dp_memory_map(struct dp_memory *memory, int fd, size_t size, int protection)
{
    for (unsigned i = 0; i < DP_POOL_SLOTS; i++) {
        if (memory->used[i])
            continue;
        void *address = mmap(memory->base + i * memory->stride, size, protection, MAP_SHARED | MAP_FIXED, fd, 0);
        if (address == MAP_FAILED)
            return NULL;
        memory->used[i] = true;
        return address;
    }
    errno = ENOSPC;
    return NULL;
}

void dp_memory_unmap(struct dp_memory *memory, void *address)
{
    size_t slot = (size_t)((uint8_t *)address - memory->base) / memory->stride;
    /* Replaced, not unmapped: no foreign mapping may ever land in the range. A refusal leaves the old mapping in a slot that
     * is not used again. */
    void *fresh = mmap(memory->base + slot * memory->stride, memory->stride, PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    if (fresh != MAP_FAILED)
        memory->used[slot] = false;
}

void dp_memory_prefault(const struct dp_memory *memory, void *address, size_t size, bool writable)
{
    if (memory->locked && mlock(address, size) == 0)
        return;
#if defined(MADV_POPULATE_READ) && defined(MADV_POPULATE_WRITE)
    madvise(address, size, writable ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
#else
    madvise(address, size, MADV_WILLNEED);
    (void)writable;
#endif
}

int dp_memfd_create(const char *name, size_t size)
{
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
        fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return -errno;
    if (fchmod(fd, 0600) < 0 || ftruncate(fd, (off_t)size) < 0) {
        int error = errno;
        close(fd);
        return -error;
    }
    return fd;
}

int dp_memfd_seal(int fd, bool readonly)
{
    int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL | (readonly ? F_SEAL_FUTURE_WRITE : 0);
    return fcntl(fd, F_ADD_SEALS, seals) < 0 ? -errno : 0;
}

int dp_memfd_reopen(int fd)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int copy = open(path, O_RDONLY | O_CLOEXEC);
    return copy < 0 ? -errno : copy;
}
