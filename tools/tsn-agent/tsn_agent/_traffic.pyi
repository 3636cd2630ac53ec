# SPDX-License-Identifier: Apache-2.0
# The cffi module made from the headers in traffic/: its contents are those of the headers.
from typing import Any

ffi: Any
lib: Any
