# SPDX-License-Identifier: Apache-2.0
"""Parts of a package without the rest of it."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

import pytest

from libqos.sparing import only_parts_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One that imports all of its parts."""
    (folder := tmp_path / "spare").mkdir()
    (folder / "__init__.py").write_text("from spare import other\nfrom spare.part import name\nwhole = 1\n")
    (folder / "part.py").write_text("from spare import small\nname = small.name\n")
    (folder / "small.py").write_text("name = 'part'\n")
    (folder / "other.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield "spare"
    for module in [name for name in sys.modules if name.split(".")[0] == "spare"]:
        del sys.modules[module]


def test_a_part_comes_alone(package: str) -> None:
    only_parts_of(package)
    assert importlib.import_module("spare.part").name == "part"
    assert sorted(name for name in sys.modules if name.startswith("spare.")) == ["spare.part", "spare.small"]


def test_the_rest_comes_when_it_is_asked_for(package: str) -> None:
    only_parts_of(package)
    spare = importlib.import_module(package)
    assert spare.whole == 1
    assert "spare.other" in sys.modules
    assert spare.name == "part"
    with pytest.raises(AttributeError):
        _ = spare.nothing


def test_what_was_imported_stays(package: str) -> None:
    spare = importlib.import_module(package)
    only_parts_of(package)
    assert sys.modules[package] is spare


def test_a_package_that_is_not_there_is_not_there() -> None:
    only_parts_of("no_such_package")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_package")
