# SPDX-License-Identifier: Apache-2.0
"""From the stacks that `perf script` prints to groups of functions.

A sample belongs to the first frame, from the innermost outwards, that a rule knows: a lock, a copy or an allocation
counts for who asked for it. A machine without performance counters samples by timer, and what its kernel does with
interrupts off is seen where they are turned on again, which is mostly in the same group.
"""

import functools
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

# Keys of the records, in the order of the picture from the bottom up, with what they are called there.
GROUPS = {
    "application": "benchmark program",
    "library": "libselene, liblunar",
    "datapath": "selened-dp",
    "libc": "C library, clock",
    "system_call": "kernel: system call entry and exit",
    "network": "kernel: network stack",
    "event": "kernel: epoll, eventfd, futex",
    "scheduler": "kernel: wake-up, sleep, switch",
    "interrupt": "kernel: interrupts, timers, page faults",
    "kernel": "kernel: other",
    "idle": "idle",
    "other": "other processes",
}
AWAY = ("idle", "other")

# The first rule that matches the name of a kernel function wins; a name that none matches says nothing by itself.
KERNEL_RULES = [
    (group, re.compile(pattern))
    for group, pattern in (
        ("idle", r"(pv_native_safe_halt|default_idle|native_safe_halt|cpuidle|.*_idle_(do_)?entry|acpi_idle|intel_idle|"
                 r"mwait_idle|poll_idle|do_idle|cpu_startup_entry)"),
        ("scheduler", r"(_*schedule(_|$)|finish_task_switch|__switch_to|_*wake_up|try_to_wake_up|ttwu_|default_wake_|"
                      r"autoremove_wake|woken_wake|prepare_to_wait|finish_wait|sock_def_readable|sock_def_write_space|"
                      r"ep_poll_callback|ep_autoremove|dequeue_(task|entit)|enqueue_(task|entity)|pick_(next|task|eevdf)|"
                      r"update_curr|update_load_avg|select_task_rq|set_next_|put_prev_|check_preempt|wakeup_preempt|"
                      r"yield_task|do_sched_yield|__x64_sys_sched|sched_|resched_|__smp_call_single|x2apic_send_IPI|"
                      r"flush_smp_call|__skb_wait_for_more|hrtimer_nanosleep|do_nanosleep|sysvec_reschedule|sysvec_call_function|psi_)"),
        ("event", r"(ep_|do_epoll|__x64_sys_epoll|eventfd_|futex_|do_futex|__futex|__x64_sys_futex|do_sys_poll|do_poll|"
                  r"do_pollfd|__pollwait|poll_|pipe_)"),
        ("interrupt", r"(asm_|sysvec_|irqentry_|irq_|__irq|common_interrupt|exc_|handle_mm_fault|do_user_addr_fault|"
                      r"hrtimer_|__hrtimer|tick_|update_process_times|rcu_(core|sched_clock)|run_timer)"),
        ("system_call", r"(entry_SYSCALL|do_syscall_64|syscall_|x64_sys_call|__x64_sys|_{2,3}sys_|ksys_|vfs_|do_iter_|"
                        r"fdget|__fdget|__fget|fput|sockfd_lookup|move_addr_to_|import_|copy_msghdr|exit_to_user|"
                        r"__rseq|rseq_|fpregs_|switch_fpu|el0_svc|invoke_syscall)"),
        ("network", r"(_*(udp|udpv6|ip|ip6|ip4|ipv4|ipv6|inet|inet6|skb|sock|sk|net|netif|napi|dev|veth|eth|neigh|nf|"
                    r"fib|fib6|gro|csum|loopback|dst|tcp|qdisc|xdp|datagram|unix)_|_*local_bh|handle_softirqs|do_softirq|"
                    r"process_backlog|_*alloc_skb|kfree_skb|_*consume_skb|_*build_skb|validate_xmit|enqueue_to_backlog|"
                    r"security_sock|skb)"),
    )
]  # fmt: skip
LIBRARIES = ("libselene.", "liblunar.")
C_LIBRARY = ("libc.", "libc-", "libm.", "libm-", "libpthread", "ld-linux", "[vdso]")
DATAPATH = "selened-dp"
CONTROL = "selened"
BURNER = "burner-"
KERNEL = "[kernel"

EVENT = re.compile(r"^\s*(?P<comm>.+?)\s+(?P<pid>-?\d+)/(?P<tid>-?\d+)\s+\[(?P<cpu>\d+)\]\s+"
                   r"(?P<s>\d+)\.(?P<ns>\d{9}):\s*(?P<rest>.*)$")  # fmt: skip
FRAME = re.compile(r"^\s+[0-9a-f]+ (?P<symbol>.*) \((?P<file>.*)\)$")
FORK = re.compile(r"PERF_RECORD_FORK\((?P<pid>\d+):\d+\):\((?P<parent>\d+):\d+\)")
LOST = re.compile(r"PERF_RECORD_LOST lost (?P<count>\d+)")
COPIES = re.compile(r"\.(isra|part|constprop|cold|lto_priv)\b.*$|@@?.*$")


