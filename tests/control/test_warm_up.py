"""Compilation ahead of the first decision: what it changes, and that its result can be shipped."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from deadlines import PATIENCE
from small_agents import ThriftyAgent, agent_for
from small_pipelines import ocr_pipeline

from opd.control import POLICIES, SINGLE_AGENT
from opd.control.factory import agent_policy, build_policy
from opd.control.user_policy import UserPolicy
from opd.control.warm_up import COMPILED_VARIABLE, warm_up
from opd.measurement import Observation, SimulationParameters, idle_observation
from opd.objective import Weights
from opd.solvers import IpaParameters
from opd.workload.forecast import HISTORY_SECONDS, RecentMaximum


def observations(number: int) -> list[Observation]:
    seen = idle_observation(ocr_pipeline())
    coming = [np.full(30, 4 * k) for k in range(number)]
    return [
        replace(seen, predicted_load=3.0 * k, incoming_load=2.0 * k, coming_load=4.0 * k, coming_counts=coming[k])
        for k in range(number)
    ]


@pytest.mark.parametrize("name", POLICIES)
def test_decisions_are_as_if_there_had_been_no_warm_up(name, tmp_path):
    file = tmp_path / "agent"
    agent_for(ocr_pipeline()).save(file)
    known = ocr_pipeline(), Weights(), SimulationParameters(), IpaParameters()
    given = file if name == SINGLE_AGENT else None
    cold, warm = (build_policy(name, *known, seed=3, agent=given, simulated=True) for _ in range(2))
    warm_up(ocr_pipeline(), warm, RecentMaximum().predict)
    assert [cold.decide(seen) for seen in observations(6)] == [warm.decide(seen) for seen in observations(6)]


def test_agent_fallback_and_forecast_are_asked_once():
    histories = []
    agent = ThriftyAgent(ocr_pipeline())
    policy = agent_policy(agent)  # type: ignore[arg-type]
    warmed = []
    policy._fallback_policy.warm_up = warmed.append
    warm_up(ocr_pipeline(), policy, lambda history: histories.append(history) or 1.0)
    assert agent.decisions == 1 and len(warmed) == 1 and not policy.fallback
    (history,) = histories
    assert history.shape == (HISTORY_SECONDS,) and history.dtype == np.int64


def test_a_forecast_that_fails_does_not_end_the_warm_up():
    agent = ThriftyAgent(ocr_pipeline())
    warm_up(ocr_pipeline(), agent_policy(agent), lambda history: 1.0 / 0.0)  # type: ignore[arg-type]
    assert agent.decisions == 1


def test_a_policy_of_a_user_is_not_asked_before_its_time():
    class Mine:
        def decide(self, observation):
            raise AssertionError("too early")

    fallback = agent_policy(ThriftyAgent(ocr_pipeline()))  # type: ignore[arg-type]
    warmed = []
    fallback.warm_up = warmed.append
    warm_up(ocr_pipeline(), UserPolicy("Mine", Mine(), ocr_pipeline(), fallback, PATIENCE), RecentMaximum().predict)
    assert len(warmed) == 1


def test_shipped_code_is_copied_to_where_it_can_be_written(tmp_path, monkeypatch):
    shipped, cache = tmp_path / "shipped", tmp_path / "cache"
    (shipped / "control_1").mkdir(parents=True)
    (shipped / "control_1" / "decide.nbi").write_text("compiled")
    monkeypatch.setenv(COMPILED_VARIABLE, str(shipped))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(cache))
    for _ in range(2):  # a container may start again with its folder
        warm_up(ocr_pipeline(), agent_policy(ThriftyAgent(ocr_pipeline())), RecentMaximum().predict)  # type: ignore[arg-type]
    assert (cache / "control_1" / "decide.nbi").read_text() == "compiled"


COMPILED = """
import gc
import json
import sys
from numba.core.registry import CPUDispatcher
found = [each for each in gc.get_objects() if isinstance(each, CPUDispatcher)]
named = [(f"{each.py_func.__module__}.{each.py_func.__qualname__}", each.signatures) for each in found]
print(json.dumps([(name, str(types)) for name, signatures in named for types in signatures]))
"""
"""Prints the functions that were compiled or loaded from the cache, with the types of their arguments."""

SHIPPED = """
from opd.control.warm_up import fill_cache
fill_cache()
"""

DECIDE = """
import sys
from pathlib import Path
import numpy as np
from opd.control.factory import KnownLoad, build_policy
from opd.control.warm_up import warm_up
from opd.measurement import SimulationParameters
from opd.objective import Weights
from opd.profiling.pipelines import load_pipeline
from opd.solvers import IpaParameters
from opd.workload.forecast import Forecaster
from opd.workload.quantile_futures import futures_of
folder, pipeline = Path(sys.argv[1]), load_pipeline("nlp")
forecaster, known = Forecaster.load(folder / "forecaster.npz"), (Weights(), SimulationParameters(), IpaParameters())
load = KnownLoad(futures_of(forecaster))
for name, file in (("agent", None), ("agent-single", folder / "agent.npz")):
    warm_up(pipeline, build_policy(name, pipeline, *known, agent=file, load=load), forecaster.predict)
"""


@pytest.mark.slow
@pytest.mark.processes
def test_what_an_image_ships_is_all_that_a_controller_needs(tmp_path):
    """What was compiled for a small pipeline serves a larger one: the same functions, for the same types."""
    from opd.control.warm_up import _untrained_agent, _untrained_forecaster
    from opd.profiling.pipelines import load_pipeline

    _untrained_agent(load_pipeline("nlp"), SimulationParameters()).save(tmp_path / "agent.npz")
    _untrained_forecaster().save(tmp_path / "forecaster.npz")

    def compiled(program: str) -> set[tuple[str, str]]:
        command = [sys.executable, "-c", program + COMPILED, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10 * PATIENCE)
        return {(name, types) for name, types in json.loads(done.stdout)}

    shipped, needed = compiled(SHIPPED), compiled(DECIDE)
    assert needed <= shipped
    assert {"opd.agent.scoring.choose", "opd.agent.single.deployed._decide"} <= {name for name, _ in needed}
