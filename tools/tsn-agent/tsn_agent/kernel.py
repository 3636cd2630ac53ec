# SPDX-License-Identifier: Apache-2.0
"""The kernel's side of `wanted`: reads resources by key, and sets one, by rtnetlink (rtnetlink(7)).

What the kernel refuses is a RefusedError, whose sentence names resource and parameter. Needs CAP_NET_ADMIN to set.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self

from pyroute2.iproute import IPRoute
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError

from libqos import clock
from libqos.codec.rtnl import register
from libqos.codec.rtnl.refusals import RefusedError, explain

if TYPE_CHECKING:
    from tsn_agent.wanted import Key, Resources, Value

FOREIGN: Final = "foreign"  # in place of parameters: the kind of a root queueing discipline that is not ours to change
_IFF_UP: Final = 1
_TABLE_MAIN: Final = 254
_UNICAST: Final = 1
_SCOPE_LINK: Final = 253
_STATIC: Final = 4  # RTPROT_STATIC
_NUD_PERMANENT: Final = 0x80
_HANDLE: Final = 0x100_0000  # 100:
_ROOT: Final = 0xFFFF_FFFF  # TC_H_ROOT
_SCHEDULE: Final = ("sched_entries", "base_time", "cycle_time", "cycle_time_extension")
_TRIES: Final = 8
_CODES: Final = {
    errno.EPERM: "CAP_NET_ADMIN is missing: run as root, or give the unit AmbientCapabilities=CAP_NET_ADMIN",
    errno.ENODEV: "there is no such interface",
    errno.ENETUNREACH: "the gateway is on no network of this host",
    errno.EHOSTUNREACH: "the gateway is on no network of this host",
    errno.ENETDOWN: "the interface is down",
    errno.EEXIST: "there is another one in its place",
    errno.EADDRNOTAVAIL: "the address is not there",
    errno.EOPNOTSUPP: "kernel or device cannot do that",
}


@dataclass(frozen=True, slots=True)
class Interface:
    """What is asked about an interface before anything is set."""

    index: int
    name: str
    tx_queues: int
    carrier_losses: int = 0  # since it was made


def phase(parameters: Value) -> int:
    """Where in time the cycles of a schedule begin, modulo the cycle."""
    return int(parameters["base_time"] % parameters["cycle_time"])


def same(key: Key, found: Value | None, wanted: Value | None) -> bool:
    """Whether a resource is as wanted."""
    if found is None or wanted is None:
        return found is wanted
    return not differences(found, wanted)


def differences(found: Value, wanted: Value) -> list[str]:
    """The parameters in which a resource is not as wanted.

    Of a schedule the phase counts: base times are the same a whole cycle apart. The kernel tells the largest payload
    that fits into a class' windows where that is less than what was set."""
    return [name for name, value in wanted.items() if value is not None and not _equal(name, found, wanted)]


def _equal(name: str, found: Value, wanted: Value) -> bool:
    if FOREIGN in found:
        return False
    if name == "base_time":
        return phase(found) == phase(wanted)
    if name == "max_sdu":
        sizes = zip(found[name], wanted[name], strict=False)
        return len(found[name]) == len(wanted[name]) and all(not most or 0 < size <= most for size, most in sizes)
    return bool(found.get(name) == wanted[name])


