"""Losses against numpy loops, and what all of them promise: weights, missing cells, invariances, safe gradients."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from covering import covering
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from xsuperres.errors import ConfigError, UnknownNameError
from xsuperres.nn.losses import LOSSES, build_loss, loss_names, weighted_mean

every = pytest.mark.parametrize("name", list(LOSSES))
ERRORS = {
    "mse": lambda e: e**2,
    "mae": np.abs,
    "huber": lambda e: np.where(np.abs(e) <= 1, 0.5 * e**2, np.abs(e) - 0.5),
}
# Both fields times a > 0 cost a**degree times as much.
DEGREE = {"mse": 2, "mae": 1, "gradient": 1, "spectral": 1, "dssim": 0, "msdssim": 0}


# The oracles: loops over cells, pairs, shells, scales; planes are (y, x).


def slopes(prediction, target, weight):
    total, weights = 0.0, 0.0
    b, c, ny, nx = target.shape
    for at in np.ndindex(b, c, ny, nx):
        for step in ((0, 0, 1, 0), (0, 0, 0, 1)):
            beside = tuple(np.add(at, step))
            if beside[2] < ny and beside[3] < nx:
                pair = min(weight[at], weight[beside])
                error = (prediction[beside] - prediction[at]) - (target[beside] - target[at])
                total, weights = total + pair * abs(error), weights + pair
    return total / weights


def shell_amplitudes(field):
    """Return the root mean square of the amplitudes whose wavenumber rounds to 0, 1, ..., and their number."""
    ny, nx = field.shape
    power = np.abs(np.fft.fft2(field)) ** 2
    shells = {}
    for i, ky in enumerate(np.fft.fftfreq(ny)):
        for j, kx in enumerate(np.fft.fftfreq(nx)):
            shells.setdefault(round(math.hypot(ky, kx) * max(ny, nx)), []).append(power[i, j])
    return np.array([(math.sqrt(np.mean(shells[s])), len(shells[s])) for s in sorted(shells)]).T


def spectra(prediction, target, weight):
    total = 0.0
    ny, nx = target.shape[-2:]
    hann = [np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in (ny, nx)]
    for at in np.ndindex(target.shape[:2]):
        share = weight[at] * np.outer(*hann)
        share = share / share.sum()
        mean = (share * target[at]).sum()
        (p, count), (t, _) = (shell_amplitudes((f[at] - mean) * np.sqrt(share)) for f in (prediction, target))
        total += weight[at].sum() * np.average(np.abs(p - t), weights=count)
    return total / weight.sum()


def ssim_maps(p, t, valid):
    """Return luminance, and contrast times structure, of planes with a range of 1, cell by cell."""
    luminance, structure = np.zeros(t.shape), np.zeros(t.shape)
    for y, x in np.ndindex(t.shape):
        near = [(i, j) for i, j in np.ndindex(t.shape) if max(abs(i - y), abs(j - x)) <= 5 and valid[i, j]]
        if near:
            g = np.exp([-((i - y) ** 2 + (j - x) ** 2) / 4.5 for i, j in near])
            g /= g.sum()
            a, b = (np.array([field[cell] for cell in near]) for field in (p, t))
            ma, mb = (g * a).sum(), (g * b).sum()
            va, vb, cov = (g * (a - ma) ** 2).sum(), (g * (b - mb) ** 2).sum(), (g * (a - ma) * (b - mb)).sum()
            luminance[y, x] = (2 * ma * mb + 1e-4) / (ma**2 + mb**2 + 1e-4)
            structure[y, x] = (2 * cov + 9e-4) / (va + vb + 9e-4)
    return luminance, structure


def in_units_of_the_range(prediction, target, weight):
    """Return copies that start at 0, in units of the target's range, channel by channel."""
    prediction, target = prediction.copy(), target.copy()
    for c in range(target.shape[1]):
        valid = weight[:, c] > 0
        t, p = target[:, c][valid], prediction[:, c][valid]
        origin, span = min(t.min(), p.min()), t.max() - t.min()
        for field in (prediction, target):
            field[:, c] = (field[:, c] - origin) / span
    return prediction, target


def dssim(prediction, target, weight):
    p, t = in_units_of_the_range(prediction, target, weight)
    maps = [np.prod(ssim_maps(p[at], t[at], weight[at] > 0), axis=0) for at in np.ndindex(t.shape[:2])]
    return np.average((1 - np.reshape(maps, t.shape)) / 2, weights=weight)


