"""The command ``opd``: its face for people and scripts. The work is done by the rooms below.

A command first reads and checks its input; only then does it start or change anything. Everything that takes long to
import is imported inside the command that needs it, so ``opd --help`` answers at once.
"""

from opd.cli import cluster, project, replay, scaling  # noqa: F401  registers the commands
from opd.cli.command import DONE, FAILED, INTERRUPTED, NOT_DEPLOYED, REFUSED, app, main

__all__ = ["DONE", "FAILED", "INTERRUPTED", "NOT_DEPLOYED", "REFUSED", "app", "main"]
