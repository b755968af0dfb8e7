"""Scores of futures and coverage of quantiles, against the load that came.

A proper score is best, in the mean, for the true distribution. The continuous ranked probability score (CRPS) is one
for a number, and the energy score its extension to vectors; both are in the unit of the load, and for a single future
the CRPS is its absolute error (Gneiting and Raftery 2007).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from opd.workload.forecast import Forecaster
from opd.workload.forecast_network import BIN_SECONDS, HISTORY_SECONDS, HORIZON_SECONDS, INTERVALS, QUANTILES
from opd.workload.futures import FUTURE_SECONDS, Futures, NearestFutures, RecentFutures
from opd.workload.quantile_futures import QuantileFutures
from opd.workload.trace import Split, Trace


def energy_score(drawn: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Score draws of a vector: the mean distance to the truth less half the mean distance of two draws.

    Args:
        drawn: (N, P, K) P >= 2 draws of each of N vectors.
        actual: (N, K) their true values.

    Returns:
        (N,) scores, in the unit of the values; unbiased for any number of draws.
    """
    paths = drawn.shape[1]
    error = np.linalg.norm(drawn - actual[:, None], axis=-1).mean(axis=1)
    pairs = sum(np.linalg.norm(drawn[:, path + 1 :] - drawn[:, [path]], axis=-1).sum(axis=1) for path in range(paths))
    return error - pairs / (paths * (paths - 1))


