# SPDX-License-Identifier: Apache-2.0
"""The shared library of qos-continuum: what two of its tools need. It knows none of the tools."""

__version__ = "0.1.0"
