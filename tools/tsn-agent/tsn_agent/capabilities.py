# SPDX-License-Identifier: Apache-2.0
"""What an interface, and the kernel under it, can do for a stream: queues, offloads, time stamps, clock.

A controller needs it before it plans (thesis 4.2.2: the Knowledge Base holds it). What the kernel has is found by
trying it in a network namespace that nobody else sees.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from typing import TYPE_CHECKING, Any, Final

from pyroute2.ethtool import Ethtool
from pyroute2.ethtool.ioctl import EthtoolError
from pyroute2.iproute import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from libqos.codec.rtnl import register

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Record = dict[str, Any]

_SIOCETHTOOL: Final = 0x8946
_GDRVINFO: Final = 0x3
_GET_TS_INFO: Final = 0x41
_DRVINFO: Final = struct.Struct("=I32s32s32s32s32s12sIIIII")
_TS_INFO: Final = struct.Struct("=IIiI3II3I")  # struct ethtool_ts_info
# SOF_TIMESTAMPING_* (linux/net_tstamp.h), as ethtool -T names them
_STAMPS: Final = {
    1 << 0: "hardware-transmit", 1 << 1: "software-transmit", 1 << 2: "hardware-receive", 1 << 3: "software-receive",
    1 << 4: "software-system-clock", 1 << 6: "hardware-raw-clock",
}  # fmt: skip
_OFFLOADS: Final = ("hw-tc-offload", "tx-checksum-ip-generic", "tx-udp-segmentation", "rx-gro", "tx-vlan-hw-insert",
                    "rx-vlan-hw-parse")  # fmt: skip
_CLONE_NEWNET: Final = 0x4000_0000


def interfaces(names: Iterable[str] = ()) -> list[Record]:
    """A record of each interface, or of those named. Raises OSError for one that there is not."""
    wanted = list(names)
    with IPRoute() as ip, Ethtool() as ethtool, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        links = {link.get_attr("IFLA_IFNAME"): link for link in ip.get_links()}
        for name in wanted:
            if name not in links:
                raise OSError(f"{name}: there is no such interface; found {', '.join(sorted(links))}")
        below = {link["index"]: name for name, link in links.items()}
        return [_interface(links[name], below, ethtool, asking) for name in wanted or sorted(links)]


def _interface(link: Any, below: dict[int, str], ethtool: Ethtool, asking: socket.socket) -> Record:
    name = link.get_attr("IFLA_IFNAME")
    info = link.get_attr("IFLA_LINKINFO")
    driver = _ask(asking, name, _GDRVINFO, _DRVINFO)
    stamps = _ask(asking, name, _GET_TS_INFO, _TS_INFO)
    features = _tried(lambda: ethtool.get_features(name).features) or {}
    channels = _tried(lambda: ethtool.get_channels(name))
    return {
        "kind": "interface",
        "name": name,
        "index": link["index"],
        "mac": link.get_attr("IFLA_ADDRESS"),
        "type": info.get_attr("IFLA_INFO_KIND") if info is not None else None,
        "below": below.get(link.get_attr("IFLA_LINK")),
        "up": bool(link["flags"] & 1),
        "carrier": bool(link.get_attr("IFLA_CARRIER")),
        "mtu": link.get_attr("IFLA_MTU"),
        "speed_mbps": _speed(ethtool, name),
        "driver": driver[1].split(b"\0")[0].decode(errors="replace") if driver else None,
        "tx_queues": link.get_attr("IFLA_NUM_TX_QUEUES"),
        "rx_queues": link.get_attr("IFLA_NUM_RX_QUEUES"),
        "channels_max": _channels(channels),
        "offloads": [feature for feature in _OFFLOADS if feature in features and features[feature].enable],
        "timestamps": [text for bit, text in _STAMPS.items() if stamps and stamps[1] & bit],
        "phc": f"/dev/ptp{stamps[2]}" if stamps and stamps[2] >= 0 else None,
    }


def speed_mbps(name: str) -> int | None:
    """The speed of an interface, None if it does not tell."""
    with Ethtool() as ethtool:
        return _speed(ethtool, name)


def _speed(ethtool: Ethtool, name: str) -> int | None:
    speed = _tried(lambda: ethtool.get_link_mode(name).speed)
    return int(speed) if speed and 0 < speed < 0xFFFF_FFFF else None


def _channels(channels: Any) -> int | None:
    return max(channels.max_tx or 0, channels.max_combined or 0) or None if channels is not None else None


def _tried(ask: Callable[[], Any]) -> Any:
    """What a device answers, None where it does not."""
    try:
        return ask()
    except (OSError, NetlinkError, EthtoolError, KeyError):
        return None


def _ask(asking: socket.socket, name: str, command: int, layout: struct.Struct) -> tuple[Any, ...] | None:
    """An ethtool question by ioctl (pyroute2 has neither of these two)."""
    answer = ctypes.create_string_buffer(struct.pack("=I", command), layout.size)
    request = struct.pack("16sP", name.encode(), ctypes.addressof(answer))
    try:
        fcntl.ioctl(asking, _SIOCETHTOOL, request)
    except OSError:
        return None
    return layout.unpack(answer.raw)


def kernel() -> Record:
    """What the kernel has of what streams need: each tried on a veth pair of an own namespace.

    Without the right to make one, every answer is None."""
    names = ("vlan", "taprio", "taprio_txtime_assist", "etf", "mqprio", "cbs")
    record: Record = {"kind": "kernel", "release": os.uname().release, **dict.fromkeys(names)}
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) == 0:
                os.write(writing, bytes(_has(name) for name in names))
                status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, "rb") as answers:
        found = answers.read()
    os.waitpid(child, 0)
    if len(found) == len(names):
        record |= {name: bool(has) for name, has in zip(names, found, strict=True)}
    else:
        record["why"] = "CAP_SYS_ADMIN is missing: run as root"
    return record


_CLASSES: Final = {"num_tc": 2, "map": [0, 1], "queues": [(1, 0), (1, 1)]}
_LIST: Final = {**_CLASSES, "sched_entries": [(3, 1_000_000)], "clockid": 11}


def _has(name: str) -> bool:
    register()
    with IPRoute() as ip:
        ip.link("add", ifname="a", kind="veth", peer={"ifname": "b"}, num_tx_queues=2, num_rx_queues=1)
        index = ip.link_lookup(ifname="a")[0]
        try:
            if name == "vlan":
                ip.link("add", ifname="v", kind="vlan", link=index, vlan_id=1)
            elif name.startswith("taprio"):
                assist = {"flags": 1, "txtime_delay": 1000} if "assist" in name else {}
                ip.tc("add", "taprio", index, "100:", **_LIST, **assist)
            elif name == "mqprio":
                ip.tc("add", "mqprio", index, "100:", **_CLASSES, hw=0)
            elif name == "etf":
                ip.tc("add", "etf", index, "100:", clockid=11, delta=1000)
            else:
                ip.tc("add", "cbs", index, "100:", idleslope=1000, sendslope=-1000, hicredit=10, locredit=-10)
        except NetlinkError:
            return False
        finally:
            ip.link("del", index=index)
        return True
