# SPDX-License-Identifier: Apache-2.0
"""The daemon `tsn-agent run` and a controller: a real one, made here with libqos.peerserver."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest

from libqos import rpc
from libqos.endpoint import TlsFiles
from libqos.peer import Limits, Peer
from libqos.peerserver import Server, serve
from libqos.rpc import RpcError
from tests.certificates import certificates
from tests.libqos.peers import run, until
from tests.testbed.network import Network
from tests.waiting import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping
    from pathlib import Path

    from tests.testbed.network import Host

Record = dict[str, Any]

SETTINGS: Final = '[controller]\nurl = "{url}"\nname = "axis"\nreport_s = 0.1\n{more}'
ADDRESS: Final = '[[interfaces]]\nname = "eth0"\naddresses = ["192.0.2.1/24"]\n'
CHANGE: Final = ("add", "address", "eth0 192.0.2.1/24")
SCHEDULE: Final = """
[[interfaces]]
name = "eth0"
addresses = ["192.0.2.1/24"]
[[schedules]]
interface = "eth0"
traffic_classes = 2
pcp = [0, 0, 0, 0, 0, 1, 0, 0]
[[schedules.entries]]
open = [0, 1]
interval_ns = 1_000_000
"""
NEED: Final = {"stream": "one", "destination": "192.0.2.2", "period_ns": 1_000_000, "size_bytes": 64, "priority": 5}

# Serves argv[1], and writes what it is told.
KILLED: Final = """
import asyncio, json, sys
from libqos.peerserver import serve
def told(name):
    async def method(peer, params):
        print(json.dumps([name, *params]), flush=True)
    return method
async def main():
    async with await serve(sys.argv[1], {name: told(name) for name in ("hello", "state", "event")}):
        await asyncio.Event().wait()