def halved(field, weight):
    """Return the weighted means over 2 x 2 cells of a plane, and the sums of the weights."""
    ny, nx = (-(-n // 2) for n in field.shape)
    means, sums = np.zeros((ny, nx)), np.zeros((ny, nx))
    for y, x in np.ndindex(ny, nx):
        block = np.s_[2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
        sums[y, x] = weight[block].sum()
        means[y, x] = (field[block] * weight[block]).sum() / sums[y, x] if sums[y, x] else 0
    return means, sums


def msdssim(prediction, target, weight):
    fields = in_units_of_the_range(prediction, target, weight)
    side = min(target.shape[-2:])
    powers = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])
    powers = powers[: max(1, sum(side >= 11 * 2**scale for scale in range(5)))]
    powers /= powers.sum()
    losses, areas = [], []
    for at in np.ndindex(target.shape[:2]):
        (p, t), w, similarity = (field[at] for field in fields), weight[at], 1.0
        for scale, power in enumerate(powers):
            if scale:
                (p, total), (t, _) = halved(p, w), halved(t, w)
                w = total
            luminance, structure = ssim_maps(p, t, w > 0)
            similarity *= np.average(structure, weights=w) ** power
        losses.append((1 - similarity * np.average(luminance, weights=w) ** powers[-1]) / 2)
        areas.append(weight[at].sum())
    return np.average(losses, weights=areas)


def of_errors(error):
    return lambda prediction, target, weight: np.average(error(prediction - target), weights=weight)


ORACLES = {name: of_errors(error) for name, error in ERRORS.items()}
ORACLES |= {"gradient": slopes, "spectral": spectra, "dssim": dssim, "msdssim": msdssim}


# Fields, weights and ways to spoil them.


def smooth(shape, *, seed=0, offset=0.0, dtype=torch.float64):
    """Return fields with a red spectrum, a standard deviation of 1 and the mean `offset`."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    k = torch.hypot(torch.fft.fftfreq(shape[-2])[:, None], torch.fft.rfftfreq(shape[-1])).clamp_min(1 / max(shape))
    field = torch.fft.irfft2(torch.fft.rfft2(noise) * k**-1.5, s=shape[-2:])
    field = field - field.mean((-2, -1), keepdim=True)
    return (offset + field / field.square().mean().sqrt()).to(dtype)


def areas(shape, *, missing=0.0, seed=1, dtype=torch.float64):
    """Return weights that shrink to the north, in some unit, 0 in a random fraction of the cells."""
    rows = torch.linspace(7, 2, shape[-2], dtype=torch.float64)[:, None]
    there = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) >= missing
    return (rows * there).to(dtype)


def pair(shape, **options):
    """Return a prediction that is right in part, and its target."""
    target = smooth(shape, seed=0, **options)
    return 0.8 * target + 0.3 * smooth(shape, seed=1, **options), target


def blurred(field, cells):
    return F.avg_pool2d(field, cells, 1, cells // 2, count_include_pad=False)


def cost(name, prediction, target, weight) -> float:
    return float(LOSSES.get(name)(prediction, target, weight))


def with_gradient(name, prediction, target, weight):
    guess = prediction.clone().requires_grad_()
    loss = LOSSES.get(name)(guess, target, weight)
    loss.backward()
    return loss.detach(), guess.grad


# Values.


def test_each_registered_loss_has_its_oracle():
    assert set(ORACLES) == set(LOSSES)
    assert set(DEGREE) == set(LOSSES) - {"huber"}


@pytest.mark.parametrize("name", ERRORS)
@given(seed=st.integers(0, 10**6), shape=st.sampled_from([(1, 1, 5, 6), (3, 1, 5, 6), (3, 2, 5, 6), (1, 1, 5, 1)]))
def test_errors_against_numpy(name, seed, shape):
    rng = np.random.default_rng(seed)
    prediction, target, weight = 2 * rng.normal(size=(3, 2, 5, 6)), 2 * rng.normal(size=(3, 2, 5, 6)), rng.random(shape)
    expected = ORACLES[name](prediction, target, np.broadcast_to(weight, target.shape))
    assert cost(name, *map(torch.from_numpy, (prediction, target, weight))) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "shape", "missing"),
    covering(
        sorted(set(ORACLES) - set(ERRORS)), [(2, 2, 7, 12), (1, 1, 24, 23), (2, 1, 2, 2), (1, 1, 3, 2)], [0.0, 0.4]
    ),
    ids=str,
)
def test_against_numpy(name, shape, missing):
    """At 24 x 23 cells there are two scales, and an odd border."""
    prediction, target = pair(shape, offset=-3.0)
    weight = areas(shape, missing=missing, seed=4)
    expected = ORACLES[name](*(t.numpy() for t in (prediction, target, weight)))
    assert expected > 0
    assert cost(name, prediction, target, weight) == pytest.approx(expected, rel=1e-9)


def test_all_five_scales():
    """At 176 cells, too many for loops: the textbook's sums of squares, windows by convolution."""
    target = smooth((1, 1, 176, 176))
    prediction, ones = blurred(target, 3), torch.ones_like(target)
    fields = [torch.from_numpy(f) for f in in_units_of_the_range(*(t.numpy() for t in (prediction, target, ones)))]
    taps = torch.exp(-(torch.arange(-5.0, 6, dtype=torch.float64) ** 2) / 4.5)
    powers = torch.tensor([0.0448, 0.2856, 0.3001, 0.2363, 0.1333], dtype=torch.float64)
    logs = []
    for _ in powers:
        p, t = fields
        count, mp, mt, pp, tt, pt = (
            F.conv2d(f, torch.outer(taps, taps)[None, None], padding=5)
            for f in (torch.ones_like(t), p, t, p * p, t * t, p * t)
        )
        mp, mt, pp, tt, pt = (f / count for f in (mp, mt, pp, tt, pt))
        logs.append(((2 * (pt - mp * mt) + 9e-4) / (pp - mp**2 + tt - mt**2 + 9e-4)).mean().log())
        luminance = ((2 * mp * mt + 1e-4) / (mp**2 + mt**2 + 1e-4)).mean().log()
        fields = [F.avg_pool2d(field, 2) for field in fields]
    similarity = ((torch.stack(logs) @ powers + luminance * powers[-1]) / powers.sum()).exp()
    assert cost("msdssim", prediction, target, ones) == pytest.approx(float(1 - similarity) / 2, rel=1e-9)


DIGITS = {
    "nearly equal": lambda t, e: t + 3e-4 * e,  # 1 - SSIM is a difference of nearly equal numbers
    "a large bias": lambda t, e: t + 0.1 * e + 1000,  # a variance is a difference of large numbers
}


@pytest.mark.parametrize("name", ["dssim", "msdssim"])
@pytest.mark.parametrize("case", DIGITS)
def test_dissimilarities_keep_their_digits(name, case):
    """In float32, far from 0."""
    target, error = (smooth((2, 1, 32, 32), seed=seed, offset=30 - 30 * seed) for seed in (0, 1))
    target = target.float()
    prediction, weight = DIGITS[case](target, error.float()), areas(target.shape, missing=0.2).float()
    exact = cost(name, prediction.double(), target.double(), weight.double())
    assert cost(name, prediction, target, weight) == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("name", ["dssim", "msdssim"])
def test_dissimilarities_have_bounds(name):
    """Also beside wild values, where rounding could make a variance negative, or that of the error far too large."""
    shape = (2, 1, 32, 32)
    target = smooth(shape, dtype=torch.float32)
    wild = torch.where(torch.arange(32) < 16, 1 + smooth(shape, seed=1, dtype=torch.float32), 0 * target)
    for prediction in (1e4 * wild, 1e5 * wild, -1e6 * wild, -target, target + 1e5, 0 * target):
        assert 0 < cost(name, prediction, target, torch.ones(shape)) <= 1


@pytest.mark.parametrize("name", ["dssim", "msdssim"])
def test_rounding_errors_are_no_range(name):
    """Two fields of 280 that differ in the last digits are alike."""
    one, other = (280 + 3e-5 * smooth((1, 1, 24, 24), seed=seed, dtype=torch.float32) for seed in (0, 1))
    assert 0 < (one - other).abs().max() < 3e-4
    assert cost(name, one, other, torch.ones_like(one)) < 1e-4


# What all promise.


@every
def test_a_perfect_prediction_costs_nothing(name):
    target = smooth((2, 2, 24, 13), offset=270, dtype=torch.float32)
    assert cost(name, target, target, areas(target.shape, missing=0.3, dtype=torch.float32)) == 0


@every
def test_any_other_costs_something(name):
    prediction, target = pair((2, 2, 24, 13))
    for guess in (prediction, -target, 0 * target, target + 0.01 * prediction, 3 * target):
        assert cost(name, guess, target, areas(target.shape)) > 0


@every
def test_only_ratios_of_weights_count(name):
    prediction, target = pair((2, 2, 24, 13))
    weight = areas(target.shape, missing=0.3)
    for factor in (1e-20, 17, 1e20):
        expected = cost(name, prediction, target, weight)
        assert cost(name, prediction, target, factor * weight) == pytest.approx(expected, rel=1e-9)


@every
@pytest.mark.parametrize("shape", [(1, 1, 24, 13), (2, 1, 24, 13), (1, 1, 24, 1)], ids=str)
def test_weights_are_shared_out(name, shape):
    """Those of one plane, or of one column, are the same for all."""
    prediction, target = pair((2, 2, 24, 13))
    weight = areas(shape)
    spread = weight.expand_as(target).contiguous()
    expected = cost(name, prediction, target, spread)
    assert cost(name, prediction, target, weight) == pytest.approx(expected, rel=1e-12)


@every
def test_an_error_costs_what_its_cells_weigh(name):
    target = smooth((1, 1, 24, 24))
    west = torch.where(torch.arange(24) < 12, 1.0, 0.1).double().expand_as(target)
    wrong = torch.where(torch.arange(24) < 12, pair(target.shape)[0], target)
    heavy, light = cost(name, wrong, target, west), cost(name, wrong, target, west.flip(-1))
    assert heavy > 1.5 * light > 0


@every
@pytest.mark.parametrize("shape", [(2, 2, 24, 13), (1, 1, 3, 4)], ids=str)
def test_missing_cells_count_for_nothing(name, shape):
    """Neither the loss nor a gradient knows what either field holds there, and their own gradient is 0."""
    prediction, target = pair(shape, dtype=torch.float32)
    weight = areas(shape, missing=0.4, dtype=torch.float32)
    missing = weight == 0
    assert missing.any()
    loss, gradient = with_gradient(name, prediction, target, weight)
    assert (gradient[missing] == 0).all()
    assert (gradient[~missing] != 0).float().mean() > 0.5
    for value in (1e6, -3e38):
        for guess, truth in (
            (prediction.masked_fill(missing, value), target.masked_fill(missing, 0)),
            (prediction, target.masked_fill(missing, value)),
        ):
            again, same = with_gradient(name, guess, truth, weight)
            assert torch.equal(again, loss)
            assert torch.equal(same, gradient)


@every
def test_a_missing_plane_is_as_if_left_out(name):
    prediction, target = pair((2, 2, 24, 13))
    weight = areas(target.shape, missing=0.2)
    weight[1] = 0
    alone = cost(name, prediction[:1], target[:1], weight[:1])
    assert cost(name, prediction, target, weight) == pytest.approx(alone, rel=1e-12)
    weight[:, 1] = 0
    alone = cost(name, prediction[:1, :1], target[:1, :1], weight[:1, :1])
    assert cost(name, prediction, target, weight) == pytest.approx(alone, rel=1e-12)


@every
def test_no_weight_at_all_is_zero_and_trains_nothing(name):
    prediction, target = pair((2, 2, 24, 13), dtype=torch.float32)
    loss, gradient = with_gradient(name, prediction, target, 0 * target)
    assert loss == 0
    assert not gradient.any()


def single(shape):
    weight = torch.zeros(shape)
    weight[..., -1, 0] = 3
    return weight


SPOILED = {
    "random": lambda p, t: (p, t),
    "both constant": lambda p, t: (0 * p + 280, 0 * t + 281),
    "equal constants": lambda p, t: (0 * p + 280, 0 * t + 280),
    "constant target": lambda p, t: (p, 0 * t + 280),
    "constant prediction": lambda p, t: (0 * p, t),
    "zero": lambda p, t: (0 * p, 0 * t),
    "far away": lambda p, t: (p + 1e6, t),
    "the opposite": lambda p, t: (-t, t),
    "almost dry": lambda p, t: (p, 1e-30 * t),
    "tiny units": lambda p, t: (1e-9 * p, 1e-9 * t),
}


@pytest.mark.parametrize(
    ("name", "case", "shape"),
    covering(list(LOSSES), list(SPOILED), [(1, 1, 2, 2), (2, 3, 2, 9), (1, 2, 13, 3), (2, 1, 64, 64)]),
    ids=str,
)
def test_loss_and_gradient_are_finite(name, case, shape):
    prediction, target = SPOILED[case](*pair(shape, dtype=torch.float32))
    for weight in (
        torch.ones(shape),
        areas(shape, missing=0.5, dtype=torch.float32),
        single(shape),
        torch.zeros(shape),
    ):
        loss, gradient = with_gradient(name, prediction, target.masked_fill(weight == 0, 0), weight)
        assert loss.shape == ()
        assert loss.isfinite()
        assert gradient.isfinite().all()
        assert (gradient[weight == 0] == 0).all()
        assert loss >= 0


@every
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_gradients_are_those_of_the_loss(name, missing):
    """Against finite differences, for a prediction above the lowest target, where the origin of dssim holds still."""
    target = smooth((2, 1, 4, 5))
    prediction = (0.7 * target + 0.3 * smooth(target.shape, seed=2)).clamp_min(0.9 * float(target.min()))
    weight = areas(target.shape, missing=missing, seed=3)
    prediction[weight == 0] = target[weight == 0] = 0
    assert torch.autograd.gradcheck(lambda p: LOSSES.get(name)(p, target, weight), prediction.requires_grad_())


@every
def test_memory_order_does_not_count(name):
    prediction, target = pair((2, 3, 24, 13))
    weight = areas((2, 1, 24, 13), missing=0.3)
    loss, gradient = with_gradient(name, prediction, target, weight)
    other = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (prediction, target, weight))
    again, same = with_gradient(name, *other)
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(same, gradient)


