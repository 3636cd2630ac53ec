# SPDX-License-Identifier: Apache-2.0
"""The command lines: options, topics, channels. The first byte chooses a command, zero bytes part its arguments."""

import contextlib
import io
from collections.abc import Iterator

import click
from lunar import pub, sub
from selene import cli
from selened import main

from libqos import plot, stat
from libqos.errors import InputError


def _with_subcommands(command: click.Command) -> Iterator[click.Command]:
    yield command
    if isinstance(command, click.Group):
        context = click.Context(command, **command.context_settings)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from _with_subcommands(below)


COMMANDS = [command for entry in (pub, sub, stat, plot, main, cli) for command in _with_subcommands(entry.main.command)]


def test_one_input(data: bytes) -> None:
    command = COMMANDS[data[0] % len(COMMANDS)] if data else COMMANDS[0]
    arguments = [part.decode(errors="surrogateescape") for part in data[1:].split(b"\0")]
    # an option that reads a file is for the target of that file
    arguments = [argument for argument in arguments if "/" not in argument]
    refusals = contextlib.suppress(InputError, click.ClickException, click.exceptions.Exit)
    with contextlib.redirect_stdout(io.StringIO()), refusals:
        command.make_context(command.name, arguments).close()
