# SPDX-License-Identifier: Apache-2.0
"""Certificates for tests of TLS, made by openssl."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


def certificates(directory: Path) -> None:
    """An authority (`ca.crt`), and a certificate of it for 127.0.0.1 and ::1 (`host.crt`, `host.key`)."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1")
    try:
        openssl(*new, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=authority")
        openssl(
            *new, "-CA", "ca.crt", "-CAkey", "ca.key", "-keyout", "host.key", "-out", "host.crt", "-subj", "/CN=host",
            "-addext", "subjectAltName=IP:127.0.0.1,IP:::1", "-addext", "basicConstraints=critical,CA:FALSE",
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError) as failure:
        pytest.skip(f"openssl cannot make certificates: {failure}")
