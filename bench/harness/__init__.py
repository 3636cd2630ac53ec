# SPDX-License-Identifier: Apache-2.0
"""The bench harness: pairs in random order, null test, bootstrap interval, environment, plot.

Standard library only (matplotlib for the plot, if it is there), so that a bench also runs where nothing was set up.
Data goes this way: ``procs`` and ``link`` run one side once and hand back its final JSON record, ``pairs`` does so in
pairs and takes ratios, ``stats`` makes the verdict, ``bench`` prints and writes what came out, ``plot`` draws it.
"""
