# SPDX-License-Identifier: Apache-2.0
import os
import socket
import stat
from pathlib import Path

import pytest

from libqos import paths
from libqos.paths import SocketPathError


def listening(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def test_order_of_places(tmp_path: Path) -> None:
    environ = {"RUNTIME_DIRECTORY": "/run/a:/run/b", "XDG_RUNTIME_DIR": "/x"}
    places = paths.directories(environ, uid=987654)
    assert places == [Path("/run/a"), Path("/x/qos"), Path("/tmp/qos-987654")]
    assert paths.directories({}, uid=987654) == [Path("/tmp/qos-987654")]


def test_daemon_makes_its_directory_private(tmp_path: Path) -> None:
    path = paths.daemon_socket("selened", {"XDG_RUNTIME_DIR": str(tmp_path)})
    assert path == tmp_path / "qos/selened.sock"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert paths.daemon_socket("selened", {"XDG_RUNTIME_DIR": str(tmp_path)}) == path
    assert paths.status_socket(path) == tmp_path / "qos/selened.sock.status"


def test_client_takes_the_first_place_with_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "SYSTEM_DIRECTORY", tmp_path / "system")
    environ = {"XDG_RUNTIME_DIR": str(tmp_path / "user")}
    assert paths.client_socket("selened", environ) == tmp_path / "user/qos/selened.sock"
    listening(tmp_path / "system/selened.sock")
    assert paths.client_socket("selened", environ) == tmp_path / "system/selened.sock"
    listening(tmp_path / "user/qos/selened.sock")
    assert paths.client_socket("selened", environ) == tmp_path / "user/qos/selened.sock"


def test_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "qos"
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(SocketPathError, match=r"others may write to it \(mode 0777\), accepted 0700"):
        paths.make_private(place)


def test_link_and_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(SocketPathError, match="no directory"):
            paths.make_private(tmp_path / name)


def test_directory_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(SocketPathError, match="belongs to user"):
        paths.make_private(tmp_path)


def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(SocketPathError, match="give --socket or set XDG_RUNTIME_DIR"):
        paths.make_private(tmp_path / "none/qos")
