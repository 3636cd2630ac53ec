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
from tsn_agent.kernel import Kernel, differences, same
from tsn_agent.plan import Change, plan, rank

if TYPE_CHECKING:
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
            if not dry_run:
                self._make(changes)
                owned = _owned_after(owned, found, goal, changes)
                self.journal.done(owned, wanted=document.values, source=document.name)
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

    def wanted(self) -> wanted.Wanted:
        """What was applied last."""
        return wanted.of_document(tomlfile.Document("", self.journal.fact("wanted") or {}))

    def show(self) -> list[dict[str, Any]]:
        """Wanted against actual: one record for each resource."""
        goal = self.wanted().resources()
        found, owned = self.kernel.resources(), self.journal.owned()
        records = []
        for key in sorted(goal, key=rank):
            there, value = found.get(key), goal[key]
            state = "missing" if there is None else "ok" if same(key, there, value) else "differs"
            kind, *names = key
            records.append({
                "kind": "resource", "resource": kind, "name": " ".join(map(str, names)), "state": state,
                "owned": key in owned, "differs": differences(there, value) if there and state == "differs" else [],
                "wanted": value, "actual": there,
            })  # fmt: skip
        return records

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


def _owned_after(
    owned: dict[Key, Value | None], found: Resources, goal: Resources, changes: list[Change]
) -> dict[Key, Value | None]:
    """What the agent has set is its own as long as it is wanted; what was there before it came, from the first time."""
    result = {key: before for key, before in owned.items() if key in goal}
    for change in changes:
        if change.key in goal:
            result.setdefault(change.key, found.get(change.key))
    return result
