# SPDX-License-Identifier: Apache-2.0
"""Logs for a machine: one JSON record of kind `log` per line. Apart from `cli`, which must not import logging."""

from __future__ import annotations

import json
import logging


class JsonFormatter(logging.Formatter):
    """`{"kind":"log","ts_ns":…,"level":"warning","logger":…,"message":…}`, with `error` for a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "kind": "log",
            "ts_ns": round(record.created * 1e9),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)
