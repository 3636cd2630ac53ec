# SPDX-License-Identifier: Apache-2.0
"""Commands under a Linux kernel that has what the host's may lack: taprio, etf, cbs, mqprio and VLANs; in one built for
it also a PTP clock without hardware (netdevsim), soft RoCE, and time that is simulated.

The kernel is User-Mode Linux: an ordinary program, whose root is the host's file tree (hostfs) with a layer of memory
over it. So a command finds the same files at the same places, and whatever it writes is gone when the kernel ends,
except below the folders that are named as writable. Working directory, environment, output and exit status are carried
over; there is no input.

In simulated time the clock stands still while a program computes, and jumps to the next timer when all sleep: what is
measured depends on nothing that the host does.

Found in this order: `QOS_TSN_KERNEL` (a path), the project's cache (`make tsn-kernel`), Debian's `linux.uml`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

TIMED_OUT: Final = 124
NOT_STARTED: Final = 125
PACKAGES: Final = {"busybox-static": "busybox", "kmod": "modprobe", "iproute2": "ip"}
STOCK_PACKAGES: Final = ("user-mode-linux", *PACKAGES)
MODULES: Final = "overlay veth bridge 8021q dummy sch_taprio sch_etf sch_cbs sch_mqprio sch_netem sch_prio"
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
# In simulated time some calls hang, about one in thirty; in real time they do not.
TRIES_SIMULATED: Final = 2


class KernelError(Exception):
    """There is no such kernel, or it did not come as far as the command. The text says what to do."""


# What a User-Mode Linux needs on a processor with AMX; see xstate.c.
_XSTATE: Final = Path(__file__).resolve().parents[2] / "build/tests/xstate.so"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A User-Mode Linux binary, and what it was built with."""

    path: Path
    simulated_time: bool
    ptp_clock: bool


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended. `tries` is more than 1 if the kernel had to be started again."""

    returncode: int
    stdout: bytes
    stderr: bytes
    tries: int


def cache() -> Path:
    """Where the project keeps a kernel of its own."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qos-continuum" / "tsn-kernel" / "linux"


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}")


