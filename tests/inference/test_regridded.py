"""What `downscale` makes of data on other cells, against conservative means written down anew in numpy."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from xsuperres.fields.field import Field
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
    pair = paired([Field(given)], [Field(field)], 2, minimum_valid_fraction=fraction)
    expected = oracle(given, pair.coarse[0].array, least=fraction)
    np.testing.assert_allclose(pair.coarse[0].array.values, expected.values, rtol=1e-6)
    model = given.sr.fit(target=field, data={"minimum_valid_fraction": fraction}, **QUICK)
    trained = np.isfinite(expected.values).any(axis=0)
    assert (model.fine_mask is None) == trained.all()
    assert model.fine_mask is None or (model.fine_mask[0][::2, ::2] == trained).all()
    shown = on_coarse(Field(given.rename("wind")), model.coarse_grid, pair.coarse[0], fraction).array
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


# against an independent oracle


GIVEN = {
    "whole degrees": (np.arange(6.0, 36), np.arange(-2.0, 42)),
    "float32": (np.arange(6.1, 36, 1.3).astype("f4"), (np.arange(-2.3, 42, 1.7)).astype("f4")),
    "uneven": (np.rad2deg(np.arcsin(np.linspace(0.02, 0.62, 26))), -2 + 44 * np.linspace(0, 1, 30) ** 1.1),
    "twice as coarse": (np.arange(5.0, 40, 3.2), np.arange(-6.0, 46, 4)),
    "across Greenwich": (np.arange(6.0, 36), np.arange(-2.0, 42) % 360),
}


@pytest.mark.parametrize("orientation", [1, -1])
@pytest.mark.parametrize(("lat", "lon"), GIVEN.values(), ids=GIVEN.keys())
def test_the_network_sees_conservative_means(make_model, lat, lon, orientation):
    """`downscale` of raw data is `downscale` of means over the model's cells, which numpy takes by itself."""
    toy = make_model()
    values = 288 + 5 * np.random.default_rng(0).normal(size=(3, len(lat), len(lon))).astype("f4")
    coords = {
        "time": toy.coarse.time,
        "lat": ("lat", lat, toy.coarse.lat.attrs),
        "lon": ("lon", lon, toy.coarse.lon.attrs),
    }
    given = xr.DataArray(values, dims=("time", "lat", "lon"), coords=coords, name="tas", attrs=toy.coarse.attrs)
    means = oracle(given, toy.coarse)
    expected = means.sr.downscale(toy.model, check_range="ignore")
    out = given.isel(lat=slice(None, None, orientation)).sr.downscale(toy.model, check_range="ignore")
    assert_alike(out.isel(lat=slice(None, None, orientation)), expected, toy)
    area = np.diff(np.sin(np.deg2rad(edges(toy.coarse.lat.values))))[:, None] * np.ones(toy.coarse.sizes["lon"])
    whole = oracle(given, toy.coarse.coarsen(lat=14, lon=18).mean().pipe(one_cell, toy.coarse))
    np.testing.assert_allclose((means * area).sum(["lat", "lon"]) / area.sum(), whole.values[:, 0, 0], rtol=1e-6)


def one_cell(mean: xr.DataArray, like: xr.DataArray) -> xr.DataArray:
    """Return a field whose first cell is all of the domain of `like`."""
    cells = [
        np.array([like[d].values.mean(), like[d].values.mean() + np.ptp(edges(like[d].values))]) for d in ("lat", "lon")
    ]
    return xr.DataArray(np.zeros((2, 2)), dims=("lat", "lon"), coords={"lat": cells[0], "lon": cells[1]})


def assert_alike(out: xr.DataArray, expected: xr.DataArray, toy) -> None:
    """To what rounding of float32 inputs leaves of a random network: a thousandth of the spread."""
    np.testing.assert_array_equal(out.lat.values, expected.lat.values)
    np.testing.assert_array_equal(out.lon.values % 360, expected.lon.values % 360)
    np.testing.assert_allclose(out.values, expected.values, rtol=0, atol=1e-3 * toy.model.scaling.sd)


