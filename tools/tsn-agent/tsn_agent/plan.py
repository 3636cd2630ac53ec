# SPDX-License-Identifier: Apache-2.0
"""What has to change so that the kernel has what is wanted: a list of changes, in order, each of which can be undone.

Pure: resources in, changes out. What is owned is what an agent has set before, with what was there before it did; what
it finds as wanted already stays somebody else's, and is never taken away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from libqos.codec.rtnl.refusals import RefusedError, check_taprio
from tsn_agent.kernel import FOREIGN, keeps_running, same

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tsn_agent.kernel import Interface
    from tsn_agent.wanted import Key, Resources, Value

# What comes later stands on what comes earlier.
_RANK: Final = {"vlan": 0, "link": 1, "address": 2, "neighbour": 3, "route": 4, "taprio": 5, "etf": 6}


@dataclass(frozen=True, slots=True)
class Change:
    """One resource from one value to another; None: it is not there."""

    key: Key
    old: Value | None
    new: Value | None

    def record(self) -> dict[str, Any]:
        """For a person or a program to read."""
        kind, *names = self.key
        action = "add" if self.old is None else "delete" if self.new is None else "change"
        return {"kind": "change", "action": action, "resource": kind, "name": " ".join(map(str, names)),
                "from": self.old, "to": self.new}  # fmt: skip


def rank(key: Key) -> tuple[int, Key]:
    return _RANK[str(key[0])], tuple(map(str, key))


def plan(
    found: Resources, wanted: Resources, owned: Mapping[Key, Value | None], interfaces: Mapping[str, Interface]
) -> list[Change]:
    """The changes from `found` to `wanted`. Raises RefusedError with every reason why it cannot be."""
    _check(found, wanted, owned, interfaces)
    back = {key: before for key, before in owned.items() if key not in wanted and key in found}
    gone = {key for key, before in back.items() if before is None and key[0] != "link"}
    gone |= {key for key, value in wanted.items() if key in found and not _can_become(key, found[key], value)}
    gone |= {key for key in found.keys() & (owned.keys() | wanted.keys()) if _stands_on(key, found, gone)}
    changes = [Change(key, found[key], None) for key in sorted(gone, key=rank, reverse=True)]
    left = {key: value for key, value in found.items() if key not in gone}
    goal = {**{key: before for key, before in back.items() if before is not None}, **wanted}
    changes += [
        Change(key, left.get(key), goal[key])
        for key in sorted(goal, key=rank)
        if not same(key, left.get(key), goal[key])
    ]
    return changes


def _can_become(key: Key, found: Value, wanted: Value) -> bool:
    """Whether it can be changed where it is; else it is taken away and made anew."""
    if key[0] == "taprio":
        return keeps_running(found, wanted)
    return key[0] != "vlan" or same(key, found, wanted)


def _stands_on(key: Key, found: Resources, gone: set[Key]) -> bool:
    """Whether a resource goes with those that go."""
    kind, name = key[0], key[1]
    if kind == "route":
        name = found[key]["interface"]
    return (("vlan", name) in gone and kind != "vlan") or (kind == "etf" and ("taprio", name) in gone)


def _check(
    found: Resources, wanted: Resources, owned: Mapping[Key, Value | None], interfaces: Mapping[str, Interface]
) -> None:
    problems = []
    vlans = {key[1] for key in wanted if key[0] == "vlan"}
    for key, value in wanted.items():
        named = value.get("interface") if key[0] in ("route", "vlan") else key[1]
        if named is not None and named not in interfaces and named not in vlans:
            there = ", ".join(sorted(interfaces))
            problems.append(f"{' '.join(map(str, key))}: there is no interface {named}; found {there}")
            continue
        others = key in found and key not in owned and not same(key, found[key], value)
        if key[0] == "vlan" and (others or (key not in found and key[1] in interfaces)):
            problems.append(f"{key[1]}: there is another interface of that name; give the VLAN another name")
        if key[0] == "taprio":
            if others:
                there = found[key].get(FOREIGN, "taprio")
                problems.append(
                    f"{key[1]}: has the queueing discipline {there} of somebody else; if it is not needed: "
                    f"tc qdisc del dev {key[1]} root"
                )
            problems += _check_schedule(str(key[1]), value, interfaces.get(str(key[1])))
    if problems:
        raise RefusedError("\n".join(problems))


def _check_schedule(name: str, value: Value, interface: Interface | None) -> list[str]:
    try:
        check_taprio(value, tx_queues=interface.tx_queues if interface else None)
    except RefusedError as error:
        return [f"{name}: {error}"]
    return []
