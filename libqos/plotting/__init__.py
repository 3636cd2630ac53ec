# SPDX-License-Identifier: Apache-2.0
"""How `qos-plot` draws: `series` (what is drawn), `figure` (matplotlib) and `script` (gnuplot).

The first holds every decision about data, so that both renderers show the same thing.
"""
