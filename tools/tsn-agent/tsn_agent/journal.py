# SPDX-License-Identifier: Apache-2.0
"""What an agent must not forget, in SQLite: what it owns, what was wanted last, and the changes that are under way.

A change is written down, on the disk, before it is made; so whoever starts after a crash knows what may have been done.
Network configuration dies with the machine and belongs to a network namespace: what is remembered of another boot or
another namespace is forgotten, but for what is wanted.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from libqos.errors import QosError
from tsn_agent.plan import Change

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tsn_agent.wanted import Key, Value

_VERSION: Final = 1
_WAIT_S: Final = 20.0
_TABLES: Final = """
create table if not exists owned (key text primary key, before text not null) strict;
create table if not exists pending (
    number integer primary key, key text not null, old text not null, new text not null) strict;
create table if not exists facts (name text primary key, value text not null) strict;
"""


class JournalError(QosError):
    """The journal cannot be used."""


def default_path() -> Path:
    """In systemd's state folder, else root's, else the user's."""
    if folder := os.environ.get("STATE_DIRECTORY", "").split(":")[0]:
        return Path(folder) / "tsn-agent.db"
    if os.geteuid() == 0:
        return Path("/var/lib/qos/tsn-agent.db")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "qos/tsn-agent.db"


def _place() -> str:
    """Boot and network namespace: for these two alone does the configuration hold."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.stat('/proc/self/ns/net').st_ino}"


class Journal:
    """One file; a context manager. Whoever changes anything holds `alone()` meanwhile."""

    def __init__(self, path: Path) -> None:
        """Raises JournalError."""
        self.path = path
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise JournalError(
                f"{path}: {error.strerror}; run as root, or give --state in a folder of yours"
            ) from error
        try:
            self._base = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
            self._base.executescript("pragma journal_mode = wal; pragma synchronous = full;" + _TABLES)
            version = self._base.execute("pragma user_version").fetchone()[0]
            if version not in (0, _VERSION):
                raise JournalError(f"{path}: found version {version}, accepted {_VERSION}: made by a newer tsn-agent")
            self._base.execute(f"pragma user_version = {_VERSION}")
            self._forget_other_places()
        except sqlite3.Error as error:
            os.close(self._lock)
            raise JournalError(f"{path}: {error}; if it is damaged, remove it: the agent then owns nothing") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._base.close()
        os.close(self._lock)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the journal: two that change the same kernel would undo each other's work."""
        deadline = time.monotonic() + _WAIT_S
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise JournalError(
                        f"{self.path}: another tsn-agent is at work for {_WAIT_S:g} s; nothing was done"
                    ) from None
                time.sleep(0.01)
        try:
            yield
        except sqlite3.Error as error:
            raise JournalError(f"{self.path}: {error}") from error
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _forget_other_places(self) -> None:
        place = _place()
        if self.fact("place") != place:
            with self._transaction():
                self._base.execute("delete from owned")
                self._base.execute("delete from pending")
                self.remember("place", place)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._base.execute("begin immediate")
        try:
            yield
        except BaseException:
            self._base.execute("rollback")
            raise
        self._base.execute("commit")

    def fact(self, name: str) -> Any:
        """What is remembered by that name, or None."""
        row = self._base.execute("select value from facts where name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def remember(self, name: str, value: Any) -> None:
        """Keep a fact."""
        self._base.execute("insert or replace into facts values (?, ?)", (name, json.dumps(value)))

    def owned(self) -> dict[Key, Value | None]:
        """What the agent has set, and what was there before."""
        return {tuple(json.loads(key)): json.loads(before)
                for key, before in self._base.execute("select key, before from owned")}  # fmt: skip

    def pending(self) -> list[Change]:
        """Changes of a transaction that did not end, in their order."""
        rows = self._base.execute("select key, old, new from pending order by number")
        return [Change(tuple(json.loads(key)), json.loads(old), json.loads(new)) for key, old, new in rows]

    def begin(self, changes: Iterable[Change]) -> None:
        """Write the changes down before any of them is made."""
        with self._transaction():
            self._base.executemany(
                "insert into pending (key, old, new) values (?, ?, ?)",
                [tuple(json.dumps(part) for part in (change.key, change.old, change.new)) for change in changes],
            )

    def undone(self) -> None:
        """The changes have been taken back."""
        self._base.execute("delete from pending")

    def done(self, owned: Mapping[Key, Value | None], **facts: Any) -> None:
        """All changes are made: what is owned from now on."""
        with self._transaction():
            self._base.execute("delete from owned")
            rows = [(json.dumps(key), json.dumps(before)) for key, before in owned.items()]
            self._base.executemany("insert into owned values (?, ?)", rows)
            for name, value in facts.items():
                self.remember(name, value)
            self._base.execute("delete from pending")
