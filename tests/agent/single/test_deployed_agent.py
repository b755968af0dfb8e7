"""The agent as it is deployed: its compiled decisions, and the file that holds it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from deadlines import PATIENCE
from hypothesis import given, settings
from hypothesis import strategies as st
from small_agents import PARAMETERS, agent_for, opinionated, random_states
from small_pipelines import ocr_pipeline, pipelines, within_limits

from opd.agent.single.compatibility import PROFILE_TOLERANCE
from opd.agent.single.deployed import FORMAT, Agent, CheckpointError
from opd.agent.single.network import export
from opd.host.archive import load_archive, save_archive
from opd.pipeline import InfeasibleError, Pipeline, ServiceLevel, from_choices
from opd.profiling.synthetic import synthetic_pipeline

TESTS = Path(__file__).parents[2]

# --- decisions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pipeline", "width", "blocks"),
    [
        (ocr_pipeline(), 16, 1),
        (ocr_pipeline(capacity=2), 16, 0),
        (ocr_pipeline(capacity=30), 128, 2),
        (synthetic_pipeline(1, 1, 0), 8, 1),
        (synthetic_pipeline(4, 6, 1), 64, 3),
        (synthetic_pipeline(10, 10, 2), 32, 2),
    ],
    ids=lambda value: value.name if isinstance(value, Pipeline) else str(value),
)
def test_compiled_decisions_are_those_of_the_network(pipeline, width, blocks):
    network = opinionated(pipeline, 11, width, blocks)
    states = random_states(pipeline, 12, 300)
    network.features_extractor.standardise_by(states.numpy() * 1.5 + 1.0)
    agent = Agent(pipeline, export(network), {})
    expected = from_choices(network.act(states, None).choices.numpy()).tolist()
    assert [[list(stage) for stage in agent.decide(state)] for state in states.numpy()] == expected
    assert len({str(rows) for rows in expected}) > 1  # the decisions differ, so that the comparison says something


@settings(max_examples=100)
@given(pipelines(), st.integers(0, 10_000))
def test_every_decision_keeps_every_limit(pipeline, seed):
    agent = agent_for(pipeline, seed)
    for state in random_states(pipeline, seed, 8).numpy():
        assert within_limits(pipeline, agent.decide(state), state[0])


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e30])
def test_an_invalid_measurement_cannot_make_a_decision_infeasible(wrong):
    pipeline = ocr_pipeline()
    state = random_states(pipeline, 0, 1).numpy()[0]
    state[1:] = wrong
    assert within_limits(pipeline, agent_for(pipeline).decide(state), state[0])


def test_too_few_available_cores_are_an_error_that_says_so():
    pipeline = ocr_pipeline()
    state = random_states(pipeline, 0, 1).numpy()[0]
    state[0] = 1.0
    with pytest.raises(InfeasibleError, match="1 available cores are too few for any configuration of pipeline 'ocr'"):
        agent_for(pipeline).decide(state)


# --- the checkpoint --------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "agents" / "ocr.npz"
    agent_for(ocr_pipeline()).save(path)
    return path


def test_a_saved_agent_is_the_same_when_loaded(saved):
    original, loaded = agent_for(ocr_pipeline()), Agent.load(saved, ocr_pipeline())
    assert loaded.parameters == PARAMETERS
    assert loaded.pipeline == ocr_pipeline()
    for name, array in original.weights._asdict().items():
        np.testing.assert_array_equal(getattr(loaded.weights, name), array)
    for state in random_states(ocr_pipeline(), 5, 100).numpy():
        assert loaded.decide(state) == original.decide(state)


def test_an_agent_can_be_saved_over_an_older_one(saved):
    agent_for(ocr_pipeline(), seed=1).save(saved)
    loaded = Agent.load(saved, ocr_pipeline())
    np.testing.assert_array_equal(loaded.weights.head_bias, agent_for(ocr_pipeline(), seed=1).weights.head_bias)


def test_a_save_that_fails_leaves_the_older_agent(saved):
    older = saved.read_bytes()
    network = opinionated(ocr_pipeline(), 1)
    with pytest.raises(TypeError, match="JSON"):
        Agent(ocr_pipeline(), export(network), {"cannot be saved": lambda: None}).save(saved)
    assert saved.read_bytes() == older


def changed_variant(**change):
    """The pipeline with another first variant of recognition."""
    detection, recognition = ocr_pipeline().tasks
    variants = (replace(recognition.variants[0], **change), *recognition.variants[1:])
    return replace(ocr_pipeline(), tasks=(detection, replace(recognition, variants=variants)))


def renamed_task() -> Pipeline:
    detection, recognition = ocr_pipeline().tasks
    return replace(ocr_pipeline(), tasks=(detection, replace(recognition, name="reading")))


def fewer_variants() -> Pipeline:
    detection, recognition = ocr_pipeline().tasks
    return replace(ocr_pipeline(), tasks=(detection, replace(recognition, variants=recognition.variants[:2])))


@pytest.mark.parametrize(
    ("given_pipeline", "message"),
    [
        (replace(ocr_pipeline(), name="scan"), r"pipeline\.name is 'ocr' in the checkpoint, 'scan' in"),
        (replace(ocr_pipeline(), capacity=9), r"pipeline\.capacity is 8 in the checkpoint, 9 in the pipeline given"),
        (replace(ocr_pipeline(), max_replicas=4), r"pipeline\.max_replicas is 3 in the checkpoint, 4 in"),
        (replace(ocr_pipeline(), max_batch_size=1), r"pipeline\.max_batch_size is 2 in the checkpoint, 1 in"),
        (
            replace(ocr_pipeline(), service_level=ServiceLevel(2.0)),
            r"pipeline\.service_level\.seconds is 1\.0 in the checkpoint, 2\.0 in",
        ),
        (
            replace(ocr_pipeline(), tasks=ocr_pipeline().tasks[:1]),
            r"pipeline\.tasks are 'detection', 'recognition' in the checkpoint, 'detection' in the pipeline given",
        ),
        (renamed_task(), r"pipeline\.tasks are 'detection', 'recognition' .*, 'detection', 'reading' in"),
        (fewer_variants(), r"tasks\.recognition\.variants are 'tiny', 'small', 'large' .*, 'tiny', 'small' in"),
        (changed_variant(name="nano"), r"variants are 'tiny', 'small', 'large' .*, 'nano', 'small', 'large' in"),
        (changed_variant(accuracy=0.6), r"recognition\.variants\.tiny\.accuracy is 0\.625 in the checkpoint, 0\.6 in"),
        (changed_variant(cores=2), r"recognition\.variants\.tiny\.cores is 1 in the checkpoint, 2 in"),
        (changed_variant(startup_time=9.0), r"tiny\.startup_time is 1 s in the checkpoint, 9 s .*\(\+800\.0%\)"),
        (
            changed_variant(latency={1: 0.05, 2: 0.09}),
            r"tiny\.latency\.2 is 0\.08 s in the checkpoint, 0\.09 s in the pipeline given \(\+12\.5%\)",
        ),
    ],
)
def test_an_agent_of_another_pipeline_is_refused_by_the_difference(saved, given_pipeline, message):
    with pytest.raises(CheckpointError, match=rf"ocr\.npz was trained for another pipeline: .*{message}.*Train again"):
        Agent.load(saved, given_pipeline)


def test_all_differences_are_named_at_once(saved):
    other = changed_variant(latency={1: 0.051, 2: 0.04}, cores=2)
    with pytest.raises(CheckpointError) as refused:
        Agent.load(saved, replace(other, capacity=9))
    for words in (
        "capacity is 8",
        "tiny.cores is 1 ",
        "latency.1 is 0.05 s",
        "(+2.0%)",
        "latency.2 is 0.08 s",
        "-50.0%",
    ):
        assert words in str(refused.value)


@pytest.mark.parametrize("factor", [1.0 - PROFILE_TOLERANCE + 1e-9, 0.999, 1.001, 1.0 + PROFILE_TOLERANCE - 1e-9])
def test_a_profile_that_differs_a_little_is_accepted_and_told(saved, caplog, factor):
    measured = changed_variant(latency={1: 0.05 * factor, 2: 0.08 * factor}, startup_time=factor)
    assert Agent.load(saved, measured).pipeline == measured
    (record,) = caplog.records
    assert "slightly different profile" in record.message and "tiny.latency.2 is 0.08 s" in record.message


def profiled_as(latency: dict[int, float]) -> Pipeline:
    """The pipeline with one profile for all variants."""
    variants = [tuple(replace(each, latency=latency) for each in task.variants) for task in ocr_pipeline().tasks]
    tasks = tuple(replace(task, variants=own) for task, own in zip(ocr_pipeline().tasks, variants, strict=True))
    return replace(ocr_pipeline(), tasks=tasks, max_batch_size=4)


def test_batch_sizes_that_only_one_profile_has_are_compared_as_interpolated(saved, caplog):
    agent_for(profiled_as({1: 0.1, 4: 0.4})).save(saved)
    for same in ({1: 0.1, 2: 0.2, 4: 0.4}, {1: 0.1, 4: 0.4, 8: 2.0}):
        Agent.load(saved, profiled_as(same))
    assert not caplog.records
    with pytest.raises(CheckpointError, match=r"tiny\.latency\.2 is 0\.2 s .* 0\.3 s .*\(\+50\.0%\)"):
        Agent.load(saved, profiled_as({1: 0.1, 2: 0.3, 4: 0.4}))


def test_a_missing_agent_says_how_to_make_one(tmp_path):
    with pytest.raises(CheckpointError, match=r"no agent at .*none\.npz; train one with notebook 03_ppo_training"):
        Agent.load(tmp_path / "none.npz", ocr_pipeline())


def rewrite(path: Path, format_name: str = FORMAT, without: str = "") -> None:
    """The same file with another format, or without a part."""
    metadata, arrays = load_archive(path, FORMAT)
    kept = ({name: part for name, part in parts.items() if name != without} for parts in (metadata, arrays))
    save_archive(path, format_name, *kept)


def test_another_format_is_refused_by_name(saved):
    rewrite(saved, "opd agent 3")
    with pytest.raises(CheckpointError, match=rf"has format 'opd agent 3', not '{FORMAT}'; train the agent again"):
        Agent.load(saved, ocr_pipeline())


@pytest.mark.parametrize("missing", ["pipeline", "parameters", "head_bias"])
def test_an_incomplete_file_is_refused(saved, missing):
    rewrite(saved, without=missing)
    with pytest.raises(CheckpointError, match=rf"ocr\.npz is no agent, it lacks {missing}; train the agent again"):
        Agent.load(saved, ocr_pipeline())


@pytest.mark.parametrize("content", [b"", b"not an agent", bytes(1000), b"PK\x03\x04" + bytes(100)])
def test_a_file_that_is_no_agent_is_refused(saved, content):
    saved.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"ocr\.npz is damaged, or not .* 'opd agent 2'.*; train the agent"):
        Agent.load(saved, ocr_pipeline())


def test_an_agent_of_an_earlier_version_is_refused(saved):
    torch.save({"format": "opd agent 1", "policy": {"mean": torch.zeros(3)}}, saved)
    with pytest.raises(CheckpointError, match=r"ocr\.npz is damaged, or not .* 'opd agent 2'.*; train the agent"):
        Agent.load(saved, ocr_pipeline())


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="is damaged"):
        Agent.load(saved, ocr_pipeline())


def test_a_file_that_holds_code_is_refused_unread(saved):
    class Trap:
        def __reduce__(self):
            return Path.unlink, (saved,)

    arrays = agent_for(ocr_pipeline()).weights._asdict()
    np.savez(saved, **arrays | {"mean": np.array([Trap()], dtype=object)})
    with pytest.raises(CheckpointError, match="is damaged, or not an archive"):
        Agent.load(saved, ocr_pipeline())
    assert saved.is_file()


@pytest.mark.processes
def test_an_agent_is_loaded_and_decides_without_torch(saved):
    """Importing torch would take most of the time in which a service starts."""
    state = random_states(ocr_pipeline(), 5, 1).numpy()[0]
    expected = agent_for(ocr_pipeline()).decide(state)
    code = (
        f"import sys; sys.path.append({str(TESTS)!r}); from pathlib import Path; import numpy as np; "
        "from opd.agent.single.deployed import Agent; "
        f"from small_pipelines import ocr_pipeline; agent = Agent.load(Path({str(saved)!r}), ocr_pipeline()); "
        f"print(agent.decide(np.array({state.tolist()}, dtype=np.float32)) == {tuple(map(tuple, expected))!r}, "
        "'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert found.stdout.split() == ["True", "False"]
