"""Many independent tasks in several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
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
    if workers == 1 or len(tasks) == 1:
        yield from (function(shared, task) for task in tasks)
        return
    # Spawned, not forked: a fork of a process with threads can hang, and torch and gRPC have threads.
    with ProcessPoolExecutor(workers, get_context("spawn"), _prepare, (function, shared)) as pool:
        try:
            yield from pool.map(_run, tasks)
        finally:
            pool.shutdown(cancel_futures=True)


_prepared: Callable[[Any], Any]


def _prepare(function: Callable[[Any, Any], Any], shared: Any) -> None:
    global _prepared
    _prepared = partial(function, shared)


def _run(task: Any) -> Any:
    return _prepared(task)
