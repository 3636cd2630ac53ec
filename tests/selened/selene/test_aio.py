# SPDX-License-Identifier: Apache-2.0
"""Sinks and sources in event loops: order, back pressure, cancellation, several of each, restarts, closing."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import random
import select
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest
import selene
from selene import aio

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    Until = Callable[[Callable[[], object], str], None]
    Pair = tuple[selene.Source, selene.Sink]
    Run = Callable[[Coroutine[Any, Any, None]], None]

PATIENCE_S = 20.0


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine in a new loop, under a watchdog."""
    if request.param == "uvloop":
        factory = pytest.importorskip("uvloop", reason="uvloop is not installed").new_event_loop
    else:
        factory = asyncio.new_event_loop

    def start(coroutine: Coroutine[Any, Any, None]) -> None:
        async def watched() -> None:
            async with asyncio.timeout(PATIENCE_S):
                await coroutine

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(watched())

    return start


async def numbers(sink: aio.Sink, count: int) -> list[int]:
    """The next messages, as numbers."""
    found = []
    async for message in sink:
        found.append(int(bytes(message)))
        if len(found) == count:
            return found
    raise AssertionError(f"the sink was closed after {len(found)} of {count}")


async def flood(source: aio.Source, count: int) -> None:
    for number in range(count):
        await source.send(b"%d" % number)


def pair_of(stream: selene.Stream, until: Until, channel: int = 7) -> Pair:
    source, sink = stream.source(channel=channel), stream.sink(channel=channel)
    until(lambda: source.stats().local_sinks == 1, "the sink at the source")
    return source, sink


def remote_pair(left: selene.Session, right: selene.Session, until: Until, channel: int = 7) -> Pair:
    source = left.stream(delivery="reliable").source(channel=channel)
    sink = right.stream(delivery="reliable").sink(channel=channel)
    until(lambda: source.stats().remote_sinks == 1 and sink.stats().remote_sources == 1, "each other")
    return source, sink


# ---- Messages ----


def test_a_flood_arrives_complete_and_in_order(session: selene.Session, until: Until, run: Run) -> None:
    source, sink = pair_of(session.stream(delivery="reliable"), until)

    async def main() -> None:
        async with aio.Sink(sink) as inbox, aio.Source(source) as outbox, asyncio.TaskGroup() as group:
            group.create_task(flood(outbox, 20_000))
            assert await numbers(inbox, 20_000) == list(range(20_000))
        assert sink.closed
        assert source.closed

    run(main())


def test_bursts_and_borrowed_buffers(session: selene.Session, until: Until, run: Run) -> None:
    source, sink = pair_of(session.stream(delivery="reliable"), until)

    async def main() -> None:
        inbox, outbox = aio.Sink(sink), aio.Source(source)
        sending = asyncio.create_task(outbox.send_many([b"%d" % number for number in range(5000)]))
        found: list[int] = []
        while len(found) < 5000:
            with await inbox.get_many(100) as burst:
                assert 1 <= len(burst) <= 100
                found += [int(bytes(message)) for message in burst]
        assert found == list(range(5000))
        assert await sending == 5000
        buffer = await outbox.get(8)
        buffer.data[:] = b"borrowed"
        assert source.outcome(await outbox.emit(buffer)) == "sent"
        with await inbox.get() as message:
            assert bytes(message) == b"borrowed"
        assert await outbox.send_many([]) == 0
        with pytest.raises(selene.SeleneError) as caught:
            await outbox.send_many([b"x" * (selene.MAX_MESSAGE + 1)])
        assert caught.value.errno == errno.EMSGSIZE
        assert await outbox.send_many([b"1", b"x" * (selene.MAX_MESSAGE + 1)]) == 1

    run(main())


