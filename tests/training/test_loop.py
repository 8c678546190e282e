"""The loop: same seed same weights, budgets, early stopping, Ctrl-C, divergence, history."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from torch import nn

import xsuperres as xsr
from xsuperres.config import OptimizationConfig
from xsuperres.errors import TrainingError, XSuperResWarning
from xsuperres.samples.readers import Position
from xsuperres.testing import toy_field
from xsuperres.training.budget import learning_rate
from xsuperres.training.loop import Loop

TINY = {"width": 5, "depth": 1, "head_width": 4}


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def wall_seconds(self) -> float:
        return self.wall

    def cpu_seconds(self) -> float:
        return self.cpu


class Point(nn.Module):
    """The smallest network: one number."""

    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.zeros(()))


class Ticket:
    """A batch that goes anywhere."""

    def to(self, device):
        return self


class Tickets:
    """A reader of nothing."""

    steps_per_epoch = 5

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def batches(self, epoch: int):
        self.epochs.append(epoch)
        for _ in range(self.steps_per_epoch):
            yield Ticket()

    def stream(self, position: Position):
        for epoch in itertools.count(position.epoch):
            for number, ticket in enumerate(self.batches(epoch)):
                yield ticket, Position(epoch, number + 1)


class Run:
    """One scripted training: the network's number is the count of steps, its average follows at once.

    It is its own step.
    """

    def __init__(self, *, scores=None, losses=None, on_step=None, clock=None, **config) -> None:
        self.network, self.reader, self.clock = Point(), Tickets(), clock or Clock()
        self.rates: list[float] = []
        self.validated: list[float] = []
        self.scores = None if scores is None else iter(scores)
        self.losses, self.on_step = losses, on_step
        self.config = OptimizationConfig(averaging=0.0, **config)

    def __call__(self, batch, rate, share):
        self.rates.append(rate)
        if self.on_step is not None:
            self.on_step(len(self.rates))
        with torch.no_grad():
            self.network.at += 1
        return {"loss": torch.tensor(1.0 if self.losses is None else self.losses(len(self.rates)))}

    def validate(self, network):
        self.validated.append(float(network.at))
        score = next(self.scores)
        if isinstance(score, BaseException):
            raise score
        return {"rmse": score, "ratio_to_bicubic": score / 4, "ratio_to_linear": score / 2}

    def train(self):
        validate = None if self.scores is None else self.validate
        try:
            loop = Loop(
                self.network,
                self.reader,
                self,
                validate,
                self.config,
                keep="best",
                clock=self.clock,
                device=torch.device("cpu"),
            )
            loop.run(progress=False)
            return loop.result()
        except KeyboardInterrupt:  # it would end the whole test run
            pytest.fail("Ctrl-C came through, and all that was trained is lost")


def same_lengths(history) -> bool:
    return len({len(values) for values in history.values()}) == 1


# budgets


def test_a_budget_of_steps():
    run = Run(max_steps=12)
    trained = run.train()
    assert trained.steps == 12 and float(trained.network.at) == 12
    assert run.reader.epochs == [0, 1, 2], "epoch after epoch, each of its own"


def test_a_budget_of_epochs():
    run = Run(max_epochs=3)
    assert run.train().steps == 15
    assert run.reader.epochs[:3] == [0, 1, 2]


@pytest.mark.parametrize(("kind", "name"), [("wall", "max_seconds"), ("cpu", "max_cpu_seconds")])
def test_a_budget_of_seconds(kind, name):
    clock = Clock()

    def tick(step):
        setattr(clock, kind, getattr(clock, kind) + 0.5)

    run = Run(clock=clock, on_step=tick, **{name: 10.0})
    assert run.train().steps == 20
    assert getattr(clock, kind) == 10.0


def test_seconds_of_validation_are_set_aside():
    """Each validation takes 1 of 20 seconds: the last one must still fit."""
    clock = Clock()

    def tick(step):
        clock.cpu += 0.5

    run = Run(clock=clock, on_step=tick, scores=[3.0] * 100, max_cpu_seconds=20.0, validations=4)
    validate = run.validate

    def slow(network):
        clock.cpu += 1.0
        return validate(network)

    run.validate = slow
    trained = run.train()
    assert 17.0 <= clock.cpu <= 20.5
    assert trained.steps > 20


def test_a_budget_used_up_before_the_first_step_says_so():
    clock = Clock()
    run = Run(clock=clock, max_seconds=1.0)
    clock.wall = 5.0
    batches = run.reader.batches

    def late(epoch):
        clock.wall += 1.0
        return batches(epoch)

    run.reader.batches = late
    with pytest.raises(TrainingError, match="larger budget"):
        run.train()


# the schedule


def test_the_rates_of_a_whole_training():
    run = Run(max_steps=200, learning_rate=1e-2)
    run.train()
    np.testing.assert_allclose(run.rates, [learning_rate(run.config, step / 200) for step in range(200)])
    assert max(run.rates) == pytest.approx(1e-2, rel=0.01) and run.rates.index(max(run.rates)) in range(9, 13)
    assert run.rates[-1] < 1e-5 < run.rates[0] < 1e-3


# validation and early stopping


@pytest.mark.parametrize(("steps", "validations"), [(100, 20), (100, 7), (39, 20), (5, 20), (1000, 3)])
def test_validations_are_as_many_as_asked_evenly_spread(steps, validations):
    run = Run(scores=[1.0] * 1000, max_steps=steps, validations=validations)
    trained = run.train()
    at = np.asarray(trained.history["step"])
    expected = min(steps, validations)
    assert expected <= len(at) <= 1.2 * expected + 1
    assert at[-1] == steps, "the last weights are validated"
    assert np.diff(at).max(initial=1) <= 2 * steps / expected


def test_the_best_weights_are_restored():
    run = Run(scores=[3.0, 1.0, 2.0, 5.0], max_steps=8, validations=4)
    trained = run.train()
    assert float(trained.network.at) == 4.0
    assert trained.score == {"rmse": 1.0, "ratio_to_bicubic": 0.25, "ratio_to_linear": 0.5}
    assert trained.steps == 8, "the steps that were made, not those of the best"
    assert trained.history["rmse"] == [3.0, 1.0, 2.0, 5.0]
    assert not trained.network.training


def test_the_first_of_equals_is_kept():
    assert float(Run(scores=[1.0, 1.0, 1.0], max_steps=6, validations=3).train().network.at) == 2.0


def test_patience_ends_training():
    run = Run(scores=[3.0, 2.0, 2.5, 2.5, 2.5, 0.1], max_steps=60, validations=6, patience=3)
    trained = run.train()
    assert trained.steps == 50 and trained.score["rmse"] == 2.0
    assert float(trained.network.at) == 20.0
    assert len(trained.history["step"]) == 5


def test_patience_is_counted_anew_after_each_improvement():
    scores = [3.0, 3.1, 2.0, 2.1, 1.0, 1.1, 0.5, 0.6]
    assert Run(scores=scores, max_steps=80, validations=8, patience=2).train().steps == 80


def test_a_score_that_is_nan_is_never_the_best():
    """NaN compares as false: were it the first score, no later one would replace it."""
    run = Run(scores=[float("nan"), 2.0, 1.0, 3.0], max_steps=8, validations=4)
    trained = run.train()
    assert trained.score["rmse"] == 1.0 and float(trained.network.at) == 6.0


def test_without_validation_the_last_average_is_kept():
    trained = Run(max_steps=7).train()
    assert trained.score == {} and float(trained.network.at) == 7.0
    assert set(trained.history) == {"step", "seconds", "loss", "learning_rate"}


def test_rmse_is_all_that_a_score_needs():
    """So says the docstring of `Loop`."""
    run = Run(scores=[1.0], max_steps=2, validations=1)
    run.validate = lambda network: {"rmse": 1.0}
    assert run.train().score == {"rmse": 1.0}


# history


@pytest.mark.parametrize(("steps", "validations"), [(10, 5), (11, 5), (3, 20)])
def test_history_has_lists_of_one_length(steps, validations):
    clock = Clock()

    def tick(step):
        clock.wall += 2.0

    run = Run(
        scores=[1.0] * 50,
        losses=float,
        on_step=tick,
        clock=clock,
        max_steps=steps,
        validations=validations,
        learning_rate=1e-2,
    )
    history = run.train().history
    assert same_lengths(history)
    assert set(history) == {"step", "seconds", "loss", "learning_rate", "rmse", "ratio_to_bicubic", "ratio_to_linear"}
    assert history["seconds"] == [2.0 * step for step in history["step"]]
    edges = [0, *history["step"]]
    means = [np.mean(np.arange(a + 1, b + 1)) for a, b in itertools.pairwise(edges)]
    assert history["loss"] == pytest.approx(means), "the mean since the validation before"


def test_recorded_rates_are_those_of_the_last_step():
    run = Run(scores=[1.0] * 50, max_steps=11, validations=5, learning_rate=1e-2)
    history = run.train().history
    assert history["learning_rate"] == pytest.approx([run.rates[step - 1] for step in history["step"]])


# things that go wrong


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_at_the_start_is_an_error_with_advice(bad):
    run = Run(scores=[1.0] * 10, losses=lambda step: bad if step == 2 else 1.0, max_steps=10, validations=5)
    with pytest.raises(TrainingError, match="smaller learning_rate than 0.001"):
        run.train()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [3, 9, 10])
def test_a_loss_that_is_not_finite_later_returns_the_best_before(bad, at):
    run = Run(scores=[1.0, 2.0] * 5, losses=lambda step: bad if step == at else 1.0, max_steps=10, validations=5)
    with pytest.warns(XSuperResWarning, match=r"smaller learning_rate than 0.001.*The best model before"):
        trained = run.train()
    assert trained.steps == 2 * -(-at // 2) and trained.score["rmse"] == 1.0 and float(trained.network.at) == 2.0
    assert same_lengths(trained.history) and np.isfinite(trained.history["loss"]).all()


def test_ctrl_c_in_a_step_returns_the_best_so_far():
    def interrupt(step):
        if step == 7:
            raise KeyboardInterrupt

    run = Run(scores=[3.0, 1.0, 2.0, 9.0], on_step=interrupt, max_steps=20, validations=10)
    with pytest.warns(XSuperResWarning, match="interrupted after 6 steps"):
        trained = run.train()
    assert trained.steps == 6 and float(trained.network.at) == 4.0 and trained.score["rmse"] == 1.0
    assert same_lengths(trained.history)


def test_ctrl_c_in_a_step_validates_what_came_after_the_last_validation():
    def interrupt(step):
        if step == 8:
            raise KeyboardInterrupt

    run = Run(scores=[3.0, 2.0, 1.5, 1.0], on_step=interrupt, max_steps=20, validations=10, learning_rate=1e-2)
    with pytest.warns(XSuperResWarning):
        trained = run.train()
    assert float(trained.network.at) == 7.0 and trained.score["rmse"] == 1.0
    assert trained.history["step"] == [2, 4, 6, 7]
    assert trained.history["learning_rate"][-1] > 1e-3, "it was not at the end of the schedule"


def test_ctrl_c_in_a_validation_returns_the_best_so_far():
    run = Run(scores=[3.0, 1.0, KeyboardInterrupt(), 0.5], max_steps=20, validations=10)
    with pytest.warns(XSuperResWarning, match="interrupted after 6 steps"):
        trained = run.train()
    assert trained.score["rmse"] == 1.0 and float(trained.network.at) == 4.0
    assert same_lengths(trained.history)


def test_ctrl_c_in_the_last_validation_returns_the_best_so_far():
    run = Run(scores=[1.0, KeyboardInterrupt()], max_steps=5, validations=2)
    with pytest.warns(XSuperResWarning, match="interrupted after 5 steps"):
        trained = run.train()
    assert trained.score["rmse"] == 1.0 and float(trained.network.at) < 5.0


def test_ctrl_c_in_a_validation_of_what_patience_left_over():
    """Patience ends training between two validations of the schedule; Ctrl-C comes once more while it returns."""
    run = Run(scores=[1.0, 2.0, KeyboardInterrupt()], max_steps=40, validations=20, patience=1)
    trained = run.train()
    assert trained.score["rmse"] == 1.0 and trained.steps == 4


def test_ctrl_c_before_any_validation_returns_the_average():
    run = Run(scores=[KeyboardInterrupt()], max_steps=20, validations=10)
    with pytest.warns(XSuperResWarning, match="interrupted after 2 steps"):
        trained = run.train()
    assert float(trained.network.at) == 2.0


def test_an_error_while_reading_is_not_swallowed():
    run = Run(max_steps=20)

    def broken(epoch):
        yield Ticket()
        raise OSError("the disk is gone")

    run.reader.batches = broken
    with pytest.raises(OSError, match="the disk is gone"):
        run.train()


# the whole, through `fit`


@pytest.fixture(scope="module")
def fine():
    return toy_field(time=6, y=12, x=16)


def fit(da, *, seed=0, **optimization):
    return da.sr.fit(
        2,
        network=TINY,
        upsampling="subpixel",
        sampling={"batch_size": 2, "patch_size": 4},
        optimization={"validations": 3} | optimization,
        seed=seed,
        activate=False,
        progress=False,
    )


def weights(model) -> dict[str, torch.Tensor]:
    return model.network.state_dict()


def equal(first, second) -> bool:
    return all(torch.equal(value, weights(second)[name]) for name, value in weights(first).items())


@pytest.mark.parametrize("budget", [{"max_steps": 9}, {"max_epochs": 2}])
def test_the_same_seed_gives_the_same_weights_bit_for_bit(fine, budget):
    first = fit(fine, **budget)
    torch.manual_seed(99)
    torch.rand(7)
    np.random.default_rng().normal(size=3)
    second = fit(fine, **budget)
    assert equal(first, second)
    assert first.training.history["loss"] == second.training.history["loss"]
    assert first.training.validation == second.training.validation
    other = fit(fine, seed=1, **budget)
    assert not equal(first, other)
    assert other.training.seed == 1


def test_training_leaves_all_random_numbers_alone(fine):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    threads, default = torch.get_num_threads(), torch.get_default_dtype()
    fit(fine, max_steps=3)
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert before[2] == random.getstate()
    assert (threads, default) == (torch.get_num_threads(), torch.get_default_dtype())
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_history_is_kept_in_the_model_and_its_file(fine, tmp_path):
    model = fit(fine, max_steps=9)
    history = model.history
    assert history.step.values.tolist() == [3, 6, 9]
    assert set(history.data_vars) >= {"loss", "learning_rate", "rmse", "ratio_to_bicubic"}
    assert float(history.rmse.min()) == model.training.validation["rmse"]
    assert model.training.steps == 9
    model.save(tmp_path / "model.safetensors")
    again = xsr.load_model(tmp_path / "model.safetensors").history
    assert again.identical(history)


def test_a_diverging_fit_raises_and_activates_nothing(fine):
    xsr.deactivate()
    with pytest.raises(TrainingError, match="learning_rate"):
        fine.sr.fit(2, network=TINY, optimization={"max_steps": 6, "learning_rate": 1e30}, progress=False)
    assert xsr.active_models() == {}


def test_ctrl_c_in_fit_gives_a_model_that_downscales(fine, monkeypatch):
    from xsuperres.training.supervised import SupervisedStep

    true_call, calls = SupervisedStep.__call__, []

    def interrupted(self, batch, rate, share):
        calls.append(rate)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return true_call(self, batch, rate, share)

    monkeypatch.setattr(SupervisedStep, "__call__", interrupted)
    with pytest.warns(XSuperResWarning, match="interrupted after 4 steps"):
        model = fit(fine, max_steps=50)
    assert model.training.steps == 4
    assert np.isfinite(fine.sr.coarsen(2).sr.downscale(model)).all()


def test_the_model_is_the_average_not_the_last_step(fine):
    """A large step at the end moves an average less than the weights."""
    quick, slow = (fit(fine, max_steps=10, averaging=decay, learning_rate=1e-2) for decay in (0.0, 0.9))
    assert not equal(quick, slow)


def test_the_model_is_in_evaluation_mode_on_the_cpu(fine):
    network = fit(fine, max_steps=2).network
    assert not network.training
    assert {p.device.type for p in network.parameters()} == {"cpu"}
