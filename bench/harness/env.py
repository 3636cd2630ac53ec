# SPDX-License-Identifier: Apache-2.0
"""What a figure must be read with: machine, kernel, versions, clock, load, build options."""

import contextlib
import json
import os
import platform
import re
import subprocess
import time
from pathlib import Path

from harness.build import FLAGS, ROOT
from harness.procs import Record, usable_cpus

BUILD_OPTIONS = ("buildtype", "optimization", "debug", "b_sanitize", "b_lto", "c_args")


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _first_line(*command: str) -> str | None:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None


def _cpu_model() -> str | None:
    found = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo") or "", re.MULTILINE)
    return found.group(1) if found else platform.processor() or None


def _build_options() -> Record | None:
    """Return what the checkout's own build was configured with, or None if there is no build."""
    for file in sorted((ROOT / "build").glob("**/meson-info/intro-buildoptions.json")):
        with contextlib.suppress(OSError, ValueError):
            options = json.loads(file.read_text())
            return {option["name"]: option["value"] for option in options if option["name"] in BUILD_OPTIONS}
    return None


def environment() -> Record:
    """Return the environment record; a value that this system does not tell is None."""
    changes = _first_line("git", "status", "--porcelain")
    return {
        "kind": "environment",
        "ts_ns": time.time_ns(),
        "kernel": platform.release(),
        "kernel_version": platform.version(),
        "machine": platform.machine(),
        "cpu_model": _cpu_model(),
        "cpus_online": os.cpu_count(),
        "cpus_usable": usable_cpus(),
        "cpus_isolated": _read("/sys/devices/system/cpu/isolated"),
        "smt": _read("/sys/devices/system/cpu/smt/active"),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "virtual": " hypervisor" in (_read("/proc/cpuinfo") or ""),
        "clocksource": _read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "rt_runtime_us": _read("/proc/sys/kernel/sched_rt_runtime_us"),
        "load": list(os.getloadavg()),
        "uid": os.getuid(),
        "python": platform.python_version(),
        "compiler": _first_line(os.environ.get("CC", "cc").split()[0], "--version"),
        "libc": " ".join(platform.libc_ver()),
        "revision": _first_line("git", "rev-parse", "HEAD"),
        "revision_changed": changes is not None,
        "build_options": _build_options(),
        "bench_flags": " ".join(FLAGS),
    }
