# SPDX-License-Identifier: Apache-2.0
"""The clock of an end device, held by linuxptp (thesis, 4.2.1): ptp4l, and phc2sys where a card's clock leads.

    async with Ptp(PtpConfig(interfaces=("eth0",)), directory) as ptp:
        async for status in ptp.status.changes():
            print(status.synchronised, status.offset_ns)

Both are kept running. ptp4l is asked over its management socket (`libqos.codec.ptpmgmt`) several times a second; one
that does not answer any more is killed, which starts it again.

A device is `synchronised` only while a port is SLAVE, Sync messages come, and the offset is small: it becomes so when
|offset| has stayed within `within_ns` for `for_s`, and ceases when it is beyond `beyond_ns`, at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Self

from libqos.codec import ptpmgmt
from libqos.codec.ptpmgmt import CurrentDataSet, Id, PortDataSet, PortState, TimeStatus
from libqos.errors import InputError, QosError
from libqos.paths import MAX_PATH_BYTES
from libqos.watched import Watched
from tsn_agent.ptpconfig import PtpLimits
from tsn_agent.supervisor import Daemon

if TYPE_CHECKING:
    from pathlib import Path

    from tsn_agent.ptpconfig import PtpConfig

_DATAGRAM_BYTES: Final = 2048


class PtpError(QosError):
    """ptp4l gave no answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PtpStatus:
    """What is known of a device's clock. Without an answer from ptp4l `ports` is empty, and what is measured None."""

    synchronised: bool = False
    ports: tuple[str, ...] = ()  # the state of each, in the order of the interfaces
    offset_ns: int | None = None  # from the grandmaster; None without one
    mean_path_delay_ns: float | None = None
    steps_removed: int | None = None
    grandmaster: str = ""  # its identity; this clock's own if it is one
    starts: int = 0  # of ptp4l
    strangers: int = 0  # datagrams to our socket that were not from ptp4l
    last_error: str = ""  # why ptp4l or phc2sys last ended, or why there was no answer


@dataclass(slots=True)
class Judge:
    """Whether a clock is synchronised, out of what is seen of it, one look after the other."""

    limits: PtpLimits
    synchronised: bool = False
    _since: float | None = None  # the offset is small
    _ingress_ns: int = 0
    _fresh: float = field(default=float("-inf"))

    def look(self, now: float, slave: bool, time: TimeStatus | None) -> bool:
        """`now` in seconds of any clock that only goes forward; `time` is None if there was no answer."""
        if time is not None and time.ingress_ns != self._ingress_ns:
            self._ingress_ns, self._fresh = time.ingress_ns, now
        offset = abs(time.master_offset_ns) if time is not None and time.present else None
        limits = self.limits
        if not slave or offset is None or offset > limits.beyond_ns or now - self._fresh > limits.stale_s:
            self.synchronised, self._since = False, None
        elif offset > limits.within_ns:
            self._since = None
        elif self._since is None:
            self._since = now
        self.synchronised |= self._since is not None and now - self._since >= limits.for_s
        return self.synchronised


class Questions:
    """The management socket of a ptp4l, asked from one of our own at `path`. A context manager."""

    def __init__(self, path: Path, server: Path, config: PtpConfig, answer_s: float) -> None:
        self.strangers = 0  # datagrams that were not from ptp4l
        self._path, self._server, self._config, self._answer_s = path, server, config, answer_s
        self._sequence = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    async def ask(self, what: Id, answers: int = 1) -> list[ptpmgmt.Answer]:
        """One question, and so many answers. Raises PtpError."""
        self._sequence = (self._sequence + 1) % (1 << 16)
        config = self._config
        how = {"domain": config.domain, "transport_specific": config.transport_specific}
        question = ptpmgmt.get(what, self._sequence, **how)
        found: list[ptpmgmt.Answer] = []
        try:
            async with asyncio.timeout(self._answer_s):
                # not blocking: a ptp4l that stands still does not empty its queue
                self._socket.sendto(question, os.fspath(self._server))
                while len(found) < answers:
                    if (answer := await self._receive()) is not None and answer.id is what:
                        found.append(answer)
        except OSError as error:  # TimeoutError is one
            raise PtpError(f"ptp4l gave no answer about {what.name}: {error.strerror or 'it takes too long'}") from None
        except ptpmgmt.Error as error:
            raise PtpError(f"ptp4l, asked about {what.name}: {error}") from error
        return found

    async def _receive(self) -> ptpmgmt.Answer | None:
        data, sender = await asyncio.get_running_loop().sock_recvfrom(self._socket, _DATAGRAM_BYTES)
        if sender != os.fspath(self._server):
            self.strangers += 1
            return None
        answer = ptpmgmt.parse(data)
        return answer if answer.sequence == self._sequence else None  # else it is late, to an earlier question

    def __enter__(self) -> Self:
        self._path.unlink(missing_ok=True)
        self._socket.setblocking(False)
        self._socket.bind(os.fspath(self._path))
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._path.unlink(missing_ok=True)


