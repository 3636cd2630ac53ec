# SPDX-License-Identifier: Apache-2.0
"""End-to-end QoS in TSN networks (thesis 4.2)."""

from libqos.sparing import only_parts_of

only_parts_of("pyroute2")