@pytest.mark.parametrize("rows", [14, 20])
def test_a_gaussian_globe_with_its_poles(trained, rows):
    """True Gauss-Legendre latitudes, float32, north to south, onto a regular globe: all of the sphere is conserved."""
    lat, lon = -90 + 7.5 * (np.arange(24) + 0.5), 7.5 * (np.arange(48) + 0.5)
    field = toy_field(time=2, y=24, x=48, periodic=True).drop_vars(STATIC)
    field = field.assign_coords(lat=("lat", lat, field.lat.attrs), lon=("lon", lon, field.lon.attrs))
    model = trained(field)
    nodes = np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(rows)[0])).astype("f4")
    given = 280 + 5 * np.random.default_rng(0).normal(size=(2, rows, 2 * rows)).astype("f4")
    coords = {"lat": ("lat", nodes, field.lat.attrs), "lon": ("lon", np.arange(2 * rows) * np.float32(180 / rows))}
    coords["lon"] = (*coords["lon"], field.lon.attrs)
    given = xr.DataArray(given, dims=field.dims, coords=coords | {"time": field.time}, name="tas", attrs=field.attrs)
    means = oracle(given, field.sr.coarsen(2), poles=True)
    out = given.isel(lat=slice(None, None, -1)).sr.downscale(model, check_range="ignore")
    expected = means.sr.downscale(model, check_range="ignore").isel(lat=slice(None, None, -1))
    np.testing.assert_array_equal(out.lat.values, lat[::-1])
    assert out.shape == field.shape and out.notnull().all()
    np.testing.assert_allclose(out.values, expected.values, rtol=0, atol=1e-3 * model.scaling.sd)
    bands = [np.diff(np.sin(np.deg2rad(edges(x.lat.values, poles=True)))) for x in (given, means)]
    zonal = [x.values.mean(axis=-1, dtype=float) for x in (given, means)]
    np.testing.assert_allclose(zonal[0] @ bands[0], zonal[1] @ bands[1], rtol=1e-7)


