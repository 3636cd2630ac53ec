# SPDX-License-Identifier: Apache-2.0
"""Import parts of a package without the rest of it.

Some packages import all that they have in their `__init__`. pyroute2 does, which costs a daemon 7 MB and each command
65 ms for nothing."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any


def only_parts_of(package: str) -> None:
    """Let `from package.part import name` import that part alone.

    The package's own `__init__` runs when something is asked of the package that only that gives. Nothing is done if
    the package was imported before, or is not there."""
    spec = importlib.util.find_spec(package)
    if package in sys.modules or spec is None or spec.loader is None:
        return
    loader, module = spec.loader, importlib.util.module_from_spec(spec)

    def attribute(name: str) -> Any:
        if importlib.util.find_spec(f"{package}.{name}") is not None:
            return importlib.import_module(f"{package}.{name}")
        module.__dict__.pop("__getattr__", None)
        loader.exec_module(module)
        return getattr(module, name)

    module.__dict__["__getattr__"] = attribute
    sys.modules[package] = module
