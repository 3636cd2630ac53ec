# SPDX-License-Identifier: Apache-2.0
"""What the subcommands share: where the daemon is, and what it answers."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar

from libqos import cli

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")


def options(function: F) -> F:
    """`--socket`, `--format`, and what every command has."""
    decorators = (
        cli.socket_option("selened", "SELENE_SOCKET", "QOS_SELENE_SOCKET"),
        cli.format_option,
        cli.common_options,
    )
    return functools.reduce(lambda wrapped, wrap: wrap(wrapped), reversed(decorators), function)


def ask(socket_path: str, method: str, timeout: float = 2.0, **params: object) -> list[dict[str, Any]]:
    """The records that the daemon answers within `timeout` seconds. Raises RpcError."""
    from libqos import paths, rpc

    records = rpc.call(paths.status_socket(socket_path), {"method": method, "params": params}, timeout=timeout)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise rpc.RpcError("bad-reply", f"{socket_path}: the answer is no list of records")
    return records
