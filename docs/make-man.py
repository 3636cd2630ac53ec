#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes manual pages from the commands' own help: docs/make-man.py NAME > docs/man/NAME.1, or all of them: --all

NAME is an entry of [project.scripts] in pyproject.toml, whose function was made by `libqos.cli.entry`, or
NAME-SUBCOMMAND of such a command, or selened-dp. The page has what --help has, for subcommands too, the options of a
configuration file with their variables, and the exit codes. selened-dp is the one that is installed with this Python.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
USAGE = "usage: docs/make-man.py NAME | --all   (an entry of pyproject.toml, one of its subcommands, or selened-dp)"
DATAPATH = "selened-dp"
DAEMONS = ("selened", DATAPATH)


def scripts() -> dict[str, str]:
    """The entry points by name."""
    entries: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    return entries


def top(name: str) -> tuple[click.Command, click.Context]:
    """The command of an entry point."""
    # What is installed comes first (selened needs its compiled module), then the packages in the folders of the tools.
    sys.path += [str(ROOT), *(str(folder) for folder in sorted((ROOT / "tools").glob("*")) if folder.is_dir())]
    module, _, attribute = scripts()[name].partition(":")
    command = getattr(getattr(importlib.import_module(module), attribute), "command", None)
    if not isinstance(command, click.Command):
        sys.exit(f"{name}: {scripts()[name]} is not made by libqos.cli.entry")
    return command, click.Context(command, info_name=name, **command.context_settings)


def commands() -> dict[str, tuple[click.Command, click.Context]]:
    """Every command that has a page, by its name: entry points and their direct subcommands."""
    found: dict[str, tuple[click.Command, click.Context]] = {}
    for name in scripts():
        found[name] = command, context = top(name)
        if isinstance(command, click.Group):
            for child in command.list_commands(context):
                inner = command.get_command(context, child)
                if inner is not None and not inner.hidden:
                    found[f"{name}-{child}"] = inner, click.Context(inner, info_name=child, parent=context)
    return found