asyncio.run(main())
"""


class Controller:
    """What an agent tells it."""

    def __init__(self, **methods: Callable[[Peer, list[Any]], Awaitable[Any]]) -> None:
        self.told: list[tuple[str, Record]] = []
        self.peer: Peer | None = None  # the last one that said hello
        self.methods: Mapping[str, Any] = {name: self._hear(name) for name in ("hello", "state", "event")} | methods

    def _hear(self, name: str) -> Callable[[Peer, list[Any]], Awaitable[None]]:
        async def method(peer: Peer, params: list[Any]) -> None:
            (record,) = params
            if name == "hello":
                self.peer = peer
            self.told.append((name, record))

        return method

    async def hear(self, name: str, /, **facts: Any) -> Record:
        """The first such record that comes from now on, or came."""

        def found() -> list[Record]:
            return [record for kind, record in self.told if kind == name and facts.items() <= record.items()]

        await until(found)
        return found()[0]

    async def call(self, method: str, *params: Any) -> Any:
        assert self.peer is not None
        return await self.peer.call(method, params)


class Device:
    """A daemon with a controller at `url`, in `host` or on this one."""

    def __init__(self, folder: Path, url: str, more: str = "", host: Host | None = None) -> None:
        self.socket, self.log, self.host = folder / "a.sock", folder / "log", host
        (folder / "agent.toml").write_text(SETTINGS.format(url=url, more=more))
        self.process = subprocess.Popen(
            self.words("run", "--config", folder / "agent.toml", "--state", folder / "a.db", "--interval-s", "0.1"),
            stderr=self.log.open("w"),
        )
        wait_until(lambda: self.process.poll() is not None or "ready at" in self.log.read_text(), "the daemon's start")

    def words(self, *words: object) -> list[str]:
        command = [f"{sys.prefix}/bin/tsn-agent", *map(str, words), "--socket", str(self.socket)]
        return command if self.host is None else self.host.words(*command)

    async def ask(self, *words: object) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(
            subprocess.run, self.words(*words), capture_output=True, text=True, check=False, timeout=60
        )

    def link(self) -> Record:
        """What it says of its link to the controller."""
        record: Record = rpc.call(f"{self.socket}.status", {"method": "info"})[0]["controller"]
        return record

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        assert self.process.wait(20) == 0, self.log.read_text()


@pytest.fixture
def host() -> Iterator[Host]:
    """A device with eth0, whose other end is far0."""
    with Network() as network:
        made = network.host("device")
        made.ip("link", "add", "eth0", "numtxqueues", 4, "type", "veth", "peer", "name", "far0")
        made.ip("link", "set", "eth0", "up")
        made.ip("link", "set", "far0", "up")
        yield made


def start(folder: Path, host: Host | None = None, more: str = "") -> tuple[str, Callable[[], Device]]:
    url = f"unix://{folder}/cuc.sock"
    return url, lambda: Device(folder, url, more, host)


async def with_device(
    make: Callable[[], Device], url: str, controller: Controller, work: Callable[[Device, Server], Awaitable[None]],
    **how: Any,
) -> None:  # fmt: skip
    """Serve, start a device, wait for its hello, work."""
    async with await serve(url, controller.methods, **how) as server:
        device = await asyncio.to_thread(make)
        try:
            await work(device, server)
        finally:
            await asyncio.to_thread(device.close)


@pytest.mark.needs_netns
def test_both_sides_call(tmp_path: Path, host: Host) -> None:
    url, make = start(tmp_path, host)
    controller = Controller()

    async def work(device: Device, _: Server) -> None:
        hello = await controller.hear("hello", name="axis")
        assert (hello["dropped_events"], hello["streams"], hello["applied"]["ok"]) == (0, [], 0)
        assert hello["version"] == hello["daemon"]["version"]
        assert {record["kind"] for record in hello["capabilities"]} == {"kernel", "interface"}
        planned = await controller.call("apply", {"text": ADDRESS, "dry_run": True})
        assert await controller.call("show") == []
        values = {"interfaces": [{"name": "eth0", "addresses": ["192.0.2.1/24"]}]}
        assert await controller.call("apply", {"values": values}) == planned
        assert [(c["action"], c["resource"]) for c in planned] == [("add", "address")]
        assert "192.0.2.1/24" in host.ip("address", "show", "dev", "eth0")
        shown = await controller.call("show")
        assert json.loads((await device.ask("show")).stdout.splitlines()[0]) == shown[0]
        await until(lambda: controller.told[-1][0] == "state" and controller.told[-1][1]["applied"]["ok"] == len(shown))
        state = controller.told[-1][1]
        assert state["applied"]["digest"] != hello["applied"]["digest"]
        assert {"name": "eth0", "up": True, "carrier": True} in state["interfaces"]
        host.ip("link", "set", "far0", "down")
        event = await controller.hear("event", kind="link", event="carrier_lost", interface="eth0")
        assert event["seq"] >= 1
        assert (await controller.call("info"))[0]["controller"]["connected"]
        assert (await controller.call("capabilities", {"interfaces": ["eth0"]}))[1]["name"] == "eth0"
        assert await controller.call("streams") == []
        assert len(await controller.call("clear")) == len(planned)
        assert "192.0.2.1" not in host.ip("address", "show", "dev", "eth0")

    run(with_device(make, url, controller, work))


ONE_WAY: Final = """
[[interfaces]]
name = "eth0"
addresses = ["192.0.2.1/24"]
[[streams]]
name = "axis"
confirm_ms = 60_000
[[streams.paths]]
interface = "eth0"
destination = "192.0.2.2"
"""
OTHER_WAY: Final = (
    ONE_WAY
    + """
