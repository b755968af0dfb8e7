"""Notes of a check about profiles that somebody typed."""

import re

import pytest
from pipeline_folders import PROFILE, write_pipeline

from opd.project.checking import check_project
from opd.project.folder import create


@pytest.mark.parametrize("typed, warned", [("0.12", False), ("60.0", True)])
def test_a_typed_latency_above_the_objective_may_be_in_milliseconds(tmp_path, typed, warned):
    folder = create(tmp_path / "shop").root
    write_pipeline(folder, profile=re.sub(r"[\d.]+(?=,,,assumed)", typed, PROFILE))
    notes = check_project(folder, run_models=False).notes
    assert "assumed, not measured: first/large" in notes
    warning = (
        "variant 'large' of task 'first' takes 60 s for one request, more than the latency objective of 1 s; "
        "profile.csv has seconds, not milliseconds"
    )
    assert (warning in notes) == warned
