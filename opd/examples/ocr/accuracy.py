"""Measure accuracy and latency of the OCR variants on rendered pages: ``python -m opd.examples.ocr.accuracy``.

All candidates of ``recipes.yaml`` are measured on the pages of split ``choose``. The variants chosen from these figures
are measured again on split ``report``, which gives the accuracies of the pipeline. Detection is scored by the boxes it
finds, recognition by the text it reads in the true boxes, and every pair of chosen variants by the text it reads in
whole pages.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import typer
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from torchmetrics.functional.text import char_error_rate

from opd.examples.ocr.build import build_variant
from opd.examples.ocr.models import TextDetector, TextRecogniser, decode_image, encode_image, line_sheet
from opd.examples.ocr.pages import SPLIT_SEEDS, Page, render_pages
from opd.examples.ocr.recipes import load_recipes
from opd.host.paths import project_path
from opd.host.progress import progress_bar
from opd.profiling.measuring import Effort, time_calls
from opd.serving.models import open_object
from opd.study.plots.style import PALETTE, save_figure

PAGES = 300
"""Number of pages of a split."""

LEAST_OVERLAP = 0.5
"""Intersection over union from which a line counts as found."""


def overlaps(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Compute the intersection over union of every found box with every true one.

    Args:
        found: (n, 4) left, top, right, bottom.
        truth: (m, 4) likewise.

    Returns:
        (n, m) fractions.
    """
    start = np.maximum(found[:, None, :2], truth[None, :, :2])
    end = np.minimum(found[:, None, 2:], truth[None, :, 2:])
    shared = np.clip(end - start, 0, None).prod(axis=2)
    sizes = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (found, truth)]
    return shared / (sizes[0][:, None] + sizes[1][None] - shared)


