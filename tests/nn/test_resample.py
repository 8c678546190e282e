"""Polyphase interpolation against float64 oracles, and what it has over `F.interpolate`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from xsuperres.errors import UnknownNameError
from xsuperres.nn.geometry import Interval
from xsuperres.nn.resample import (
    KERNELS,
    Interpolation,
    interpolate,
    interpolate_valid,
    phase_weights,
    radius,
    repeat_cells,
)

SCALES = [2, 3, 4, 5, 7]
methods = pytest.mark.parametrize("method", list(KERNELS))
smooth = pytest.mark.parametrize("method", ["bilinear", "bicubic"])
scales = pytest.mark.parametrize("scale", SCALES)


def keys(distance: np.ndarray) -> np.ndarray:
    """Return Keys' kernel, a = -1/2, as printed in the paper (equation 15)."""
    s = np.abs(distance)
    near = 1.5 * s**3 - 2.5 * s**2 + 1
    far = -0.5 * s**3 + 2.5 * s**2 - 4 * s + 2
    return np.where(s < 1, near, np.where(s < 2, far, 0.0))


def oracle(values: np.ndarray, scale: int, kernel) -> np.ndarray:
    """Interpolate the last axis point by point in float64, repeating the outermost cells."""
    n = values.shape[-1]
    out = np.empty((*values.shape[:-1], n * scale))
    for fine in range(n * scale):
        position = (fine + 0.5) / scale - 0.5
        cells = np.arange(int(np.floor(position)) - 2, int(np.floor(position)) + 4)
        weights = kernel(cells - position)
        out[..., fine] = (values[..., np.clip(cells, 0, n - 1)] * weights).sum(-1) / weights.sum()
    return out


def oracle_2d(values: np.ndarray, scale: int, kernel) -> np.ndarray:
    lines = oracle(values.astype(np.float64), scale, kernel)
    return np.swapaxes(oracle(np.swapaxes(lines, -1, -2), scale, kernel), -1, -2)


def field(*shape: int, dtype=torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@methods
@scales
def test_weights_sum_to_one_and_mirror(method, scale):
    weights = phase_weights(method, scale)
    assert weights.shape == (scale, 2 * radius(method) + 1)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(scale, dtype=torch.float64), rtol=0, atol=1e-15)
    torch.testing.assert_close(weights, weights.flip(0, 1), rtol=0, atol=1e-15)


@methods
@scales
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constants_stay(method, scale, dtype):
    constant = torch.full((2, 1, 4, 5), 287.3, dtype=dtype)
    got = interpolate(constant, scale, method)
    assert got.dtype == dtype
    assert got.shape == (2, 1, 4 * scale, 5 * scale)
    torch.testing.assert_close(got, constant.new_full(got.shape, 287.3), rtol=4 * torch.finfo(dtype).eps, atol=0)


@smooth
@scales
def test_linear_fields_are_exact_inside(method, scale):
    y, x = torch.arange(8, dtype=torch.float64)[:, None], torch.arange(9, dtype=torch.float64)[None]
    got = interpolate((3 * y - 2 * x + 5)[None, None], scale, method)[0, 0]
    fy, fx = ((torch.arange(n * scale, dtype=torch.float64) + 0.5) / scale - 0.5 for n in (8, 9))
    inner = slice(2 * scale, -2 * scale)
    torch.testing.assert_close(
        got[inner, inner], (3 * fy[:, None] - 2 * fx[None] + 5)[inner, inner], rtol=0, atol=1e-12
    )


@scales
def test_bicubic_is_third_order(scale):
    """Keys' kernel with a = -1/2 reproduces parabolas inside; with another a it would not."""
    x = torch.arange(9, dtype=torch.float64)
    got = interpolate((x**2).expand(1, 1, 9, 9), scale, "bicubic")[0, 0, 4 * scale]
    fine = (torch.arange(9 * scale, dtype=torch.float64) + 0.5) / scale - 0.5
    inner = slice(2 * scale, -2 * scale)
    torch.testing.assert_close(got[inner], fine[inner] ** 2, rtol=0, atol=1e-12)


@scales
def test_bicubic_against_the_paper(scale):
    values = field(2, 3, 7, 6)
    got = interpolate(values, scale, "bicubic").numpy()
    np.testing.assert_allclose(got, oracle_2d(values.numpy(), scale, keys), rtol=0, atol=1e-13)


@scales
def test_bilinear_against_an_oracle(scale):
    values = field(1, 1, 5, 8)
    got = interpolate(values, scale, "bilinear").numpy()
    expected = oracle_2d(values.numpy(), scale, lambda d: np.maximum(0, 1 - np.abs(d)))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("scale", [2, 4, 6])
def test_geometry_is_that_of_align_corners_false(scale):
    """The geometry of PixelShuffle too: a phase belongs to its own coarse cell."""
    values = field(1, 2, 6, 7)
    expected = F.interpolate(values, scale_factor=scale, mode="bilinear", align_corners=False)
    torch.testing.assert_close(interpolate(values, scale, "bilinear"), expected, rtol=0, atol=1e-12)
    shuffled = F.pixel_shuffle(values[:, :1].expand(-1, scale**2, -1, -1), scale)
    torch.testing.assert_close(interpolate(values[:, :1], scale, "nearest"), shuffled, rtol=0, atol=0)
    torch.testing.assert_close(repeat_cells(values[:, :1], scale), shuffled, rtol=0, atol=0)


def drift_of(refine, x: int = 1440, scale: int = 3) -> float:
    """Return the largest difference between a tile in the last quarter, halo cut off, and the whole pass."""
    values = field(1, 1, 4, x, dtype=torch.float32)
    start, stop, halo = 5 * x // 6, 5 * x // 6 + 40, 4
    whole = refine(values)[..., start * scale : stop * scale]
    tile = refine(values[..., start - halo : stop + halo])[..., halo * scale : -halo * scale]
    return float((tile - whole).abs().max())