[[streams.paths]]
interface = "lo"
destination = "127.0.0.1"
"""
)


@pytest.mark.needs_netns
def test_the_controller_gives_a_stream_another_way(tmp_path: Path, host: Host) -> None:
    """It applies another file, and says by which of its ways the stream goes on."""
    url, make = start(tmp_path, host)
    asked: list[Record] = []

    async def reconfigure(_: Peer, params: list[Any]) -> Any:
        asked.extend(params)
        await controller.call("apply", {"text": OTHER_WAY})

    controller = Controller(reconfigure=reconfigure)

    async def work(device: Device, _: Server) -> None:
        await controller.hear("hello")
        await controller.call("apply", {"text": ONE_WAY})
        orders: list[Any] = []

        def attach() -> None:
            request = {"method": "attach", "params": {"stream": "axis", "role": "talker"}}
            for order in rpc.stream(device.socket, request, timeout=60):
                orders.append(order)
                if order.get("interface") == "lo":
                    return

        talker = asyncio.create_task(asyncio.to_thread(attach))
        await until(lambda: orders)
        host.ip("link", "set", "far0", "down")
        await talker
        assert orders[-1] == {"order": "start", "interface": "lo", "destination": "127.0.0.1"}
        assert {order["order"] for order in orders[:-1]} <= {"idle", "start", "stop"}
        (fault,) = asked
        facts = {"stream": "axis", "cause": "link-down", "path": "eth0", "usable": [], "device": "axis"}
        assert facts.items() <= fault.items()
        moved = await controller.hear("event", kind="failover", cause="link-down", to="lo")
        assert moved["from"] == "eth0"
        way = {"stream": "axis", "interface": "lo", "paths": ["eth0", "lo"], "usable": [False, True],
               "moving": False, "stopped": False}  # fmt: skip
        await until(lambda: [told["paths"] for kind, told in controller.told if kind == "state"][-1:] == [[way]])

    run(with_device(make, url, controller, work))


@pytest.mark.needs_netns
@pytest.mark.parametrize("answer", ["none", "wrong", "never"])
def test_a_controller_that_names_no_way_leaves_it_to_the_agent(tmp_path: Path, host: Host, answer: str) -> None:
    url, make = start(tmp_path, host, "reconfigure_ms = 50\n")

    async def reconfigure(_: Peer, __: list[Any]) -> Any:
        if answer == "never":
            await asyncio.Event().wait()
        return [1]

    controller = Controller() if answer == "none" else Controller(reconfigure=reconfigure)

    async def work(device: Device, _: Server) -> None:
        await controller.hear("hello")
        await controller.call("apply", {"text": OTHER_WAY})
        host.ip("link", "set", "far0", "down")
        await controller.hear("event", kind="failover", cause="link-down", to="lo", by="agent")
        assert device.link()["connected"]

    run(with_device(make, url, controller, work))


def test_what_is_refused_is_told_with_code_and_text(tmp_path: Path) -> None:
    url, make = start(tmp_path)
    controller = Controller()

    async def refused(method: str, *params: Any) -> tuple[str, str]:
        with pytest.raises(RpcError) as caught:
            await controller.call(method, *params)
        return caught.value.code, str(caught.value)

    async def work(device: Device, _: Server) -> None:
        await controller.hear("hello")
        code, text = await refused("apply", {"text": "[[interfaces]]\nname = 5"})
        assert code == "refused"
        assert "controller:2: interfaces[0].name: found 5, accepted the name of an interface" in text
        code, text = await refused("apply", {"values": {"interfaces": [{"name": b"x"}]}, "name": "plan 7"})
        assert (code, "plan 7: interfaces[0].name: found b'x'" in text) == ("refused", True)
        code, text = await refused("apply", {"text": ADDRESS.replace("eth0", "eth77")})
        assert (code, "there is no interface eth77" in text) == ("refused", True)
        wrong: list[list[Any]] = [[], [{"text": "", "values": {}}], [{"values": 3}], [5], [{}, {}], [{"dry_run": 1}]]
        for params in wrong:
            assert (await refused("apply", *params))[0] == "bad-request"
        assert (await refused("request", {**NEED, "priority": 9}))[0] == "refused"
        assert (await refused("release", {"stream": "none"}))[0] == "refused"
        assert (await refused("capabilities", {"interfaces": ["eth77"]}))[0] == "bad-request"
        assert (await refused("events"))[0] == "unknown-method"
        assert device.link()["connected"]

    run(with_device(make, url, controller, work))


@pytest.mark.parametrize("scheme", ["tcp", "tls"])
def test_over_the_network(tmp_path: Path, scheme: str) -> None:
    url = f"{scheme}://127.0.0.1:{free_port()}"
    files, more = None, ""
    if scheme == "tls":
        certificates(tmp_path)
        files = TlsFiles(tmp_path / "ca.crt", tmp_path / "host.crt", tmp_path / "host.key")
        names = zip(("authority", "certificate", "key"), ("ca.crt", "host.crt", "host.key"), strict=True)
        more = "".join(f'{name} = "{tmp_path / file}"\n' for name, file in names)
    controller = Controller()

    async def work(device: Device, _: Server) -> None:
        await controller.hear("state")
        assert await controller.call("apply", {"text": ADDRESS.replace("eth0", "lo"), "dry_run": True})
        assert device.link()["url"] == url

    run(with_device(lambda: Device(tmp_path, url, more), url, controller, work, tls=files))


def test_a_controller_with_another_authority_is_not_believed(tmp_path: Path) -> None:
    (other := tmp_path / "other").mkdir()
    certificates(tmp_path)
    certificates(other)
    url = f"tls://127.0.0.1:{free_port()}"
    more = f'authority = "{tmp_path}/ca.crt"\ncertificate = "{tmp_path}/host.crt"\nkey = "{tmp_path}/host.key"\n'
    controller = Controller()

    async def work(device: Device, server: Server) -> None:
        await until(lambda: server.counters.handshakes_failed >= 2)
        link = device.link()
        assert not link["connected"]
        assert "certificate verify failed" in link["last_error"].lower().replace("_", " ")
        assert (await device.ask("show")).returncode == 0
        assert controller.told == []

    files = TlsFiles(other / "ca.crt", other / "host.crt", other / "host.key")
    run(with_device(lambda: Device(tmp_path, url, more), url, controller, work, tls=files))


@pytest.mark.needs_netns
def test_a_killed_controller_hears_what_happened_while_it_was_away(tmp_path: Path, host: Host) -> None:
    url, make = start(tmp_path, host)
    told = tmp_path / "told"

    def serving() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-P", "-c", KILLED, url], stdout=told.open("a"))

    def heard(*facts: str) -> int:
        return sum(all(fact in line for fact in facts) for line in told.read_text().splitlines())

    first = serving()
    device = make()
    second = None
    try:
        wait_until(lambda: heard('["hello"') == 1 and heard('["state"'), "the first hello")
        first.kill()
        wait_until(lambda: not device.link()["connected"], "the end of the connection")
        link = device.link()
        assert link["last_error"]
        host.ip("link", "set", "far0", "down")
        wait_until(lambda: device.link()["waiting_events"] > 0, "events that wait")
        for number in range(300):  # more than may wait
            host.ip("link", "set", f"far{number}", "name", f"far{number + 1}")
        wait_until(lambda: device.link()["dropped_events"] > 0, "events that are dropped")
        assert device.link()["waiting_events"] == 256
        second = serving()
        wait_until(lambda: heard('["hello"') == 2, "the second hello")
        wait_until(lambda: heard('["event"', "far300"), "the last event")
        hellos = [json.loads(line)[1] for line in told.read_text().splitlines() if '["hello"' in line]
        assert hellos[1]["dropped_events"] > 0
        events = [json.loads(line)[1]["seq"] for line in told.read_text().splitlines() if '["event"' in line]
        assert events[-256:] == list(range(events[-256], events[-256] + 256))
        assert device.link()["connections"] == 2
    finally:
        first.kill()
        device.close()
        if second is not None:
            second.kill()
            second.wait()
        first.wait()


def test_a_controller_that_never_answers_stops_nothing(tmp_path: Path) -> None:
    url, make = start(tmp_path)

    async def never(_: Peer, __: list[Any]) -> None:
        await asyncio.Event().wait()

    async def work(device: Device, server: Server) -> None:
        await until(lambda: server.counters.accepted >= 2)  # it has given up the first
        link = device.link()
        assert (link["connected"], "hello: no answer within" in link["last_error"]) == (False, True)
        assert (await device.ask("apply", "--dry-run", "/dev/null")).returncode == 0

    limits = Limits(method_s=60.0)
    run(with_device(make, url, Controller(hello=never), work, limits=limits))


def test_a_controller_that_floods_is_worked_on_one_call_at_a_time(tmp_path: Path) -> None:
    url, make = start(tmp_path)
    controller = Controller()

    async def work(device: Device, _: Server) -> None:
        await controller.hear("hello")

        async def flood() -> None:
            while True:
                await controller.call("capabilities")

        flooding = [asyncio.create_task(flood()) for _ in range(60)]
        for __ in range(5):
            assert (await device.ask("apply", "--dry-run", "/dev/null")).returncode == 0
        assert device.link()["connected"]
        for task in flooding:
            task.cancel()
        await asyncio.gather(*flooding, return_exceptions=True)

    run(with_device(make, url, controller, work))


def test_calls_beyond_the_bound_end_the_connection_and_nothing_else(tmp_path: Path) -> None:
    url, make = start(tmp_path)

    async def drown(peer: Peer, _: list[Any]) -> None:
        for __ in range(1000):
            peer._writer.write(peer._codec.notify("show", []))  # faster than they can be worked on

    async def work(device: Device, _: Server) -> None:
        await until(lambda: device.link()["closed"].get("flood", 0) >= 1)
        assert (await device.ask("show")).returncode == 0

    run(with_device(make, url, Controller(hello=drown), work))


def test_requests_are_the_controllers_where_the_settings_say_so(tmp_path: Path) -> None:
    url, make = start(tmp_path, more='requests = "controller"\n')
    asked: list[Record] = []

    async def request(_: Peer, params: list[Any]) -> Any:
        asked.append(params[0])
        if params[0]["stream"] == "odd":
            return {"kind": "no list"}
        if params[0]["stream"] == "binary":
            return [{"kind": b"grant"}]
        if params[0]["stream"] == "two":
            raise RpcError("refused", "no room on the way to axis 2")
        return [{"kind": "grant", **NEED, "offset_ns": 5}]

    controller = Controller(request=request)
    words = ("--destination", "192.0.2.2", "--period", "1ms", "--size", "64", "--priority", "5")

    async def work(device: Device, server: Server) -> None:
        await until(lambda: device.link()["connected"])
        done = await device.ask("request", "one", *words)
        assert (done.returncode, json.loads(done.stdout)["offset_ns"]) == (0, 5)
        assert NEED.items() <= asked[0].items()
        assert asked[0]["device"] == "axis"
        done = await device.ask("request", "two", *words)
        assert (done.returncode, "no room on the way to axis 2" in done.stderr) == (2, True)
        for stream in ("odd", "binary"):
            assert "accepted a list of records" in (await device.ask("request", stream, *words)).stderr
        with pytest.raises(RpcError, match="has no schedule"):  # its own call is not asked of it again
            await controller.call("request", {**NEED, "destination": "127.0.0.1"})
        await server.close()
        await until(lambda: not device.link()["connected"])
        done = await device.ask("request", "one", *words)
        assert (done.returncode, "decides about streams, and is not connected" in done.stderr) == (1, True)

    run(with_device(make, url, controller, work))


@pytest.mark.tsn_kernel
def test_a_schedule_and_a_place_from_the_controller(tmp_path: Path, host: Host) -> None:
    url, make = start(tmp_path, host)
    controller = Controller()

    async def work(device: Device, _: Server) -> None:
        await controller.hear("hello")
        changes = await controller.call("apply", {"text": SCHEDULE})
        assert [(change["action"], change["resource"]) for change in changes] == [("add", "address"), ("add", "taprio")]
        (grant,) = await controller.call("request", NEED)
        await until(lambda: controller.told[-1][0] == "state" and controller.told[-1][1]["streams"])
        place = {key: grant[key] for key in ("stream", "via", "offset_ns", "period_ns")}
        assert controller.told[-1][1]["streams"] == [place]
        assert json.loads((await device.ask("streams")).stdout) == grant
        await controller.call("apply", {"values": {}})
        assert (await controller.hear("event", kind="stream", event="lost"))["stream"] == "one"
        assert await controller.call("streams") == []

    run(with_device(make, url, controller, work))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('url = "http://cuc"', "controller: url: http://cuc: accepted unix:///PATH"),
        ('url = "tls://cuc:1"', "controller: accepted all of authority, certificate and key"),
        ('url = "tcp://cuc:1"\nkey = "x"', "and none of them without"),
        ('requests = "controller"', "controller: found no url"),
        ('url = "tls://cuc:1"\nauthority = "/no"\ncertificate = "/no"\nkey = "/no"', "/no: No such file"),
    ],
)
def test_settings_that_cannot_work(tmp_path: Path, text: str, why: str) -> None:
    (file := tmp_path / "agent.toml").write_text(f"[controller]\n{text}\n")
    words = [
        f"{sys.prefix}/bin/tsn-agent",
        "run",
        "--config",
        file,
        "--socket",
        tmp_path / "s",
        "--state",
        tmp_path / "d",
    ]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert why in done.stderr
