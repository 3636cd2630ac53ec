# SPDX-License-Identifier: Apache-2.0
"""Configuration from one declarative table, in the habit of linuxptp and chrony.

A tool's table is a dataclass whose fields are made with `option()` (a value), `section()` (a TOML table) and
`sections()` (an array of tables). That one table drives the TOML parser and its validation, the environment
(`QOS_<TOOL>_<OPTION>`), the options of the command line (`libqos.cli.configured`) and the manual (`reference`)::

    @dataclass(frozen=True, kw_only=True)
    class Peer:
        name: str = option(meaning="name of the host")
        address: str = option(meaning="address:port of its selened")

    @dataclass(frozen=True, kw_only=True)
    class Settings:
        data_port: int = option(4791, minimum=1, maximum=65535, meaning="UDP port for data")
        peer: tuple[Peer, ...] = sections(Peer, maximum=64, meaning="another host")

    settings = load(Settings, tool="selened", file="selened.toml")

The command line wins over the environment, that over the file, that over the default. Every problem of a configuration
is reported, not only the first: `file:line: key: found X, accepted Y`; an unknown key is an error, with the nearest
known one as a hint. An option without a default must be given.

Types: bool, int, float, str, `X | None`, `tuple[X, ...]` (a TOML array; comma-separated as text), and any other type
that comes with `parse=`, a function from text (or TOML value) to value that raises ValueError saying what it accepts.
"""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from dataclasses import MISSING
from typing import Any, Final, TypeVar

from libqos.environment import environment_name
from libqos.errors import InputError

if typing.TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from libqos import tomlfile

T = TypeVar("T")
Where = tuple[str | int, ...]  # path of a key: names, and the index inside an array of tables

_META: Final = "qos"
_TRUE: Final = ("1", "true", "yes", "on")
_FALSE: Final = ("0", "false", "no", "off")
_tables: Final[dict[type[Any], dict[str, Option]]] = {}  # once made
_NOUNS: Final = {bool: "true or false", int: "an integer", float: "a number", str: "text"}


