# SPDX-License-Identifier: Apache-2.0
"""What an end device of a TSN network and its controllers run (thesis, 4.2)."""
