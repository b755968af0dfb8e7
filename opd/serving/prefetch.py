"""Pull variants from the model store into the cache of a node before replicas need them.

``python -m opd.serving.prefetch URL TASK/VARIANT ...`` pulls all that it can; the exit code is 1 if one is missing.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from opd.serving.store import ModelStore

logger = logging.getLogger(__name__)


def prefetch(url: str, variants: Sequence[str]) -> int:
    """Pull each ``TASK/VARIANT``, and return how many could not be pulled; the log says why.

    Raises:
        StoreError: if there is no store of that kind.
    """
    store, failed = ModelStore(url), 0
    for name in variants:
        task, _, variant = name.partition("/")
        try:
            logger.info("%s is in %s", name, store.pull(task, variant))
        except (KeyError, OSError, RuntimeError, ValueError) as error:
            logger.error("%s was not pulled: %s", name, error.args[0] if error.args else error)
            failed += 1
    return failed


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(min(prefetch(sys.argv[1], sys.argv[2:]), 1))
