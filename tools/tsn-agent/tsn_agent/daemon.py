# SPDX-License-Identifier: Apache-2.0
"""The daemon: applies what is wanted at start, then watches, and answers on two sockets.

The control socket takes `apply` and `clear`; the status socket beside it answers `info`, `show`, `capabilities` and
`events`. The engine blocks, and its database and rtnetlink socket belong to one thread: it has a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import logging
import os
import signal
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import libqos
from libqos import paths, systemd, tomlfile
from libqos.codec.rtnl.refusals import RefusedError
from libqos.errors import QosError
from libqos.lock import Lock
from libqos.rpc import Peer, RpcError
from libqos.rpcserver import Limits, Server
from tsn_agent import capabilities
from tsn_agent.clock import Clock
from tsn_agent.controller import Controller
from tsn_agent.engine import Engine
from tsn_agent.faults import Faults
from tsn_agent.journal import default_path
from tsn_agent.links import LinkWatch
from tsn_agent.otheragents import OtherAgents
from tsn_agent.requests import Request, Requests

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from tsn_agent.settings import Settings

log = logging.getLogger("tsn-agent")

T = TypeVar("T")
Record = dict[str, Any]
Params = dict[str, Any]

# Thousands of resources take their time; each stream of a talker or listener holds a connection.
_LIMITS: Final = Limits(handler_s=60.0, clients=1024, clients_per_user=512)
_LONG: Final = ("ts_ns", "wanted", "actual", "evidence")  # not for a line of the log
_AT_START: Final = ("socket", "state", "listen", "authority", "certificate", "key", "controller", "ptp")  # read once
_DISCIPLINE: Final = ("interface", "discipline", "parent")
_EVENTS: Final = 256  # that are kept for those who ask later, and that may wait for one who reads slowly


class Agent:
    """`reload` gives the settings anew."""

    def __init__(self, settings: Settings, reload: Callable[[], Settings]) -> None:
        self.settings = settings
        self.path = Path(settings.socket) if settings.socket else paths.daemon_socket("tsn-agent")
        self.state = Path(settings.state) if settings.state else default_path()
        self._load = reload
        self._stop = asyncio.Event()
        self._started_ns = time.time_ns()
        self._kernel = capabilities.kernel()  # forks, so it is asked before there are threads
        self._thread = ThreadPoolExecutor(1, "engine")
        self._engine: Engine
        self._requests: Requests
        self._others: OtherAgents
        self._links: LinkWatch
        self._faults = Faults(self._happened, lambda url, report: self._others.tell(url, report))
        self._controller: Controller | None = None
        self._clock: Clock | None = None
        self._recent: deque[Record] = deque(maxlen=_EVENTS)
        self._listeners: set[asyncio.Queue[Record]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._drops: dict[tuple[str, str, str], int] = {}
        self._wrong: frozenset[tuple[str, ...]] = frozenset()
        self._seen: list[Record] | None = None
        self.counters = {"events": 0, "missed_events": 0, "applied": 0, "refused": 0}

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises QosError when it cannot start."""
        paths.check_socket(self.path)
        lock = Lock(Path(f"{self.path}.lock"), self.path, name="tsn-agent")
        try:
            await self._run()
        finally:
            lock.release()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._thread.shutdown)
            self._engine = await self._do(lambda: Engine(self.state))
            self._requests = Requests(self._engine)
            stack.push_async_callback(self._do, lambda: self._engine.__exit__())
            self._others = OtherAgents(self.settings.listen, self.settings.tls(), self._faults.report)
            await stack.enter_async_context(self._others)
            stack.push_async_callback(self._faults.close)
            self._faults.remember = lambda ways: self._spawn(self._remember(ways))
            status: Record = {"info": self.info, "show": self.show, "capabilities": self.capabilities,
                              "events": self.events, "streams": self.streams, "paths": self.paths,
                              "clock": self.clock, "follow_clock": self.follow_clock}  # fmt: skip
            control: Record = {"apply": self.apply, "clear": self.clear, "attach": self.attach,
                               "report": self.report, "request": self.request,
                               "release": self.release}  # fmt: skip
            if self.settings.ptp.interfaces:
                paths.make_private(directory := Path(f"{self.path}.ptp"))
                self._clock = Clock(self.settings.ptp, directory, self._happened)
                self._faults.ready = self._clock.synchronised
            if self.settings.controller.url:
                methods = {**status, **control, "request": self.place, "seen": self.seen}
                self._controller = Controller(self.settings.controller, methods, self._carriers)
                self._faults.ask = self._controller.reconfigure if self.settings.controller.reconfigure_ms else None
            self._links = stack.enter_context(LinkWatch(self._link_event))
            await self._do(lambda: self._engine.recover())
            await self._apply_at_start()
            for path, methods, mode in [
                (paths.status_socket(self.path), status, 0o666), (self.path, {**status, **control}, 0o660),
            ]:  # fmt: skip
                paths.remove_socket(path)
                await stack.enter_async_context(Server(path, methods, mode=mode, limits=_LIMITS))
            if self._clock is not None:
                await stack.enter_async_context(self._clock)
            if self._controller is not None:
                await stack.enter_async_context(self._controller)
            loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self._reload()))
            self._spawn(systemd.watchdog())
            self._spawn(self._look())
            log.info("ready at %s; %d resources are wanted", self.path, len(await self._do(self._engine.show)))
            # What is there now stays. Left among what is looked through, it would let the garbage of many looks at the
            # kernel grow before it is worth looking.
            gc.collect()
            gc.freeze()
            systemd.notify(f"READY=1\nSTATUS=serving {self.path}")
            await self._stop.wait()
            systemd.notify("STOPPING=1")
            log.info("stopping; what was applied stays: tsn-agent clear takes it away")
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _do(self, work: Callable[[], T]) -> T:
        """Run in the engine's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- what is wanted ----

    async def _apply_at_start(self) -> None:
        if self.settings.streams:
            document = tomlfile.read(self.settings.streams)
            changes = await self._do(lambda: self._engine.apply(document))
        else:
            changes = await self._do(lambda: self._engine.again())
        self.counters["applied"] += len(changes)
        await self._applied()

    async def _applied(self) -> None:
        """After every change: the streams' places and ways follow what is there now."""
        self._seen = None
        for record in await self._do(lambda: self._requests.look_again()):
            self._happened({**record, "ts_ns": time.time_ns()})
        wanted, resources, ways = await self._do(
            lambda: (self._engine.wanted(), self._engine.kernel.resources(), self._engine.ways())
        )
        down = {link["name"] for link in self._carriers() if not (link["up"] and link["carrier"])}
        self._faults.configure(wanted, resources, down, ways)
        self._others.configure({stream.tell for stream in wanted.streams if stream.tell})

    async def _reload(self) -> None:
        try:
            settings = self._load()
            if any(getattr(settings, name) != getattr(self.settings, name) for name in _AT_START):
                log.warning("%s need a restart", ", ".join(_AT_START))
            self.settings = settings
            await self._apply_at_start()
            log.info("reloaded")
        except QosError as failure:
            self.counters["refused"] += 1
            for line in str(failure).splitlines():
                log.error("not reloaded: %s", line)

    async def apply(self, params: Params, _: Peer) -> list[Record]:
        """`text`: a file as `tsn-agent apply` takes it, or `values`: what is in it, as a table; `name`: how errors call
        it; `dry_run`. Gives the changes."""
        text, values = params.get("text"), params.get("values")
        name, dry_run = params.get("name", "stdin"), params.get("dry_run", False)
        if not isinstance(name, str) or not isinstance(dry_run, bool):
            raise RpcError("bad-request", "accepted name (text) and dry_run (true or false)")
        if isinstance(text, str) and values is None:
            return await self._change(lambda: self._engine.apply(tomlfile.parse(text, name), dry_run=dry_run), dry_run)
        if isinstance(values, dict) and text is None:
            document = tomlfile.Document(name, values)
            return await self._change(lambda: self._engine.apply(document, dry_run=dry_run), dry_run)
        raise RpcError("bad-request", "accepted text, or values (a table), and not both")

    async def clear(self, params: Params, _: Peer) -> list[Record]:
        """Take away all that was applied; `dry_run`. Gives the changes."""
        dry_run = params.get("dry_run", False)
        if not isinstance(dry_run, bool):
            raise RpcError("bad-request", "accepted dry_run: true or false")
        return await self._change(lambda: self._engine.clear(dry_run=dry_run), dry_run)

    async def _change(self, work: Callable[[], Any], dry_run: bool) -> list[Record]:
        try:
            changes = await self._do(work)
        except QosError as failure:
            self.counters["refused"] += 1
            raise RpcError("refused" if failure.exit_code == 2 else "failed", str(failure)) from None
        if not dry_run:
            self.counters["applied"] += len(changes)
            await self._applied()
        return [change.record() for change in changes]

    # ---- what applications ask for ----

    async def request(self, params: Params, asker: Peer) -> list[Record]:
        """A place for a stream, from whoever gives it: this agent, or the controller."""
        if self._controller is not None and self._controller.decides:
            return await self._controller.request(params)
        return await self.place(params, asker)

    async def place(self, params: Params, _: Peer) -> list[Record]:
        """A place for a stream: the keys of `requests.Request`. Gives the grant."""
        try:
            request = Request.of(params)
            return [await self._do(lambda: self._requests.request(request))]
        except (ValueError, RefusedError) as failure:
            self.counters["refused"] += 1
            raise RpcError("refused", str(failure)) from None

    async def release(self, params: Params, _: Peer) -> list[Record]:
        """Give the place of `stream` back."""
        try:
            return [await self._do(lambda: self._requests.release(str(params.get("stream"))))]
        except RefusedError as failure:
            raise RpcError("refused", str(failure)) from None

    async def streams(self, _: Params, __: Peer) -> list[Record]:
        """What is granted."""
        return await self._do(lambda: self._requests.streams())

    # ---- talkers and listeners ----

    async def attach(self, params: Params, _: Peer) -> AsyncIterator[Record]:
        """Orders for a talker of `stream` (`role`: talker or listener), until it goes."""
        stream, role = params.get("stream"), params.get("role")
        if not isinstance(stream, str) or role not in ("talker", "listener"):
            raise RpcError("bad-request", "accepted stream (text) and role (talker or listener)")
        async for order in self._faults.attach(stream, role):
            yield order

    async def report(self, params: Params, _: Peer) -> None:
        """What a talker or listener has seen: `stream`, `kind`, and facts."""
        facts = dict(params)
        stream, kind = facts.pop("stream", None), facts.pop("kind", None)
        if not isinstance(stream, str) or not isinstance(kind, str):
            raise RpcError("bad-request", "accepted stream and kind (texts), and facts")
        self._faults.report(stream, kind, facts)

    async def _remember(self, ways: dict[str, str]) -> None:
        try:
            await self._do(lambda: self._engine.remember_ways(ways))
        except QosError as failure:  # after a restart streams would begin with their first ways
            log.warning("%s", failure)

    async def paths(self, _: Params, __: Peer) -> list[Record]:
        """The streams that are watched, and the way of each."""
        return self._faults.streams()

    # ---- what is seen ----

    def _carriers(self) -> list[Record]:
        return [dataclasses.asdict(link) for link in (self._links.links or {}).values()]

    def _link_event(self, record: Record) -> None:
        self._happened(record)
        self._faults.link(record)
        if record["event"] in ("up", "carrier") and record["up"] and record["carrier"]:
            self._spawn(self._link_is_back(record["interface"]))

    async def _link_is_back(self, interface: str) -> None:
        try:
            await self._do(lambda: self._engine.link_is_back(interface))
        except QosError as failure:
            log.error("the schedule does not go on: %s", failure)

    async def _look(self) -> None:
        """Count drops, and say when what is there is no longer what is wanted, or is again."""
        while True:
            try:
                await self._look_once()
            except QosError as failure:
                log.warning("%s", failure)
            await asyncio.sleep(self.settings.interval_s)

    async def _look_once(self) -> None:
        drops, resources = await self._do(lambda: (self._engine.kernel.drops(), self._engine.show()))
        now = time.time_ns()
        for where, count in drops.items():
            if (more := count - self._drops.get(where, count)) > 0:
                self._happened({"kind": "drops", "ts_ns": now, **dict(zip(_DISCIPLINE, where, strict=True)),
                                "packets": more, "total": count})  # fmt: skip
        self._drops, self._seen = drops, resources
        # a list that stands still, because its link is away, goes on when that is back
        wrong = {(item["resource"], item["name"], item["state"], *item["differs"]): item for item in resources
                 if item["state"] != "ok" and item["differs"] != ["running"]}  # fmt: skip
        for key in wrong.keys() - self._wrong:
            self._happened({**wrong[key], "kind": "drift", "ts_ns": now})
        self._wrong = frozenset(wrong)

    def _happened(self, record: Record) -> None:
        self.counters["events"] += 1
        quiet = record.get("event") in ("added", "up", "carrier", "synchronised")
        text = " ".join(f"{name}={value}" for name, value in record.items() if name not in _LONG)
        log.log(logging.INFO if quiet else logging.WARNING, "%s", text)
        self._recent.append(record)
        if self._controller is not None:
            self._controller.event(record)
        for queue in self._listeners:
            if queue.full():
                self.counters["missed_events"] += 1
                queue.get_nowait()
            queue.put_nowait(record)

    # ---- answers ----

    async def info(self, _: Params, __: Peer) -> list[Record]:
        """The daemon: version, what it serves, counters."""
        return [{
            "kind": "daemon", "version": libqos.__version__, "pid": os.getpid(), "started_ts_ns": self._started_ns,
            "state": str(self.state), "streams": self.settings.streams or None, **self.counters,
            "agents": self._others.state(), "untold_reports": self._others.dropped,
            "controller": self._controller.info() if self._controller is not None else None,
            "clock": self._clock.record() if self._clock is not None else None,
        }]  # fmt: skip

    async def show(self, _: Params, __: Peer) -> list[Record]:
        """Wanted against actual."""
        return await self._do(lambda: self._engine.show())

    async def seen(self, params: Params, asker: Peer) -> list[Record]:
        """What `show` gave at the last look, which is not before the last change."""
        return await self.show(params, asker) if self._seen is None else self._seen

    async def clock(self, _: Params, __: Peer) -> list[Record]:
        """How the clock is."""
        return [self._the_clock().record()]

    async def follow_clock(self, _: Params, __: Peer) -> AsyncIterator[Record]:
        """How the clock is, again and again."""
        async for record in self._the_clock().follow():
            yield record

    def _the_clock(self) -> Clock:
        if self._clock is None:
            raise RpcError("refused", "this agent holds no clock: name interfaces in [ptp] of its configuration")
        return self._clock

    async def capabilities(self, params: Params, _: Peer) -> list[Record]:
        """What kernel and interfaces can do; `interfaces`: names, all by default."""
        names = params.get("interfaces", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise RpcError("bad-request", "accepted interfaces: a list of names")
        try:
            return await self._do(lambda: [self._kernel, *capabilities.interfaces(names)])
        except OSError as failure:
            raise RpcError("bad-request", str(failure)) from None

    async def events(self, params: Params, _: Peer) -> AsyncIterator[Record]:
        """What happens from now on; with `recent`: true what happened lately first."""
        queue: asyncio.Queue[Record] = asyncio.Queue(_EVENTS)
        self._listeners.add(queue)
        try:
            if params.get("recent"):
                for record in list(self._recent):
                    yield record
            while True:
                try:
                    async with asyncio.timeout(10.0):
                        record = await queue.get()
                except TimeoutError:  # so that whoever waits knows that we are there
                    record = {"kind": "idle", "ts_ns": time.time_ns()}
                yield record
        finally:
            self._listeners.discard(queue)
