# SPDX-License-Identifier: Apache-2.0
"""selened with its real datapath process: start, reload, end, restart, and bad input."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from selened import wire
from selened.wire import RefusedError, lib

from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

# ---- Life ----


def test_sockets_have_their_modes_and_go_with_the_daemon(daemon: Any) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in daemon.directory.glob("s.sock*")}
    assert modes == {"s.sock": 0o660, "s.sock.status": 0o666, "s.sock.dp": 0o600, "s.sock.lock": 0o644}
    pid = daemon.datapath_pid()
    assert daemon.stop() == 0
    assert not list(daemon.directory.glob("s.sock*"))
    assert not Path(f"/proc/{pid}").exists(), "the datapath process has ended, and was waited for"


def test_a_second_daemon_on_the_socket_is_refused_and_names_the_first(daemon: Any) -> None:
    done = subprocess.run(daemon.command(), capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 1
    assert f"another selened (pid {daemon.process.pid}) serves this socket" in done.stderr
    assert daemon.client().welcome.session, "the first one goes on"


def test_left_over_sockets_of_a_killed_daemon_are_replaced(make_daemon: Any) -> None:
    first = make_daemon().start()
    datapath = first.datapath_pid()
    os.kill(datapath, signal.SIGKILL)
    first.process.kill()
    first.process.wait()
    assert first.path.exists()
    assert first.start().client().welcome.session


def test_a_foreign_file_at_the_path_is_left_alone(make_daemon: Any) -> None:
    daemon = make_daemon()
    daemon.path.write_text("precious")
    done = subprocess.run(daemon.command(), capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 1
    assert "exists and is no socket" in done.stderr
    assert daemon.path.read_text() == "precious"


def test_a_port_in_use_is_said(make_daemon: Any) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        daemon = make_daemon(port=other.getsockname()[1])
        done = subprocess.run(daemon.command(), capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 1
    assert "in use by another program; set port to a free one" in done.stderr
    assert not list(daemon.directory.glob("s.sock*")), "nothing is left behind"


def test_an_address_of_another_host_is_said(make_daemon: Any) -> None:
    daemon = make_daemon("s", 'address = "192.0.2.1"\n')
    done = subprocess.run(daemon.command(), capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 1
    assert "192.0.2.1 is no address of this host" in done.stderr


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ("port = 99999\n", "s.toml:1: port: found 99999, accepted an integer from 1 to 65_535"),
        ("\nprot = 1\n", "s.toml:2: prot: unknown key (did you mean port?)"),
        ('address = "0.0.0.0"\n', "s.toml:1: address: found '0.0.0.0', accepted an IP address of this host"),
        ('sessions = "fast"\n', "s.toml:1: sessions: found 'fast', accepted auto | relayed"),
        ('direct_ports = "9-1"\n', "s.toml:1: direct_ports: found '9-1', accepted a range such as 50000-50999"),
        ('[datapath]\nscheduling = "best"\n', "s.toml:2: datapath.scheduling: found 'best', accepted other | fifo"),
        ('[[peers]]\naddress = "example"\n', "s.toml:2: peers[0].address: found 'example', accepted an IP address"),
        (
            'address = "fe80::1"\n',
            "address: found 'fe80::1', accepted an IP address of this host: one that means the same",
        ),
        ('[[peers]]\naddress = "fd00::1"\n', "peers[0]: found fd00::1, accepted one of the family of 127.0.0.1"),
        ("[[peers]]\nport = 1\n", "peers[0].address: found nothing"),
        ('[tls]\nkey = "k"\n', "found key only, accepted certificate, key and authority together"),
        ("edge_depth = 1000\n", "edge_depth: found 1000, accepted a power of two"),
        ("port = [\n", "accepted TOML"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused_with_its_place(
    make_daemon: Any, config: str, complaint: str
) -> None:
    daemon = make_daemon("s", config)
    for command in (daemon.command(), [*daemon.command(), "--check"]):
        command = [item for item in command if item not in ("--port", str(daemon.port))]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 2
        assert complaint in done.stderr


def test_check_accepts_the_examples() -> None:
    examples = sorted((Path(__file__).parents[2] / "tools/selened/examples").glob("*.toml"))
    assert examples
    for example in examples:
        command = [sys.executable, "-c", "from selened.main import main; main()", "--check", "--config", str(example)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 0, done.stderr


def test_reload_takes_over_what_it_can_and_says_the_rest(daemon: Any, until: Any) -> None:
    daemon.config.write_text('log_level = "debug"\nmax_sessions = 2\nwindow_bytes = 65536\n')
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: "needs a restart: window_bytes 1048576 → 65536" in daemon.said(), "the reload")
    assert "reloaded: max_sessions 64 → 2" in daemon.said()
    daemon.client()
    daemon.client()
    with pytest.raises(RefusedError, match="raise max_sessions"):
        daemon.client()
    daemon.config.write_text("max_sessions = -1\n")
    daemon.process.send_signal(signal.SIGHUP)
    until(lambda: "not reloaded: " in daemon.said(), "the refusal")
    assert daemon.info("daemon")[0]["config"]["max_sessions"] == 2


def test_systemd_is_told_and_the_watchdog_fed(make_daemon: Any, tmp_path: Path, monkeypatch: Any) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(20)
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "100000")
        daemon = make_daemon().start()
        said = [manager.recv(256) for _ in range(3)]
        assert any(item.startswith(b"READY=1") for item in said)
        assert said.count(b"WATCHDOG=1") == 2
        daemon.stop()
        while manager.recv(256) != b"STOPPING=1":
            pass


def test_a_datapath_process_that_dies_is_replaced_and_its_clients_are_let_go(daemon: Any, until: Any) -> None:
    client = daemon.client()
    pid = daemon.datapath_pid()
    os.kill(pid, signal.SIGKILL)
    assert client.receive() == b""
    until(lambda: daemon.datapath_pid() != pid, "another datapath process")
    again = daemon.client()
    again.stream()
    assert again.source(1).id >> 32 == again.welcome.host


def test_endpoints_have_their_ids_again_after_the_datapath_process_died(daemon: Any, until: Any) -> None:
    client = daemon.client()
    client.stream()
    source, sink = client.source(1).id, client.sink(1).id
    pid = daemon.datapath_pid()
    os.kill(pid, signal.SIGKILL)
    assert client.receive() == b""
    until(lambda: daemon.datapath_pid() != pid, "another datapath process")
    again = daemon.client()
    again.stream()
    assert again.sink(1, id=source).id not in (source, sink), "what was a source is none of a sink"
    assert again.source(2, id=source).id not in (source, sink), "nor is that of another channel"
    assert again.source(1, id=source).id == source
    assert again.sink(1, id=sink).id == sink
    assert again.source(1, id=source, index=99).id != source, "once"


def test_a_datapath_process_that_is_killed_again_and_again_is_replaced_each_time(daemon: Any, until: Any) -> None:
    for _ in range(8):
        pid = daemon.datapath_pid()
        os.kill(pid, signal.SIGKILL)
        until(lambda old=pid: daemon.datapath_pid() not in (0, old), "another datapath process")
    daemon.client()


def test_a_datapath_process_outlives_a_killed_daemon_and_is_adopted(daemon: Any) -> None:
    client = daemon.client()
    pid, host = daemon.datapath_pid(), client.welcome.host
    daemon.process.kill()
    daemon.process.wait()
    daemon.start()
    datapath = daemon.info("daemon")[0]["datapath"]
    assert (datapath["pid"], datapath["adopted"]) == (pid, True)
    again = daemon.client()
    assert again.welcome.host == host
    again.stream()
    assert again.source(1).id >> 32 == host


def resuming(daemon: Any) -> None:
    if not daemon.info("daemon")[0]["datapath"]["resumes"]:
        pytest.skip("this selened-dp does not know SELENE_RESUME: sessions are opened anew")


@pytest.mark.parametrize("flags", [0, wire.RELAYED], ids=["direct", "relayed"])
def test_sessions_go_on_after_a_restart_of_the_daemon(daemon: Any, flags: int) -> None:
    resuming(daemon)
    client = daemon.client(flags=flags)
    client.stream()
    source, sink = client.source(5, "topic", index=0), client.sink(5, "topic", index=1)
    first = client.welcome
    daemon.process.kill()
    daemon.process.wait()
    client.session_packets()
    daemon.start()
    shown = (client.udp.fileno(),) if client.udp is not None else ()
    again = daemon.client(flags=wire.RESUME | flags, session=first.session, token=first.token, shown=shown)
    assert again.welcome.flags == wire.RESUME | first.flags
    assert (again.welcome.session, again.welcome.host) == (first.session, first.host)
    assert again.welcome.address.port == first.address.port
    again.stream()
    assert again.source(5, "topic", index=0, id=source.id, epoch=3).id == source.id
    back = again.sink(5, "topic", index=1, id=sink.id)
    assert (back.id, back.edges) == (sink.id, 1)
    assert client.session_packets() == [], "the edge has never gone"
    fresh = again.source(6, index=2)  # waits for the end of the grace
    assert fresh.id not in (source.id, sink.id)
    assert again.routes() == [(source.id, 4, 0, [])], "said again, since nobody knows what it was"
    assert again.accepts() == [(sink.id, [])]
    assert len(daemon.info("session")) == 1


def test_nobody_resumes_what_is_not_his(daemon: Any) -> None:
    resuming(daemon)
    client = daemon.client()
    first = client.welcome
    alive = {"session": first.session, "token": first.token}
    assert daemon.client(flags=wire.RESUME, **alive).welcome.session != first.session, "it is in use"
    daemon.process.kill()
    daemon.process.wait()
    daemon.start()
    for wrong in ({"token": first.token ^ 1}, {"session": first.session ^ 1}, {"session": 0}):
        other = daemon.client(flags=wire.RESUME, **(alive | wrong))
        assert not other.welcome.flags & wire.RESUME
        assert other.welcome.session != first.session
    with open(os.devnull, "rb") as no_socket, pytest.raises((RefusedError, ConnectionResetError)):
        daemon.client(flags=wire.RESUME, shown=(no_socket.fileno(),), **alive)
    assert daemon.client(flags=wire.RESUME, **alive).welcome.flags == wire.RESUME | wire.RELAYED


# ---- Bad input ----


def broken(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


HELLO = wire.build("selene_hello", lib.SELENE_C_HELLO, 1, program=b"test")


@pytest.mark.parametrize(
    ("packet", "error", "text", "counter"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", errno.EPROTO, "starts with", "rubbish"),
        (b"x", errno.EPROTO, "packet of 1 bytes", "rubbish"),
        (os.urandom(60000), errno.EPROTO, "", "rubbish"),
        (HELLO[:-1], errno.EPROTO, "that says", "rubbish"),
        (HELLO + b"x", errno.EPROTO, "that says", "rubbish"),
        (wire.bare(lib.SELENE_C_HELLO, 1), errno.EPROTO, "bytes of selene_hello", "rubbish"),
        (wire.bare(lib.SELENE_C_STREAM, 1), errno.EPROTO, "accepted a greeting", "rubbish"),
        (
            broken(HELLO, 4, b"\x63\x00"),
            errno.EPROTONOSUPPORT,
            f"version 99, accepted {wire.VERSION}",
            "other_versions",
        ),
    ],
    ids=["http", "short", "noise", "cut", "long", "bare", "early", "version"],
)
def test_rubbish_instead_of_a_greeting_is_answered_and_ends_the_connection(
    daemon: Any, packet: bytes, error: int, text: str, counter: str
) -> None:
    client = daemon.client(greet=False)
    client.socket.send(packet)
    answer = wire.parse("selene_error", client.receive())
    assert answer.error == error
    assert text in wire.text_of(answer.text)
    assert client.receive() == b""
    assert daemon.notices()[counter] == 1
    assert daemon.client().welcome.session, "others are not concerned"


@pytest.mark.parametrize("kind", [0, 1, 32, 64, 96, 999])
def test_a_request_that_does_not_exist_ends_the_session(daemon: Any, until: Any, kind: int) -> None:
    client = daemon.client()
    client.socket.send(wire.bare(kind, 5))
    assert wire.parse("selene_error", client.receive()).error == errno.EPROTO
    assert client.receive() == b""
    until(lambda: not daemon.info("session"), "the end of the session")


def test_too_many_descriptors_end_the_session_and_are_closed(daemon: Any, until: Any) -> None:
    def descriptors() -> int:
        return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))

    daemon.info("daemon")
    before = descriptors()
    client = daemon.client(greet=False)
    read, write = os.pipe()
    socket.send_fds(client.socket, [HELLO], [read] * 30)
    assert wire.parse("selene_error", client.receive()).error == errno.EPROTO
    client.close()
    until(lambda: descriptors() <= before, "the descriptors")
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("rubbish", [b"x" * 16, wire.bare(lib.SELENE_C_ACCEPTED)], ids=["magic", "short"])
def test_descriptors_of_rubbish_are_closed(daemon: Any, until: Any, rubbish: bytes) -> None:
    def descriptors() -> int:
        return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))

    daemon.info("daemon")
    before = descriptors()
    client = daemon.client()
    with open(os.devnull, "rb") as file:
        socket.send_fds(client.socket, [rubbish], [file.fileno()] * 8)
    assert wire.parse("selene_error", client.receive()).error == errno.EPROTO
    client.close()
    until(lambda: descriptors() <= before, "the descriptors")


def test_a_client_that_does_not_read_is_cut_off(daemon: Any, until: Any) -> None:
    client = daemon.client()
    wire_stream = wire.build("selene_stream_open", lib.SELENE_C_STREAM, 3, handle=1)
    client.socket.settimeout(0.2)
    # Its requests are answered, it never looks: the answers fill the socket, then the queue, then it goes.
    with contextlib.suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
        while daemon.info("session"):
            client.socket.send(wire_stream)
    until(lambda: not daemon.info("session"), "the end of the session")
    assert "packets unread" in daemon.said()


def test_noise_never_ends_the_daemon(daemon: Any) -> None:
    for size in range(1, 400, 7):
        client = daemon.client(greet=False)
        client.socket.send(HELLO[:16] + os.urandom(size) if size % 2 else os.urandom(size))
        client.close()
    for kind in (lib.SELENE_C_STREAM, lib.SELENE_C_SOURCE, lib.SELENE_C_SINK, lib.SELENE_C_CLOSE):
        for _ in range(10):
            client = daemon.client()
            struct = {
                lib.SELENE_C_STREAM: "selene_stream_open", lib.SELENE_C_CLOSE: "selene_close",
            }.get(kind, "selene_endpoint_open")  # fmt: skip
            size = wire.ffi.sizeof(f"struct {struct}")
            head = wire.build(struct, kind, 1)[: wire.HEADER_BYTES]
            client.socket.send(head + os.urandom(size - len(head)))
            assert client.receive()
            client.close()
    assert daemon.process.poll() is None
    assert "Traceback" not in daemon.said()


def test_the_status_socket_survives_rubbish(daemon: Any) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(f"{daemon.path}.status")
        sock.send(b"rubbish\n")
        assert b'"ok":false' in sock.recv(4096)
    assert daemon.info("daemon")


def test_waiting_for_a_greeting_is_bounded_in_number(make_daemon: Any, until: Callable[..., None]) -> None:
    daemon = make_daemon("s", "max_sessions = 1\n").start()
    clients = [daemon.client(greet=False) for _ in range(40)]
    until(lambda: daemon.notices().get("refused_connections", 0) >= 7, "the refusals")
    refused = wire.parse("selene_error", clients[-1].receive())
    assert refused.error == errno.EUSERS


# ---- Logs ----


def test_lines_of_the_datapath_process_are_as_ours(make_daemon: Any) -> None:
    daemon = make_daemon("s", "", "--log-format", "json")
    with daemon.log.open("wb") as log:
        daemon.process = subprocess.Popen(daemon.command(), stderr=log)
    wait_until(lambda: "ready at " in daemon.said(), "READY")
    daemon.stop()
    found = [json.loads(line) for line in daemon.said().splitlines()]
    assert all(record["kind"] == "log" and type(record["ts_ns"]) is int for record in found)
    assert {"logger": "selened-dp", "level": "info", "message": "ended"}.items() <= found[-1].items()
    assert abs(found[-1]["ts_ns"] - found[0]["ts_ns"]) < 3600e9


def test_text_lines_have_time_level_and_name(daemon: Any) -> None:
    daemon.stop()
    shape = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ [a-z.-]+: .*")
    assert all(shape.fullmatch(line) for line in daemon.said().splitlines())
    assert daemon.said().endswith(" INFO selened-dp: ended\n")


def test_the_level_is_that_of_the_datapath_process_too(make_daemon: Any) -> None:
    daemon = make_daemon("s", "", "--log-level", "error")
    daemon.process = subprocess.Popen(daemon.command(), stderr=subprocess.PIPE, text=True)
    wait_until(lambda: daemon.path.exists() and daemon.info("daemon"), "the daemon")
    daemon.process.terminate()
    assert daemon.process.communicate(timeout=30)[1] == ""


def test_two_daemons_after_each_other_append_to_one_log(make_daemon: Any) -> None:
    """The second opens the file anew, as `2> log` does; the datapath process still has it from the first."""
    daemon = make_daemon()
    for number in (1, 2):
        with daemon.log.open("wb") as log:
            daemon.process = subprocess.Popen(daemon.command(), stderr=log)
        wait_until(lambda: " ready at " in daemon.said(), "READY")
        if number == 1:
            daemon.client()
            daemon.process.kill()
            daemon.process.wait()
    assert " adopted;" in daemon.said()
    before = daemon.said()
    assert daemon.stop() == 0
    wait_until(lambda: daemon.said().endswith("selened-dp: ended\n"), "the last line")
    assert daemon.said().startswith(before)
    assert "\0" not in daemon.said()
    assert all(line.startswith("20") for line in daemon.said().splitlines())
