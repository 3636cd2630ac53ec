# SPDX-License-Identifier: Apache-2.0
"""Peers over real sockets, friendly and not."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

import msgpack
import pytest

from libqos.codec import msgpackrpc
from libqos.codec.msgpackrpc import LocalError
from libqos.peer import CLOSE, Closed, Limits, Peer, connect
from libqos.peerserver import serve
from libqos.rpc import RpcError
from tests.libqos.peers import METHODS, add, last_words, run, served, stranger, until

if TYPE_CHECKING:
    from pathlib import Path

    from libqos.endpoint import TlsFiles

# ---- Calls ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "unix://{}/server.sock", "tcp://127.0.0.1:0", "tls://127.0.0.1:0",
        pytest.param("tcp://[::1]:0", marks=pytest.mark.needs_ipv6),
        pytest.param("tls://[::1]:0", marks=pytest.mark.needs_ipv6),
    ],
)  # fmt: skip
def test_both_sides_call(tmp_path: Path, files: TlsFiles, url: str) -> None:
    url = url.format(tmp_path)
    scheme = url.partition(":")[0]
    tls = files if scheme == "tls" else None

    async def main() -> None:
        async with await serve(url, METHODS, tls=tls) as server:
            place = url if scheme == "unix" else f"{scheme}://{server.addresses[0]}"
            async with await connect(place, METHODS, tls=tls) as peer:
                assert await peer.call("add", [1, 2]) == 3
                assert await peer.call("back", ["add", 5, 6]) == 11
                assert await asyncio.gather(*(peer.call("add", [number, 1]) for number in range(50))) == [*range(1, 51)]
                (other,) = server.peers
                assert await other.call("echo", ["x" * 1_000_000]) == ["x" * 1_000_000]
                if scheme == "unix":
                    assert other.credentials is not None
                    assert peer.credentials is not None
                if scheme == "tls":
                    assert (("commonName", "host"),) in other.certificate["subject"]
            await until(lambda: not server.peers)
            assert server.counters.closed == {"by-peer": 1}

    run(main())


@pytest.mark.parametrize(
    ("method", "code", "text"),
    [
        ("refuse", "no-stream", "found stream 5, accepted 1 to 4"),
        ("fail", "internal", "fail failed; the log there says why"),
        ("nonsense", "internal", "its result cannot be sent"),
        (
            "nowhere",
            "unknown-method",
            "found method 'nowhere', accepted add, back, echo, fail",
        ),
        ("never", "timeout", "never: not done after 0.1 s"),
    ],
)
def test_a_call_that_fails(tmp_path: Path, method: str, code: str, text: str) -> None:
    async def main() -> None:
        async with (
            served(tmp_path, Limits(method_s=0.1 if method == "never" else 10.0)) as (server, url),
            await connect(url, {}) as peer,
        ):
            with pytest.raises(RpcError, match=text) as caught:
                await peer.call(method)
            assert caught.value.code == code
            assert await peer.call("add", [1]) == 1
            counters = server.counters
            assert (counters.failed_methods, counters.unknown_methods) == (
                method in ("fail", "nonsense", "never"), method == "nowhere",
            )  # fmt: skip

    run(main())


def test_notifications_keep_their_order(tmp_path: Path) -> None:
    seen = []

    async def note(_: Peer, params: list[Any]) -> None:
        await asyncio.sleep(0)
        seen.append(params[0])
        if params[0] == 3:
            raise RpcError("no-stream", "of no interest to who notifies")

    async def main() -> None:
        async with served(tmp_path, methods={"note": note}) as (server, url), await connect(url, {}) as peer:
            await peer.notify("unknown", [])
            for number in range(100):
                await peer.notify("note", [number])
            await until(lambda: len(seen) == 100)
            assert server.counters.unknown_methods == 1

    run(main())
    assert seen == [*range(100)]


def test_a_late_answer_is_no_fault(tmp_path: Path) -> None:
    async def main() -> None:
        release = asyncio.Event()

        async def slow(_: Peer, __: list[Any]) -> None:
            await release.wait()

        async with served(tmp_path, methods={"slow": slow, "add": add}) as (_, url), await connect(url, {}) as peer:
            with pytest.raises(RpcError, match=r"slow: no answer within 0.01 s"):
                await peer.call("slow", timeout=0.01)
            release.set()
            assert await peer.call("add", [1, 2]) == 3

    run(main())


def test_who_never_answers_is_closed(tmp_path: Path) -> None:
    async def main() -> None:
        limits = Limits(messages=msgpackrpc.Limits(calls_out=3))
        async with served(tmp_path, limits) as (server, url), stranger(url) as (reader, _):
            await until(lambda: server.peers)
            (peer,) = server.peers
            for _ in range(3):
                with pytest.raises(RpcError, match="no answer within"):
                    await peer.call("answer", timeout=0.01)
            assert (await last_words(reader))[2] == ["unanswered", "3 calls had no answer in time"]
            with pytest.raises(RpcError, match="3 calls had no answer in time"):
                await peer.call("answer")

    run(main())


def test_more_calls_than_allowed_are_the_callers_fault(tmp_path: Path) -> None:
    async def main() -> None:
        limits = Limits(messages=msgpackrpc.Limits(calls_out=2))
        async with served(tmp_path) as (_, url), await connect(url, {}, limits=limits) as peer:
            waiting = [asyncio.create_task(peer.call("never")) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(LocalError, match="2 calls are not answered yet"):
                await peer.call("add")
            peer.close()
            for result in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(result, RpcError)
                assert result.code == "closed"

    run(main())


# ---- Ends -----------------------------------------------------------------------------------------------------------

CHILD: Final = """
import asyncio, sys
from libqos.peer import connect
async def main():
    peer = await connect(sys.argv[1], {})
    await peer.notify("here")
    await peer.wait_closed()
