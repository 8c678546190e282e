"""Properties of the whole, on random networks, grids, chunkings and gaps (hypothesis).

Models are trained for one step, then every parameter is made random (see conftest): what is tested here is that
the data reach the network and come back right, not what it has learnt.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import xsuperres as xsr
from xsuperres.errors import XSuperResWarning
from xsuperres.inference import layout
from xsuperres.inference.apply import apply
from xsuperres.inference.frames import Frames
from xsuperres.inference.prepared import prepare
from xsuperres.nn.backbones import BACKBONES
from xsuperres.nn.upsamplers import UPSAMPLERS
from xsuperres.testing import toy_field

ROWS, COLUMNS, TIMES = 13, 16, 3
few = settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
many = settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])

networks = st.fixed_dictionaries(
    {
        "backbone": st.sampled_from(sorted(BACKBONES)),
        "upsampling": st.sampled_from(sorted(UPSAMPLERS)),
        "scale": st.integers(2, 5),
    }
)
grids = st.fixed_dictionaries(
    {
        "periodic": st.booleans(),
        "missing": st.booleans(),
        "domain": st.sampled_from(["fixed", "open"]),
        "west": st.sampled_from([0.5, 350.5, 172.5]),
        "dtype": st.sampled_from(["float32", "float64"]),
    }
)


@st.composite
def partitions(draw, size: int) -> tuple[int, ...]:
    """Return any way to cut `size` cells into chunks."""
    edges = draw(st.sets(st.integers(1, size - 1), max_size=4)) if size > 1 else set()
    edges = [0, *sorted(edges), size]
    return tuple(np.diff(edges).tolist())


chunkings = st.fixed_dictionaries({"time": partitions(TIMES), "lat": partitions(ROWS), "lon": partitions(COLUMNS)})
dim_orders = st.permutations(["time", "lat", "lon"])
holes = st.none() | st.integers(0, 10**6)
conventions = st.sampled_from(["given", "0..360", "-180..180", "turned"])


def toy(make_model, network: dict, where: dict, options: tuple = ()):
    seed = sum(map(ord, str(network))) % 97
    return make_model(coarse=(ROWS, COLUMNS), seed=seed, options=options, **network, **where)


def with_holes(coarse: xr.DataArray, seed: int | None) -> xr.DataArray:
    """Return `coarse` with random cells missing, and in one time a whole corner."""
    if seed is None:
        return coarse
    rng = np.random.default_rng(seed)
    missing = rng.random(coarse.shape) < rng.choice([0.02, 0.3])
    missing[rng.integers(len(missing)), : rng.integers(ROWS), : rng.integers(COLUMNS)] = True
    return coarse.copy(data=np.where(missing, np.nan, coarse.values).astype(coarse.dtype))


def in_convention(coarse: xr.DataArray, convention: str, cells: int = 5) -> xr.DataArray:
    """Return the same cells with longitudes written another way; columns move only where they must."""
    lon = coarse.lon.values
    if convention == "0..360":
        lon = lon % 360.0
    elif convention == "-180..180":
        lon = (lon + 180.0) % 360.0 - 180.0
    elif convention == "turned":
        lon = lon + 360.0
    return coarse.assign_coords(lon=coarse.lon.copy(data=lon))


@many
@given(networks, grids, chunkings, dim_orders, holes, conventions, st.booleans(), st.booleans())
def test_chunked_equals_whole(make_model, check, network, where, chunks, order, seed, convention, southward, merge):
    """The exactness promise, also for chunks smaller than the halo if these are not merged."""
    given_ = toy(make_model, network, where)
    coarse = with_holes(given_.coarse, seed if where["missing"] else None).transpose(*order)
    coarse = in_convention(coarse, convention)
    coarse = coarse.isel(lat=slice(None, None, -1)) if southward else coarse
    with pytest.MonkeyPatch.context() as patch:
        if not merge:
            patch.setattr(layout, "_merged", lambda data, plans: data)
        check.chunked_equals_whole(given_.model, coarse, chunks)


@pytest.mark.parametrize("upsampling", list(UPSAMPLERS))
def test_location_features_travel_with_their_cells(make_model, check, upsampling):
    given_ = make_model(
        upsampling=upsampling, scale=3, periodic=True, network=(("location_features", 2), ("skip", None))
    )
    check.chunked_equals_whole(given_.model, given_.coarse, {"lat": (5, 9), "lon": (7, 11)})
    check.rolling_commutes(given_.model, given_.coarse, 5)
    check.orientation_free(lambda da: da.sr.downscale(given_.model), given_.coarse, ("lat", "lon"))


@few
@given(networks, grids, st.integers(1, COLUMNS - 1), holes)
def test_rolling_the_globe_commutes_with_downscaling(make_model, check, network, where, cells, seed):
    given_ = toy(make_model, network, where | {"periodic": True})
    coarse = with_holes(given_.coarse, seed if where["missing"] else None)
    check.rolling_commutes(given_.model, coarse, cells)


@few
@given(networks, st.integers(1, COLUMNS - 1))
def test_rolling_static_fields_along_commutes_too(make_model, check, network, cells):
    """An open model on a globe it is given the static fields of."""
    given_ = toy(make_model, network, {"periodic": True, "domain": "open"})
    static = given_.fine.coords.to_dataset()[["elevation", "land_fraction"]].reset_coords()
    check.rolling_commutes(given_.model, given_.coarse, cells, static=static)


@few
@given(networks, grids, holes, dim_orders)
def test_north_to_south_gives_the_same_bits(make_model, check, network, where, seed, order):
    given_ = toy(make_model, network, where)
    coarse = with_holes(given_.coarse, seed if where["missing"] else None).transpose(*order)
    check.orientation_free(lambda da: da.sr.downscale(given_.model), coarse)
    check.orientation_free(lambda da: da.sr.downscale(given_.model), coarse, ("lat", "lon"))


@few
@given(networks, grids, dim_orders)
def test_order_of_dims_changes_no_bit(make_model, network, where, order):
    given_ = toy(make_model, network, where)
    got = given_.coarse.transpose(*order).sr.downscale(given_.model)
    assert got.dims == tuple(order)
    xr.testing.assert_identical(got.transpose("time", "lat", "lon"), given_.coarse.sr.downscale(given_.model))


@few
@given(networks, grids, conventions)
def test_longitude_conventions_change_labels_only(make_model, network, where, convention):
    """0..360, -180..180, one turn on: the same numbers, and longitudes that go on from the coarse ones."""
    given_ = toy(make_model, network, where)
    whole = given_.coarse.sr.downscale(given_.model)
    coarse = in_convention(given_.coarse, convention)
    got = coarse.sr.downscale(given_.model)
    np.testing.assert_array_equal(got.values, whole.values)
    np.testing.assert_allclose((got.lon - whole.lon.values + 180) % 360 - 180, 0, atol=1e-9)
    assert_longitudes_follow(got.lon.values, coarse.lon.values, given_.scale)


def assert_longitudes_follow(fine: np.ndarray, coarse: np.ndarray, scale: int) -> None:
    """Check that fine longitudes jump at most where the coarse ones do, or one cell beside."""
    steps = np.diff(fine)
    jumps = np.flatnonzero(steps <= 0)
    assert len(jumps) <= 1, "fine longitudes jump more than once around the globe"
    assert len(np.unique(fine)) == len(fine)
    allowed = np.flatnonzero(np.diff(coarse) <= 0)
    if len(jumps) and len(allowed):
        assert abs((jumps[0] + 1) / scale - (allowed[0] + 1)) <= 1


@few
@given(networks, grids, st.integers(1, 3), st.integers(0, 4), st.integers(8, 12))
def test_batch_dims_are_independent(make_model, check, network, where, members, first, width):
    """A member, a time or a crop gives what it gives inside the whole (a crop: away from its edges)."""
    given_ = toy(make_model, network, where)
    whole = given_.coarse.sr.downscale(given_.model)
    ensemble = xr.concat([given_.coarse + m for m in range(members)], "member").transpose("time", "member", ...)
    ensemble = ensemble.assign_attrs(given_.coarse.attrs).rename("tas")
    got = ensemble.sr.downscale(given_.model, batch_size=2)
    check.same_numbers(got.isel(member=0), whole, given_.model.scaling.sd)
    columns = slice(first, min(COLUMNS, first + width))
    crop = given_.coarse.isel(lon=columns).sr.downscale(given_.model)
    halo, scale = given_.model.halo, given_.scale
    inner = slice((columns.start + halo) * scale, (columns.stop - halo) * scale)
    if inner.start < inner.stop:
        part = slice(halo * scale, crop.sizes["lon"] - halo * scale)
        check.same_numbers(crop.isel(lon=part), whole.isel(lon=inner), given_.model.scaling.sd)
    xr.testing.assert_equal(crop.lon, whole.lon.isel(lon=slice(columns.start * scale, columns.stop * scale)))


@few
@given(networks, grids, st.integers(0, ROWS - 1), st.integers(6, COLUMNS - 7), st.booleans())
def test_a_missing_cell_stays_local(make_model, check, network, where, row, column, full):
    given_ = toy(make_model, network, where | {"missing": True})
    coarse = given_.coarse.fillna(280.0) if full else given_.coarse
    coarse = coarse.assign_attrs(given_.coarse.attrs)
    halo = given_.model.halo
    if where["periodic"] and not halo <= column < COLUMNS - halo:
        return

    def operation(da: xr.DataArray) -> xr.DataArray:
        return da.sr.downscale(given_.model, mask="input")

    check.missing_is_local(operation, coarse, (row, column), halo, given_.scale)


@few
@given(networks, st.booleans(), st.booleans())
def test_orientation_of_given_static_fields_changes_no_bit(make_model, network, southward, turned):
    given_ = toy(make_model, network, {"domain": "open"})
    static = given_.fine.coords.to_dataset()[["elevation", "land_fraction"]].reset_coords()
    other = static.isel(lat=slice(None, None, -1)) if southward else static
    other = other.transpose("lon", "lat").assign_coords(lon=other.lon - 360.0) if turned else other
    got = given_.coarse.sr.downscale(given_.model, static=other)
    expected = given_.coarse.sr.downscale(given_.model, static=static)
    np.testing.assert_array_equal(got.values, expected.values)
    np.testing.assert_array_equal(got.lat, expected.lat)


@pytest.mark.parametrize("upsampling", list(UPSAMPLERS))
@pytest.mark.parametrize(("columns", "depth"), [(16, 1), (5, 3)])
def test_a_globe_is_endless(make_model, check, upsampling, columns, depth):
    """Downscaling it gives the middle one of many laps side by side, also where the halo goes all the way round."""
    given_ = make_model(upsampling=upsampling, scale=2, coarse=(9, columns), periodic=True, network=(("depth", depth),))
    if upsampling == "subpixel" and depth == 3:
        assert given_.model.halo > columns
    laps = 2 * (-(-given_.model.halo // columns)) + 1
    values = given_.coarse.values[:, None]
    block = Frames(np.tile(values, laps), np.arange(9), np.tile(np.arange(columns), laps))
    side_by_side = apply(prepare(given_.model), block)[:, 0]
    middle = side_by_side[..., laps // 2 * columns * 2 : (laps // 2 + 1) * columns * 2]
    check.same_numbers(given_.coarse.sr.downscale(given_.model), middle, given_.model.scaling.sd)
    check.chunked_equals_whole(given_.model, given_.coarse, {"lat": 4, "lon": (1, columns - 1)})


SERIES = 7


class _Options(tuple):
    """Options of `fit` that may hold dicts: a key of the models kept."""

    def __hash__(self) -> int:
        return hash(str(list(self)))


parts = st.fixed_dictionaries(
    {
        "dropout": st.sampled_from([None, "vanilla", "spatial", "gaussian"]),
        "attention": st.sampled_from([None, "local", "channel"]),
        "normalization": st.sampled_from([None, "batch", "layer", "group"]),
        "separable": st.booleans(),
    }
)
series = st.fixed_dictionaries({"time": partitions(SERIES), "lat": partitions(ROWS), "lon": partitions(COLUMNS)})


def lengthened(coarse: xr.DataArray, seed: int, gap: int | None) -> xr.DataArray:
    """Return a longer series of fields like the given ones, with a gap before one of its steps."""
    rng = np.random.default_rng(seed)
    values = coarse.values[rng.integers(len(coarse), size=SERIES)]
    values = (values + rng.normal(size=(SERIES, 1, 1))).astype(coarse.dtype)
    hours = np.arange(SERIES) * 6 + (0 if gap is None else 240 * (np.arange(SERIES) >= gap))
    times = coarse.time.values[0] + hours * np.timedelta64(1, "h")
    return coarse.isel(time=np.zeros(SERIES, int)).copy(data=values).assign_coords(time=times)


@many
@given(
    networks,
    grids,
    parts,
    st.sampled_from([None, (2, "last"), (3, "last"), (3, "centre")]),
    st.booleans(),
    st.none() | st.integers(1, SERIES - 1),
    series,
    dim_orders,
    st.integers(0, 10**6),
)
def test_windows_and_members_in_chunks(
    make_model, check, network, where, parts, window, noise, gap, chunks, order, seed
):
    """Any part, any window across any gap, any members, cut in any way."""
    options: dict = {"sampling": {"batch_size": 2, "patch_size": None}}
    if noise:
        options |= {"training": "adversarial", "adversarial": {"noise": 2, "width": 4, "depth": 1, "warm_up": 0.0}}
    data = {}
    if window is not None:
        options["time_window"], data["time_alignment"] = window
    given_ = toy(
        make_model,
        network,
        where | {"network": tuple(parts.items()), "data": tuple(data.items())},
        _Options(options.items()),
    )
    coarse = with_holes(lengthened(given_.coarse, seed, gap), seed if where["missing"] else None).transpose(*order)
    members = {"members": 2, "seed": seed} if noise or parts["dropout"] else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XSuperResWarning)  # gaps, and channel attention that cannot be tiled
        check.chunked_equals_whole(given_.model, coarse, chunks, **members)


@cache
def several(window: int | None, missing: bool, reinitialise) -> tuple[xr.Dataset, xr.DataArray, xsr.SRModel]:
    """Return two coarse variables of other dtypes, a predictor, and a model with random weights of all three."""
    fine = toy_field(time=5, y=2 * ROWS, x=2 * COLUMNS, periodic=True, seed=3)
    fine = fine.where((fine.lon < 90) | (fine.lat > 0)) if missing else fine
    other = (2 * fine.astype("float64") - 250).rename("dew").assign_attrs(units="degC")
    ds = xr.Dataset({"tas": fine, "dew": other})
    predictor = (
        toy_field(time=5, y=2 * ROWS, x=2 * COLUMNS, periodic=True, seed=4).rename("psl").reset_coords(drop=True)
    )
    settings_ = {"network": {"width": 5, "depth": 1, "head_width": 4}, "optimization": {"max_steps": 1}}
    predictor = predictor.sr.coarsen(2).assign_attrs(units="Pa")
    quiet = {"validation": None, "progress": False, "activate": False}
    model = ds.sr.fit(2, predictors=predictor, time_window=window, **settings_, **quiet)
    reinitialise(model.network)
    coarse = ds.sr.coarsen(2).drop_vars(["elevation", "land_fraction"])
    return coarse, predictor, replace(model)


@few
@given(
    st.sampled_from([None, 3]),
    st.booleans(),
    st.fixed_dictionaries({"time": partitions(5), "lat": partitions(ROWS), "lon": partitions(COLUMNS)}),
    st.booleans(),
    dim_orders,
)
def test_variables_and_predictors_in_chunks(check, reinitialise, window, missing, chunks, lazy_predictor, order):
    """Each variable in its own units and dtype; a predictor in memory, or in chunks of its own."""
    coarse, predictor, model = several(window, missing, reinitialise)
    coarse = coarse.transpose(*order)
    whole = coarse.sr.downscale(model, predictors=predictor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XSuperResWarning)
        beside = predictor.chunk(time=2, lat=5) if lazy_predictor else predictor
        lazy = coarse.chunk(chunks).sr.downscale(model, predictors=beside)
        parts = lazy.compute(scheduler="synchronous")
    for name, sd in zip(("tas", "dew"), model.channels.scale.sd, strict=False):
        assert lazy[name].chunks is not None and parts[name].dtype == coarse[name].dtype
        check.same_numbers(parts[name], whole[name], sd)


@few
@given(networks, st.sampled_from(["vanilla", "spatial", "gaussian"]), st.integers(1, COLUMNS - 1), chunkings)
def test_members_belong_to_cells_of_the_data(make_model, check, network, dropout, cells, chunks):
    """Cut in any way, with the globe turned as well: what is random goes by the cells of the data as they are given."""
    given_ = toy(make_model, network, {"periodic": True, "network": (("dropout", dropout),)})
    turned = given_.coarse.roll(lon=cells, roll_coords=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XSuperResWarning)
        check.chunked_equals_whole(given_.model, turned, chunks, members=2, seed=cells)


@few
@given(networks, st.sampled_from([None, 3]), st.integers(1, COLUMNS - 1), st.integers(0, 10**6))
def test_windows_roll_with_the_globe(make_model, check, network, window, cells, seed):
    options = () if window is None else (("time_window", window),)
    given_ = toy(make_model, network, {"periodic": True}, options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XSuperResWarning)  # six hours, a day in training
        check.rolling_commutes(given_.model, lengthened(given_.coarse, seed, None), cells)
