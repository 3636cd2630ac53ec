# SPDX-License-Identifier: Apache-2.0
"""docs/tsn-agent.md is true: its file is applied, its commands and pipelines run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from tsn_agent import wanted

from libqos import tomlfile
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.tsn_kernel

PAGE: Final = (Path(__file__).resolve().parents[2] / "docs/tsn-agent.md").read_text(encoding="utf-8")
COMMANDS, DAEMON, PIPELINES, STREAM = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
STREAMS, *STREAM_TABLES = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    add = "ip link add eth0 numtxqueues 4 numrxqueues 4 type veth peer name far0 numtxqueues 1"
    subprocess.run(f"{add} && ip link set far0 up && ip link set eth0 up", shell=True, check=True)
    (tmp_path / "streams.toml").write_text(STREAMS)
    (tmp_path / "run").mkdir(mode=0o700)
    yield {
        **os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_RUNTIME_DIR": str(tmp_path / "run"), "QOS_TSN_AGENT_STATE": str(tmp_path / "agent.db"),
    }  # fmt: skip
    subprocess.run("ip link del eth0", shell=True, check=True)


def test_the_commands(tmp_path: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(["bash", "-e", "-c", COMMANDS], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "taprio" in done.stdout
    assert "ok" in done.stdout


def test_the_daemon_and_the_pipelines(tmp_path: Path, environment: dict[str, str]) -> None:
    socket = tmp_path / "run/qos/tsn-agent.sock"
    start, watch = (line.split("#", maxsplit=1)[0].split() for line in DAEMON.splitlines())
    link, *others = PIPELINES.replace("|\n", "| ").splitlines()
    with subprocess.Popen(start, cwd=tmp_path, env=environment) as daemon:
        wait_until(socket.exists, "the daemon")
        # Linux tells of carriers once a second, as they are then
        toggle = "while ip link set far0 down && sleep 1.2 && ip link set far0 up; do sleep 1.2; done"
        with subprocess.Popen(["sh", "-c", toggle]) as toggling:
            for words in (watch, ["bash", "-c", link.replace("jq -c", "jq --unbuffered -c")]):
                with subprocess.Popen(
                    words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
                ) as watching:
                    assert watching.stdout is not None
                    seen = next(line for line in watching.stdout if "eth0" in line)
                    os.killpg(watching.pid, signal.SIGTERM)
            toggling.terminate()
        subprocess.run(["ip", "link", "set", "far0", "up"], check=True)
        show = ["tsn-agent", "show"]
        wait_until(lambda: subprocess.run(show, env=environment, capture_output=True).returncode == 0, "moving gates")
        assert json.loads(seen)["interface"] == "eth0"
        for line in [*STREAM.splitlines(), *others]:
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, (line, done.stderr)
        assert (tmp_path / "gates.png").stat().st_size > 0
        daemon.terminate()
    assert daemon.returncode == 0


def test_the_other_files_are_valid() -> None:
    tables = [text for text in STREAM_TABLES if "[[streams]]" in text]
    assert len(tables) == 2
    for text in tables:
        assert wanted.of_document(tomlfile.parse(text, "docs/tsn-agent.md")).streams
