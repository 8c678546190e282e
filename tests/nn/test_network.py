"""The network's own work between its parts: what it is shown at the fine grid where cells are missing."""

from __future__ import annotations

import pytest
import torch

from xsuperres.config import NetworkConfig
from xsuperres.nn.network import NetworkSpec, build_network
from xsuperres.nn.resample import interpolate, interpolate_valid, repeat_cells

TINY = NetworkConfig(width=6, depth=1, head_width=4)


def pre_upsampling(**spec):
    settings = {"backbone": "conv", "upsampling": "interpolation", "scale": 2, "config": TINY}
    return build_network(NetworkSpec(**settings, **spec))


def halves(missing: slice) -> torch.Tensor:
    mask = torch.ones(1, 1, 12, 24)
    mask[..., missing] = 0
    return mask


def test_each_channel_is_interpolated_from_its_own_valid_cells():
    """Noise, a masked target, a complete one, the anomalies of both, and the mask."""
    network = pre_upsampling(inputs=5, outputs=2, masks=((0, 2),), noise=1)
    mask = halves(slice(0, 12))
    values = torch.randn(1, 5, 12, 24)  # with the noise before
    fine = network._interpolated(torch.cat([values, mask], dim=1))
    for channel in range(5):
        own = values[:, channel : channel + 1]
        expected = interpolate_valid(own, mask > 0.5, 2) if channel in (1, 3) else interpolate(own, 2)
        torch.testing.assert_close(fine[:, channel : channel + 1], expected, rtol=0, atol=0)
    torch.testing.assert_close(fine[:, 5:], repeat_cells(mask, 2), rtol=0, atol=0)


@pytest.mark.parametrize("upsampling", ["interpolation", "subpixel"])
def test_a_missing_predictor_does_not_blank_the_target(upsampling, reinitialise):
    """Far inside the land where the predictor is missing the target's value is still read."""
    network = build_network(
        NetworkSpec(backbone="conv", upsampling=upsampling, scale=2, inputs=3, masks=((1,),), config=TINY)
    )
    reinitialise(network)
    mask = halves(slice(0, 12))
    frames = torch.cat([torch.randn(1, 1, 12, 24), torch.randn(1, 1, 12, 24) * mask, mask], dim=1)
    other = frames.clone()
    other[:, 0, 6, 2] += 5
    assert bool(((network(other) - network(frames)).abs() > 1e-3).any())
    other = frames.clone()
    other[:, 1, 6, 2] += 5  # a missing cell
    if upsampling == "interpolation":
        torch.testing.assert_close(network(other), network(frames), rtol=0, atol=0)
