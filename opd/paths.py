"""Where the project's files are: every path is anchored at the folder that holds ``params.yaml``."""

from __future__ import annotations

from pathlib import Path


def project_path(*parts: str) -> Path:
    """Path of a file of the project, from a notebook, a test or a shell anywhere inside it.

    Args:
        parts: path components relative to the project's root; an absolute one stands for itself.

    Raises:
        FileNotFoundError: if no folder from the working directory upwards holds ``params.yaml``.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file():
            return folder.joinpath(*parts)
    raise FileNotFoundError(
        f"no params.yaml in {here} or a folder above it; start Jupyter or dvc inside a clone of the project"
    )
