# SPDX-License-Identifier: Apache-2.0
"""What every command line shares: options, exit codes, and one way out.

A command is thin: parse, call the library, print. It is made like this, and its entry point is `main`::

    @cli.command("qos-stat")
    @cli.common_options
    @cli.format_option
    def stat(output_format: str) -> int | None:
        '''Turn samples into summaries.'''

    main = cli.entry(stat)

Exit codes: 0 done, 1 failed, 2 wrong usage, configuration or input, 130 interrupted. A reader that closes the pipe
(`| head`) has what it wants, so that is a quiet 0. Known errors (`QosError`, and what the operating system refuses) are
one line on stderr; anything else is a bug and keeps its traceback.

Every option is also a variable: `QOS_<TOOL>_<OPTION>`. Completion is click's own: `.ci/completions` writes it where
shells look, and `eval "$(_QOS_STAT_COMPLETE=bash_source qos-stat)"` has it in one shell.

Nothing heavy is imported here: `--help` of every command must answer in 200 ms.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, TypeVar

import click
from click.core import ParameterSource

from libqos.environment import environment_name, environment_prefix
from libqos.errors import QosError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from libqos import config

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130

DISTRIBUTION: Final = "qos-continuum"

F = TypeVar("F", bound=Callable[..., Any])
_LEVELS: Final = ("WARNING", "INFO", "DEBUG")


class Entry(Protocol):
    """An entry point; `command` is what manuals and tests look at."""

    command: click.Command

    def __call__(self, arguments: Sequence[str] | None = None) -> NoReturn: ...


class PipeClosedError(Exception):
    """The reader of stdout has gone. No OSError, which click would turn into its own exit code."""


class InterruptedCommandError(Exception):
    """Ctrl-C. No KeyboardInterrupt, at which click would print an empty line."""


class Command(click.Command):
    """A command of the family; for a subcommand outside of `@group.command()` give it as `cls=cli.Command`."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except BrokenPipeError as error:  # --help | head
            raise PipeClosedError from error

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # click names a variable after the parameter of the function; ours is named after the option.
        for parameter in self.get_params(ctx):
            switch = isinstance(parameter, click.Option) and parameter.is_flag and parameter.is_eager  # --help
            if isinstance(parameter, click.Option) and parameter.envvar is None and not switch:
                longest = max(parameter.opts, key=len).lstrip("-").replace("-", "_").upper()
                parameter.envvar = f"{ctx.auto_envvar_prefix}_{longest}"
                parameter.allow_from_autoenv = False
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise PipeClosedError from error
        except KeyboardInterrupt as error:
            raise InterruptedCommandError from error


class Group(Command, click.Group):
    """A command with subcommands of the family."""

    command_class = Command
    group_class = type


def settings(tool: str) -> dict[str, Any]:
    """The click context settings of every command."""
    return {
        "auto_envvar_prefix": environment_prefix(tool),
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "show_default": True,
    }