def escape(text: str) -> str:
    """Text as roff shows it: backslash and hyphen escaped, ASCII only, no line that starts like a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = "".join(char if char.isascii() else f"\\[u{ord(char):04X}]" for char in text)
    return "\n".join(f"\\&{line}" if line[:1] in (".", "'") else line for line in text.splitlines())


def options(command: click.Command, context: click.Context) -> list[str]:
    """One paragraph for each option, from the records that --help is made of."""
    lines: list[str] = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and isinstance(parameter, click.Option):
            lines += [".TP", f"\\fB{escape(record[0])}\\fR", escape(" ".join(record[1].split()))]
    return lines


def body(command: click.Command, context: click.Context) -> list[str]:
    """The help text; an empty line starts a paragraph."""
    lines: list[str] = []
    for paragraph in (command.help or "").strip().split("\n\n"):
        lines += [".PP", escape(" ".join(paragraph.replace("\b", "").split()))]
    return lines


def usage(command: click.Command, context: click.Context) -> str:
    return f"\\fB{escape(context.command_path)}\\fR {escape(' '.join(command.collect_usage_pieces(context)))}"


def children(command: click.Command, context: click.Context) -> list[tuple[click.Command, click.Context]]:
    """Every subcommand, depth first."""
    found: list[tuple[click.Command, click.Context]] = []
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                inner = click.Context(child, info_name=name, parent=context)
                found += [(child, inner), *children(child, inner)]
    return found


def configuration(command: click.Command) -> list[str]:
    """The table of a command made with `libqos.cli.configured`."""
    table = getattr(command.callback, "configuration", None)
    if table is None:
        return []
    from libqos import config

    lines = [".SH CONFIGURATION FILE", "TOML, given with \\fB\\-\\-config\\fR. The command line wins over the"
             " environment, that over the file."]  # fmt: skip
    for key, accepted, default, variable, meaning in config.reference(table[0], tool=table[1]):
        notes = [accepted, f"default: {default}" if default else "", variable]
        lines += [".TP", f"\\fB{escape(key)}\\fR", escape(f"{meaning} ({'; '.join(note for note in notes if note)})")]
    return lines


def see_also(name: str) -> list[str]:
    """The pages around this one."""
    family = [other for other in (*commands(), DATAPATH) if other != name]
    near = [x for x in family if x.startswith(f"{name}-") or name.startswith(f"{x}-")] or [
        x for x in family if x in scripts() and x.split("-")[0].rstrip("d") == name.split("-")[0].rstrip("d")
    ]
    return [".SH SEE ALSO", ", ".join(f"\\fB{escape(x)}\\fR({section(x)})" for x in near)] if near else []


def section(name: str) -> int:
    return 8 if name in DAEMONS else 1


def head(name: str, source: str, meaning: str) -> list[str]:
    return [
        '.\\" SPDX-License-Identifier: Apache-2.0',
        f'.\\" Made by docs/make-man.py {name} from {source}.',
        f'.TH "{name.upper()}" {section(name)} "" "qos-continuum" "qos-continuum"',
        ".SH NAME", f"{escape(name)} \\- {escape(meaning.rstrip('.'))}", ".SH SYNOPSIS",
    ]  # fmt: skip


def exit_codes(*codes: tuple[str, str]) -> list[str]:
    return [".SH EXIT STATUS", *(line for code, meaning in codes for line in (".TP", code, meaning))]


def page(name: str) -> str:
    """The manual page of a click command as roff."""
    command, context = commands()[name]
    inner = children(command, context)
    lines = [
        *head(name, "the command's own help", command.get_short_help_str(200)),
        *"\n.br\n".join(usage(each, where) for each, where in [(command, context), *inner]).split("\n"),
        ".SH DESCRIPTION", *body(command, context)[1:],
        ".SH OPTIONS", *options(command, context),
    ]  # fmt: skip
    if inner:
        lines.append(".SH COMMANDS")
    for child, where in inner:
        lines += [f'.SS "{where.command_path}"', *body(child, where)[1:], *options(child, where)]
    prefix = escape(str(context.auto_envvar_prefix))
    lines += [
        *configuration(command),
        ".SH ENVIRONMENT",
        f"Every option is also a variable: \\fB{prefix}_OPTION\\fR, for instance \\fB{prefix}_LOG_FORMAT=json\\fR. The"
        " command line wins.",
        *exit_codes(
            ("0", "Done; also when the reader of standard output has closed it."), ("1", "Failed."),
            ("2", "Wrong usage, configuration or input."), ("130", "Interrupted."),
        ),
        *see_also(name),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def datapath_page() -> str:
    """The manual page of selened-dp, a C program, from what it says to --help."""
    program = Path(sys.executable).parent / DATAPATH
    said = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    usage_line, meaning, *rest = said.splitlines()
    synopsis = usage_line.removeprefix(f"usage: {DATAPATH} ")
    lines = [
        *head(DATAPATH, "what it says to --help", meaning.partition(". ")[0]),
        f"\\fB{escape(DATAPATH)}\\fR {escape(synopsis)}",
        ".SH DESCRIPTION", escape(meaning),
        "It takes orders over a socket, carries the messages of relayed sessions, and makes the shared memory of all."
        " It lives on when selened dies, as long as it has sessions, and the next selened adopts it.",
        ".SH OPTIONS",
    ]  # fmt: skip
    for line in rest:
        if found := re.fullmatch(r"  (--\S+(?: [A-Z]+)?)  +(.*)", line):
            lines += [".TP", f"\\fB{escape(found[1])}\\fR", escape(found[2][:1].upper() + found[2][1:])]
        elif line.strip():
            lines += [".TP", f"\\fB{escape(line.strip())}\\fR", "Say it and exit."]
    lines += [
        ".SH SIGNALS", "SIGTERM and SIGINT end it; the sessions end with it.",
        *exit_codes(("0", "Ended by an order or a signal."), ("1", "Could not start."), ("2", "Wrong usage.")),
        *see_also(DATAPATH),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        sys.exit(USAGE)
    names = [*commands(), DATAPATH]
    if arguments[0] != "--all" and arguments[0] not in names:
        sys.exit(f"{arguments[0]}: no such command, accepted {', '.join(names)}\n{USAGE}")
    for name in names if arguments[0] == "--all" else arguments:
        text = datapath_page() if name == DATAPATH else page(name)
        if arguments[0] == "--all":
            (ROOT / f"docs/man/{name}.{section(name)}").write_text(text, encoding="utf-8")
        else:
            sys.stdout.write(text)


if __name__ == "__main__":
    main(sys.argv[1:])
