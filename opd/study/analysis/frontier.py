"""The QoS-cost frontier of agent, IPA and the myopic solver, from a sweep of the price per core.

For every ``cost_weight`` each policy optimises with that price: the myopic solver and the agent the reward of Eq. 7,
IPA its own objective with the same weights. The agent is the one for every pipeline and objective, so nothing is
trained. All run through the control loop of the evaluation on the same cycles. The point of a policy is its mean cost
and mean QoS; neither depends on the price itself, so points of different prices can be compared.

Where a core costs more than unmet demand, the reward favours leaving demand unmet, and myopic solver and agent may do
so. IPA must carry the load at any price, so its cheapest points are not as cheap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opd.control import AGENT
from opd.objective import Weights
from opd.pipeline import Pipeline
from opd.solvers import IpaParameters
from opd.study.analysis.estimates import Row, spread
from opd.study.evaluation.cycles import EvaluationCell, Setting, evaluate
from opd.study.plots.style import legend_below, ordered, panel_grid, policy_style, short_label
from opd.workload.trace import Cycle

POLICIES = ("ipa", "myopic", AGENT)

ANY, SERVED = "lowest of any policy", "lowest of IPA"
"""QoS of the reference point of a hypervolume."""

# ----------------------------------------------------------------------------------------------- evaluation


def priced_setting(setting: Setting, cost_weight: float) -> Setting:
    """The setting in which every policy optimises with one price per core."""
    assert isinstance(setting.objective, Weights)
    weights = replace(setting.objective, cost_weight=cost_weight)
    return replace(setting, objective=weights, ipa=IpaParameters.from_weights(weights))


def measure_frontier(
    pipelines: Sequence[Pipeline],
    cycles: Sequence[Cycle],
    setting: Setting,
    cost_weights: Sequence[float],
    seeds: Sequence[int],
    workers: int = 1,
) -> pd.DataFrame:
    """Run every policy at every price on every cycle with every seed.

    Args:
        pipelines: to configure.
        cycles: to evaluate on.
        setting: of the evaluation; its weights except ``cost_weight``.
        cost_weights: rewards lost per core.
        seeds: of the requests.
        workers: processes.

    Returns:
        One row a pipeline, policy, ``cost_weight`` and seed: the means over all cycles of ``cost`` (cores), ``qos``
        (Eq. 3) and ``dropped`` (requests a cycle).
    """
    cells = [EvaluationCell(*each) for each in product(pipelines, POLICIES, cycles, seeds)]
    parts = []
    for cost_weight in map(float, cost_weights):
        rows, _ = evaluate(cells, priced_setting(setting, cost_weight), workers)
        parts.append(rows.assign(cost_weight=cost_weight))
    return _means(pd.concat(parts), "seed")


def mean_points(points: pd.DataFrame) -> pd.DataFrame:
    """The means over the seeds of :func:`measure_frontier`'s points: a row a pipeline, policy and ``cost_weight``."""
    return _means(points)


def _means(rows: pd.DataFrame, *keys: str) -> pd.DataFrame:
    groups = rows.groupby(["pipeline", "policy", "cost_weight", *keys], sort=False)
    return groups[["cost", "qos", "dropped"]].mean().reset_index()


# ---------------------------------------------------------------------------------------------- hypervolume


def non_dominated(points: np.ndarray) -> np.ndarray:
    """Select the points that are not dominated by another point.

    Args:
        points: (P, 2) cost and QoS.

    Returns:
        (K, 2) by rising cost, and therefore by rising QoS; equal points once.
    """
    ordered = points[np.lexsort((-points[:, 1], points[:, 0]))]
    best_of_cheaper = np.maximum.accumulate(np.append(-np.inf, ordered[:-1, 1]))
    return ordered[ordered[:, 1] > best_of_cheaper]


