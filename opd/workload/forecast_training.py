"""Training of the load forecaster (Sec. IV, Fig. 3), which :class:`~opd.workload.forecast.Forecaster` deploys."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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
from opd.workload.forecast import (
    FEATURES,
    HALF_REQUEST,
    TARGET_SCALE,
    Forecaster,
    ForecastNetwork,
    ForecastParameters,
    standardise_level,
    window_features,
)
from opd.workload.trace import Trace, windows


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
        optimizer = torch.optim.Adam(self.parameters(), lr=self.parameters_.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.parameters_.learning_rate, total_steps=steps)
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
    ends, target = windows(trace, "train", parameters.stride, parameters.train_windows)
    features, level = window_features(trace.counts.astype(np.float64), ends)
    level_mean, level_deviation = standardise_level(features)
    scaled = np.log(np.maximum(target, HALF_REQUEST) / level) / TARGET_SCALE

    data = TensorDataset(torch.from_numpy(features), torch.from_numpy(scaled.astype(np.float32)))
    with _repeatable(seed):
        module = ForecastModule(parameters)
        # Batches are sliced from the tensors; a loader that collates single windows is far slower.
        order = RandomSampler(data, generator=torch.Generator().manual_seed(seed))
        batches = DataLoader(data, sampler=BatchSampler(order, parameters.batch_size, drop_last=False), batch_size=None)
        _trainer(parameters, progress, log_folder).fit(module, batches)
    return Forecaster(_network(module, level_mean, level_deviation), parameters, trace.name, trace.damping, seed)


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


def _network(module: ForecastModule, level_mean: float, level_deviation: float) -> ForecastNetwork:
    """The module's weights, transposed so that the compiled loops run over contiguous gates."""
    weights = {name: value.detach().numpy() for name, value in module.named_parameters()}
    return ForecastNetwork(
        level_mean=level_mean,
        level_deviation=level_deviation,
        input_weight=np.ascontiguousarray(weights["lstm.weight_ih_l0"].T),
        hidden_weight=np.ascontiguousarray(weights["lstm.weight_hh_l0"].T),
        bias=weights["lstm.bias_ih_l0"] + weights["lstm.bias_hh_l0"],
        output_weight=weights["dense.weight"][0].copy(),
        output_bias=float(weights["dense.bias"][0]),
    )
