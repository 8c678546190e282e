"""How much of a training budget is used: steps, epochs, wall-clock or CPU seconds, whichever ends first."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xsuperres.config import OptimizationConfig

if TYPE_CHECKING:
    from xsuperres.training.state import State  # torch, whose import a clock must be able to time

__all__ = ["Budget", "Clock", "learning_rate"]


@dataclass(frozen=True)
class Clock:
    """Wall-clock and CPU seconds since it was made."""

    wall: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=time.process_time)

    @classmethod
    def after(cls, wall: float, cpu: float) -> Clock:
        """Return a clock that shows so many seconds now."""
        return cls(time.perf_counter() - wall, time.process_time() - cpu)

    def wall_seconds(self) -> float:
        """Seconds on the wall."""
        return time.perf_counter() - self.wall

    def cpu_seconds(self) -> float:
        """Seconds of this process, all threads."""
        return time.process_time() - self.cpu


_MARGIN = 0.01  # of a limit in seconds, for what cannot be foreseen


class Budget:
    """The share of the budget that is used, and when to stop.

    Parameters
    ----------
    config : OptimizationConfig
        The limits; without any, `default_steps`.
    steps_per_epoch : int
        Turns epochs into steps.
    clock : Clock
        Started at the beginning of `fit`, whose whole time the limits in seconds mean.
    """

    default_steps = 2000

    def __init__(self, config: OptimizationConfig, steps_per_epoch: int, clock: Clock) -> None:
        self.config, self.clock = config, clock
        limits = [config.max_steps, config.max_epochs and config.max_epochs * steps_per_epoch]
        given = [limit for limit in limits if limit is not None]
        timed = config.max_seconds is not None or config.max_cpu_seconds is not None
        self.max_steps = min(given) if given else (None if timed else self.default_steps)
        self.started = self._seconds_used()
        self.reserve = 0.0  # seconds kept for what follows the last step

    def state(self) -> State:
        """Return the seconds used so far, those at the start, and the reserve."""
        seconds = {"wall": self.clock.wall_seconds(), "cpu": self.clock.cpu_seconds()}
        return {"seconds": seconds, "started": [used for used, _ in self.started], "reserve": self.reserve}

    def restore(self, state: State) -> None:
        """Go on from a `state`: the seconds between are not counted."""
        self.clock = Clock.after(**state["seconds"])
        self.started = [(used, limit) for used, (_, limit) in zip(state["started"], self.started, strict=True)]
        self.reserve = state["reserve"]

    def _seconds_used(self) -> list[tuple[float, float]]:
        """Return (used, limit) for each limit in seconds."""
        pairs = [
            (self.clock.wall_seconds(), self.config.max_seconds),
            (self.clock.cpu_seconds(), self.config.max_cpu_seconds),
        ]
        return [(used, limit) for used, limit in pairs if limit is not None]

    def progress(self, step: int) -> float:
        """Return the share of the budget that is used after `step` steps, 0 to 1; 1 means stop."""
        shares = [step / self.max_steps] if self.max_steps else []
        for (used, limit), (before, _) in zip(self._seconds_used(), self.started, strict=True):
            margin = self.reserve + _MARGIN * limit
            room = max(limit - before - margin, 1e-9)
            shares.append((used - before) / room)
        return min(1.0, max(shares))


def learning_rate(config: OptimizationConfig, progress: float) -> float:
    """Return the learning rate: linear warm-up over the first 5 % of the budget, then a half cosine to 0."""
    warm = min(1.0, (progress + 1e-3) / 0.05)
    return config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * progress))