asyncio.run(main())
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, "gone"), (signal.SIGSTOP, "silent")])
def test_a_process_that_is_killed_or_stands_still(tmp_path: Path, number: signal.Signals, code: str) -> None:
    async def main() -> None:
        here = asyncio.Event()
        ends: list[Closed] = []

        async def come(_: Peer, __: list[Any]) -> None:
            here.set()

        async with served(
            tmp_path, Limits(ping_s=0.1, silent_s=1.0 if code == "silent" else 60.0), methods={"here": come},
            disconnected=lambda _, closed: ends.append(closed),
        ) as (server, url):  # fmt: skip
            child = await asyncio.create_subprocess_exec(sys.executable, "-P", "-c", CHILD, url)
            try:
                await here.wait()
                child.send_signal(number)
                await until(lambda: ends)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                await child.wait()
            assert ends[0].code == code
            assert server.counters.closed == {code: 1}

    run(main())


def test_who_is_silent_but_answers_stays(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path, Limits(ping_s=0.05, silent_s=2.0)) as (server, url):
            async with stranger(url) as (reader, writer):
                for _ in range(50):  # 2.5 s and more
                    kind, number, method, params = msgpack.unpackb(await reader.read(100))
                    assert (kind, method, params) == (0, "peer.ping", [])
                    writer.write(msgpack.packb([1, number, "no such method", None]))
            await until(lambda: server.counters.closed)
            assert server.counters.closed == {"gone": 1}

    run(main())


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "found 71, accepted an array"),
        (b"\xc1", "found a value of type 0xc1"),
        (b"\xdd\xff\xff\xff\xff", "more than 16384 values"),
        (msgpack.packb([1, 5, None, None]), "answer with id 5"),
    ],
)
def test_rubbish(tmp_path: Path, data: bytes, why: str) -> None:
    async def main() -> None:
        async with served(tmp_path) as (server, url), await connect(url, {}) as friend:
            async with stranger(url) as (reader, writer):
                writer.write(data)
                kind, method, (code, message) = await last_words(reader)
                assert (kind, method, code) == (2, CLOSE, "malformed")
                assert why in message
            assert server.counters.closed == {"malformed": 1}
            assert await friend.call("add", [1, 2]) == 3

    run(main())


def test_who_never_reads(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path, Limits(write_s=0.2)) as (server, url), stranger(url) as (_, writer):
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await until(lambda: server.peers)
            (peer,) = server.peers
            sizes = []
            with pytest.raises(RpcError, match=r"did not read for 0.2 s"):  # noqa: PT012 - whichever is one too many
                for _ in range(1000):
                    await peer.notify("data", ["x" * 100_000])
                    sizes.append(peer._writer.transport.get_write_buffer_size())
            assert max(sizes) < (256 << 10) + 101_000
            await until(lambda: not server.peers)
            assert server.counters.closed == {"slow": 1}

    run(main())


def test_more_notifications_than_can_be_handled(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path, Limits(notifications=10)) as (server, url), await connect(url, {}) as peer:
            with contextlib.suppress(RpcError):
                for _ in range(20):
                    await peer.notify("never")
            closed = await peer.wait_closed()
            assert closed.code == "by-peer"
            assert closed.message == "closed by the peer: found more than 10 notifications that wait"
            assert server.counters.closed == {"flood": 1}

    run(main())


# ---- Strangers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (["no-stream", "not here"], "no-stream", "get: not here"),
        ([0, "Vim: not here"], "other", "get: Vim: not here"),
        ("not here\x1b[2J", "other", r"get: not here\?\[2J"),
        ({"code": 5}, "other", r"get: \{'code': 5\}"),
        (False, "other", "get: False"),
    ],
)
def test_errors_of_others(tmp_path: Path, error: Any, code: str, text: str) -> None:
    async def main() -> None:
        async with served(tmp_path) as (server, url), stranger(url) as (reader, writer):
            await until(lambda: server.peers)
            (peer,) = server.peers
            call = asyncio.create_task(peer.call("get"))
            _, number, method, _ = msgpack.unpackb(await reader.read(100))
            assert method == "get"
            writer.write(msgpack.packb([1, number, error, None]))
            with pytest.raises(RpcError, match=text) as caught:
                await call
            assert caught.value.code == code

    run(main())
