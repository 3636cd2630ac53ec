# SPDX-License-Identifier: Apache-2.0
"""docs/selene-api.md is true: its programs print what stands below them, its pipelines run, and no call is left out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any, Final

import pytest
import selene

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = (ROOT / "docs/selene-api.md").read_text(encoding="utf-8")
HEADER: Final = (ROOT / "tools/selened/client/selene.h").read_text(encoding="utf-8")
NEEDS: Final = {"jq": pytest.mark.needs_jq, "gnuplot": pytest.mark.needs_gnuplot}


def programs(language: str) -> list[tuple[str, str]]:
    """Source and output of each program."""
    return re.findall(rf"```{language}\n(.*?)```\n```text\n(.*?)```", PAGE, re.DOTALL)


def pipelines() -> list[Any]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    return [pytest.param(text, marks=[mark for word, mark in NEEDS.items() if f"| {word}" in text]) for text in blocks]


def environment(daemon: Any) -> dict[str, str]:
    commands = Path(sys.executable).parent
    return {**os.environ, "SELENE_SOCKET": str(daemon.path), "PATH": f"{commands}:{os.environ['PATH']}"}


def output(command: list[str], daemon: Any, **options: Any) -> str:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, env=environment(daemon), capture_output=True, text=True, check=False, timeout=50, **options
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_every_program_has_its_output() -> None:
    assert PAGE.count("```python\n") == len(programs("python"))
    assert PAGE.count("```c\n") == len(programs("c"))


@pytest.mark.parametrize(("source", "printed"), programs("python"))
def test_python(shared_daemon: Any, source: str, printed: str) -> None:
    assert output([sys.executable, "-P", "-W", "error", "-c", source], shared_daemon) == printed


@pytest.mark.needs_gcc
@pytest.mark.needs_pkgconfig
@pytest.mark.parametrize(("source", "printed"), programs("c"))
def test_c(shared_daemon: Any, tmp_path: Path, source: str, printed: str) -> None:
    (tmp_path / "hello.c").write_text(source, encoding="utf-8")
    line = next(line.strip() for line in PAGE.splitlines() if line.strip().startswith("cc -o hello"))
    strict = "-std=c11 -D_GNU_SOURCE -Wall -Wextra -Wpedantic -Werror"
    places = {"PKG_CONFIG_PATH": str(resources.files("selene") / "lib/pkgconfig")}
    subprocess.run(["sh", "-c", f"{line} {strict}"], cwd=tmp_path, env={**os.environ, **places}, check=True)
    assert output([str(tmp_path / "hello")], shared_daemon) == printed


@pytest.mark.parametrize("text", pipelines())
def test_pipeline(shared_daemon: Any, text: str) -> None:
    assert output(["bash", "-c", f"set -o pipefail; {text}"], shared_daemon)


def test_nothing_is_left_out() -> None:
    calls = set(re.findall(r"\b(selene_[a-z_]+)\(", HEADER)) - {"selene_data_cb"}
    assert len(calls) > 30
    words = set(re.findall(r"\w+", PAGE))
    assert calls - words == set()
    assert set(selene.__all__) - words - {"SinkStats", "SourceStats", "Sink", "Source", "Stream"} == set()
