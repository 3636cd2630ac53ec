# SPDX-License-Identifier: Apache-2.0
"""The queueing disciplines of time-sensitive networking for pyroute2, which has none of them: taprio, etf, cbs, mqprio.

Written as pyroute2's own plug-ins are, so that they can be offered to it; `register` puts them where it looks.
"""

from pyroute2.netlink.rtnl.tcmsg import plugins

from libqos.codec.rtnl import sched_cbs, sched_etf, sched_mqprio, sched_taprio


def register() -> None:
    """Make `IPRoute.tc` know them. May be called again."""
    plugins.update(taprio=sched_taprio, etf=sched_etf, cbs=sched_cbs, mqprio=sched_mqprio)
