"""Results as JSON has them."""

from __future__ import annotations

import json
from typing import Any


def plain_data(result: Any) -> Any:
    """Turn a result into what JSON has; numbers that it does not have become null, and everything else text."""
    return json.loads(json.dumps(result, default=str), parse_constant=lambda _: None)