class ConfigError(InputError):
    """A configuration that cannot be used. `problems` has one line per problem; the text is all of them."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """One row of a table; `name` and `type` come from the dataclass field."""

    meaning: str
    default: Any  # MISSING: it must be given (of a section: it has none)
    name: str = ""
    type: Any = str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    parse: Callable[[Any], Any] | None = None
    accepted: str = ""  # in words, where type, range and choices do not say it (with parse)
    command_line: bool = True
    short: str = ""  # one-letter option, with its dash
    section: Any = None  # the dataclass of a TOML table
    many: bool = False  # an array: of values, or of tables

    @property
    def required(self) -> bool:
        return self.default is MISSING and self.section is None

    def accepts(self) -> str:
        """What a value may be, in words for errors and manuals."""
        if self.accepted:
            text = self.accepted
        elif self.choices:
            text = " | ".join(self.choices)
        else:
            text = _NOUNS.get(self.type, "text")
            if self.minimum is not None and self.maximum is not None:
                text += f" from {self.minimum:,} to {self.maximum:,}".replace(",", "_")
            elif self.minimum is not None:
                text += f" of at least {self.minimum:,}".replace(",", "_")
            elif self.maximum is not None:
                text += f" of at most {self.maximum:,}".replace(",", "_")
        return f"a list of: {text}" if self.many and self.section is None else text


def option(
    default: Any = MISSING,
    *,
    meaning: str,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    parse: Callable[[Any], Any] | None = None,
    accepted: str = "",
    command_line: bool = True,
    short: str = "",
) -> Any:
    """A value in a table. Without `default` it must be given; `command_line=False` keeps it off the command line."""
    if parse is not None and not accepted:
        raise TypeError("an option with parse= needs accepted=, or its errors cannot say what is accepted")
    row = Option(
        meaning=meaning, default=default, minimum=minimum, maximum=maximum, choices=choices, parse=parse,
        accepted=accepted, command_line=command_line, short=short,
    )  # fmt: skip
    return _field(default, row)


def section(table: type[Any], *, meaning: str) -> Any:
    """A TOML table `[name]`: all its defaults when the file has none, an error if one of its options must be given."""
    return _field(MISSING, Option(meaning=meaning, default=MISSING, section=table, type=table))


def sections(table: type[Any], *, meaning: str, maximum: int = 1024) -> Any:
    """An array of TOML tables `[[name]]`, none by default, bounded by `maximum`."""
    return _field((), Option(meaning=meaning, default=(), section=table, type=table, many=True, maximum=maximum))


def _field(default: Any, row: Option) -> Any:
    if default is MISSING:
        return dataclasses.field(metadata={_META: row})
    return dataclasses.field(default=default, metadata={_META: row})


def table(cls: type[Any]) -> dict[str, Option]:
    """The rows of a dataclass by key, with name, type and multiplicity filled in from its annotations."""
    if cls in _tables:
        return _tables[cls]
    hints = typing.get_type_hints(cls)
    rows = {}
    for field in dataclasses.fields(cls):
        row = field.metadata.get(_META)
        if row is None:
            raise TypeError(f"{cls.__name__}.{field.name} is not made with option(), section() or sections()")
        hint, many = hints[field.name], row.many
        if typing.get_origin(hint) in (types.UnionType, typing.Union):  # X | None: the default alone can be None
            hint = next(part for part in typing.get_args(hint) if part is not type(None))
        if typing.get_origin(hint) is tuple:
            many, hint = True, typing.get_args(hint)[0]
        if row.parse is None and row.section is None and hint not in _NOUNS:
            raise TypeError(f"{cls.__name__}.{field.name}: a value of type {hint} needs parse=")
        rows[field.name] = dataclasses.replace(row, name=field.name, type=hint, many=many)
    _tables[cls] = rows
    return rows


def load(
    cls: type[T],
    *,
    tool: str,
    file: str | os.PathLike[str] | None = None,
    document: tomlfile.Document | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> T:
    """An instance of the table `cls` from defaults, `file` (`-` is stdin) or a `document` that was read already,
    environment and `overrides` (command line; dotted keys reach into sections, None means not given). Raises
    ConfigError with every problem found."""
    from libqos import tomlfile

    if document is None:
        document = tomlfile.read(file) if file is not None else tomlfile.Document()
    loader = _Loader(tool, document, os.environ if environ is None else environ, overrides or {})
    value = loader.section(cls, document.values, ())
    unknown = [key for key in loader.overrides if key not in loader.seen]
    loader.problems += [f"command line: {key}: no such option" for key in unknown]
    if loader.problems:
        raise ConfigError(loader.problems)
    assert isinstance(value, cls)
    return value


class _Loader:
    """One pass over a table; gathers problems, so that all of them reach the person at once."""

    def __init__(self, tool: str, document: Any, environ: Mapping[str, str], overrides: Mapping[str, Any]) -> None:
        self.tool = tool
        self.document = document
        self.environ = environ
        self.overrides = {key: value for key, value in overrides.items() if value is not None}
        self.problems: list[str] = []
        self.seen: set[str] = set()

    def section(self, cls: type[Any], values: Mapping[str, Any], where: Where) -> Any:
        rows = table(cls)
        for key in values:
            if key not in rows:
                self._unknown((*where, key), list(rows))
        arguments: dict[str, Any] = {}
        failed = len(self.problems)
        for key, row in rows.items():
            path = (*where, key)
            if row.section is not None:
                arguments[key] = self._subsection(row, values.get(key, MISSING), path)
            else:
                arguments[key] = self._value(row, values.get(key, MISSING), path)
        if len(self.problems) > failed:
            return None
        try:
            return cls(**arguments)
        except ValueError as error:  # __post_init__ of the table: rules that bind several options
            self.problems.append(f"{self._place(where)}{error}")
            return None

    def _subsection(self, row: Option, value: Any, path: Where) -> Any:
        if row.many:
            items = [] if value is MISSING else value
            if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
                self._problem(path, items, f"an array of tables [[{path[-1]}]]")
                return ()
            if row.maximum is not None and len(items) > row.maximum:
                where = (*path, int(row.maximum))
                self.problems.append(f"{self._place(where)}found {len(items)} tables, accepted at most {row.maximum}")
                return ()
            return tuple(self.section(row.section, item, (*path, index)) for index, item in enumerate(items))
        if value is MISSING:
            value = {}
        if not isinstance(value, dict):
            self._problem(path, value, f"a table [{path[-1]}]")
            return None
        return self.section(row.section, value, path)

    def _value(self, row: Option, value: Any, path: Where) -> Any:
        inside_array = any(isinstance(part, int) for part in path)
        dotted = ".".join(map(str, path))
        self.seen.add(dotted)
        variable = environment_name(self.tool, path)
        try:
            if not inside_array and dotted in self.overrides:
                source, found = f"option --{dotted.replace('_', '-')}: ", self.overrides[dotted]
                return check(row, found, text=isinstance(found, str))
            if not inside_array and variable in self.environ:
                source, found = f"environment: {variable}: ", self.environ[variable]
                return check(row, found, text=True)
            if value is not MISSING:
                source, found = self._place(path), value
                return check(row, found)
        except ValueError as error:
            self.problems.append(f"{source}found {_shown(found)}, accepted {error}")
            return None
        if row.required:
            self.problems.append(f"{self._place(path)}found nothing, accepted {row.accepts()} (it must be given)")
            return None
        return row.default

    def _unknown(self, path: Where, known: list[str]) -> None:
        import difflib

        near = difflib.get_close_matches(str(path[-1]), known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        self.problems.append(f"{self._place(path)}unknown key{hint}; accepted: {', '.join(known)}")

    def _problem(self, path: Where, found: Any, accepted: str) -> None:
        self.problems.append(f"{self._place(path)}found {_shown(found)}, accepted {accepted}")

    def _place(self, path: Where) -> str:
        """`file:line: key: `, as much of it as there is."""
        text = ""
        if self.document.name:
            line = self.document.line(path)
            text = f"{self.document.name}:{line}: " if line else f"{self.document.name}: "
        dotted = ""
        for part in path:
            dotted += f"[{part}]" if isinstance(part, int) else f".{part}" if dotted else part
        return f"{text}{dotted}: " if dotted else text


def check(row: Option, value: Any, *, text: bool = False) -> Any:
    """The value of one option, checked; from text (`text=True`: environment, command line) or from TOML. Raises
    ValueError with what is accepted."""
    if row.many:
        items = [item.strip() for item in value.split(",") if item.strip()] if text else value
        if not isinstance(items, list | tuple):
            raise ValueError(row.accepts())
        return tuple(_check_one(row, item, text=text) for item in items)
    return _check_one(row, value, text=text)


def _check_one(row: Option, value: Any, *, text: bool) -> Any:
    accepts = row.accepts()
    if row.parse is not None:
        try:
            return row.parse(value)
        except (TypeError, ValueError) as error:
            detail = str(error)
            raise ValueError(f"{accepts}: {detail}" if detail else accepts) from error
    if text and row.type is not str:
        value = _from_text(row, value, accepts)
    if row.type is float and type(value) is int:
        try:
            value = float(value)
        except OverflowError:
            raise ValueError(accepts) from None
    if type(value) is not row.type:
        raise ValueError(accepts)
    if row.choices and value not in row.choices:
        raise ValueError(accepts)
    # The negated form refuses NaN as well.
    if row.minimum is not None and not value >= row.minimum:
        raise ValueError(accepts)
    if row.maximum is not None and not value <= row.maximum:
        raise ValueError(accepts)
    return value


def _from_text(row: Option, value: str, accepts: str) -> Any:
    try:
        if row.type is bool:
            if value.lower() not in (*_TRUE, *_FALSE):
                raise ValueError(accepts)
            return value.lower() in _TRUE
        return int(value, 0) if row.type is int else row.type(value)
    except ValueError:
        raise ValueError(accepts) from None


def _shown(value: Any) -> str:
    try:
        text = repr(value) if not isinstance(value, bool) else str(value).lower()
    except ValueError:  # Python writes no integer of more than 4300 digits
        return "an integer of thousands of digits"
    return text if len(text) <= 80 else text[:80] + "…"


def reference(cls: type[Any], *, tool: str) -> list[tuple[str, str, str, str, str]]:
    """The table as rows for a manual: key, accepted, default, environment variable, meaning."""
    rows: list[tuple[str, str, str, str, str]] = []

    def walk(part: type[Any], prefix: str, where: Where, in_array: bool) -> None:
        for key, row in table(part).items():
            if row.section is not None:
                name = f"{prefix}{key}"
                many = f"array of tables, at most {row.maximum}" if row.many else "table"
                rows.append((f"[[{name}]]" if row.many else f"[{name}]", many, "", "", row.meaning))
                walk(row.section, f"{name}.", (*where, key), in_array or row.many)
                continue
            variable = "" if in_array else environment_name(tool, (*where, key))
            rows.append((f"{prefix}{key}", row.accepts(), default_text(row), variable, row.meaning))

    walk(cls, "", (), False)
    return rows


def default_text(row: Option) -> str:
    """The default as a person reads it: empty where there is none to speak of."""
    if row.required:
        return "(must be given)"
    if row.default is None or row.default == () or row.default == "":
        return ""
    if isinstance(row.default, bool):
        return str(row.default).lower()
    if row.many:
        return ",".join(map(str, row.default))
    return str(row.default)
