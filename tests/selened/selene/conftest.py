# SPDX-License-Identifier: Apache-2.0
"""Sessions of the Python client, all on one daemon per file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import selene

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Pair = tuple[selene.Source, selene.Sink]


@pytest.fixture
def session(shared_daemon: Any) -> Iterator[selene.Session]:
    with selene.Session(shared_daemon.path, program="pytest") as made:
        yield made


@pytest.fixture
def relayed(shared_daemon: Any) -> Iterator[selene.Session]:
    with selene.Session(shared_daemon.path, relayed=True) as made:
        yield made


@pytest.fixture
def stream(session: selene.Session) -> selene.Stream:
    return session.stream(stream=1)


@pytest.fixture
def connect(until: Any) -> Callable[..., Pair]:
    """`connect(stream, callback=...)`: a source, and a sink that hears it."""

    def make(stream: selene.Stream, **sink: Any) -> Pair:
        made = stream.source(channel=7), stream.sink(channel=7, **sink)
        until(lambda: made[0].stats().local_sinks == 1, "the sink at the source")
        return made

    return make


@pytest.fixture
def pair(stream: selene.Stream, connect: Callable[..., Pair]) -> Pair:
    """A source, and a sink that hears it."""
    return connect(stream)
