# SPDX-License-Identifier: Apache-2.0
"""Daemons among themselves: what a client sees of sources and sinks on another host, and hostile peers."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from selened import wire
from selened.plans import MAX_WINDOW_BYTES
from selened.wire import lib

from tests.certificates import certificates

if TYPE_CHECKING:
    from pathlib import Path

SOURCE, SINK = 1, 2


def client_of(daemon: Any, **arguments: Any) -> Any:
    client = daemon.client(**arguments)
    client.stream()
    return client


def port_of(client: Any) -> int:
    port: int = client.welcome.address.port
    return port


# ---- Two hosts ----


def test_a_source_knows_the_sinks_that_were_there_before_it(peers: Any) -> None:
    left, right = peers
    receiver = client_of(right)
    sink = receiver.sink(5, "topic")
    sender = client_of(left)
    source = sender.source(5, "topic")
    # Both were told before create_source returned: a message sent now is neither lost nor refused.
    [(told, epoch, flags, dests)] = sender.routes()
    assert (told, epoch, flags) == (source.id, 1, 0)
    assert dests == [(port_of(receiver), MAX_WINDOW_BYTES)]
    receiver.stream(2)
    assert receiver.accepts() == [(sink.id, [(source.id, port_of(sender), 0)])]


def test_a_sink_is_known_to_the_sources_when_it_is_answered(peers: Any) -> None:
    left, right = peers
    sender = client_of(left)
    source = sender.source(5)
    receiver = client_of(right)
    sink = receiver.sink(5)
    assert receiver.accepts() == [(sink.id, [(source.id, port_of(sender), 0)])]
    sender.stream(2)
    assert [dests for _, _, _, dests in sender.routes()] == [[(port_of(receiver), MAX_WINDOW_BYTES)]]
    receiver.remove(sink.id, SINK)
    assert wire.header(sender.pushed.pop(0)).type == lib.SELENE_S_ROUTE
    sender.next_push()
    assert left.info("peer")[0]["sinks"] == 0


def test_relayed_sessions_send_and_receive_through_the_datapath_process(peers: Any) -> None:
    left, right = peers
    receiver = client_of(right, flags=wire.RELAYED)
    sink = receiver.sink(5)
    sender = client_of(left, flags=wire.RELAYED)
    source = sender.source(5)
    assert sender.routes() == [(source.id, 1, wire.RELAYED, [])]
    receiver.stream(2)
    assert receiver.accepts() == [(sink.id, [(source.id, left.port, wire.RELAYED)])]
    assert left.info("source")[0]["remote"] == [f"127.0.0.1:{right.port}"]


def test_a_second_receiving_session_moves_the_way_with_a_new_epoch(peers: Any) -> None:
    left, right = peers
    one, two = client_of(right), client_of(right)
    one.sink(5)
    sender = client_of(left)
    source = sender.source(5)
    second = two.sink(5)
    two.remove(second.id, SINK)
    sender.stream(2)
    while len(sender.routes()) < 3:
        sender.pushed.append(sender.receive())
    assert [(epoch, dests[0][0]) for _, epoch, _, dests in sender.routes()] == [
        (1, port_of(one)), (2, right.port), (3, port_of(one)),
    ]  # fmt: skip
    assert {told for told, *_ in sender.routes()} == {source.id}


def test_streams_channels_and_names_keep_apart_between_hosts(peers: Any) -> None:
    left, right = peers
    receiver = client_of(right)
    receiver.sink(5, "topic")
    sender = client_of(left)
    sender.source(5, "other")
    sender.source(6, "topic")
    sender.stream(2, stream=8)
    sender.source(5, "topic", handle=2)
    assert not sender.routes()
    assert left.info("daemon")[0]["collisions"] == 1
    sender.source(5, "topic")
    assert len(sender.routes()) == 1


def test_the_end_of_a_client_is_known_on_the_other_host(peers: Any, until: Any) -> None:
    left, right = peers
    receiver = client_of(right)
    receiver.sink(5)
    sender = client_of(left)
    sender.source(5)
    receiver.close()
    assert wire.header(sender.receive()).type == lib.SELENE_S_ROUTE
    sender.close()
    until(lambda: right.info("peer")[0]["sources"] == 0, "the withdrawal of the source")


def test_windows_shrink_with_the_number_of_sources(peers: Any) -> None:
    left, right = peers
    receiver = client_of(right)
    receiver.sink(5)
    granted = receiver.udp.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    sender = client_of(left)
    count = 64
    for number in range(count):
        sender.source(5, index=number)
    sender.stream(2)
    while sender.routes()[-1][3][0][1] != max(16 << 10, min(MAX_WINDOW_BYTES, granted // 2 // count)):
        sender.pushed.append(sender.receive())


@pytest.mark.needs_ipv6
@pytest.mark.parametrize("options", [(), ("--relayed",)], ids=["direct", "relayed"])
def test_messages_go_over_ipv6(make_daemon: Any, until: Any, bin_dir: Path, options: tuple[str, ...]) -> None:
    left, right = make_daemon("left"), make_daemon("right")
    for daemon, other in ((left, right), (right, left)):
        daemon.config.write_text(f'address = "::1"\n[[peers]]\naddress = "::1"\nport = {other.port}\n')
        daemon.start()
    lines = "".join(f"{number} {'x' * (number * 7 % 60000)}\n" for number in range(500))
    subscribe = [str(bin_dir / "lunar-sub"), "topic", "--count", "500", "--socket", str(right.path), *options]
    publish = [str(bin_dir / "lunar-pub"), "topic", "--socket", str(left.path), *options]
    file = right.directory / "got"
    with file.open("w") as out, subprocess.Popen(subscribe, stdout=out) as subscriber:
        until(lambda: [peer["sinks"] for peer in left.info("peer")] == [1], "the sink")
        assert left.info("peer")[0]["address"] == f"[::1]:{right.port}"
        subprocess.run(publish, input=lines, text=True, check=True, timeout=20)
        assert subscriber.wait(20) == 0
    assert file.read_text() == lines


# ---- Restarts ----


def test_a_killed_daemon_comes_back_without_a_change_for_the_other_side(peers: Any, until: Any) -> None:
    left, right = peers
    receiver = client_of(right)
    receiver.sink(5)
    sender = client_of(left)
    source = sender.source(5)
    receiver.stream(2)
    assert len(receiver.accepts()) == 1
    left.process.kill()
    left.process.wait()
    left.start()
    until(lambda: right.info("peer")[0]["state"] == "connected" and right.info("peer")[0]["announces"], "the peer")
    assert right.info("peer")[0]["host"] == f"{source.id >> 32:08x}"


def test_a_new_datapath_process_replaces_what_the_old_one_announced(peers: Any, until: Any) -> None:
    left, right = peers
    sender = client_of(left)
    source = sender.source(5)
    until(lambda: right.info("peer")[0]["sources"] == 1, "the source")
    os.kill(left.datapath_pid(), signal.SIGKILL)
    until(lambda: right.info("peer")[0]["sources"] == 0, "the withdrawal of what is no more")
    assert right.info("peer")[0]["host"] == f"{source.id >> 32:08x}", "the host keeps its id"
    again = client_of(left)
    assert again.source(5, id=source.id).id == source.id
    until(lambda: right.info("peer")[0]["sources"] == 1, "the source")


def test_a_peer_that_stays_away_is_withdrawn(peers: Any, until: Any) -> None:
    left, right = peers
    receiver = client_of(right)
    receiver.sink(5)
    sender = client_of(left)
    sender.source(5)
    right.stop(signal.SIGKILL)
    until(lambda: left.info("peer")[0]["state"] == "connecting", "the loss of the connection")
    assert left.info("peer")[0]["sinks"] == 1, "held for a while"
    until(lambda: left.info("peer")[0]["sinks"] == 0, "the withdrawal")
    assert "what it announced is withdrawn" in left.said()


def test_a_reload_may_drop_a_peer(peers: Any, until: Any) -> None:
    left, right = peers
    client_of(right).sink(5)
    until(lambda: left.info("peer")[0]["sinks"] == 1, "the sink")
    left.config.write_text("")
    left.process.send_signal(signal.SIGHUP)
    until(lambda: not left.info("peer"), "the reload")
    assert f"reloaded: peers -127.0.0.1:{right.port}" in left.said()
    sender = client_of(left)
    sender.source(5)
    assert not sender.routes()


# ---- Hostile peers ----


class Stranger:
    """Somebody who speaks to the TCP port, from an address and as a port of his choice."""

    def __init__(self, daemon: Any, ip: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection(("127.0.0.1", daemon.port), 20, (ip, 0))
        self.file = self.socket.makefile("rwb")

    def say(self, *messages: object) -> None:
        for message in messages:
            self.file.write(message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n")
        self.file.flush()

    def hear(self) -> dict[str, Any]:
        """The next message; {} at the end."""
        try:
            line = self.file.readline()
        except ConnectionResetError:
            return {}
        message: dict[str, Any] = json.loads(line) if line else {}
        return message

    def close(self) -> None:
        self.file.close()
        self.socket.close()


PEER_PORT = 1  # nobody listens there
CONFIG = f'[[peers]]\naddress = "127.0.0.1"\nport = {PEER_PORT}\n'
HELLO = {"hello": {"version": 1, "host": 77, "port": PEER_PORT}}


@pytest.fixture
def listener(make_daemon: Any) -> Any:
    """A daemon whose only peer is whoever says that it is."""
    return make_daemon("s", CONFIG).start()


def test_only_configured_addresses_may_speak(listener: Any, until: Any) -> None:
    stranger = Stranger(listener, "127.0.0.2")
    assert "not one of [[peers]]" in stranger.hear()["error"]
    assert stranger.hear() == {}
    until(lambda: listener.notices()["refused_peers"] == 1, "the count")
    stranger.close()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "accepted one JSON object a line"),
        ({"hello": {"version": 9, "host": 1, "port": PEER_PORT}}, "found version 9 of the peer protocol, accepted 1"),
        ({"hello": {"version": 1, "host": 1, "port": 4}}, f"found port 4, accepted {PEER_PORT}"),
        ({"n": 1}, "no greeting"),
        (b"x" * (1 << 21) + b"\n", "limit"),
    ],
    ids=["http", "version", "port", "early", "long"],
)
def test_rubbish_on_the_peer_port_is_answered_and_counted(listener: Any, until: Any, line: object, text: str) -> None:
    stranger = Stranger(listener)
    try:
        stranger.say(line)
        assert text in stranger.hear()["error"]
    except (BrokenPipeError, ConnectionResetError):
        pass  # it closed while we were still writing
    until(lambda: listener.notices().get("refused_peers") == 1, "the count")
    assert listener.client().welcome.session


@pytest.mark.parametrize(
    "message",
    [
        {"n": 1, "sinks": [[7, 5, "", "192.0.2.1", 5000, 1]]},
        {"n": 1, "sources": [[7, 5, "", 78 << 32 | 1, "127.0.0.1", 5000]]},
        {"n": 5},
        {"n": 1, "sinks": [[]]},
        {"unknown": True},
    ],
    ids=["address", "host", "number", "shape", "message"],
)
def test_a_peer_cannot_speak_for_others(listener: Any, until: Any, message: dict[str, Any]) -> None:
    stranger = Stranger(listener)
    stranger.say(HELLO)
    assert "hello" in stranger.hear()
    stranger.say(message)
    assert "error" in stranger.hear()
    assert stranger.hear() == {}
    until(lambda: listener.notices()["refused_peers"] == 1, "the count")


def test_announcements_are_acknowledged_once_they_are_in_force(listener: Any) -> None:
    receiver = client_of(listener)
    sink = receiver.sink(5)
    stranger = Stranger(listener)
    source = 77 << 32 | 1
    stranger.say(HELLO, {"n": 1, "sources": [[7, 5, "", source, "127.0.0.1", 5000]]})
    assert stranger.hear()["hello"]["port"] == listener.port
    assert stranger.hear() == {"ack": 1}
    receiver.socket.setblocking(False)
    receiver.pushed.append(receiver.receive())
    assert receiver.accepts() == [(sink.id, [(source, 5000, 0)])]
    stranger.say({"ping": 3})
    assert stranger.hear() == {"pong": 3}


def test_a_source_waits_for_a_peer_that_is_there_and_has_not_heard_of_us(make_daemon: Any) -> None:
    """What it sent before the peer knows of it would be lost."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        daemon = make_daemon("s", f'[[peers]]\naddress = "127.0.0.1"\nport = {port}\n').start()
        stranger = Stranger(daemon)
        stranger.say({"hello": {"version": 1, "host": 77, "port": port}})
        stranger.say({"n": 1, "sinks": [[7, 5, "", "127.0.0.1", 5000, 65536]]})
        assert "hello" in stranger.hear()
        assert stranger.hear() == {"ack": 1}
        sender = client_of(daemon)
        source = sender.source(5).id
        assert daemon.notices()["slow_peers"] == 1, "it has waited, though not for ever"
        link, _ = server.accept()
        with link, link.makefile("rwb") as file:
            assert "hello" in json.loads(file.readline())
            file.write(json.dumps({"hello": {"version": 1, "host": 77, "port": port}}).encode() + b"\n")
            file.flush()
            heard = [json.loads(file.readline())]
            while "end" not in heard[-1]:
                heard.append(json.loads(file.readline()))
            assert [row[3] for message in heard for row in message.get("sources", [])] == [source]