def detection_f1(found: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> float:
    """Compute F1 of found boxes over all pages; each is matched to one true box, with :data:`LEAST_OVERLAP` or more."""
    hits = 0
    for boxes, true in zip(found, truth, strict=True):
        matches = overlaps(boxes, true) >= LEAST_OVERLAP
        hits += int(matches[linear_sum_assignment(matches, maximize=True)].sum())
    total = sum(map(len, found)) + sum(map(len, truth))
    return 2 * hits / total if total else 1.0


def text_accuracy(truth: Sequence[str], read: Sequence[str]) -> float:
    """Compute 1 - character error rate; negative if there are more errors than characters."""
    return 1.0 - float(char_error_rate(list(read), list(truth)))


def true_sheet(page: Page) -> bytes:
    """Render the line sheet that a perfect detector would make of a page."""
    return encode_image(line_sheet(decode_image(page.payload, "rendered page"), np.array(page.boxes)))


def variant_accuracy(model: TextDetector | TextRecogniser, pages: Sequence[Page]) -> float:
    """Compute the accuracy of a loaded variant by the metric of its task."""
    if isinstance(model, TextDetector):
        found = [model.detect([decode_image(page.payload, "rendered page")])[0] for page in pages]
        return detection_f1(found, [np.array(page.boxes) for page in pages])
    read = [model.texts([true_sheet(page)])[0].decode() for page in pages]
    return text_accuracy([page.text for page in pages], read)


def variant_latency(model: TextDetector | TextRecogniser, pages: Sequence[Page]) -> float:
    """Measure the CPU milliseconds of one request: mean of the faster half of runs over different pages."""
    if isinstance(model, TextDetector):
        calls = [partial(model.sheets, [page.payload]) for page in pages[:8]]
    else:
        calls = [partial(model.texts, [true_sheet(page)]) for page in pages[:8]]
    seconds = np.concatenate([time_calls(call, Effort(0.0, 4, 4)) for call in calls])
    return 1e3 * float(np.sort(seconds)[: len(seconds) // 2].mean())


def measure_variants(task: str, names: Sequence[str], split: str, count: int = PAGES) -> pd.DataFrame:
    """Measure accuracy and latency of candidates of ``recipes.yaml``.

    Args:
        task: ``text-detection`` or ``text-recognition``.
        names: of the candidates.
        split: a key of :data:`opd.examples.ocr.pages.SPLIT_SEEDS`.
        count: number of pages.

    Returns:
        Columns ``task, variant, split, accuracy, latency_ms, chosen``.
    """
    chosen = load_recipes().tasks[task].chosen
    pages = list(render_pages(count, SPLIT_SEEDS[split]))
    rows = []
    for name in progress_bar(names, unit="variant", desc=f"{task}, split {split}"):
        model = _built_model(task, name)
        rows.append((task, name, split, variant_accuracy(model, pages), variant_latency(model, pages), name in chosen))
    return pd.DataFrame(rows, columns=["task", "variant", "split", "accuracy", "latency_ms", "chosen"])


def measure_pairs(count: int = PAGES) -> pd.DataFrame:
    """Measure what every pair of chosen variants reads in whole pages of split ``report``.

    Args:
        count: number of pages.

    Returns:
        Columns ``detection, recognition, accuracy, pages_right``: the variants, 1 - character error rate, and the
        fraction of pages without any error.
    """
    detection, recognition = (load_recipes().tasks[task].chosen for task in ("text-detection", "text-recognition"))
    pages = list(render_pages(count, SPLIT_SEEDS["report"]))
    truth = [page.text for page in pages]
    finders = {name: _built_model("text-detection", name) for name in detection}
    sheets = {name: [finder.sheets([page.payload])[0] for page in pages] for name, finder in finders.items()}
    rows = []
    for name, (finder, pictures) in progress_bar(
        list(product(recognition, sheets.items())), unit="pair", desc="whole pages"
    ):
        reader = _built_model("text-recognition", name)
        read = [reader.texts([sheet])[0].decode() for sheet in pictures]
        right = float(np.mean([text == true for text, true in zip(read, truth, strict=True)]))
        rows.append((finder, name, text_accuracy(truth, read), right))
    return pd.DataFrame(rows, columns=["detection", "recognition", "accuracy", "pages_right"])


def _built_model(task: str, name: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        build_variant(task, name, Path(folder))
        return open_object(Path(folder))


def plot_accuracy(table: pd.DataFrame, path: Path) -> Figure:
    """Plot accuracy against latency on split ``choose``, and the accuracy of the chosen variants on ``report``."""
    tasks = table["task"].unique()
    figure, panels = plt.subplots(1, len(tasks), figsize=(6 * len(tasks), 4.2), layout="constrained", squeeze=False)
    for axes, task in zip(panels[0], tasks, strict=True):
        rows = table[table["task"] == task]
        candidates = rows[rows["split"] == "choose"]
        others, chosen = candidates[~candidates["chosen"]], candidates[candidates["chosen"]].sort_values("latency_ms")
        axes.plot(others["latency_ms"], others["accuracy"], ".", color=PALETTE[7], label="candidates, split choose")
        axes.plot(chosen["latency_ms"], chosen["accuracy"], "o-", color=PALETTE[0], label="chosen, split choose")
        reported = chosen[["variant", "latency_ms"]].merge(rows.loc[rows["split"] == "report", ["variant", "accuracy"]])
        x, y = reported["latency_ms"], reported["accuracy"]
        axes.plot(x, y, "D", markerfacecolor="none", color=PALETTE[1], label="chosen, split report")
        for name, *place in chosen[["variant", "latency_ms", "accuracy"]].itertuples(index=False):
            axes.annotate(name, place, (-7, 3), textcoords="offset points", ha="right", fontsize=7, color=PALETTE[0])
        axes.set(title=task, xlabel="latency of one request (ms)", xlim=(0, 1.15 * candidates["latency_ms"].max()))
        axes.margins(y=0.1)
        axes.set_ylabel("F1" if task == "text-detection" else "1 - character error rate")
    panels[0, 0].legend(loc="lower right")
    return save_figure(figure, path)


def main(
    pages: Annotated[int, typer.Option(help="number of pages of a split")] = PAGES,
    report_only: Annotated[bool, typer.Option("--report-only", help="keep the figures of split choose")] = False,
) -> None:
    """Measure accuracy and latency of the OCR variants on rendered pages, and write them to reports/ocr."""
    folder = project_path("reports", "ocr")
    folder.mkdir(parents=True, exist_ok=True)
    tasks = load_recipes().tasks
    jobs = [] if report_only else [(task, list(recipes.candidates), "choose") for task, recipes in tasks.items()]
    jobs += [(task, recipes.chosen, "report") for task, recipes in tasks.items()]
    tables = [measure_variants(*job, pages) for job in jobs]
    measure_pairs(pages).to_csv(folder / "pairs.csv", index=False, float_format="%.4f")
    if report_only:
        before = pd.read_csv(folder / "accuracy.csv").query("split == 'choose'")
        is_chosen = [row.variant in tasks[str(row.task)].chosen for row in before.itertuples()]
        tables.insert(0, before.assign(chosen=is_chosen))
    table = pd.concat(tables)
    table.to_csv(folder / "accuracy.csv", index=False, float_format="%.4f")
    plot_accuracy(table, folder / "accuracy.png")


if __name__ == "__main__":
    typer.run(main)
