# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import socket
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from libqos.endpoint import Endpoint, EndpointError, Listeners, TlsFiles, parse, tls_context
from libqos.errors import InputError
from libqos.lock import LockError
from tests.waiting import free_port

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("unix:///run/qos/cuc.sock", Endpoint("unix", path="/run/qos/cuc.sock")),
        ("tcp://192.168.10.1:7480", Endpoint("tcp", "192.168.10.1", 7480)),
        ("tcp://[fd00::1]:7480", Endpoint("tcp", "fd00::1", 7480)),
        ("tls://cuc.example:0", Endpoint("tls", "cuc.example", 0)),
    ],
)
def test_urls(url: str, endpoint: Endpoint) -> None:
    assert parse(url) == endpoint
    assert str(endpoint) == url


@pytest.mark.parametrize(
    "url",
    [
        "", "cuc.example:7480", "http://cuc.example:80", "tcp://cuc.example", "tcp://:7480", "tcp://host:port",
        "tcp://host:65536", "tcp://[::1:7480", "tcp://host:1/path", "tcp://host:1?x=1", "tls://me:secret@host:1",
        "unix://run/cuc.sock", "unix:cuc.sock", "unix:///" + "x" * 107,
    ],
)  # fmt: skip
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(InputError, match="accepted"):
        parse(url)


def listen(url: str) -> Listeners:
    listeners = Listeners()
    asyncio.run(listeners.open(parse(url), mode=0o600))
    return listeners


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("[::1]", marks=pytest.mark.needs_ipv6)])
def test_one_listener_for_an_address(host: str) -> None:
    url = f"tcp://{host}:{free_port()}"
    listeners = listen(url)
    try:
        assert [f"tcp://{name}" for name in listeners.names()] == [url]
        with pytest.raises(EndpointError, match="Address already in use"):
            listen(url)
    finally:
        listeners.close()
    listen(url).close()


def test_one_listener_for_a_path(tmp_path: Path) -> None:
    path = tmp_path / "cuc.sock"
    listeners = listen(f"unix://{path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(LockError, match=r"cuc.sock: another process \(pid [0-9]+\)"):
        listen(f"unix://{path}")
    listeners.close()
    assert not list(tmp_path.iterdir())


def test_what_a_dead_process_has_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "cuc.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    listen(f"unix://{path}").close()


def test_a_file_of_another_kind_stays(tmp_path: Path) -> None:
    (tmp_path / "cuc.sock").write_text("precious")
    with pytest.raises(EndpointError, match="no socket"):
        listen(f"unix://{tmp_path}/cuc.sock")
    assert [file.name for file in tmp_path.iterdir()] == ["cuc.sock"]


def test_no_such_host() -> None:
    with pytest.raises(EndpointError, match=r"nowhere.invalid:1: cannot be listened at"):
        listen("tcp://nowhere.invalid:1")


class TestTls:
    def test_only_tls_needs_them(self, files: TlsFiles) -> None:
        assert tls_context(parse("tcp://[::1]:1"), None, server=True) is None
        with pytest.raises(InputError, match="needs three files"):
            tls_context(parse("tls://[::1]:1"), None, server=True)
        assert tls_context(parse("tls://[::1]:1"), files, server=False) is not None

    @pytest.mark.parametrize("name", ["ca.crt", "host.crt", "host.key"])
    def test_a_bad_file_is_named(self, files: TlsFiles, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_text("rubbish")
        with pytest.raises(InputError, match=f"{name}.*PEM"):
            files.context(server=True)
        (tmp_path / name).unlink()
        with pytest.raises(InputError, match=f"{name}: No such file"):
            files.context(server=False)

    def test_no_question_for_a_password(self, files: TlsFiles, tmp_path: Path) -> None:
        locked = tmp_path / "locked.key"
        command = ["openssl", "pkey", "-in", str(files.key), "-aes256", "-passout", "pass:secret", "-out", str(locked)]
        subprocess.run(command, check=True, capture_output=True, timeout=20)
        with pytest.raises(InputError, match="encrypted"):
            TlsFiles(files.authority, files.certificate, locked).context(server=True)