@functools.cache
def _built_with(path: Path) -> Kernel:
    try:
        shown = subprocess.run([path, "--showconfig"], capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError(f"{path}: not a User-Mode Linux kernel that can be run: {error}") from error
    options = {line.partition("=")[0] for line in shown.splitlines() if line.endswith(("=y", "=m"))}
    if "CONFIG_UML" not in options:
        raise KernelError(f"{path}: not a User-Mode Linux kernel (it does not know --showconfig)")
    return Kernel(
        path,
        simulated_time="CONFIG_UML_TIME_TRAVEL_SUPPORT" in options,
        ptp_clock={"CONFIG_NETDEVSIM", "CONFIG_PTP_1588_CLOCK_MOCK"} <= options,
    )


@functools.cache
def _preloaded() -> dict[str, str]:
    if " amx_tile" not in Path("/proc/cpuinfo").read_text():
        return {}
    if not _XSTATE.exists():
        raise KernelError(f"{_XSTATE} is missing: make setup")
    return {"LD_PRELOAD": str(_XSTATE)}


def find(*, own: bool = False) -> Kernel:
    """The kernel to use; `own`: one with simulated time, PTP clock and soft RoCE. Raises KernelError."""
    if os.geteuid() != 0:
        raise KernelError("the TSN kernel needs root: it maps the host's root as its own")
    if missing := [package for package, program in PACKAGES.items() if _program(program) is None]:
        raise KernelError(f"apt-get install {' '.join(missing)}")
    if named := os.environ.get("QOS_TSN_KERNEL"):
        kernel = _built_with(Path(named))
    elif cache().exists():
        kernel = _built_with(cache())
    elif (stock := _program("linux.uml")) is not None:
        kernel = _built_with(Path(stock))
    else:
        raise KernelError(f"apt-get install {' '.join(STOCK_PACKAGES)}; or make tsn-kernel")
    if own and not (kernel.simulated_time and kernel.ptp_clock):
        raise KernelError(f"{kernel.path} has no simulated time or PTP clock; make tsn-kernel builds one")
    return kernel


# ---- What the kernel starts as its first process --------------------------------------------------------------------

_INIT: Final = """\
#!{busybox} sh
B={busybox}
N=/run/new
$B mount -t proc proc /proc && $B mount -t sysfs sys /sys && $B mount -t tmpfs run /run || $B poweroff -f
$B mkdir -p /run/upper /run/work $N /run/control /run/modules
$B mount -t hostfs -o {control} none /run/control
K=$($B uname -r)
if [ -d /usr/lib/uml/modules/$K ]; then
    $B mkdir -p /run/modules/lib/modules/$K
    $B mount --bind /usr/lib/uml/modules/$K /run/modules/lib/modules/$K
    {modprobe} -q -a -d /run/modules {modules}
fi
$B mount -t overlay -o lowerdir=/,upperdir=/run/upper,workdir=/run/work overlay $N || $B poweroff -f
$B mount -t proc proc $N/proc
$B mount -t sysfs sys $N/sys
$B mount -t devtmpfs dev $N/dev
$B mount -t tmpfs run $N/run
$B mkdir -p $N/run/netns $N/dev/pts $N/dev/shm
$B mount -t devpts devpts $N/dev/pts
$B mount -t tmpfs shm $N/dev/shm
$B mount -t debugfs debug $N/sys/kernel/debug 2>/dev/null
if [ -d /run/modules/lib ]; then
    $B mkdir -p $N/lib/modules/$K
    $B mount --bind /usr/lib/uml/modules/$K $N/lib/modules/$K
fi
{writable}
$B ip link set lo up
# Serial lines, since files on hostfs reach the host only when they are closed; behind pipes, so that no program takes
# them for a terminal.
$B mkfifo /run/stdout /run/stderr
for line in 0 1; do $B stty -F $N/dev/ttyS$line raw -echo; done
$B cat /run/stdout >$N/dev/ttyS0 &
$B cat /run/stderr >$N/dev/ttyS1 &
# In a pid namespace: what the command has left running ends with it, and with that the pipes.
$B chroot $N {unshare} --pid --fork --mount-proc /bin/sh {control}/command </dev/null >/run/stdout 2>/run/stderr
echo $? >/run/status
wait
$B cp /run/status /run/control/status
$B poweroff -f
"""


def _command(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> str:
    # A name that sh cannot have (BASH_FUNC_…) is left behind.
    exported = "".join(
        f"export {name}={shlex.quote(value)}\n" for name, value in environment.items() if name.isidentifier()
    )
    # not exec: the first process of a pid namespace cannot be ended by most signals
    return f"{exported}cd {shlex.quote(str(folder))} || exit {NOT_STARTED}\n{shlex.join(command)}\nexit $?\n"


def _init(control: Path, writable: Sequence[Path]) -> str:
    mounts = [
        f"$B mkdir -p $N{quoted}; $B mount -t hostfs -o {quoted} none $N{quoted}"
        for quoted in (shlex.quote(str(folder)) for folder in writable)
    ]
    return _INIT.format(
        busybox=_program("busybox"), modprobe=_program("modprobe"), unshare=_program("unshare"), modules=MODULES,
        control=control, writable="\n".join(mounts),
    )  # fmt: skip


# ---- Running it -----------------------------------------------------------------------------------------------------


class _Line:
    """What comes over a serial line: kept, and handed on."""

    def __init__(self, to: BinaryIO | None) -> None:
        self.read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        self.data = bytearray()
        self._to = to

    def take(self) -> bool:
        """Whether there may be more."""
        if not (new := os.read(self.read_end, 1 << 16)):
            return False
        self.data += new
        if self._to is not None:
            self._to.write(new)
            self._to.flush()
        return True

    def close(self) -> None:
        os.close(self.read_end)


@contextlib.contextmanager
def _guest(
    kernel: Kernel, control: Path, memory: str, lines: Sequence[_Line], arguments: Sequence[str]
) -> Iterator[subprocess.Popen[bytes]]:
    # One processor for all of its processes: only one runs at a time, and to wake another processor takes longer.
    cpu = max(os.sched_getaffinity(0))
    words = [
        "setpriv", "--pdeathsig", "KILL",  # whoever kills us need not look for it
        str(kernel.path), f"mem={memory}", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro",
        f"init={control}/init", f"uml_dir={control}/", "quiet", "con=null", "con0=null,fd:1", "ssl=null",
        *(f"ssl{number}=null,fd:{line.write_end}" for number, line in enumerate(lines)), *arguments,
    ]  # fmt: skip
    environment = {"HOME": str(control), "PATH": SYSTEM_PATH, **_preloaded()}
    with (control / "log").open("wb") as log:
        guest = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
            pass_fds=[line.write_end for line in lines], start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {cpu}),
        )  # fmt: skip
    for line in lines:
        os.close(line.write_end)
    try:
        yield guest
    finally:
        # its processes are all in its session
        with contextlib.suppress(ProcessLookupError):
            os.killpg(guest.pid, signal.SIGKILL)
        guest.wait()


