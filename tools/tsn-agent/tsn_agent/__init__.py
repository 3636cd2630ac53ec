# SPDX-License-Identifier: Apache-2.0
"""End-to-end QoS in TSN networks: the agent of an end device, and the traffic that measures it (thesis 4.2)."""
