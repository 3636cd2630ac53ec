# SPDX-License-Identifier: Apache-2.0
"""README.md and docs/tutorial.md work as printed, as an ordinary user, and so do the pipelines of docs/operations.md.

What is run are the fenced blocks marked `sh`, as a reader would run them: one after the other in one bash, in a folder
that looks like the root of a checkout, with a selened that the blocks themselves start. The differences to a reader:

- a block of nothing but `make TARGET` is not run; its targets have to be in the Makefile;
- the port 7471 is replaced by a free one, in the text and by QOS_SELENED_PORT;
- a reader takes longer than a daemon's start; here, after a block that starts one, "ready" in its log is waited for.

Every block that is run has an entry in EXPECTED: what must be in its output.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parents[2]
BLOCK_S: Final = 40.0
PORT: Final = "7471"
PAGES: Final = (
    "README.md",
    "docs/tutorial.md",
    "docs/operations.md",
    "docs/how-it-works.md",
    "docs/decisions/README.md",
)

pytestmark = [pytest.mark.timeout(180), pytest.mark.needs_jq, pytest.mark.needs_gnuplot]


@dataclass
class Block:
    """A fenced block marked sh."""

    page: str
    number: int
    text: str

    @property
    def targets(self) -> list[str]:
        """The targets of a block that is only `make …`; empty for every other block."""
        lines = [line.split("#")[0].split() for line in self.text.splitlines() if line.strip()]
        return [line[1] for line in lines] if all(line[:1] == ["make"] for line in lines) else []


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Block(page, number, block) for number, block in enumerate(found)]


def free_port() -> int:
    """A port that is free for UDP and TCP on every address of this host."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
            udp.bind(("", 0))
            port: int = udp.getsockname()[1]
            with contextlib.suppress(OSError):
                tcp.bind(("", port))
                return port


class Shell:
    """A bash that runs blocks one after the other, and says what each has written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("bin", "demo", ".venv"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "run").mkdir(mode=0o700)
        self.port = str(free_port())
        self.started = 0  # daemons
        self._unread = ""
        hidden = ("QOS_", "SELENE_", "RUNTIME_DIRECTORY")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        environment |= {
            "XDG_RUNTIME_DIR": str(folder / "run"), "TMPDIR": str(folder), "QOS_SELENED_PORT": self.port,
            "MPLCONFIGDIR": str(folder),
        }  # fmt: skip
        self.process = subprocess.Popen(
            ["bash", "-eo", "pipefail"], cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def _tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def run(self, block: Block) -> str:
        """Run a block to its end: what it wrote. Fails when a command of it fails, or hangs."""
        script = self.folder / f"block-{block.number}.sh"
        script.write_text(block.text.replace(PORT, self.port), encoding="utf-8")
        self._tell(f". '{script}' </dev/null; echo '@@done@@'")
        out = self._read_until("@@done@@\n", block)
        if started := len(re.findall(r"^selened .*&$", block.text, re.MULTILINE)):
            self.started += started
            self._wait_for_daemons(block)
        return out

    def _wait_for_daemons(self, block: Block) -> None:
        deadline = time.monotonic() + BLOCK_S
        while self.logs().count(" ready at ") < self.started:
            if time.monotonic() > deadline:
                pytest.fail(f"{block.page}, block {block.number}: selened is not ready{self.logs()}")
            time.sleep(0.02)

    def _read_until(self, end: str, block: Block) -> str:
        """What is written before `end`; what comes later, by a command that runs on, belongs to the next block."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + BLOCK_S
        where = f"{block.page}, block {block.number}:\n{block.text}\nhas written:\n"
        while end not in self._unread:
            if not select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                pytest.fail(f"hangs: {where}{self._unread}{self.logs()}")
            part = os.read(self.process.stdout.fileno(), 65536)
            if not part:
                pytest.fail(f"failed: {where}{self._unread}{self.logs()}")
            self._unread += part.decode(errors="replace")
        out, _, self._unread = self._unread.partition(end)
        return out

    def logs(self) -> str:
        return "".join(f"\n{path.name}:\n{path.read_text()}" for path in self.folder.rglob("*.log"))

    def close(self) -> None:
        """End everything that the blocks have started. selened-dp ends with its selened, or by itself."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.communicate(timeout=5)
                return


# By a part of the block's text: patterns that its output has to match.
EXPECTED: Final[dict[str, dict[str, str]]] = {
    "README.md": {
        "selened 2> selened.log": r"\A\Z",
        "lunar-sub plant/temperature --count 3": r"\A21\.5\n21\.6\n21\.4\n\Z",
        "memory.available_bytes": r"\A(\d+\n){5}\Z",
        "set terminal dumb": r"(?s)\A(?=.*us).*\+-{5,}.*\+",
        "qos-stat --format table": r'(?s)latency .*"technologies": \[\s+"udp".*"notices": \{.*\[decision\].*not built',
        "#include <selene.h>": r"\Ahello from C\n\Z",
        "from lunar import Lunar": r"\Ahello, moon\n\Z",
    },
    "docs/tutorial.md": {
        "mktemp": r"\A\Z",
        "one.sock": r"\A\Z",
        "selene info --format table": r"\[daemon\]",
        "'%s\\n' 21.5 21.6 21.4 | lunar-pub": r"\A21\.5\n21\.6\n21\.4\n\Z",
        "--format json": r'"payload": "21\.7"',
        "kill $one": r"\A\Z",
        "cat > left.toml": r"left\.toml: valid",
        "until on_left": r'"announces":true',
        "21.4 | on_left": r"\A21\.5\n21\.6\n21\.4\n\Z",
        "--latency --rate 1000": r"(?s)latency\s+3.000 ",
        "kill -9": r"all 5000 lines, in order\n\Z",
        "rm -r": r"\A\Z",
    },
    "docs/operations.md": {"sinks that miss something": r"\A\{.*\}\n\Z"},
}
START: Final = Block("", -1, 'export PATH="$PWD/bin:$PATH"\nselened 2> selened.log &\n')


def expected(block: Block) -> str:
    """The pattern for a block: exactly one."""
    patterns = [pattern for part, pattern in EXPECTED[block.page].items() if part in block.text]
    assert len(patterns) == 1, (
        f"{block.page}, block {block.number} has {len(patterns)} entries in EXPECTED:\n{block.text}"
    )
    return patterns[0]


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    running = Shell(tmp_path)
    yield running
    running.close()


@pytest.mark.needs_gcc
@pytest.mark.needs_pkgconfig
@pytest.mark.parametrize("page", EXPECTED)
def test_blocks_work_as_printed(shell: Shell, page: str) -> None:
    if page == "docs/operations.md":
        shell.run(START)  # its reader has one running
    for block in blocks(page):
        if block.targets:
            continue
        pattern = expected(block)
        out = shell.run(block)
        assert re.search(pattern, out), f"{page}, block {block.number}: found {out!r}, expected {pattern}"


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for block in blocks(page):
        for target in block.targets:
            assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        assert "://" in target or ((ROOT / page).parent / target).exists(), f"{page}: {target}"