@smooth
def test_a_tile_in_the_last_quarter_is_the_whole(method):
    """Positions depend on the phase alone, so float32 does not drift along 1440 columns."""
    assert drift_of(lambda values: interpolate(values, 3, method)) <= 2e-6


def test_what_the_tile_test_guards_against():
    """Control: `F.interpolate(scale_factor)` takes positions from the absolute index in float32, and drifts."""
    assert drift_of(lambda values: F.interpolate(values, scale_factor=3, mode="bicubic")) > 2e-5


@methods
@scales
def test_everything_valid_is_plain_interpolation(method, scale):
    values = field(2, 2, 6, 7, dtype=torch.float32)
    valid = torch.ones_like(values, dtype=torch.bool)
    got = interpolate_valid(values, valid, scale, method)
    torch.testing.assert_close(got, interpolate(values, scale, method), rtol=0, atol=0)


def random_mask(seed: int, *shape: int, share: float = 0.3) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > share


@methods
@given(st.integers(0, 10**6), st.sampled_from(SCALES), st.sampled_from([0.05, 0.5, 0.95]))
def test_values_under_the_mask_are_ignored(method, seed, scale, share):
    valid = random_mask(seed, 1, 1, 6, 7, share=share)
    values = field(1, 1, 6, 7, dtype=torch.float32, seed=seed)
    wild = torch.where(valid, values, torch.full_like(values, 9.9e30))
    got = interpolate_valid(wild, valid, scale, method)
    torch.testing.assert_close(got, interpolate_valid(values, valid, scale, method), rtol=0, atol=0)
    assert torch.isfinite(got).all()


@methods
@given(st.integers(0, 10**6), st.sampled_from(SCALES), st.sampled_from([0.05, 0.5, 0.95]))
def test_a_constant_stays_constant_under_any_mask(method, seed, scale, share):
    valid = random_mask(seed, 1, 1, 6, 7, share=share)
    got = interpolate_valid(torch.full((1, 1, 6, 7), 287.3), valid, scale, method)
    own = repeat_cells(valid.float(), scale) > 0.5
    torch.testing.assert_close(got[own], torch.full_like(got[own], 287.3), rtol=1e-6, atol=0)
    elsewhere = got[~own]
    assert (torch.isclose(elsewhere, torch.tensor(287.3), rtol=1e-6) | (elsewhere == 0)).all()


@given(st.integers(0, 10**6), st.sampled_from(SCALES))
def test_valid_cells_stay_within_the_range_near_gaps(seed, scale):
    """Next to a gap the weights are never negative: no overshoot made of a missing cell."""
    valid = random_mask(seed, 1, 1, 7, 7, share=0.5)
    values = field(1, 1, 7, 7, seed=seed).clamp(-2, 2)
    got = interpolate_valid(values, valid, scale, "bilinear")
    own = repeat_cells(valid.double(), scale) > 0.5
    low, high = (float(f(values[valid])) if valid.any() else 0.0 for f in (torch.min, torch.max))
    assert not own.any() or (got[own].min() >= low - 1e-9 and got[own].max() <= high + 1e-9)


@methods
@given(st.integers(0, 10**6), st.sampled_from(SCALES), st.integers(0, 8), st.integers(0, 9))
def test_a_missing_cell_changes_nothing_beyond_the_radius(method, seed, scale, row, column):
    valid = random_mask(seed, 1, 1, 9, 10, share=0.1)
    values = field(1, 1, 9, 10, dtype=torch.float32, seed=seed)
    before = interpolate_valid(values, valid, scale, method)
    valid[..., row, column] = False
    after = interpolate_valid(values, valid, scale, method)
    reach = radius(method)
    near = torch.zeros(9, 10, dtype=torch.bool)
    near[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1] = True
    far = ~(repeat_cells(near[None, None].float(), scale) > 0.5)
    assert torch.equal(before[far], after[far])


@methods
@scales
@pytest.mark.parametrize("interval", [(0, 1), (1, 2), (4, 7), (-3, 2), (0, 12)])
def test_declared_needs_are_the_support_of_the_weights(method, scale, interval):
    block, reach = Interpolation(scale, method), 4
    out = Interval(*interval)
    values = torch.ones(1, 1, 17, 17, dtype=torch.float64).mul_(field(1, 1, 17, 17)).requires_grad_()
    shift = reach * scale
    weights = field(1, 1, len(range(*interval)), 17 * scale, seed=1)
    (block(values)[:, :, out.start + shift : out.stop + shift] * weights).sum().backward()
    rows = torch.nonzero((values.grad != 0).any(dim=3)[0, 0]).flatten() - reach
    assert block.needs(out) == Interval(int(rows.min()), int(rows.max()) + 1)


def test_an_unknown_method_lists_the_choices():
    with pytest.raises(UnknownNameError, match=r"bicubic.*Did you mean 'bicubic'"):
        interpolate(field(1, 1, 3, 3), 2, "bicubik")
    assert radius("cubic") == 2


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_used_in_inference_first_it_can_still_be_trained_through(method):
    """Cached weights must not be inference tensors: these cannot be saved for backward."""
    scale = 11  # used nowhere else, so that nothing is cached yet
    with torch.inference_mode():
        interpolate(field(1, 1, 4, 4), scale, method)
    values = field(1, 1, 4, 4).requires_grad_()
    interpolate(values, scale, method).sum().backward()
    torch.testing.assert_close(values.grad, torch.full_like(values, scale**2), rtol=0.2, atol=0)
