# SPDX-License-Identifier: Apache-2.0
"""Runs a target in Python under atheris: `python_target.py NAME [options of libFuzzer] [corpus…]`.

A target is a file fuzz_NAME.py beside this one, with `test_one_input(data: bytes)`; what it raises is a finding. Where
an input holds several packets, lines or datagrams, the target counts them in `STEPS[0]`.
"""

import ctypes
import importlib
import os
import sys
from pathlib import Path

import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore] # .ci/fuzz installs it

KEPT: list[object] = []  # what C calls at the end


def main() -> None:
    sys.path.append(os.fspath(Path(__file__).parents[2]))  # last: the installed packages are meant
    with atheris.instrument_imports(include=["libqos", "lunar", "selene", "selened", "tomllib"]):
        target = importlib.import_module(f"tests.fuzz.fuzz_{sys.argv[1]}")
    again = f"{sys.executable} -P {' '.join(sys.argv[:2])}"  # for -merge and -jobs libFuzzer starts this
    if steps := getattr(target, "STEPS", None):
        # libFuzzer ends the process by exit(3): nothing of Python's own is run then
        def tell(*_: object) -> None:
            os.write(2, f"stat::steps: {steps[0]}\n".encode())

        KEPT.append(ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p)(tell))
        ctypes.CDLL(None).on_exit(KEPT[0], None)
    atheris.Setup([again, *sys.argv[2:]], target.test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