def hypervolume(points: np.ndarray, reference: tuple[float, float]) -> float:
    """Compute the area between a set of points and a worse reference point; a larger area is better.

    Args:
        points: (P, 2) cost and QoS.
        reference: cost and QoS; points beyond it add nothing.

    Returns:
        Cores times QoS.
    """
    worst_cost, worst_qos = reference
    cost, qos = non_dominated(points).T
    edges = np.append(cost, worst_cost).clip(max=worst_cost)
    return float(np.sum(np.diff(edges) * (qos - worst_qos).clip(min=0.0)))


def hypervolumes(points: pd.DataFrame, capacities: Mapping[str, int]) -> pd.DataFrame:
    """Compute the hypervolume of every policy's points, and its ratio to the agent's.

    The reference costs as much as the device has cores. Its QoS is the lowest of any point of any policy and seed, or
    the lowest of IPA. A policy that leaves demand unmet has so low a QoS that the area below all sensible points
    dominates the differences between them, whereas IPA always carries the load if that is possible.

    Args:
        points: of :func:`measure_frontier`.
        capacities: cores of each pipeline's device.

    Returns:
        One row a pipeline, ``reference`` (:data:`ANY` or :data:`SERVED`) and policy: ``reference_cost``,
        ``reference_qos``, ``hypervolume`` (cores times QoS), and ``agent_times``, the agent's divided by this policy's,
        seed by seed; the last two as the mean of the seeds with ``_min`` and ``_max``. The ratio is NaN where the
        policy has no area.
    """
    rows = []
    for pipeline, here in points.groupby("pipeline", sort=False):
        cost = float(capacities[str(pipeline)])
        for name, lowest in ((ANY, here["qos"].min()), (SERVED, here.loc[here["policy"] == "ipa", "qos"].min())):
            areas = _areas(here, (cost, float(lowest)))
            ratios = areas.rdiv(areas[AGENT], axis=0).where(areas > 0.0)
            for policy in dict.fromkeys(here["policy"]):
                row = {"pipeline": pipeline, "reference": name, "policy": policy}
                row |= {"reference_cost": cost, "reference_qos": lowest}
                rows.append(row | spread("hypervolume", areas[policy]) | spread("agent_times", ratios[policy]))
    return pd.DataFrame(rows)


def times_of_the_agent(areas: pd.DataFrame) -> str:
    """List the ratios of the agent's areas of :func:`hypervolumes` to the others', in Markdown.

    An item a reference and policy; pipelines with a mean ratio below 1 are named.
    """
    lines = []
    others = areas[areas["policy"] != AGENT].groupby(["reference", "policy"], sort=False)
    for (reference, policy), rows in others:
        times = rows.set_index("pipeline")["agent_times"]
        count = f"{(times >= 1.0).sum()} of {times.notna().sum()} pipelines with an area"
        smaller = ", ".join(f"{pipeline} {ratio:.3f}" for pipeline, ratio in times[times < 1.0].items())
        lines.append(
            f"* reference {reference}: at least as large as {policy}'s in {count}, {times.min():.3f} to "
            f"{times.max():.3f} times" + (f"; below 1: {smaller}" if smaller else "")
        )
    return "\n".join(lines)


def _areas(points: pd.DataFrame, reference: tuple[float, float]) -> pd.DataFrame:
    """Hypervolumes of one pipeline: a row a seed, a column a policy."""
    groups = points.groupby(["seed", "policy"])[["cost", "qos"]]
    return pd.Series({key: hypervolume(own.to_numpy(), reference) for key, own in groups}).unstack()


# ------------------------------------------------------------------------------------------------- sentences


