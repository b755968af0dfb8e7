"""Files of the user's project and files of the package."""

from __future__ import annotations

from pathlib import Path


def project_path(*parts: str) -> Path:
    """Path of a file of the project, from a notebook, a test or a shell anywhere inside it.

    The project is the nearest folder from the working directory upwards that holds ``params.yaml``; where there is
    none, the working directory.

    Args:
        parts: path components relative to the project; an absolute one stands for itself.
    """
    here = Path.cwd()
    root = next((folder for folder in (here, *here.parents) if (folder / "params.yaml").is_file()), here)
    return root.joinpath(*parts)


def package_path(*parts: str) -> Path:
    """Path of a file that is installed with the package, such as the catalogue or the bundled trace.

    Args:
        parts: path components relative to the package's folder.
    """
    return Path(__file__).parent.joinpath(*parts)
