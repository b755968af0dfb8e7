"""Figures of the workload and its forecast; each is saved, closed and returned."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from opd.study.plots.style import PALETTE, legend_below, save_figure
from opd.workload.forecast import HISTORY_SECONDS, HORIZON_SECONDS, Forecaster
from opd.workload.forecast_comparison import Comparison, smape
from opd.workload.forecast_network import BIN_SECONDS, INTERVALS, QUANTILES
from opd.workload.futures import FUTURE_SECONDS, Futures
from opd.workload.futures_scores import FuturesComparison
from opd.workload.trace import CYCLE_SECONDS, Split, Trace, cycle_counts, evaluation_cycles
from opd.workload.trace_limits import DAY_SECONDS

_MODEL_NAMES = {
    "lstm": "LSTM",
    "ridge": "ridge",
    "max_20": "maximum of last 20 s",
    "max_120": "maximum of last 120 s",
    "last_value": "last second",
}
_FUTURES_NAMES = {
    "quantile": "quantiles of the LSTM",
    "nearest": "similar moments",
    "recent": "last two minutes",
}
_BAND = f"{100 * QUANTILES[1]:.0f} and {100 * QUANTILES[-2]:.0f} % quantiles of the mean load"


def plot_trace(trace: Trace, path: str | Path) -> Figure:
    """Draw the whole trace with its splits, and the three characteristic cycles of the test split.

    Args:
        trace: the load, in requests per second.
        path: image file to write.
    """
    figure = plt.figure(figsize=(11, 6.5), layout="constrained")
    figure.suptitle(f"Load: {trace.label}")
    whole, *below = figure.subplot_mosaic([["whole"] * 3, ["0", "1", "2"]]).values()

    length = 300
    blocks = trace.counts[: len(trace.counts) // length * length].reshape(-1, length)
    days = trace.raw_index[: len(blocks) * length : length] / DAY_SECONDS
    whole.plot(days, blocks.max(axis=1), color=PALETTE[1], linewidth=0.6, label="maximum of 5 minutes")
    whole.plot(days, blocks.mean(axis=1), color=PALETTE[0], linewidth=0.8, label="mean of 5 minutes")
    splits: tuple[Split, ...] = ("train", "validation", "test")
    for index, split in enumerate(splits):
        first, last = trace.raw_index[trace.split(split)][[0, -1]] / DAY_SECONDS
        whole.axvspan(first, last, color="0.5", alpha=0.08 * index, linewidth=0)
        whole.annotate(
            split, ((first + last) / 2, 0.99), xycoords=("data", "axes fraction"), ha="center", va="top", fontsize=9
        )
    whole.margins(x=0.01)
    whole.set(
        xlabel="time since the start of the recording (days)", ylabel="load (requests/s)", ylim=(0, 1.12 * blocks.max())
    )

    cycles = {cycle: cycle_counts(trace, cycle) for cycle in evaluation_cycles(trace, extra=0)}
    highest = max(counts.max() for counts in cycles.values())
    for axes, (cycle, counts) in zip(below, cycles.items(), strict=True):
        axes.plot(counts, color=PALETTE[0], linewidth=0.6)
        title = f"{cycle.name} (from second {cycle.start})"
        axes.set(title=title, xlabel="time in the cycle (s)", ylim=(0, 1.1 * highest))
    below[0].set_ylabel("load of each second\n(requests/s)")
    whole.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, frameon=False)
    return save_figure(figure, path)


def plot_forecast(trace: Trace, comparison: Comparison, path: str | Path) -> Figure:
    """Draw Fig. 3 of the paper: forecast and actual load over an hour of the test split around its fluctuating cycle.

    Args:
        trace: the load, in requests per second.
        comparison: forecasts of the test split.
        path: image file to write.
    """
    cycle = next(cycle for cycle in evaluation_cycles(trace, extra=0) if cycle.name == "fluctuating")
    first = trace.position(cycle.start) - CYCLE_SECONDS
    ends, target = comparison.windows
    shown = (ends >= first) & (ends < first + 3 * CYCLE_SECONDS)
    minutes = (ends[shown] - first) / 60.0

    figure, (axes, below) = plt.subplots(
        2, 1, figsize=(11, 5.5), sharex=True, layout="constrained", height_ratios=(3, 1)
    )
    forecast = comparison.forecasts["lstm"][shown]
    axes.plot(minutes, target[shown], color=PALETTE[0], linewidth=1.4, label=f"actual: maximum of {HORIZON_SECONDS} s")
    axes.plot(minutes, forecast, color=PALETTE[1], linewidth=1.1, linestyle="--", label="forecast (LSTM)")
    axes.set(ylabel="load (requests/s)", title=f"Forecast for the next {HORIZON_SECONDS} s: {trace.label}")
    axes.set_ylim(bottom=0)
    below.axhline(0.0, color="0.5", linewidth=0.8)
    below.plot(minutes, forecast - target[shown], color="0.35", linewidth=0.9)
    below.set(xlabel=f"time since second {trace.raw_index[first]} (minutes)", ylabel="forecast − actual\n(requests/s)")
    legend_below(figure, axes)
    return save_figure(figure, path)


def plot_errors(trace: Trace, errors: pd.DataFrame, path: str | Path) -> Figure:
    """Draw SMAPE and the share of too low forecasts of every model, one bar per damping.

    Args:
        trace: the load, at any damping.
        errors: rows of :attr:`opd.workload.forecast.Comparison.errors`, of one or more dampings.
        path: image file to write.
    """
    table = errors.assign(
        model=errors["model"].map(_MODEL_NAMES), too_low=100.0 * errors["under_prediction_rate"]
    ).rename(columns={"damping": "damping of the load"})
    figure, panels = plt.subplots(1, 2, figsize=(11, 3.8), sharey=True, layout="constrained")
    kind = "synthetic trace (generated)" if trace.is_synthetic else f"{trace.name} trace"
    figure.suptitle(f"Forecast errors on the test split: {kind}")
    for axes, column, label in (
        (panels[0], "smape", "SMAPE (%)"),
        (panels[1], "too_low", "forecasts below the actual load (%)"),
    ):
        dampings = table["damping of the load"].nunique()
        sns.barplot(
            table, x=column, y="model", hue="damping of the load", palette=PALETTE[:dampings], ax=axes, errorbar=None
        )
        for bars in axes.containers:
            axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
        axes.set(xlabel=label, ylabel="")
        axes.margins(x=0.1)
    handles, labels = panels[0].get_legend_handles_labels()
    for axes in panels:
        axes.get_legend().remove()
    named = [f"damping of the load {label}" for label in labels]
    figure.legend(handles, named, loc="outside lower center", ncols=len(named), frameon=False)
    return save_figure(figure, path)


def plot_error_by_load(trace: Trace, comparison: Comparison, path: str | Path) -> Figure:
    """Draw SMAPE by the load of the last two minutes before the forecast, in ten classes of equal size.

    Args:
        trace: the load, in requests per second.
        comparison: forecasts of the test split.
        path: image file to write.
    """
    ends, target = comparison.windows
    total = np.concatenate([[0], np.cumsum(trace.counts)])
    load = (total[ends] - total[ends - HISTORY_SECONDS]) / HISTORY_SECONDS
    tenth = np.searchsorted(np.quantile(load, np.linspace(0.1, 0.9, 9)), load, side="right")
    figure, axes = plt.subplots(figsize=(7.5, 4), layout="constrained")
    classes = [tenth == index for index in np.unique(tenth)]
    centres = [load[members].mean() for members in classes]
    for model, marker, colour in zip(("lstm", "ridge", "max_20"), "osD", PALETTE, strict=False):
        forecast = comparison.forecasts[model]
        errors = [smape(target[members], forecast[members]) for members in classes]
        axes.plot(centres, errors, f"{marker}-", color=colour, label=_MODEL_NAMES[model])
    axes.set(
        xlabel="mean load of the last two minutes (requests/s)",
        ylabel="SMAPE (%)",
        title=f"Forecast error by load: {trace.label}",
        xscale="log",
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.set_ylim(bottom=0)
    legend_below(figure, axes)
    return save_figure(figure, path)


def plot_futures(
    trace: Trace, forecaster: Forecaster, sources: Mapping[str, Futures], path: str | Path, paths: int = 12
) -> Figure:
    """Draw futures of each source just after the largest rise of the fluctuating cycle, and the load that came.

    Args:
        trace: the load, in requests per second.
        forecaster: predicts the largest load and the quantiles.
        sources: of futures, by name.
        path: image file to write.
        paths: futures drawn from each source.
    """
    cycle = next(cycle for cycle in evaluation_cycles(trace, extra=0) if cycle.name == "fluctuating")
    tens = cycle_counts(trace, cycle).reshape(-1, BIN_SECONDS).mean(axis=1)
    after = int(np.argmax(np.diff(tens))) + 2
    now = trace.position(cycle.start) + after * BIN_SECONDS
    history, came = trace.counts[now - HISTORY_SECONDS : now], trace.counts[now : now + FUTURE_SECONDS]
    predicted = float(forecaster.predict(history))
    bands = forecaster.quantiles(trace.counts, np.array([now]))[0].T
    starts = np.arange(INTERVALS + 1) * BIN_SECONDS

    figure, panels = plt.subplots(1, len(sources), figsize=(11, 3.8), sharey=True, layout="constrained", squeeze=False)
    figure.suptitle(f"Futures from second {trace.raw_index[now]}: {trace.label}")
    for axes, (name, futures) in zip(panels[0], sources.items(), strict=True):
        drawn = futures.sample(history, predicted, paths, FUTURE_SECONDS, np.random.default_rng(0))
        axes.plot(np.arange(FUTURE_SECONDS), drawn.T, color=PALETTE[1], linewidth=0.5, alpha=0.6)
        axes.plot([], [], color=PALETTE[1], linewidth=0.8, label="futures")
        axes.plot(np.arange(-HISTORY_SECONDS // 2, 0), history[-(HISTORY_SECONDS // 2) :], color="0.4", linewidth=0.9)
        axes.plot(np.arange(FUTURE_SECONDS), came, color=PALETTE[0], linewidth=1.2, label="load that came")
        for number, label in ((1, None), (-2, _BAND)):
            axes.stairs(bands[number], starts, baseline=None, color="0.2", linestyle="--", linewidth=1, label=label)
        axes.axvline(0, color="0.5", linewidth=0.8, linestyle=":")
        axes.set(title=_FUTURES_NAMES.get(name, name), xlabel="time (s)")
    panels[0][0].set_ylabel("load of each second\n(requests/s)")
    legend_below(figure, panels[0][0])
    return save_figure(figure, path)


def plot_futures_scores(trace: Trace, comparison: FuturesComparison, path: str | Path) -> Figure:
    """Draw by how much coverage of the quantiles departs from nominal, and the CRPS of every source by interval.

    Args:
        trace: the load.
        comparison: coverage and scores on one or two splits.
        path: image file to write.
    """
    _, covered, scores = comparison
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    figure.suptitle(f"Quantiles and futures: {trace.label}")
    left.axhline(0.0, color="0.6", linewidth=0.8, linestyle=":")
    styles = dict(zip(covered["split"].unique(), ("o-", "s--"), strict=False))
    for split in styles:
        rows = covered[covered["split"] == split]
        error = 100.0 * (rows["observed"] - rows["nominal"]).groupby(rows["nominal"]).agg(["min", "mean", "max"])
        bars = [error["mean"] - error["min"], error["max"] - error["mean"]]
        left.errorbar(
            100.0 * error.index, error["mean"], bars, fmt=styles[split], color="0.25", markersize=4, capsize=2,
            label=f"{split} days",
        )  # fmt: skip
    intervals = scores[scores["figure"].str.startswith("interval ")]
    for split, (number, name) in product(styles, enumerate(scores["futures"].unique())):
        rows = intervals[(intervals["split"] == split) & (intervals["futures"] == name)]
        ends = BIN_SECONDS * rows["figure"].str.removeprefix("interval ").astype(int)
        label = f"{_FUTURES_NAMES.get(name, name)}, {split} days"
        right.plot(ends, rows["score"], styles[split], color=PALETTE[number], markersize=4, label=label)
    left.set(
        xlabel="probability of the quantile (%)",
        ylabel="loads not above it − that probability\n(percentage points)",
        title="Coverage",
        ylim=(-5, 5),
    )
    right.set(
        xlabel="end of the interval (s from now)",
        ylabel="CRPS of its mean load (requests/s)",
        title="Score: lower is better",
    )
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
    return save_figure(figure, path)
