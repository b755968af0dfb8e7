"""Many independent tasks in several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import Any, TypeVar

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
        workers: processes; with one worker everything runs in this process.
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
    # Spawned, not forked: a fork of a process with threads can hang, and torch and gRPC have threads.
    with ProcessPoolExecutor(workers, get_context("spawn"), _prepare, (function, shared)) as pool:
        try:
            yield lambda tasks: pool.map(_run, tasks)
        finally:
            pool.shutdown(cancel_futures=True)


_prepared: Callable[[Any], Any]


def _prepare(function: Callable[[Any, Any], Any], shared: Any) -> None:
    global _prepared
    _prepared = partial(function, shared)


def _run(task: Any) -> Any:
    return _prepared(task)
