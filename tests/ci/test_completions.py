# SPDX-License-Identifier: Apache-2.0
"""What `make install` puts in place for bash, zsh and fish completes: a person types, and presses TAB."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest

from tests.waiting import TIMEOUT_S

ROOT: Final = Path(__file__).resolve().parents[2]
BIN: Final = Path(sys.executable).parent
SCRIPTS: Final = sorted(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"])
BEGIN: Final = "\x01printf '<%s>' \x05\r"  # to the begin of the line, and print what stands on it
TYPED: Final = [
    ("selene perf pingpong --breakd", "<selene><perf><pingpong><--breakdown>"),
    ("selene expl", "<selene><explain>"),
    ("selene info --kind sess", "<selene><info><--kind><session>"),
    ("selened --config only", "<selened><--config><only.toml>"),
    ("qos-plot --kind timel", "<qos-plot><--kind><timeline>"),
    ("qos-stat only", "<qos-stat><only.toml>"),
    ("lunar-pub topic --qos monit", "<lunar-pub><topic><--qos><monitoring>"),
    ("lunar-sub topic --bin", "<lunar-sub><topic><--binary>"),
]


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PREFIX/share with the completions."""
    made = tmp_path_factory.mktemp("share")
    path = f"{BIN}:{os.environ['PATH']}"
    subprocess.run([ROOT / ".ci/completions", made], env={**os.environ, "PATH": path}, timeout=60, check=True)
    return made


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where a person types: a folder with one file."""
    (tmp_path / "only.toml").touch()
    return tmp_path


def environment(place: Path, **more: str) -> dict[str, str]:
    base = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(place), "TERM": "dumb", "LC_ALL": "C.UTF-8"}
    return {**base, **more}


def type_into(shell: list[str], setup: str, line: str, wanted: str, place: Path, **more: str) -> str:
    """What an interactive shell shows, when `setup` was run, `line` typed, TAB pressed, and the line printed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(place)
        os.execvpe(shell[0], shell, environment(place, **more))
    shown, said = "", 0
    steps = [(f"{setup}; printf 'rea%s\\n' dy\r", "ready"), (f"{line}\t{BEGIN}", wanted)]
    deadline = time.monotonic() + TIMEOUT_S
    try:
        for text, answer in steps:
            os.write(terminal, text.encode())
            said = len(shown)
            while answer not in shown[said:] and time.monotonic() < deadline:
                if select.select([terminal], [], [], 0.1)[0]:
                    shown += os.read(terminal, 65536).decode(errors="replace")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.close(terminal)
        os.waitpid(pid, 0)
    return shown[said:]


def test_every_command_has_its_completions(share: Path) -> None:
    assert sorted(path.name for path in (share / "bash-completion/completions").iterdir()) == SCRIPTS
    assert sorted(path.name for path in (share / "zsh/site-functions").iterdir()) == [f"_{name}" for name in SCRIPTS]
    fish = sorted(path.name for path in (share / "fish/vendor_completions.d").iterdir())
    assert fish == [f"{name}.fish" for name in SCRIPTS]


@pytest.mark.needs_bash
@pytest.mark.parametrize(("line", "wanted"), TYPED)
def test_bash(share: Path, place: Path, line: str, wanted: str) -> None:
    setup = f"for f in {share}/bash-completion/completions/*; do . $f; done"
    assert wanted in type_into(["bash", "--norc", "--noprofile", "-i"], setup, line, wanted, place)


@pytest.mark.needs_zsh
@pytest.mark.parametrize(("line", "wanted"), TYPED)
def test_zsh(share: Path, place: Path, line: str, wanted: str) -> None:
    setup = f"bindkey -e; fpath=({share}/zsh/site-functions $fpath); autoload -Uz compinit; compinit -u -D"
    assert wanted in type_into(["zsh", "-f", "-i"], setup, line, wanted, place)


@pytest.mark.needs_fish
@pytest.mark.parametrize(("line", "wanted"), TYPED)
def test_fish(share: Path, place: Path, line: str, wanted: str) -> None:
    ask = f"source {share}/fish/vendor_completions.d/{line.split()[0]}.fish; complete -C {line!r}"
    done: Any = subprocess.run(
        ["fish", "--no-config", "-c", ask],
        cwd=place, env=environment(place), capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert [text.split("\t")[0] for text in done.stdout.splitlines()] == [wanted.rpartition("<")[2].rstrip(">")]
