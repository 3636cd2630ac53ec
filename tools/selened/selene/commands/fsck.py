# SPDX-License-Identifier: Apache-2.0
"""`selene fsck`."""

from __future__ import annotations

import click

from libqos import cli, output
from selene.commands import common


@click.command("fsck", cls=cli.Command)
@click.option(
    "--looks",
    type=click.IntRange(1, 100),
    default=3,
    metavar="N",
    help="A session is judged if it is the same in N looks.",
)
@click.option(
    "--interval", "interval_s", type=click.FloatRange(0.001, 10), default=0.1, metavar="SECONDS", help="Between looks."
)
@common.options
def command(looks: int, interval_s: float, socket_path: str, output_format: str) -> None:
    """Whether every buffer of the live system is accounted for.

    One record per transmit pool (of a session) and per receive pool (of a user), one of the daemons' tables, and the
    verdict. A session that works while it is looked at is reported as it is, and not judged. Changes nothing. Exit
    status 1 if something is wrong: `problems` says what.
    """
    records = common.ask(socket_path, "fsck", looks * interval_s + 10, looks=looks, interval_s=interval_s)
    output.show(records, output_format)
    if not records[-1]["ok"]:
        click.get_current_context().exit(1)
