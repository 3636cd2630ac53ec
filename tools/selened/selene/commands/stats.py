# SPDX-License-Identifier: Apache-2.0
"""`selene stats`."""

from __future__ import annotations

import click

from libqos import cli, output
from selene.commands import common


@click.command("stats", cls=cli.Command)
@click.option("--follow", is_flag=True, help="Again and again, until interrupted.")
@click.option(
    "--interval", "interval_s", type=click.FloatRange(0.1, 3600), default=1.0, metavar="SECONDS", help="With --follow."
)
@common.options
def command(follow: bool, interval_s: float, socket_path: str, output_format: str) -> None:
    """Counters of the datapath and of every source and sink.

    One record for the datapath process (what it relayed, and every datagram it refused or lost, by reason), one per
    session it relays for, one per source and sink. The last are kept by the client itself.
    """
    if not follow:
        output.show(common.ask(socket_path, "stats"), output_format)
        return
    from libqos import paths, rpc

    request = {"method": "follow", "params": {"interval_s": interval_s}}
    for records in rpc.stream(paths.status_socket(socket_path), request, timeout=interval_s + 5):
        output.show(records, output_format)
