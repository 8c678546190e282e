"""The supervised step: where the loss starts, what it weighs, how far a step may go."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from xsuperres.config import NetworkConfig, OptimizationConfig
from xsuperres.errors import UnknownNameError
from xsuperres.nn.losses import LOSSES
from xsuperres.nn.network import Cells, NetworkSpec, build_network
from xsuperres.samples.readers import Batch

SCALE, GAIN = 2, 0.25


def network(**config):
    torch.manual_seed(0)
    tiny = NetworkConfig(width=4, depth=1, head_width=4, **config)
    return build_network(
        NetworkSpec(backbone="residual", upsampling="subpixel", scale=SCALE, inputs=2, statics=2, config=tiny)
    )


def make_batch(*, error: float = GAIN, seed: int = 0) -> Batch:
    """Return a batch whose target is its skip plus noise of size `error`."""
    make = torch.Generator().manual_seed(seed)
    fine = 3, 1, 12, 16

    def normal(*shape):
        return torch.randn(shape, generator=make)

    skip = normal(*fine)
    weight = torch.rand(fine, generator=make)
    cells = Cells(torch.arange(12)[None], torch.arange(16)[None])
    return Batch(normal(3, 2, 6, 8), normal(3, 2, 12, 16), skip, skip + error * normal(*fine), weight, cells)


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_the_first_loss_is_that_of_the_skip(make_step, loss):
    """A zero-initialised network: the loss is the skip's, in units of `gain`, weighted by the cells."""
    batch, config = make_batch(), OptimizationConfig(loss=loss)
    got = float(make_step(network(), GAIN, config)(batch, 1e-3))
    error = (batch.skip - batch.target).double().numpy() / GAIN
    size = np.abs(error)
    values = {"mse": size**2, "mae": size, "huber": np.where(size < 1, size**2 / 2, size - 0.5)}[loss]
    expected = np.average(values, weights=batch.weight.double().numpy())
    assert got == pytest.approx(expected, rel=1e-5)
    assert loss != "mse" or got == pytest.approx(1.0, rel=0.15)


def test_what_has_no_weight_has_no_influence(make_step):
    """Neither on the loss nor on the step: whatever is written where the target is missing."""
    batch = make_batch()
    batch.weight[:, :, 3:7, 5:9] = 0.0
    changed = replace(batch, target=batch.target.clone())
    changed.target[:, :, 3:7, 5:9] = 1e6
    results = []
    for given in (batch, changed):
        net = network()
        results.append((make_step(net, GAIN)(given, 1e-3), net.state_dict()))
    assert torch.equal(results[0][0], results[1][0])
    for name, value in results[0][1].items():
        assert torch.equal(value, results[1][1][name]), name


def test_a_batch_without_any_weight_does_nothing_but_decay(make_step):
    batch = make_batch()
    batch.weight.zero_()
    net = network()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    loss = make_step(net, GAIN, OptimizationConfig(weight_decay=0.0))(batch, 1e-3)
    assert float(loss) == 0.0
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("error", [GAIN, 1e6])
def test_the_gradient_is_clipped(make_step, error):
    net = network()
    config = OptimizationConfig(gradient_clip=0.01)
    step = make_step(net, GAIN, config)
    step(make_batch(error=error), 1e-3)
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in net.parameters() if p.grad is not None]))
    assert float(norm) == pytest.approx(0.01, rel=1e-3)


def test_a_small_gradient_is_left_alone(make_step):
    net = network()
    make_step(net, GAIN, OptimizationConfig(gradient_clip=1e6))(make_batch(), 1e-3)
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in net.parameters() if p.grad is not None]))
    assert 0 < float(norm) < 1e4
    other = network()
    make_step(other, GAIN, OptimizationConfig(gradient_clip=1e3))(make_batch(), 1e-3)
    for mine, theirs in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=0)


def test_the_rate_is_that_of_the_call(make_step):
    """AdamW's first step moves a weight by about the rate; 0 moves nothing."""
    for rate in (0.0, 1e-4, 1e-2):
        net = network()
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        make_step(net, GAIN, OptimizationConfig(weight_decay=0.0, gradient_clip=1e9))(make_batch(), rate)
        moved = max(float((p.detach() - before[name]).abs().max()) for name, p in net.named_parameters())
        assert moved == pytest.approx(rate, rel=0.01, abs=1e-12)


def test_weights_decay(make_step):
    net = network()
    config = OptimizationConfig(weight_decay=0.5)
    batch = make_batch()
    batch.weight.zero_()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    make_step(net, GAIN, config)(batch, 0.1)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * (1 - 0.1 * 0.5), msg=name)


def test_steps_lower_the_loss_and_leave_no_graph_behind(make_step):
    net, batch = network(), make_batch()
    step = make_step(net, GAIN)
    losses = [step(batch, 1e-2) for _ in range(30)]
    assert losses[-1] < 0.9 * losses[0]
    assert not any(loss.requires_grad for loss in losses)


def test_the_first_step_reaches_every_layer_after_two(make_step):
    """The head starts at zero: the layers below get a gradient from the second step on, and a finite one."""
    net = network()
    step = make_step(net, GAIN)
    step(make_batch(), 1e-2)
    step(make_batch(seed=1), 1e-2)
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_an_unknown_loss_lists_the_choices(make_step):
    with pytest.raises(UnknownNameError, match=", ".join(map(repr, sorted(LOSSES)))):
        make_step(network(), GAIN, OptimizationConfig(loss="rmse"))
