# SPDX-License-Identifier: Apache-2.0
"""Client against server over a real socket; the server runs in an event loop of its own thread."""

import asyncio
import contextlib
import json
import os
import socket
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libqos import rpc
from libqos.rpc import Peer, RpcError
from libqos.rpcserver import Limits, Server


async def info(params: dict[str, Any], peer: Peer) -> dict[str, Any]:
    return {"kind": "info", "params": params, "pid": peer.pid, "uid": peer.uid}


async def fail(params: dict[str, Any], peer: Peer) -> None:
    raise KeyError("a bug")


async def refuse(params: dict[str, Any], peer: Peer) -> None:
    raise RpcError("no-stream", "found stream 5, accepted 1 to 4")


async def big(params: dict[str, Any], peer: Peer) -> str:
    return "x" * int(params["size"])


async def never(params: dict[str, Any], peer: Peer) -> None:
    await asyncio.Event().wait()


async def nonsense(params: dict[str, Any], peer: Peer) -> object:
    return {"no JSON": b""}


async def count(params: dict[str, Any], peer: Peer) -> AsyncIterator[int]:
    for number in range(int(params["to"])):
        yield number


class Endless:
    """A streaming method without end that says when it was ended."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def method(self) -> Callable[[dict[str, Any], Peer], AsyncIterator[str]]:
        async def run(params: dict[str, Any], peer: Peer) -> AsyncIterator[str]:
            try:
                while True:
                    yield "x" * int(params.get("size", 1))
                    await asyncio.sleep(0)
            finally:
                self.ended.set()

        return run


METHODS: dict[str, Any] = {
    "info": info, "fail": fail, "refuse": refuse, "big": big, "never": never, "nonsense": nonsense, "count": count,
}  # fmt: skip


@contextlib.contextmanager
def running(path: Path, methods: dict[str, Any] | None = None, **limits: Any) -> Iterator[Server]:
    server = Server(path, METHODS | (methods or {}), limits=Limits(**limits))
    loop = asyncio.new_event_loop()
    loop.run_until_complete(server.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(server.close(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "d.sock.status"


def raw(path: Path, data: bytes, *, half_close: bool = True) -> bytes:
    """What comes back for these bytes, until the server closes."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(data)
            if half_close:
                client.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := client.recv(65536):
                answer += piece
        return answer


def test_call_gives_the_result_and_the_peer_is_known(path: Path) -> None:
    with running(path):
        result = rpc.call(path, {"method": "info", "params": {"a": "é"}})
    assert result == {"kind": "info", "params": {"a": "é"}, "pid": os.getpid(), "uid": os.getuid()}


def test_socket_has_its_mode_and_is_removed(path: Path) -> None:
    with running(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert not path.exists()


def test_second_server_on_a_path_is_refused(path: Path) -> None:
    with running(path):
        with pytest.raises(OSError, match="in use"):
            asyncio.run(Server(path, {}).start())
        assert rpc.call(path, {"method": "info"})["kind"] == "info"


def test_stream_ends_by_itself(path: Path) -> None:
    with running(path):
        assert list(rpc.stream(path, {"method": "count", "params": {"to": 5}})) == [0, 1, 2, 3, 4]
        assert list(rpc.stream(path, {"method": "count", "params": {"to": 0}})) == []


def test_stream_is_ended_by_the_client(path: Path) -> None:
    endless = Endless()
    with running(path, {"endless": endless.method()}):
        results = rpc.stream(path, {"method": "endless"})
        assert [next(results) for _ in range(3)] == ["x"] * 3
        results.close()  # type: ignore[attr-defined]
        assert endless.ended.wait(10)


def test_client_that_does_not_read_is_disconnected(path: Path) -> None:
    endless = Endless()
    with running(path, {"endless": endless.method()}, write_s=0.05) as server, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(rpc.encode({"method": "endless", "params": {"size": 100_000}}))
        assert endless.ended.wait(10)
        assert server.counters.slow_clients == 1
        assert rpc.call(path, {"method": "info"})["kind"] == "info"


@pytest.mark.parametrize(
    ("method", "code", "message"),
    [
        ("fail", "internal", "see its log"),
        ("nonsense", "internal", "see its log"),
        ("refuse", "no-stream", "found stream 5, accepted 1 to 4"),
        ("nothing", "unknown-method", "found method 'nothing', accepted big, count"),
    ],
)
def test_failure_is_an_error_with_a_code(path: Path, method: str, code: str, message: str) -> None:
    with running(path), pytest.raises(RpcError, match=message) as caught:
        rpc.call(path, {"method": method})
    assert caught.value.code == code


def test_large_answers_arrive_whole_and_too_large_ones_are_refused(path: Path) -> None:
    with running(path, reply_bytes=1_000_000):
        assert len(rpc.call(path, {"method": "big", "params": {"size": 900_000}})) == 900_000
        with pytest.raises(RpcError, match="accepted 1000000") as caught:
            rpc.call(path, {"method": "big", "params": {"size": 2_000_000}})
        assert caught.value.code == "too-large"
        # A client that closes its sending side first gets the whole answer too.
        answer = raw(path, b'{"method":"big","params":{"size":900000}}\n')
        assert len(json.loads(answer)["result"]) == 900_000


def test_several_questions_on_one_connection(path: Path) -> None:
    with running(path) as server:
        answers = raw(path, b'{"method":"info"}\n{"method":"nothing"}\n{"method":"info"}\n').splitlines()
    assert [json.loads(answer)["ok"] for answer in answers] == [True, False, True]
    assert (server.counters.calls, server.counters.errors) == (3, 1)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"rubbish\n", "bad-request"),
        (b"\xff\xfe\n", "bad-request"),
        (b"[]\n", "bad-request"),
        (b"{}\n", "bad-request"),
        (b'{"method":5}\n', "bad-request"),
        (b'{"method":"info","params":[]}\n', "bad-request"),
        (b"[" * 60_000 + b"\n", "bad-request"),
        (b"x" * 200_000, "too-large"),
    ],
)
def test_rubbish_gets_an_error_object(path: Path, data: bytes, code: str) -> None:
    with running(path):
        answer = raw(path, data, half_close=False) if code == "too-large" else raw(path, data)
        assert json.loads(answer.splitlines()[0])["error"]["code"] == code
        assert rpc.call(path, {"method": "info"})["kind"] == "info"


