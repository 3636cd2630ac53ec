# SPDX-License-Identifier: Apache-2.0
"""docs/tsn-talker.md is true: its pipelines run, its options and numbers are those of the commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import click
import pytest

from tests.waiting import wait_until

ROOT: Final = Path(__file__).resolve().parents[2]
PAGE: Final = (ROOT / "docs/tsn-talker.md").read_text(encoding="utf-8")
NEEDS: Final = {"jq": pytest.mark.needs_jq, "gnuplot": pytest.mark.needs_gnuplot}
PIPELINES: Final = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(
    "text", [pytest.param(text, marks=[mark for word, mark in NEEDS.items() if word in text]) for text in PIPELINES]
)
def test_pipeline(traffic: Any, tmp_path: Path, text: str) -> None:
    environment = {
        **os.environ,
        "PATH": f"{traffic.bin}:{os.environ['PATH']}",
        "QOS_TSN_LISTENER_PORT": f"{traffic.port}",
    }
    with subprocess.Popen(
        ["bash", "-c", f"set -o pipefail; {text}"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as shell:  # fmt: skip
        bound = f":{traffic.port:04X} "
        wait_until(lambda: bound in Path("/proc/net/udp6").read_text(), "the listener")
        traffic.talk("--count", 5000, "--period", "500us")  # some more, since those that are skipped do not arrive
        out, err = shell.communicate(timeout=20)
    assert (shell.returncode, err) == (0, b"")
    assert out


def test_there_is_one_pipeline_for_jq_and_one_for_gnuplot() -> None:
    assert any("| jq" in text and "gnuplot" not in text for text in PIPELINES)
    assert any("| gnuplot" in text for text in PIPELINES)


@pytest.mark.parametrize("module", ["talker", "listener"])
def test_options_are_on_the_page(module: str) -> None:
    import importlib

    for parameter in importlib.import_module(f"tsn_agent.{module}").main.command.params:
        if isinstance(parameter, click.Option) and parameter.name not in ("help", "version", "verbose", "log_format"):
            longest = max(parameter.opts, key=len)
            assert longest in PAGE, longest


def test_numbers() -> None:
    from tsn_agent import traffic_agent, traffic_settings
    from tsn_agent._traffic import lib

    assert f"UDP port ({traffic_settings.DEFAULT_PORT})" in PAGE
    assert f"at most {traffic_agent.MAX_REPORTS} waiting" in PAGE
    assert f"due every {traffic_agent.ATTACH_TIMEOUT_S:g} s" in PAGE
    assert f"| 0 | u16 | magic, {lib.QOS_PACKET_MAGIC:#x} |" in PAGE
    assert f"EtherType 0x{lib.QOS_PACKET_ETHERTYPE:X}" in PAGE
    assert f"the {lib.QOS_LISTENER_LATE_MAX}th: or more" in PAGE


@pytest.mark.parametrize("name", ["tsn-talker", "tsn-listener"])
def test_help_is_quick_by_what_is_not_imported(name: str) -> None:
    module = name.replace("tsn-", "tsn_agent.")
    heavy = ("asyncio", "logging", "libqos._core", "tsn_agent._traffic", "pyroute2.netlink", "tomllib")
    code = f"import sys, {module}; print(sorted(set(sys.modules) & set({heavy!r})))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"