@every
def test_both_fields_may_be_shifted_alike(name):
    prediction, target = pair((2, 2, 24, 13))
    weight = areas(target.shape, missing=0.3)
    for shift in (-1000.0, 273.15):
        expected = cost(name, prediction, target, weight)
        assert cost(name, prediction + shift, target + shift, weight) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("name", DEGREE)
@pytest.mark.parametrize("factor", [1e-6, 86400.0])
def test_units(name, factor):
    prediction, target = pair((2, 2, 24, 13))
    weight = areas(target.shape, missing=0.3)
    expected = factor ** DEGREE[name] * cost(name, prediction, target, weight)
    assert cost(name, factor * prediction, factor * target, weight) == pytest.approx(expected, rel=1e-9)


@every
def test_a_larger_bias_costs_more(name):
    """Of either sign, and the gradient pulls back; only differences do not see it."""
    target = smooth((2, 1, 24, 24), offset=-5, dtype=torch.float32)
    weight = areas(target.shape, missing=0.2, dtype=torch.float32)
    span = float(target.max() - target.min())
    for sign in (-1, 1):
        costs = [0.0]
        for bias in (0.001, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0):
            loss, gradient = with_gradient(name, target + sign * bias * span, target, weight)
            costs.append(float(loss))
            if name != "gradient":
                assert sign * gradient.sum() > 0
        if name == "gradient":
            assert max(costs) < 1e-4
        else:
            assert (np.diff(costs) > 0).all()


