"""Members: random, seeded, and the same however the data are chunked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from xsuperres.errors import ConfigError
from xsuperres.nn import layers, network
from xsuperres.nn.place import Place, normal, sample_keys, uniform
from xsuperres.testing import toy_field

CHUNKS = {"time": (2, 2, 2), "lat": (9, 15), "lon": (12, 10, 14)}
KINDS = {
    "vanilla": {"network": {"dropout": "vanilla", "dropout_rate": 0.3}},
    "spatial": {"network": {"dropout": "spatial", "dropout_rate": 0.3}},
    "gaussian": {"network": {"dropout": "gaussian", "dropout_rate": 0.3}},
    "noise": {"training": "adversarial", "adversarial": {"noise": 2, "warm_up": 0.0, "width": 4, "depth": 1}},
}


def fit(da, **options):
    """Train a tiny network for a few steps with a high learning rate, so that its randomness shows."""
    tiny = {"width": 5, "depth": 1, "head_width": 4} | options.pop("network", {})
    return da.sr.fit(
        2,
        network=tiny,
        sampling={"batch_size": 2, "patch_size": 6},
        optimization={"max_steps": 6, "validations": 1, "learning_rate": 3e-2},
        validation=None,
        activate=False,
        progress=False,
        **options,
    )


@pytest.fixture(scope="module")
def coarse() -> xr.DataArray:
    return toy_field(time=6, y=48, x=72, periodic=True).sr.coarsen(2)


@pytest.fixture(scope="module")
def models():
    fine = toy_field(time=6, y=48, x=72, periodic=True)
    return {
        (kind, window, upsampling): fit(fine, time_window=window, upsampling=upsampling, **options)
        for kind, options in KINDS.items()
        for window, upsampling in ((None, "interpolation"), (None, "subpixel"), (3, "subpixel"))
    }


every = pytest.mark.parametrize("kind", list(KINDS))
samples = pytest.mark.parametrize(
    ("window", "upsampling"), [(None, "interpolation"), (None, "subpixel"), (3, "subpixel")]
)


@every
@samples
def test_members_do_not_depend_on_the_chunks(models, coarse, check, kind, window, upsampling):
    model = models[kind, window, upsampling]
    whole = coarse.sr.downscale(model, members=3, seed=5)
    assert whole.dims == ("member", "time", "lat", "lon") and whole.member.values.tolist() == [0, 1, 2]
    chunked = coarse.chunk(CHUNKS).sr.downscale(model, members=3, seed=5)
    check.same_numbers(chunked.compute(scheduler="threads"), whole, model.scaling.sd)
    single = coarse.isel(time=slice(2, 3)) if window is None else coarse
    few = single.sr.downscale(model, members=2, seed=5, batch_size=1)
    if window is not None:
        check.same_numbers(few, whole[:2], model.scaling.sd)


@every
def test_members_differ_by_member_and_seed(models, coarse, kind):
    model = models[kind, None, "subpixel"]
    first, again, other = (coarse.sr.downscale(model, members=4, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    spread = first.std("member")
    assert float(spread.median()) > 0
    assert (np.abs(other - first).max(dim=("time", "lat", "lon")) > 0).all()
    steps = first - coarse.sr.downscale(model)
    assert float(np.abs(steps.isel(time=0) - steps.isel(time=1)).max()) > 0, "times do not share their randomness"


@every
def test_without_members_nothing_is_random(models, coarse, kind):
    model = models[kind, None, "interpolation"]
    torch.manual_seed(1)
    first = coarse.sr.downscale(model)
    torch.manual_seed(2)
    np.testing.assert_array_equal(coarse.sr.downscale(model), first)
    assert first.dims == coarse.dims


@pytest.mark.parametrize("kind", ["vanilla", "spatial", "gaussian", "noise"])
def test_numbers_drawn_from_torch_would_show(models, coarse, check, monkeypatch, kind):
    """The control: with torch's generator in place of the hash the chunks are felt."""
    monkeypatch.setattr(
        layers,
        "uniform",
        lambda place, x, layer, per_cell=True: torch.rand(x.shape if per_cell else (*x.shape[:2], 1, 1)),
    )
    monkeypatch.setattr(layers, "normal", lambda place, x, layer: torch.randn(x.shape))
    monkeypatch.setattr(network, "normal", lambda place, x, layer: torch.randn(x.shape))
    model = models[kind, None, "subpixel"]
    whole = coarse.sr.downscale(model, members=2)
    with pytest.raises(AssertionError):
        check.same_numbers(coarse.chunk(CHUNKS).sr.downscale(model, members=2), whole, model.scaling.sd)


def test_monte_carlo_dropout_is_the_mean_without_on_average(models, coarse):
    """Linear to first order: the mean of many members is near the result without dropout."""
    model = models["gaussian", None, "subpixel"]
    members = coarse.isel(time=[0]).sr.downscale(model, members=64)
    plain = coarse.isel(time=[0]).sr.downscale(model)
    error, spread = float(np.abs(members.mean("member") - plain).mean()), float(members.std("member").mean())
    assert error < 0.6 * spread


# bad input


