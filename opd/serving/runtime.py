"""Base of the runtimes, which are MLServer models."""

from __future__ import annotations

from typing import Any

from mlserver import MLModel
from mlserver.settings import ModelSettings


class Runtime(MLModel):
    """A runtime that reads its parameters from :class:`opd.serving.settings.ServerSettings`."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self._parameters: dict[str, Any] = dict(settings.parameters.extra or {})  # type: ignore[union-attr]
