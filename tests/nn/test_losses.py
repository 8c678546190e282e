"""Losses against numpy: weights, missing cells, no weight at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xsuperres.errors import UnknownNameError
from xsuperres.nn.losses import LOSSES, weighted_mean

ERRORS = {
    "mse": lambda e: e**2,
    "mae": np.abs,
    "huber": lambda e: np.where(np.abs(e) <= 1, 0.5 * e**2, np.abs(e) - 0.5),
}
every = pytest.mark.parametrize("name", list(LOSSES))


def arrays(seed: int = 0, *, weight: tuple[int, ...] = (1, 1, 5, 6)):
    rng = np.random.default_rng(seed)
    return 2 * rng.normal(size=(3, 2, 5, 6)), 2 * rng.normal(size=(3, 2, 5, 6)), rng.random(weight)


def loss_of(name: str, *values: np.ndarray) -> float:
    return float(LOSSES.get(name)(*(torch.from_numpy(v) for v in values)))


def test_each_registered_loss_has_its_oracle():
    assert set(ERRORS) == set(LOSSES)


@every
@given(seed=st.integers(0, 10**6), weight=st.sampled_from([(1, 1, 5, 6), (3, 1, 5, 6), (3, 2, 5, 6), (1, 1, 5, 1)]))
def test_against_numpy(name, seed, weight):
    prediction, target, weights = arrays(seed, weight=weight)
    error = ERRORS[name](prediction - target)
    expected = np.average(error, weights=np.broadcast_to(weights, error.shape))
    assert loss_of(name, prediction, target, weights) == pytest.approx(expected, rel=1e-12)


@every
def test_only_ratios_of_weights_count(name):
    prediction, target, weights = arrays()
    assert loss_of(name, prediction, target, 17 * weights) == pytest.approx(
        loss_of(name, prediction, target, weights), rel=1e-12
    )


@every
def test_cells_without_weight_count_for_nothing(name):
    """Missing targets are filled and weigh 0: neither the loss nor a gradient knows their values."""
    prediction, target, _ = arrays()
    weights = np.random.default_rng(1).random(target.shape) * (np.arange(6) % 2)
    filled = np.where(weights > 0, target, 1e6)
    assert loss_of(name, prediction, filled, weights) == loss_of(name, prediction, target, weights)
    guess = torch.from_numpy(prediction).requires_grad_()
    LOSSES.get(name)(guess, torch.from_numpy(filled), torch.from_numpy(weights)).backward()
    assert (guess.grad.numpy()[weights == 0] == 0).all()
    assert (guess.grad.numpy()[weights > 0] != 0).all()


@every
def test_no_weight_at_all_is_zero_and_trains_nothing(name):
    prediction, target, weights = arrays()
    guess = torch.from_numpy(prediction).requires_grad_()
    loss = LOSSES.get(name)(guess, torch.from_numpy(target), torch.from_numpy(0 * weights))
    loss.backward()
    assert loss.item() == 0
    assert not guess.grad.any()


@every
def test_a_perfect_prediction_costs_nothing(name):
    _, target, weights = arrays()
    assert loss_of(name, target, target, weights) == 0


def test_weights_are_shared_out_over_batch_and_channels():
    """A weight of one plane is the same for every sample: it does not count once."""
    error = torch.ones(4, 2, 3, 3)
    assert float(weighted_mean(error, torch.full((1, 1, 3, 3), 0.2))) == pytest.approx(1.0)


def test_an_unknown_loss_lists_the_choices():
    with pytest.raises(UnknownNameError, match="Did you mean 'huber'"):
        LOSSES.get("hubert")
