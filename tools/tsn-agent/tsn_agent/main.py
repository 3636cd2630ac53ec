# SPDX-License-Identifier: Apache-2.0
"""The command `tsn-agent`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from libqos import cli, output
from libqos import config as configuration
from libqos.errors import QosError
from tsn_agent.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from tsn_agent.engine import Engine

Record = dict[str, Any]

_READ_ONLY: Final = ("info", "show", "capabilities", "streams", "paths", "clock")
_TIMEOUT_S: Final = 65.0  # as long as the daemon may take to apply
_SILENCE_S: Final = 30.0  # the daemon says every ten seconds that it is there

_STATE = click.option(
    "--state", "state", type=click.Path(dir_okay=False, path_type=Path), shell_complete=cli.complete_file,
    show_default="$STATE_DIRECTORY, else /var/lib/qos as root, else ~/.local/state/qos",
    help="What the agent must not forget: tsn-agent.db.",
)  # fmt: skip


_SOCKET = click.option(
    "--socket", "socket_path", metavar="PATH", envvar="QOS_TSN_AGENT_SOCKET", show_envvar=True,
    shell_complete=cli.complete_file, show_default="where the daemon's socket is found",
    help="Control socket of the daemon. Without a daemon, and with --state, the command does its work itself.",
)  # fmt: skip


def _ask(
    method: str, socket_path: str | None, state: Path | None, by_itself: Callable[[Engine], list[Record]], **params: Any
) -> list[Record]:
    """The records that the daemon answers, or, where there is none, what this process finds by itself."""
    from libqos import paths

    path = Path(socket_path) if socket_path else paths.client_socket("tsn-agent")
    if socket_path is None and (state is not None or not path.is_socket()):
        try:
            from tsn_agent.engine import Engine
            from tsn_agent.journal import default_path
        except ImportError as error:
            raise MissingExtraError(error) from error
        with Engine(state or default_path()) as engine:
            return by_itself(engine)
    return _tell(path, method, **params)


def _tell(socket_path: str | Path, method: str, **params: Any) -> list[Record]:
    """The records that the daemon answers."""
    from libqos import paths, rpc

    path = paths.status_socket(socket_path) if method in _READ_ONLY else Path(socket_path)
    try:
        records: list[Record] = rpc.call(path, {"method": method, "params": params}, timeout=_TIMEOUT_S)
    except rpc.RpcError as error:
        error.exit_code = cli.USAGE if error.code == "refused" else cli.FAILED
        raise
    return records


class MissingExtraError(QosError):
    """pyroute2 is not there."""

    def __init__(self, error: ImportError) -> None:
        super().__init__(f'{error.name} is not installed; install it with: pip install "qos-continuum[tsn]"')


def _show_changes(changes: list[Record], output_format: str) -> None:
    output.show(changes if output_format == "json" else _without(changes, "from", "to"), output_format)


def _without(records: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    """What is too wide for a table."""
    return [{name: value for name, value in record.items() if name not in names} for record in records]


@cli.group("tsn-agent")
@cli.common_options
def agent() -> None:
    """The agent of an end device in a time-sensitive network: VLANs, addresses, routes, gate lists, launch times.

    \b
    Example:
      tsn-agent apply --dry-run streams.toml
      tsn-agent apply streams.toml && tsn-agent show --format table
      tsn-agent run --streams streams.toml & tsn-agent watch
    """


@agent.command()
@cli.configured(Settings, tool="tsn-agent")
def run(settings: Settings) -> None:
    """The daemon: applies what is wanted, then watches links, drops and changes by others, and answers.

    It serves until SIGTERM, and leaves what was applied. SIGHUP applies the file anew.

    \b
    Example:
      tsn-agent run --streams /etc/qos/streams.toml
    """
    import asyncio

    try:
        from tsn_agent.daemon import Agent
    except ImportError as error:
        raise MissingExtraError(error) from error

    context = click.get_current_context()
    given = context.params
    overrides = {
        row[0]: given[name]
        for row in configuration.reference(Settings, tool="tsn-agent")
        if (name := f"table_{row[0].replace('.', '_')}") in given
    }
    file = given.get("config_file")
    cli.set_up_logging(settings.log_level.upper(), context.meta.get("libqos.log_format", "text"))
    daemon = Agent(settings, lambda: configuration.load(Settings, tool="tsn-agent", file=file, overrides=overrides))
    asyncio.run(daemon.run())


@agent.command()
@click.argument("file", shell_complete=cli.complete_file)
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@click.option("--check", is_flag=True, help="Validate the file without asking the kernel, and exit.")
@_SOCKET
@_STATE
@cli.format_option
def apply(
    file: str, dry_run: bool, check: bool, socket_path: str | None, state: Path | None, output_format: str
) -> None:
    """Give this device what FILE (- is stdin) wants, all of it or nothing. Prints each change.

    What an earlier file wanted and this one does not is taken away. What was there before is left, or given back by
    `tsn-agent clear`.

    \b
    Example:
      tsn-agent apply streams.toml | jq -r '[.action, .resource, .name] | @tsv'
    """
    from libqos import tomlfile

    text, name = tomlfile.read_text(file)
    document = tomlfile.parse(text, name)
    if check:
        from tsn_agent import wanted

        wanted.of_document(document).resources()
        click.echo(f"tsn-agent: {name}: valid", err=True)
        return

    def by_itself(engine: Engine) -> list[Record]:
        return [change.record() for change in engine.apply(document, dry_run=dry_run)]

    _show_changes(_ask("apply", socket_path, state, by_itself, text=text, name=name, dry_run=dry_run), output_format)


@agent.command()
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@_SOCKET
@_STATE
@cli.format_option
def clear(dry_run: bool, socket_path: str | None, state: Path | None, output_format: str) -> None:
    """Take away all that was applied, and give back what was there before.

    \b
    Example:
      tsn-agent clear --dry-run --format table
    """

    def by_itself(engine: Engine) -> list[Record]:
        return [change.record() for change in engine.clear(dry_run=dry_run)]

    _show_changes(_ask("clear", socket_path, state, by_itself, dry_run=dry_run), output_format)


@agent.command()
@_SOCKET
@_STATE
@cli.format_option
def show(socket_path: str | None, state: Path | None, output_format: str) -> int:
    """What is wanted beside what is there; exit 1 where they differ.

    \b
    Example:
      tsn-agent show | jq -c 'select(.state != "ok") | {resource, name, wanted, actual}'
    """
    records = _ask("show", socket_path, state, lambda engine: engine.show())
    output.show(records if output_format == "json" else _without(records, "wanted", "actual"), output_format)
    return cli.OK if all(record["state"] == "ok" for record in records) else cli.FAILED


@agent.command()
@click.argument("interfaces", nargs=-1)
@cli.format_option
def capabilities(interfaces: tuple[str, ...], output_format: str) -> None:
    """What the kernel and each interface (or those named) can do: queues, offloads, time stamps, clock.

    \b
    Example:
      tsn-agent capabilities | jq -c 'select(.kind == "interface" and .phc) | {name, phc, tx_queues}'
    """
    try:
        from tsn_agent import capabilities as ability
    except ImportError as error:
        raise MissingExtraError(error) from error

    output.show([ability.kernel(), *ability.interfaces(interfaces)], output_format)


@agent.command()
@cli.socket_option("tsn-agent")
@click.option("--recent", is_flag=True, help="What happened lately first.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many events.")
@cli.format_option
def watch(socket_path: str, recent: bool, count: int | None, output_format: str) -> None:
    """What the daemon sees, as it happens: links, drops, changes by others. Ends with Ctrl-C.

    \b
    Example:
      tsn-agent watch | jq -c 'select(.kind == "link") | {event, interface}'
    """
    from libqos import paths, rpc

    writer = output.writer(output_format)
    status = paths.status_socket(socket_path)
    question = {"method": "events", "params": {"recent": recent}}
    for record in rpc.stream(status, question, timeout=_SILENCE_S):
        if record["kind"] == "idle":
            continue
        writer.write(record)
        if count is not None and (count := count - 1) == 0:
            break


@agent.command()
@click.argument("stream")
@click.option("--destination", required=True, metavar="ADDRESS", help="IPv4 or IPv6 address of the listener.")
@click.option("--period", "period_ns", required=True, metavar="TIME", callback=cli.duration, help="Such as 1ms.")
@click.option("--size", "size_bytes", required=True, type=int, metavar="BYTES", help="UDP payload of each period.")
@click.option("--priority", required=True, type=click.IntRange(0, 7), help="SO_PRIORITY, which gives class and PCP.")
@click.option("--deadline", "deadline_ns", metavar="TIME", default="0", callback=cli.duration,
              help="From the beginning of the period to the end of the frame; 0: the whole period.")  # fmt: skip
@click.option("--interface", metavar="NAME", help="Interface to use.  [default: that of the route]")
@click.option("--speed-mbps", type=click.IntRange(min=1), help="Speed of an interface that does not tell it.")
@cli.socket_option("tsn-agent")
@cli.format_option
def request(socket_path: str, output_format: str, **need: Any) -> None:
    """Ask for a place for STREAM: which interface to use and when to launch, or why not.

    One of the same name is replaced. The place is kept until `tsn-agent release`.

    \b
    Example:
      tsn-agent request axis1 --destination 192.0.2.2 --period 1ms --size 64 --priority 5 |
          jq '{via, first_launch_ns, period_ns}'
    """
    output.show(_tell(socket_path, "request", **need), output_format)


@agent.command()
@click.argument("stream")
@cli.socket_option("tsn-agent")
@cli.format_option
def release(socket_path: str, output_format: str, stream: str) -> None:
    """Give back the place of STREAM.

    \b
    Example:
      tsn-agent release axis1
    """
    output.show(_tell(socket_path, "release", stream=stream), output_format)


@agent.command()
@cli.socket_option("tsn-agent")
@cli.format_option
def streams(socket_path: str, output_format: str) -> None:
    """The streams that have a place.

    \b
    Example:
      tsn-agent streams | jq -r '[.stream, .below, .offset_ns, .length_ns] | @tsv'
    """
    output.show(_tell(socket_path, "streams"), output_format)


@agent.command()
@cli.socket_option("tsn-agent")
@cli.format_option
def paths(socket_path: str, output_format: str) -> None:
    """The streams that are watched, and the way that each takes now.

    \b
    Example:
      tsn-agent paths | jq -r '[.stream, .interface, .moves] | @tsv'
    """
    output.show(_tell(socket_path, "paths"), output_format)


@agent.command()
@cli.socket_option("tsn-agent")
@cli.format_option
def info(socket_path: str, output_format: str) -> None:
    """The daemon: what it serves, and its counters.

    \b
    Example:
      tsn-agent info | jq .applied
    """
    output.show(_tell(socket_path, "info"), output_format)


@agent.command()
@click.option("--follow", is_flag=True, help="And each change of it, until Ctrl-C.")
@cli.socket_option("tsn-agent")
@cli.format_option
def clock(socket_path: str, output_format: str, follow: bool) -> int:
    """The clock that the daemon holds by PTP: ports, offset, grandmaster; exit 1 while it is not synchronised.

    \b
    Example:
      tsn-agent clock --follow | jq -c '{synchronised, offset_ns}'
    """
    from libqos import paths, rpc

    if not follow:
        (record,) = _tell(socket_path, "clock")
        output.show([record], output_format)
        return cli.OK if record["synchronised"] else cli.FAILED
    writer = output.writer(output_format)
    for record in rpc.stream(paths.status_socket(socket_path), {"method": "follow_clock"}, timeout=_SILENCE_S):
        writer.write(record)
    return cli.OK


main = cli.entry(agent)
