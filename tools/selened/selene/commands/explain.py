# SPDX-License-Identifier: Apache-2.0
"""`selene explain`."""

from __future__ import annotations

from typing import Any

import click

from libqos import cli, output
from selene.commands import common


@click.command("explain", cls=cli.Command)
@click.option("--acceleration", type=click.Choice(["slow", "fast"]), help="Of the stream to explain.")
@click.option("--resources", type=click.Choice(["low", "any"]), help="Of the stream to explain.")
@click.option("--time-sensitive", is_flag=True, help="Of the stream to explain.")
@common.options
def command(
    acceleration: str | None, resources: str | None, time_sensitive: bool, socket_path: str, output_format: str
) -> None:
    """Why a stream or a session uses what it uses.

    With policies: what such a stream would get on this host, with every technology that was considered and why it was
    refused. Without: the same for each stream that is open, and why its session is direct or relayed.
    """
    params: dict[str, Any] = {}
    if acceleration is not None:
        params["acceleration"] = acceleration
    if resources is not None:
        params["resources"] = resources
    if time_sensitive:
        params["time_sensitive"] = True
    records = common.ask(socket_path, "explain", **params)
    if output_format == "table":
        records = [row for record in records for row in _for_person(record)]
    output.show(records, output_format)


def _for_person(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The decision, then a row for each candidate."""
    decision = {key: value for key, value in record.items() if key != "candidates"}
    stream = {key: record[key] for key in ("session", "stream") if key in record}
    candidates = record.get("candidates", [])
    return [decision, *({"kind": "candidate", **stream, **candidate} for candidate in candidates)]