def dominated_points(points: pd.DataFrame) -> pd.DataFrame:
    """Find the agent's points, means of the seeds, that are dominated by a point of another policy.

    Args:
        points: of :func:`measure_frontier`.

    Returns:
        A row a point and policy that dominates it: ``pipeline``, ``cost_weight``, ``cost`` (cores), ``qos`` and
        ``dropped`` (requests a cycle) of the agent, and the same but for the pipeline with ``by_`` before it, ``by``
        being the policy. Of several points of one policy it is that of the highest QoS, then of the lowest weight.
    """
    means = mean_points(points)
    own = means[means["policy"] == AGENT].drop(columns="policy")
    others = means[means["policy"] != AGENT].set_index("pipeline").add_prefix("by_").reset_index()
    pairs = own.merge(others.rename(columns={"by_policy": "by"}), on="pipeline")
    no_worse = (pairs["by_cost"] <= pairs["cost"]) & (pairs["by_qos"] >= pairs["qos"])
    better = (pairs["by_cost"] < pairs["cost"]) | (pairs["by_qos"] > pairs["qos"])
    best_first = pairs[no_worse & better].sort_values(["by_qos", "by_cost_weight"], ascending=[False, True])
    return best_first.drop_duplicates(["pipeline", "cost_weight", "by"]).sort_index().reset_index(drop=True)


def dominations(points: pd.DataFrame) -> str:
    """List the agent's dominated points and the points that dominate them, in Markdown."""
    beaten = dominated_points(points)
    count = len(beaten[["pipeline", "cost_weight"]].drop_duplicates())
    whole = int((mean_points(points)["policy"] == AGENT).sum())
    text = f"Points of other policies dominate {count or 'none'} of the agent's {whole} points (means of the seeds)"
    text += ": they cost no more, have no lower QoS, and are better in one of the two.\n\n" if count else "."
    return text + "\n".join(
        f"* {row['pipeline']} at {row['cost_weight']:g} ({_point(row)}): {row['by']} at {row['by_cost_weight']:g}"
        f" ({_point(row, 'by_')})"
        for row in beaten.to_dict("records")
    )


def _point(row: Row, prefix: str = "") -> str:
    cost, qos, dropped = (row[prefix + name] for name in ("cost", "qos", "dropped"))
    return f"{cost:.2f} cores, QoS {qos:.3f}, {dropped:,.1f} dropped requests per cycle"


def drops(points: pd.DataFrame) -> str:
    """List the prices at which each policy drops requests, and how many per cycle, in Markdown; an item a policy."""
    means = mean_points(points).sort_values("cost_weight", kind="stable")
    return "\n".join(f"* {policy}: {_drops_of(means[means['policy'] == policy])}" for policy in POLICIES)


def _drops_of(means: pd.DataFrame) -> str:
    """One policy: the pipelines with dropped requests, and those without."""
    groups = means.groupby("pipeline", sort=False)
    losing = [f"{name} {_where(rows)}" for name, rows in groups if rows["dropped"].any()]
    none = [str(name) for name, rows in groups if not rows["dropped"].any()]
    return "; ".join([*losing, f"none at any price on {', '.join(none)}"] if none else losing)


def _where(rows: pd.DataFrame) -> str:
    """The prices at which one policy drops requests of one pipeline: from one price up, or only at some."""
    lossy = rows[rows["dropped"] > 0.0]
    prices, least, most = lossy["cost_weight"], lossy["dropped"].min(), lossy["dropped"].max()
    lasting = rows["dropped"].iloc[-len(lossy) :].gt(0.0).all()
    where = f"from {prices.iloc[0]:g} up" if lasting else f"only at {', '.join(f'{price:g}' for price in prices)}"
    return f"{where} ({least:,.1f})" if least == most else f"{where} ({least:,.1f} to {most:,.1f})"


def findings(points: pd.DataFrame, areas: pd.DataFrame) -> str:
    """Write the findings of the sweep in Markdown.

    Args:
        points: of :func:`measure_frontier`.
        areas: of :func:`hypervolumes`.
    """
    return "\n\n".join(
        [
            f"The agent's hypervolume is\n\n{times_of_the_agent(areas)}",
            dominations(points),
            f"Prices at which requests are dropped, with the smallest and largest number per cycle:\n\n{drops(points)}",
        ]
    )


# -------------------------------------------------------------------------------------------------------------- figure