@pytest.mark.parametrize("name", ["dssim", "msdssim", "mae", "spectral"])
def test_every_biased_cell_is_pulled_back(name):
    """Also the lowest ones, whose luminance would turn over if values counted from the target's minimum."""
    target = smooth((1, 1, 24, 24))
    for bias in (-3.0, -0.5, 0.5, 3.0):
        _, gradient = with_gradient(name, target + bias, target, torch.ones_like(target))
        assert name == "spectral" or (gradient * bias > 0).all()


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"mse", "huber"}))
def test_blur_costs_more_the_stronger_it_is(name):
    target = smooth((2, 1, 48, 48))
    costs = [cost(name, blurred(target, cells), target, areas(target.shape)) for cells in (1, 3, 5, 9)]
    assert costs[0] == pytest.approx(0, abs=1e-12)
    assert (np.diff(costs) > 0).all()


def test_spectral_hears_amplitudes_not_phases():
    """Small scales in the wrong place cost it little, and missing ones much; the other way round for mse."""
    target = smooth((4, 1, 48, 48))
    large = blurred(blurred(target, 5), 5)
    elsewhere = large + (target - large).roll((7, -11), (-2, -1))
    weight = areas(target.shape, missing=0.05)
    assert cost("spectral", elsewhere, target, weight) < 0.35 * cost("spectral", large, target, weight)
    assert cost("mse", elsewhere, target, weight) > cost("mse", large, target, weight)


