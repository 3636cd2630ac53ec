# SPDX-License-Identifier: Apache-2.0
"""Where a peer listens or connects to, as a URL, and what proves who is there.

- `unix:///run/qos/tsn-cuc.sock`: a path of this host
- `tcp://192.168.10.1:7480`: a host name, an IPv4 address, or an IPv6 address in brackets (`tcp://[fd00::1]:7480`)
- `tls://cuc.plant.example:7480`: TLS 1.2 or later (RFC 5246, RFC 8446) over TCP; both sides show a certificate
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from libqos import paths
from libqos.errors import InputError, QosError
from libqos.lock import Lock

ACCEPTED: Final = "unix:///PATH, tcp://HOST:PORT or tls://HOST:PORT"
_BACKLOG: Final = 128


class EndpointError(QosError):
    """Nothing can be opened there. The text says why."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A URL, taken apart: `path` of a unix socket, else `host` and `port`."""

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        return f"unix://{self.path}" if self.scheme == "unix" else f"{self.scheme}://{_host_port(self.host, self.port)}"


def parse(url: str) -> Endpoint:
    """Take a URL apart. Raises InputError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InputError(f"{url}: {error}; accepted {ACCEPTED}") from error
    if parts.query or parts.fragment or parts.username is not None:
        raise InputError(f"{url}: found more than an address, accepted {ACCEPTED}")
    if parts.scheme == "unix" and not parts.netloc and parts.path.startswith("/"):
        if len(os.fsencode(parts.path)) > paths.MAX_PATH_BYTES:
            length = len(os.fsencode(parts.path))
            raise InputError(f"{url}: found a path of {length} bytes, accepted {paths.MAX_PATH_BYTES}")
        return Endpoint("unix", path=parts.path)
    if parts.scheme in ("tcp", "tls") and parts.hostname and port is not None and parts.path in ("", "/"):
        return Endpoint(parts.scheme, parts.hostname, port)
    raise InputError(f"{url}: accepted {ACCEPTED}")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Files in PEM: the authority whose certificates are trusted; the own certificate, and its key (not encrypted)."""

    authority: Path
    certificate: Path
    key: Path

    def context(self, *, server: bool) -> ssl.SSLContext:
        """Both sides must show a certificate that `authority` has signed; a client also checks the server's name.

        Raises InputError that names the file."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        for file in (self.authority, self.certificate, self.key):
            try:
                with file.open("rb"):
                    pass
            except OSError as error:
                raise InputError(f"{file}: {error.strerror}") from error
        try:
            context.load_verify_locations(self.authority)
        except ssl.SSLError as error:
            raise InputError(f"{self.authority}: found no certificates in PEM: {error.reason or error}") from error
        try:
            context.load_cert_chain(self.certificate, self.key, password=_no_password)
        except ssl.SSLError as error:
            why = error.reason or error
            raise InputError(f"{self.certificate}, {self.key}: not a certificate and its key in PEM: {why}") from error
        return context


def _no_password() -> str:
    raise InputError("the key is encrypted, accepted is one that is not, in a file that only its user may read")


def tls_context(endpoint: Endpoint, files: TlsFiles | None, *, server: bool) -> ssl.SSLContext | None:
    """The context for an endpoint; None if it is not of `tls://`. Raises InputError."""
    if endpoint.scheme != "tls":
        return None
    if files is None:
        raise InputError(f"{endpoint}: needs three files: the authority's, the own certificate, and its key")
    return files.context(server=server)


class Listeners:
    """The listening sockets of an endpoint: one, or one for each address of a host name."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self._lock: Lock | None = None
        self._path: Path | None = None

    async def open(self, endpoint: Endpoint, *, mode: int) -> None:
        """Bind and listen; `mode` is that of a unix socket. Raises EndpointError, or LockError of a unix socket that
        another process serves."""
        try:
            if endpoint.scheme == "unix":
                self._open_unix(Path(endpoint.path), mode)
            else:
                for family, address in await _addresses(endpoint):
                    self._open_tcp(family, address)
        except OSError as error:
            self.close()
            raise EndpointError(f"{endpoint}: cannot be listened at: {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise

    def names(self) -> list[str]:
        """The addresses as bound: `host:port`, or the path."""
        return [address_text(listener.getsockname()) for listener in self.sockets]

    def close(self) -> None:
        """Stop listening, and remove the file of a unix socket."""
        for listener in self.sockets:
            listener.close()
        self.sockets.clear()
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
            self._path = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _open_tcp(self, family: socket.AddressFamily, address: tuple[str, int]) -> None:
        listener = socket.socket(family, socket.SOCK_STREAM)
        self.sockets.append(listener)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        self._listen(listener)

    def _open_unix(self, path: Path, mode: int) -> None:
        self._lock = Lock(path.with_name(f"{path.name}.lock"), path)
        try:
            paths.remove_socket(path)  # its process has died: we hold the lock
        except paths.SocketPathError as error:
            raise EndpointError(f"unix://{path}: there is a file that is no socket; remove it") from error
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sockets.append(listener)
        listener.bind(os.fspath(path))
        self._path = path
        # Before listen(), so that nobody can connect under the mode that the umask gave.
        path.chmod(mode)
        self._listen(listener)

    def _listen(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        listener.listen(_BACKLOG)


async def _addresses(endpoint: Endpoint) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
    found = await asyncio.get_running_loop().getaddrinfo(
        endpoint.host, endpoint.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    return [(family, address) for family, _, _, _, address in found]  # type: ignore[misc]


def address_text(address: object) -> str:
    """A socket's address for a person: `host:port`, `[host]:port`, or a path (`unix` if it has none)."""
    if isinstance(address, tuple):
        return _host_port(str(address[0]), int(address[1]))
    return str(address) or "unix"


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