def test_a_slow_consumer_holds_up_the_sender_and_nobody_else(session: selene.Session, until: Until, run: Run) -> None:
    source, sink = pair_of(session.stream(delivery="reliable"), until)

    async def main() -> None:
        inbox, rounds = aio.Sink(sink), 0
        sending = asyncio.create_task(flood(aio.Source(source), 5000))
        while source.stats().again < 10:  # it has looked for room, and the loop goes on
            rounds += 1
            await asyncio.sleep(0)
        assert rounds > 0
        assert not sending.done()
        sent = source.stats().messages
        assert sent < 5000
        assert await numbers(inbox, 5000) == list(range(5000))
        await sending
        assert (sink.stats().lost, sink.stats().dropped) == (0, 0)

    run(main())


def test_best_effort_does_not_wait(session: selene.Session, until: Until, run: Run) -> None:
    source, sink = pair_of(session.stream(delivery="best-effort"), until)

    async def main() -> None:
        await flood(aio.Source(source), 3000)
        assert source.stats().dropped_slow == 3000 - 1024
        assert await numbers(aio.Sink(sink), 1024) == list(range(1024))
        outbox = aio.Source(source)
        held = [await outbox.get(selene.MAX_MESSAGE) for _ in range(200)]
        with pytest.raises(selene.SeleneAgainError):
            held += [await outbox.get(selene.MAX_MESSAGE) for _ in range(100)]

    run(main())


def test_a_flood_does_not_keep_other_tasks_out(session: selene.Session, until: Until, run: Run) -> None:
    """Neither a receiver that always finds a message nor a sender that always finds room waits for anything."""
    source, sink = pair_of(session.stream(delivery="reliable"), until)
    source.send_many([b"x"] * 1000)

    async def main() -> None:
        inbox, outbox = aio.Sink(sink), aio.Source(source)
        for endless in (inbox.get, lambda: outbox.send(b"x")):
            done = 0

            async def forever(step: Any = endless) -> None:
                nonlocal done
                while True:
                    await step()
                    done += 1

            task = asyncio.create_task(forever())
            while done == 0:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert done < 1000

    run(main())


# ---- Waiting and cancellation ----


def test_waiting_has_an_end(session: selene.Session, until: Until, run: Run) -> None:
    _, sink = pair_of(session.stream(), until)

    async def main() -> None:
        inbox = aio.Sink(sink)
        for timeout in (0, 0.01):
            with pytest.raises(selene.SeleneTimeoutError, match="no message arrived in time"):
                await inbox.get(timeout)
        with pytest.raises(selene.SeleneTimeoutError):
            await inbox.get_many(3, 0.01)

    run(main())


@pytest.mark.parametrize("seed", range(3))
def test_cancelled_receivers_lose_nothing(session: selene.Session, until: Until, run: Run, seed: int) -> None:
    source, sink = pair_of(session.stream(delivery="reliable"), until)
    dice = random.Random(seed)

    async def main() -> None:
        inbox = aio.Sink(sink)
        found: list[int] = []
        sending = asyncio.create_task(flood(aio.Source(source), 2000))
        while len(found) < 2000:
            receivers = [asyncio.create_task(inbox.get()) for _ in range(dice.randrange(1, 4))]
            for _ in range(dice.randrange(3)):
                await asyncio.sleep(0)
            if dice.random() < 0.1:
                await asyncio.wait(receivers, return_when=asyncio.FIRST_COMPLETED)
            for receiver in receivers:
                receiver.cancel()  # what it has taken already is its result
            for receiver in receivers:
                with contextlib.suppress(asyncio.CancelledError), await receiver as message:
                    found.append(int(bytes(message)))
        assert sorted(found) == list(range(2000))
        await sending
        assert not inbox._waiters

    run(main())


