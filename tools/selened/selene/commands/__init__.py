# SPDX-License-Identifier: Apache-2.0
"""The subcommands of `selene`, one module each."""
