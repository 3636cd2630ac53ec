# SPDX-License-Identifier: Apache-2.0
"""`selene perf`: the options; what is measured stands in `perf_pingpong` and `perf_flood`."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from libqos import cli
from selene.commands import common

if TYPE_CHECKING:
    from collections.abc import Callable

    from selene.commands.perf_run import Plan

F = TypeVar("F", bound="Callable[..., Any]")

PINGPONG_CHANNEL: Final = 7000
FLOOD_CHANNEL: Final = 7010


@click.group("perf", cls=cli.Group)
def command() -> None:
    """Measure latency and throughput.

    Each measurement has two ends. Without a role both run here, in two processes on the local daemon; with a role one
    of them does, and the other is started elsewhere with the same --stream and --channel. These are figures of Python
    programs; those of C programs come from bench/selene-latency.
    """


def _role(name: str, meaning: str) -> Callable[[F], F]:
    return click.option(f"--{name}", "role", flag_value=name, default=None, show_default=False, help=meaning)


def _measurement(channel: int, smallest: int, delivery: str) -> Callable[[F], F]:
    """What both measurements take."""

    def decorate(function: F) -> F:
        options = (
            click.option("--size", "size_bytes", type=click.IntRange(smallest, 65536), default=64, metavar="BYTES",
                         help="Bytes of a message."),
            click.option("--rate", type=click.FloatRange(0, min_open=True), default=None, metavar="PER_SECOND",
                         show_default="as fast as it goes", help="Messages a second."),
            click.option("--relayed", is_flag=True, help="Through selened-dp, even where direct is possible."),
            click.option("--wait", type=click.Choice(["blocking", "spin"]), default="blocking",
                         help="Sleep while waiting, or poll."),
            click.option("--delivery", type=click.Choice(["best-effort", "reliable"]), default=delivery,
                         help="Of the stream: count what is dropped, or wait for those who are behind."),
            click.option("--stream", type=click.IntRange(0, 2**32 - 1), default=0, metavar="ID", help="Stream to use."),
            click.option("--channel", type=click.IntRange(0, 2**64 - 4), default=channel, metavar="ID",
                         help="First of the channels to use; the next ones are for the way back."),
            click.option("--timeout", "timeout_s", type=click.FloatRange(0, min_open=True), default=10.0,
                         metavar="SECONDS", help="How long to wait for the other end."),
            common.options,
        )  # fmt: skip
        return functools.reduce(lambda wrapped, wrap: wrap(wrapped), reversed(options), function)

    return decorate


def _counts(count: int, warmup: int) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        options = (
            click.option("--count", type=click.IntRange(1), default=count, metavar="N", help="Messages to measure."),
            click.option("--warmup", type=click.IntRange(0), default=warmup, metavar="N",
                         help="Messages before those, not measured."),
        )  # fmt: skip
        return functools.reduce(lambda wrapped, wrap: wrap(wrapped), reversed(options), function)

    return decorate


def _plan(**values: Any) -> Plan:
    from selene.commands.perf_run import Plan

    return Plan(**values)


@command.command("pingpong")
@_role("client", "Only this end: send, and wait for the answer.")
@_role("server", "Only this end: answer, until interrupted.")
@_counts(10_000, 1_000)
@_measurement(PINGPONG_CHANNEL, 16, "best-effort")
@click.option("--samples", is_flag=True, help="Print each round trip too.")
@click.option("--breakdown", is_flag=True, help="Print where the time goes: send, network, receive, processing.")
def pingpong(role: str | None, samples: bool, breakdown: bool, **values: Any) -> int:
    """Round trips: one message there, one back.

    Prints a summary of the round-trip times ("metric":"rtt"); with --samples each of them before it, as a latency
    record (with --rate also its jitter); with --breakdown after it a breakdown record, the mean of each share. The
    server needs no option for it.
    """
    from selene.commands import perf_pingpong

    if breakdown and values["size_bytes"] < perf_pingpong.STAMPED_BYTES:
        raise click.UsageError(
            f"--breakdown: found --size {values['size_bytes']}, accepted {perf_pingpong.STAMPED_BYTES} or more"
        )
    return perf_pingpong.run(_plan(**values), role, samples, breakdown)


@command.command("flood")
@_role("source", "Only this end: send.")
@_role("sink", "Only this end: receive.")
@_counts(200_000, 10_000)
@_measurement(FLOOD_CHANNEL, 0, "reliable")
def flood(role: str | None, **values: Any) -> int:
    """Throughput: as many messages as possible one way.

    Each end prints a throughput record: what it sent or received a second, and the sink what was lost, duplicated or
    reordered. The sink takes --size, --count and --warmup from the source.
    """
    from selene.commands import perf_flood

    return perf_flood.run(_plan(**values), role)
