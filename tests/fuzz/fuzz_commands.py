# SPDX-License-Identifier: Apache-2.0
"""The command lines: options, topics, channels. The first byte chooses a command, zero bytes part its arguments."""

import contextlib
import io

import click
from lunar import pub, sub
from selene import cli
from selened import main

from libqos import plot, stat
from libqos.errors import InputError

COMMANDS = [entry.main.command for entry in (pub, sub, stat, plot, cli, main)]


def test_one_input(data: bytes) -> None:
    command = COMMANDS[data[0] % len(COMMANDS)] if data else COMMANDS[0]
    arguments = [part.decode(errors="surrogateescape") for part in data[1:].split(b"\0")]
    # an option that reads a file is for the target of that file
    arguments = [argument for argument in arguments if "/" not in argument]
    refusals = contextlib.suppress(InputError, click.ClickException, click.exceptions.Exit)
    with contextlib.redirect_stdout(io.StringIO()), refusals:
        command.make_context(command.name, arguments).close()