@pytest.mark.parametrize("seed", range(3))
def test_time_outs_lose_nothing(session: selene.Session, until: Until, run: Run, seed: int) -> None:
    """Each message is sent while somebody waits whose time may end just then."""
    source, sink = pair_of(session.stream(delivery="reliable"), until)
    dice = random.Random(seed)

    async def send_to_who_waits(outbox: aio.Source, inbox: aio.Sink) -> None:
        for number in range(300):
            while not inbox._waiters:
                await asyncio.sleep(0)
            await outbox.send(b"%d" % number)

    async def main() -> None:
        inbox, time_outs = aio.Sink(sink), 0
        found: list[int] = []
        sending = asyncio.create_task(send_to_who_waits(aio.Source(source), inbox))
        while len(found) < 300:
            try:
                with await inbox.get(dice.choice((0, dice.random() / 10000))) as message:
                    found.append(int(bytes(message)))
            except selene.SeleneTimeoutError:
                time_outs += 1
        assert found == list(range(300))
        assert time_outs > 0
        await sending

    run(main())


def test_a_cancelled_sender_has_sent_nothing(session: selene.Session, until: Until, run: Run) -> None:
    source, sink = pair_of(session.stream(delivery="reliable"), until)

    async def main() -> None:
        inbox, outbox = aio.Sink(sink), aio.Source(source)
        await flood(outbox, 1024)
        buffer = await outbox.get(4)
        for waiting in (outbox.send(b"never"), outbox.emit(buffer)):
            task = asyncio.create_task(waiting)
            before = source.stats().again
            while source.stats().again < before + 3:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        buffer.cancel()
        assert await numbers(inbox, 1024) == list(range(1024))
        with pytest.raises(selene.SeleneTimeoutError):
            await inbox.get(0.01)

    run(main())


# ---- Several sinks, sessions and loops ----


def test_one_task_for_each_of_several_sinks(session: selene.Session, until: Until, run: Run) -> None:
    stream = session.stream(delivery="reliable")
    pairs = [pair_of(stream, until, channel) for channel in range(5)]

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for source, _ in pairs:
                group.create_task(flood(aio.Source(source), 1000))
            receiving = [group.create_task(numbers(aio.Sink(sink), 1000)) for _, sink in pairs]
        assert [task.result() for task in receiving] == [list(range(1000))] * 5

    run(main())


@pytest.mark.parametrize("relayed", [False, True])
def test_from_another_host(peers: Any, until: Until, run: Run, relayed: bool) -> None:
    """Direct sessions are woken by their socket, relayed ones by their doorbell, and several sinks share either."""
    left, right = peers
    with selene.Session(left.path, relayed=relayed) as here, selene.Session(right.path, relayed=relayed) as there:
        pairs = [remote_pair(here, there, until, channel) for channel in range(3)]

        async def main() -> None:
            inboxes = [aio.Sink(sink) for _, sink in pairs]
            async with asyncio.TaskGroup() as group:
                for source, _ in pairs:
                    group.create_task(flood(aio.Source(source), 3000))
                receiving = [group.create_task(numbers(inbox, 3000)) for inbox in inboxes]
            assert [task.result() for task in receiving] == [list(range(3000))] * 3
            for inbox in inboxes:
                with pytest.raises(selene.SeleneTimeoutError):
                    await inbox.get(0.05)
            # Nothing is left that would wake a loop again and again.
            assert select.select([inbox._fd for inbox in inboxes], [], [], 0)[0] == []

        run(main())


@pytest.mark.parametrize("relayed", [False, True])
def test_a_loop_in_each_of_two_threads(peers: Any, until: Until, run: Run, relayed: bool) -> None:
    """They share the session's socket and doorbell: whoever takes a message of the other has to wake it."""
    left, right = peers
    with selene.Session(left.path, relayed=relayed) as here, selene.Session(right.path, relayed=relayed) as there:
        pairs = [remote_pair(here, there, until, channel) for channel in range(2)]
        found: list[list[int]] = []

        async def receive(sink: selene.Sink) -> None:
            async with aio.Sink(sink) as inbox:
                found.append(await numbers(inbox, 3000))

        async def send() -> None:
            async with asyncio.TaskGroup() as group:
                for source, _ in pairs:
                    group.create_task(flood(aio.Source(source), 3000))

        threads = [threading.Thread(target=run, args=(receive(sink),)) for _, sink in pairs]
        for thread in threads:
            thread.start()
        run(send())
        for thread in threads:
            thread.join()
        assert found == [list(range(3000))] * 2


