"""The package as it is installed: a wheel in an environment of its own, out of reach of the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from compiling import share_with
from deadlines import PATIENCE

ROOT = Path(__file__).parents[1]
HANGING_SECONDS = 1800
"""After this a command hangs; the longest takes a minute."""

CONTENT = ("opd", "notebooks", "pyproject.toml", "README.md", "LICENSE")
"""What a distribution is made of."""

SDIST = "import setuptools.build_meta as backend; print(backend.build_sdist('dist'))"


def clean_environment() -> dict[str, str]:
    """Nothing of this process's environment that could reach the checkout."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "OMP_NUM_THREADS") if name in os.environ}
    return environment | {"NUMBA_CACHE_DIR": os.environ["NUMBA_CACHE_DIR"]}


def run(command: Sequence[str | Path], folder: Path, environment: dict[str, str] | None = None) -> str:
    """Run a command that must succeed, and return its standard output."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment or clean_environment(),
        capture_output=True,
        text=True,
        timeout=HANGING_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def build_wheel(folder: Path) -> Path:
    """Build a source distribution of the files that git knows, and a wheel of that."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *CONTENT]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).exists():  # it may have been removed since
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    source = folder / "dist" / run([sys.executable, "-c", SDIST], folder).splitlines()[-1]
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    run([*pip, "-w", folder / "dist", source], folder)
    (built,) = (folder / "dist").glob("opd-*.whl")
    return built


def install(wheel: Path, environment: Path) -> Path:
    """Install a wheel into a new environment that sees the packages of this one; return its scripts folder."""
    run([sys.executable, "-m", "venv", "--without-pip", environment], environment)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index"]
    run([*pip, wheel], environment)
    packages = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], environment).strip())
    # A path in a .pth file comes after the environment's own packages, and the .pth files behind it are not read: the
    # editable installation of the checkout stays out of sight.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    share_with(packages / "opd")
    return environment / "bin"
