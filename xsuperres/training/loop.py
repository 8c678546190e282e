"""The training loop: steps, moving average, validation, early stopping, history.

Tensors only; what a step is, and how a network is validated, is handed in. All that changes from step to step is in
`Loop.state`: a loop made anew from the same parts and restored goes on to the same bits.
"""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from xsuperres.config import OptimizationConfig
from xsuperres.errors import TrainingError, XSuperResWarning
from xsuperres.nn.network import SuperResolution
from xsuperres.samples.readers import Batch, Position, Reader
from xsuperres.training.averaging import WeightAverage, estimate_statistics
from xsuperres.training.budget import Budget, Clock, learning_rate
from xsuperres.training.state import State, copied, random_state, restore_random_state

__all__ = ["Keep", "Loop", "Step", "Trained", "Validate"]

logger = logging.getLogger(__name__)
_CONSTANT = 1e-3  # standard deviation of what a network adds to the skip, in units of the skip's error
_COLLAPSED = 1.5  # times the best validation score: a network that lost its skill
Validate = Callable[[SuperResolution], dict[str, float]]
Keep = Literal["best", "last"]


class Step(Protocol):
    """One optimizer step with a learning rate at a share of the budget; returns losses by name, "loss" among them.

    Its `state` holds weights and moments of all that it trains, the network among them.
    """

    def __call__(self, batch: Batch, rate: float, share: float) -> dict[str, Tensor]:
        """Take the step; return the losses before it, scalars."""

    def state(self) -> State:
        """Return what changes from step to step."""

    def restore(self, state: State) -> None:
        """Go on from a `state`."""


@dataclass
class Trained:
    """What training gave: the network, its validation score, the number of steps, the history."""

    network: SuperResolution
    score: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    history: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Snapshot:
    """Averaged weights that were validated, and their score; None before the first validation."""

    score: dict[str, float] = field(default_factory=dict)
    weights: dict[str, Tensor] | None = None

    def state(self) -> State:
        return {"score": dict(self.score), "weights": None if self.weights is None else dict(self.weights)}


