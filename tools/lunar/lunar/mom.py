# SPDX-License-Identifier: Apache-2.0
"""Publish and subscribe by topic name (thesis 6.2.1), on the public client of SELENE and nothing else.

A topic is a named channel. Sources are opened by the first publication on their topic and kept. The name is compared,
not its hash alone, so two topics never share a channel.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import selene

from libqos.policy import Delivery, QosClass, parse

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from selene.stream import Wait

MAX_TOPIC: Final = 255  # bytes
_RELIABLE: Final = (Delivery.RELIABLE, Delivery.AT_LEAST_ONCE, Delivery.EXACTLY_ONCE)
_LOOK_S: Final = 0.01  # between two looks whether somebody has subscribed


class Lunar:
    """A connection to the local selened. As a context manager it is closed at the end of the block.

    `qos` is a class of `libqos.policy`, or its text; what of it SELENE cannot give is in `remarks`. `stream`:
    publishers and subscribers meet within one id. `wait`: how a waiting call waits (auto, sleep, spin). `socket`,
    `relayed`, `program`: as `selene.Session`. Raises SeleneError when there is no daemon or it refuses the quality.
    May be used from several threads."""

    def __init__(
        self,
        *,
        qos: QosClass | str = "slow",
        stream: int = 0,
        wait: Wait = "auto",
        socket: str | os.PathLike[str] | None = None,
        relayed: bool = False,
        program: str | None = None,
    ) -> None:
        qos = parse(qos) if isinstance(qos, str) else qos
        self.remarks = _remarks(qos)
        self._lock = threading.Lock()
        self._publishers: dict[str, selene.Source] = {}
        self._session = selene.Session(socket, relayed, program)
        try:
            self._stream = self._session.stream(wait=wait, **_options(qos, stream))
        except BaseException:
            self._session.close()
            raise

    def publish(
        self, topic: str, message: bytes | bytearray | memoryview | Callable[[memoryview], int], size: int | None = None
    ) -> int | None:
        """Publish a copy of `message`; or, without a copy, what `message` writes when it is called with the borrowed
        buffer of `size` bytes: it returns how many it used, or a negative number to publish nothing.

        Returns the token for `publisher(topic).outcome`, None when nothing was published. Raises SeleneError (topic,
        size), SeleneAgainError when delivery is best effort and subscribers hold every buffer."""
        source = self.publisher(topic)
        if not callable(message):
            return source.send(message)
        if size is None:
            raise TypeError("publish: a callable needs the size of the buffer to fill")
        with source.get(size) as buffer:
            used = message(buffer.data)
            if used < 0:
                buffer.cancel()
                return None
            buffer.size = used
            return buffer.emit()

    def publish_many(self, topic: str, messages: Sequence[bytes]) -> int:
        """Publish copies of several messages; returns how many, from the first. Raises as `publish` when that is 0."""
        return self.publisher(topic).send_many(messages)

    def publisher(self, topic: str) -> selene.Source:
        """The source of a topic, opened when it is first asked for."""
        with self._lock:
            source = self._publishers.get(topic)
            if source is None or source.closed:
                source = self._publishers[topic] = self._stream.source(name=topic)
            return source

    def subscribe(
        self, topic: str, callback: Callable[[str, memoryview, int, int], object] | None = None
    ) -> selene.Sink:
        """The messages of a topic from now on. `close` on what is returned ends the subscription.

        With a callback each is handed to it, in a thread of the library: topic, data (read-only, valid until it
        returns), Unix time of publication in ns, number within its publisher. Without, consume from what is returned,
        or iterate over it."""
        if callback is None:
            return self._stream.sink(name=topic)

        def deliver(message: selene.Message) -> None:
            callback(topic, message.data, message.sent_ns, message.sequence)

        return self._stream.sink(name=topic, callback=deliver)

    def subscribers(self, topic: str) -> int:
        """How many subscribers the publisher of this topic knows now, here and on other hosts; relayed through the
        datapath process all of them count as one."""
        source = self.publisher(topic)
        with contextlib.suppress(selene.SeleneAgainError):  # subscribers hold every buffer
            source.get(1).cancel()  # a source hears of new sinks when it is used
        stats = source.stats()
        return stats.local_sinks + stats.remote_sinks

    def wait_for_subscriber(self, topic: str, timeout: float | None = None) -> bool:
        """Wait until somebody has subscribed to a topic, at most `timeout` seconds; whether somebody has."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.subscribers(topic):
            if deadline is not None and time.monotonic() >= deadline:
                return False
            time.sleep(_LOOK_S)
        return True

    def flush(self) -> None:
        """Send what is batched, on all topics, now. Raises SeleneError."""
        with self._lock:
            sources = list(self._publishers.values())
        for source in sources:
            source.flush()

    def close(self) -> None:
        """End all subscriptions, send what is still to be sent (with reliable delivery, wait for the subscribers, up to
        a second), and disconnect. Closing twice does nothing."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _options(qos: QosClass, stream: int) -> dict[str, Any]:
    """The stream of SELENE that a QoS class asks for."""
    options: dict[str, Any] = {
        "stream": stream,
        "acceleration": qos.acceleration.value,
        "resources": qos.resources.value,
        "delivery": "reliable" if qos.delivery in _RELIABLE else "best-effort",
        "traffic_class": qos.traffic_class,
    }
    if qos.time is not None:
        options |= {"time_sensitive": True, "period_ns": qos.time.period_ns, "offset_ns": qos.time.offset_ns}
    return options


def _remarks(qos: QosClass) -> tuple[str, ...]:
    """What of a class cannot be given, one line each."""
    if qos.delivery in (Delivery.AT_LEAST_ONCE, Delivery.EXACTLY_ONCE):
        return (
            *qos.warnings,
            f"QoS {qos.name}: {qos.delivery} is a semantic of brokers; here it is reliable: nothing is dropped while "
            "both sides run, and nothing is sent again after one of them was not there",
        )
    return qos.warnings
