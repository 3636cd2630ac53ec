# SPDX-License-Identifier: Apache-2.0
"""What the subcommands share: where the daemon is, and how records are printed."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from libqos import cli

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

F = TypeVar("F", bound="Callable[..., Any]")


class Writer(Protocol):
    """What prints a record."""

    def write(self, record: Mapping[str, object]) -> None: ...


def options(function: F) -> F:
    """`--socket`, `--format`, and what every command has."""
    decorators = (
        cli.socket_option("selened", "SELENE_SOCKET", "QOS_SELENE_SOCKET"),
        cli.format_option,
        cli.common_options,
    )
    return functools.reduce(lambda wrapped, wrap: wrap(wrapped), reversed(decorators), function)


def ask(socket_path: str, method: str, timeout: float = 2.0, **params: object) -> list[dict[str, Any]]:
    """The records that the daemon answers within `timeout` seconds. Raises RpcError."""
    from libqos import paths, rpc

    records = rpc.call(paths.status_socket(socket_path), {"method": method, "params": params}, timeout=timeout)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise rpc.RpcError("bad-reply", f"{socket_path}: the answer is no list of records")
    return records


def writer(output_format: str) -> Writer:
    """What prints records in the format that was asked for."""
    if output_format == "table":
        from libqos.table import TableWriter

        return TableWriter()
    from libqos import telemetry

    return telemetry.Writer()


def show(records: Iterable[Mapping[str, object]], output_format: str) -> None:
    """Print records; in a table those of one kind stand together under a title."""
    target = writer(output_format)
    if output_format != "table":
        for record in records:
            target.write(record)
        return
    import click

    kind = None
    for record in sorted(records, key=lambda item: str(item["kind"])):
        if record["kind"] != kind:
            if kind is not None:
                click.echo()
            kind = record["kind"]
            click.echo(f"[{kind}]")
            target = writer(output_format)
        target.write(record)