def test_spectral_is_in_the_units_of_the_field():
    """Against nothing at all, the amplitude of white noise: its standard deviation."""
    noise = torch.randn(4, 1, 64, 64)
    assert cost("spectral", 0 * noise, noise, torch.ones_like(noise)) == pytest.approx(1, abs=0.05)


@every
@pytest.mark.parametrize("start", [0.0, -1.0])
def test_descent_finds_the_target(name, start):
    """Also from the opposite field."""
    target = smooth((1, 1, 24, 24), dtype=torch.float32)
    guess = (start * target + 0.3 * smooth(target.shape, seed=5, dtype=torch.float32)).requires_grad_()
    weight = areas(target.shape, dtype=torch.float32)
    optimizer = torch.optim.Adam([guess], lr=0.1)
    losses: list[float] = []
    while not losses or losses[-1] >= 0.2 * losses[0]:
        assert len(losses) < 120
        optimizer.zero_grad()
        loss = LOSSES.get(name)(guess, target, weight)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))


def test_opposite_structure_is_pulled_back():
    """Where the similarity of every scale is negative, and one that is cut would have no slope."""
    target = smooth((1, 1, 64, 64))
    small = target - blurred(target, 5)
    _, gradient = with_gradient("msdssim", -target, target, torch.ones_like(target))
    assert F.cosine_similarity(-gradient.flatten(), small.flatten(), dim=0) > 0.4


