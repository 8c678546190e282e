"""Budgets and the learning rate, with a clock that is set by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from xsuperres.config import OptimizationConfig
from xsuperres.errors import ConfigError
from xsuperres.training.budget import Budget, Clock, learning_rate


class HandClock:
    """Seconds that pass when told."""

    def __init__(self, wall: float = 0.0, cpu: float = 0.0) -> None:
        self.wall, self.cpu = wall, cpu

    def wall_seconds(self) -> float:
        return self.wall

    def cpu_seconds(self) -> float:
        return self.cpu


def budget(clock: HandClock | None = None, *, per_epoch: int = 10, **limits) -> Budget:
    return Budget(OptimizationConfig(**limits), per_epoch, clock or HandClock())


def test_steps():
    used = budget(max_steps=40)
    assert [used.progress(step) for step in (0, 10, 20, 40, 50)] == [0.0, 0.25, 0.5, 1.0, 1.0]


def test_epochs_are_steps():
    assert budget(max_epochs=4, per_epoch=7).max_steps == 28
    assert budget(max_epochs=4, max_steps=9).max_steps == 9
    assert budget(max_epochs=4, max_steps=90).max_steps == 40


def test_without_limits_there_is_a_default():
    used = budget()
    assert used.max_steps == Budget.default_steps
    assert used.progress(Budget.default_steps) == 1.0 > used.progress(Budget.default_steps - 1)


@pytest.mark.parametrize("kind", ["wall", "cpu"])
def test_seconds_are_those_of_the_whole_of_fit(kind):
    """Preparing took 20 of 100 seconds, 1 is kept in reserve; 79 are left for training."""
    name = {"wall": "max_seconds", "cpu": "max_cpu_seconds"}[kind]
    clock = HandClock(**{kind: 20.0})
    used = budget(clock, **{name: 100.0})
    assert used.max_steps is None, "the default number of steps is for no limit at all"
    assert used.progress(10**6) == 0.0
    shares = []
    for seconds in (40.0, 60.0, 98.0, 99.0, 130.0):
        setattr(clock, kind, seconds)
        shares.append(used.progress(3))
    assert shares == pytest.approx([20 / 79, 40 / 79, 78 / 79, 1.0, 1.0])
    assert shares[2] < 1.0


def test_the_other_clock_does_not_matter():
    clock = HandClock()
    used = budget(clock, max_seconds=10.0)
    clock.cpu = 1000.0
    assert used.progress(0) == 0.0


def test_time_is_kept_for_what_follows_the_last_step():
    clock = HandClock(cpu=10.0)
    used = budget(clock, max_cpu_seconds=60.0)
    used.reserve = 10.0
    clock.cpu = 50.0
    assert used.progress(0) == 1.0
    clock.cpu = 49.0
    assert used.progress(0) < 1.0


def test_a_budget_that_preparing_used_up_is_used_up():
    clock = HandClock(wall=12.0)
    used = budget(clock, max_seconds=10.0)
    clock.wall += 1e-3
    assert used.progress(0) == 1.0


def test_the_first_limit_that_is_reached_ends_training():
    clock = HandClock()
    used = budget(clock, max_steps=100, max_seconds=10.0, max_cpu_seconds=20.0)
    clock.wall, clock.cpu = 5.0, 2.0
    assert used.progress(10) == pytest.approx(5 / 9.9)
    assert used.progress(80) == 0.8
    clock.cpu = 19.0
    assert used.progress(10) == pytest.approx(19 / 19.8)


def test_the_clock_counts_from_when_it_was_made():
    clock = Clock()
    assert 0 <= clock.wall_seconds() < 60 and 0 <= clock.cpu_seconds() < 60
    assert Clock(wall=clock.wall - 100.0).wall_seconds() >= 100.0


def test_the_learning_rate_warms_up_and_falls_to_zero():
    config = OptimizationConfig(learning_rate=2e-3)
    share = np.linspace(0, 1, 1001)
    rate = np.array([learning_rate(config, s) for s in share])
    peak = int(rate.argmax())
    assert 0.04 <= share[peak] <= 0.06, "warm-up takes 5 % of the budget"
    assert rate[peak] == pytest.approx(2e-3, rel=0.01) and rate.max() <= 2e-3
    assert (np.diff(rate[: peak + 1]) > 0).all() and (np.diff(rate[peak:]) < 0).all()
    assert 0 < rate[0] < 0.05 * 2e-3, "the first step is small, and none is of no length"
    assert rate[-1] == pytest.approx(0.0, abs=1e-12)
    after = share > 0.06
    np.testing.assert_allclose(rate[after], 1e-3 * (1 + np.cos(math.pi * share[after])), rtol=1e-12)


@pytest.mark.parametrize(
    "limits",
    [
        {"max_steps": 0},
        {"max_steps": 2.5},
        {"max_epochs": -1},
        {"max_seconds": 0.0},
        {"max_cpu_seconds": -3},
        {"max_steps": True},
        {"validations": 0},
        {"patience": 0},
        {"learning_rate": 0.0},
        {"averaging": 1.5},
        {"gradient_clip": float("nan")},
    ],
)
def test_limits_that_mean_nothing_are_refused(limits):
    with pytest.raises(ConfigError, match=next(iter(limits))):
        OptimizationConfig(**limits)
