# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from libqos.endpoint import TlsFiles
from tests.certificates import certificates

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def files(tmp_path: Path) -> TlsFiles:
    """A certificate for this host, its key, and who has signed it, in `tmp_path`."""
    certificates(tmp_path)
    return TlsFiles(tmp_path / "ca.crt", tmp_path / "host.crt", tmp_path / "host.key")