def plot_frontier(points: pd.DataFrame, areas: pd.DataFrame, label: str) -> Figure:
    """Draw mean QoS over mean cost for a sweep of the price per core, one panel a pipeline.

    A marker is a price, the mean of the seeds, and a light one a single seed of the agent. The steps are the
    non-dominated means. The panels end below IPA's lowest QoS; points below are given as text.

    Args:
        points: of :func:`measure_frontier`.
        areas: of :func:`hypervolumes`.
        label: of the trace, for the title.

    Returns:
        The figure, not saved.
    """
    prices = ", ".join(f"{price:g}" for price in sorted(set(points["cost_weight"])))
    figure, panels = panel_grid(points["pipeline"], 4.4, 3.8, f"QoS and cost at prices per core of {prices}\n{label}")
    agent = policy_style(AGENT)
    for pipeline, axes in panels.items():
        here = points[points["pipeline"] == pipeline]
        single, means = here[here["policy"] == AGENT], mean_points(here)
        axes.scatter(
            single["cost"], single["qos"], s=28, color=agent.colour, marker=agent.marker, alpha=0.3, linewidths=0,
            label=f"{agent.label}, one seed",
        )  # fmt: skip
        for policy in ordered(POLICIES):
            _draw_sweep(axes, policy, means.loc[means["policy"] == policy, ["cost", "qos"]].to_numpy())
        _frame(axes, means)
        axes.set_title(_title(pipeline, areas[areas["pipeline"] == pipeline]), fontsize=9)
        axes.set(xlabel="mean cost (CPU cores)", ylabel="mean QoS (Eq. 3)")
    legend_below(figure, axes, columns=4)
    return figure


def _draw_sweep(axes: Axes, policy: str, means: np.ndarray) -> None:
    """Draw points (P, 2) of one policy in the order of prices, and their non-dominated set."""
    style = policy_style(policy)
    axes.plot(*means.T, color=style.colour, linewidth=0.8, linestyle=":", zorder=2)
    axes.plot(*means.T, color=style.colour, marker=style.marker, markersize=6, linestyle="none", label=style.label)
    axes.step(*non_dominated(means).T, where="post", color=style.colour, linewidth=1.6, alpha=0.8)


def _frame(axes: Axes, means: pd.DataFrame) -> None:
    """Show the points that are not far below IPA's lowest QoS, and describe the others."""
    lowest, highest = float(means.loc[means["policy"] == "ipa", "qos"].min()), float(means["qos"].max())
    space = 0.08 * max(highest - lowest, 1e-3)
    far = means["qos"] < lowest - space
    inside, outside = means[~far], means[far]
    texts = [
        f"{short_label(policy)}: {len(rows)} below, down to QoS {rows['qos'].min():.4g}"
        for policy in ordered(POLICIES)
        if len(rows := outside[outside["policy"] == policy])
    ]
    cheapest, dearest = float(inside["cost"].min()), float(inside["cost"].max())
    width = 0.06 * max(dearest - cheapest, 0.1)
    axes.set_xlim(cheapest - width, dearest + width)
    axes.set_ylim(lowest - (1 + len(texts)) * space, highest + space)
    axes.text(0.98, 0.02, "\n".join(texts), transform=axes.transAxes, ha="right", va="bottom", fontsize=8, color="0.35")


def _title(pipeline: str, areas: pd.DataFrame) -> str:
    """The pipeline, and the ratio of the agent's hypervolume to the others'."""
    lines = [pipeline]
    for reference, name in ((ANY, "hypervolume"), (SERVED, "above IPA's lowest QoS")):
        ratios = areas[areas["reference"] == reference].set_index("policy")["agent_times"]
        lines.append(f"{name}: " + ", ".join(_times(ratios[policy], policy) for policy in ("ipa", "myopic")))
    return "\n".join(lines)


def _times(ratio: float, policy: str) -> str:
    return f"{short_label(policy)} has none" if np.isnan(ratio) else f"{ratio:.3f} × {short_label(policy)}"
