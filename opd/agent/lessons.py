"""What the one agent learns from: the traces that are here, each with a forecaster of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from opd.agent.demonstrations import Lesson
from opd.agent.practice import Load
from opd.measurement import SimulationParameters
from opd.workload.forecast import Forecaster, ForecasterError, ForecastParameters
from opd.workload.forecast_training import train_forecaster, training_data
from opd.workload.trace import Trace, load_trace
from opd.workload.trace_files import locate


def traces_here(sources: Sequence[str]) -> list[str]:
    """Those of some traces, named as :func:`opd.workload.trace.load_trace` takes them, whose files are here."""
    return [source for source in sources if _is_here(source)]


def _is_here(source: str) -> bool:
    try:
        return locate(source).is_file()
    except FileNotFoundError:
        return False


def forecaster_for(trace: Trace, parameters: ForecastParameters, seed: int, path: Path) -> Forecaster:
    """Train the forecaster of a trace and save it, unless that very forecaster is there already."""
    try:
        known = Forecaster.load(path)
    except ForecasterError:  # missing, damaged, or of an older version
        known = None
    wanted = parameters, seed, trace.name, trace.damping, training_data(trace)
    if known is None or (known.parameters, known.seed, known.trace, known.damping, known.data) != wanted:
        known = train_forecaster(trace, parameters, seed)
        known.save(path)
    return known


def prepare_lesson(
    sources: Sequence[str],
    damping: int,
    parameters: ForecastParameters,
    simulation: SimulationParameters,
    seed: int,
    folder: Path,
) -> tuple[Lesson, dict[str, Forecaster]]:
    """Load traces, and train or read the forecaster of each.

    Args:
        sources: the traces.
        damping: every count is divided by it.
        parameters: of the forecasters.
        simulation: behaviour of devices.
        seed: of the forecasters.
        folder: for the forecasters.

    Returns:
        What demonstrations are made with, and the forecasters by name of their trace.

    Raises:
        ValueError: if there is no trace, or two have the same name.
    """
    if not sources:
        raise ValueError("there is no trace to learn from; name one whose file is here, such as synthetic")
    traces: dict[str, Trace] = {}
    for source in sources:
        trace = load_trace(source, damping)
        if trace.name in traces:
            raise ValueError(
                f"two of the traces {', '.join(sources)} are called {trace.name!r}, but a lesson knows them by name; "
                "leave one out, or rename its file"
            )
        traces[trace.name] = trace
    forecasters = {
        name: forecaster_for(trace, parameters, seed, folder / f"forecaster-{name}.npz")
        for name, trace in traces.items()
    }
    loads = {name: Load.of(trace, "train", forecasters[name], simulation.interval) for name, trace in traces.items()}
    return Lesson(simulation, traces, loads), forecasters
