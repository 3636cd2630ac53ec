# SPDX-License-Identifier: Apache-2.0
"""The control daemon of SELENE: sessions, streams, channels and peers. It decides; selened-dp carries."""
