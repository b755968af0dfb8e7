"""The load generator as a process."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest
from deadlines import PATIENCE, eventually
from scripted_service import ScriptedService, serving

from opd.live.generator import start_load
from opd.live.load import LoadError, arrival_times, read_counts, summary

pytestmark = pytest.mark.processes


@pytest.fixture
def service():
    return ScriptedService()


@pytest.fixture
def address(service):
    """Address of a server in another thread, since the load generator is another process."""
    opened, loop = threading.Event(), asyncio.new_event_loop()
    closed = asyncio.Event()
    found = []

    async def run():
        async with serving(service) as endpoint:
            found.append(endpoint)
            opened.set()
            await closed.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()), daemon=True)
    thread.start()
    assert opened.wait(PATIENCE)
    yield found[0]
    loop.call_soon_threadsafe(closed.set)
    thread.join(PATIENCE)
    loop.close()


def written(folder, counts, payloads):
    files = folder / "counts.csv", folder / "pages.parquet", folder / "records.parquet"
    pd.Series(counts).to_csv(files[0], index=False, header=["requests"])
    pd.DataFrame({"payload": payloads, "truth": "?"}).to_parquet(files[1])
    return files


def command(address, files):
    names = ("counts", "samples", "output")
    options = [f"--{name}={path}" for name, path in zip(names, files, strict=True)]
    return [sys.executable, "-m", "opd.live.load", f"--address={address}", "--model=pipeline", *options]


def test_the_command_writes_records_and_prints_their_summary(address, tmp_path):
    files = written(tmp_path, [10, 5], [b"one", b"two"])
    ended = subprocess.run(command(address, files), capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == "", "no progress bar without a terminal"
    records = pd.read_parquet(files[2])
    printed = json.loads(ended.stdout)
    assert printed.pop("failures") == {"requests": 0, "share": 0.0, "most_frequent": None}
    assert printed == summary(records)
    assert len(records) == 15 and records.attrs["seconds"] == 2.0
    assert abs(time.time() - records.attrs["started"]) < 60.0


def test_the_command_sends_json_samples_and_reports_the_most_frequent_failure(address, tmp_path):
    counts, _, output = written(tmp_path, [30], [])
    samples = tmp_path / "requests.json"
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES"}
    samples.write_text(json.dumps([{"inputs": [{**tensor, "data": [text]}]} for text in ("one", "wrong", "wrong")]))
    files = counts, samples, output
    ended = subprocess.run(command(address, files), capture_output=True, text=True, timeout=PATIENCE)
    records = pd.read_parquet(output)
    failed = int((records["code"] == "INVALID_ARGUMENT").sum())
    assert 0 < failed < 30 and (records["outcome"] == "completed").sum() == 30 - failed
    assert json.loads(ended.stdout)["failures"]["most_frequent"]["message"] == "refused: wrong"
    assert f"pipeline: {failed} of 30 requests ({failed / 30:.1%}) got no answer. " in ended.stderr
    assert f"reason ({failed} requests): failed, INVALID_ARGUMENT: refused: wrong" in ended.stderr


def test_the_command_reports_why_it_offered_no_load(tmp_path):
    files = written(tmp_path, [1, -1], [b"one"])
    ended = subprocess.run(command("127.0.0.1:1", files), capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 1 and "no load was offered: count -1 of second 1" in ended.stderr
    assert not files[2].exists()


def test_records_that_find_no_room_are_reported_and_not_left_half_written(address, tmp_path):
    files = written(tmp_path, [5], [b"one"])
    files[2].with_name(f"{files[2].name}.part").symlink_to("/dev/full")
    ended = subprocess.run(command(address, files), capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    assert f"the records of 5 requests are lost: {files[2]} cannot be written: " in ended.stderr
    assert "No space left on device" in ended.stderr and not files[2].exists()


def test_a_load_generator_returns_its_records(address, tmp_path):
    _, payloads, output = written(tmp_path, [], [b"one"])
    generator = start_load(address, "pipeline", np.array([10]), payloads, 5, output)
    started = generator.started(PATIENCE)
    records = generator.finish(PATIENCE)
    assert started == records.attrs["started"]
    assert generator.process.returncode == 0
    assert records["answer"].tolist() == ["ONE"] * 10
    np.testing.assert_array_equal(records["scheduled"], arrival_times(np.array([10]), 5))
    sent = records.loc[records["outcome"] == "completed", "sent"] + records.attrs["started"]
    assert (sent > time.time() - 60.0).all() and (np.diff(sent) > 0).all()


def test_a_run_without_records_is_reported_with_its_exit_code(address, tmp_path):
    output = tmp_path / "records.parquet"
    output.write_text("records of an earlier run")
    generator = start_load(address, "pipeline", np.array([10]), tmp_path / "missing.parquet", 5, output)
    with pytest.raises(LoadError, match="no load was offered within [0-9]+ s; see the stderr"):
        generator.started(PATIENCE)
    with pytest.raises(LoadError, match="exited with code 1 and wrote no records"):
        generator.finish(PATIENCE)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT, "parent"])
def test_an_interrupted_run_writes_the_records_of_what_it_sent(address, service, tmp_path, ending):
    _, payloads, output = written(tmp_path, [], [b"one"])
    counts = np.full(600, 20)
    generator = start_load(address, "pipeline", counts, payloads, 0, output)
    eventually(lambda: service.asked > 10)
    if ending == "parent":
        # What happens when the process that started it ends, for whatever reason.
        generator.process.stdin.close()
    else:
        generator.process.send_signal(ending)
    records = generator.finish(PATIENCE)
    assert 0 < len(records) < counts.sum() and (records["outcome"] == "completed").all()
    np.testing.assert_array_equal(records["scheduled"], arrival_times(counts, 0)[: len(records)])


@pytest.mark.parametrize("text", ["3\n0\n12\n", "requests\n3\n0\n12\n"])
def test_counts_are_read_with_and_without_a_header(tmp_path, text):
    path = tmp_path / "counts.csv"
    path.write_text(text)
    np.testing.assert_array_equal(read_counts(path), [3, 0, 12])
