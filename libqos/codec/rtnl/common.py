# SPDX-License-Identifier: Apache-2.0
"""What taprio and mqprio have in common: priorities, traffic classes and queues (struct tc_mqprio_qopt)."""

from pyroute2.netlink import nla

MAX_CLASSES = 16


class mqprio_qopt(nla):
    fields = (
        ("num_tc", "B"),
        ("prio_tc_map", "16B"),
        ("hw", "B"),
        ("count", "16H"),
        ("offset", "16H"),
    )


def _padded(values):
    return list(values) + [0] * (MAX_CLASSES - len(values))


def qopt(kwarg, hw):
    queues = kwarg.get("queues", ())
    return {
        "num_tc": kwarg["num_tc"],
        "prio_tc_map": _padded(kwarg.get("map", ())),
        "hw": kwarg.get("hw", hw),
        "count": _padded([count for count, _ in queues]),
        "offset": _padded([offset for _, offset in queues]),
    }


def parameters(kwarg, names):
    """Attributes that are one number each."""
    return [[attribute, kwarg[name]] for name, attribute in names if name in kwarg]


def by_class(attribute, prefix, kwarg):
    """One attribute for each traffic class that has a largest frame or is preemptible."""
    max_sdu, fp = kwarg.get("max_sdu", ()), kwarg.get("fp", ())
    entries = []
    for index in range(max(len(max_sdu), len(fp))):
        attrs = [[f"{prefix}_INDEX", index]]
        if index < len(max_sdu):
            attrs.append([f"{prefix}_MAX_SDU", max_sdu[index]])
        if index < len(fp):
            attrs.append([f"{prefix}_FP", fp[index]])
        entries.append([attribute, {"attrs": attrs}])
    return entries