def command(tool: str, **attributes: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """`click.command` with the settings of the family. `tool` is the name that a person types."""
    return click.command(tool, cls=Command, context_settings=settings(tool), **attributes)


def group(tool: str, **attributes: Any) -> Callable[[Callable[..., Any]], click.Group]:
    """`click.group` with the settings of the family."""
    return click.group(tool, cls=Group, context_settings=settings(tool), **attributes)


def entry(target: click.Command) -> Entry:
    """The entry point of a command for `[project.scripts]`: runs it and exits."""

    def main(arguments: Sequence[str] | None = None) -> NoReturn:
        sys.exit(run(target, arguments))

    main.command = target  # type: ignore[attr-defined]
    return main  # type: ignore[return-value]


def run(target: click.Command, arguments: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit code. The command gives its own by returning an int."""
    name = target.name or os.path.basename(sys.argv[0])
    status = OK
    try:
        result = target.main(arguments, prog_name=name, standalone_mode=False)
        status = result if type(result) is int else OK
        sys.stdout.flush()
    except (InterruptedCommandError, click.exceptions.Abort, KeyboardInterrupt):  # Abort: click's word for the same
        status = INTERRUPTED
    except click.UsageError as error:
        _print_usage_error(name, error)
        status = USAGE
    except click.ClickException as error:
        print_error(name, error.format_message())
        status = error.exit_code
    except (PipeClosedError, BrokenPipeError):
        status = OK
    except QosError as error:
        print_error(name, str(error))
        status = error.exit_code
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        print_error(name, f"{where}{error.strerror or error}")
        status = FAILED
    except SystemExit as error:
        status = error.code if type(error.code) is int else FAILED
    return _close_stdout(status)


def print_error(name: str, message: str) -> None:
    """One line on stderr for each line of the message, with the command's name in front."""
    for line in message.splitlines() or [""]:
        click.echo(f"{name}: error: {line}", err=True)


def warn(message: str) -> None:
    """One warning line on stderr: what happened, and what to do about it."""
    context = click.get_current_context(silent=True)
    name = context.find_root().info_name if context is not None else os.path.basename(sys.argv[0])
    if context is not None and context.meta.get("libqos.log_format") == "json":
        import logging

        logging.getLogger(name).warning("%s", message)
    else:
        click.echo(f"{name}: warning: {message}", err=True)


def _print_usage_error(name: str, error: click.UsageError) -> None:
    path = error.ctx.command_path if error.ctx is not None else name
    print_error(path, f"{error.format_message()} (see {path} --help)")


def _close_stdout(status: int) -> int:
    """Flush stdout now: at interpreter exit a closed pipe would print a traceback."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass
    except OSError as error:  # a full disk: the data did not arrive
        print_error(os.path.basename(sys.argv[0]), f"stdout: {error.strerror}")
        status = status or FAILED
    except ValueError:  # closed already
        return status
    else:
        return status
    # What could not be written is still in the buffer, and Python would try again at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def common_options(function: F) -> F:
    """`--version`, `-v`, `--log-format`."""
    options = (
        click.option(
            "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, show_envvar=False,
            help="Show the version and exit.",
        ),
        click.option(
            "-v", "--verbose", count=True, expose_value=False, is_eager=True, callback=_set_verbose,
            help="Say more on stderr; twice for debugging.", show_default=False,
        ),
        click.option(
            "--log-format", type=click.Choice(["text", "json"]), default="text", expose_value=False, is_eager=True,
            callback=_set_log_format, help="Logs on stderr for a person or for a machine.",
        ),
    )  # fmt: skip
    return functools.reduce(lambda wrapped, wrap: wrap(wrapped), reversed(options), function)


def format_option(function: F) -> F:
    """`--format json|table`, as `output_format`: the one output option of all commands."""
    return click.option(
        "--format", "output_format", type=click.Choice(["json", "table"]), default="json",
        help="JSON Lines, or the same for a person.",
    )(function)  # fmt: skip


def socket_option(daemon: str, *aliases: str) -> Callable[[F], F]:
    """`--socket PATH` of a client, as `socket_path: str`; by default where the daemon's socket is found
    (`libqos.paths`). The variable is QOS_<DAEMON>_SOCKET; `aliases` are further ones."""

    def default() -> str:
        from libqos import paths

        return str(paths.client_socket(daemon))

    return click.option(
        "--socket", "socket_path", metavar="PATH", default=default, show_default="where the daemon's socket is found",
        envvar=[f"{environment_prefix(daemon)}_SOCKET", *aliases], show_envvar=True, shell_complete=complete_file,
        help=f"Control socket of {daemon}.",
    )  # fmt: skip


def complete_file(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """For `shell_complete` of an option or argument that is a file: the shell's own."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def duration(_: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """For `callback` of an option that is a time in nanoseconds: `250us`, `1ms`, or plain nanoseconds."""
    from libqos.policy import PolicyError, duration_ns

    if value is None:
        return None
    try:
        return duration_ns(value, "time")
    except PolicyError as error:
        raise click.BadParameter(str(error), param=parameter) from error


def config_option(function: F) -> F:
    """`--config FILE` (`-` is stdin), as `config_file: str | None`."""
    return click.option(
        "--config", "config_file", metavar="FILE", help="Configuration in TOML.", shell_complete=complete_file
    )(function)


def check_option(function: F) -> F:
    """`--check`, as `check: bool`."""
    return click.option("--check", is_flag=True, help="Validate the configuration and exit.")(function)


def configured(table: type[Any], *, tool: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options of a configuration table, plus `--config FILE` and `--check`.

    The command is called with `settings`, an instance of `table` loaded from file, environment and command line. With
    `--check` it is not called: a valid configuration is a line on stderr and exit 0, an invalid one exit 2."""

    from libqos import config

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        rows = list(_command_line_rows(table))

        @functools.wraps(function)
        def call(*, config_file: str | None, check: bool, **arguments: Any) -> Any:
            overrides = {key: arguments.pop(_parameter(key)) for key, _ in rows}
            loaded = config.load(table, tool=tool, file=config_file, overrides=overrides)
            if check:
                click.echo(f"{tool}: {config_file or 'configuration'}: valid", err=True)
                return OK
            return function(settings=loaded, **arguments)

        decorated: Callable[..., Any] = call
        for key, row in reversed(rows):
            decorated = _table_option(tool, key, row)(decorated)
        decorated = check_option(config_option(decorated))
        # for the manual (docs/make-man.py)
        decorated.configuration = (table, tool)  # type: ignore[attr-defined]
        return decorated

    return decorate


def _command_line_rows(table: type[Any], prefix: str = "") -> list[tuple[str, config.Option]]:
    from libqos import config

    rows = []
    for key, row in config.table(table).items():
        if row.section is not None:
            if not row.many:
                rows += _command_line_rows(row.section, f"{prefix}{key}.")
        elif row.command_line:
            rows.append((f"{prefix}{key}", row))
    return rows


def _parameter(key: str) -> str:
    return f"table_{key.replace('.', '_')}"


def _table_option(tool: str, key: str, row: config.Option) -> Callable[[F], F]:
    """One option of a table: click only carries the text; the table checks it, so that all sources have one check."""
    from libqos.config import default_text

    name = key.replace(".", "-").replace("_", "-")
    declaration = f"--{name}/--no-{name}" if row.type is bool and not row.many else f"--{name}"
    flag = row.type is bool and not row.many
    default = default_text(row)
    notes = [] if flag else [row.accepts()]
    notes += [f"default: {default}"] if default else []
    variable = environment_name(tool, tuple(key.split(".")))
    return click.option(
        *([row.short] if row.short else []), declaration, _parameter(key), default=None, show_default=False,
        metavar=None if flag else key.rsplit(".", 1)[-1].upper(), type=bool if flag else str,
        envvar="", allow_from_autoenv=False, help=f"{row.meaning} ({'; '.join([*notes, variable])})",
    )  # fmt: skip


def version() -> str:
    """The version of the distribution."""
    import libqos

    known = getattr(libqos, "__version__", None)
    if isinstance(known, str):
        return known
    from importlib import metadata

    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "not installed"


def _show_version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        click.echo(f"{context.find_root().info_name} ({DISTRIBUTION}) {version()}")
        context.exit()


def _set_verbose(context: click.Context, _: click.Parameter, value: int) -> None:
    context.meta["libqos.verbose"] = max(value, context.meta.get("libqos.verbose", 0))
    _set_up_logging(context)


def _set_log_format(context: click.Context, parameter: click.Parameter, value: str) -> None:
    # A subcommand has the option too; its default must not undo what was said in front of it.
    given = parameter.name is not None and context.get_parameter_source(parameter.name) is not ParameterSource.DEFAULT
    if given or "libqos.log_format" not in context.meta:
        context.meta["libqos.log_format"] = value
    _set_up_logging(context)


def _set_up_logging(context: click.Context) -> None:
    """Once both options are known; before that, the other one is still missing."""
    meta: Mapping[str, Any] = context.meta
    if context.resilient_parsing or not {"libqos.verbose", "libqos.log_format"} <= meta.keys():
        return
    if meta["libqos.verbose"] or meta["libqos.log_format"] == "json":
        set_up_logging(_LEVELS[min(meta["libqos.verbose"], 2)], meta["libqos.log_format"])


def set_up_logging(level: str, log_format: str = "text") -> None:
    """Logs of this process on stderr: a line of text, or a JSON record of kind `log`. Safe to call again."""
    import logging

    handler = logging.StreamHandler()
    if log_format == "json":
        from libqos.logs import JsonFormatter

        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
