# SPDX-License-Identifier: Apache-2.0
"""Which order of technologies holds for a stream: that of an entry point, of the configuration, or the default.

An entry point in the group `selene.mapping` is a function of somebody else::

    def strategy(policy: StreamPolicy, usable: tuple[str, ...]) -> Iterable[str] | None

It gives names of technologies, best first, or None to leave it to [mapping]. It is called in the daemon whenever a
stream is opened, so it must not wait. What must hold: whatever it does, short of never returning, the stream is opened:
a failure is a warning with its cause, and [mapping] decides.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

from libqos.errors import QosError
from libqos.policy import Acceleration, Resources
from selened.mapping import Order, StreamPolicy, Technology, default_order

if TYPE_CHECKING:
    from collections.abc import Callable

    from selened.mapping import Capabilities
    from selened.notices import Notices
    from selened.settings import Mapping

GROUP: Final = "selene.mapping"
_BY_LABEL: Final = {item.label: item for item in Technology}


class StrategyError(QosError):
    """A strategy that gives what is no order of technologies."""


def installed() -> list[str]:
    """Names of the strategies that can be configured."""
    from importlib import metadata  # takes longer than the rest of the start, and is rarely needed

    return sorted({entry.name for entry in metadata.entry_points(group=GROUP)})


class Strategies:
    """The strategies of one configuration, loaded."""

    def __init__(self, mapping: Mapping, notices: Notices) -> None:
        self._mapping = mapping
        self._notices = notices
        self._function: Callable[[StreamPolicy, tuple[str, ...]], object] | None = None
        self._name = ""
        self._failure = ""
        if mapping.strategy:
            self._load(mapping.strategy)

    def _load(self, name: str) -> None:
        from importlib import metadata

        self._name = name
        try:
            entry = next(iter(metadata.entry_points(group=GROUP, name=name)))
            function = entry.load()
            if not callable(function):
                raise StrategyError(f"found {type(function).__name__} at {entry.value}, accepted a function")
            self._function = function
            self._name = f"{name} ({entry.value})"
        except (Exception, SystemExit) as failure:  # code of somebody else: anything may come
            self._failure = self._warn("cannot be loaded", failure)

    def _warn(self, what: str, failure: BaseException) -> str:
        text = f"strategy {self._name} {what}: {type(failure).__name__}: {str(failure)[:200]}"
        self._notices.warn("mapping_failures", f"{text}; [mapping] decides without it")
        return text

    def order(self, policy: StreamPolicy, capabilities: Capabilities) -> Order:
        """The order for a stream, and who gave it."""
        reason = self._failure
        if self._function is not None:
            try:
                given = self._function(policy, tuple(capabilities.usable))
                if given is not None:
                    return Order(_checked(given), self._name, "it is the strategy of [mapping]")
                reason = f"strategy {self._name} left it"
            except (Exception, SystemExit) as failure:
                reason = self._warn("failed", failure)
        key = _key(policy)
        order = tuple(_BY_LABEL[label] for label in getattr(self._mapping, key))
        if order == default_order(policy):
            return Order(order, reason=reason) if reason else Order(order)
        return Order(order, f"mapping.{key}", reason or "it is configured")


def _key(policy: StreamPolicy) -> str:
    """The key of [mapping] for a policy."""
    if policy.acceleration is Acceleration.SLOW:
        return "slow"
    return "fast_any" if policy.resources is Resources.ANY else "fast_low"


def _checked(given: Any) -> tuple[Technology, ...]:
    """What a strategy gave, as technologies; an iterator is read no further than needed. Raises StrategyError."""
    labels = [given] if isinstance(given, str) else list(itertools.islice(given, len(_BY_LABEL) + 1))
    known = [_BY_LABEL[label] for label in labels if isinstance(label, str) and label in _BY_LABEL]
    if isinstance(given, str) or not labels or len(known) < len(labels) or len(set(known)) < len(known):
        raise StrategyError(f"found {str(labels)[:80]}, accepted a list of {', '.join(_BY_LABEL)}, each at most once")
    return tuple(known)
