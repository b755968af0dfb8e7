"""An event loop whose clock jumps to the next timer: minutes of queueing pass at once and every time is exact."""

import asyncio


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self):
        super().__init__()
        self._now = 0.0

    def time(self):
        return self._now

    def _run_once(self):
        if not self._ready:
            pending = [handle.when() for handle in self._scheduled if not handle.cancelled()]
            self._now = max(self._now, min(pending, default=self._now))
        super()._run_once()


def run(coroutine):
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(coroutine)