def processes_of(runner: int) -> list[int]:
    """What runs of the kernels that the process `runner` has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"uml_dir=/var/tmp/qos-tsn-{runner}-".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def _sweep() -> None:
    """Remove what those have left who were killed."""
    for folder in Path("/var/tmp").glob("qos-tsn-[0-9]*-*"):
        runner = int(folder.name.split("-")[2])
        if Path(f"/proc/{runner}").exists():
            continue
        for process in processes_of(runner):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def _once(
    kernel: Kernel, command: Sequence[str], *, simulated_time: bool, writable: Sequence[Path], timeout: float,
    environment: Mapping[str, str], folder: Path, memory: str, stdout: BinaryIO | None, stderr: BinaryIO | None,
) -> Done:  # fmt: skip
    # Not below /run, /dev, /proc or /sys, which are the guest's own.
    _sweep()
    with tempfile.TemporaryDirectory(prefix=f"qos-tsn-{os.getpid()}-", dir="/var/tmp") as name:
        control = Path(name)
        (control / "command").write_text(_command(command, environment, folder))
        (control / "init").write_text(_init(control, writable))
        (control / "init").chmod(0o755)
        lines = _Line(stdout), _Line(stderr)
        deadline = time.monotonic() + timeout
        status = control / "status"
        arguments = ["time-travel=inf-cpu"] if simulated_time else []
        with _guest(kernel, control, memory, lines, arguments), selectors.DefaultSelector() as selector:
            for line in lines:
                selector.register(line.read_end, selectors.EVENT_READ, line)
            while selector.get_map() and (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    if not key.data.take():
                        selector.unregister(key.fd)
        for line in lines:
            line.close()
        if status.exists():
            returncode = int(status.read_text())
        elif time.monotonic() >= deadline:
            returncode = TIMED_OUT
        else:
            log = "\n".join((control / "log").read_text(errors="replace").splitlines()[-15:])
            raise KernelError(f"{kernel.path} did not run the command:\n{log}")
        return Done(returncode, bytes(lines[0].data), bytes(lines[1].data), 1)


def run(
    command: Sequence[str],
    *,
    simulated_time: bool = False,
    writable: Sequence[str | os.PathLike[str]] = (),
    timeout: float = 120.0,
    environment: Mapping[str, str] | None = None,
    folder: str | os.PathLike[str] | None = None,
    memory: str = "512M",
    stdout: BinaryIO | None = None,
    stderr: BinaryIO | None = None,
    retried: Callable[[], None] = lambda: None,
) -> Done:
    """Run `command` in the TSN kernel and wait for it.

    `timeout`: seconds of real time, for the kernel's start too; then everything is killed, and the status is TIMED_OUT.
    A command in simulated time that does not end in that time is run once more (`retried` is called): so it must not
    mind. `writable`: folders of the host that it may change. `environment`: os.environ if None. `memory`: of the
    kernel, as it writes it. `stdout`, `stderr`: what it prints is also written there, as it comes.
    Raises KernelError: there is no such kernel, or it did not come as far as the command."""
    kernel = find(own=simulated_time)
    places = [Path(place).resolve(strict=True) for place in writable]
    tries = TRIES_SIMULATED if simulated_time else 1
    for number in range(1, tries + 1):
        done = _once(
            kernel, command, simulated_time=simulated_time, writable=places, timeout=timeout,
            environment=os.environ if environment is None else environment,
            folder=Path.cwd() if folder is None else Path(folder), memory=memory, stdout=stdout, stderr=stderr,
        )  # fmt: skip
        if done.returncode != TIMED_OUT or number == tries:
            break
        retried()
    return Done(done.returncode, done.stdout, done.stderr, number)


def main() -> int:
    """The command line: see run-in-tsn-kernel."""
    import click

    @click.command("run-in-tsn-kernel", context_settings={"allow_interspersed_args": False})
    @click.option("--simulated-time", is_flag=True, help="Time passes only while all sleep (not in Debian's kernel).")
    @click.option("--rw", multiple=True, type=click.Path(exists=True, file_okay=False), help="A folder it may change.")
    @click.option("--timeout", type=float, default=120.0, show_default=True, help="Seconds, with the kernel's start.")
    @click.option("--memory", default="512M", show_default=True, help="Of the kernel.")
    @click.argument("command", nargs=-1, required=True)
    def cli(simulated_time: bool, rw: tuple[str, ...], timeout: float, memory: str, command: tuple[str, ...]) -> int:
        """Run COMMAND under a kernel with taprio, etf and VLANs; what it writes is gone afterwards.

        Exit status: COMMAND's; 124 if it did not end in time, 125 if there is no kernel or it did not start.

        Example: run-in-tsn-kernel -- tc qdisc add dev lo root etf clockid CLOCK_TAI delta 300000"""
        try:
            done = run(
                command, simulated_time=simulated_time, writable=rw, timeout=timeout, memory=memory,
                stdout=sys.stdout.buffer, stderr=sys.stderr.buffer,
                retried=lambda: click.echo("run-in-tsn-kernel: it hung; once more", err=True),
            )  # fmt: skip
        except KernelError as error:
            click.echo(f"run-in-tsn-kernel: {error}", err=True)
            return NOT_STARTED
        if done.returncode == TIMED_OUT:
            click.echo(f"run-in-tsn-kernel: not done after {timeout:g} s", err=True)
        return done.returncode

    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # not without ending the kernel
    try:
        return int(cli.main(standalone_mode=False))
    except click.ClickException as error:
        error.show()
        return 2
    except click.Abort:
        return 130


if __name__ == "__main__":
    sys.exit(main())
