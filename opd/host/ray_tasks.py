"""Many independent tasks on the nodes of a Ray cluster, with the results that they have on this machine.

A task goes to a node as it goes to a process of this machine: pickled, with what all tasks share, to a process with the
same working directory, module path and number of threads. The nodes share the folder of the project, so files that a
task reads or writes need no handling here, and a training whose node was lost goes on from its checkpoint elsewhere.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

# Ray reads these when it is imported. A line of progress is no repetition of a similar one; tasks use no accelerator.
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import RayError, RayTaskError

from opd.host.errors import problem_list
from opd.host.machine import versions
from opd.host.paths import package_path, project_path

CONNECT_SECONDS = 10.0
"""Within which the cluster must accept a connection."""

RETRIES = 5
"""How often a task is begun again after its process or node was lost."""

PACKAGES = ("numpy", "scipy", "pandas", "numba", "highspy", "torch")
"""Packages that results depend on; all nodes have the same versions."""


class RayTasksError(RuntimeError):
    """The cluster cannot run the tasks; the message names the remedy."""


class _Origin(NamedTuple):
    """The process that hands out tasks.

    Attributes:
        mark: a file in the folder of the project that exists while there are tasks.
        folder: its working directory.
        software: versions by name.
    """

    mark: Path
    folder: Path
    software: dict[str, str | None]


@contextmanager
def ray_pool(
    function: Callable[[Any, Any], Any], shared: Any, address: str
) -> Iterator[Callable[[Sequence[Any]], Iterator[Any]]]:
    """Yield what :func:`opd.host.parallel.task_pool` yields, for the cluster at ``address``; each task takes one core.

    Raises:
        RayTasksError: if no cluster answers; by tasks, if a node sees another folder or has other software, or a task
            was lost too often.
    """
    connect(address)
    with tempfile.NamedTemporaryFile(dir=project_path(), prefix=".ray-tasks-") as mark:
        origin = _Origin(Path(mark.name), Path.cwd(), _software())
        prepared = ray.put(pickle.dumps((function, shared)))
        begin = _run.options(name=function.__name__).remote
        # In a list, the reference itself is handed over; a process looks up what it stands for once.
        yield lambda tasks: _results([begin(origin, [prepared], pickle.dumps(task)) for task in tasks])


def connect(address: str) -> None:
    """Connect this process to a cluster until it ends, unless it is connected already."""
    if ray.is_initialized():
        return
    paths = [str(package_path().parent), *(os.path.abspath(path) for path in sys.path)]
    variables = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "OMP_NUM_THREADS": "1"}
    try:
        _check_reachable(address)
        ray.init(address=address, runtime_env={"env_vars": variables}, logging_level="warning")
    except (OSError, RuntimeError, ValueError) as error:
        raise RayTasksError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({error}); start one (docs/ray.md), or unset RAY_ADDRESS "
            "to use the processes of this machine"
        ) from error
    nodes = sum(node["Alive"] for node in ray.nodes())
    cores = ray.cluster_resources().get("CPU", 0)
    print(f"Ray at {address}: {nodes} nodes with {cores:g} cores for tasks", file=sys.__stderr__, flush=True)


def _check_reachable(address: str) -> None:
    """Raise an error if nothing listens at ``HOST:PORT``, where Ray would try for many minutes."""
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


def _results(references: Sequence[Any]) -> Iterator[Any]:
    """Results in the order of the tasks; those that are left are cancelled when one fails, or nobody asks for more."""
    left = deque(references)
    try:
        while left:
            # Small results are here once their task ends. Ray runs a task again whose large result was on a lost node.
            result = pickle.loads(_result(left[0]))
            left.popleft()
            yield result
    finally:
        for reference in left:
            ray.cancel(reference)


def _result(reference: Any) -> bytes:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        raise RayTasksError(
            f"a task was lost with its process or node {RETRIES + 1} times, the last time: {error}; give nodes more "
            "memory or fewer cores for Ray, so that fewer tasks run at a time"
        ) from error


# ------------------------------------------------------------------------------------------------------- on a node

_prepared: tuple[Any, Callable[[Any], Any]] = (None, pickle.loads)
"""What the tasks of this process have in common: its reference, and the function of one task."""


@ray.remote(max_retries=RETRIES)
def _run(origin: _Origin, shared: list[Any], task: bytes) -> bytes:
    global _prepared
    if _prepared[0] != shared[0]:
        _check(origin)
        os.chdir(origin.folder)
        _prepared = shared[0], partial(*pickle.loads(ray.get(shared[0])))
    return pickle.dumps(_prepared[1](pickle.loads(task)))


def _check(origin: _Origin) -> None:
    """Raise an error if this node would not do what the process that hands out tasks would do itself."""
    place = f"Ray node {ray.util.get_node_ip_address()}"
    if not origin.mark.is_file():
        raise RayTasksError(
            f"{place} does not share the folder {origin.mark.parent}; mount it there under the same path (docs/ray.md)"
        )
    here = _software()
    other = [name for name, version in origin.software.items() if here[name] != version]
    if other:
        raise RayTasksError(
            problem_list(
                f"{place} has other software, so results could differ; give all nodes the same environment "
                "(docs/ray.md)",
                other,
                lambda name: f"{name} is {here[name]}, not {origin.software[name]}",
            )
        )


def _software() -> dict[str, str | None]:
    """Versions of what results depend on, that of the code of this package being a checksum."""
    code = 0
    for path in sorted(package_path().rglob("*.py")):
        code = zlib.crc32(path.read_bytes(), code)
    return {**versions(PACKAGES), "code of opd": f"{code:08x}"}
