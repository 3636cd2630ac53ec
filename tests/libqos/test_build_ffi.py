# SPDX-License-Identifier: Apache-2.0
"""From a header to a cdef, and to a module that the compiler has filled in."""

import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "libqos/core/build_ffi.py"

HEADER = r"""
#ifndef PROBE_H
#define PROBE_H
#ifndef QOS_CDEF
#include <stdint.h>
#include <string.h>
#define HIDDEN 1
#endif
#define PROBE_API __attribute__((visibility("default")))
#define PROBE_LEN (4 * 4u)
#define PROBE_BIT (1u << PROBE_SHIFT)
#define PROBE_SHIFT 3
#define PROBE_TEXT "probe"
#define PROBE_CALL(x) ((x) + 1)
enum probe_kind { PROBE_A = 1, PROBE_B, PROBE_C = (1 << 4) };
struct probe { uint8_t kind; char name[PROBE_LEN]; uint64_t value; };
struct probe_packed { uint8_t kind; uint32_t value; } __attribute__((packed));
struct probe_line { _Alignas(64) uint64_t value; };
struct probe_outer { uint8_t first; struct { uint8_t a; uint32_t b; } nested; struct probe_line line; };
typedef void (*probe_cb)(void *arg, const struct probe *probe);
_Static_assert(sizeof(struct probe) == 32, "layout; and a semicolon");
static inline int probe_hidden(int x) { if (x) { return 1; } return PROBE_CALL(x); }
PROBE_API uint64_t probe_sum(const struct probe *probes, uint32_t n);
PROBE_API int probe_each(const struct probe *probes, uint32_t n, probe_cb callback, void *arg);
#endif
"""

SOURCE = r"""
#include "probe.h"
uint64_t probe_sum(const struct probe *p, uint32_t n) { uint64_t s = 0; while (n--) s += p[n].value; return s; }
int probe_each(const struct probe *p, uint32_t n, probe_cb f, void *a) { while (n--) f(a, p + n); return 0; }
"""


@pytest.fixture
def probe(tmp_path: Path) -> ModuleType:
    """A module made from HEADER, compiled and loaded."""
    (tmp_path / "probe.h").write_text(HEADER, encoding="utf-8")
    (tmp_path / "probe.c").write_text(SOURCE, encoding="utf-8")
    callbacks = tmp_path / "callbacks.cdef"
    callbacks.write_text('extern "Python" void probe_python_cb(void *, const struct probe *);\n', encoding="utf-8")
    generated = tmp_path / "_probe.c"
    options = [
        "--module=_probe",
        f"--header={tmp_path / 'probe.h'}",
        f"--include-dir={tmp_path}",
        f"--extern-python={callbacks}",
        f"--depfile={tmp_path / 'probe.d'}",
        f"--output={generated}",
    ]
    subprocess.run([sys.executable, SCRIPT, *options], check=True)
    assert str(tmp_path / "probe.h") in (tmp_path / "probe.d").read_text(encoding="utf-8")
    library = tmp_path / "_probe.so"
    include = sysconfig.get_path("include")
    subprocess.run(
        ["gcc", "-shared", "-fPIC", f"-I{include}", f"-I{tmp_path}", "-o", library, generated, tmp_path / "probe.c"],
        check=True,
    )
    spec = importlib.util.spec_from_file_location("_probe", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.needs_gcc
def test_the_compiler_fills_in_constants_and_layouts(probe: Any) -> None:
    ffi, lib = probe.ffi, probe.lib
    assert (lib.PROBE_A, lib.PROBE_B, lib.PROBE_C) == (1, 2, 16)
    assert (lib.PROBE_LEN, lib.PROBE_SHIFT, lib.PROBE_BIT) == (16, 3, 8)
    assert ffi.string(lib.PROBE_TEXT) == b"probe"
    assert [name for name in ("HIDDEN", "PROBE_CALL", "probe_hidden", "PROBE_H") if hasattr(lib, name)] == []
    assert ffi.sizeof("struct probe_packed") == 5
    assert ffi.offsetof("struct probe_outer", "nested") == 4
    assert ffi.offsetof("struct probe_outer", "line") == 64
    assert ffi.sizeof(ffi.new("struct probe *").name) == 16


@pytest.mark.needs_gcc
def test_functions_and_callbacks_work(probe: Any) -> None:
    ffi, lib = probe.ffi, probe.lib
    probes = ffi.new("struct probe[]", [{"value": 1}, {"value": 2**40}])
    assert lib.probe_sum(probes, 2) == 2**40 + 1
    seen: list[int] = []

    @ffi.def_extern()  # type: ignore[untyped-decorator]
    def probe_python_cb(_arg: Any, item: Any) -> None:
        seen.append(item.value)

    assert lib.probe_each(probes, 2, lib.probe_python_cb, ffi.NULL) == 0
    assert seen == [2**40, 1]


def test_a_header_that_does_not_preprocess_is_an_error_with_the_compilers_words(tmp_path: Path) -> None:
    (tmp_path / "bad.h").write_text("#error nothing works\n", encoding="utf-8")
    options = ["--module=m", f"--header={tmp_path / 'bad.h'}", f"--output={tmp_path / 'm.c'}"]
    done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nothing works" in done.stderr
