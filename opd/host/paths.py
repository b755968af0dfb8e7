"""Paths of files in the user's project and in the package."""

from __future__ import annotations

from pathlib import Path


def project_path(*parts: str) -> Path:
    """Path of a file in the project, from a notebook, a test or a shell anywhere inside it.

    The project is the nearest folder from the working directory upwards that contains ``params.yaml``, or the working
    directory if there is none.

    Args:
        parts: path components relative to the project; an absolute path is returned as it is.
    """
    here = Path.cwd()
    root = next((folder for folder in (here, *here.parents) if (folder / "params.yaml").is_file()), here)
    return root.joinpath(*parts)


def package_path(*parts: str) -> Path:
    """Path of a file that is installed with the package, such as a pipeline or the bundled trace.

    Args:
        parts: path components relative to the folder of the package.
    """
    return Path(__file__).parents[1].joinpath(*parts)
