# SPDX-License-Identifier: Apache-2.0
"""Which network technology a stream gets, and why (thesis 5.3.2).

The decision is a value that lists every candidate, why it was refused, and what was taken: the daemon logs it, `selene
explain` prints it, tests assert it. Nothing here touches the system: what can be used comes in as `Capabilities`.

Default strategy: no acceleration → kernel UDP. Else in order, with any resource use RDMA, DPDK, XDP, UDP; with low
RDMA, XDP, UDP (DPDK polls a core). The first usable one wins; UDP in place of something faster is a warning, since the
policies are wishes and not conditions. Another strategy may give another order (`selened.strategies`).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from libqos.policy import Acceleration, Delivery, Resources
from selened.wire import RefusedError, lib

if TYPE_CHECKING:
    from collections.abc import Mapping


class Technology(IntEnum):
    """Network technologies by their number in the protocol."""

    UDP = lib.SELENE_UDP
    XDP = lib.SELENE_XDP
    DPDK = lib.SELENE_DPDK
    RDMA = lib.SELENE_RDMA

    @property
    def label(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPolicy:
    """The three policies of a stream, and its delivery semantic."""

    acceleration: Acceleration = Acceleration.SLOW
    resources: Resources = Resources.LOW
    delivery: Delivery = Delivery.BEST_EFFORT
    time_sensitive: int = 0
    traffic_class: int = 0
    period_ns: int = 0
    offset_ns: int = 0


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What this host can use: an empty reason for a usable technology, else why not."""

    refusals: Mapping[Technology, str]

    def reason(self, technology: Technology) -> str:
        """Why it cannot be used; empty when it can."""
        return self.refusals.get(technology, NOT_BUILT)

    @property
    def usable(self) -> list[str]:
        return [item.label for item in Technology if not self.reason(item)]


# A mark on the socket would be that of all its streams: those of a session, or relayed those of every session.
NOT_MARKED: Final = (
    "not applied: streams of several classes share a socket, so packets carry no DSCP and no SO_PRIORITY"
)
NOT_BUILT: Final = "not built into this version"
BUILT_IN: Final = Capabilities(MappingProxyType({Technology.UDP: ""}))


@dataclass(frozen=True, slots=True)
class Order:
    """Technologies in the order of preference, which strategy gave them, and why it was that one."""

    technologies: tuple[Technology, ...]
    strategy: str = "default"
    reason: str = "no other strategy is configured"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One technology that was considered."""

    technology: Technology
    usable: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What was taken for a policy. `warning` is empty unless something faster was wanted."""

    policy: StreamPolicy
    order: Order
    candidates: tuple[Candidate, ...]
    chosen: Technology
    warning: str

    @property
    def reason(self) -> str:
        """Why the chosen one was chosen, in a sentence."""
        return next(item.reason for item in self.candidates if item.technology == self.chosen)

    def record(self) -> dict[str, object]:
        """As JSON, for logs and `selene explain`."""
        return {
            "acceleration": str(self.policy.acceleration),
            "resources": str(self.policy.resources),
            "delivery": str(self.policy.delivery),
            "traffic_class": self.policy.traffic_class,
            "marking": NOT_MARKED,
            "technology": self.chosen.label,
            "reason": self.reason,
            "warning": self.warning or None,
            "strategy": self.order.strategy,
            "strategy_reason": self.order.reason,
            "candidates": [
                {"technology": item.technology.label, "usable": item.usable, "reason": item.reason}
                for item in self.candidates
            ],
        }


def default_order(policy: StreamPolicy) -> tuple[Technology, ...]:
    """The order of thesis 5.3.2."""
    if policy.acceleration is Acceleration.SLOW:
        return (Technology.UDP,)
    if policy.resources is Resources.ANY:
        return (Technology.RDMA, Technology.DPDK, Technology.XDP, Technology.UDP)
    return (Technology.RDMA, Technology.XDP, Technology.UDP)


def decide(policy: StreamPolicy, capabilities: Capabilities = BUILT_IN, order: Order | None = None) -> Decision:
    """Map a policy to a technology. Raises RefusedError (EOPNOTSUPP): time-sensitive, or nothing is usable."""
    if policy.time_sensitive:
        raise RefusedError(
            errno.EOPNOTSUPP,
            "time-sensitive streams need the gate engine, which this version does not have: open the stream with "
            "time_sensitive = 0",
        )
    order = order or Order(default_order(policy))
    candidates: list[Candidate] = []
    chosen: Technology | None = None
    for technology in order.technologies:
        refusal = capabilities.reason(technology)
        if refusal:
            candidates.append(Candidate(technology, False, refusal))
        elif chosen is None:
            chosen = technology
            candidates.append(Candidate(technology, True, _why(policy, technology, candidates)))
        else:
            candidates.append(Candidate(technology, True, f"{chosen.label} comes first"))
    if chosen is None:
        refused = "; ".join(f"{item.technology.label}: {item.reason}" for item in candidates) or "no candidate"
        raise RefusedError(
            errno.EOPNOTSUPP, f"no network technology can be used ({refused}); strategy: {order.strategy}"
        )
    return Decision(policy, order, tuple(candidates), chosen, _warning(policy, chosen, candidates))


def _why(policy: StreamPolicy, technology: Technology, before: list[Candidate]) -> str:
    if policy.acceleration is Acceleration.SLOW and technology is Technology.UDP and not before:
        return "no acceleration was asked for"
    which = "first usable one of those" if before else "first choice"
    return f"the {which} for {policy.acceleration} with {policy.resources} resource use"


def _warning(policy: StreamPolicy, chosen: Technology, candidates: list[Candidate]) -> str:
    if chosen is not Technology.UDP or policy.acceleration is Acceleration.SLOW:
        return ""
    causes = "; ".join(f"{item.technology.label}: {item.reason}" for item in candidates if not item.usable)
    return (
        f"acceleration fast was asked for and the stream uses udp ({causes or 'no faster technology was considered'}); "
        "use a version built with one of them, or ask for slow"
    )