def test_weights_of_one_plane_do_not_count_once():
    error = torch.ones(4, 2, 3, 3)
    assert float(weighted_mean(error, torch.full((1, 1, 3, 3), 0.2))) == pytest.approx(1.0)


# Names and sums.


@pytest.fixture
def alias():
    """The loss mae under a second name."""
    LOSSES._aliases["absolute"] = "mae"
    yield "absolute"
    del LOSSES._aliases["absolute"]


@every
def test_a_name_builds_its_loss(name):
    fields = (*pair((2, 2, 12, 13)), areas((2, 1, 12, 13)))
    assert float(build_loss(name)(*fields)) == cost(name, *fields)
    assert loss_names(name) == {name: 1.0}


def test_a_sum_is_the_weighted_sum_of_its_parts():
    shares = {name: 0.5 + at for at, name in enumerate(LOSSES)}
    prediction, target, weight = (*pair((2, 2, 24, 13)), areas((2, 1, 24, 13), missing=0.3))
    parts = {name: with_gradient(name, prediction, target, weight) for name in shares}
    guess = prediction.clone().requires_grad_()
    loss = build_loss(shares)(guess, target, weight)
    loss.backward()
    assert loss.shape == ()
    torch.testing.assert_close(loss.detach(), sum(share * parts[name][0] for name, share in shares.items()))
    torch.testing.assert_close(guess.grad, sum(share * parts[name][1] for name, share in shares.items()))


def test_names_are_canonical_and_can_be_stored(alias):
    assert loss_names(alias) == {"mae": 1.0}
    names = loss_names({alias: 1, "dssim": np.float32(0.5), "mse": np.int64(2)})
    assert names == {"mae": 1.0, "dssim": 0.5, "mse": 2.0}
    assert json.loads(json.dumps(names)) == names
    assert loss_names(names) == names
    assert all(type(share) is float for share in names.values())
    fields = (*pair((1, 1, 4, 4)), areas((1, 1, 4, 4)))
    assert float(build_loss({alias: 2})(*fields)) == pytest.approx(2 * cost("mae", *fields))


def test_a_loss_named_twice(alias):
    with pytest.raises(ConfigError, match="once, got 'mae' again as 'absolute'; add up"):
        build_loss({"mae": 1.0, alias: 1.0})


@pytest.mark.parametrize("build", [build_loss, loss_names])
@pytest.mark.parametrize("share", [0, -0.5, math.nan, math.inf, "1", None, True, 1j, [1.0]])
def test_a_weight_must_be_a_positive_number(build, share):
    with pytest.raises(
        ConfigError, match=r"weight of the loss 'dssim' must be a positive finite number, got .*leave out"
    ):
        build({"mae": 1.0, "dssim": share})


@pytest.mark.parametrize("build", [build_loss, loss_names])
@pytest.mark.parametrize("given", [{}, None, 3, ["mae"], ("mae", 1.0), {"mae"}])
def test_neither_a_name_nor_a_sum(build, given):
    with pytest.raises(ConfigError, match=r"must be a name, or a dict of at least one name.*got .*choose from 'mse'"):
        build(given)


@pytest.mark.parametrize("given", ["hubert", {"mae": 1.0, "hubert": 1.0}])
def test_an_unknown_loss_lists_the_choices(given):
    with pytest.raises(UnknownNameError, match="Did you mean 'huber'"):
        build_loss(given)
    with pytest.raises(UnknownNameError, match="Unknown loss 3"):
        build_loss({3: 1.0})