@dataclass(frozen=True)
class Frame:
    """A function and the name of the file it is in, without folder; the kernel's is ``[kernel.kallsyms]``."""

    symbol: str
    file: str

    @property
    def kernel(self) -> bool:
        """Whether the kernel runs it."""
        return self.file.startswith(KERNEL)


@dataclass(frozen=True)
class Sample:
    """What a CPU did at a moment of CLOCK_MONOTONIC; ``frames`` from the innermost outwards."""

    time_ns: int
    cpu: int
    pid: int
    comm: str
    frames: tuple[Frame, ...]


@dataclass
class Profile:
    """All samples in the order of time, each process' parent, and how many samples were lost on the way."""

    samples: list[Sample] = field(default_factory=list)
    parents: dict[int, int] = field(default_factory=dict)
    lost: int = 0

    def between(self, began_ns: float, ended_ns: float) -> list[Sample]:
        """Return the samples from ``began_ns`` until before ``ended_ns``."""
        first, last = (
            bisect_left(self.samples, end, key=lambda sample: sample.time_ns) for end in (began_ns, ended_ns)
        )
        return self.samples[first:last]

    def family(self, root: int) -> set[int]:
        """Return the processes that ``root`` started, and those that they started."""
        found = {root}
        for child, parent in self.parents.items():  # in the order of their birth
            if parent in found:
                found.add(child)
        return found - {root}


def parse(lines: Iterable[str]) -> Profile:
    """Read what ``perf script --ns --show-task-events --show-lost-events -F comm,pid,tid,cpu,time,ip,sym,dso`` prints.

    Lines of any other form are passed over.
    """
    profile = Profile()
    stacks: dict[tuple[Frame, ...], tuple[Frame, ...]] = {}  # the same ones come again and again
    for block in _blocks(lines):
        found = EVENT.match(block[0])
        if found is None:
            continue
        if fork := FORK.match(found["rest"]):
            if fork["pid"] != fork["parent"]:  # else a thread
                profile.parents[int(fork["pid"])] = int(fork["parent"])
        elif lost := LOST.search(found["rest"]):
            profile.lost += int(lost["count"])
        elif not found["rest"]:
            frames = tuple(frame for line in block[1:] if (frame := _frame(line)) is not None)
            time_ns = int(found["s"]) * 1_000_000_000 + int(found["ns"])
            profile.samples.append(Sample(time_ns, int(found["cpu"]), int(found["pid"]), found["comm"],
                                          stacks.setdefault(frames, frames)))  # fmt: skip
    return profile


def _blocks(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yield each event with its frames, which are the lines that begin with a tab."""
    block: list[str] = []
    for line in lines:
        text = line.rstrip("\n")
        if text.startswith("\t"):
            block.append(text)
        elif text:
            if block:
                yield block
            block = [text]
    if block:
        yield block


@functools.lru_cache(maxsize=65536)
def _frame(line: str) -> Frame | None:
    found = FRAME.match(line)
    if found is None:
        return None
    file = found["file"].rpartition("/")[2]
    symbol = COPIES.sub("", found["symbol"])
    return Frame(symbol if symbol != "[unknown]" else file, file)


@functools.lru_cache(maxsize=65536)
def _kernel_group(symbol: str) -> str | None:
    return next((group for group, pattern in KERNEL_RULES if pattern.match(symbol)), None)


def classify(sample: Sample, family: set[int]) -> tuple[str, str]:
    """Return the group of ``sample`` and the function it counts for; ``family``: the processes under measurement."""
    if sample.comm.startswith(BURNER):
        return "idle", "burner"
    if sample.pid != 0 and (sample.pid not in family or sample.comm == CONTROL):
        return "other", sample.comm
    if not sample.frames:
        return "kernel", "unknown"
    inner = sample.frames[0]
    if inner.kernel:
        for frame in sample.frames:
            if frame.kernel and (group := _kernel_group(frame.symbol)) is not None:
                return group, frame.symbol
        return "kernel", inner.symbol
    if inner.file.startswith(LIBRARIES):
        return "library", inner.symbol
    if inner.file.startswith(C_LIBRARY):
        return "libc", inner.symbol
    return "datapath" if inner.file == DATAPATH else "application", inner.symbol


def folded(samples: Iterable[Sample]) -> str:
    """Return ``samples`` as folded stacks, a line each: outermost first, joined by semicolons, and their number.

    What flame graph programs read; kernel functions end in ``_[k]``.
    """
    counts = Counter(
        ";".join([s.comm, *(f"{frame.symbol}_[k]" if frame.kernel else frame.symbol for frame in reversed(s.frames))])
        for s in samples
    )
    return "".join(f"{stack} {count}\n" for stack, count in sorted(counts.items()))
