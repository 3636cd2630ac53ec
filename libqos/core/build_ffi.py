# SPDX-License-Identifier: Apache-2.0
"""Write the C source of a cffi module (API mode) from C headers, so that header and binding cannot drift apart.

The C preprocessor runs over the headers with ``-DQOS_CDEF`` (headers hide system includes and inline functions behind
``#ifndef QOS_CDEF``). What remains is turned into a cdef:

- enum values become ``NAME = ...`` and integer macros ``#define NAME ...``: the compiler fills in the numbers;
- string macros become ``static char *const NAME``;
- ``static inline`` functions, ``_Static_assert``, attributes and alignment are left out; a struct that loses an
  attribute or alignment gets a final ``...``, so that the compiler gives its layout. All other structs are taken as
  they are, and the module refuses to load should a member differ;
- array lengths that are not plain numbers become ``[...]``.

The generated C includes the real headers, without ``QOS_CDEF``.
"""

import argparse
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from cffi import FFI

_LINE_MARKER = re.compile(r'#\s*(?:line\s+)?\d+\s+"(?P<file>[^"]*)"(?P<flags>[\s\d]*)$')
_DEFINE = re.compile(r"#define\s+(?P<name>[A-Za-z_]\w*)(?P<call>\()?(?P<value>.*)$")
_STRING = re.compile(r'\s*"(?:[^"\\]|\\.)*"\s*$')
_NUMBER = re.compile(r"(?:0[xX][0-9a-fA-F]+|\d+)[uUlL]*")
_WORD = re.compile(r"[A-Za-z_]\w*|(?:0[xX][0-9a-fA-F]+|\d+)[uUlL]*|\S")
_OPERATORS = frozenset("()+-*/%<>&|^~!=?:")
_INTEGER_WORD = re.compile(
    r"U?INT(?:8|16|32|64)_C|u?int(?:8|16|32|64)_t|s?size_t|sizeof|int|unsigned|signed|long|short|char"
)
_ATTRIBUTE = re.compile(r"__attribute__\s*\(|_Alignas\s*\(")
_MARK = " _qos_attribute "


@dataclass
class Preprocessed:
    """What the preprocessor left of the project's own headers."""

    text: str = ""
    macros: dict[str, str] = field(default_factory=dict)  # object-like macros: name to replacement
    files: list[str] = field(default_factory=list)  # the project's headers that were read


def preprocess(compiler: list[str], headers: list[Path], include_dirs: list[Path]) -> Preprocessed:
    """Run the preprocessor; keep the text and macros of `headers` and of what they include from `include_dirs`."""
    source = "".join(f'#include "{header.resolve()}"\n' for header in headers)
    command = [*compiler, "-E", "-dD", "-DQOS_CDEF", *(f"-I{path}" for path in include_dirs), "-x", "c", "-"]
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"build_ffi: {shlex.join(command)} failed:\n{done.stderr}")
    ours = {str(path.resolve()) for path in [*include_dirs, *(header.parent for header in headers)]}
    result = Preprocessed()
    kept: list[str] = []
    own = False
    for line in done.stdout.splitlines():
        if marker := _LINE_MARKER.match(line):
            path = Path(marker["file"]).resolve()
            own = "3" not in marker["flags"].split() and any(str(parent) in ours for parent in path.parents)
            if own and str(path) not in result.files:
                result.files.append(str(path))
        elif own and (define := _DEFINE.match(line)):
            if not define["call"]:
                result.macros[define["name"]] = define["value"].strip()
        elif own and not line.startswith("#"):
            kept.append(line)
    result.text = "\n".join(kept)
    return result


def _closing(text: str, start: int, pair: str) -> int:
    """Index after the bracket that closes the one at or after `start`."""
    depth = 0
    for index in range(text.index(pair[0], start), len(text)):
        if text[index] == pair[0]:
            depth += 1
        elif text[index] == pair[1]:
            depth -= 1
            if depth == 0:
                return index + 1
    raise ValueError(f"unbalanced {pair} in: {text[start : start + 80]!r}")


