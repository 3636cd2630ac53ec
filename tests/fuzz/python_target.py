# SPDX-License-Identifier: Apache-2.0
"""Runs a target in Python under atheris: `python_target.py NAME [options of libFuzzer] [corpus…]`.

A target is a file fuzz_NAME.py beside this one, with `test_one_input(data: bytes)`; what it raises is a finding. Where
an input holds several packets, lines or datagrams, the target counts them in `STEPS[0]`.
"""

import atexit
import importlib
import os
import sys
from pathlib import Path

import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore] # .ci/fuzz installs it


def main() -> None:
    sys.path.append(os.fspath(Path(__file__).parents[2]))  # last: the installed packages are meant
    with atheris.instrument_imports(include=["libqos", "lunar", "selene", "selened", "tomllib"]):
        target = importlib.import_module(f"tests.fuzz.fuzz_{sys.argv[1]}")
    again = f"{sys.executable} -P {' '.join(sys.argv[:2])}"  # for -merge and -jobs libFuzzer starts this
    if steps := getattr(target, "STEPS", None):
        atexit.register(lambda: print(f"stat::steps: {steps[0]}", file=sys.stderr))
    atheris.Setup([again, *sys.argv[2:]], target.test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
