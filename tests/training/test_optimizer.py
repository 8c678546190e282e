"""AdamW against torch's own, bit for bit, and what it does not import."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from xsuperres.training.optimizer import AdamW


def network() -> nn.Module:
    torch.manual_seed(0)
    convolutions = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 1, 3, bias=False))
    return convolutions.to(memory_format=torch.channels_last)


def gradients(module: nn.Module, step: int, *, without: int | None = None) -> None:
    """Give every parameter but one a gradient."""
    make = torch.Generator().manual_seed(step)
    for index, parameter in enumerate(module.parameters()):
        parameter.grad = None if index == without else torch.randn(parameter.shape, generator=make)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("without", [None, 1])
def test_it_is_torchs_bit_for_bit(weight_decay, without):
    """With a rate of its own each step, a parameter that has no gradient at first, and none at all."""
    ours, theirs = network(), network()
    one = AdamW(ours, weight_decay)
    other = torch.optim.AdamW(theirs.parameters(), lr=1e-3, weight_decay=weight_decay, fused=True)
    for step in range(12):
        rate = 1e-2 / (1 + step)
        for module in (ours, theirs):
            gradients(module, step, without=without if step % 3 else 0)
        one.step(rate)
        other.param_groups[0]["lr"] = rate
        other.step()
        for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, its, rtol=0, atol=0)


def test_one_step_against_the_formula():
    """m = 0.1 g, v = 0.001 g^2, both over 1 - beta: a step of the rate against the sign of g, after the decay."""
    module = nn.Linear(3, 2, bias=False)
    before = module.weight.detach().double().clone()
    module.weight.grad = torch.tensor([[1.0, -2.0, 0.5], [3.0, 1e-3, -4.0]])
    AdamW(module, 0.1).step(0.01)
    g = module.weight.grad.double()
    expected = before * (1 - 0.01 * 0.1) - 0.01 * g / (g.abs() + 1e-8)
    torch.testing.assert_close(module.weight.detach().double(), expected, rtol=0, atol=1e-7)


def test_gradients_are_forgotten_and_nothing_moves_without():
    module = network()
    optimizer = AdamW(module, 0.5)
    gradients(module, 0)
    optimizer.forget_gradients()
    before = [p.detach().clone() for p in module.parameters()]
    optimizer.step(1.0)
    for parameter, value in zip(module.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=0, atol=0)


def test_a_state_goes_on_to_the_same_bits_whatever_its_strides():
    whole, module = network(), network()
    one, first = AdamW(whole, 0.1), AdamW(module, 0.1)
    for step in range(9):
        gradients(whole, step)
        one.step(1e-2)
        if step < 4:
            gradients(module, step)
            first.step(1e-2)
    state = {name: {k: t.contiguous() for k, t in part.items()} for name, part in first.state().items()}
    weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    gradients(module, 99)
    first.step(1.0)  # a state is a copy
    other = network()
    other.load_state_dict(weights)
    second = AdamW(other, 0.1)
    second.restore(state)
    for step in range(4, 9):
        gradients(other, step)
        second.step(1e-2)
    for mine, its in zip(other.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=0, atol=0)


def test_training_does_not_import_torchs_compiler():
    """It is 850 modules, and takes longer than a short training."""
    code = """
import sys
import xsuperres as xsr
options = {"optimization": {"max_steps": 2, "validations": 1}, "sampling": {"batch_size": 2}, "progress": False}
xsr.testing.toy_field(time=4, y=8, x=8).sr.fit(2, activate=False, **options)
print("torch._dynamo" in sys.modules, "sympy" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]
