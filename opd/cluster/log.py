"""The log of a controller: a JSON object a line. Nothing here takes time to load, so it can be set up first."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

FIELDS = "fields"
"""Key in a record's ``extra``; the entries of its mapping are added to the line."""


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON: time, logger, level, message, and extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
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
    """Log to standard error as JSON, including Python's warnings, unless logging is set up already."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(True)
