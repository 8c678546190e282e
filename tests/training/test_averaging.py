"""The moving average of weights against its recursion in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from xsuperres.training.averaging import WeightAverage


class Counting(nn.Module):
    """Floating parameters and buffers, and an integer buffer, as batch norm has."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 2))
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("count", torch.tensor(0))


def moved(network: Counting, step: int) -> np.ndarray:
    """Give the network new values; return those of its weight."""
    values = np.random.default_rng(step).normal(size=(3, 2)).astype(np.float32)
    with torch.no_grad():
        network.weight.copy_(torch.from_numpy(values))
        network.mean.copy_(torch.from_numpy(values[0]))
        network.count.fill_(step)
    return values


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.98, 1.0])
def test_the_average_is_the_recursion(decay):
    network = Counting()
    average = WeightAverage(network, decay)
    expected = np.zeros((3, 2))
    for step in range(1, 200):
        values = moved(network, step)
        average.update()
        past = min(decay, (1 + step) / (10 + step))
        expected = past * expected + (1 - past) * values
        np.testing.assert_allclose(average.average.weight, expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(average.average.mean, expected[0], rtol=0, atol=1e-5)
        assert int(average.average.count) == step, "integers are copied, not averaged"


def test_the_start_is_forgotten_early():
    """After 20 steps of a constant network little of the start is left, although 0.999^20 = 0.98."""
    network = Counting()
    average = WeightAverage(network, 0.999)
    with torch.no_grad():
        network.weight.fill_(1.0)
    for _ in range(20):
        average.update()
    assert average.average.weight.min() > 0.99


def test_the_average_is_apart_from_the_network():
    network = Counting()
    average = WeightAverage(network, 0.9)
    assert not average.average.training and network.training
    assert not any(p.requires_grad for p in average.average.parameters())
    assert all(p.requires_grad for p in network.parameters())
    before = moved(network, 1)
    average.update()
    np.testing.assert_array_equal(network.weight.detach(), before)
    assert average.average.weight.data_ptr() != network.weight.data_ptr()


def test_two_updates_with_the_same_weights_stay(make_model):
    """Fixed point: the average of a network that does not move is that network."""
    network = make_model().model.network
    average = WeightAverage(network, 0.98)
    for _ in range(5):
        average.update()
    for (name, a), b in zip(average.average.state_dict().items(), network.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, msg=name)
