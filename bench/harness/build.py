# SPDX-License-Identifier: Apache-2.0
"""Compile the small C programs of the benches on first use.

They are no part of the installation, so they are not part of its build either. A program lies in ``build/bench`` under
a name that holds a hash of its sources and flags: an edit makes a new one, and two benches started at once do not
disturb each other.
"""

import hashlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from harness.procs import RunError

ROOT = Path(__file__).resolve().parents[2]
RAW = ROOT / "bench" / "raw"
CACHE = ROOT / "build" / "bench"
FLAGS = ("-std=c11", "-O2", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wpedantic", "-pthread")


def compile_program(
    source: Path, *, compile_flags: Sequence[str] = (), link_flags: Sequence[str] = (), cache: Path = CACHE
) -> Path:
    """Return the executable built from ``source`` and the headers beside it and in ``raw/``.

    Raises RunError if there is no source or no compiler, or if the compiler refuses.
    """
    if not source.exists():
        raise RunError(f"{source} is not there")
    compiler = os.environ.get("CC", "cc")
    key = hashlib.sha256(" ".join([compiler, *FLAGS, *compile_flags, *link_flags]).encode())
    for file in [source, *sorted(source.parent.glob("*.h")), *sorted(RAW.glob("*.h"))]:
        key.update(file.read_bytes())
    program = cache / f"{source.stem}-{key.hexdigest()[:16]}"
    if program.exists():
        return program
    cache.mkdir(parents=True, exist_ok=True)
    partial = program.with_suffix(f".{os.getpid()}")
    command = [*compiler.split(), *FLAGS, *compile_flags, "-o", str(partial), str(source), *link_flags, "-lm"]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError as error:
        raise RunError(f"{compiler}: {error.strerror}; a C compiler is needed (Debian: build-essential)") from error
    if done.returncode != 0:
        raise RunError(f"{' '.join(command)}:\n{done.stderr}")
    partial.rename(program)
    return program


def raw(name: str) -> Path:
    """Return the executable of ``bench/raw/<name>.c``."""
    return compile_program(RAW / f"{name}.c")
