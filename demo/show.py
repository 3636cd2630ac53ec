#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Shows the first lines of stdin as they arrive, and counts the rest: the reader at the end of the demo.

On a terminal the count is a line that is written anew four times a second; otherwise it is printed once, at the end.
"""

from __future__ import annotations

import os
import sys
import time

SHOWN = 30
PROGRESS_S = 0.25
BLOCK = 1 << 16


def main() -> int:
    shown = int(sys.argv[1]) if len(sys.argv) > 1 else SHOWN
    terminal = sys.stdout.isatty()
    start = due = time.monotonic()
    count, rest = 0, b""
    try:
        while data := os.read(sys.stdin.fileno(), BLOCK):
            if count == 0:
                start = time.monotonic()
            *lines, rest = (rest + data).split(b"\n")
            head = lines[: max(0, shown - count)]
            count += len(lines)
            for line in head:
                print(f"  {line.decode(errors='replace')}", flush=True)
            if terminal and count > shown and time.monotonic() >= due:
                due = time.monotonic() + PROGRESS_S
                print(f"\r  ... {count} lines, {time.monotonic() - start:.0f} s ", end="", flush=True)
    except KeyboardInterrupt:
        return 130
    finally:
        if count > shown:
            print(f"{chr(13) if terminal else ''}  ... {count} lines in {time.monotonic() - start:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
