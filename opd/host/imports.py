"""Objects of users, named ``module:name``: from installed modules, or from files of the project folder."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path
from typing import Any

from opd.host.errors import reason_of
from opd.host.paths import project_path


def make_project_importable(project: Path | None = None) -> None:
    """Let modules of the project folder be imported; those that are installed keep their names.

    Args:
        project: the folder; by default the project one works in.
    """
    folder = str((project or project_path()).resolve())
    if folder not in sys.path:
        sys.path.append(folder)
    importlib.invalidate_caches()


def import_object(reference: str) -> Any:
    """Import what ``module:name`` refers to.

    Raises:
        ImportError: if that fails for any reason; the message begins with the reference.
    """
    make_project_importable()
    try:
        return pkgutil.resolve_name(reference)
    except (Exception, SystemExit) as error:  # the code of a user may raise anything
        reason = reason_of(error)
        if isinstance(error, ImportError | AttributeError):  # their messages say it all
            reason = reason.removeprefix(f"{type(error).__name__}: ")
        raise ImportError(f"{reference!r} cannot be imported: {reason}") from error
