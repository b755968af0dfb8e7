"""Training of the load forecaster (Sec. IV, Fig. 3), which :class:`~opd.workload.forecast.Forecaster` deploys."""

from __future__ import annotations

import logging
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from opd.host.progress import progress_bar
from opd.workload.forecast import Forecaster, ForecastParameters
from opd.workload.forecast_network import (
    FEATURES,
    HALF_REQUEST,
    INTERVALS,
    QUANTILE_LOADS,
    QUANTILE_UNITS,
    QUANTILES,
    TARGET_SCALE,
    ForecastNetwork,
    quantile_inputs,
    scaled,
    standardise_level,
    window_features,
)
from opd.workload.futures_scores import coming_loads, scored_positions
from opd.workload.quantile_futures import patterns_of
from opd.workload.trace import Trace, windows

PATTERNS = 2000
"""Stretches of the training days that a forecaster keeps the patterns of."""

_QUANTILE_EPOCHS = 2  # for each of the LSTM: an epoch is cheap without it


class ForecastModule(pl.LightningModule):
    """The network of Sec. IV for training: an LSTM over twelve bins of ten seconds and a dense layer.

    Inputs are (B, 12, 3): per bin, 3 ln((largest + 0.5) / m), 3 ln((mean + 0.5) / m) and the standardised ln m, with
    m the mean of the window; the output (B,) is ln(y / m) / 0.3 for the largest coming load y. Quiet and busy hours
    look alike because loads are relative to the level of their own window.
    """

    def __init__(self, parameters: ForecastParameters) -> None:
        super().__init__()
        self.parameters_ = parameters
        self.lstm = nn.LSTM(FEATURES, parameters.hidden_size, batch_first=True)
        self.dense = nn.Linear(parameters.hidden_size, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, 12, 3) features to (B,) scaled logarithms of the forecast over the window's mean."""
        states, _ = self.lstm(features)
        return self.dense(states[:, -1]).squeeze(-1)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean absolute error of one batch, on the scaled logarithm."""
        features, target = batch
        loss = nn.functional.l1_loss(self(features), target)
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam with a one-cycle learning rate over the whole training."""
        return _adam(self, self.parameters_.learning_rate)


