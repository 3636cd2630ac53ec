# SPDX-License-Identifier: Apache-2.0
"""The command `selene`: looking into the local selened, and measuring.

Each subcommand is a module in `selene.commands` with a `command`, loaded when it is called: `selene --help` must not
wait for what `selene perf` needs. Its one-line help stands here for the same reason; a test holds the two together.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

import click

from libqos import cli

COMMANDS: Final = {
    "info": "What the daemon is serving: peers, sessions, streams, sources, sinks.",
    "explain": "Why a stream or a session uses what it uses.",
    "stats": "Counters of the datapath and of every source and sink.",
    "fsck": "Whether every buffer of the live system is accounted for.",
    "perf": "Measure latency and throughput.",
}


class LazyGroup(cli.Group):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module: Any = importlib.import_module(f"selene.commands.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group("selene", cls=LazyGroup, context_settings=cli.settings("selene"))
@cli.common_options
def selene() -> None:
    """Client of selened, the daemon of SELENE on this host."""


main = cli.entry(selene)
