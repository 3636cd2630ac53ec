# SPDX-License-Identifier: Apache-2.0
"""What lunar-pub and lunar-sub share: their options, and how they open Lunar with them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from libqos import cli

if TYPE_CHECKING:
    from collections.abc import Callable

    from libqos.policy import QosClass
    from lunar.mom import Lunar

F = TypeVar("F", bound="Callable[..., Any]")

RELIABLE: Final = "delivery=reliable"  # cat file | lunar-pub loses nothing


class Positive(click.ParamType[float]):
    """A number above 0."""

    name = "number"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not (number > 0 and math.isfinite(number)):
            self.fail(f"found {value!r}, accepted a number above 0", parameter, context)
        return number


@dataclass(frozen=True)
class Connection:
    """The options of `lunar.Lunar` from the command line."""

    socket_path: str
    qos: str
    stream: int
    wait: str
    relayed: bool

    def open(self, program: str) -> tuple[Lunar, QosClass]:
        """Connect; warns of what cannot be given. Raises PolicyError, SeleneError."""
        from libqos import policy

        qos = policy.parse(self.qos)
        _schedule(qos)
        from lunar.mom import Lunar

        wait: Any = self.wait
        moon = Lunar(
            qos=qos, stream=self.stream, wait=wait, socket=self.socket_path, relayed=self.relayed, program=program
        )
        for remark in moon.remarks:
            cli.warn(remark)
        return moon, qos


def _complete_class(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    from libqos.policy import CLASSES

    return [item.name for item in CLASSES.values() if item.name.lower().startswith(incomplete.lower())]


def options(function: F) -> F:
    """The shared options, given to the command as `connection`."""

    @functools.wraps(function)
    def call(*args: Any, socket_path: str, qos: str, stream: int, wait: str, relayed: bool, **arguments: Any) -> Any:
        return function(*args, connection=Connection(socket_path, qos, stream, wait, relayed), **arguments)

    decorators = (
        click.option(
            "--qos", default=RELIABLE, metavar="QOS", shell_complete=_complete_class,
            help="Quality: a class such as slow, fast, SQ or BQ, and/or key=value,… such as fast,delivery=reliable.",
        ),
        click.option(
            "--stream", type=click.IntRange(0, 2**32 - 1), default=0, metavar="ID",
            help="Stream; publishers and subscribers meet within one.",
        ),
        click.option(
            "--wait", type=click.Choice(["auto", "sleep", "spin"]), default="auto",
            help="How to wait; auto sleeps, or spins where --qos allows any resources.",
        ),
        click.option("--relayed", is_flag=True, help="Through the datapath process, even where direct is possible."),
        cli.socket_option("selened", "SELENE_SOCKET", "QOS_SELENE_SOCKET"),
        cli.common_options,
    )  # fmt: skip
    wrapped: F = functools.reduce(lambda inner, wrap: wrap(inner), reversed(decorators), call)  # type: ignore[assignment]
    return wrapped


def topic_argument(function: F) -> F:
    """TOPIC: 1 to 255 bytes of UTF-8."""

    def check(_: click.Context, parameter: click.Parameter, value: str) -> str:
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise click.BadParameter("found bytes that are no UTF-8, accepted UTF-8", param=parameter) from None
        if not 1 <= size <= 255:
            raise click.BadParameter(f"found {size} bytes, accepted 1 to 255", param=parameter)
        return value

    return click.argument("topic", callback=check)(function)


def verbose() -> bool:
    """Whether -v was given."""
    return bool(click.get_current_context().meta.get("libqos.verbose", 0))


def _schedule(qos: QosClass) -> None:
    """The scheduling class of the traffic; threads of the library, made later, inherit it."""
    from libqos.policy import Scheduler

    if qos.scheduler is Scheduler.OTHER:
        return
    from libqos import rt

    try:
        rt.set_scheduler(rt.SchedulingClass[qos.scheduler.name], qos.priority)
    except rt.RtError as error:
        cli.warn(f"goes on without {qos.scheduler} {qos.priority}: {error.strerror}")
