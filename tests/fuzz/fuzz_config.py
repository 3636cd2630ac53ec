# SPDX-License-Identifier: Apache-2.0
"""TOML to a validated configuration of selened, from a file and from the environment."""

import os

from selened.settings import Settings

from libqos import config, tomlfile  # noqa: F401 - tomlfile: so that it is watched
from libqos.errors import InputError

_FILE = os.memfd_create("config")
_NAME = f"/proc/self/fd/{_FILE}"
_VARIABLES = ("QOS_SELENED_PORT", "QOS_SELENED_ADDRESS", "QOS_SELENED_DATAPATH_LOCK_MEMORY", "QOS_SELENED_DIRECT_PORTS")


def test_one_input(data: bytes) -> None:
    text, *values = data.split(b"\0")
    os.ftruncate(_FILE, 0)
    os.pwrite(_FILE, text, 0)
    environ = dict(zip(_VARIABLES, (value.decode(errors="surrogateescape") for value in values), strict=False))
    try:
        settings = config.load(Settings, tool="selened", file=_NAME, environ=environ)
    except InputError:
        return
    assert settings.port in range(1, 65536)
    list(settings.port_range())
    settings.datapath.arguments()
