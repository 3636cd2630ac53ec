# SPDX-License-Identifier: Apache-2.0
"""The life of the daemon: start, reload, the end of the datapath process, stop.

Order of start: lock, datapath process, its UDP socket, status and control sockets, peers, READY. A daemon that starts
again after a crash finds the datapath process alive, adopts it, and takes nothing away from anybody
until the sessions and the peers are back, for five seconds at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import signal
import socket
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from libqos import paths, systemd
from libqos.errors import QosError
from libqos.lock import Lock
from libqos.rpc import peer_of
from libqos.rpcserver import Server
from selened import sockets, wire
from selened.core import Core
from selened.datapath import Datapath, DatapathError
from selened.peers import Peers
from selened.seqpacket import hang_up
from selened.sessions import Client
from selened.settings import Settings, Tls, differences
from selened.status import Status
from selened.wire import Address, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

log = logging.getLogger("selened")

_UNGREETED: Final = 32  # connections beyond the sessions that may exist at the same time
_UNGREETED_PER_USER: Final = 16
_QUICK_S: Final = 5.0  # a datapath process that lives shorter than this has failed
_FAILURES: Final = 5
_AGAIN_S: Final = 0.2


class Daemon:
    """selened. `reload` loads the configuration anew; `log_format` is that of selened-dp's lines too."""

    def __init__(self, settings: Settings, reload: Callable[[], Settings], log_format: str = "text") -> None:
        self.settings = settings
        self._log_format = log_format
        self.path = Path(settings.socket) if settings.socket else paths.daemon_socket("selened")
        self._reload_settings = reload
        self._stop = asyncio.Event()
        self._failure: QosError | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients: dict[asyncio.Task[None], Client] = {}
        self._quick_failures = 0
        self._started = 0.0
        self.datapath = self._new_datapath()  # replaced by each that is started

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises QosError when it cannot start or go on."""
        paths.check_socket(self.path)
        lock = Lock(Path(f"{self.path}.lock"), self.path, name="selened")
        try:
            await self._run()
        finally:
            lock.release()

    async def _run(self) -> None:
        begin = time.monotonic()
        _raise_file_limit()
        tls = _tls_contexts(self.settings.tls)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        async with contextlib.AsyncExitStack() as stack:
            datapath = self._new_datapath()
            await datapath.start(self._datapath_arguments())
            stack.push_async_callback(self._stop_datapath)
            self.datapath = datapath
            self._started = time.monotonic()
            receive_bytes = await self._listen_for_data(datapath)
            self.core = Core(self.settings, datapath, Address(self.settings.address, self.settings.port), receive_bytes)
            log.info(
                "selened-dp %s (pid %d, host %08x) %s; technologies: %s", datapath.version, datapath.pid, datapath.host,
                "adopted" if datapath.adopted else "started", ", ".join(self.core.capabilities.usable),
            )  # fmt: skip
            if self.settings.fault.text:
                log.warning(
                    "fault injection: datagrams to and from other hosts meet %s; remove [fault] for a network as it is",
                    self.settings.fault.text,
                )
            self.core.peers = peers = Peers(self.core, tls)
            stack.push_async_callback(peers.close)
            await self._start_peers(peers)
            self._start_discovery(stack, peers)
            await self._start_status(stack)
            await self._start_control(stack)
            self._begin_grace()
            loop.add_signal_handler(signal.SIGHUP, self._spawn_reload)
            self._spawn(systemd.watchdog())
            log.info("ready at %s, %s, after %.0f ms", self.path, self.core.address, (time.monotonic() - begin) * 1e3)
            systemd.notify(f"READY=1\nSTATUS=serving {self.path}")
            await self._stop.wait()
            systemd.notify("STOPPING=1")
            log.info("stopping")
            await self._end_tasks()
        if self._failure is not None:
            raise self._failure

    # ---- Start ----

    def _datapath_arguments(self) -> list[str]:
        log_options = ["--log-level", self.settings.log_level, "--log-format", self._log_format]
        return [*self.settings.datapath_arguments(), *log_options]

    def _new_datapath(self) -> Datapath:
        datapath = Datapath(
            Path(f"{self.path}.dp"),
            lambda session, error, text: self.core.session_gone(session, error, text),
            lambda reason: self._datapath_lost(datapath, reason),
        )
        return datapath

    async def _listen_for_data(self, datapath: Datapath) -> int:
        """Give the datapath process its UDP socket; gives what that can hold."""
        settings = self.settings
        try:
            sock, granted = sockets.udp(settings.address, [settings.port], settings.receive_buffer_bytes)
        except sockets.SocketError as failure:
            in_use = isinstance(failure.__cause__, OSError) and failure.__cause__.errno == errno.EADDRINUSE
            if datapath.has_socket and in_use:
                return self._probe_receive_buffer()  # it is the adopted process that has it
            if in_use:
                where = Address(settings.address, settings.port)
                raise sockets.SocketError(f"UDP {where} is in use by another program; set port to a free one") from None
            raise
        with sock:
            answer = await datapath.order("selene_order", lib.SELENE_O_LISTEN, [sock.fileno()])
            answer.close()
        if warning := sockets.receive_buffer_warning(granted, settings.receive_buffer_bytes):
            log.warning("%s", warning)
        return granted

    def _probe_receive_buffer(self) -> int:
        with socket.socket(sockets.family_of(self.settings.address), socket.SOCK_DGRAM) as probe:
            return sockets.set_receive_buffer(probe, self.settings.receive_buffer_bytes)

    async def _start_peers(self, peers: Peers) -> None:
        try:
            await peers.start()
        except OSError as failure:
            where = self.core.address
            raise sockets.SocketError(f"TCP {where}: {failure.strerror}; set port to a free one") from failure

    def _start_discovery(self, stack: contextlib.AsyncExitStack, peers: Peers) -> None:
        if not self.settings.discovery.enabled:
            return
        from selened.discovery import Discovery  # with what it imports, only where it is wanted

        peers.discovery = discovery = Discovery(self.core, peers)
        stack.push_async_callback(discovery.close)
        discovery.start()

    async def _start_status(self, stack: contextlib.AsyncExitStack) -> None:
        path = paths.status_socket(self.path)
        paths.remove_socket(path)
        server = Server(path, Status(self.core).methods, mode=0o666)
        try:
            await stack.enter_async_context(server)
        except OSError as failure:
            raise sockets.SocketError(f"{path}: {failure.strerror}") from failure

    async def _start_control(self, stack: contextlib.AsyncExitStack) -> None:
        listener = sockets.listen(self.path, 0o660)
        stack.callback(paths.remove_socket, self.path)
        stack.callback(listener.close)
        loop = asyncio.get_running_loop()
        loop.add_reader(listener.fileno(), self._accept, listener)
        stack.callback(loop.remove_reader, listener.fileno())

    def _begin_grace(self) -> None:
        if self.datapath.adopted and self.datapath.sessions and self.datapath.can_resume:
            self._spawn(self._grace())
        else:
            self.core.grace_over.set()

    async def _reunite(self) -> None:
        with contextlib.suppress(DatapathError):
            await self.core.reunite()

    async def _grace(self) -> None:
        with contextlib.suppress(DatapathError):
            await self.core.grace()

    # ---- Clients ----

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError as failure:
            if failure.errno not in (errno.EAGAIN, errno.ECONNABORTED):
                self.core.notices.warn("failed_accepts", f"accept: {failure.strerror}")
            return
        uid = peer_of(sock).uid
        mine = sum(client.peer.uid == uid for client in self._clients.values())
        if (
            len(self._clients) >= self.settings.max_sessions + _UNGREETED
            or mine >= self.settings.max_sessions_per_user + _UNGREETED_PER_USER
        ):
            self.core.notices.warn(
                "refused_connections", f"too many connections to the control socket, {mine} of user {uid}"
            )
            with contextlib.suppress(OSError):
                sock.setblocking(False)
                sock.send(wire.error(0, errno.EUSERS, "too many connections: try again later"))
            hang_up(sock)
            return
        client = Client(self.core, sock)
        task = asyncio.create_task(client.run())
        self._clients[task] = client
        task.add_done_callback(self._client_ended)

    def _client_ended(self, task: asyncio.Task[None]) -> None:
        self._clients.pop(task, None)
        if not task.cancelled() and (failure := task.exception()) is not None:
            log.error("a session failed: this is a bug", exc_info=failure)

    async def _drop_clients(self, reason: str) -> None:
        for client in self._clients.values():
            client.close(reason)
        tasks = list(self._clients)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- The datapath process ends ----

    def _datapath_lost(self, datapath: Datapath, reason: str) -> None:
        if datapath is self.datapath and not self._stop.is_set():
            log.error("selened-dp (pid %d) is gone: %s; starting it again", datapath.pid, reason)
            self._spawn(self._replace_datapath())

    async def _replace_datapath(self) -> None:
        lived = time.monotonic() - self._started
        core = self.core
        try:
            core.remember(*core.clients.values())
            await self._drop_clients("the datapath process ended; it is started again: connect again")
            await self.datapath.kill()
            self._quick_failures = 0 if lived >= _QUICK_S else self._quick_failures + (not self.datapath.was_killed)
            datapath, receive_bytes = await self._successor()
            async with core.lock:
                core.reset(datapath, receive_bytes)
            assert core.peers is not None
            await core.peers.restart()
            self._spawn(self._reunite())
            log.info("selened-dp %s (pid %d, host %08x) started", datapath.version, datapath.pid, datapath.host)
        except QosError as failure:
            self._failure = failure
            self._stop.set()

    async def _successor(self) -> tuple[Datapath, int]:
        """Start a datapath process in place of the one that died. Raises DatapathError after too many failures."""
        while self._quick_failures < _FAILURES:
            datapath = self._new_datapath()
            try:
                await datapath.start(self._datapath_arguments(), successor_of=self.datapath)
                receive_bytes = await self._listen_for_data(datapath)
                datapath.check()
            except (DatapathError, sockets.SocketError) as failure:
                log.error("selened-dp did not start: %s", failure)
                await datapath.kill()
                self._quick_failures += 1
                await asyncio.sleep(_AGAIN_S * self._quick_failures)
                continue
            self.datapath = datapath
            self._started = time.monotonic()
            return datapath, receive_bytes
        raise DatapathError(f"selened-dp failed {_FAILURES} times, each within {_QUICK_S:g} s; see above")

    async def _stop_datapath(self) -> None:
        await self.datapath.stop()

    # ---- Reload, watchdog, end ----

    def _spawn_reload(self) -> None:
        self._spawn(self._reload())

    async def _reload(self) -> None:
        try:
            new = self._reload_settings()
        except QosError as failure:
            for line in str(failure).splitlines():
                log.error("not reloaded: %s", line)
            return
        now, later = differences(self.settings, new)
        if not now and not later:
            log.info("reloaded: nothing changed")
        for text in now:
            log.info("reloaded: %s", text)
        for text in later:
            log.warning("needs a restart: %s", text)
        self.settings = new
        self.core.configure(new)
        logging.getLogger().setLevel(new.log_level.upper())
        assert self.core.peers is not None
        await self.core.peers.configure(new.peers)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end_tasks(self) -> None:
        await self._drop_clients("selened stops")
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _raise_file_limit() -> None:
    """A sink costs a descriptor here; the soft limit of 1024 is for programs that use select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _tls_contexts(tls: Tls) -> tuple[ssl.SSLContext, ssl.SSLContext] | None:
    """For connecting and for listening; both sides show a certificate. Raises QosError naming the file."""
    if not tls.enabled:
        return None
    contexts = []
    for purpose in (ssl.Purpose.SERVER_AUTH, ssl.Purpose.CLIENT_AUTH):
        try:
            context = ssl.create_default_context(purpose, cafile=tls.authority)
            context.load_cert_chain(tls.certificate, tls.key)
        except OSError as failure:
            files = f"{tls.certificate}, {tls.key}, {tls.authority}"
            raise sockets.SocketError(f"[tls]: {failure.strerror or failure}; check {files}") from failure
        context.verify_mode = ssl.CERT_REQUIRED
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        contexts.append(context)
    return contexts[0], contexts[1]