class Ptp:
    """A context manager: linuxptp runs from its beginning to its end.

    `directory` is ours alone: it holds the configuration and the sockets (`libqos.paths.make_private`)."""

    def __init__(self, config: PtpConfig, directory: Path, *, limits: PtpLimits | None = None) -> None:
        """Raises InputError if linuxptp is not installed, or `directory` has too long a name for sockets."""
        self.config, self.limits = config, limits or PtpLimits()
        self.status: Watched[PtpStatus] = Watched(PtpStatus())
        self._server, self._client = directory / "ptp4l.sock", directory / "client.sock"
        if len(os.fsencode(self._client)) > MAX_PATH_BYTES:
            raise InputError(f"{directory}: too long a name for sockets, accepted are {MAX_PATH_BYTES - 12} bytes")
        self._file = directory / "ptp4l.conf"
        self.ptp4l = Daemon("ptp4l", config.ptp4l(self._file))
        self.phc2sys = Daemon("phc2sys", config.phc2sys(self._server)) if config.system_clock else None
        self._stack = contextlib.AsyncExitStack()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._file.write_text(self.config.text(self._server))
        async with contextlib.AsyncExitStack() as stack:
            questions = stack.enter_context(Questions(self._client, self._server, self.config, self.limits.answer_s))
            for daemon in (self.ptp4l, self.phc2sys):
                if daemon is not None:
                    await stack.enter_async_context(daemon)
            self._task = asyncio.create_task(self._watch(questions))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._stack.aclose()

    async def _watch(self, questions: Questions) -> None:
        try:
            await self._look_again_and_again(questions)
        finally:  # whatever it was: nobody looks any more
            self.status.value = replace(self.status.value, synchronised=False, ports=(), offset_ns=None)

    async def _look_again_and_again(self, questions: Questions) -> None:
        clock = asyncio.get_running_loop().time
        judge = Judge(self.limits)
        answered = clock()
        starts = 0
        while True:
            seen = PtpStatus(last_error=self._last_error())
            time: TimeStatus | None = None
            try:
                seen, time = await self._look(questions)
                answered = clock()
            except PtpError as error:
                seen = replace(seen, last_error=seen.last_error or str(error))
            slave = PortState.SLAVE.name in seen.ports
            synchronised = judge.look(clock(), slave, time)
            self.status.value = replace(
                seen, synchronised=synchronised, starts=self.ptp4l.starts, strangers=questions.strangers
            )
            if self.ptp4l.starts != starts:
                starts, answered = self.ptp4l.starts, clock()
            elif clock() - answered > self.limits.hung_s:
                self.ptp4l.kill()
            await asyncio.sleep(self.limits.poll_s)

    async def _look(self, questions: Questions) -> tuple[PtpStatus, TimeStatus]:
        ports = [answer.data for answer in await questions.ask(Id.PORT_DATA_SET, len(self.config.interfaces))]
        (time,) = [answer.data for answer in await questions.ask(Id.TIME_STATUS_NP)]
        (current,) = [answer.data for answer in await questions.ask(Id.CURRENT_DATA_SET)]
        assert isinstance(time, TimeStatus)
        assert isinstance(current, CurrentDataSet)
        of_ports = sorted((port for port in ports if isinstance(port, PortDataSet)), key=lambda port: port.port)
        # without a grandmaster linuxptp repeats what it had from the last one
        followed = any(port.state in (PortState.SLAVE, PortState.UNCALIBRATED) for port in of_ports)
        status = PtpStatus(
            ports=tuple(port.state.name for port in of_ports),
            offset_ns=time.master_offset_ns if followed else None,
            mean_path_delay_ns=current.mean_path_delay_ns,
            steps_removed=current.steps_removed,
            grandmaster=time.grandmaster,
            last_error=self._last_error(),
        )
        return status, time

    def _last_error(self) -> str:
        error = self.ptp4l.last_error or (self.phc2sys.last_error if self.phc2sys is not None else "")
        return f"{', '.join(self.config.interfaces)}: {error}" if error else ""
