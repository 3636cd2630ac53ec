# SPDX-License-Identifier: Apache-2.0
"""What `make tsn-kernel` does before it builds; a build takes too long for a test."""

from __future__ import annotations

import hashlib
import os
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def build(root: Path, cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [root / ".ci/tsn-kernel"], env={**os.environ, "XDG_CACHE_HOME": str(cache), **environment},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip


def test_nothing_is_done_twice(root_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "qos-continuum/tsn-kernel"
    folder.mkdir(parents=True)
    kernel = folder / "linux"
    kernel.write_text("a kernel")
    kernel.chmod(0o755)
    parts = [(root_dir / "tests/testbed/tsn-kernel.config").read_bytes(), kernel.read_bytes()]
    sums = [f"{hashlib.sha256(part).hexdigest()}  -" for part in parts]
    (folder / "built").write_text("\n".join(["of a tarball", *sums, ""]))
    done = build(root_dir, tmp_path)
    assert (done.returncode, f"up to date: {kernel}" in done.stdout) == (0, True)
    assert kernel.read_text() == "a kernel"


def test_a_source_that_is_not_there(root_dir: Path, tmp_path: Path) -> None:
    done = build(root_dir, tmp_path, TSN_KERNEL_SOURCE="/does/not/exist")
    assert done.returncode == 2
    assert "TSN_KERNEL_SOURCE: /does/not/exist cannot be read; accepted is a tarball of Linux 6.12" in done.stderr
    assert not list(tmp_path.iterdir())
