# SPDX-License-Identifier: Apache-2.0
"""What a client asks of selened on one host: sessions, streams, sources and sinks."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import subprocess
from typing import Any

import pytest
from selened import wire
from selened.mapping import Technology
from selened.wire import RefusedError, lib

SOURCE, SINK, STREAM = 1, 2, 3

# ---- Sessions ----


def test_a_session_is_direct_and_gets_its_own_udp_socket(daemon: Any) -> None:
    client = daemon.client()
    assert client.welcome.flags == wire.DIRECT
    assert client.udp is not None
    assert client.udp.getsockname() == ("127.0.0.1", client.welcome.address.port)
    assert client.udp.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) > 64 << 10
    assert client.session_packets() == [lib.SELENE_D_SESSION]
    record = daemon.info("session")[0]
    assert record["path"] == "direct"
    assert (record["program"], record["pid"], record["uid"]) == ("test", os.getpid(), os.getuid())


def test_a_client_may_ask_to_be_relayed(daemon: Any) -> None:
    client = daemon.client(flags=wire.RELAYED)
    assert client.welcome.flags == wire.RELAYED
    assert not client.fds
    assert daemon.info("session")[0]["why"] == "the client asked for it"


def test_the_configuration_may_relay_everybody(make_daemon: Any) -> None:
    daemon = make_daemon("s", 'sessions = "relayed"\n').start()
    assert daemon.client().welcome.flags == wire.RELAYED
    assert "sessions = relayed" in daemon.info("session")[0]["why"]


def test_direct_sessions_keep_to_the_configured_ports_and_are_relayed_without_one(make_daemon: Any) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    daemon = make_daemon("s", f'direct_ports = "{port}-{port}"\n').start()
    assert daemon.client().welcome.address.port == port
    assert daemon.client().welcome.flags == wire.RELAYED
    assert daemon.notices()["no_direct_socket"] == 1


@pytest.mark.needs_netns
def test_a_client_in_another_network_namespace_is_relayed(daemon: Any) -> None:
    holder = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write(b"x\n")
        holder.stdin.flush()
        assert holder.stdout.read(1) == b"x"
        client = daemon.client(greet=False)
        with open(f"/proc/{holder.pid}/ns/net", "rb") as netns:
            client.ask("selene_hello", lib.SELENE_C_HELLO, [netns.fileno()], program=b"elsewhere")
        assert "another network namespace" in daemon.info("session")[0]["why"]
        assert daemon.info("session")[0]["path"] == "relayed"
    finally:
        holder.communicate()


def test_sessions_are_limited_per_user(make_daemon: Any) -> None:
    daemon = make_daemon("s", "max_sessions_per_user = 1\n").start()
    daemon.client()
    with pytest.raises(RefusedError, match="raise max_sessions_per_user") as refusal:
        daemon.client()
    assert refusal.value.error == errno.EUSERS


def test_the_end_of_a_client_leaves_nothing(daemon: Any, until: Any) -> None:
    def descriptors() -> int:
        return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))

    daemon.info("daemon")
    before = descriptors()
    for _ in range(3):
        clients = [daemon.client() for _ in range(3)]
        for client in clients:
            client.stream()
            client.source(1)
            client.sink(1)
        for client in clients:
            client.close()
        until(lambda: not daemon.info("session"), "the end of the sessions")
    assert not daemon.info("source")
    assert not daemon.info("sink")
    until(lambda: descriptors() <= before, "the descriptors")


def test_a_session_that_the_datapath_process_ends_is_ended_here(daemon: Any, until: Any) -> None:
    client = daemon.client()
    _, fds, _, _ = socket.recv_fds(client.session, wire.MAX_PACKET, wire.MAX_FDS)
    client.fds += fds
    with mmap.mmap(fds[1], 0) as page:  # the tail of its release ring
        page[lib.SELENE_PAGE_RELEASE + 64 : lib.SELENE_PAGE_RELEASE + 72] = b"\xff" * 8
    os.eventfd_write(fds[3], 1)
    assert client.receive() == b""
    until(lambda: not daemon.info("session"), "the end of the session")
    until(lambda: "impossible index in the release ring" in daemon.said(), "the reason")


# ---- Streams ----


def test_a_stream_gets_a_technology_and_a_reason(daemon: Any) -> None:
    client = daemon.client()
    slow = client.stream(1)
    assert (slow.technology, slow.warning) == (Technology.UDP, 0)
    fast = client.stream(2, acceleration=lib.SELENE_FAST, resources=lib.SELENE_ANY)
    assert (fast.technology, fast.warning) == (Technology.UDP, 1)
    assert "not built into this version" in wire.text_of(fast.text)
    assert daemon.said().count("WARNING selened: stream 7") == 1
    records = {record["handle"]: record for record in daemon.info("stream")}
    assert records[1]["warning"] is None
    assert records[2]["warning"]
    live = daemon.ask("explain")
    assert [record["technology"] for record in live] == ["udp", "udp"]
    assert live[0]["path"] == "direct"


@pytest.mark.parametrize(
    ("policy", "error", "text"),
    [
        ({"acceleration": 2}, errno.EINVAL, r"acceleration 2, accepted 0 \(slow\), 1 \(fast\)"),
        ({"resources": 9}, errno.EINVAL, r"resources 9, accepted 0 \(low\), 1 \(any\)"),
        ({"delivery": 2}, errno.EINVAL, r"delivery 2, accepted 0 \(best-effort\), 1 \(reliable\)"),
        ({"traffic_class": 8}, errno.EINVAL, "traffic class 8, accepted 0 to 7"),
        ({"time_sensitive": 1}, errno.EOPNOTSUPP, "gate engine"),
    ],
)
def test_unknown_policies_are_refused_with_what_is_accepted(
    daemon: Any, policy: dict[str, int], error: int, text: str
) -> None:
    client = daemon.client()
    with pytest.raises(RefusedError, match=text) as refusal:
        client.stream(**policy)
    assert refusal.value.error == error
    assert client.stream().technology == Technology.UDP, "the session goes on"


def test_explain_answers_for_policies(daemon: Any) -> None:
    decision = daemon.ask("explain", acceleration="fast", resources="any")[0]
    assert [item["technology"] for item in decision["candidates"]] == ["rdma", "dpdk", "xdp", "udp"]
    with pytest.raises(Exception, match="accepted acceleration slow"):
        daemon.ask("explain", acceleration="warp")
    with pytest.raises(Exception, match="gate engine"):
        daemon.ask("explain", time_sensitive=True)


# ---- Sources and sinks ----


def test_edges_are_there_when_an_endpoint_is_answered(daemon: Any) -> None:
    one, two = daemon.client(), daemon.client(flags=wire.RELAYED)
    for client in (one, two):
        client.stream()
        client.session_packets()
    sink = one.sink(5, "topic")
    assert sink.edges == 0
    source = two.source(5, "topic")
    assert source.edges == 1
    assert two.session_packets() == [lib.SELENE_D_EDGE_SOURCE]
    assert one.session_packets() == [lib.SELENE_D_EDGE_SINK]
    second = two.sink(5, "topic")
    assert second.edges == 1
    assert {record["edges"] for record in daemon.info("sink")} == {1}
    one.remove(sink.id, SINK)
    assert two.session_packets()[-1] == lib.SELENE_D_EDGE_GONE
    two.remove(source.id, SOURCE)
    two.remove(second.id, SINK)
    assert not daemon.info("sink") + daemon.info("source")


def test_two_names_on_one_channel_are_kept_apart_with_one_warning(daemon: Any) -> None:
    client = daemon.client()
    client.stream()
    client.sink(9, "left")
    assert client.source(9, "right").edges == 0
    assert client.source(9, "left").edges == 1
    assert daemon.info("daemon")[0]["collisions"] == 1
    assert daemon.said().count("is used by two names, 'left' and 'right'") == 1


@pytest.mark.needs_root
def test_users_do_not_share_memory(daemon: Any) -> None:
    mine = daemon.client()
    mine.stream()
    daemon.path.chmod(0o666)
    for place in [daemon.directory, *daemon.directory.parents[:-2]]:
        place.chmod(place.stat().st_mode | 0o055)
    os.seteuid(65533)
    try:
        theirs = daemon.client()
    finally:
        os.seteuid(0)
    theirs.stream()
    sink = theirs.sink(3)
    source = mine.source(3)
    assert source.edges == 0
    assert mine.routes() == [(source.id, 1, wire.RELAYED, [])]
    assert theirs.session_packets() == [lib.SELENE_D_SESSION]
    assert theirs.next_push()
    record = daemon.info("source")[0]
    assert record["relayed"]
    theirs.remove(sink.id, SINK)
    assert wire.header(mine.receive()).type == lib.SELENE_S_ROUTE


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"handle": 4}, errno.ENOENT, "no stream with handle 4"),
        ({"index": wire.MAX_ENDPOINTS}, errno.EINVAL, "counter index 4096"),
        ({"name_length": 256}, errno.ENAMETOOLONG, "channel name of 256 bytes, accepted at most 255"),
        ({"name": b"\xff\xfe", "name_length": 2}, errno.EILSEQ, "accepted text in UTF-8"),
        ({"name": b"a\0b", "name_length": 3}, errno.EINVAL, "zero byte"),
        ({"depth": 1 << 20}, errno.EINVAL, "accepted at most 16384 messages"),
    ],
)
def test_endpoints_that_cannot_be_are_refused(daemon: Any, fields: dict[str, Any], error: int, text: str) -> None:
    client = daemon.client()
    client.stream()
    with pytest.raises(RefusedError, match=text) as refusal:
        client.source(1, **fields)
    assert refusal.value.error == error
    assert client.source(1).id, "the session goes on"
    assert len(daemon.info("source")) == 1


def test_a_sink_needs_an_eventfd(daemon: Any) -> None:
    client = daemon.client()
    client.stream()
    fields: dict[str, Any] = {"handle": 1, "index": 1}
    with pytest.raises(RefusedError, match="found none"):
        client.ask("selene_endpoint_open", lib.SELENE_C_SINK, **fields)
    read, write = os.pipe()
    with pytest.raises(RefusedError, match="no eventfd"):
        client.ask("selene_endpoint_open", lib.SELENE_C_SINK, [write], **fields)
    os.close(read)
    os.close(write)


def test_closing_what_is_not_there_is_refused(daemon: Any) -> None:
    client = daemon.client()
    client.stream()
    source = client.source(1)
    for endpoint, kind in ((77, SOURCE), (source.id, SINK), (9, STREAM)):
        with pytest.raises(RefusedError) as refusal:
            client.remove(endpoint, kind)
        assert refusal.value.error == errno.ENOENT
    client.remove(1, STREAM)
    with pytest.raises(RefusedError, match="no stream"):
        client.source(2)


def test_many_endpoints_are_possible_and_bounded_by_the_page(daemon: Any) -> None:
    client = daemon.client()
    client.stream()
    ids = {client.source(channel, index=channel).id for channel in range(200)}
    assert len(ids) == 200
    with pytest.raises(RefusedError, match="counter index 5"):
        client.source(1000, index=5)


def test_stats_have_the_datapath_and_every_endpoint(daemon: Any) -> None:
    client = daemon.client()
    client.stream()
    client.source(1, "a")
    client.sink(1, "a")
    records = daemon.ask("stats")
    assert [record["kind"] for record in records] == ["datapath", "source", "sink"]
    assert records[0]["rx_rubbish"] == 0
    assert records[1]["messages"] == 0
    assert records[2]["lost"] == 0
    assert records[1]["name"] == "a"
