"""The kinds of models that can be served: the runtime of each, the extra that installs it, and its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from opd.profiling.pipeline_file import is_reference


@dataclass(frozen=True)
class ModelKind:
    """One kind of model.

    Attributes:
        runtime: import path of the MLServer runtime.
        extra: extra of this package that installs it; empty if none does.
        suffixes: suffixes of its files.
        marker: file by which a folder of this kind is recognised.
        runs_code: whether loading it may import modules that are not installed.
    """

    runtime: str
    extra: str
    suffixes: tuple[str, ...] = ()
    marker: str = ""
    runs_code: bool = False


KINDS: Mapping[str, ModelKind] = {
    "onnx": ModelKind("opd.serving.onnx_model.OnnxModel", "serving", (".onnx",)),
    "sklearn": ModelKind("mlserver_sklearn.SKLearnModel", "serving", (".joblib", ".pkl", ".pickle"), runs_code=True),
    "xgboost": ModelKind("mlserver_xgboost.XGBoostModel", "xgboost", (".ubj", ".json")),
    "lightgbm": ModelKind("mlserver_lightgbm.LightGBMModel", "lightgbm", (".txt",)),
    "mlflow": ModelKind("mlserver_mlflow.MLflowRuntime", "mlflow", marker="MLmodel"),
    "huggingface": ModelKind("mlserver_huggingface.HuggingFaceRuntime", "huggingface", marker="config.json"),
    "python": ModelKind("opd.serving.python_model.PythonModel", "serving", runs_code=True),
}
"""Kinds by the name that pipeline files use. Both XGBoost and LightGBM write ``.bst``, so that suffix tells nothing."""


def infer_kind(model: Path | str) -> str:
    """Return the kind of a model.

    Args:
        model: path of a file or folder, or ``module:Class``.

    Raises:
        ValueError: if it cannot be told; lists the kinds.
    """
    if is_reference(str(model)):
        return "python"
    path = Path(model)
    files = [path] if path.is_file() else sorted(path.glob("*"))
    marked = [name for name, kind in KINDS.items() if kind.marker and (path / kind.marker).is_file()]
    found = marked or [
        name for name, kind in KINDS.items() if {file.suffix.lower() for file in files} & {*kind.suffixes}
    ]
    if len(found) != 1:
        candidates = f"it may be {' or '.join(found)}" if found else "its name does not tell"
        raise ValueError(f"its runtime is not clear, {candidates}; set runtime to one of {', '.join(KINDS)}")
    return found[0]


def installation_hint(runtime: str) -> str:
    """Describe how to install the package of a runtime; empty if no extra does."""
    extras = [kind.extra for kind in KINDS.values() if kind.runtime == runtime]
    return f"; install it with: pip install 'opd[{extras[0]}]'" if extras else ""