def _drop_definitions(text: str) -> str:
    """Remove inline functions and static assertions."""
    while found := re.search(r"\bstatic\s+inline\b", text):
        body = text.index("{", found.start())
        if (end := text.find(";", found.start())) != -1 and end < body:  # a declaration only
            text = text[: found.start()] + text[end + 1 :]
        else:
            text = text[: found.start()] + text[_closing(text, body, "{}") :]
    while found := re.search(r"\b_Static_assert\b", text):
        text = text[: found.start()] + text[text.index(";", _closing(text, found.start(), "()")) + 1 :]
    return re.sub(r"\b(?:__extension__|__restrict|restrict)\b", " ", text)


def _relax_structs(text: str) -> str:
    """Strip attributes and alignment; let the compiler lay out each struct or union that had one."""
    while found := _ATTRIBUTE.search(text):
        text = text[: found.start()] + _MARK + text[_closing(text, found.start(), "()") :]
    position = 0
    while found := re.search(r"\b(?:struct|union)\b[^;{}()]*\{", text[position:]):
        start, body = position + found.start(), position + found.end()
        end = _closing(text, start, "{}")
        if _MARK in text[start : text.index(";", end)]:
            text = f"{text[: end - 1]}...; {text[end - 1 :]}"
        position = body  # nested ones come next
    return text.replace(_MARK, "")


def _open_enums(text: str) -> tuple[str, set[str]]:
    """Give every enumerator the value ``...``; also return their names."""
    names: set[str] = set()

    def rewrite(match: re.Match[str]) -> str:
        values = [item.split("=")[0].strip() for item in re.split(r",(?![^()]*\))", match["body"]) if item.strip()]
        names.update(values)
        return match["head"] + "{ " + ", ".join(f"{value} = ..." for value in values) + " }"

    return re.sub(r"(?P<head>\benum\b[^;{}]*)\{(?P<body>[^{}]*)\}", rewrite, text), names


def _is_integer(value: str, known: set[str]) -> bool:
    words = _WORD.findall(value)
    return bool(words) and all(
        _NUMBER.fullmatch(word) or word in _OPERATORS or _INTEGER_WORD.fullmatch(word) or word in known
        for word in words
    )


def make_cdef(pre: Preprocessed) -> str:
    """The cdef for cffi of what the preprocessor left."""
    text = _relax_structs(_drop_definitions(pre.text))
    text, known = _open_enums(text)
    text = re.sub(r"\[\s*\(?\s*(\d+)[uUlL]*\s*\)?\s*\]", r"[\1]", text)
    text = re.sub(r"\[(?!\s*(?:0[xX][0-9a-fA-F]+|\d*)\s*\])[^\]]*\]", "[...]", text)
    macros = "".join(f"static char *const {name};\n" for name, value in pre.macros.items() if _STRING.match(value))
    # A macro may use one that is defined further down, so look again while that finds more.
    while found := [name for name, value in pre.macros.items() if name not in known and _is_integer(value, known)]:
        known.update(found)
        macros += "".join(f"#define {name} ...\n" for name in found)
    text = re.sub(r"\n\s*\n+", "\n", text)
    return f"{macros}{text}\n"


def main(argv: list[str] | None = None) -> int:
    """Generate one module; the options are those of the build (`libqos/core/meson.build`)."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--module", required=True, help="full name, such as libqos._core")
    parser.add_argument("--header", action="append", required=True, type=Path, dest="headers")
    parser.add_argument("--include-dir", action="append", default=[], type=Path, dest="include_dirs")
    parser.add_argument("--extern-python", type=Path, help='file of extern "Python" declarations, taken as they are')
    parser.add_argument("--cc", default="cc", help="the C compiler, with its options")
    parser.add_argument("--depfile", type=Path, help="write what the output depends on, for make or ninja")
    parser.add_argument("--print-cdef", action="store_true", help="print the cdef as well, to see what was understood")
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args(argv)

    pre = preprocess(shlex.split(args.cc), args.headers, args.include_dirs)
    cdef = make_cdef(pre)
    if args.extern_python:
        cdef += args.extern_python.read_text(encoding="utf-8")
        pre.files.append(str(args.extern_python.resolve()))
    if args.print_cdef:
        print(cdef)
    ffi = FFI()
    ffi.cdef(cdef)
    ffi.set_source(args.module, "".join(f'#include "{header.name}"\n' for header in args.headers))
    ffi.emit_c_code(str(args.output))
    if args.depfile:
        needed = " ".join(name.replace(" ", "\\ ") for name in pre.files)
        args.depfile.write_text(f"{args.output}: {needed}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
