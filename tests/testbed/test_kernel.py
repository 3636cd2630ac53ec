# SPDX-License-Identifier: Apache-2.0
"""Commands under the TSN kernel, seen from the host."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from tests.testbed import kernel
from tests.waiting import wait_until

RUN: Final = Path(__file__).with_name("run-in-tsn-kernel")


@pytest.mark.needs_tsn
class TestRun:
    def test_output_status_folder_and_environment_are_carried_over(self, tmp_path: Path) -> None:
        folder = tmp_path / "a folder"
        folder.mkdir()
        code = "import os, sys; print(os.getcwd(), os.environ['WORD']); print('oops', file=sys.stderr); sys.exit(7)"
        done = kernel.run(
            [sys.executable, "-c", code], folder=folder, environment={**os.environ, "WORD": 'it\'s "so" $HOME\nand so'}
        )
        assert done.stdout.decode() == f'{folder} it\'s "so" $HOME\nand so\n'
        assert (done.stderr, done.returncode, done.tries) == (b"oops\n", 7, 1)

    def test_bytes_pass_as_they_are(self) -> None:
        done = kernel.run([sys.executable, "-c", "import sys; sys.stdout.buffer.write(bytes(range(256)) * 4096)"])
        assert done.stdout == bytes(range(256)) * 4096

    def test_output_comes_while_the_command_runs(self) -> None:
        class Noted(io.BytesIO):
            def write(self, data: object) -> int:
                seen.append(time.monotonic())
                return super().write(data)  # type: ignore[arg-type]

        seen: list[float] = []
        out = Noted()
        kernel.run(["sh", "-c", "echo first; sleep 2; echo second"], stdout=out)
        assert out.getvalue() == b"first\nsecond\n"
        assert seen[-1] - seen[0] > 1

    def test_what_it_writes_is_gone_but_for_writable_folders(self, tmp_path: Path) -> None:
        kept, lost = tmp_path / "kept", tmp_path / "lost"
        kept.mkdir()
        lost.mkdir()
        done = kernel.run(
            ["sh", "-c", f"echo 1 >{kept}/file && echo 2 >{lost}/file && cat {lost}/file"], writable=[kept]
        )
        assert (done.stdout, done.returncode) == (b"2\n", 0)
        assert (kept / "file").read_text() == "1\n"
        assert not (lost / "file").exists()

    def test_it_has_no_input(self) -> None:
        assert kernel.run(["cat"]).stdout == b""

    def test_what_it_leaves_running_ends_with_it(self) -> None:
        done = kernel.run(["sh", "-c", "sleep 1000 & echo done"], timeout=60)
        assert (done.stdout, done.returncode) == (b"done\n", 0)

    def test_a_command_that_hangs_is_ended(self) -> None:
        done = kernel.run(["sh", "-c", "echo begun; sleep 1000"], timeout=5)
        assert (done.stdout, done.returncode) == (b"begun\n", kernel.TIMED_OUT)

    def test_an_unknown_command(self) -> None:
        done = kernel.run(["/does/not/exist"])
        assert done.returncode == 127
        assert b"/does/not/exist" in done.stderr


@pytest.mark.needs_tsn_own
class TestOwnKernel:
    def test_simulated_time_passes_without_waiting(self) -> None:
        begin = time.monotonic()
        done = kernel.run(["sh", "-c", "date +%s; sleep 3600; date +%s"], simulated_time=True, timeout=50)
        first, last = map(int, done.stdout.split())
        assert last - first == pytest.approx(3600, abs=2)
        assert time.monotonic() - begin < 3600

    def test_it_says_what_it_has(self) -> None:
        own = kernel.find(own=True)
        assert own.simulated_time
        assert own.ptp_clock


@pytest.mark.needs_tsn
class TestCommand:
    def test_it_ends_as_the_command_does(self) -> None:
        done = subprocess.run(
            [RUN, "--", "sh", "-c", "echo out; echo err >&2; exit 3"], capture_output=True, timeout=50, check=False
        )
        assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 3)

    def test_a_time_out_is_said(self) -> None:
        done = subprocess.run([RUN, "--timeout", "4", "sleep", "1000"], capture_output=True, timeout=50, check=False)
        assert done.returncode == kernel.TIMED_OUT
        assert b"not done after 4 s" in done.stderr

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
    def test_nothing_runs_on_when_it_is_ended(self, tmp_path: Path, number: int) -> None:
        with subprocess.Popen([RUN, "--rw", tmp_path, "sh", "-c", f"echo >{tmp_path}/begun; sleep 1000"]) as process:
            wait_until((tmp_path / "begun").exists, "the command's beginning")
            assert kernel.processes_of(process.pid)
            process.send_signal(number)
            assert process.wait(20) != 0
        kernel.run(["true"])  # which tidies up
        wait_until(lambda: not kernel.processes_of(process.pid), "the end of the kernel's processes")
        assert not list(Path("/var/tmp").glob(f"qos-tsn-{process.pid}-*"))


def test_no_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(kernel, "_program", lambda name: None if name == "linux.uml" else f"/bin/{name}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("QOS_TSN_KERNEL", raising=False)
    with pytest.raises(kernel.KernelError, match=r"apt-get install user-mode-linux .*make tsn-kernel"):
        kernel.find()


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(kernel, "_program", lambda _: None)
    with pytest.raises(kernel.KernelError, match="apt-get install busybox-static kmod iproute2"):
        kernel.find()


def test_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(kernel.KernelError, match="needs root"):
        kernel.find()


@pytest.mark.parametrize(("name", "why"), [("/bin/true", "not a User-Mode Linux"), ("/does/not/exist", "No such file")])
def test_a_wrong_kernel_is_named(monkeypatch: pytest.MonkeyPatch, name: str, why: str) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(kernel, "_program", lambda name: f"/bin/{name}")
    monkeypatch.setenv("QOS_TSN_KERNEL", name)
    with pytest.raises(kernel.KernelError, match=f"{name}: .*{why}"):
        kernel.find()


@pytest.mark.parametrize(("simulated_time", "tries"), [(True, 2), (False, 1)])
def test_what_hangs_in_simulated_time_is_run_once_more(
    monkeypatch: pytest.MonkeyPatch, simulated_time: bool, tries: int
) -> None:
    seen = []
    monkeypatch.setattr(kernel, "find", lambda **_: None)
    monkeypatch.setattr(kernel, "_once", lambda *_, **__: kernel.Done(kernel.TIMED_OUT, b"", b"", 1))
    done = kernel.run(["true"], simulated_time=simulated_time, retried=lambda: seen.append(1))
    assert (done.returncode, done.tries, len(seen)) == (kernel.TIMED_OUT, tries, tries - 1)