def test_a_new_connection_of_a_peer_replaces_the_old_one(listener: Any) -> None:
    first = Stranger(listener)
    first.say(HELLO)
    first.hear()
    second = Stranger(listener)
    second.say(HELLO, {"n": 1, "begin": True}, {"n": 2, "end": True})
    assert "hello" in second.hear()
    assert second.hear() == {"ack": 1}
    assert first.hear() == {}


def test_a_daemon_does_not_talk_to_itself(listener: Any) -> None:
    stranger = Stranger(listener)
    host = int(listener.info("daemon")[0]["host"], 16)
    stranger.say({"hello": {"version": 1, "host": host, "port": PEER_PORT}})
    assert "host id" in stranger.hear()["error"]


def test_connections_of_a_peer_are_bounded(listener: Any, until: Any) -> None:
    strangers = [Stranger(listener) for _ in range(20)]
    until(lambda: listener.notices().get("refused_peers", 0) >= 8, "the refusals")
    for stranger in strangers:
        stranger.close()
    until(lambda: len(os.listdir(f"/proc/{listener.process.pid}/fd")) < 30, "the descriptors")


def test_a_stalled_peer_delays_a_client_by_a_bounded_time(make_daemon: Any) -> None:
    """The peer greets, and then acknowledges nothing: the answer comes all the same, with a warning."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        daemon = make_daemon("s", f'[[peers]]\naddress = "127.0.0.1"\nport = {port}\n').start()
        connection, _ = server.accept()
        with connection, connection.makefile("rwb") as file:
            assert b"hello" in file.readline()
            file.write(json.dumps({"hello": {"version": 1, "host": 77, "port": port}}).encode() + b"\n")
            file.flush()
            while b'"end"' not in file.readline():
                pass
            client = client_of(daemon)
            assert client.source(5).id
            assert daemon.notices()["slow_peers"] == 1


# ---- TLS ----


def test_daemons_with_certificates_speak_and_others_do_not(make_daemon: Any, until: Any, tmp_path: Path) -> None:
    certificates(tmp_path)
    tls = f"""
[tls]
certificate = "{tmp_path}/host.crt"
key = "{tmp_path}/host.key"
authority = "{tmp_path}/ca.crt"
"""
    left, right = make_daemon("left"), make_daemon("right")
    left.config.write_text(f'[[peers]]\naddress = "127.0.0.1"\nport = {right.port}\n{tls}')
    right.config.write_text(f'[[peers]]\naddress = "127.0.0.1"\nport = {left.port}\n{tls}')
    left.start()
    right.start()
    until(lambda: left.info("peer")[0]["state"] == "connected" and left.info("peer")[0]["announces"], "the peers")
    receiver = client_of(right)
    receiver.sink(5)
    sender = client_of(left)
    sender.source(5)
    assert len(sender.routes()) == 1
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    with pytest.raises((ssl.SSLError, ConnectionError)):  # noqa: SIM117, PT012 - either step may be the one that fails
        with (
            socket.create_connection(("127.0.0.1", left.port), 20) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as anonymous,
        ):
            anonymous.sendall(b'{"hello":{}}\n')
            if not anonymous.recv(100):
                raise ConnectionError
