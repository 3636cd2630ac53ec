# SPDX-License-Identifier: Apache-2.0
"""A TOML file with the line of each key.

The standard parser gives values without places, and an error must name the line. So the text is scanned once more for
table headers and keys. The scan runs only over text that the parser has accepted; it therefore needs to tell keys from
strings, comments and nested values, and never has to judge. A key inside an inline table has the line of the key that
holds the inline table.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

from libqos.errors import InputError

MAX_FILE_BYTES: Final = 16 << 20
_PIECE_BYTES: Final = 1 << 16

# Strings first, so that what looks like a comment or bracket inside them is passed over.
_TOKEN: Final = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}'
    r"|'''.*?'{3,5}"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|\#[^\n]*"
    r"|\n|\[\[|\]\]|[\[\]{}=,]"
    r"|[A-Za-z0-9_-]+"
    r"|.",
    re.DOTALL,
)
_BLANK: Final = re.compile(r"[ \t\r]+")


class TomlError(InputError):
    """A file that is no TOML, or cannot be read. The text starts with `file:line:` where there is one."""


@dataclass(frozen=True)
class Document:
    """Parsed values, and where they stand. Empty by default: no file."""

    name: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[tuple[str | int, ...], int] = field(default_factory=dict)

    def line(self, path: tuple[str | int, ...]) -> int | None:
        """The line of a key, or of the nearest table around it; None without either."""
        while path:
            if path in self.lines:
                return self.lines[path]
            path = path[:-1]
        return None


def read(file: str | os.PathLike[str]) -> Document:
    """Read and parse a file (`-` is stdin). Raises TomlError."""
    text, name = read_text(file)
    return parse(text, name)


def read_text(file: str | os.PathLike[str]) -> tuple[str, str]:
    """The text of a file (`-` is stdin), and how errors name it. Raises TomlError."""
    name = os.fspath(file)
    try:
        if name == "-":
            name, data = "stdin", _read(sys.stdin.buffer)
        else:
            with open(name, "rb") as stream:
                data = _read(stream)
    except OSError as error:
        raise TomlError(f"{name}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise TomlError(f"{name}: found more than {MAX_FILE_BYTES} bytes, accepted a configuration of at most that")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TomlError(f"{name}:{line}: found a byte {data[error.start]:#04x}, accepted UTF-8 text") from error
    return text, name


def _read(stream: BinaryIO) -> bytes:
    """All of it, or enough to see that it is too much. Piece by piece: read(n) sets n bytes aside at once, and 16 MiB
    that come and go leave the heap with holes."""
    data = bytearray()
    while len(data) <= MAX_FILE_BYTES and (piece := stream.read(_PIECE_BYTES)):
        data += piece
    return bytes(data)


def parse(text: str, name: str) -> Document:
    """Parse text; `name` stands in errors. Raises TomlError."""
    import tomllib

    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        message = str(error) or "nested too deeply"
        if not isinstance(error, tomllib.TOMLDecodeError) and (digits := re.search(r"[0-9_]{4300,}", text)):
            message = (
                f"a number of {len(digits[0])} digits (at line {text.count(chr(10), 0, digits.start()) + 1}, column 1)"
            )
        where = re.search(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)$", message)
        line = int(where[1]) if where and where[1] else text.count("\n") + 1
        if where:
            message = message[: where.start()]
        raise TomlError(f"{name}:{line}: {message[:1].lower()}{message[1:]}, accepted TOML") from error
    return Document(name, values, key_lines(text.replace("\r\n", "\n")))


def key_lines(text: str) -> dict[tuple[str | int, ...], int]:
    """The line of every key and table header of valid TOML text, by path (index inside an array of tables)."""
    lines: dict[tuple[str | int, ...], int] = {}
    counts: dict[tuple[str | int, ...], int] = {}
    prefix: tuple[str | int, ...] = ()
    statement: list[str] = []  # tokens of the statement so far; a value is left out
    depth, in_value, line, start = 0, False, 1, 1
    for match in _TOKEN.finditer(text + "\n"):
        token = match[0]
        if token == "\n" and depth == 0:
            if statement:
                prefix = _statement(statement, prefix, start, lines, counts)
            statement, in_value = [], False
        elif in_value:
            depth += {"[": 1, "[[": 2, "{": 1, "]": -1, "]]": -2, "}": -1}.get(token, 0)
        elif token == "=":
            in_value = True
            statement.append(token)
        elif token != "\n" and token[0] != "#" and not _BLANK.fullmatch(token):
            if not statement:
                start = line
            statement.append(token)
        line += token.count("\n")
    return lines


def _statement(
    tokens: list[str],
    prefix: tuple[str | int, ...],
    line: int,
    lines: dict[tuple[str | int, ...], int],
    counts: dict[tuple[str | int, ...], int],
) -> tuple[str | int, ...]:
    """Note one header or key; gives the prefix of the keys that follow."""
    if tokens[-1] == "=":
        path = prefix
        for name in _names(tokens[:-1]):
            path = (*path, name)
            lines.setdefault(path, line)
        return prefix
    names = _names(tokens[1:-1])
    path = ()
    for position, name in enumerate(names):
        path = (*path, name)
        if position == len(names) - 1 and tokens[0] == "[[":
            counts[path] = counts.get(path, -1) + 1
        lines.setdefault(path, line)
        if path in counts:  # a header speaks of the last element of an array of tables
            path = (*path, counts[path])
            lines.setdefault(path, line)
    return path


def _names(tokens: list[str]) -> list[str]:
    """The parts of a dotted key; a bare part may have come in several tokens."""
    parts = [""]
    for token in tokens:
        if token == ".":
            parts.append("")
        elif token[0] == '"':
            import tomllib

            parts[-1] += next(iter(tomllib.loads(f"{token} = 0")))
        else:
            parts[-1] += token[1:-1] if token[0] == "'" else token
    return parts