def test_a_sink_belongs_to_one_loop(session: selene.Session, until: Until) -> None:
    _, sink = pair_of(session.stream(), until)

    async def main() -> aio.Sink:
        inbox = aio.Sink(sink)
        with pytest.raises(selene.SeleneError) as caught:
            aio.Sink(sink)
        assert caught.value.errno == errno.EBUSY
        return inbox

    inbox = asyncio.run(main())
    with pytest.raises(RuntimeError, match="another event loop"):
        asyncio.run(_get(inbox))
    del inbox
    gc.collect()
    asyncio.run(_of(sink))  # the other one was given up


async def _get(inbox: aio.Sink) -> None:
    await inbox.get(0)


async def _of(sink: selene.Sink) -> None:
    aio.Sink(sink)


# ---- Restarts and closing ----


@pytest.mark.parametrize("who", ["selened-dp", "selened"])
@pytest.mark.parametrize("relayed", [False, True])
def test_it_goes_on_after_a_daemon_was_killed(peers: Any, until: Until, run: Run, who: str, relayed: bool) -> None:
    left, right = peers
    with selene.Session(left.path, relayed=relayed) as here, selene.Session(right.path, relayed=relayed) as there:
        source, sink = remote_pair(here, there, until)

        async def send_for_ever(outbox: aio.Source) -> None:
            number = 0
            while True:
                await outbox.send(b"%d" % number)
                number += 1

        def kill() -> None:
            if who == "selened":
                right.stop(signal.SIGKILL)
                right.start()
                return
            before = right.datapath_pid()
            os.kill(before, signal.SIGKILL)
            until(lambda: right.datapath_pid() != before, "another selened-dp")

        async def main() -> None:
            inbox, last, goal = aio.Sink(sink), -1, 100
            sending = asyncio.create_task(send_for_ever(aio.Source(source)))
            for kills_left in (2, 1, 0):
                while last < goal:
                    (number,) = await numbers(inbox, 1)
                    assert number > last
                    last = number
                if kills_left:
                    await asyncio.to_thread(kill)
                    goal = source.stats().messages + 100
            sending.cancel()

        run(main())


@pytest.mark.parametrize("what", ["sink", "session"])
def test_closing_elsewhere_ends_the_wait(shared_daemon: Any, run: Run, what: str) -> None:
    with selene.Session(shared_daemon.path) as session:
        sink = session.stream().sink(channel=1)

        async def main() -> None:
            inbox = aio.Sink(sink)
            waiting = [asyncio.create_task(inbox.get()), asyncio.create_task(_rest(inbox))]
            while len(inbox._waiters) < 2:
                await asyncio.sleep(0)
            threading.Thread(target=(sink if what == "sink" else session).close).start()
            with pytest.raises(selene.SeleneError) as caught:
                await waiting[0]
            assert caught.value.errno == errno.EBADF
            assert await waiting[1] == 0
            with pytest.raises(selene.SeleneError):
                await inbox.get()
            await inbox.close()

        run(main())


async def _rest(inbox: aio.Sink) -> int:
    return len([message async for message in inbox])


def test_iterating_releases_and_leaves_no_descriptor(session: selene.Session, until: Until, run: Run) -> None:
    source, sink = pair_of(session.stream(), until)
    source.send_many([b"1", b"2", b"3"])

    async def main() -> None:
        async with aio.Sink(sink) as inbox:
            seen = []
            async for message in inbox:
                seen.append(message)
                if len(seen) == 3:
                    break
            with pytest.raises(ValueError, match="released"):
                bytes(seen[1])
            assert bytes(seen[2]) == b"3"
            fd = inbox._fd
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)

    run(main())


def test_a_sink_with_a_callback_is_refused(session: selene.Session) -> None:
    sink = session.stream().sink(channel=1, callback=lambda _: None)

    async def main() -> None:
        with pytest.raises(selene.SeleneError) as caught:
            aio.Sink(sink)
        assert caught.value.errno == errno.EBUSY

    asyncio.run(main())
