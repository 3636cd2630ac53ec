# SPDX-License-Identifier: Apache-2.0
"""`selene fsck`: whether every buffer of a live system is accounted for.

A transmit pool is its client's to write, so nothing here is believed; it is added up. References that the owner words
name must be as many as there are messages on edges, with the datapath process, or on their way back. While a session
works that cannot be seen at one instant: it is judged only if nothing of it moved in all looks. What the datapath
process alone writes (receive pools, tables) is judged always.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from selened.wire import lib

if TYPE_CHECKING:
    from selened.core import Core

Record = dict[str, Any]

LOOKS: Final = 3
INTERVAL_S: Final = 0.1


async def check(core: Core, looks: int = LOOKS, interval_s: float = INTERVAL_S) -> list[Record]:
    """Records, one per pool, then one of the daemons, then the verdict. Raises DatapathError."""
    snapshots = []
    for look in range(looks):
        if look:
            await asyncio.sleep(interval_s)
        snapshots.append((await core.datapath.fsck(), _tables(core)))
    (totals, rows), _ = snapshots[-1]
    seen = [{_key(row): row.digest for row in rows} for (_, rows), _ in snapshots]
    records = []
    for row in rows:
        quiet = all(look.get(_key(row)) == row.digest for look in seen)
        records.append(_transmit(core, row, quiet) if row.kind == lib.SELENE_FSCK_TX else _receive(row))
    settled = all(_tables_of(look[0][0]) == _tables_of(totals) and look[1] == snapshots[-1][1] for look in snapshots)
    records.append(_daemons(totals, snapshots[-1][1], settled))
    problems = [text for record in records for text in record["problems"]]
    records.append(
        {
            "kind": "fsck",
            "ok": not problems,
            "problems": len(problems),
            "busy": sum(not record["quiet"] for record in records),
            "looks": looks,
        }
    )
    return records


def _key(row: Any) -> tuple[int, int, int]:
    return row.kind, row.uid, row.session


def _transmit(core: Core, row: Any, quiet: bool) -> Record:
    """A session's transmit pool."""
    client = core.clients.get(row.session)
    expected = row.held + row.relayed + row.returning
    problems = []
    if quiet and row.references != expected:
        problems.append(
            f"session {row.session:016x}: its buffers name {row.references} references, {expected} are accounted for"
        )
    return {
        "kind": "fsck_transmit_pool",
        "session": f"{row.session:016x}",
        "program": client.program if client is not None else None,
        "pid": client.pid if client is not None else None,
        "uid": row.uid,
        "quiet": quiet,
        "borrowed": row.borrowed,
        "emitted": row.emitted,
        "references": row.references,
        "on_edges": row.held - row.leaving,
        "of_dead_sinks": row.leaving,
        "relayed": row.relayed,
        "returning": row.returning,
        "problems": problems,
    }


def _receive(row: Any) -> Record:
    """A user's receive pool."""
    problems = []
    if row.faults:
        problems.append(f"receive pool of user {row.uid}: {row.faults} buffers whose counts contradict each other")
    if row.references != row.relayed:
        problems.append(
            f"receive pool of user {row.uid}: {row.references} references, its sessions hold {row.relayed} datagrams"
        )
    return {
        "kind": "fsck_receive_pool",
        "uid": row.uid,
        "quiet": True,
        "free": row.free,
        "held": row.emitted,
        "references": row.references,
        "problems": problems,
    }


def _tables(core: Core) -> dict[str, int]:
    """What should be at the datapath process."""
    plans = [plan for _, plan in core.router.resident()]
    return {
        "sessions": len(core.clients),
        "edges": sum(len(plan.edges) for plan in plans),
        "routes": sum(len(plan.datapath_routes) for plan in plans),
        "accepts": sum(len(plan.datapath_accepts) for plan in plans),
    }


def _tables_of(totals: Any) -> dict[str, int]:
    return {name: getattr(totals, name) for name in ("sessions", "edges", "routes", "accepts")}


def _daemons(totals: Any, ours: dict[str, int], settled: bool) -> Record:
    """What the two daemons have in their tables."""
    theirs = _tables_of(totals)
    problems = []
    if totals.mapped != totals.expected:
        problems.append(f"selened-dp maps {totals.mapped} pools, {totals.expected} are in use")
    if settled:
        problems += [
            f"{name}: selened has {ours[name]}, selened-dp {theirs[name]}"
            for name in ours
            if ours[name] != theirs[name]
        ]
    return {"kind": "fsck_daemons", "quiet": settled, **theirs, "leaving_edges": totals.leaving, "problems": problems}