def crps(drawn: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Score draws (N, P) of N numbers against the truth (N,): (N,) :func:`energy_score` of vectors of length one."""
    paths = drawn.shape[1]
    error = np.abs(drawn - actual[:, None]).mean(axis=1)
    weights = 2 * np.arange(paths) - paths + 1  # in the sum of all distances, of the draws in order
    return error - np.sort(drawn, axis=1) @ weights / (paths * (paths - 1))


def coming_loads(counts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(N, 6) mean loads of the six intervals from each of the positions ``ends`` (N,) on, requests/s."""
    return _interval_means(counts[ends[:, None] + np.arange(FUTURE_SECONDS)])


def _interval_means(counts: np.ndarray) -> np.ndarray:
    """(..., 60) counts to (..., 6) means of intervals."""
    return counts.reshape(*counts.shape[:-1], INTERVALS, BIN_SECONDS).mean(axis=-1)


def scored_positions(trace: Trace, split: Split, stride: int) -> np.ndarray:
    """(N,) positions with a history before them and six intervals after them inside a split."""
    positions = trace.split(split)
    return np.arange(positions.start + HISTORY_SECONDS, positions.stop - FUTURE_SECONDS + 1, stride)


def coverage(forecaster: Forecaster, trace: Trace, split: Split, stride: int = BIN_SECONDS) -> pd.DataFrame:
    """Compare how often loads lie below the predicted quantiles with how often they should.

    Args:
        forecaster: predicts the quantiles.
        trace: the load, at the damping of the forecaster.
        split: the part of the trace.
        stride: seconds between two forecasts.

    Returns:
        A row for each interval and quantile with the columns ``split``, ``interval`` (1 to 6), ``nominal`` and
        ``observed`` (shares of loads not above the quantile), and ``pinball`` (mean loss of the quantile, requests/s).
    """
    ends = scored_positions(trace, split, stride)
    quantiles = forecaster.quantiles(trace.counts, ends)
    loads = coming_loads(trace.counts, ends)[..., None]
    observed = (loads <= quantiles).mean(axis=0)
    error, nominal = loads - quantiles, np.array(QUANTILES)
    loss = np.maximum(nominal * error, (nominal - 1.0) * error).mean(axis=0)
    return pd.DataFrame(
        {
            "split": split,
            "interval": np.repeat(np.arange(1, INTERVALS + 1), len(QUANTILES)),
            "nominal": np.tile(nominal, INTERVALS),
            "observed": observed.ravel(),
            "pinball": loss.ravel(),
        }
    )


def score_futures(
    sources: Mapping[str, Futures],
    forecaster: Forecaster,
    trace: Trace,
    split: Split,
    stride: int = 120,
    paths: int = 32,
    seed: int = 0,
) -> pd.DataFrame:
    """Score several sources of futures at the same moments of a trace; lower is better.

    Args:
        sources: by name.
        forecaster: predicts the largest load that the sources are told.
        trace: the load, at the damping of the forecaster.
        split: the part of the trace.
        stride: seconds between two moments.
        paths: futures drawn at each of them.
        seed: of the draws; every source begins with the same generator.

    Returns:
        A row for each source and figure with the columns ``split``, ``futures``, ``figure``, ``score`` (requests/s)
        and ``moments``. Figures are the CRPS of the mean load of each interval (``interval 1`` to ``interval 6``) and
        of the largest load of 20 s (``largest``), and the energy scores of the six means (``intervals``) and of the
        first ten counts (``seconds``).
    """
    ends = scored_positions(trace, split, stride)
    forecasts = forecaster.predict_many(trace.counts, ends)
    rows = []
    for name, futures in sources.items():
        generator = np.random.default_rng(seed)
        drawn = np.stack(
            [
                futures.sample(
                    trace.counts[end - HISTORY_SECONDS : end], float(forecast), paths, FUTURE_SECONDS, generator
                )
                for end, forecast in zip(ends, forecasts, strict=True)
            ]
        )
        scores = _scores(drawn, trace.counts[ends[:, None] + np.arange(FUTURE_SECONDS)])
        rows += [
            {"split": split, "futures": name, "figure": figure, "score": float(score.mean()), "moments": len(ends)}
            for figure, score in scores.items()
        ]
    return pd.DataFrame(rows)


def _scores(drawn: np.ndarray, actual: np.ndarray) -> dict[str, np.ndarray]:
    """(N,) scores by figure for futures (N, P, 60) and what came (N, 60)."""
    means, came = _interval_means(drawn), _interval_means(actual)
    largest = crps(drawn[..., :HORIZON_SECONDS].max(axis=-1), actual[:, :HORIZON_SECONDS].max(axis=-1))
    return {
        **{f"interval {k + 1}": crps(means[..., k], came[:, k]) for k in range(INTERVALS)},
        "largest": largest,
        "intervals": energy_score(means, came),
        "seconds": energy_score(drawn[..., :BIN_SECONDS], actual[:, :BIN_SECONDS]),
    }


class FuturesComparison(NamedTuple):
    """Sources of futures for one trace, and how well they agree with the load that came.

    Attributes:
        sources: by name: ``quantile``, ``nearest`` (moments of the training days) and ``recent``.
        covered: rows of :func:`coverage`.
        scores: rows of :func:`score_futures`.
    """

    sources: dict[str, Futures]
    covered: pd.DataFrame
    scores: pd.DataFrame


def compare_futures(
    forecaster: Forecaster, trace: Trace, splits: Sequence[Split] = ("validation", "test"), stride: int = 120
) -> FuturesComparison:
    """Make and score all sources of futures.

    Args:
        forecaster: predicts quantiles and largest loads.
        trace: the load, at the damping of the forecaster.
        splits: the parts of the trace where they are scored.
        stride: seconds between two moments that are scored.
    """
    sources: dict[str, Futures] = {
        "quantile": QuantileFutures(forecaster),
        "nearest": NearestFutures.of(trace.counts[trace.split("train")], forecaster.predict_many),
        "recent": RecentFutures(),
    }
    covered = [coverage(forecaster, trace, split) for split in splits]
    scores = [score_futures(sources, forecaster, trace, split, stride) for split in splits]
    return FuturesComparison(sources, pd.concat(covered, ignore_index=True), pd.concat(scores, ignore_index=True))


def futures_report(comparison: FuturesComparison) -> dict[str, Any]:
    """Summarise a comparison, by split.

    Returns:
        ``coverage_error``, the largest difference between nominal and observed share, and ``energy_score`` of the six
        mean loads by source, in requests/s.
    """
    covered, scores = comparison.covered, comparison.scores
    error = (covered["observed"] - covered["nominal"]).abs().groupby(covered["split"], sort=False).max()
    energy = scores[scores["figure"] == "intervals"].pivot(index="futures", columns="split", values="score")
    return {"coverage_error": error.to_dict(), "energy_score": energy.to_dict()}
