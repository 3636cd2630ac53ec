# SPDX-License-Identifier: Apache-2.0
"""`selene info | explain | stats` against a running daemon, and without one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest
from selene.cli import COMMANDS, main

PAGE = Path(__file__).parents[2] / "docs" / "selene.md"
BUILT = [name for name in COMMANDS if find_spec(f"selene.commands.{name}")]


def selene(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from selene.cli import main; main()", *arguments]
    environ = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30, env=environ)


def records(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("name", BUILT)
def test_every_command_has_help_and_is_in_the_documentation(name: str) -> None:
    group = main.command
    assert isinstance(group, click.Group)
    command = group.get_command(click.Context(group), name)
    assert command is not None
    assert command.name == name
    assert command.help
    if not isinstance(command, click.Group):
        assert command.help.splitlines()[0] == COMMANDS[name], "the line in the group is the first of its help"
    for option in command.params:
        assert isinstance(option, click.Argument) or getattr(option, "help", None), option.name
    assert f"selene {name}" in PAGE.read_text()


def test_an_unknown_command_is_wrong_usage() -> None:
    done = selene("inform")
    assert done.returncode == 2
    assert "No such command" in done.stderr


@pytest.mark.parametrize("variable", ["SELENE_SOCKET", "QOS_SELENE_SOCKET", "QOS_SELENED_SOCKET"])
def test_the_daemon_is_found_by_variable(daemon: Any, variable: str) -> None:
    done = selene("info", **{variable: str(daemon.path)})
    assert [record["kind"] for record in records(done)] == ["daemon"]


def test_info_shows_one_record_per_thing(daemon: Any) -> None:
    client = daemon.client()
    client.stream()
    client.source(1, "topic")
    found = records(selene("info", "--socket", str(daemon.path)))
    assert [record["kind"] for record in found] == ["daemon", "session", "stream", "source"]
    assert found[1]["path"] == "direct"
    [only] = records(selene("info", "--kind", "source", "--socket", str(daemon.path)))
    assert (only["name"], only["stream"]) == ("topic", 7)
    table = selene("info", "--format", "table", "--socket", str(daemon.path)).stdout
    assert "[session]" in table
    assert "topic" in table


def test_explain_shows_every_candidate(daemon: Any) -> None:
    arguments = ["explain", "--acceleration", "fast", "--resources", "any", "--socket", str(daemon.path)]
    [decision] = records(selene(*arguments))
    assert [item["technology"] for item in decision["candidates"]] == ["rdma", "dpdk", "xdp", "udp"]
    assert "not built into this version" in selene(*arguments, "--format", "table").stdout
    assert selene("explain", "--acceleration", "warp").returncode == 2
    refused = selene("explain", "--time-sensitive", "--socket", str(daemon.path))
    assert refused.returncode == 1
    assert "gate engine" in refused.stderr


def test_stats_can_be_followed(daemon: Any) -> None:
    client = daemon.client()
    client.stream()
    client.sink(1, "topic")
    found = records(selene("stats", "--socket", str(daemon.path)))
    assert [record["kind"] for record in found] == ["datapath", "sink"]
    assert found[1]["messages"] == 0
    command = [sys.executable, "-c", "from selene.cli import main; main()", "stats", "--follow", "--interval", "0.1"]
    with subprocess.Popen([*command, "--socket", str(daemon.path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        kinds = [json.loads(process.stdout.readline())["kind"] for _ in range(6)]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert kinds == ["datapath", "sink"] * 3


def test_without_a_daemon_it_says_what_to_do(tmp_path: Path) -> None:
    for command in ("info", "explain", "stats"):
        done = selene(command, "--socket", str(tmp_path / "none.sock"))
        assert done.returncode == 1
        assert "start the daemon" in done.stderr


def test_every_key_of_the_configuration_is_in_the_documentation() -> None:
    from selened.settings import Settings

    from libqos import config

    page = PAGE.read_text()
    for key, _, default, _, meaning in config.reference(Settings, tool="selened"):
        assert f"| `{key}` |" in page
        assert default in page
        assert meaning in page
