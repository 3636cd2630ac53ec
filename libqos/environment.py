# SPDX-License-Identifier: Apache-2.0
"""The names of environment variables: QOS_<TOOL>_<OPTION>. Apart from `config`, so that every --help stays quick."""

from __future__ import annotations

import functools


def environment_prefix(tool: str) -> str:
    """The beginning of a tool's variables: selened → QOS_SELENED, qos-stat → QOS_STAT."""
    name = tool.upper().replace("-", "_")
    return name if name.startswith("QOS_") else f"QOS_{name}"


@functools.lru_cache(4096)
def environment_name(tool: str, where: tuple[str | int, ...]) -> str:
    """The variable of one option: ("selened", ("tls", "key_file")) → QOS_SELENED_TLS_KEY_FILE."""
    return "_".join([environment_prefix(tool), *(str(part).upper() for part in where)])
