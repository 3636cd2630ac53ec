# SPDX-License-Identifier: Apache-2.0
"""docs/lunar.md is true: its pipelines and programs run, its numbers are right."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = (ROOT / "docs/lunar.md").read_text(encoding="utf-8")
BIN: Final = Path(sys.executable).parent
NEEDS: Final = {"jq": pytest.mark.needs_jq, "gnuplot": pytest.mark.needs_gnuplot}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def pipelines() -> list[Any]:
    return [pytest.param(text, marks=[mark for word, mark in NEEDS.items() if word in text]) for text in blocks("sh")]


def test_there_is_one_pipeline_for_jq_and_one_for_gnuplot() -> None:
    assert any("| jq" in text and "gnuplot" not in text for text in blocks("sh"))
    assert any("| gnuplot" in text for text in blocks("sh"))


@pytest.mark.parametrize("text", pipelines())
def test_pipeline(daemon: Any, tmp_path: Path, text: str) -> None:
    environment = {**daemon.environment, "PATH": f"{BIN}:{daemon.environment['PATH']}"}
    with subprocess.Popen(
        ["bash", "-c", f"set -o pipefail; {text}"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as shell:  # fmt: skip
        publisher = (
            f"'{sys.executable}' -P '{ROOT}/demo/readings.py' --count 3000 | "
            "lunar-pub machine/readings --wait-for-subscriber 20"
        )
        subprocess.run(["bash", "-c", publisher], env=environment, check=True, timeout=40)
        out, err = shell.communicate(timeout=20)
    assert (shell.returncode, err) == (0, b"")
    assert out or "lunar-pub" in text


@pytest.mark.needs_gcc
@pytest.mark.needs_pkgconfig
def test_program_in_c(daemon: Any, tmp_path: Path) -> None:
    (source,) = blocks("c")
    (tmp_path / "hello.c").write_text(source, encoding="utf-8")
    line = next(line.strip() for line in PAGE.splitlines() if line.strip().startswith("cc -o hello"))
    places = [str(resources.files(package) / "lib/pkgconfig") for package in ("selene", "lunar")]
    environment = {**daemon.environment, "PKG_CONFIG_PATH": ":".join(places)}
    build = f"{line} -std=c11 -D_GNU_SOURCE -Wall -Wextra -Werror"
    subprocess.run(["sh", "-c", build], cwd=tmp_path, env=environment, check=True)
    done = _run([str(tmp_path / "hello")], daemon)
    assert (done.returncode, done.stdout, done.stderr) == (0, "greetings 0: hello, moon\n", "")


@pytest.mark.parametrize("source", blocks("python"))
def test_program_in_python(daemon: Any, source: str) -> None:
    done = _run([sys.executable, "-P", "-c", source], daemon)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 b'hello, moon'\n", "")


def _run(command: list[str], daemon: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=daemon.environment, cwd=daemon.socket.parent, capture_output=True, text=True, check=False,
        timeout=20,
    )  # fmt: skip


def test_number_of_lines() -> None:
    source = (ROOT / "tools/lunar/client/lunar.c").read_text(encoding="utf-8")
    code = re.sub(r"/\*.*?\*/", "", source, flags=re.DOTALL)
    assert "//" not in code  # the only kind of comment there is
    count = sum(bool(line.strip()) for line in code.splitlines())
    assert f"`lunar.c` has {count} lines (no blanks, no comments); the seed's has 135." in PAGE


def test_options_are_on_the_page() -> None:
    import click
    from lunar import pub, sub

    everywhere = ("help", "version", "verbose", "log_format")
    for entry in (pub.main, sub.main):
        for parameter in entry.command.params:
            if isinstance(parameter, click.Option) and parameter.name not in everywhere:
                longest = max(parameter.opts, key=len)
                assert longest in PAGE, longest
