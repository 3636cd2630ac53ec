# SPDX-License-Identifier: Apache-2.0
"""How a command prints records in the format that was asked for (`libqos.cli.format_option`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Writer(Protocol):
    """What prints a record."""

    def write(self, record: Mapping[str, object]) -> None: ...


def writer(output_format: str) -> Writer:
    """What prints records as `json` or as `table`."""
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
