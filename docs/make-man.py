#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a manual page from a command's own help: docs/make-man.py NAME > docs/man/NAME.1

NAME is an entry of [project.scripts] in pyproject.toml, whose function was made by `libqos.cli.entry`. The page has
what --help has, for subcommands too, the options of a configuration file with their variables, and the exit codes.
"""

from __future__ import annotations

import importlib
import sys
import tomllib
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
USAGE = "usage: docs/make-man.py NAME   (a command of pyproject.toml)"


def load(name: str) -> click.Command:
    """The click command of an entry point."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    if name not in scripts:
        sys.exit(f"{name}: no such command, accepted {', '.join(scripts)}\n{USAGE}")
    # What is installed comes first (selened needs its compiled module), then the packages in the folders of the tools.
    sys.path += [str(ROOT), *(str(folder) for folder in sorted((ROOT / "tools").glob("*")) if folder.is_dir())]
    module, _, attribute = scripts[name].partition(":")
    command = getattr(getattr(importlib.import_module(module), attribute), "command", None)
    if not isinstance(command, click.Command):
        sys.exit(f"{name}: {scripts[name]} is not made by libqos.cli.entry")
    return command


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

    lines = [".SH CONFIGURATION FILE", ".PP", "TOML, given with \\fB\\-\\-config\\fR. The command line wins over the"
             " environment, that over the file."]  # fmt: skip
    for key, accepted, default, variable, meaning in config.reference(table[0], tool=table[1]):
        notes = [accepted, f"default: {default}" if default else "", variable]
        lines += [".TP", f"\\fB{escape(key)}\\fR", escape(f"{meaning} ({'; '.join(note for note in notes if note)})")]
    return lines


def page(name: str) -> str:
    """The manual page as roff."""
    command = load(name)
    context = click.Context(command, info_name=name, **command.context_settings)
    inner = children(command, context)
    section = 8 if name.endswith(("d", "-dp")) else 1
    lines = [
        '.\\" SPDX-License-Identifier: Apache-2.0',
        f'.\\" Made by docs/make-man.py {name} from the command\'s own help.',
        f'.TH "{name.upper()}" {section} "" "qos-continuum" "qos-continuum"',
        ".SH NAME", f"{escape(name)} \\- {escape(command.get_short_help_str(200).rstrip('.'))}",
        ".SH SYNOPSIS", *(f"{usage(each, where)}\n.br" for each, where in [(command, context), *inner]),
        ".SH DESCRIPTION", *body(command, context),
        ".SH OPTIONS", *options(command, context),
    ]  # fmt: skip
    if inner:
        lines.append(".SH COMMANDS")
    for child, where in inner:
        lines += [f'.SS "{where.command_path}"', *body(child, where), *options(child, where)]
    prefix = context.auto_envvar_prefix
    lines += [
        *configuration(command),
        ".SH ENVIRONMENT", ".PP",
        f"Every option is also a variable: \\fB{escape(str(prefix))}_OPTION\\fR, for instance \\fB"
        f"{escape(str(prefix))}_LOG_FORMAT=json\\fR. The command line wins.",
        ".SH EXIT STATUS",
        ".TP", "0", "Done; also when the reader of standard output has closed it.",
        ".TP", "1", "Failed.",
        ".TP", "2", "Wrong usage, configuration or input.",
        ".TP", "130", "Interrupted.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(USAGE)
    sys.stdout.write(page(sys.argv[1]))
