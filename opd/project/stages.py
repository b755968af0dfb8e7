"""The stages of a project, run one at a time by DVC: the same notebooks as ``dvc repro`` runs one after the other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from opd.project.folder import Project, environment

INTERRUPT_SECONDS = 60.0
"""Time that an interrupted stage has to save what it has."""


class StageFailedError(RuntimeError):
    """A stage did not finish; its output, on standard error, says why."""


def reproduce(project: Project, stages: Sequence[str], again: bool = False) -> None:
    """Run stages whose inputs changed since they last ran, without the stages that they depend on.

    The output of the stages goes to standard error.

    Args:
        project: the project.
        stages: names in its ``dvc.yaml``, in the order in which they run.
        again: run them even if nothing changed.

    Raises:
        StageFailedError: naming the stages.
        KeyboardInterrupt: once the running stage has saved what it has.
    """
    # A training that fails leaves no folder of agents, and DVC would refuse the evaluation of all other policies.
    (project.root / "models" / "agents").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", *(["--force"] if again else []), *stages]
    process = subprocess.Popen(command, cwd=project.root, env=environment(project), stdout=sys.stderr)
    try:
        code = process.wait()
    except KeyboardInterrupt:  # the stage was interrupted, too: it is in the same process group
        try:
            process.wait(INTERRUPT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    if code:
        raise StageFailedError(
            f"stage {' or '.join(stages)} of {project.root.name} did not finish; the reason is above, and in "
            f"{project.root / 'reports' / 'notebooks'}"
        )
