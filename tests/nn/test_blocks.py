"""Blocks: sizes, what residual and dense blocks compute, and that a merge is a convolution of the concatenation."""

from __future__ import annotations

import pytest
import torch
from covering import covering
from torch.nn import functional as F

from xsuperres.config import NetworkConfig
from xsuperres.errors import UnknownNameError
from xsuperres.nn.blocks import Conv, DenseBlock, Merge, OutputConv, ResidualBlock
from xsuperres.nn.layers import ACTIVATIONS, activation


@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_convolutions_keep_the_size_and_see_zero_beyond_the_edge(size, reinitialise):
    conv = Conv(2, 3, size=size)
    reinitialise(conv)
    x = torch.randn(2, 2, 6, 8)
    reach = size // 2
    expected = F.conv2d(F.pad(x, (reach,) * 4), conv.conv.weight, conv.conv.bias)
    torch.testing.assert_close(conv(x), expected)
    assert conv(x).shape == (2, 3, 6, 8)


@pytest.mark.parametrize(
    ("size", "outputs", "plane", "batch"), covering([1, 3, 5], [1, 2, 3], [(6, 8), (1, 5), (2, 1)], [0, 1, 3])
)
def test_the_convolution_to_the_outputs_is_that_of_torch(size, outputs, plane, batch, reinitialise):
    conv = OutputConv(4, outputs, size=size)
    reinitialise(conv)
    x = torch.randn(batch, 4, *plane).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        torch.testing.assert_close(conv(x), Conv.forward(conv, x))


def test_the_convolution_to_the_outputs_takes_its_gradient_from_torch(reinitialise):
    conv = OutputConv(4, 1)
    reinitialise(conv)
    x = torch.randn(2, 4, 6, 7, requires_grad=True)
    assert torch.equal(conv(x), Conv.forward(conv, x))
    assert "Convolution" in type(conv(x).grad_fn).__name__


def test_the_convolution_to_the_outputs_is_more_exact_in_bfloat16(reinitialise):
    conv = OutputConv(16, 1)
    reinitialise(conv)
    x = torch.randn(2, 16, 32, 32).bfloat16()
    with torch.inference_mode():
        exact = Conv.forward(conv.double(), x.double())
        conv.float()
        with torch.autocast("cpu", torch.bfloat16):
            ours, torchs = ((way(x) - exact).std() for way in (conv, lambda x: Conv.forward(conv, x)))
    assert ours < 0.95 * torchs


@pytest.mark.parametrize("seconds", [1, 3])
@pytest.mark.parametrize("batch", [1, 2])
def test_merge_is_a_convolution_of_the_concatenation(seconds, batch, reinitialise):
    merge = Merge(2, seconds, 4)
    reinitialise(merge)
    x, fixed = torch.randn(2, 2, 6, 7), torch.randn(batch, seconds, 6, 7)
    joined = torch.cat([x, fixed.expand(2, -1, -1, -1)], dim=1)
    weight = torch.cat([merge.first.conv.weight, merge.second.conv.weight], dim=1)
    expected = F.conv2d(joined, weight, merge.first.conv.bias, padding=1)
    torch.testing.assert_close(merge(x, merge.fixed(fixed)), expected, rtol=1e-5, atol=1e-6)


def test_merge_without_seconds_is_a_plain_convolution(reinitialise):
    merge = Merge(2, 0, 4)
    reinitialise(merge)
    x = torch.randn(2, 2, 6, 7)
    assert merge.fixed(torch.randn(1, 3, 6, 7)) is None
    torch.testing.assert_close(merge(x, None), merge.first(x), rtol=0, atol=0)


def test_a_residual_block_without_weights_is_the_identity():
    block = ResidualBlock(NetworkConfig(width=3))
    for parameter in block.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.randn(1, 3, 5, 5)
    assert torch.equal(block(x), x)


def test_a_dense_block_passes_its_input_on(reinitialise):
    """With a transition that picks the concatenated input the block is the identity."""
    block = DenseBlock(NetworkConfig(width=3))
    reinitialise(block)
    weight = block.transition.module.weight
    with torch.no_grad():
        weight.copy_(torch.eye(3, 6)[..., None, None])
        block.transition.module.bias.zero_()
    x = torch.randn(1, 3, 5, 5)
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_activations_act_on_each_cell(name):
    act, x = activation(name), torch.linspace(-2, 2, 12).reshape(1, 2, 2, 3)
    whole = act(x.clone())  # it may write into its input
    assert torch.isfinite(whole).all()
    torch.testing.assert_close(whole[..., 1:, 1:], act(x[..., 1:, 1:].clone()))
    assert not torch.equal(whole, x)


def test_an_unknown_activation_lists_the_choices():
    with pytest.raises(UnknownNameError, match="Did you mean 'relu'"):
        activation("reluu")
