"""What `downscale` makes of data on other cells, against conservative means written down anew in numpy."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from xsuperres.fields.pairs import paired
from xsuperres.fields.predictors import on_coarse
from xsuperres.model.artefact import SRModel
from xsuperres.testing import toy_field

STATIC = ["elevation", "land_fraction"]
QUICK = {
    "network": {"width": 5, "depth": 1, "head_width": 4},
    "sampling": {"batch_size": 1},
    "optimization": {"max_steps": 1},
    "validation": None,
    "progress": False,
    "activate": False,
}


@pytest.fixture
def trained(reinitialise):
    """Return the function that fits a model, every parameter of which is then random: it uses all it is shown."""

    def fitted(field: xr.DataArray, scale: int | None = 2, **options) -> SRModel:
        model = field.sr.fit(scale, **(QUICK | options))
        reinitialise(model.network)
        return replace(model)  # a new object: digest and halo are cached on the old one

    return fitted


def edges(centres: np.ndarray, *, poles: bool = False, latitude: bool = False) -> np.ndarray:
    """Return bounds half-way between increasing centres; the outermost rows of a globe end at the poles."""
    centres = centres.astype(np.float64)
    middle = (centres[1:] + centres[:-1]) / 2
    ends = np.concatenate([[1.5 * centres[0] - 0.5 * centres[1]], middle, [1.5 * centres[-1] - 0.5 * centres[-2]]])
    ends = np.clip(ends, -90, 90) if latitude else ends
    return np.concatenate([[-90], ends[1:-1], [90]]) if poles else ends


def shares(source: np.ndarray, target: np.ndarray, *, turns: bool) -> np.ndarray:
    """Return how much of each source cell lies in each target cell, (target, source), cell by cell."""
    out = np.zeros((len(target) - 1, len(source) - 1))
    laps = 360.0 * np.arange(-3, 4) if turns else [0.0]
    for (i, j), lap in itertools.product(np.ndindex(out.shape), laps):
        out[i, j] += max(0.0, min(source[j + 1] + lap, target[i + 1]) - max(source[j] + lap, target[i]))
    return out


def oracle(da: xr.DataArray, like: xr.DataArray, *, least: float = 0.5, poles: bool = False) -> xr.DataArray:
    """Return `da` (..., lat, lon), south to north, as means over the cells of `like`; `poles`: rows of a globe."""
    rows = [np.sin(np.deg2rad(edges(x.lat.values, poles=poles, latitude=True))) for x in (da, like)]
    columns = [edges(np.rad2deg(np.unwrap(np.deg2rad(x.lon.values.astype(float))))) for x in (da, like)]
    weight = shares(*rows, turns=False), shares(*columns, turns=True)
    values, valid = np.nan_to_num(da.values.astype(np.float64)), np.isfinite(da.values)
    total, mass = (np.einsum("yj,xi,...ji->...yx", *weight, field) for field in (values * valid, valid.astype(float)))
    area = np.diff(rows[1])[:, None] * np.diff(columns[1])[None, :]
    enough = (mass > 0) & (mass >= least * area * (1 - 1e-6))
    means = np.divide(total, mass, out=np.full(mass.shape, np.nan), where=enough).astype(da.dtype)
    coords = {"lat": like.lat, "lon": like.lon} | {n: c for n, c in da.coords.items() if n in da.dims[:-2]}
    return xr.DataArray(means, dims=da.dims, coords=coords, name=da.name, attrs=da.attrs)


def with_holes(field: xr.DataArray, share: float = 0.4, seed: int = 0) -> xr.DataArray:
    """Return a field of which some cells are missing at all times, others at one."""
    rng = np.random.default_rng(seed)
    missing = (rng.random(field.shape[-2:]) < share) | (rng.random(field.shape) < share / 4)
    return field.where(~xr.DataArray(missing, dims=field.dims)).assign_attrs(field.attrs)


# missing values


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_missing_cells_follow_the_fraction_of_the_model(trained, fraction, window):
    """As many valid cells as the model was trained with, in every frame of a window."""
    field = with_holes(toy_field(time=4, y=24, x=32)).drop_vars(STATIC)
    model = trained(field, data={"minimum_valid_fraction": fraction}, time_window=window)
    coarse = field.sr.coarsen(2, minimum_valid_fraction=0.5)
    given = coarse.assign_coords(lon=coarse.lon + 0.6, lat=coarse.lat - 0.5)
    out = given.sr.downscale(model, mask="input", check_range="ignore")
    like = coarse.isel(lat=slice(None, -1), lon=slice(1, None))
    means = oracle(given, like, least=fraction)
    assert 0.02 < float(means.isnull().mean()) < 0.98 or fraction == 0.1
    assert (out.isnull().values == np.repeat(np.repeat(means.isnull().values, 2, 1), 2, 2)).all()
    expected = means.sr.downscale(model, mask="input", check_range="ignore")
    np.testing.assert_allclose(out.values, expected.values, rtol=0, atol=1e-4)


@pytest.mark.parametrize("fraction", [0.3, 1.0])
def test_pairs_and_predictors_follow_the_fraction_too(fraction):
    field = toy_field(time=4, y=24, x=32).drop_vars(STATIC)
    given = with_holes(field.sr.coarsen(2))
    given = given.assign_coords(lon=given.lon + 0.6)
    pair = paired([given], [field], 2, minimum_valid_fraction=fraction)
    expected = oracle(given, pair.coarse[0], least=fraction)
    np.testing.assert_allclose(pair.coarse[0].values, expected.values, rtol=1e-6)
    model = given.sr.fit(target=field, data={"minimum_valid_fraction": fraction}, **QUICK)
    trained = np.isfinite(expected.values).any(axis=0)
    assert (model.fine_mask is None) == trained.all()
    assert model.fine_mask is None or (model.fine_mask[0][::2, ::2] == trained).all()
    shown = on_coarse(given.rename("wind"), model.coarse_grid, pair.coarse[0], fraction)
    np.testing.assert_allclose(shown.values, expected.values, rtol=1e-6)


def test_a_predictor_on_the_cells_of_the_field_is_brought_as_the_field_is(trained):
    """On cells that are coarser than the model's too: one array shows one array, as field and as predictor."""
    fine = toy_field(time=3, y=32, x=48).drop_vars(STATIC)
    model = trained(fine, predictors=(1.5 * fine).rename("wind"))
    given = fine.isel(lat=slice(1, 31)).sr.coarsen(3)
    out = given.sr.downscale(model, predictors=(1.5 * given).rename("wind"))
    like = fine.sr.coarsen(2).isel(lat=slice(1, 15))
    means = oracle(given, like.sel(lat=out.sr.coarsen(2).lat, method="nearest"))
    expected = means.sr.downscale(model, predictors=(1.5 * means).rename("wind"))
    np.testing.assert_allclose(out.values, expected.values, rtol=0, atol=1e-3)