@pytest.mark.parametrize("fine_rows", [32, 48])
def test_a_model_on_gaussian_latitudes(trained, fine_rows):
    """The fine grid itself is Gaussian, poles included: blocks of uneven rows, data from a regular globe."""
    nodes = np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(fine_rows)[0]))
    field = toy_field(time=2, y=fine_rows, x=64, periodic=True).drop_vars(STATIC)
    field = field.assign_coords(lat=("lat", nodes, field.lat.attrs))
    model = trained(field)
    step = 180 / (fine_rows // 2)
    lat = -90 + step * (np.arange(fine_rows // 2) + 0.5)
    values = 280 + 5 * np.random.default_rng(0).normal(size=(2, fine_rows // 2, 32)).astype("f4")
    coords = {
        "time": field.time,
        "lat": ("lat", lat, field.lat.attrs),
        "lon": ("lon", np.arange(32) * 11.25, field.lon.attrs),
    }
    given = xr.DataArray(values, dims=field.dims, coords=coords, name="tas", attrs=field.attrs)
    out = given.sr.downscale(model, check_range="ignore")
    assert out.notnull().all() and (out.lat.values == nodes).all()
    own = field.sr.coarsen(2)
    again = own.sr.downscale(model)
    assert (again.lat.values == nodes).all()
    noisy = own.assign_coords(lat=own.lat.astype("f4"), lon=own.lon.astype("f4"))
    xr.testing.assert_equal(noisy.sr.downscale(model), again)


@pytest.mark.parametrize("spacing", [0.01, 0.25, 1.0])
def test_float32_coordinates_are_the_same_cells(trained, caplog, spacing):
    """At 0.01 degree their rounding is a thousandth of a cell; nothing is regridded for that."""
    caplog.set_level("INFO", logger="xsuperres.inference")
    field = toy_field(time=2, y=24, x=32).drop_vars(STATIC)
    lat, lon = 50 + spacing * (np.arange(24) + 0.5), 150 + spacing * (np.arange(32) + 0.5)
    field = field.assign_coords(lat=("lat", lat, field.lat.attrs), lon=("lon", lon, field.lon.attrs))
    model = trained(field)
    coarse = field.sr.coarsen(2)
    noisy = coarse.assign_coords({n: (n, coarse[n].values.astype("f4"), coarse[n].attrs) for n in ("lat", "lon")})
    expected = coarse.sr.downscale(model)
    out = noisy.sr.downscale(model)
    assert not caplog.records
    xr.testing.assert_identical(out.drop_attrs(), expected.drop_attrs())
    part = noisy.isel(lat=slice(2, 9)).sr.downscale(model)
    assert not caplog.records and (part.lat.values == lat[4:18]).all()


# rotated poles, and axes that only count


def rotated(field: xr.DataArray, index: bool = False) -> xr.DataArray:
    """Return a toy field whose latitudes and longitudes are those of a rotated pole, with 2-D true ones."""
    names = ("y", "x") if index else ("rlat", "rlon")
    y, x = np.deg2rad(field.lat.values - 18.0), np.deg2rad(field.lon.values - 16.0)
    lat = np.rad2deg(np.arcsin(np.sin(y)[:, None] * 0.6 + 0.8 * np.cos(y)[:, None] * np.cos(x)))
    lon = np.rad2deg(
        np.arctan2(np.cos(y)[:, None] * np.sin(x), 0.6 * np.cos(y)[:, None] * np.cos(x) - 0.8 * np.sin(y)[:, None])
    )
    flat = {"lat": (names, lat, {"units": "degrees_north"}), "lon": (names, lon, {"units": "degrees_east"})}
    lines = {
        n: (n, v, {"standard_name": f"grid_{t}", "units": "degrees"})
        for n, v, t in zip(
            names, (field.lat.values - 18, field.lon.values - 16), ("latitude", "longitude"), strict=True
        )
    }
    lines = {n: (n, (v - v[0]) / (v[1] - v[0])) for n, (_, v, _) in lines.items()} if index else lines
    bare = field.drop_vars([*STATIC, "lat", "lon"], errors="ignore").rename(lat=names[0], lon=names[1])
    return bare.assign_coords(lines).assign_coords(flat)


@pytest.mark.parametrize("index", [False, True])
def test_crops_and_larger_areas_of_curvilinear_grids(trained, caplog, index):
    """2-D latitudes and longitudes of the result are the model's, bit for bit."""
    caplog.set_level("INFO", logger="xsuperres.inference")
    world = rotated(toy_field(time=2, y=32, x=40), index)
    y, x = world.dims[1:]
    field = world.isel({y: slice(4, 28), x: slice(4, 36)})
    model = trained(field)
    coarse = world.sr.coarsen(2)
    expected = coarse.isel({y: slice(2, 14), x: slice(2, 18)}).sr.downscale(model)
    xr.testing.assert_equal(expected.lat, field.lat)
    out = coarse.sr.downscale(model, check_range="ignore")
    assert "are cropped to" in caplog.records[-1].getMessage()
    xr.testing.assert_identical(out.drop_attrs(), expected.drop_attrs())
    part = coarse.isel({y: slice(4, 9), x: slice(5, 12)}).sr.downscale(model)
    xr.testing.assert_equal(part.lon, world.lon.isel({y: slice(8, 18), x: slice(10, 24)}))


def test_shifted_cells_of_a_rotated_pole(trained):
    """Means are those of equal numbers on a true grid, for the areas are; places are the model's."""
    straight = toy_field(time=2, y=24, x=32).drop_vars(STATIC)
    straight = straight.assign_coords(lat=straight.lat - 18.0, lon=straight.lon - 16.0)
    turned = rotated(straight.assign_coords(lat=straight.lat + 18, lon=straight.lon + 16))
    models = [trained(da) for da in (straight, turned)]
    outs = []
    for da, model in zip((straight, turned), models, strict=True):
        coarse = da.sr.coarsen(2).drop_vars(["lat", "lon"] if model is models[1] else [])
        x = coarse.dims[2]
        shifted = coarse.assign_coords({x: (x, coarse[x].values + 0.7, coarse[x].attrs)})
        outs.append(shifted.sr.downscale(model, check_range="ignore"))
    np.testing.assert_allclose(outs[1].values, outs[0].values, rtol=0, atol=1e-3 * models[0].scaling.sd)
    xr.testing.assert_equal(outs[1].lat, turned.lat.isel(rlon=slice(2, None)))


# members and chunks


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.3, 0.9)])
@pytest.mark.parametrize("members", [None, 2])
def test_chunks_of_data_on_other_cells_equal_the_whole(make_model, check, members, shift):
    """To the promised bound, with members that dropout makes and holes in the data."""
    network = (("dropout", "spatial"), ("dropout_rate", 0.3)) if members else ()
    toy = make_model(coarse=(20, 24), missing=True, network=network)
    coarse = toy.coarse.drop_vars(STATIC).pad(lat=3, lon=3, mode="edge")
    for dim, step, by in (("lat", 1.6, shift[0]), ("lon", 2.0, shift[1])):
        line = toy.coarse[dim].values[0] + step * (np.arange(coarse.sizes[dim]) - 3) + by
        coarse = coarse.assign_coords({dim: (dim, line, toy.coarse[dim].attrs)})
    whole = coarse.sr.downscale(toy.model, members=members, check_range="ignore")
    for chunks in ({"time": 1, "lat": 13, "lon": 15}, {"time": 2, "lat": 26, "lon": 11}):
        lazy = coarse.chunk(chunks).sr.downscale(toy.model, members=members, check_range="ignore")
        parts = lazy.compute(scheduler="synchronous")
        xr.testing.assert_identical(parts.coords.to_dataset(), whole.coords.to_dataset())
        check.same_numbers(parts, whole, toy.model.scaling.sd)
