# SPDX-License-Identifier: Apache-2.0
"""Two paths between a talker and a listener, as in the thesis (4.2.3): outside, the kernel that runs them; inside, what
runs there.

S1 goes through switch s1, S2 through s2 and s3, each in a VLAN of its own. The talker's ports have taprio, whose first
window is for the streams. A switch forwards on a link of its own rate after a fixed time (netem).
"""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.build import ROOT
from harness.plot import PROJECT_PYTHON
from harness.procs import Record, RunError
from harness.stats import percentile

PATHS = {"S1": ("s1",), "S2": ("s2", "s3")}
CYCLE_NS, WINDOW_NS, OFFSET_NS = 1_000_000, 500_000, 100_000
RATE, FORWARDING = "1gbit", "2us"
TIMEOUT_S = 300.0
BOX = {"p1": 0.01, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p99": 0.99}
SCHEDULE: dict[str, Any] = {
    "num_tc": 2, "map": [0, 0, 0, 1], "queues": [(1, 0), (1, 1)], "base_time": 0, "clockid": 11,
    "sched_entries": [(0b10, WINDOW_NS), (0b01, CYCLE_NS - WINDOW_NS)],
}  # fmt: skip

# Behind what is installed: the sources of libqos in the root lack the compiled modules.
sys.path.append(str(ROOT))


# ---- outside ---------------------------------------------------------------------------------------------------------


def why_not(*, own: bool = True) -> str | None:
    """Return what is missing for a run, or None; ``own``: the kernel of the project's own, with simulated time."""
    from tests.testbed import kernel

    if not PROJECT_PYTHON.exists():
        return f"{PROJECT_PYTHON} is missing: make setup"
    try:
        kernel.find(own=own)
    except kernel.KernelError as error:
        return str(error)
    return None


def run(size: int, count: int) -> dict[str, Record]:
    """Send ``count`` packets of ``size`` bytes payload on each path under the TSN kernel; a record of each.

    Raises RunError.
    """
    from tests.testbed import kernel

    command = [str(PROJECT_PYTHON), "-m", "harness.traffic", str(size), str(count)]
    try:
        done = kernel.run(command, simulated_time=True, timeout=TIMEOUT_S, folder=ROOT / "bench")
    except kernel.KernelError as error:
        raise RunError(str(error)) from error
    if done.returncode != 0:
        raise RunError(f"under the TSN kernel: status {done.returncode}: {done.stderr.decode(errors='replace')}")
    return {record["path"]: record for record in map(json.loads, done.stdout.splitlines())}


# ---- inside ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def network() -> Iterator[tuple[Any, Any]]:
    """Make both paths; give talker and listener."""
    from tests.testbed.network import Network

    with Network() as made:
        talker, listener = made.host("talker"), made.host("listener")
        for number, switches in enumerate(PATHS.values(), 1):
            hosts = [made.switch(name, 10 * number) for name in switches]
            here, _ = made.link(talker, hosts[0], (f"t{number}", "p1"), queues=2)
            for one, other in itertools.pairwise(hosts):
                made.link(one, other, ("p2", "p1"))
            _, there = made.link(hosts[-1], listener, ("p2", f"l{number}"))
            for host in hosts:
                host.run("tc", "qdisc", "add", "dev", "p2", "root", "netem", "delay", FORWARDING, "rate", RATE)
            here.vlan(10 * number, p3=3).add(f"10.0.{number}.1/24")
            there.vlan(10 * number).add(f"10.0.{number}.2/24")
            talker.run("busybox", "ping", "-c", 1, f"10.0.{number}.2")
            here.queueing("taprio", **SCHEDULE)
        yield talker, listener


def streams(folder: Path, size: int, count: int) -> tuple[Path, Path]:
    """Write the configurations of talker and listener."""
    talk = listen = ""
    for number, path in enumerate(PATHS, 1):
        head = f'[[streams]]\nname = "{path}"\nid = {number}\nperiod = {CYCLE_NS}\n'
        talk += f'{head}destination = "10.0.{number}.2"\npriority = 3\noffset = {OFFSET_NS}\n'
        talk += f"size = {size}\ncount = {count}\n"
        listen += f"{head}base_time = 0\ndeadline = {WINDOW_NS}\n"
    (folder / "talk.toml").write_text(talk)
    (folder / "listen.toml").write_text(listen)
    return folder / "talk.toml", folder / "listen.toml"


def inside(size: int, count: int) -> None:
    """Run both paths once, and print a record of each."""
    bin_ = PROJECT_PYTHON.parent
    with tempfile.TemporaryDirectory() as name, network() as (talker, listener):
        folder = Path(name)
        talk, listen = streams(folder, size, count)
        with (folder / "listened").open("wb") as out:
            receiving = listener.start(
                bin_ / "tsn-listener", "--config", listen, "--count", count, "--timeout", "5s", "--samples",
                "--interval", "3600s", stdout=out,
            )  # fmt: skip
        bound = Path(f"/proc/{receiving.pid}/net/udp6")
        while b":1D30" not in bound.read_bytes() and receiving.poll() is None:  # port 7472
            time.sleep(0.01)
        sending = talker.start(
            bin_ / "tsn-talker", "--config", talk, "--spin", 0, "--interval", "3600s", stdout=subprocess.PIPE
        )
        try:
            sent, _ = sending.communicate(timeout=60 + 2 * count * CYCLE_NS / 1e9)
            if sending.returncode != 0 or receiving.wait(60) != 0:
                sys.exit(f"tsn-talker ended with {sending.returncode}, tsn-listener with {receiving.poll()}")
        finally:
            for process in (sending, receiving):
                process.kill()
        with (folder / "listened").open() as lines:
            received = [json.loads(line) for line in lines]
    for path in PATHS:
        print(json.dumps(summary(path, size, count, [json.loads(line) for line in sent.splitlines()], received)))


def summary(path: str, size: int, count: int, sent: list[Record], received: list[Record]) -> Record:
    """Make the record of a path from what talker and listener say."""
    (talked,) = [r for r in sent if r["kind"] == "talker" and r["stream"] == path and r["final"]]
    (heard,) = [r for r in received if r["kind"] == "listener" and r["stream"] == path and r["final"]]
    record = {
        "kind": "summary", "path": path, "size_bytes": size, "count": count, "sent": talked["sent"],
        "received": heard["received"], "lost": heard["lost"], "outside": heard["late"] + heard["early"],
        # numbers that neither arrived nor are known to be missing, beside those never sent
        "unaccounted": abs(count - talked["skipped"] - talked["failed"] - heard["received"]),
        "timestamps": heard["timestamps"],
    }  # fmt: skip
    samples = [r for r in received if r["kind"] == "latency" and r["stream"] == path]
    for metric in ("latency", "jitter"):
        values = [sample[f"{metric}_ns"] for sample in samples if f"{metric}_ns" in sample]
        record |= {f"{metric}_{key}_ns": percentile(values, share) for key, share in BOX.items()}
        record |= {f"{metric}_min_ns": min(values), f"{metric}_max_ns": max(values)}
    return record


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)
    inside(int(sys.argv[1]), int(sys.argv[2]))
