"""The training loop: steps, moving average, validation, early stopping, history.

Tensors only; what a step is, and how a network is validated, is handed in.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from xsuperres.config import OptimizationConfig
from xsuperres.errors import TrainingError, XSuperResWarning
from xsuperres.nn.network import SuperResolution
from xsuperres.samples.readers import Batch, Reader
from xsuperres.training.averaging import WeightAverage
from xsuperres.training.budget import Budget, Clock, learning_rate

__all__ = ["Trained", "Validate", "train"]

logger = logging.getLogger(__name__)
Validate = Callable[[SuperResolution], dict[str, float]]


class Step(Protocol):
    """One optimizer step."""

    def __call__(self, batch: Batch, rate: float) -> Tensor: ...


@dataclass
class Trained:
    """What training gave: the best network, its validation score, the number of steps, the history."""

    network: SuperResolution
    score: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    history: dict[str, list[float]] = field(default_factory=dict)


def train(
    network: SuperResolution,
    reader: Reader,
    step: Step,
    validate: Validate | None,
    config: OptimizationConfig,
    *,
    clock: Clock,
    device: torch.device,
    progress: bool = True,
) -> Trained:
    """Train `network` until its budget is used up, patience is lost, or Ctrl-C.

    Parameters
    ----------
    validate : callable or None
        Returns a score with the key ``rmse``, smaller is better. None keeps the last average.

    Returns
    -------
    Trained
        The moving average with the best score.
    """
    budget = Budget(config, reader.steps_per_epoch, clock)
    average = WeightAverage(network, config.averaging)
    keeper = _Keeper(average, validate, config, budget)
    bar = tqdm(
        total=100, disable=not progress, desc="fit", bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
    )
    network.train()
    try:
        for batch in _endless(reader):
            share = budget.progress(keeper.steps)
            if keeper.finished(share):
                bar.update(100 - bar.n)
                break
            rate = learning_rate(config, share)
            keeper.count(step(batch.to(device), rate), rate)
            average.update()
            bar.update(math.floor(100 * share) - bar.n)
            if keeper.due(share):
                bar.set_postfix_str(keeper.check())
        keeper.finish()
    except KeyboardInterrupt:
        warnings.warn(
            f"Training was interrupted after {keeper.steps} steps; the best model so far is returned.",
            XSuperResWarning,
            stacklevel=3,
        )
        with contextlib.suppress(KeyboardInterrupt):
            keeper.finish()
    finally:
        bar.close()
    return keeper.result()


def _endless(reader: Reader) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from reader.batches(epoch)
        epoch += 1


class _Keeper:
    """Counts steps and losses, validates when it is due, keeps the best weights and the history."""

    def __init__(
        self, average: WeightAverage, validate: Validate | None, config: OptimizationConfig, budget: Budget
    ) -> None:
        self.average, self.validate, self.config, self.budget = average, validate, config, budget
        self.steps, self.mark, self.stale, self.rate = 0, 0, 0, 0.0
        self.losses: list[Tensor] = []
        self.best: dict[str, float] = {}
        self.best_state: dict[str, Any] | None = None
        self.history: dict[str, list[float]] = {}
        self.diverged = False

    def count(self, loss: Tensor, rate: float) -> None:
        """Count a step with its loss and learning rate."""
        self.steps, self.rate = self.steps + 1, rate
        self.losses.append(loss)

    def due(self, share: float) -> bool:
        """Return whether a validation is due: evenly over the budget, the last one at its end."""
        wanted, limit = self.config.validations, self.budget.max_steps
        mark = self.steps * wanted // limit if limit and not self.budget.started else int(share * wanted)
        passed, self.mark = mark > self.mark, mark
        return passed

    def finished(self, share: float) -> bool:
        patient = self.config.patience is None or self.stale < self.config.patience
        return share >= 1.0 or not patient or self.diverged

    def check(self) -> str:
        """Validate the average, remember it if it is the best, and return a line for the progress bar."""
        loss = float(torch.stack(self.losses).mean()) if self.losses else math.nan
        self.losses.clear()
        if not math.isfinite(loss):
            return self._diverged(loss)
        seconds = self.budget.clock.wall_seconds()
        entry = {"step": self.steps, "seconds": seconds, "loss": loss, "learning_rate": self.rate}
        line = f"loss {loss:.4f}"
        if self.validate is not None:
            score = self._validated()
            entry |= score
            line += f", validation {score['rmse']:.4g}"
            line += f" ({score['ratio_to_bicubic']:.3f} of bicubic)" if "ratio_to_bicubic" in score else ""
        for name, value in entry.items():
            self.history.setdefault(name, []).append(value)
        return line

    def _diverged(self, loss: float) -> str:
        """Stop; what was good before is returned, if there is anything."""
        what = (
            f"The loss became {loss} after {self.steps} steps; use a smaller learning_rate than "
            f"{self.config.learning_rate} or check the data for extreme values."
        )
        if self.best_state is None:
            raise TrainingError(what)
        warnings.warn(f"{what} The best model before that is returned.", XSuperResWarning, stacklevel=4)
        self.diverged = True
        return f"loss {loss}"

    def _validated(self) -> dict[str, float]:
        assert self.validate is not None
        before = self.budget.clock.cpu_seconds()
        score = self.validate(self.average.average)
        self.budget.reserve = 1.3 * (self.budget.clock.cpu_seconds() - before)
        if score["rmse"] < self.best.get("rmse", math.inf):
            self.best, self.stale = score, 0
            self.best_state = copy.deepcopy(self.average.average.state_dict())
        else:
            self.stale += 1
        return score

    def finish(self) -> None:
        """Validate what came after the last validation."""
        if self.losses:
            self.check()

    def result(self) -> Trained:
        """Return the best network, or the last average without validation."""
        if self.steps == 0:
            raise TrainingError("Training ended before its first step; give it a larger budget.")
        network = self.average.average
        if self.best_state is not None:
            network.load_state_dict(self.best_state)
        return Trained(network, self.best, self.steps, self.history)
