# SPDX-License-Identifier: Apache-2.0
"""Client of SELENE: quality of service for one process' messages (docs/selene-api.md).

>>> import selene
>>> with selene.Session() as session, session.stream() as stream:  # doctest: +SKIP
...     stream.source(channel=7).send(b"hello")

The names below are loaded when they are first used: the command `selene` is this package too, and must answer `--help`
without them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from selene.buffer import Buffer, Burst, Message
    from selene.errors import SeleneAgainError, SeleneError, SeleneTimeoutError
    from selene.session import MAX_MESSAGE, Session, channel_of
    from selene.sink import Sink, SinkStats
    from selene.source import Source, SourceStats
    from selene.stream import Stream

__all__ = [
    "MAX_MESSAGE",
    "Buffer",
    "Burst",
    "Message",
    "SeleneAgainError",
    "SeleneError",
    "SeleneTimeoutError",
    "Session",
    "Sink",
    "SinkStats",
    "Source",
    "SourceStats",
    "Stream",
    "channel_of",
]

_MODULES: Final = {
    "buffer": ("Buffer", "Burst", "Message"),
    "errors": ("SeleneAgainError", "SeleneError", "SeleneTimeoutError"),
    "session": ("MAX_MESSAGE", "Session", "channel_of"),
    "sink": ("Sink", "SinkStats"),
    "source": ("Source", "SourceStats"),
    "stream": ("Stream",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            import importlib

            value = getattr(importlib.import_module(f"selene.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'selene' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
