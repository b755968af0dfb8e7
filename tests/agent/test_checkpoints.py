"""Checkpoints of trainings: versioned, and no way to run code."""

from __future__ import annotations

import os
import re

import pytest
import torch

from opd.agent.checkpoints import TrainingStateError, load_checkpoint, save_checkpoint

FORMAT = "test training 2"


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return os.mknod, (str(self._path),)


def test_a_checkpoint_comes_back(tmp_path):
    save_checkpoint(tmp_path / "some.pt", FORMAT, {"network": {"weight": torch.arange(3)}, "best": (1.5, None)})
    state = load_checkpoint(tmp_path / "some.pt", FORMAT)
    assert state.keys() == {"network", "best"} and state["best"] == (1.5, None)
    assert state["network"]["weight"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "content, reason",
    [
        ({"format": "test training 1"}, "has format 'test training 1', not 'test training 2'"),
        ({"network": {}}, "has no format, not 'test training 2'"),
        ([1, 2], "has no format, not 'test training 2'"),
    ],
)
def test_another_version_is_refused_with_the_remedy(tmp_path, content, reason):
    torch.save(content, tmp_path / "some.pt")
    with pytest.raises(TrainingStateError, match=f"some.pt {re.escape(reason)}; delete it"):
        load_checkpoint(tmp_path / "some.pt", FORMAT)


@pytest.mark.parametrize("content", [b"", b"half a checkpoint", b"PK\x03\x04 and so on"])
def test_a_damaged_file_is_refused_with_the_remedy(tmp_path, content):
    (tmp_path / "some.pt").write_bytes(content)
    with pytest.raises(TrainingStateError, match="some.pt is no checkpoint of format 'test training 2'.*; delete it"):
        load_checkpoint(tmp_path / "some.pt", FORMAT)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_holds_code_is_refused_and_none_of_it_runs(tmp_path, legacy):
    path, ran = tmp_path / "evil.pt", tmp_path / "ran"
    torch.save({"format": FORMAT, "network": Touch(ran)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(TrainingStateError, match="it holds more than tensors and plain values"):
        load_checkpoint(path, FORMAT)
    assert not ran.exists()
    torch.load(path, weights_only=False)
    assert ran.exists(), "the file would have run it"
