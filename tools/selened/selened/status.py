# SPDX-License-Identifier: Apache-2.0
"""What the status socket answers: info, explain, stats, fsck. Read-only; any local user may ask."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import TYPE_CHECKING, Any

import libqos
from libqos.policy import Acceleration, Resources
from libqos.rpc import Peer as Asker
from libqos.rpc import RpcError
from selened import fsck
from selened.datapath import DatapathError
from selened.mapping import StreamPolicy
from selened.neighbours import COUNTERS, Neighbour
from selened.pages import SINK_COUNTERS, SOURCE_COUNTERS
from selened.sessions import SOURCE, Client
from selened.wire import VERSION, RefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from libqos.rpcserver import Method
    from selened.core import Core
    from selened.discovery import Discovery

Record = dict[str, Any]
Params = dict[str, Any]


class Status:
    """The methods of the status socket."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._checking = asyncio.Lock()
        self.methods: dict[str, Method] = {
            "info": self.info, "explain": self.explain, "stats": self.stats, "follow": self.follow,
            "fsck": self.fsck,
        }  # fmt: skip

    # ---- info ----

    async def info(self, _: Params, __: Asker) -> list[Record]:
        """Everything there is, as records: daemon, discovery, peer, session, stream, source, sink."""
        records = [self._daemon(), *self._peers()]
        for client in self.core.clients.values():
            records.append(self._session(client))
            records += [
                {"kind": "stream", "session": _hex(client.id), "handle": handle, "stream": stream.stream}
                | {"technology": stream.decision.chosen.label, "warning": stream.decision.warning or None}
                for handle, stream in client.streams.items()
            ]
            records += [self._endpoint(client, endpoint) for endpoint in client.endpoints]
        return records

    def _daemon(self) -> Record:
        core = self.core
        return {
            "kind": "daemon",
            "version": libqos.__version__,
            "protocol": VERSION,
            "host": f"{core.host:08x}",
            "address": str(core.address),
            "technologies": core.capabilities.usable,
            "sessions": len(core.clients),
            "datapath": {
                "version": core.datapath.version,
                "pid": core.datapath.pid,
                "adopted": core.datapath.adopted,
                "resumes": core.datapath.can_resume,
            },
            "fault": core.settings.fault.text or None,
            "receive_buffer_bytes": core.receive_bytes // 2,
            "collisions": core.router.collisions,
            "notices": dict(core.notices.counts),
            "config": _config(core.settings),
        }

    def _peers(self) -> list[Record]:
        peers = self.core.peers
        if peers is None:
            return []
        records = [_discovery(peers.discovery)] if peers.discovery is not None else []
        for address, link in peers.links.items():
            remote = peers.remotes[address]
            table = remote.table
            found = peers.discovery.neighbour(address) if peers.discovery is not None else None
            records.append(
                {
                    "kind": "peer",
                    "address": str(address),
                    "state": link.state,
                    "reason": link.reason or None,
                    "host": f"{table.host:08x}" if table is not None else None,
                    "announces": remote.writer is not None,
                    "sinks": len(table.sinks) if table is not None else 0,
                    "sources": len(table.sources) if table is not None else 0,
                    "sent": link.sent,
                    "acknowledged": link.acked,
                    "configured": address in peers.configured,
                    "discovered": _found(found) if found is not None else None,
                }
            )
        return records

    def _session(self, client: Client) -> Record:
        return {
            "kind": "session",
            "session": _hex(client.id),
            "program": client.program,
            "pid": client.pid,
            "uid": client.peer.uid,
            "path": "direct" if client.direct else "relayed",
            "why": client.why,
            "address": str(client.address) if client.address is not None else None,
            "sources": sum(item.kind == SOURCE for item in client.endpoints.values()),
            "sinks": sum(item.kind != SOURCE for item in client.endpoints.values()),
        }

    def _endpoint(self, client: Client, endpoint: int) -> Record:
        router = self.core.router
        entry = client.endpoints[endpoint]
        plan = router.plan(entry.key)
        record: Record = {
            "kind": "source" if entry.kind == SOURCE else "sink",
            "id": _hex(endpoint),
            "session": _hex(client.id),
            "stream": entry.key.stream,
            "channel": _hex(entry.key.channel),
            "name": entry.key.name or None,
            "edges": self.core.edges_of(endpoint) if endpoint in router.endpoints else 0,
        }
        if entry.kind == SOURCE:
            route, through = plan.routes.get(endpoint), plan.datapath_routes.get(endpoint)
            dests = (route.dests if route else ()) + (through.dests if through else ())
            record |= {
                "remote": [str(dest.address) for dest in dests],
                "relayed": bool(route and route.relayed),
                "epoch": router.epochs.get(endpoint, 0),
            }
        else:
            accepts = plan.accepts.get(endpoint, ())
            record |= {"remote_sources": len(accepts), "relayed": any(item.relayed for item in accepts)}
        return record

    # ---- explain ----

    async def explain(self, params: Params, _: Asker) -> list[Record]:
        """With `acceleration` or `resources`: what such a stream would get. Else: every live stream and session."""
        if not params:
            return [record for client in self.core.clients.values() for record in self._explain(client)]
        unknown = params.keys() - {"acceleration", "resources", "time_sensitive"}
        try:
            policy = StreamPolicy(
                acceleration=Acceleration(params.get("acceleration", "slow")),
                resources=Resources(params.get("resources", "low")),
                time_sensitive=int(bool(params.get("time_sensitive", False))),
            )
        except ValueError as error:
            raise RpcError("bad-request", f"{error}; accepted acceleration slow | fast, resources low | any") from None
        if unknown:
            raise RpcError("bad-request", f"unknown: {', '.join(sorted(unknown))[:80]}")
        try:
            return [{"kind": "decision", **self.core.decide(policy).record()}]
        except RefusedError as refusal:
            raise RpcError("refused", str(refusal)) from None

    def _explain(self, client: Client) -> list[Record]:
        session = {"session": _hex(client.id), "program": client.program, "pid": client.pid}
        path: Record = {"path": "direct" if client.direct else "relayed", "path_reason": client.why}
        if self.core.settings.fault.text:
            path["fault"] = self.core.settings.fault.text
        if not client.streams:
            return [{"kind": "decision", **session, **path}]
        return [
            {"kind": "decision", **session, "stream": stream.stream, **stream.decision.record(), **path}
            for stream in client.streams.values()
        ]

    # ---- stats ----

    async def stats(self, _: Params, __: Asker) -> list[Record]:
        """Counters: one record for the datapath process, one per source and sink."""
        now = time.time_ns()
        records: list[Record] = []
        try:
            faults, (totals, *sessions) = await self.core.datapath.stats()
        except DatapathError as failure:
            raise RpcError("no-datapath", str(failure)) from None
        totals.pop("session")
        records.append({"kind": "datapath", "ts_ns": now, "pid": self.core.datapath.pid, **_units(totals)})
        if self.core.settings.fault.text:
            records.append({"kind": "fault", "ts_ns": now, "pid": self.core.datapath.pid, **faults})
            records += [
                {"kind": "fault", "ts_ns": now, "session": _hex(client.id), "program": client.program}
                | {"pid": client.pid, **client.page.faults()}
                for client in self.core.clients.values()
                if client.direct and client.page is not None
            ]
        relayed = {row.pop("session"): row for row in sessions}
        for client in list(self.core.clients.values()):
            if client.id in relayed and any(relayed[client.id].values()):
                records.append(
                    {"kind": "relay", "ts_ns": now, "session": _hex(client.id), "program": client.program}
                    | _units(relayed[client.id])
                )
            records += [self._counters(client, endpoint, now) for endpoint in client.endpoints]
        return records

    async def fsck(self, params: Params, _: Asker) -> list[Record]:
        """Whether every buffer is accounted for: `looks` looks, `interval_s` seconds apart. One check at a time."""
        looks, interval = params.get("looks", fsck.LOOKS), params.get("interval_s", fsck.INTERVAL_S)
        if type(looks) is not int or not 1 <= looks <= 100:
            raise RpcError("bad-request", "looks: accepted 1 to 100")
        if type(interval) not in (int, float) or not 0.001 <= interval <= 10:
            raise RpcError("bad-request", "interval_s: accepted 0.001 to 10 seconds")
        try:
            async with self._checking:
                return await fsck.check(self.core, looks, interval)
        except DatapathError as failure:
            raise RpcError("no-datapath", str(failure)) from None

    def _counters(self, client: Client, endpoint: int, now: int) -> Record:
        entry = client.endpoints[endpoint]
        source = entry.kind == SOURCE
        names = SOURCE_COUNTERS if source else SINK_COUNTERS
        counters = client.page.counters(entry.index, names) if client.page is not None else {}
        if "edge_dropped" in counters:
            counters["dropped"] += counters.pop("edge_dropped")
        return {
            "kind": "source" if source else "sink",
            "ts_ns": now,
            "id": _hex(endpoint),
            "program": client.program,
            "pid": client.pid,
            "stream": entry.key.stream,
            "channel": _hex(entry.key.channel),
            "name": entry.key.name or None,
            **_units(counters),
        }

    async def follow(self, params: Params, asker: Asker) -> AsyncIterator[list[Record]]:
        """`stats` every `interval_s` seconds until the asker goes."""
        interval = params.get("interval_s", 1.0)
        if type(interval) not in (int, float) or not 0.1 <= interval <= 3600:
            raise RpcError("bad-request", "interval_s: accepted 0.1 to 3600 seconds")
        while True:
            yield await self.stats({}, asker)
            await asyncio.sleep(interval)


