# SPDX-License-Identifier: Apache-2.0
"""`selene info`."""

from __future__ import annotations

from typing import Any, Final

import click

from libqos import cli, output
from selene.commands import common

KINDS: Final = ["daemon", "discovery", "peer", "session", "stream", "source", "sink"]


@click.command("info", cls=cli.Command)
@click.option("--kind", type=click.Choice(KINDS), help="Only records of this kind.")
@common.options
def command(kind: str | None, socket_path: str, output_format: str) -> None:
    """What the daemon is serving: peers, sessions, streams, sources, sinks.

    One record each. A session's `path` is direct or relayed, and `why` says why; a peer's `state` is connected or
    connecting, and `reason` says what is wrong.
    """
    records = common.ask(socket_path, "info")
    if kind is not None:
        records = [record for record in records if record["kind"] == kind]
    if output_format == "table":
        records = [_for_person(record) for record in records]
    output.show(records, output_format)


def _for_person(record: dict[str, Any]) -> dict[str, Any]:
    """Without what does not fit into a line: the configuration is in the JSON."""
    return {key: value for key, value in record.items() if key != "config"}
