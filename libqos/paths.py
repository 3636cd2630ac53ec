# SPDX-License-Identifier: Apache-2.0
"""Where a daemon's socket lies, for the daemon and for those who look for it.

A daemon makes its socket in `$RUNTIME_DIRECTORY` (set by systemd), else `$XDG_RUNTIME_DIR/qos/`, else
`/run/user/UID/qos/`, else `/tmp/qos-UID/`. A client takes the first of these places, then `/run/qos/` (the system's
instance), where the socket is. The status socket is the same path with `.status` behind it. A directory that we make is
0700 and ours: under /tmp anybody could have made one with that name before us, and would then own our socket.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from libqos.errors import QosError

if TYPE_CHECKING:
    from collections.abc import Mapping

SYSTEM_DIRECTORY: Final = Path("/run/qos")
MAX_PATH_BYTES: Final = 107  # sun_path, unix(7)


class SocketPathError(QosError):
    """A socket has no safe place to be."""


def directories(environ: Mapping[str, str] | None = None, uid: int | None = None) -> list[Path]:
    """The places for sockets that exist or can be made by this user, best first."""
    environ = os.environ if environ is None else environ
    uid = os.getuid() if uid is None else uid
    places = []
    runtime = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]  # systemd gives a list
    if runtime:
        places.append(Path(runtime))
    xdg = environ.get("XDG_RUNTIME_DIR", "")
    if xdg:
        places.append(Path(xdg) / "qos")
    home = Path(f"/run/user/{uid}")
    if home.is_dir():
        places.append(home / "qos")
    places.append(Path(f"/tmp/qos-{uid}"))
    return list(dict.fromkeys(places))


def daemon_socket(name: str, environ: Mapping[str, str] | None = None) -> Path:
    """The default socket of a daemon (`selened` → `.../selened.sock`); makes and checks its directory.

    Raises SocketPathError when the directory cannot be made, or when another user could meddle with it."""
    place = directories(environ)[0]
    make_private(place)
    return place / f"{name}.sock"


def client_socket(name: str, environ: Mapping[str, str] | None = None) -> Path:
    """Where to look for a daemon's socket: the first place that has it, else the place where it would be made."""
    places = directories(environ)
    for place in [*places, SYSTEM_DIRECTORY]:
        path = place / f"{name}.sock"
        if path.is_socket():
            return path
    return places[0] / f"{name}.sock"


def status_socket(path: str | os.PathLike[str]) -> Path:
    """The read-only status socket that stands beside a control socket."""
    return Path(f"{os.fspath(path)}.status")


def check_socket(path: Path) -> None:
    """Raises SocketPathError when a status socket beside `path` would not fit into an address."""
    if len(os.fsencode(status_socket(path))) > MAX_PATH_BYTES:
        raise SocketPathError(f"{path}: the path is too long for a socket, accepted at most {MAX_PATH_BYTES - 7} bytes")


def remove_socket(path: Path) -> None:
    """Remove a socket file. Anything else at that path is left alone: SocketPathError."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise SocketPathError(f"{path}: exists and is no socket; remove it, or give another --socket")
        path.unlink()


def make_private(place: Path) -> None:
    """Make a directory 0700, or check that the one there is ours alone to change. Raises SocketPathError."""
    try:
        place.mkdir(mode=0o700, exist_ok=False)
        return
    except FileExistsError:
        pass
    except OSError as error:
        raise SocketPathError(
            f"{place}: cannot be made for sockets: {error.strerror}; give --socket or set XDG_RUNTIME_DIR"
        ) from error
    found = place.lstat()
    if not stat.S_ISDIR(found.st_mode):
        reason = "it is no directory"
    elif found.st_uid != os.getuid():
        reason = f"it belongs to user {found.st_uid}, accepted {os.getuid()}"
    elif found.st_mode & 0o022:
        reason = f"others may write to it (mode {stat.S_IMODE(found.st_mode):04o}), accepted 0700 or 0755"
    else:
        return
    raise SocketPathError(f"{place}: not safe for sockets: {reason}; remove it, or give --socket")
