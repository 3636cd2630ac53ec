/* SPDX-License-Identifier: Apache-2.0
 *
 * Preloaded into a User-Mode Linux kernel on a processor with AMX. Such a host takes the registers of a traced process only whole
 * (PTRACE_SETREGSET, NT_X86_XSTATE: EFAULT otherwise), but gives them without those of AMX to whoever has not asked for these; and the
 * kernel sets what it got. Here the rest is added: zeros, which the header's mask says are not there.
 */
#include <cpuid.h>
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

#define XSTATE_LEAF 0xd
#define ROOM 65536

static size_t whole_size(void)
{
    static unsigned size;
    unsigned eax, ecx, edx;
    if (size == 0)
        __cpuid_count(XSTATE_LEAF, 0, eax, size, ecx, edx);
    return size;
}

long ptrace(enum __ptrace_request request, ...)
{
    static long (*real)(enum __ptrace_request, ...);
    static _Alignas(64) char whole[ROOM];
    va_list list;
    va_start(list, request);
    int pid = va_arg(list, int);
    void *address = va_arg(list, void *), *data = va_arg(list, void *);
    va_end(list);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "ptrace");
    const struct iovec *registers = data;
    size_t size = whole_size();
    if (request != PTRACE_SETREGSET || address != (void *)NT_X86_XSTATE || registers->iov_len >= size || size > ROOM)
        return real(request, pid, address, data);
    memcpy(whole, registers->iov_base, registers->iov_len);
    memset(whole + registers->iov_len, 0, size - registers->iov_len);
    return real(request, pid, address, &(struct iovec){whole, size});
}