def test_members_of_a_network_without_randomness(coarse):
    model = fit(toy_field(time=6, y=48, x=72, periodic=True))
    with pytest.raises(ConfigError, match="needs a network with randomness"):
        coarse.sr.downscale(model, members=2)


@pytest.mark.parametrize("members", [0, -1, 1.5, True])
def test_a_number_of_members_that_is_none(models, coarse, members):
    with pytest.raises(ConfigError, match="members must be a whole number"):
        coarse.sr.downscale(models["noise", None, "subpixel"], members=members)


def test_a_dimension_of_that_name_is_there_already(models, coarse):
    with pytest.raises(ConfigError, match="'member' already"):
        xr.concat([coarse, coarse], "member").sr.downscale(models["noise", None, "subpixel"], members=2)


# the numbers


def place(rows: int, columns: int, keys: torch.Tensor, *, first: int = 0) -> Place:
    return Place(first + torch.arange(rows), torch.arange(columns), keys)


def test_random_numbers_are_uniform_and_normal():
    where = place(64, 64, sample_keys(3, range(4), [0] * 4))
    numbers = uniform(where, torch.empty(4, 8, 64, 64), 1).double()
    assert numbers.min() > 0 and numbers.max() < 1
    assert float(numbers.mean()) == pytest.approx(0.5, abs=2e-3)
    assert float(numbers.var()) == pytest.approx(1 / 12, rel=0.01)
    counts = torch.histc(numbers, 64, 0, 1)
    assert float(((counts - counts.mean()) ** 2 / counts.mean()).sum()) < 120, "chi squared of 63 degrees of freedom"
    gauss = normal(where, torch.empty(4, 8, 64, 64), 1).double()
    assert float(gauss.mean()) == pytest.approx(0, abs=5e-3) and float(gauss.var()) == pytest.approx(1, rel=0.01)
    assert float((gauss**4).mean()) == pytest.approx(3, rel=0.03)


def test_neighbours_channels_layers_and_samples_are_independent():
    where, x = place(48, 48, sample_keys(0, range(2), [7, 7])), torch.empty(2, 3, 48, 48)
    base = uniform(where, x, 1) - 0.5
    others = {
        "column": (base[..., 1:], base[..., :-1]),
        "row": (base[..., 1:, :], base[..., :-1, :]),
        "channel": (base[:, 1:], base[:, :-1]),
        "sample": (base[1:], base[:-1]),
        "layer": (base, uniform(where, x, 2) - 0.5),
        "seed": (base, uniform(place(48, 48, sample_keys(1, range(2), [7, 7])), x, 1) - 0.5),
    }
    for name, (a, b) in others.items():
        correlation = float((a * b).mean() * 12)
        assert abs(correlation) < 5 / a.numel() ** 0.5, name


@pytest.mark.parametrize("scale", [1, 3])
def test_a_cell_has_its_number_wherever_the_block_begins(scale):
    keys = sample_keys(9, [4, 5])
    whole = uniform(place(10, 8, keys), torch.empty(2, 2, 10 * scale, 8 * scale), 3)
    part = uniform(place(4, 8, keys, first=5), torch.empty(2, 2, 4 * scale, 8 * scale), 3)
    torch.testing.assert_close(part, whole[:, :, 5 * scale : 9 * scale], rtol=0, atol=0)


def test_the_numbers_are_what_they_were():
    """Golden numbers: another hash would change the members of every archive."""
    numbers = uniform(place(2, 2, sample_keys(42, [0])), torch.empty(1, 1, 2, 2), 1)
    np.testing.assert_allclose(numbers.flatten().tolist(), GOLDEN, atol=1e-7)


GOLDEN = [0.242521, 0.0989796, 0.3205337, 0.2007169]


@pytest.mark.parametrize("seed", [None, 1.5, -1, True, "a"])
def test_a_seed_is_a_whole_number(make_model, seed):
    toy = make_model(network=(("dropout", "spatial"),))
    with pytest.raises(ConfigError, match="seed must be a whole number of at least 0"):
        toy.coarse.sr.downscale(toy.model, members=2, seed=seed)


def test_members_do_not_depend_on_the_order_of_dims(make_model):
    """Fields are numbered by their dims' names: another order of the same data has the same members."""
    toy = make_model(network=(("dropout", "spatial"),))
    levels = xr.concat([toy.coarse, toy.coarse + 1], "level").assign_attrs(toy.coarse.attrs).rename("tas")
    expected = levels.transpose("time", "level", "lat", "lon").sr.downscale(toy.model, members=2)
    got = levels.transpose("level", "lat", "time", "lon").sr.downscale(toy.model, members=2)
    np.testing.assert_allclose(got.transpose(*expected.dims), expected, rtol=0, atol=1e-4)
    assert float(expected.std("member").max()) > 1e-2


def test_each_member_is_a_chunk(make_model):
    """Memory does not grow with their number."""
    toy = make_model(network=(("dropout", "spatial"),))
    lazy = toy.coarse.chunk(time=1).sr.downscale(toy.model, members=5)
    assert lazy.chunks[0] == (1,) * 5
