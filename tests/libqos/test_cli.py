# SPDX-License-Identifier: Apache-2.0
import json
import logging
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from libqos import cli
from libqos.config import option, section, sections
from libqos.errors import InputError, QosError


def command_that(action: Callable[[], Any]) -> click.Command:
    @cli.command("qos-test")
    @cli.common_options
    def run() -> Any:
        """Do one thing."""
        return action()

    return run


def raising(error: BaseException) -> click.Command:
    def action() -> None:
        raise error

    return command_that(action)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (QosError("it broke"), 1, "qos-test: error: it broke\n"),
        (InputError("a: found b\nc: found d"), 2, "qos-test: error: a: found b\nqos-test: error: c: found d\n"),
        (
            FileNotFoundError(2, "No such file or directory", "/x"),
            1,
            "qos-test: error: /x: No such file or directory\n",
        ),
        (OSError("plain"), 1, "qos-test: error: plain\n"),
        (click.UsageError("no"), 2, "qos-test: error: no (see qos-test --help)\n"),
        (click.FileError("f", "gone"), 1, "qos-test: error: Could not open file 'f': gone\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(32, "Broken pipe"), 0, ""),
        (SystemExit(7), 7, ""),
    ],
)
def test_errors_end_in_one_line_and_a_status(
    error: BaseException, status: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(raising(error), []) == status
    assert capfd.readouterr().err == message


def test_an_interrupted_subcommand_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    @cli.group("qos-test")
    def top() -> None:
        """Several things."""

    @top.command()
    def wait() -> None:
        """Wait."""
        raise KeyboardInterrupt

    assert cli.run(top, ["wait"]) == 130
    assert capfd.readouterr() == ("", "")


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        cli.run(raising(ZeroDivisionError()), [])


@pytest.mark.parametrize(("result", "status"), [(None, 0), (0, 0), (1, 1), (True, 0), ("text", 0)])
def test_status_is_what_the_command_returns(result: object, status: int) -> None:
    assert cli.run(command_that(lambda: result), []) == status


def test_wrong_usage(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(command_that(lambda: None), ["--verbos"]) == 2
    assert "No such option" in capfd.readouterr().err
    assert cli.run(command_that(lambda: None), ["--log-format", "xml"]) == 2
    assert "xml" in capfd.readouterr().err


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(command_that(lambda: 1), ["--version"]) == 0
    assert capfd.readouterr().out == f"qos-test (qos-continuum) {cli.version()}\n"


def test_options_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    @cli.command("qos-test")
    @click.option("--rate", type=int)
    @cli.format_option
    def run(rate: int, output_format: str) -> int:
        assert output_format == "table"
        return rate

    monkeypatch.setenv("QOS_TEST_RATE", "3")
    monkeypatch.setenv("QOS_TEST_FORMAT", "table")
    assert cli.run(run, []) == 3
    assert cli.run(run, ["--rate", "4"]) == 4


def test_logs_for_a_machine_are_records(capfd: pytest.CaptureFixture[str]) -> None:
    def action() -> None:
        logging.getLogger("selened").info("peer %s\nlost", "a")
        cli.warn("no acceleration")

    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        assert cli.run(command_that(action), ["-v", "--log-format", "json"]) == 0
    finally:
        root.handlers[:], root.level = before
    first, second = map(json.loads, capfd.readouterr().err.splitlines())
    assert (first["kind"], first["level"], first["logger"], first["message"]) == (
        "log",
        "info",
        "selened",
        "peer a\nlost",
    )
    assert type(first["ts_ns"]) is int
    assert (second["level"], second["logger"], second["message"]) == ("warning", "qos-test", "no acceleration")


def test_option_before_a_subcommand_is_not_undone_by_it(capfd: pytest.CaptureFixture[str]) -> None:
    @cli.group("qos-test")
    @cli.common_options
    def top() -> None:
        """Several things."""

    @top.command()
    @cli.common_options
    def warn() -> None:
        """Warn."""
        cli.warn("careful")

    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        assert cli.run(top, ["--log-format", "json", "warn"]) == 0
    finally:
        root.handlers[:], root.level = before
    assert json.loads(capfd.readouterr().err)["message"] == "careful"


def test_socket_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = []

    @cli.command("selene")
    @cli.socket_option("selened", "SELENE_SOCKET", "QOS_SELENE_SOCKET")
    def run(socket_path: str) -> None:
        found.append(socket_path)

    for name in ("QOS_SELENED_SOCKET", "SELENE_SOCKET", "QOS_SELENE_SOCKET", "RUNTIME_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("libqos.paths.SYSTEM_DIRECTORY", tmp_path / "none")
    assert cli.run(run, []) == 0
    monkeypatch.setenv("SELENE_SOCKET", "/b")
    assert cli.run(run, []) == 0
    monkeypatch.setenv("QOS_SELENED_SOCKET", "/c")
    assert cli.run(run, []) == 0
    assert cli.run(run, ["--socket", "/d"]) == 0
    assert found == [f"{tmp_path}/qos/selened.sock", "/b", "/c", "/d"]


@dataclass(frozen=True, kw_only=True)
class Tls:
    key_file: str = option("", meaning="private key")


@dataclass(frozen=True, kw_only=True)
class Peer:
    name: str = option(meaning="its name")


@dataclass(frozen=True, kw_only=True)
class Table:
    data_port: int = option(4791, minimum=1, maximum=65535, meaning="UDP port", short="-p")
    huge_pages: bool = option(True, meaning="use huge pages")
    token: str = option("", meaning="secret", command_line=False)
    tls: Tls = section(Tls, meaning="transport security")  # noqa: RUF009
    peer: tuple[Peer, ...] = sections(Peer, meaning="another host")


SEEN: list[Table] = []


@cli.command("qos-test")
@cli.configured(Table, tool="qos-test")
@cli.common_options
def configured(settings: Table) -> int:
    """Run with a configuration."""
    SEEN.append(settings)
    return 0


def test_table_drives_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.toml"
    path.write_text("data_port = 1\ntoken = 't'\n[[peer]]\nname='a'\n")
    monkeypatch.setenv("QOS_TEST_TLS_KEY_FILE", "/env")
    assert cli.run(configured, ["--config", str(path), "-p", "7", "--no-huge-pages"]) == 0
    assert SEEN.pop() == Table(
        data_port=7, huge_pages=False, token="t", tls=Tls(key_file="/env"), peer=(Peer(name="a"),)
    )
    assert cli.run(configured, ["--tls-key-file", "/x"]) == 0
    assert SEEN.pop() == Table(tls=Tls(key_file="/x"))


def test_check_validates_and_exits(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.toml"
    path.write_text("data_port = 1\n")
    assert cli.run(configured, ["--config", str(path), "--check"]) == 0
    assert capfd.readouterr().err == f"qos-test: {path}: valid\n"
    path.write_text("\ndata_prt = 1\n")
    assert cli.run(configured, ["--config", str(path), "--check"]) == 2
    assert capfd.readouterr().err.startswith(
        f"qos-test: error: {path}:2: data_prt: unknown key (did you mean data_port?)"
    )
    assert not SEEN


def test_help_has_meaning_range_default_and_variable(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(configured, ["--help"]) == 0
    text = " ".join(capfd.readouterr().out.split())
    assert "-p, --data-port DATA_PORT" in text
    assert "UDP port (an integer from 1 to 65_535; default: 4791; QOS_TEST_DATA_PORT)" in text
    assert "--token" not in text


def launch(code: str, **environ: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | environ
    )


def test_closed_pipe_is_a_quiet_end() -> None:
    code = """if True:
        from libqos import cli
        from libqos.telemetry import Writer
        @cli.command("qos-test")
        def run():
            writer = Writer()
            while True:
                writer.latency(1, 2)
        cli.entry(run)([])
    """
    with launch(code) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 0


def test_full_disk_is_an_error() -> None:
    code = """if True:
        import sys
        from libqos import cli
        @cli.command("qos-test")
        def run():
            print("data")
        sys.stdout = open("/dev/full", "w")
        cli.entry(run)([])
    """
    with launch(code) as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert b"No space left" in errors


HEAVY = ("matplotlib", "numpy", "asyncio", "tomllib", "logging", "importlib.metadata", "libqos._core", "libqos.config")


@pytest.mark.parametrize("module", ["libqos.stat", "libqos.plot", "libqos.rpc", "libqos.telemetry", "libqos.policy"])
def test_import_is_light(module: str) -> None:
    """--help within 200 ms is kept by what is not imported; a test of the time itself would fail on a busy machine."""
    code = f"import sys, {module}; print(sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"


def scripts(root: Path) -> dict[str, str]:
    pyproject = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    entries: dict[str, str] = pyproject["project"]["scripts"]
    return {name: target for name, target in entries.items() if target.startswith("libqos.")}


def every_command(command: click.Command, name: str) -> dict[str, click.Command]:
    found = {name: command}
    if isinstance(command, click.Group):
        for child, inner in command.commands.items():
            found |= every_command(inner, f"{name} {child}")
    return found


def test_every_command_and_option_has_help(root_dir: Path) -> None:
    import importlib

    entries = scripts(root_dir)
    assert {"qos-stat", "qos-plot"} <= set(entries)
    for name, target in entries.items():
        module, _, attribute = target.partition(":")
        for path, command in every_command(getattr(importlib.import_module(module), attribute).command, name).items():
            assert command.help, f"{path} has no help"
            for parameter in command.params:
                if isinstance(parameter, click.Option):
                    assert parameter.help, f"{path} {parameter.opts[0]} has no help"


@pytest.mark.parametrize("name", ["qos-stat", "qos-plot"])
def test_page_names_every_option(root_dir: Path, name: str) -> None:
    import importlib

    module, _, attribute = scripts(root_dir)[name].partition(":")
    command = getattr(importlib.import_module(module), attribute).command
    page = (root_dir / f"docs/{name}.md").read_text(encoding="utf-8")
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.opts[-1] in page
