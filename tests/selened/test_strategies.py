# SPDX-License-Identifier: Apache-2.0
"""Who decides on a stream's technologies: the configuration, an entry point, or the default when those fail."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from selened.mapping import BUILT_IN, StreamPolicy
from selened.notices import Notices
from selened.settings import Mapping, Settings
from selened.strategies import Strategies, installed

from libqos.config import ConfigError, load
from libqos.policy import Acceleration, Resources

if TYPE_CHECKING:
    from collections.abc import Callable

EXAMPLE = Path(__file__).parents[2] / "tools/selened/examples/mapping-strategy"
FAST = StreamPolicy(acceleration=Acceleration.FAST)
ANY = StreamPolicy(acceleration=Acceleration.FAST, resources=Resources.ANY)

BODIES = {
    "good": "return (name for name in ['xdp', 'udp'])",
    "left": "return None",
    "raises": "raise LookupError('no such host')",
    "exits": "raise SystemExit('no thanks')",
    "text": "return 'udp'",
    "nothing": "return []",
    "number": "return 7",
    "unknown": "return ['warp', 'udp']",
    "twice": "return ['udp', 'udp']",
    "endless": "import itertools; return itertools.repeat('udp')",
}


def install(directory: Path, name: str, source: str, entries: dict[str, str]) -> None:
    """A module and its entry points, as pip would leave them."""
    (directory / f"{name}.py").write_text(source)
    info = directory / f"{name}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    lines = [f"{key} = {value}" for key, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[selene.mapping]", *lines]) + "\n")


@pytest.fixture
def strategies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[Strategies, Notices]]:
    """Load the configured strategy `name` out of BODIES."""
    source = "".join(f"def {name}(policy, usable):\n    {body}\n" for name, body in BODIES.items())
    entries = {name: f"bodies:{name}" for name in BODIES}
    install(tmp_path, "bodies", source + "number_7 = 7\n", {**entries, "no-function": "bodies:number_7"})
    install(tmp_path, "broken", "raise OSError('half installed')\n", {"broken": "broken:strategy"})
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "bodies", raising=False)
    notices = Notices(logging.getLogger("test"))
    return lambda name: (Strategies(Mapping(strategy=name), notices), notices)


def labels(strategies: Strategies, policy: StreamPolicy = FAST) -> list[str]:
    return [item.label for item in strategies.order(policy, BUILT_IN).technologies]


# ---- The configuration ----


def test_a_list_of_the_configuration_replaces_that_of_the_default() -> None:
    strategies = Strategies(Mapping(fast_low=("xdp", "udp")), Notices(logging.getLogger("test")))
    order = strategies.order(FAST, BUILT_IN)
    assert labels(strategies) == ["xdp", "udp"]
    assert (order.strategy, order.reason) == ("mapping.fast_low", "it is configured")
    assert strategies.order(ANY, BUILT_IN).strategy == "default"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('fast_low = ["warp"]', "mapping.fast_low: found ['warp'], accepted a list of: udp | xdp | dpdk | rdma"),
        ("slow = []", "slow: found [], accepted one technology or more, each once"),
        ('slow = ["udp", "udp"]', "slow: found ['udp', 'udp'], accepted one"),
        ('fast = ["udp"]', "mapping.fast: unknown key (did you mean fast_"),
        ('strategy = "nobody"', "mapping.strategy: found 'nobody', accepted the name of an installed entry point"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused_with_file_line_and_key(tmp_path: Path, line: str, text: str) -> None:
    file = tmp_path / "selened.toml"
    file.write_text(f'log_level = "info"\n[mapping]\n{line}\n')
    with pytest.raises(ConfigError) as failure:
        load(Settings, tool="selened", file=file, environ={})
    [problem] = failure.value.problems
    assert problem.startswith(f"{file}:{3 if 'each once' not in text and 'accepted one' not in text else 2}: ")
    assert text in problem


# ---- Entry points ----


def test_an_entry_point_decides_and_is_named(strategies: Any) -> None:
    assert {"good", "broken"} <= set(installed())
    loaded, notices = strategies("good")
    assert labels(loaded) == ["xdp", "udp"]
    assert loaded.order(FAST, BUILT_IN).strategy == "good (bodies:good)"
    assert not notices.counts


def test_an_entry_point_may_leave_it_to_the_configuration(strategies: Any) -> None:
    loaded, notices = strategies("left")
    assert labels(loaded) == ["rdma", "xdp", "udp"]
    order = loaded.order(FAST, BUILT_IN)
    assert (order.strategy, order.reason) == ("default", "strategy left (bodies:left) left it")
    assert not notices.counts


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("raises", "failed: LookupError: no such host"),
        ("exits", "failed: SystemExit: no thanks"),
        ("text", "failed: StrategyError: found ['udp']"),
        ("nothing", "failed: StrategyError: found []"),
        ("number", "failed: TypeError: "),
        ("unknown", "failed: StrategyError: found ['warp', 'udp'], accepted a list of udp, xdp, dpdk, rdma"),
        ("twice", "failed: StrategyError: found ['udp', 'udp']"),
        ("endless", "failed: StrategyError: found ['udp', 'udp', 'udp', 'udp', 'udp']"),
        ("broken", "cannot be loaded: OSError: half installed"),
        ("no-function", "cannot be loaded: StrategyError: found int at bodies:number_7, accepted a function"),
    ],
)
def test_a_strategy_that_fails_is_one_warning_and_the_default_decides(
    strategies: Any, caplog: pytest.LogCaptureFixture, name: str, cause: str
) -> None:
    loaded, notices = strategies(name)
    for _ in range(3):
        assert labels(loaded) == ["rdma", "xdp", "udp"]
    order = loaded.order(FAST, BUILT_IN)
    assert order.strategy == "default"
    assert cause in order.reason
    assert notices.counts["mapping_failures"] >= 1
    [record] = caplog.records
    assert cause in record.getMessage()


# ---- The example, in a daemon ----


def test_the_example_is_asked_by_a_daemon_and_explained(
    make_daemon: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    site = tmp_path / "site"
    site.mkdir()
    install(site, "mains_power", (EXAMPLE / "mains_power.py").read_text(), project["entry-points"]["selene.mapping"])
    supply = tmp_path / "supplies" / "BAT0"
    supply.mkdir(parents=True)
    (supply / "status").write_text("Discharging\n")
    (site / "sitecustomize.py").write_text(
        f"import mains_power\nmains_power.SUPPLIES = __import__('pathlib').Path({str(supply.parent)!r})\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{site}:{os.environ.get('PYTHONPATH', '')}")
    daemon = make_daemon("s", '[mapping]\nstrategy = "mains-power"\n').start()
    [decision] = daemon.ask("explain", acceleration="fast", resources="any")
    assert decision["strategy"] == "mains-power (mains_power:strategy)"
    assert [item["technology"] for item in decision["candidates"]] == ["udp"]
    (supply / "status").write_text("Charging\n")
    [decision] = daemon.ask("explain", acceleration="fast", resources="any")
    assert decision["strategy"] == "default"
    assert decision["strategy_reason"] == "strategy mains-power (mains_power:strategy) left it"
    (supply / "status").unlink()
    (supply / "status").mkdir()
    [decision] = daemon.ask("explain", acceleration="fast", resources="any")
    assert "IsADirectoryError" in decision["strategy_reason"]
    assert daemon.notices()["mapping_failures"] == 1
    daemon.config.write_text('[mapping]\nfast_any = ["udp"]\n')
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: "reloaded: [mapping]" in daemon.said(), "the reload")
    client = daemon.client()
    client.stream(acceleration=1, resources=1)
    [decision] = [item for item in daemon.ask("explain") if "technology" in item]
    assert decision["strategy"] == "mapping.fast_any"


def test_a_strategy_that_is_not_installed_ends_the_start_with_file_line_and_key(make_daemon: Any) -> None:
    daemon = make_daemon("s", '[mapping]\nstrategy = "nobody"\n', "--check")
    done = subprocess.run(daemon.command(), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert f"{daemon.config}:2: mapping.strategy: found 'nobody', accepted" in done.stderr
