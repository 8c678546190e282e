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
from xsuperres.training.averaging import WeightAverage, estimate_statistics
from xsuperres.training.budget import Budget, Clock, learning_rate
from xsuperres.training.supervised import Prefer

__all__ = ["Trained", "Validate", "train"]

logger = logging.getLogger(__name__)
_CONSTANT = 1e-3  # standard deviation of what a network adds to the skip, in units of the skip's error
_COLLAPSED = 1.5  # times the best validation score: a game that lost its grip
Validate = Callable[[SuperResolution], dict[str, float]]


class Step(Protocol):
    """One optimizer step with a learning rate at a share of the budget; returns losses by name, "loss" among them.

    `prefer` says which average is kept: that with the best score, or the last one. An adversarial network gives up a
    little of the score for sharper fields, so its last is its best, unless it collapsed.
    """

    prefer: Prefer

    def __call__(self, batch: Batch, rate: float, share: float) -> dict[str, Tensor]: ...


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
        The moving average that is kept.
    """
    budget = Budget(config, reader.steps_per_epoch, clock)
    average = WeightAverage(network, config.averaging)
    keeper = _Keeper(average, validate, config, budget, step.prefer)
    keeper.recalibrate = lambda: estimate_statistics(average.average, reader, device)
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
            keeper.count(step(batch.to(device), rate, share), rate)
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
        self,
        average: WeightAverage,
        validate: Validate | None,
        config: OptimizationConfig,
        budget: Budget,
        prefer: Prefer,
    ) -> None:
        self.average, self.validate, self.config, self.budget = average, validate, config, budget
        self.prefer = prefer
        self.recalibrate: Callable[[], None] = lambda: None
        self.steps, self.mark, self.stale, self.rate = 0, 0, 0, 0.0
        self.losses: dict[str, list[Tensor]] = {}
        self.best = self.kept = _Kept()
        self.history: dict[str, list[float]] = {}
        self.failed = False

    def count(self, losses: dict[str, Tensor], rate: float) -> None:
        """Count a step with its losses and learning rate."""
        self.steps, self.rate = self.steps + 1, rate
        for name, loss in losses.items():
            self.losses.setdefault(name, []).append(loss)

    def due(self, share: float) -> bool:
        """Return whether a validation is due: evenly over the budget, the last one at its end."""
        wanted, limit = self.config.validations, self.budget.max_steps
        mark = self.steps * wanted // limit if limit and not self.budget.started else int(share * wanted)
        passed, self.mark = mark > self.mark, mark
        return passed

    def finished(self, share: float) -> bool:
        patient = self.config.patience is None or self.stale < self.config.patience
        return share >= 1.0 or not patient or self.failed

    def check(self) -> str:
        """Validate the average, remember it if it is to be kept, and return a line for the progress bar."""
        means = {name: float(torch.stack(losses).mean()) for name, losses in self.losses.items()}
        self.losses.clear()
        if not all(math.isfinite(mean) for mean in means.values()):
            told = ", ".join(f"{name} {mean:g}" for name, mean in means.items())
            return self._failed(f"The loss became {told} after {self.steps} steps")
        before = [detail for detail in self.history.get("detail", ()) if math.isfinite(detail)]  # NaN in a warm-up
        if means.get("detail", 1.0) < _CONSTANT < max(before, default=0.0):
            return self._failed(f"The network's output became constant after {self.steps} steps")
        entry = {"step": self.steps, "seconds": self.budget.clock.wall_seconds(), **means, "learning_rate": self.rate}
        line = f"loss {means['loss']:.4f}"
        if self.validate is not None:
            score = self._validated()
            entry |= score
            line += f", validation {score['rmse']:.4g}"
            line += f" ({score['ratio_to_bicubic']:.3f} of bicubic)" if "ratio_to_bicubic" in score else ""
        self._record(entry)
        return line

    def _record(self, entry: dict[str, float]) -> None:
        """Add a line to the history; what a line lacks is NaN."""
        length = len(self.history.get("step", ()))
        for name in [*self.history, *(name for name in entry if name not in self.history)]:
            self.history.setdefault(name, [math.nan] * length).append(entry.get(name, math.nan))

    def _failed(self, what: str) -> str:
        """Stop; what was good before is returned, if there is anything."""
        rate = self.config.learning_rate
        advice = f"{what}; use a smaller learning_rate than {rate} or check the data for extreme values."
        if self.best.state is None:
            raise TrainingError(advice)
        warnings.warn(f"{advice} The best model before that is returned.", XSuperResWarning, stacklevel=4)
        self.failed, self.kept = True, self.best
        return what

    def _validated(self) -> dict[str, float]:
        assert self.validate is not None
        before = self.budget.clock.cpu_seconds()
        self.recalibrate()
        score = self.validate(self.average.average)
        self.budget.reserve = 1.3 * (self.budget.clock.cpu_seconds() - before)
        best = self.best.score.get("rmse", math.inf)
        better = score["rmse"] < best
        self.stale = 0 if better else self.stale + 1
        if better or (self.prefer == "last" and score["rmse"] < _COLLAPSED * best):
            self.kept = _Kept(score, copy.deepcopy(self.average.average.state_dict()))
            self.best = self.kept if better else self.best
        elif self.prefer == "last":
            self._failed(
                f"The network collapsed after {self.steps} steps (validation {score['rmse']:.4g}, was {best:.4g})"
            )
        return score

    def finish(self) -> None:
        """Validate what came after the last validation."""
        if self.losses and not self.failed:
            self.check()

    def result(self) -> Trained:
        """Return the network that is kept, or the last average without validation."""
        if self.steps == 0:
            raise TrainingError("Training ended before its first step; give it a larger budget.")
        network = self.average.average
        if self.kept.state is not None:
            network.load_state_dict(self.kept.state)
        elif self.validate is None:
            self.recalibrate()
        return Trained(network, self.kept.score, self.steps, self.history)


@dataclass(frozen=True)
class _Kept:
    """Weights that were validated, and their score."""

    score: dict[str, float] = field(default_factory=dict)
    state: dict[str, Any] | None = None