def test_half_a_surrogate_pair_is_answered_as_it_came(path: Path) -> None:
    with running(path):
        answer = json.loads(raw(path, b'{"method":"info","params":{"text":"\\ud800"}}\n'))
        assert answer["result"]["params"] == {"text": "\ud800"}


def test_any_bytes_leave_the_server_alive(tmp_path: Path) -> None:
    """Whatever comes in: every answer is one of the protocol, and the next client is served."""
    path = tmp_path / "s"
    with running(path) as server:

        @settings(max_examples=50, deadline=None)
        @given(st.lists(st.binary(max_size=50) | st.sampled_from([b"\n", b'{"method":"info"}\n']), max_size=6))
        def check(parts: list[bytes]) -> None:
            for line in raw(path, b"".join(parts)).splitlines():
                assert type(json.loads(line)["ok"]) is bool

        check()
        assert rpc.call(path, {"method": "info"})["kind"] == "info"
        assert server.counters.slow_clients == 0


def test_clients_are_bounded_per_user(path: Path) -> None:
    with running(path, clients_per_user=2) as server, contextlib.ExitStack() as stack:
        for _ in range(2):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(path))
            client.sendall(b'{"method":"info"}\n')
            assert client.recv(4096)
        with pytest.raises(RpcError, match="too many clients") as caught:
            rpc.call(path, {"method": "info"})
        assert caught.value.code == "busy"
        assert server.counters.refused_clients == 1
    assert not server._users


def test_silent_client_is_disconnected(path: Path) -> None:
    with running(path, idle_s=0.02) as server:
        assert raw(path, b"", half_close=False) == b""
        assert server.counters.idle_clients == 1


def test_method_that_takes_too_long(path: Path) -> None:
    with running(path, handler_s=0.02), pytest.raises(RpcError, match="took too long") as caught:
        rpc.call(path, {"method": "never"}, timeout=10)
    assert caught.value.code == "timeout"


def test_client_gives_up_in_time(path: Path) -> None:
    with running(path), pytest.raises(RpcError, match=r"no answer within 0\.05 s") as caught:
        rpc.call(path, {"method": "never"}, timeout=0.05)
    assert caught.value.code == "timeout"


def test_errors_of_the_client_say_what_to_do(path: Path) -> None:
    with pytest.raises(RpcError, match="no such socket; start the daemon") as caught:
        rpc.call(path, {"method": "info"})
    assert (caught.value.code, caught.value.exit_code) == ("no-daemon", 1)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(RpcError, match="nobody listens"):
        rpc.call(path, {"method": "info"})
    with pytest.raises(RpcError, match="accepted at most"):
        rpc.call(path, {"method": "x" * 70_000})
    with pytest.raises(RpcError, match="too long") as caught:
        rpc.call("/" + "x" * 200, {"method": "info"})
    assert caught.value.code == "no-daemon"


def test_refusal_before_the_question_was_sent_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = threading.Event()

    class Slow(socket.socket):
        def connect(self, address: Any) -> None:
            super().connect(address)
            assert refused.wait(10)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def refuse() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b'{"ok":false,"error":{"code":"busy","message":"too many clients"}}\n')
            refused.set()

        thread = threading.Thread(target=refuse)
        thread.start()
        monkeypatch.setattr("libqos.rpc.socket.socket", Slow)
        with pytest.raises(RpcError, match="too many clients") as caught:
            rpc.call(path, {"method": "info"})
        thread.join(10)
    assert caught.value.code == "busy"


@pytest.mark.parametrize("answer", [b"rubbish\n", b"[]\n", b"{}\n", b'{"ok":1}\n', b""])
def test_daemon_that_talks_rubbish(path: Path, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(RpcError) as caught:
            rpc.call(path, {"method": "info"})
        thread.join(10)
    assert caught.value.code == ("bad-reply" if answer else "closed")
