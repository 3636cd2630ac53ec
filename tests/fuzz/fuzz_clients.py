# SPDX-License-Identifier: Apache-2.0
"""What clients say to selened: packets over SEQPACKET, with descriptors. The input is a list of packets of two
clients, most of them of the right shape."""

import asyncio
import os
import socket

from atheris import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
    FuzzedDataProvider,
)
from selened import wire
from selened.sessions import Client
from selened.wire import lib

from tests.fuzz.daemon import Daemon

DAEMON = Daemon(max_sessions=2, direct_ports="47110-47119")  # few, since all are shuffled for each session
NETNS = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
EVENT = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
UDP = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
UDP.bind(("127.0.0.1", 0))
UNIX = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
STEPS = [0]  # packets
FDS = (NETNS, EVENT, UDP.fileno(), UNIX.fileno())
STRUCTS = (
    ("selene_hello", lib.SELENE_C_HELLO),
    ("selene_stream_open", lib.SELENE_C_STREAM),
    ("selene_endpoint_open", lib.SELENE_C_SOURCE),
    ("selene_endpoint_open", lib.SELENE_C_SINK),
    ("selene_close", lib.SELENE_C_CLOSE),
    ("selene_close", lib.SELENE_C_ACCEPTED),
)


def _number(data: FuzzedDataProvider, bits: int) -> int:
    small: int = data.ConsumeIntInRange(0, 15)
    if small < 8:
        return small % 4
    if small < 12:  # an id that this host may have given
        return ((DAEMON.core.host << 32 | DAEMON.core._last_id) - small % 4) & ((1 << bits) - 1)
    return int(data.ConsumeIntInRange(0, (1 << bits) - 1))


def _packet(data: FuzzedDataProvider) -> bytes:
    name, kind = STRUCTS[data.ConsumeIntInRange(0, len(STRUCTS) - 1)]
    fields: dict[str, object] = {}
    for field, of in wire.ffi.typeof(f"struct {name}").fields:
        if of.type.kind == "primitive":
            fields[field] = _number(data, wire.ffi.sizeof(of.type) * 8)
        elif of.type.kind == "array":
            fields[field] = data.ConsumeBytes(data.ConsumeIntInRange(0, min(of.type.length, 40)))
    if "name_length" in fields and data.ConsumeBool():
        fields["name_length"] = len(fields["name"])  # type: ignore[arg-type]
    packet = bytearray(wire.build(name, kind, data.ConsumeIntInRange(0, 3), **fields))
    if data.ConsumeIntInRange(0, 15) == 0:  # not quite of the right shape
        del packet[data.ConsumeIntInRange(0, len(packet)) :]
        for _ in range(data.ConsumeIntInRange(0, 4)):
            if packet:
                packet[data.ConsumeIntInRange(0, len(packet) - 1)] = data.ConsumeIntInRange(0, 255)
    return bytes(packet)


def test_one_input(raw: bytes) -> None:
    data = FuzzedDataProvider(raw)

    async def talk() -> None:
        ours, tasks = [], []
        for _ in range(2):
            pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.append(pair[0])
            pair[0].setblocking(False)
            tasks.append(asyncio.ensure_future(Client(DAEMON.core, pair[1]).run()))
        if data.ConsumeBool():
            for sock in ours:
                socket.send_fds(sock, [wire.build("selene_hello", lib.SELENE_C_HELLO, 1)], [NETNS])
        while data.remaining_bytes():
            STEPS[0] += 1
            sock = ours[data.ConsumeIntInRange(0, 1)]
            fds = [FDS[data.ConsumeIntInRange(0, len(FDS) - 1)] for _ in range(data.ConsumeIntInRange(0, 3))]
            try:
                socket.send_fds(sock, [_packet(data)], fds)
            except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                break
            for _ in range(data.ConsumeIntInRange(0, 3)):
                await asyncio.sleep(0)
        for sock in ours:
            sock.shutdown(socket.SHUT_WR)
        await asyncio.gather(*tasks)
        for sock in ours:
            sock.close()

    DAEMON.run(talk)
