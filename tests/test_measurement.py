"""State and score, on figures that are easy to follow by hand."""

from __future__ import annotations

import numpy as np
from small_pipelines import ocr_pipeline

from opd.measurement import Interval, score, state_names, state_vector, unmeasured, utilisation
from opd.objective import Weights
from opd.pipeline import ServiceLevel

WEIGHTS = Weights(alpha=10.0, beta=0.5, gamma=0.25, delta=0.125, cost_weight=0.75, batch_weight=0.0625)


def test_the_state_by_hand():
    pipeline = ocr_pipeline()
    state = state_vector(
        pipeline,
        available_cores=np.array([8.0]),
        predicted_load=np.array([14.0]),
        incoming_load=np.array([11.5]),
        configurations=np.array([(1, 2, 2), (2, 1, 1)])[None],
        task_latency=np.array([[0.25, 0.5]]),
        ready_throughput=np.array([[10.0, 4.0]]),
        queue=np.array([[3, 0]]),
    )
    named = dict(zip(state_names(pipeline), state[0].tolist(), strict=True))
    assert state.dtype == np.float32
    assert named == {
        "available_cores": 8.0,
        "predicted_load": 14.0,
        "incoming_load": 11.5,
        **{"detection.latency": 0.25, "detection.throughput": 10.0, "detection.variant": 1.0},
        **{"detection.replicas": 2.0, "detection.batch_size": 2.0, "detection.cost": 4.0, "detection.queue": 3.0},
        **{"recognition.latency": 0.5, "recognition.throughput": 4.0, "recognition.variant": 2.0},
        **{"recognition.replicas": 1.0, "recognition.batch_size": 1.0, "recognition.cost": 4.0},
        "recognition.queue": 0.0,
    }


def test_every_term_of_the_score_by_hand():
    pair = {
        "offered": np.array([120, 60]),
        "task_latency": np.array([[0.25, 0.5], [0.125, 0.25]]),
        "ready_throughput": np.array([[10.0, 20.0], [10.0, 8.0]]),
    }
    blank = dict.fromkeys(Interval._fields, np.zeros(2))
    configurations = np.stack([np.array([(1, 2, 2), (0, 1, 1)]), np.array([(0, 1, 1), (0, 1, 1)])])
    result = score(ocr_pipeline(), WEIGHTS, configurations, Interval(**(blank | pair)), 10.0)
    assert result.accuracy.tolist() == [1.375, 1.125]
    assert result.cost.tolist() == [5.0, 2.0]
    assert result.throughput.tolist() == [10.0, 8.0]
    assert result.latency.tolist() == [0.75, 0.375]
    assert result.excess_load.tolist() == [2.0, -2.0]
    assert result.qos.tolist() == [13.75 + 5.0 - 0.75 - 0.25 * 2, 11.25 + 4.0 - 0.375 - 0.125 * 2]
    assert result.reward.tolist() == [17.5 - 0.75 * 5 - 0.0625 * 2, 14.625 - 0.75 * 2 - 0.0625 * 1]


def measured(**figures) -> Interval:
    """Two copies that measured nothing but ``figures``."""
    blank = dict.fromkeys(Interval._fields, np.zeros(2)) | {"task_latency": np.zeros((2, 2))}
    return Interval(**(blank | {name: np.array(values) for name, values in figures.items()}))


BOTH = np.stack([np.array([(1, 2, 2), (0, 1, 1)]), np.array([(0, 1, 1), (0, 1, 1)])])
THROUGHPUT = [[10.0, 20.0], [10.0, 8.0]]


def test_a_service_level_is_scored_in_cores_by_hand():
    # 90 of 100 requests within the level where 95 % are asked for; 100 of 100, but an accuracy of .5625 for .6.
    level = ServiceLevel(1.0, percentile=95.0, accuracy_floor=0.6, accuracy_weight=8.0)
    interval = measured(completed=[95, 100], within=[90, 100], dropped=[5, 0], ready_throughput=THROUGHPUT)
    result = score(ocr_pipeline(), level, BOTH, interval, 10.0)
    assert result.within.tolist() == [0.9, 1.0]
    np.testing.assert_allclose(result.qos, [8 * 0.6875 - 8 * 100 * 0.05, 8 * 0.5625 - 8 * 100 * 0.0375])
    np.testing.assert_array_equal(result.reward, result.qos - [5.0, 2.0])


def test_requests_that_fail_are_unmet_demand():
    # 60 offered in 10 s; 12 failed of one, of whose throughput of 10 the load of 6 would be covered.
    interval = measured(offered=[60, 60], failed=[12, 0], dropped=[12, 0], ready_throughput=THROUGHPUT)
    result = score(ocr_pipeline(), WEIGHTS, BOTH, interval, 10.0)
    assert result.excess_load.tolist() == [1.2, -2.0]
    assert result.within.tolist() == [0.0, 1.0]


def test_an_interval_that_was_not_measured_has_no_score():
    result = score(ocr_pipeline(), ServiceLevel(1.0), BOTH[:1], unmeasured(ocr_pipeline()), 10.0)
    assert np.isnan([result.within[0], result.qos[0], result.reward[0], result.excess_load[0]]).all()


def test_utilisation_is_of_the_configured_variant_while_its_replicas_were_ready():
    # Two large detectors carry 10 requests/s and were ready for half of 10 s; a tiny recogniser carries 20.
    ready = [[5.0, 20.0], [10.0, 0.0]]
    busy = [[[3.0, 6.0, 0.0], [2.5, 0.0, 0.0]], [[9.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]
    shares = utilisation(ocr_pipeline(), BOTH, measured(ready_throughput=ready, busy=busy), 10.0)
    np.testing.assert_allclose(shares, [[0.6, 0.25], [0.9, np.nan]])


def test_utilisation_is_unknown_where_batches_were_not_recorded():
    assert np.isnan(utilisation(ocr_pipeline(), BOTH[:1], unmeasured(ocr_pipeline()), 10.0)).all()
    unrecorded = measured(ready_throughput=THROUGHPUT, busy=np.zeros((2, 2, 0)))
    assert np.isnan(utilisation(ocr_pipeline(), BOTH, unrecorded, 10.0)).all()
