# SPDX-License-Identifier: Apache-2.0
"""Print a file as the elements of a C array."""

import sys
from pathlib import Path

data = Path(sys.argv[1]).read_bytes()
for at in range(0, len(data), 16):
    print("".join(f"{byte}," for byte in data[at : at + 16]))
