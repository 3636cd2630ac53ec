# SPDX-License-Identifier: Apache-2.0
# The cffi module made from proto.h and selene.h: its contents are those of the headers.
from typing import Any

ffi: Any
lib: Any
