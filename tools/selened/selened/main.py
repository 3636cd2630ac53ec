# SPDX-License-Identifier: Apache-2.0
"""The command `selened`."""

from __future__ import annotations

import contextlib
import fcntl
import os

import click

from libqos import cli
from libqos import config as configuration
from selened.settings import Settings


def _overrides() -> dict[str, object]:
    """What the command line gave, by key of the table: a reload must not lose it."""
    given = click.get_current_context().params
    keys = [row[0] for row in configuration.reference(Settings, tool="selened")]
    return {key: given[name] for key in keys if (name := f"table_{key.replace('.', '_')}") in given}


def _append_to_log() -> None:
    """Never write over what selened-dp, which may be older than we are, writes to the same file."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(2, fcntl.F_SETFL, fcntl.fcntl(2, fcntl.F_GETFL) | os.O_APPEND)


@cli.command("selened")
@cli.common_options
@cli.configured(Settings, tool="selened")
def selened(settings: Settings) -> None:
    """Control daemon of SELENE: sessions, streams, channels and peers of this host.

    It starts selened-dp, which carries the data, and serves until SIGTERM. SIGHUP reloads the configuration.
    """
    import asyncio

    from selened.daemon import Daemon

    context = click.get_current_context()
    file, overrides = context.params.get("config_file"), _overrides()
    log_format = context.meta.get("libqos.log_format", "text")
    _append_to_log()
    cli.set_up_logging(settings.log_level.upper(), log_format)

    async def serve() -> None:
        await Daemon(
            settings, lambda: configuration.load(Settings, tool="selened", file=file, overrides=overrides), log_format
        ).run()

    asyncio.run(serve())


main = cli.entry(selened)