class Kernel:
    """One rtnetlink socket, in the network namespace of the process; a context manager."""

    def __init__(self) -> None:
        register()
        self._ip = IPRoute(ext_ack=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ip.close()

    # ---- reading ----

    def interfaces(self) -> dict[str, Interface]:
        """By name."""
        return {
            name: Interface(
                link["index"],
                name,
                link.get_attr("IFLA_NUM_TX_QUEUES") or 1,
                link.get_attr("IFLA_CARRIER_DOWN_COUNT") or 0,
            )
            for link in self._ip.get_links()
            if (name := link.get_attr("IFLA_IFNAME"))
        }

    def resources(self) -> Resources:
        """Everything of the kinds that an agent sets, whoever has set it."""
        for _ in range(_TRIES):
            try:
                return self._resources()
            except NetlinkDumpInterrupted:  # something changed meanwhile
                continue
        raise RefusedError("the network configuration changes all the time; nothing was read")

    def _resources(self) -> Resources:
        result: Resources = {}
        names: dict[int, str] = {}
        links = list(self._ip.get_links())
        for link in links:
            names[link["index"]] = link.get_attr("IFLA_IFNAME")
        for link in links:
            name = names[link["index"]]
            result["link", name] = {"up": bool(link["flags"] & _IFF_UP), "mtu": link.get_attr("IFLA_MTU")}
            info = link.get_attr("IFLA_LINKINFO")
            if info is not None and info.get_attr("IFLA_INFO_KIND") == "vlan":
                result["vlan", name] = _vlan(info.get_attr("IFLA_INFO_DATA"), names.get(link.get_attr("IFLA_LINK"), ""))
        for address in self._ip.get_addr():
            text = address.get_attr("IFA_LOCAL") or address.get_attr("IFA_ADDRESS")
            result["address", names.get(address["index"], ""), f"{text}/{address['prefixlen']}"] = {}
        for route in self._ip.get_routes(table=_TABLE_MAIN, type=_UNICAST):
            if route.get_attr("RTA_MULTIPATH") is None and route["type"] == _UNICAST:
                result["route", _network(route), route.get_attr("RTA_PRIORITY") or 0] = {
                    "gateway": route.get_attr("RTA_GATEWAY"),
                    "interface": names.get(route.get_attr("RTA_OIF"), ""),
                    "source": route.get_attr("RTA_PREFSRC"),
                    "protocol": route["proto"],
                }
        for neighbour in self._ip.get_neighbours():
            if neighbour["state"] & _NUD_PERMANENT and neighbour.get_attr("NDA_LLADDR"):
                key = ("neighbour", names.get(neighbour["ifindex"], ""), neighbour.get_attr("NDA_DST"))
                result[key] = {"mac": neighbour.get_attr("NDA_LLADDR")}
        self._add_disciplines(result, names)
        return result

    def _add_disciplines(self, result: Resources, names: dict[int, str]) -> None:
        for qdisc in self._ip.get_qdiscs():
            name, kind, handle = names.get(qdisc["index"], ""), qdisc.get_attr("TCA_KIND"), qdisc["handle"]
            options = qdisc.get_attr("TCA_OPTIONS")
            if qdisc["parent"] == _ROOT and handle:
                taprio = kind == "taprio" and options is not None
                result["taprio", name] = _taprio(options) if taprio else {FOREIGN: kind}
            elif kind == "etf" and qdisc["parent"] & 0xFFFF_0000 == _HANDLE:
                result["etf", name, (qdisc["parent"] & 0xFFFF) - 1] = _etf(options)

    def interface_towards(self, destination: str) -> str:
        """By which interface an address is reached. Raises RefusedError when it is not."""
        try:
            route = next(iter(self._ip.route("get", dst=destination)))
        except NetlinkError as error:
            raise RefusedError(f"{destination}: no route leads there; add one, or name the interface") from error
        names = {interface.index: name for name, interface in self.interfaces().items()}
        return names[route.get_attr("RTA_OIF")]

    def drops(self) -> dict[tuple[str, str, str], int]:
        """Packets that each queueing discipline has dropped, by interface, kind and parent (`100:1`, `root`).

        taprio counts those of its queues there, and only there."""
        names = {interface.index: name for name, interface in self.interfaces().items()}
        result: dict[tuple[str, str, str], int] = {}
        for qdisc in self._ip.get_qdiscs():
            stats, parent = qdisc.get_attr("TCA_STATS"), qdisc["parent"]
            if stats is not None and qdisc["index"] in names:
                where = "root" if parent == _ROOT else f"{parent >> 16:x}:{parent & 0xFFFF:x}"
                result[names[qdisc["index"]], qdisc.get_attr("TCA_KIND"), where] = stats["drop"]
        return result

    # ---- setting ----

    def set(self, key: Key, found: Value | None, wanted: Value | None) -> None:
        """Make a resource that is `found` as it is `wanted`; None: that there is none. Raises RefusedError."""
        kind, *names = key
        try:
            getattr(self, f"_set_{kind}")(*names, found, wanted)
        except NetlinkError as error:
            self._refuse(key, error)

    def _refuse(self, key: Key, error: NetlinkError) -> NoReturn:
        kind, name, *rest = map(str, key)
        code, said = error.code, str(error.args[1] if len(error.args) > 1 else error)
        if kind in ("taprio", "etf"):
            raise explain(kind, name, code, said) from error
        meaning = _CODES.get(code, "the kernel refuses it")
        where = " ".join([kind, name, *rest])
        raise RefusedError(f"{where}: {meaning} ({errno.errorcode.get(code, code)}: {said})") from error

    def _index(self, name: str) -> int:
        found = self._ip.link_lookup(ifname=name)
        if not found:
            raise RefusedError(f"{name}: there is no such interface")
        return int(found[0])

    def _set_link(self, name: str, found: Value | None, wanted: Value | None) -> None:
        if wanted is None:  # it goes with its interface
            return
        change: dict[str, Any] = {}
        if wanted.get("mtu") is not None:
            change["mtu"] = wanted["mtu"]
        if wanted.get("up") is not None:
            change["state"] = "up" if wanted["up"] else "down"
        self._ip.link("set", index=self._index(name), **change)

    def _set_vlan(self, name: str, found: Value | None, wanted: Value | None) -> None:
        if wanted is None:
            self._ip.link("del", index=self._index(name))
            return
        egress = {"attrs": [("IFLA_VLAN_QOS_MAPPING", {"from": old, "to": new}) for old, new in wanted["egress"]]}
        self._ip.link("add", ifname=name, kind="vlan", link=self._index(wanted["interface"]),
                      vlan_id=wanted["id"], vlan_egress_qos=egress)  # fmt: skip

    def _set_address(self, name: str, address: str, found: Value | None, wanted: Value | None) -> None:
        host, _, length = address.partition("/")
        self._ip.addr("del" if wanted is None else "add", index=self._index(name), address=host, prefixlen=int(length))

    def _set_neighbour(self, name: str, address: str, found: Value | None, wanted: Value | None) -> None:
        index = self._index(name)
        if wanted is None:
            self._ip.neigh("del", dst=address, ifindex=index)
        else:
            self._ip.neigh("replace", dst=address, ifindex=index, lladdr=wanted["mac"], state="permanent")

    def _set_route(self, network: str, metric: int, found: Value | None, wanted: Value | None) -> None:
        value = wanted or found or {}
        route: dict[str, Any] = {"dst": network, "priority": metric, "table": _TABLE_MAIN}
        if value.get("gateway"):
            route["gateway"] = value["gateway"]
        if value.get("interface"):
            route["oif"] = self._index(value["interface"])
        if wanted is None:
            self._ip.route("del", **route)
            return
        if value.get("source"):
            route["prefsrc"] = value["source"]
        if not value.get("gateway"):
            route["scope"] = _SCOPE_LINK
        self._ip.route("replace", **route, proto=value.get("protocol", _STATIC))

    def _set_taprio(self, name: str, found: Value | None, wanted: Value | None) -> None:
        index = self._index(name)
        if wanted is None:
            self._ip.tc("del", index=index, handle=_HANDLE, parent=_ROOT)
            return
        parameters = {**wanted, "base_time": next_base_time(wanted, clock.tai_ns())}
        if found is None:
            self._ip.tc("add", "taprio", index, "100:", **_tuples(parameters))
        else:
            parameters = {name: parameters[name] for name in _SCHEDULE}
            if "clockid" in wanted:
                parameters["clockid"] = wanted["clockid"]
            self._ip.tc("change", "taprio", index, "100:", **_tuples(parameters))

    def _set_etf(self, name: str, queue: int, found: Value | None, wanted: Value | None) -> None:
        index, parent = self._index(name), _HANDLE | (queue + 1)
        if wanted is None:
            self._ip.tc("del", index=index, handle=0, parent=parent)
        else:
            self._ip.tc("replace", "etf", index, 0, parent=parent, **wanted)


def next_base_time(parameters: Value, now: int) -> int:
    """The base time, or where it is past the next beginning of a cycle: a device may refuse what is past."""
    return clock.next_instant(parameters["base_time"], parameters["cycle_time"], now)


def keeps_running(found: Value, wanted: Value) -> bool:
    """Whether a schedule can be changed into another one while it runs: only its list differs."""
    static = [name for name in found.keys() | wanted.keys() if name not in _SCHEDULE]
    return all(name in found and name in wanted and _equal(name, found, wanted) for name in static)


def _tuples(parameters: Value) -> Value:
    """Lists of lists as the plug-in takes them."""
    return {
        name: [tuple(item) if isinstance(item, list) else item for item in value] if isinstance(value, list) else value
        for name, value in parameters.items()
    }


def _vlan(data: Any, below: str) -> Value:
    egress = data.get_attr("IFLA_VLAN_EGRESS_QOS")
    mapped = [] if egress is None else egress.get_attrs("IFLA_VLAN_QOS_MAPPING")
    return {
        "interface": below,
        "id": data.get_attr("IFLA_VLAN_ID"),
        "egress": sorted([item["from"], item["to"]] for item in mapped if item["to"]),
    }


def _network(route: Any) -> str:
    zero = "0.0.0.0" if route["family"] == 2 else "::"
    return f"{route.get_attr('RTA_DST') or zero}/{route['dst_len']}"


def _taprio(options: Any) -> Value:
    classes = options.get_attr("TCA_TAPRIO_ATTR_PRIOMAP")
    number = classes["num_tc"]
    schedule = options.get_attr("TCA_TAPRIO_ATTR_ADMIN_SCHED") or options
    listed = schedule.get_attr("TCA_TAPRIO_ATTR_SCHED_ENTRY_LIST")
    entries = [] if listed is None else listed.get_attrs("TCA_TAPRIO_SCHED_ENTRY")
    names = ("CMD", "GATE_MASK", "INTERVAL")
    sizes = {
        entry.get_attr("TCA_TAPRIO_TC_ENTRY_INDEX"): entry.get_attr("TCA_TAPRIO_TC_ENTRY_MAX_SDU")
        for entry in options.get_attrs("TCA_TAPRIO_ATTR_TC_ENTRY")
    }
    flags = options.get_attr("TCA_TAPRIO_ATTR_FLAGS") or 0
    value: Value = {
        "num_tc": number,
        "map": list(classes["prio_tc_map"]),
        "queues": [list(pair) for pair in zip(classes["count"], classes["offset"], strict=True)][:number],
        "sched_entries": [[entry.get_attr(f"TCA_TAPRIO_SCHED_ENTRY_{name}") for name in names] for entry in entries],
        "base_time": schedule.get_attr("TCA_TAPRIO_ATTR_SCHED_BASE_TIME") or 0,
        "cycle_time": schedule.get_attr("TCA_TAPRIO_ATTR_SCHED_CYCLE_TIME") or 1,
        "cycle_time_extension": schedule.get_attr("TCA_TAPRIO_ATTR_SCHED_CYCLE_TIME_EXTENSION") or 0,
        "flags": flags,
        "max_sdu": [_max_sdu(sizes.get(of)) for of in range(number)],
    }
    if flags & 2 == 0:
        value["clockid"] = options.get_attr("TCA_TAPRIO_ATTR_SCHED_CLOCKID")
    if flags & 1:
        value["txtime_delay"] = options.get_attr("TCA_TAPRIO_ATTR_TXTIME_DELAY") or 0
    return value


def _max_sdu(size: int | None) -> int:
    return 0 if size is None or size == 0xFFFF_FFFF else size


def _etf(options: Any) -> Value:
    parms = options.get_attr("TCA_ETF_PARMS")
    flags = parms["flags"]
    return {"clockid": parms["clockid"], "delta": parms["delta"], "deadline_mode": bool(flags & 1),
            "offload": bool(flags & 2), "skip_sock_check": bool(flags & 4)}  # fmt: skip
