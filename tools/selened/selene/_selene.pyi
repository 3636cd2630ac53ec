# SPDX-License-Identifier: Apache-2.0
# The cffi module made from proto.h, selene.h and callbacks.cdef: its contents are those of the headers.
from typing import Any

ffi: Any
lib: Any