class Loop:
    """The training of a network until its budget is used up, patience is lost, or Ctrl-C.

    Parameters
    ----------
    network : SuperResolution
        Trained in place by `step`.
    reader : Reader
        Of the training samples.
    step : Step
        Takes one batch.
    validate : callable or None
        Returns a score with the key ``rmse``, smaller is better. None keeps the last average.
    config : OptimizationConfig
        Budget, schedule, averaging, validations, patience.
    keep : {"best", "last"}
        Which average is the result: that with the best score; or the last one, unless the network collapsed.
    clock : Clock
        Started at the beginning of `fit`.
    """

    def __init__(
        self,
        network: SuperResolution,
        reader: Reader,
        step: Step,
        validate: Validate | None,
        config: OptimizationConfig,
        *,
        keep: Keep,
        clock: Clock,
        device: torch.device,
    ) -> None:
        self.network, self.reader, self.step, self.validate = network, reader, step, validate
        self.config, self.keep, self.device = config, keep, device
        self.budget = Budget(config, reader.steps_per_epoch, clock)
        self.average = WeightAverage(network, config.averaging)
        self.position = Position()
        self.steps, self.mark, self.stale, self.rate = 0, 0, 0, 0.0
        self.losses: dict[str, list[Tensor]] = {}  # since the last validation
        self.best = self.kept = _Snapshot()
        self.history: dict[str, list[float]] = {}
        self.failed = False

    def run(self, *, steps: int | None = None, progress: bool = True) -> None:
        """Train to the end, or for so many `steps` more."""
        bar = tqdm(
            total=100,
            disable=not progress,
            desc="fit",
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}{postfix}",
        )
        self.network.train()
        try:
            if self._steps(math.inf if steps is None else self.steps + steps, bar):
                self._validate_rest()
        except KeyboardInterrupt:
            warnings.warn(
                f"Training was interrupted after {self.steps} steps; the best model so far is returned.",
                XSuperResWarning,
                stacklevel=3,
            )
            with contextlib.suppress(KeyboardInterrupt):
                self._validate_rest()
        finally:
            bar.close()

    def result(self) -> Trained:
        """Return the average that is kept, or the last one without validation."""
        if self.steps == 0:
            raise TrainingError("Training ended before its first step; give it a larger budget.")
        network = self.average.average
        if self.kept.weights is not None:
            network.load_state_dict(self.kept.weights)
        elif self.validate is None:
            estimate_statistics(network, self.reader, self.device)
        return Trained(network, self.kept.score, self.steps, self.history)

    def state(self) -> State:
        """Return all that the rest of the training depends on."""
        return {
            "step": self.step.state(),
            "average": self.average.state(),
            "budget": self.budget.state(),
            "position": {"epoch": self.position.epoch, "batch": self.position.batch},
            "counts": {"steps": self.steps, "mark": self.mark, "stale": self.stale},
            "rate": self.rate,
            "failed": self.failed,
            "losses": copied({name: torch.stack(losses) for name, losses in self.losses.items()}),
            "best": self.best.state(),
            "kept": None if self.kept is self.best else self.kept.state(),
            "history": {name: list(values) for name, values in self.history.items()},
            "random": random_state(self.device),
        }

    def restore(self, state: State) -> None:
        """Go on from a `state`."""
        self.step.restore(state["step"])
        self.average.restore(state["average"])
        self.budget.restore(state["budget"])
        self.position = Position(**state["position"])
        self.steps, self.mark, self.stale = (state["counts"][name] for name in ("steps", "mark", "stale"))
        self.rate, self.failed = state["rate"], state["failed"]
        self.losses = {name: list(losses.to(self.device)) for name, losses in state["losses"].items()}
        self.best = _Snapshot(**state["best"])
        self.kept = self.best if state["kept"] is None else _Snapshot(**state["kept"])
        self.history = {name: list(values) for name, values in state["history"].items()}
        restore_random_state(state["random"], self.device)

    def _steps(self, limit: float, bar: tqdm) -> bool:
        """Take steps until training has ended, which is True, or `limit` are taken."""
        for batch, following in self.reader.stream(self.position):
            share = self.budget.progress(self.steps)
            if self._finished(share):
                bar.update(100 - bar.n)
                return True
            rate = learning_rate(self.config, share)
            for name, loss in self.step(batch.to(self.device), rate, share).items():
                self.losses.setdefault(name, []).append(loss)
            self.steps, self.rate, self.position = self.steps + 1, rate, following
            self.average.update()
            bar.update(math.floor(100 * share) - bar.n)
            if self._due(share):
                bar.set_postfix_str(self._check())
            if self.steps >= limit:
                break
        return False

    def _due(self, share: float) -> bool:
        """Return whether a validation is due: evenly over the budget, the last one at its end."""
        wanted, limit = self.config.validations, self.budget.max_steps
        mark = self.steps * wanted // limit if limit and not self.budget.started else int(share * wanted)
        passed, self.mark = mark > self.mark, mark
        return passed

    def _finished(self, share: float) -> bool:
        patient = self.config.patience is None or self.stale < self.config.patience
        return share >= 1.0 or not patient or self.failed

    def _validate_rest(self) -> None:
        """Validate what came after the last validation."""
        if self.losses and not self.failed:
            self._check()

    def _check(self) -> str:
        """Validate the average, keep it if it is to be kept, and return a line for the progress bar."""
        means = {name: float(torch.stack(losses).mean()) for name, losses in self.losses.items()}
        self.losses.clear()
        if not all(math.isfinite(mean) for mean in means.values()):
            became = ", ".join(f"{name} {mean:g}" for name, mean in means.items())
            return self._fail(f"The loss became {became} after {self.steps} steps")
        before = [detail for detail in self.history.get("detail", ()) if math.isfinite(detail)]  # NaN in a warm-up
        if means.get("detail", 1.0) < _CONSTANT < max(before, default=0.0):
            return self._fail(f"The network's output became constant after {self.steps} steps")
        entry = {"step": self.steps, "seconds": self.budget.clock.wall_seconds(), **means, "learning_rate": self.rate}
        line = f"loss {means['loss']:.4f}"
        if self.validate is not None:
            score = self._score(self.validate)
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

    def _fail(self, what: str) -> str:
        """Stop; what was good before is the result, if there is anything."""
        rate = self.config.learning_rate
        advice = f"{what}; use a smaller learning_rate than {rate} or check the data for extreme values."
        if self.best.weights is None:
            raise TrainingError(advice)
        warnings.warn(f"{advice} The best model before that is returned.", XSuperResWarning, stacklevel=5)
        self.failed, self.kept = True, self.best
        return what

    def _score(self, validate: Validate) -> dict[str, float]:
        before = self.budget.clock.cpu_seconds()
        estimate_statistics(self.average.average, self.reader, self.device)
        score = validate(self.average.average)
        self.budget.reserve = 1.3 * (self.budget.clock.cpu_seconds() - before)
        best = self.best.score.get("rmse", math.inf)
        better = score["rmse"] < best
        self.stale = 0 if better else self.stale + 1
        if better or (self.keep == "last" and score["rmse"] < _COLLAPSED * best):
            self.kept = _Snapshot(score, copied(self.average.average.state_dict()))
            self.best = self.kept if better else self.best
        elif self.keep == "last":
            self._fail(
                f"The network collapsed after {self.steps} steps: validation {score['rmse']:.4g}, was {best:.4g}"
            )
        return score