def _units(counters: dict[str, int]) -> dict[str, int]:
    """Names that carry their unit: a count of bytes ends in _bytes."""
    return {"size_bytes" if name == "bytes" else name: value for name, value in counters.items()}


def _hex(number: int) -> str:
    """64-bit numbers as text: a JSON reader with floating point would lose their last digits."""
    return f"{number:016x}"


def _found(neighbour: Neighbour) -> Record:
    """How and when a peer was discovered. `source` is who sent the last announcement."""
    where = neighbour.where
    return {
        "interface": where.interface,
        "group": where.group,
        "source": where.source,
        "first_ts_ns": neighbour.first_ns,
        "last_ts_ns": neighbour.last_ns,
        "lifetime_s": neighbour.announcement.lifetime_s,
    }


def _discovery(discovery: Discovery) -> Record:
    """Where we announce, what we heard, and who is refused."""
    neighbours = discovery.neighbours
    return {
        "kind": "discovery",
        "site": discovery.settings.site or None,
        "channels": [
            {"interface": channel.interface.name, "group": channel.group, "reason": channel.reason or None}
            for channel in discovery.channels.values()
        ],
        "announcements": discovery.sent,
        **{name: neighbours.counts[name] for name in COUNTERS},
        "refused": [
            {"address": str(item.address), "reason": item.refusal} | _found(item)
            for item in neighbours.entries.values()
            if item.refusal
        ],
    }


def _config(settings: Any) -> Record:
    """The configuration without the secrets' places."""
    config = dataclasses.asdict(settings)
    config["tls"] = settings.tls.enabled
    config["discovery"]["key_file"] = bool(settings.discovery.key_file)
    return config
