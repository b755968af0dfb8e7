"""The log as lines of JSON, for whatever collects it."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

FIELDS = "fields"
"""Key in a record's ``extra`` of a mapping whose entries join the others of its line."""


class JsonFormatter(logging.Formatter):
    """Writes a record as one JSON object on one line: time, logger, level, message, and the fields it brings."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "logger": record.name,
            "level": record.levelname,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_as_json() -> None:
    """Log to standard error in this way, warnings of Python too, unless logging is set up already."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(True)