class QuantileModule(pl.LightningModule):
    """The outputs for quantiles: two dense layers on the last state of the trained LSTM and the loads of the window.

    The LSTM stays as it is, so the forecast of the largest load is the same with and without them.
    """

    def __init__(self, parameters: ForecastParameters) -> None:
        super().__init__()
        self.parameters_ = parameters
        self.hidden = nn.Linear(parameters.hidden_size + QUANTILE_LOADS, QUANTILE_UNITS)
        self.dense = nn.Linear(QUANTILE_UNITS, INTERVALS * len(QUANTILES))

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, H + 33) inputs to (B, 6, Q) quantiles of the scaled logarithms of the coming loads."""
        return self.dense(self.hidden(inputs).relu()).unflatten(-1, (INTERVALS, len(QUANTILES)))

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean quantile loss of one batch."""
        inputs, target = batch
        loss = pinball_loss(self(inputs), target)
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam with a one-cycle learning rate over the whole training."""
        return _adam(self, self.parameters_.learning_rate)


def pinball_loss(quantiles: Tensor, target: Tensor) -> Tensor:
    """Mean loss of quantiles (..., Q) of a target (...): its minimum is at the true quantiles.

    For the probability a it is a (y - q) where the target y is above the quantile q, (1 - a) (q - y) elsewhere.
    """
    nominal = torch.tensor(QUANTILES)
    error = target[..., None] - quantiles
    return torch.maximum(nominal * error, (nominal - 1.0) * error).mean()


def _adam(module: pl.LightningModule, learning_rate: float) -> OptimizerLRScheduler:
    optimizer = torch.optim.Adam(module.parameters(), lr=learning_rate)
    steps = int(module.trainer.estimated_stepping_batches)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train_forecaster(
    trace: Trace,
    parameters: ForecastParameters | None = None,
    seed: int = 0,
    progress: bool = False,
    log_folder: str | Path | None = None,
) -> Forecaster:
    """Train the forecaster on the training split of a trace; it does not see the validation days.

    Args:
        trace: the load, with the damping of the counts that will be forecast.
        parameters: network and training.
        seed: of the initial weights and the order of the windows; the same seed gives the same forecaster.
        progress: show the progress.
        log_folder: folder for the loss of every epoch as CSV and a checkpoint; by default nothing is written.
    """
    parameters = parameters or ForecastParameters()
    folder = Path(log_folder) if log_folder is not None else None
    counts = trace.counts.astype(np.float64)
    ends, target = windows(trace, "train", parameters.stride, parameters.train_windows)
    features, level = window_features(counts, ends)
    level_mean, level_deviation = standardise_level(features)
    largest = np.log(np.maximum(target, HALF_REQUEST) / level) / TARGET_SCALE
    with _repeatable(seed):
        module = ForecastModule(parameters)
        _fit(module, parameters, features, largest, seed, _trainer(parameters, progress, folder))
        head = QuantileModule(parameters)
        network = _network(module, head, level_mean, level_deviation)
        ends = scored_positions(trace, "train", parameters.stride)[-parameters.train_windows :]
        inputs, level = quantile_inputs(counts, ends, network)
        loads = scaled(coming_loads(counts, ends), level[:, None])
        longer = replace(parameters, epochs=_QUANTILE_EPOCHS * parameters.epochs)
        _fit(head, longer, inputs, loads, seed, _trainer(longer, progress, folder and folder / "quantiles"))
    network = _network(module, head, level_mean, level_deviation)
    kept = np.unique(np.linspace(0, len(ends) - 1, PATTERNS).astype(int))
    patterns = patterns_of(counts, ends[kept], network)
    return Forecaster(network, patterns, parameters, trace.name, trace.damping, seed, training_data(trace))


def training_data(trace: Trace) -> int:
    """Checksum of the counts that :func:`train_forecaster` learns from."""
    return zlib.crc32(trace.counts[trace.split("train")].tobytes())


def _fit(
    module: pl.LightningModule,
    parameters: ForecastParameters,
    inputs: np.ndarray,
    targets: np.ndarray,
    seed: int,
    trainer: pl.Trainer,
) -> None:
    """Train a module on (N, ...) float32 inputs and targets, in batches of an order that the seed determines."""
    data = TensorDataset(torch.from_numpy(inputs), torch.from_numpy(targets.astype(np.float32)))
    # Batches are sliced from the tensors; a loader that collates single windows is far slower.
    order = RandomSampler(data, generator=torch.Generator().manual_seed(seed))
    batches = DataLoader(data, sampler=BatchSampler(order, parameters.batch_size, drop_last=False), batch_size=None)
    trainer.fit(module, batches)


@contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """Seed torch and use one thread, since sums depend on the number of threads; then restore the caller's state."""
    threads = torch.get_num_threads()
    lightning = logging.getLogger("pytorch_lightning")
    level = lightning.level
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # Lightning's notes on devices and its advice on loaders for large data sets do not apply here.
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        lightning.setLevel(logging.WARNING)
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            lightning.setLevel(level)


class _Progress(Callback):
    """Show the progress of a training in steps of the optimizer."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        steps = int(trainer.estimated_stepping_batches)
        # A bar that moves more often slows a notebook down.
        self.bar = progress_bar(total=steps, desc="forecaster", unit="steps", mininterval=0.5)

    def on_train_batch_end(self, *_: Any) -> None:
        self.bar.update()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.bar.close()


def _trainer(parameters: ForecastParameters, progress: bool, log_folder: str | Path | None) -> pl.Trainer:
    callbacks: list[Callback] = []
    if progress:
        callbacks.append(_Progress())
    if log_folder is not None:
        callbacks.append(ModelCheckpoint(dirpath=log_folder))
    return pl.Trainer(
        max_epochs=parameters.epochs,
        accelerator="cpu",
        devices=1,
        gradient_clip_val=parameters.gradient_clip,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=log_folder is not None,
        callbacks=callbacks,
        logger=CSVLogger(log_folder, name=None, version="") if log_folder is not None else False,
    )


def _network(
    module: ForecastModule, head: QuantileModule, level_mean: float, level_deviation: float
) -> ForecastNetwork:
    """Weights of both modules, those of the LSTM transposed so that the compiled loops run over contiguous gates."""
    weights = {name: value.detach().numpy() for name, value in module.named_parameters()}
    return ForecastNetwork(
        level_mean=level_mean,
        level_deviation=level_deviation,
        input_weight=np.ascontiguousarray(weights["lstm.weight_ih_l0"].T),
        hidden_weight=np.ascontiguousarray(weights["lstm.weight_hh_l0"].T),
        bias=weights["lstm.bias_ih_l0"] + weights["lstm.bias_hh_l0"],
        output_weight=weights["dense.weight"][0].copy(),
        output_bias=float(weights["dense.bias"][0]),
        quantile_hidden_weight=head.hidden.weight.detach().numpy(),
        quantile_hidden_bias=head.hidden.bias.detach().numpy(),
        quantile_weight=head.dense.weight.detach().numpy(),
        quantile_bias=head.dense.bias.detach().numpy(),
    )
