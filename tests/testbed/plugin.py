# SPDX-License-Identifier: Apache-2.0
"""Tests marked `tsn_kernel` run under the TSN kernel (`kernel.py`), among the others, and are reported like these.

On the host such a test is not set up: one kernel is started for those of a file that want the same kind, pytest runs
them there, and what it reports is reported here. `@pytest.mark.tsn_kernel` asks for any kernel with taprio and etf;
`own=True` for one with PTP clock and soft RoCE; `simulated_time=True` for time that passes only while all sleep.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import pytest

from tests.testbed import kernel

MARK: Final = "tsn_kernel"
INSIDE: Final = "QOS_IN_TSN_KERNEL"
REPORTS: Final = "QOS_TSN_REPORTS"
# faulthandler ends a run in which one call takes 180 s, and to pytest all tests of a kernel are the first one's call.
TIMEOUT_S: Final = 150.0
MOST: Final = 30  # tests in one kernel

Kind = tuple[Path, bool, bool]  # file, own, simulated time


def is_inside() -> bool:
    """Whether this pytest runs under the TSN kernel."""
    return INSIDE in os.environ


def _kind(item: pytest.Item) -> Kind | None:
    mark = item.get_closest_marker(MARK)
    if mark is None:
        return None
    simulated = bool(mark.kwargs.get("simulated_time", False))
    return item.path, bool(mark.kwargs.get("own", False)) or simulated, simulated


def why_not(*, own: bool) -> str | None:
    """None if there is a kernel, else what to do."""
    if is_inside():
        return None
    try:
        kernel.find(own=own)
    except kernel.KernelError as error:
        return str(error)
    return None


class Guests:
    """Of one run of pytest: which tests have been run in a kernel, and what came of it."""

    def __init__(self, required: set[str]) -> None:
        self.required = required
        self.reports: dict[str, list[Any]] = {}
        self.hung = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if _kind(item) is not None:
                item.add_marker(pytest.mark.timeout(0))  # it has the kernel's

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        kind = _kind(item)
        if kind is None:
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        if item.nodeid not in self.reports:
            self._run(item, kind)
        for report in self.reports[item.nodeid]:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        item.session._setupstate.teardown_exact(nextitem)  # of the tests in front, as the usual protocol does
        return True

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.hung:
            terminalreporter.write_line(
                f"TSN kernel in simulated time: hung {self.hung} times, and was started once more"
            )

    def _run(self, first: pytest.Item, kind: Kind) -> None:
        _, own, simulated = kind
        if (reason := why_not(own=own)) is not None:
            resource = "tsn_own" if own else "tsn"
            outcome = "failed" if resource in self.required else "skipped"
            prefix = f"QOS_REQUIRE names {resource}, but" if outcome == "failed" else "needs the TSN kernel"
            for item in [item for item in first.session.items if _kind(item) == kind]:
                self.reports[item.nodeid] = [_report(item, outcome, f"{prefix}: {reason}")]
            return
        left = [item for item in first.session.items if _kind(item) == kind and item.nodeid not in self.reports]
        items = left[left.index(first) :][:MOST]
        with tempfile.TemporaryDirectory(prefix=f"qos-tsn-{os.getpid()}-", dir="/var/tmp") as folder:
            command = [
                sys.executable, "-P", "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider",
                *(item.nodeid for item in items),
            ]  # fmt: skip
            environment = {**os.environ, INSIDE: "1", REPORTS: f"{folder}/reports", "PYTHONDONTWRITEBYTECODE": "1"}
            output = ""
            timeout = TIMEOUT_S / (kernel.TRIES_SIMULATED if simulated else 1)
            try:
                done = kernel.run(
                    command, simulated_time=simulated, writable=[folder], timeout=timeout, environment=environment,
                    folder=first.config.rootpath, retried=self._retried,
                )  # fmt: skip
                output = (done.stdout + done.stderr).decode(errors="replace")
                if done.returncode == kernel.TIMED_OUT:
                    output += f"\nnot done after {timeout:g} s"
            except kernel.KernelError as error:
                output = str(error)
            self._read(first.config, Path(folder, "reports"))
        for item in items:
            if not any(report.when == "teardown" or report.failed for report in self.reports.get(item.nodeid, [])):
                why = f"the TSN kernel ended before this test had; pytest there said:\n{output}"
                self.reports.setdefault(item.nodeid, []).append(_report(item, "failed", why))

    def _retried(self) -> None:
        self.hung += 1

    def _read(self, config: pytest.Config, path: Path) -> None:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for line in lines:
            report = config.hook.pytest_report_from_serializable(config=config, data=json.loads(line))
            if isinstance(report.longrepr, list):  # of a skipped test; JSON has no tuples
                report.longrepr = tuple(report.longrepr)
            of = self.reports.setdefault(report.nodeid, [])
            if report.when == "setup":  # of the second try
                of.clear()
            of.append(report)


def _report(item: pytest.Item, outcome: Any, reason: str) -> pytest.TestReport:
    path, line, _ = item.location
    text: Any = (path, line or 0, reason) if outcome == "skipped" else reason
    return pytest.TestReport(item.nodeid, item.location, {}, outcome, text, "setup" if outcome == "skipped" else "call")


class Inside:
    """Under the kernel: leave each report where the host finds it."""

    def __init__(self, config: pytest.Config, path: Path) -> None:
        self.config = config
        self.path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        # closed each time: what is in a file reaches the host then, whatever happens afterwards
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(data) + "\n")


def install(config: pytest.Config, required: set[str]) -> None:
    """For pytest_configure."""
    config.addinivalue_line(
        "markers", f"{MARK}(own=False, simulated_time=False): runs under the TSN kernel (tests/testbed/README.md)"
    )
    if is_inside():
        config.pluginmanager.register(Inside(config, Path(os.environ[REPORTS])), "tsn-inside")
    else:
        config.pluginmanager.register(Guests(required), "tsn-guests")
