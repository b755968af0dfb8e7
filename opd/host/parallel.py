"""Many independent tasks in several processes: of this machine, or of a Ray cluster where RAY_ADDRESS names one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

RAY_ADDRESS = "RAY_ADDRESS"
"""Environment variable, Ray's own: address of a running cluster, or ``local`` for one that begins on this machine."""

Shared = TypeVar("Shared")
Task = TypeVar("Task")
Result = TypeVar("Result")


def run_tasks(
    function: Callable[[Shared, Task], Result], shared: Shared, tasks: Sequence[Task], workers: int
) -> Iterator[Result]:
    """Yield ``function(shared, task)`` for every task, in the order of the tasks.

    When a task fails, tasks that have not begun are cancelled and its exception is raised.

    Args:
        function: a function of a module; it must not depend on the state of the process.
        shared: what all tasks need, handed to each process once; it may be large.
        tasks: what differs.
        workers: processes; with one worker everything runs in this process. On a Ray cluster as many tasks run at a
            time as it has cores.
    """
    with task_pool(function, shared, min(workers, len(tasks))) as run:
        yield from run(tasks)


@contextmanager
def task_pool(
    function: Callable[[Shared, Task], Result], shared: Shared, workers: int
) -> Iterator[Callable[[Sequence[Task]], Iterator[Result]]]:
    """Yield what :func:`run_tasks` does with tasks, for several rounds of them in the same processes."""
    if workers <= 1:
        yield lambda tasks: (function(shared, task) for task in tasks)
        return
    if address := os.environ.get(RAY_ADDRESS):
        with _ray_pool(address)(function, shared, address) as run:
            yield run
        return
    # Spawned, not forked: a fork of a process with threads can hang, and torch and gRPC have threads.
    with ProcessPoolExecutor(workers, get_context("spawn"), _prepare, (function, shared)) as pool:
        try:
            yield lambda tasks: pool.map(_run, tasks)
        finally:
            pool.shutdown(cancel_futures=True)


def _ray_pool(address: str) -> Callable[..., AbstractContextManager[Callable[[Sequence[Any]], Iterator[Any]]]]:
    try:
        from opd.host.ray_tasks import ray_pool
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"RAY_ADDRESS={address} asks for Ray, which is not installed ({error}); install it with "
            "`pip install 'opd[ray]'`, or unset RAY_ADDRESS to use the processes of this machine"
        ) from error
    return ray_pool


_prepared: Callable[[Any], Any]


def _prepare(function: Callable[[Any, Any], Any], shared: Any) -> None:
    global _prepared
    _prepared = partial(function, shared)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the one that hands out tasks has been killed: it would wait for the next one forever."""
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


def _run(task: Any) -> Any:
    return _prepared(task)
