# SPDX-License-Identifier: Apache-2.0
"""
etf
+++

Earliest tx-time first: packets leave at the launch time that their socket gives them (SO_TXTIME), or are dropped::

    ip.tc('replace', 'etf', idx, 0, parent='100:1', clockid=11, delta=300000)

Parameters, named as in tc-etf(8):

* delta -- how long before its launch time a packet is handed to the device, in ns
* clockid -- 11: CLOCK_TAI
* deadline_mode -- the launch time is the latest one: the packet leaves as soon as it is its turn
* offload -- the device waits for the launch time
* skip_sock_check -- packets of sockets without SO_TXTIME pass too
"""

from pyroute2.netlink import nla
from pyroute2.netlink.rtnl import TC_H_ROOT
from pyroute2.netlink.rtnl.tcmsg.common import stats2  # noqa: F401

parent = TC_H_ROOT

FLAG_DEADLINE_MODE = 1
FLAG_OFFLOAD = 2
FLAG_SKIP_SOCK_CHECK = 4


def get_parameters(kwarg):
    flags = (
        FLAG_DEADLINE_MODE * bool(kwarg.get("deadline_mode"))
        | FLAG_OFFLOAD * bool(kwarg.get("offload"))
        | FLAG_SKIP_SOCK_CHECK * bool(kwarg.get("skip_sock_check"))
    )
    parms = {"delta": kwarg.get("delta", 0), "clockid": kwarg.get("clockid", -1), "flags": flags}
    return {"attrs": [["TCA_ETF_PARMS", parms]]}


class options(nla):
    nla_map = (
        ("TCA_ETF_UNSPEC", "none"),
        ("TCA_ETF_PARMS", "etf_parms"),
    )

    class etf_parms(nla):
        fields = (
            ("delta", "i"),
            ("clockid", "i"),
            ("flags", "I"),
        )
