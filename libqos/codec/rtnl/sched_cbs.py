# SPDX-License-Identifier: Apache-2.0
"""
cbs
+++

Credit based shaper: the forwarding and queuing for time-sensitive streams of IEEE 802.1Q (8.6.8.2, formerly 802.1Qav)::

    ip.tc('replace', 'cbs', idx, 0, parent='100:1',
          idleslope=98688, sendslope=-901312, hicredit=153, locredit=-1389)

Parameters, named as in tc-cbs(8): idleslope, sendslope (kbit/s), hicredit, locredit (bytes), offload.
"""

from pyroute2.netlink import nla
from pyroute2.netlink.rtnl import TC_H_ROOT
from pyroute2.netlink.rtnl.tcmsg.common import stats2  # noqa: F401

parent = TC_H_ROOT


def get_parameters(kwarg):
    parms = {name: kwarg.get(name, 0) for name in ("hicredit", "locredit", "idleslope", "sendslope")}
    return {"attrs": [["TCA_CBS_PARMS", {"offload": int(bool(kwarg.get("offload"))), **parms}]]}


class options(nla):
    nla_map = (
        ("TCA_CBS_UNSPEC", "none"),
        ("TCA_CBS_PARMS", "cbs_parms"),
    )

    class cbs_parms(nla):
        fields = (
            ("offload", "B"),
            ("pad", "3x"),
            ("hicredit", "i"),
            ("locredit", "i"),
            ("idleslope", "i"),
            ("sendslope", "i"),
        )
