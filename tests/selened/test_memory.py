# SPDX-License-Identifier: Apache-2.0
"""Memory does not grow with the number of messages, in no process of two hosts.

Clients (storm.c, as in test_kills.py) send reliable messages between the hosts, directly and relayed, and on one host
through shared memory. From the first tenth of all messages to the last one, what daemons and clients have mapped stays
the same, and so does what of it is in memory, except that a part of a pool counts from when it is first used.

`QOS_MESSAGES=10000000` is how many messages arrive, at all sinks together; the default is for every day.
"""

from __future__ import annotations

import faulthandler
import json
import os
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.selened.conftest import memory
from tests.selened.test_fsck import fsck
from tests.selened.test_kills import System

if TYPE_CHECKING:
    from collections.abc import Iterator

MESSAGES: Final = int(os.environ.get("QOS_MESSAGES", "300000"))
STEP: Final = 1000  # of each client, between two looks
# What each kind of process may grow by, in MiB. Memory of its own (RssAnon): a Python program's heap grows in arenas; a
# client receives into 128 slabs of 64 KiB, of which the last is first used when it has been slow for a moment. Shared
# (RssShmem): the buffers of the clients' sources and of the relay, all of them mapped by selened-dp. VmSize: mapped.
GROWTH_MIB: Final = {
    "selened": {"RssAnon": 3, "RssShmem": 0, "VmSize": 3},
    "selened-dp": {"RssAnon": 1, "RssShmem": 16, "VmSize": 1},
    "client": {"RssAnon": 9, "RssShmem": 16, "VmSize": 1},
}

pytestmark = pytest.mark.timeout(120 + MESSAGES // 10000)


@pytest.fixture
def system(peers: tuple[Any, Any]) -> Iterator[System]:
    faulthandler.cancel_dump_traceback_later()  # the mark's own time holds, which grows with MESSAGES
    system = System(list(peers))
    yield system
    system.close()


def processes(system: System) -> list[tuple[str, int]]:
    """Kind and process id of each."""
    daemons = [("selened", host.process.pid) for host in system.hosts]
    datapaths = [("selened-dp", host.datapath_pid()) for host in system.hosts]
    return daemons + datapaths + [("client", client.process.pid) for client in system.steady]


def after(system: System, messages: int) -> list[dict[str, int]]:
    """What each process has in memory and mapped, in bytes, when so many messages have arrived."""
    while arrived(system) < messages:
        system.wait_for_flow(STEP)
    return [{field: memory(pid, field) for field in GROWTH_MIB[kind]} for kind, pid in processes(system)]


def arrived(system: System) -> int:
    return sum(client.stats()["received"] for client in system.steady)


def test_memory_stays_flat_and_every_buffer_is_accounted_for(system: System) -> None:
    begun = arrived(system)
    first = after(system, begun + MESSAGES // 10)
    last = after(system, begun + MESSAGES)
    for (kind, pid), before, now in zip(processes(system), first, last, strict=True):
        growth = {field: now[field] - before[field] for field in now}
        print(json.dumps({"process": kind, "pid": pid, "messages": MESSAGES, "bytes": now, "growth_bytes": growth}))
        for field, bytes_ in growth.items():
            assert bytes_ <= GROWTH_MIB[kind][field] << 20, f"{kind} (pid {pid}): {field} grew by {bytes_} bytes"
    system.settle()
    system.nothing_went_wrong()
    system.no_descriptors_left()
    for host in system.hosts:
        status, records, said = fsck(host)
        assert (status, records[-1]["problems"]) == (0, 0), said
