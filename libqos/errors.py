# SPDX-License-Identifier: Apache-2.0
"""The base of every error that a person can act on.

Each subsystem raises one exception type of its own, derived from `QosError`; `libqos.cli.run` prints its text as one
line on stderr and exits with its `exit_code`. The text says what was found, what is accepted, and what to do. Anything
else that escapes is a bug of ours and keeps its traceback.
"""

from __future__ import annotations


class QosError(Exception):
    """A known failure. `exit_code` is 1 (failed) or 2 (wrong usage, configuration or input)."""

    exit_code = 1


class InputError(QosError):
    """What was given (a file, an option, a record) cannot be used: exit code 2."""

    exit_code = 2
