# SPDX-License-Identifier: Apache-2.0
"""Where the time of a round trip goes (thesis, Figure 5.15): send, network, receive, processing.

Four instants at each end, stamped by libselene: emit is called, the message is about to go to the kernel or the ring;
it has come from there, consume has it.

    client   begin  emit─handed                                            come─consumed  end
                         └────────▶ come─consumed ... emit─handed ────────────▶┘
    server

send is emit─handed of both, receive come─consumed of both. Processing is what the applications do: at the server from
consumed to emit, at the client from begin to emit and from consumed to end (the Python around the calls). The rest is
network: what passed at the client from handed to come, less what passed at the server from come to handed. So only
stamps of one clock are subtracted from each other, and the two hosts need no common time.

A pong cannot carry the stamps of its own emit: it has those of the one before, and a round trip is known when the next
one is over.
"""

from __future__ import annotations

import struct
import time
from array import array
from typing import TYPE_CHECKING, Final, NamedTuple

from selene.commands.perf_run import PeerError

if TYPE_CHECKING:
    import selene

SHARES: Final = ("send", "network", "receive", "processing")
WAYS: Final = ("there", "back")  # of the network share; they do need a common clock
STAMPS: Final = struct.Struct("<4Q")  # come, consumed of this ping; emit, handed of the pong before it


class Server:
    """The server's end: fills in its stamps."""

    def __init__(self, ping: selene.Sink, pong: selene.Source) -> None:
        self._ping, self._pong = ping.stamps(), pong.stamps()
        self._before = (0, 0)  # whom and what it answered last

    def fill(self, answer: bytearray, at: int, who: tuple[int, int]) -> None:
        """Write the stamps into an answer at `at`, for ping `who` (client, number)."""
        known = self._before == (who[0], who[1] - 1)
        pong = (self._pong.api_ns, self._pong.system_ns) if known else (0, 0)
        STAMPS.pack_into(answer, at, self._ping.system_ns, self._ping.api_ns, *pong)
        self._before = who


class Trip(NamedTuple):
    """A round trip. `shares_ns` is empty where they were not asked for, or not found out."""

    number: int
    rtt_ns: int
    arrived_ns: int  # monotonic
    shares_ns: dict[str, int]


class Client:
    """The client's end: puts the stamps together."""

    def __init__(self, ping: selene.Source, pong: selene.Sink) -> None:
        self._ping, self._pong = ping.stamps(), pong.stamps()
        self._parts = {name: array("q") for name in (*SHARES, *WAYS)}
        self._rtts = array("Q")
        self._half: tuple[Trip, tuple[int, ...], tuple[int, int]] | None = None  # its stamps, and the server's two

    def take(self, trip: Trip, begin_ns: int, end_ns: int, stamps: tuple[int, int, int, int]) -> Trip | None:
        """A trip is over, that began and ended at these Unix times: the one before, complete. Raises PeerError when the
        server does not stamp."""
        come, consumed, emitted, handed = stamps
        if consumed == 0:
            raise PeerError("the server does not stamp its answers: start it with this version")
        done = self._finish(emitted, handed)
        mine = (begin_ns, self._ping.api_ns, self._ping.system_ns, self._pong.system_ns, self._pong.api_ns, end_ns)
        self._half = (trip, mine, (come, consumed))
        return done

    def _finish(self, server_emitted: int, server_handed: int) -> Trip | None:
        if self._half is None:
            return None
        trip, (begin, emitted, handed, come, consumed, end), (server_come, server_consumed) = self._half
        if not (server_handed and handed):  # it waited in a batch, or the server answered somebody else in between
            return trip
        shares = {
            "send": handed - emitted + server_handed - server_emitted,
            "network": come - handed - (server_handed - server_come),
            "receive": consumed - come + server_consumed - server_come,
            "processing": emitted - begin + end - consumed + server_emitted - server_consumed,
            "there": server_come - handed,
            "back": come - server_handed,
        }
        return trip._replace(shares_ns=shares)

    def lose(self) -> Trip | None:
        """A trip was lost: the one before, as far as it is known."""
        half, self._half = self._half, None
        return half[0] if half is not None else None

    def count(self, trip: Trip) -> None:
        """A trip to count."""
        if trip.shares_ns:
            self._rtts.append(trip.rtt_ns)
            for name, value in trip.shares_ns.items():
                self._parts[name].append(value)

    def record(self, size_bytes: int) -> dict[str, object] | None:
        """The shares, their sum, and the round trip itself, which another clock has measured: means of the middle half
        of the round trips, since those that a busy machine held up would hide all others. Medians would not add up."""
        order = sorted(range(len(self._rtts)), key=self._rtts.__getitem__)
        middle = order[len(order) // 4 : len(order) - len(order) // 4]
        if not middle:
            return None
        means = {
            f"{name}_ns": round(sum(values[i] for i in middle) / len(middle)) for name, values in self._parts.items()
        }
        rtt_ns = round(sum(self._rtts[i] for i in middle) / len(middle))
        shares = {f"{name}_ns": means.pop(f"{name}_ns") for name in SHARES}
        return {
            "kind": "breakdown", "ts_ns": time.time_ns(), "metric": "rtt", "size_bytes": size_bytes,
            "count": len(middle), "shares": SHARES, **shares, "sum_ns": sum(shares.values()), "rtt_ns": rtt_ns, **means,
        }  # fmt: skip


def rows(record: dict[str, object]) -> list[dict[str, object]]:
    """A breakdown for a person: one row for each share."""
    total = int(str(record["rtt_ns"]))
    names = (*SHARES, "sum", "rtt")
    values = [int(str(record[f"{name}_ns"])) for name in names]
    return [
        {"kind": "share", "share": name, "mean_ns": value, "percent": round(100 * value / total, 1)}
        for name, value in zip(names, values, strict=True)
    ]
