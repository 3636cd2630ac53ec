# SPDX-License-Identifier: Apache-2.0
"""Applies what is wanted as one transaction: all of it, or none.

    with Engine(journal_path) as engine:
        engine.apply(document)        # the changes that were made

Each method begins with what a killed predecessor left: it takes its changes back.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Self

from libqos import tomlfile
from libqos.errors import QosError
from tsn_agent import wanted
from tsn_agent.journal import Journal
from tsn_agent.kernel import Kernel, differences
from tsn_agent.plan import Change, plan, rank

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tsn_agent.wanted import Key, Resources, Value

log = logging.getLogger("tsn-agent")


class UndoError(QosError):
    """What was refused in the middle could not be taken back whole."""


class Engine:
    """Kernel and journal together; a context manager. Not for several threads."""

    def __init__(self, path: Path) -> None:
        self.journal = Journal(path)
        self.kernel = Kernel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kernel.__exit__()
        self.journal.__exit__()

    def apply(self, document: tomlfile.Document, *, dry_run: bool = False) -> list[Change]:
        """Make the kernel have what the document wants, and take away what an earlier one wanted and it does not.

        Gives the changes. Raises InputError or RefusedError, with nothing changed, and UndoError with what is left."""
        goal = wanted.of_document(document).resources()
        with self.journal.alone():
            self._recover()
            owned = self.journal.owned()
            found = self.kernel.resources()
            changes = plan(found, goal, owned, self.kernel.interfaces())
            changed = {change.key for change in changes}
            changes += [Change(key, found[key], goal[key]) for key in self._standing(goal, owned) if key not in changed]
            if not dry_run:
                self._make(changes)
                owned = _owned_after(owned, found, goal, changes)
                self.journal.done(owned, wanted=document.values, source=document.name, losses=self._losses(owned))
            return changes

    def clear(self, *, dry_run: bool = False) -> list[Change]:
        """Take away all that was applied, and forget it."""
        return self.apply(tomlfile.Document(), dry_run=dry_run)

    def recover(self) -> list[Change]:
        """Take back what a killed predecessor left half done."""
        with self.journal.alone():
            return self._recover()

    def again(self) -> list[Change]:
        """Apply what was wanted last once more: after a reboot, or when somebody has changed it."""
        return self.apply(tomlfile.Document(self.journal.fact("source") or "", self.journal.fact("wanted") or {}))

    def link_is_back(self, interface: str) -> None:
        """Let the gates of an interface move again. Raises RefusedError."""
        key = ("taprio", interface)
        with self.journal.alone():
            owned, goal = self.journal.owned(), self.wanted().resources()
            if key in owned and _stops(goal[key]):
                losses = self._losses(owned)
                self.kernel.set(key, goal[key], goal[key])
                self.journal.remember("losses", losses)

    def ways(self) -> dict[str, str]:
        """By which interface streams go that do not take their first way."""
        return dict(self.journal.fact("ways") or {})

    def remember_ways(self, ways: dict[str, str]) -> None:
        """Keep them for the next start. Raises JournalError."""
        with self.journal.alone():
            self.journal.remember("ways", ways)

    def wanted(self) -> wanted.Wanted:
        """What was applied last."""
        return wanted.of_document(tomlfile.Document("", self.journal.fact("wanted") or {}))

    def show(self) -> list[dict[str, Any]]:
        """Wanted against actual: one record for each resource."""
        goal = self.wanted().resources()
        found, owned = self.kernel.resources(), self.journal.owned()
        standing = self._standing(goal, owned)
        records = []
        for key in sorted(goal, key=rank):
            there, value = found.get(key), goal[key]
            differs = [*differences(there, value), *(["running"] if key in standing else [])] if there else []
            state = "missing" if there is None else "differs" if differs else "ok"
            kind, *names = key
            records.append({
                "kind": "resource", "resource": kind, "name": " ".join(map(str, names)), "state": state,
                "owned": key in owned, "differs": differs,
                "wanted": value, "actual": there,
            })  # fmt: skip
        return records

    def _losses(self, owned: Iterable[Key]) -> dict[str, int]:
        """How often each interface with a schedule of ours has lost its carrier."""
        names = {str(key[1]) for key in owned if key[0] == "taprio"}
        links = self.kernel.interfaces() if names else {}
        return {name: links[name].carrier_losses for name in names & links.keys()}

    def _standing(self, goal: Resources, owned: Iterable[Key]) -> list[Key]:
        """The schedules whose link was away since they were set, so that their gates stand still."""
        before = self.journal.fact("losses") or {}
        now = self._losses(owned)
        return [key for key in goal if key in owned and key[1] in now and _stops(goal[key])
                and before.get(key[1]) != now[str(key[1])]]  # fmt: skip

    def _make(self, changes: list[Change]) -> None:
        self.journal.begin(changes)
        try:
            for change in changes:
                self.kernel.set(change.key, change.old, change.new)
        except BaseException as error:
            if left := self._take_back(changes):
                raise UndoError(f"{error}\nand taking back what was done failed: {'; '.join(left)}") from error
            raise

    def _take_back(self, changes: list[Change]) -> list[str]:
        """Make it as it was before these changes, however many of them were made; gives what could not be.

        What was taken away to be made anew is in the list twice: the first time tells how it was."""
        before: dict[Key, Value | None] = {}
        for change in changes:
            before.setdefault(change.key, change.old)
        there = {key: value for key, value in before.items() if value is not None}
        left = []
        try:
            back = plan(self.kernel.resources(), there, dict.fromkeys(before), self.kernel.interfaces())
        except QosError as error:  # an interface has gone meanwhile
            back, left = [], [str(error)]
        for change in back:
            try:
                self.kernel.set(change.key, change.old, change.new)
            except QosError as error:
                left.append(str(error))
        self.journal.undone()
        return left

    def _recover(self) -> list[Change]:
        pending = self.journal.pending()
        if pending:
            left = self._take_back(pending)
            log.warning(
                "a transaction of %d changes had been interrupted and was taken back%s",
                len(pending), f", but for: {'; '.join(left)}" if left else "",
            )  # fmt: skip
        return pending


def _stops(value: Value) -> bool:
    """Whether gates stay as they are for good once the link was away: Linux stops lists that it runs itself then, and
    starts them no more (taprio_reset)."""
    return "sched_entries" in value and value["flags"] == 0


def _owned_after(
    owned: dict[Key, Value | None], found: Resources, goal: Resources, changes: list[Change]
) -> dict[Key, Value | None]:
    """What the agent has set is its own as long as it is wanted; what was there before it came, from the first time."""
    result = {key: before for key, before in owned.items() if key in goal}
    for change in changes:
        if change.key in goal:
            result.setdefault(change.key, found.get(change.key))
    return result
