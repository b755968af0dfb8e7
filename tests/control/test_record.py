"""Records: what is written while a run goes on, and what is read of it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from live_runs import LARGE, SMALL
from recorded_runs import COUNTS, HISTORY, PIPELINE, recorded_run

from opd.control.record import RecordError, append_entry, is_record, read_record
from opd.pipeline import as_array


def lines_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def write(file, entries):
    file.write_text("\n".join(json.dumps(entry) for entry in entries))
    return file


def test_a_record_tells_the_load_what_ran_and_what_was_measured(tmp_path):
    steps = recorded_run(tmp_path / "run.jsonl")
    known = read_record(tmp_path / "run.jsonl", PIPELINE)
    assert is_record(tmp_path / "run.jsonl") and (known.interval, known.begin, known.filled) == (10, 0.0, 0)
    assert (known.history == HISTORY).all() and (known.counts == COUNTS[:90]).all()  # the last entry ends it
    assert known.edges.tolist() == list(range(0, 100, 10))
    assert (known.configurations == [as_array(c) for c in [SMALL] * 5 + [LARGE] * 4]).all()
    assert known.measured["completed"].tolist() == [step.interval.completed[0] for step in steps[:-1]]
    assert known.measured["offered"].tolist() == [30.0] * 9 and known.wanted == 0
    factor, slope = steps[-1].observation.calibration[:2]
    assert known.calibration[0] == pytest.approx(factor, abs=1e-6)
    assert known.calibration[1] == pytest.approx(slope, abs=1e-6)


def test_lines_that_are_no_decision_are_skipped(tmp_path):
    file = tmp_path / "run.log"
    recorded_run(file)
    whole = read_record(file, PIPELINE)
    noise = ['{"message": "warming up"}', "not JSON", "[]", '{"event": "decision", "span": [90']
    file.write_text("\n".join([*noise, file.read_text(), *noise]))
    assert (read_record(file, PIPELINE).counts == whole.counts).all()


def test_missing_lines_lose_no_load_that_a_later_decision_knew(tmp_path):
    recorded_run(tmp_path / "run.jsonl")
    entries = lines_of(tmp_path / "run.jsonl")
    del entries[3:6]
    known = read_record(write(tmp_path / "holes.jsonl", entries), PIPELINE)
    assert (known.counts == COUNTS[:90]).all() and known.filled == 0
    assert known.edges.tolist() == [0, 10, 20, 60, 70, 80, 90]


def test_seconds_that_nothing_tells_are_counted_and_filled(tmp_path):
    recorded_run(tmp_path / "run.jsonl")
    entries = lines_of(tmp_path / "run.jsonl")
    for entry in entries[1:]:
        entry["state"]["history"] = entry["state"]["history"][-8:]
    known = read_record(write(tmp_path / "short.jsonl", entries), PIPELINE)
    assert known.filled == 18 and (known.counts.reshape(9, 10)[:, 2:] == COUNTS[:90].reshape(9, 10)[:, 2:]).all()


def test_a_record_goes_on_after_a_gap_without_what_came_before(tmp_path):
    recorded_run(tmp_path / "run.jsonl")
    entries = lines_of(tmp_path / "run.jsonl")
    later = [{**entry, "span": [entry["span"][0] + 3600, entry["span"][1] + 3600]} for entry in entries]
    known = read_record(write(tmp_path / "two.jsonl", entries + later), PIPELINE)
    assert (known.left_out, known.begin, len(known.configurations)) == (10, 3600.0, 9)


def test_what_was_not_measured_or_observed_is_unknown(tmp_path):
    recorded_run(tmp_path / "run.jsonl")
    entries = lines_of(tmp_path / "run.jsonl")
    entries[2]["measured"] = dict.fromkeys(entries[2]["measured"])
    entries[0]["state"] = {}  # before the first request
    known = read_record(write(tmp_path / "run.jsonl", entries), PIPELINE)
    assert known.begin == 10.0 and np.isnan(known.measured["completed"]).tolist() == [False, True] + [False] * 6


def test_a_policy_that_wanted_something_else_is_counted(tmp_path):
    recorded_run(tmp_path / "run.jsonl")
    entries = lines_of(tmp_path / "run.jsonl")
    entries[1]["wanted"]["detection"]["replicas"] = 3
    entries[2]["wanted"] = None
    assert read_record(write(tmp_path / "run.jsonl", entries), PIPELINE).wanted == 1


def test_records_that_cannot_be_used_say_why(tmp_path):
    file = tmp_path / "run.jsonl"
    recorded_run(file)
    other = replace(PIPELINE, name="other", tasks=PIPELINE.tasks[:1])
    with pytest.raises(RecordError, match="is of pipeline 'ocr' with stages detection, recognition; 'other' has det"):
        read_record(file, other)
    with pytest.raises(RecordError, match="4 replicas are not within|no variant|not that of the record"):
        read_record(file, replace(PIPELINE, max_replicas=1))
    with pytest.raises(RecordError, match="has 1 decisions with the load before them, and 2 are needed"):
        read_record(write(tmp_path / "one.jsonl", lines_of(file)[:1]), PIPELINE)


def test_a_record_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    append_entry(tmp_path / "no" / "such.jsonl", {})
    assert "a decision is missing" in caplog.text
