# SPDX-License-Identifier: Apache-2.0
"""Every command has a manual page, which is what docs/make-man.py makes, names every option, and is clean roff."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import click
import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
MAN: Final = ROOT / "docs/man"
SCRIPTS: Final[dict[str, str]] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "scripts"
]
HINT: Final = "run .venv/bin/python -P docs/make-man.py --all"


def top(name: str) -> click.Command:
    module, _, attribute = SCRIPTS[name].partition(":")
    command: click.Command = getattr(importlib.import_module(module), attribute).command
    return command


def below(command: click.Command, path: list[str]) -> dict[str, list[str]]:
    """The words of the command and of everything below it, by the name of the page of the first two."""
    found = {"-".join(path[:2]): path} if len(path) <= 2 else {" ".join(path): path}
    if isinstance(command, click.Group):
        context = click.Context(command)
        for child in command.list_commands(context):
            inner = command.get_command(context, child)
            assert inner is not None
            found |= below(inner, [*path, child])
    return found


COMMANDS: Final = {name: words for script in SCRIPTS for name, words in below(top(script), [script]).items()}
PAGES: Final = sorted([name for name in COMMANDS if " " not in name] + ["selened-dp"])


def page_of(name: str) -> Path:
    found = [path for path in (MAN / f"{name}.1", MAN / f"{name}.8") if path.exists()]
    assert len(found) == 1, f"{name} has no manual page: {HINT}"
    return found[0]


def program(name: str) -> list[str]:
    return [str(Path(sys.executable).parent / name)]


def options(words: list[str]) -> set[str]:
    """The long options that --help of a command names."""
    done = subprocess.run(
        [*program(words[0]), *words[1:], "--help"], capture_output=True, text=True, timeout=30, check=True
    )
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", done.stdout))


def test_there_is_no_page_without_a_command() -> None:
    assert sorted(path.stem for path in MAN.iterdir()) == PAGES


@pytest.mark.parametrize("words", [*COMMANDS.values(), ["selened-dp"]], ids=" ".join)
def test_every_option_of_the_help_is_in_the_page(words: list[str]) -> None:
    text = page_of("-".join(words[:2])).read_text(encoding="utf-8").replace("\\-", "-")
    missing = {option for option in options(words) if not re.search(rf"{option}(?![a-z0-9-])", text)}
    assert not missing, HINT


def made(name: str) -> str:
    command = [sys.executable, "-P", str(ROOT / "docs/make-man.py"), name]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_its_script_makes(name: str) -> None:
    # The wording of click's own notes differs between its versions, so the names are compared.
    new, stored = (
        [line for line in text.splitlines() if line.startswith((".SH", ".SS", ".TH", "\\fB"))]
        for text in (made(name), page_of(name).read_text(encoding="utf-8"))
    )
    assert new == stored, HINT


def test_the_script_names_the_commands_there_are() -> None:
    command = [sys.executable, "-P", str(ROOT / "docs/make-man.py"), "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "nothing: no such command, accepted" in done.stderr
    assert "selene-perf" in done.stderr


@pytest.mark.needs_man
@pytest.mark.parametrize("name", PAGES)
def test_man_shows_it_without_a_warning(name: str) -> None:
    environment: dict[str, Any] = {**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8", "MANROFFSEQ": ""}
    command = ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", str(page_of(name))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30, check=True)
    assert done.stderr == ""
    shown = re.sub(r"\x1b\[[0-9;]*m|.\x08", "", done.stdout)
    assert "EXIT STATUS" in shown


@pytest.mark.needs_mandoc
@pytest.mark.parametrize("name", PAGES)
def test_mandoc_finds_nothing_wrong(name: str) -> None:
    command = ["mandoc", "-T", "lint", "-W", "warning", str(page_of(name))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    # a page has no date of its own: it belongs to a version
    assert [line for line in done.stdout.splitlines() if "missing date" not in line] == []
