"""A server process that is asked to end."""

import asyncio
import os
import signal

import pytest
from deadlines import PATIENCE, eventually
from serving_models import push_variant

from opd.serving.client import Client
from opd.serving.contents import payload_request, payloads_of
from opd.serving.processes import model_process, running

pytestmark = pytest.mark.processes

SECONDS = 6.5
"""Of one inference: longer than the five seconds after which MLServer would cancel it."""


@pytest.fixture
def replica(tmp_path):
    push_variant(tmp_path / "store", "task", "slow", seconds=SECONDS)
    process = model_process("replica", "tiny", "task", "slow", str(tmp_path / "store"), tmp_path)
    with running(process, 60):
        yield process


def test_a_running_request_is_finished_however_long_it_takes(replica):
    async def stop_meanwhile():
        client = Client(replica.grpc_address, "task")
        call = asyncio.create_task(client.infer(payload_request([b"hello"]), 0.0, 30.0))
        await asyncio.sleep(0.5)
        os.kill(replica.pid, signal.SIGTERM)
        try:
            return payloads_of(await call)
        finally:
            await client.close()

    assert asyncio.run(stop_meanwhile()) == [b"HELLO"]
    eventually(lambda: not replica.alive)


def test_an_idle_server_ends_at_once_though_callers_are_connected(replica):
    async def stop_meanwhile():
        client = Client(replica.grpc_address, "task")
        assert await client.ready(PATIENCE)
        os.kill(replica.pid, signal.SIGTERM)
        await asyncio.to_thread(eventually, lambda: not replica.alive)  # far sooner than after GRACE_SECONDS
        await client.close()

    asyncio.run(stop_meanwhile())
