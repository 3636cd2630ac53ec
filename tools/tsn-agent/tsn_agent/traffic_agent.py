# SPDX-License-Identifier: Apache-2.0
"""What a talker or listener has to do with the agent of its host, over the agent's control socket (`libqos.rpc`).

A stream is attached by a call that streams, whose answers are orders (`stop`, `start`, `idle`); what the stream
suffers goes to the agent as calls of their own, one at a time. Nothing here is waited for: the agent may come and go,
and traffic goes on as it was. What waits for it is bounded, and that a stream is silent waits behind nothing else: when
a way fails there is much to tell.
"""

from __future__ import annotations

import os
import queue
import random
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from libqos import cli, rpc
from libqos.rpc import RpcError

if TYPE_CHECKING:
    from collections.abc import Sequence

ATTACH_TIMEOUT_S: Final = 10.0  # the agent says something at least this often
MAX_REPORTS: Final = 1024
_MAX_ORDERS: Final = 256
_TIMEOUT_S: Final = 2.0
_CLOSE_S: Final = 1.0
_BACK_OFF_S: Final = (0.1, 2.0)
_URGENT: Final = ("silent", "resumed")
_AGAIN: Final = ("no-daemon", "no-permission", "timeout", "closed", "busy")


class AgentLink:
    """The way to the agent, for all streams of a command whose role is `talker` or `listener`.

    Talkers get orders; `wake` is a descriptor that becomes readable when `orders` has something. Threads are daemons:
    what still waits for the agent at the end of the command ends with it."""

    def __init__(self, path: str, streams: Sequence[str], role: str) -> None:
        self.orders: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue(_MAX_ORDERS)
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.unreported = 0  # no room, or refused
        self._path = path
        self._role = role
        self._reports: tuple[dict[object, dict[str, Any]], ...] = ({}, {})  # that wait: urgent ones, and the others
        self._reporting = False
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._warned: str | None = None
        self._refused = False
        self._lock = threading.Lock()
        threads = [threading.Thread(target=self._attach, args=(stream,), daemon=True) for stream in streams]
        for thread in (*threads, threading.Thread(target=self._report, daemon=True)):
            thread.start()

    def report(self, stream: str, kind: str, **facts: object) -> None:
        """Tell the agent when it has time; what finds no room is counted. Reports with a count that wait are one of
        each kind: the newest, with the count of all."""
        event = facts.get("event")
        waiting = self._reports[event not in _URGENT]
        key: object = (stream, kind, event) if "count" in facts else object()
        report = {"stream": stream, "kind": kind, **facts}
        with self._changed:
            if (before := waiting.get(key)) is not None:
                report["count"] += before["count"]
            elif sum(map(len, self._reports)) >= MAX_REPORTS:
                self.unreported += 1
                return
            if event in _URGENT:  # the last word counts
                waiting.pop(key, None)
            waiting[key] = report
            self._changed.notify_all()

    def close(self) -> None:
        """No more orders and reports. What waits has a second to go, if the agent is there."""
        until = time.monotonic() + (0 if self._closed.is_set() else _CLOSE_S)
        with self._changed:
            while self._unfinished() and self._warned is None and (left := until - time.monotonic()) > 0:
                self._changed.wait(min(left, 0.1))
        self._closed.set()

    def _attach(self, stream: str) -> None:
        request = {"method": "attach", "params": {"stream": stream, "role": self._role}}
        wait = _BACK_OFF_S[0]
        while not self._closed.is_set():
            try:
                for order in rpc.stream(self._path, request, timeout=ATTACH_TIMEOUT_S):
                    self._say(None)
                    wait = _BACK_OFF_S[0]
                    if self._closed.is_set():
                        return
                    if self._role == "talker" and isinstance(order, dict) and order.get("order") != "idle":
                        self.orders.put((stream, order))
                        os.eventfd_write(self.wake, 1)
            except RpcError as error:
                self._say(str(error))
            self._closed.wait(wait * random.uniform(0.5, 1.0))  # many streams do not come back at one instant
            wait = min(2 * wait, _BACK_OFF_S[1])

    def _unfinished(self) -> bool:
        return self._reporting or any(self._reports)

    def _next(self) -> dict[str, Any]:
        """Wait for a report."""
        with self._changed:
            self._reporting = False
            self._changed.notify_all()
            while not any(self._reports):
                self._changed.wait()
            self._reporting = True
            waiting = self._reports[0] or self._reports[1]
            return waiting.pop(next(iter(waiting)))

    def _report(self) -> None:
        wait = _BACK_OFF_S[0]
        while not self._closed.is_set():
            report = self._next()
            while not self._closed.is_set():
                try:
                    rpc.call(self._path, {"method": "report", "params": report}, timeout=_TIMEOUT_S)
                    wait = _BACK_OFF_S[0]
                    break
                except RpcError as error:
                    if error.code not in _AGAIN:
                        self._refuse(error)
                        break
                    self._say(str(error))
                self._closed.wait(wait)
                wait = min(2 * wait, _BACK_OFF_S[1])

    def _refuse(self, error: RpcError) -> None:
        self.unreported += 1
        if not self._refused:
            cli.warn(f"agent: a report was refused: {error}; so may others be, without a word")
        self._refused = True

    def _say(self, problem: str | None) -> None:
        """One warning for each problem, and one when it is over."""
        with self._lock:
            if problem == self._warned:
                return
            self._warned = problem
        cli.warn("attached to the agent again" if problem is None else f"agent: {problem}; goes on without it")
