"""Regridding: weights against brute force, conservation, gaps, labels, laziness, what is refused."""

from __future__ import annotations

import itertools

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import xsuperres as xsr
from xsuperres.errors import ConfigError, DataError, GridError, UnknownNameError
from xsuperres.fields import regrid as regridding
from xsuperres.fields.axes import Axis
from xsuperres.fields.field import Field
from xsuperres.fields.grid import Grid, grid_of
from xsuperres.fields.regrid import covered, linear_weights, overlap_weights
from xsuperres.testing import toy_field


def regrid(da, target, **options):
    """Return an array on another grid."""
    return regridding.regrid(Field.of(da), target, **options).array


UNITS = {"lat": "degrees_north", "lon": "degrees_east"}


def field(lat, lon, *, time: int = 0, dtype="float64", seed: int = 0, names=("lat", "lon")) -> xr.DataArray:
    """Return random kelvins on latitudes and longitudes."""
    shape = (time,) * bool(time) + (len(lat), len(lon))
    values = np.random.default_rng(seed).normal(280, 5, shape).astype(dtype)
    y, x = names
    coords = {
        y: (y, np.asarray(lat), {"units": UNITS["lat"], "standard_name": "latitude"}),
        x: (x, np.asarray(lon), {"units": UNITS["lon"], "standard_name": "longitude"}),
    }
    return xr.DataArray(
        values, dims=("time",) * bool(time) + (y, x), coords=coords, name="tas", attrs={"units": "K", "history": "made"}
    )


def grid(lat, lon, **options) -> Grid:
    return grid_of(field(lat, lon, **options))


def axis(edges, kind="other", *, at=0.5, periodic=False, **options) -> Axis:
    """Return the axis of cells between edges, centres at a fraction of their width."""
    edges = np.asarray(edges, float)
    lower, upper = edges[:-1], edges[1:]
    return Axis("x", "x", kind, lower + at * (upper - lower), lower, upper, periodic=periodic, **options)


WHOLE = (np.arange(90.0, -91.0, -1.0), np.arange(0.0, 360.0))  # a forecast: whole degrees, half cells at the poles
QUARTER = (np.arange(720) * 0.25 - 89.875, np.arange(1440) * 0.25)


# Oracles, cell by cell.


def oracle_overlap(source: Axis, target: Axis) -> np.ndarray:
    def length(low, high):
        if high <= low:
            return 0.0
        return np.sin(np.radians(high)) - np.sin(np.radians(low)) if source.kind == "latitude" else high - low

    turns = range(-6, 7) if source.kind == "longitude" else [0]
    out = np.zeros((target.size, source.size))
    for i, j, turn in itertools.product(range(target.size), range(source.size), turns):
        low = max(target.lower[i], source.lower[j] + 360.0 * turn)
        high = min(target.upper[i], source.upper[j] + 360.0 * turn)
        out[i, j] += length(low, high) / length(target.lower[i], target.upper[i])
    return out


def oracle_linear(source: Axis, target: Axis) -> np.ndarray:
    """Interpolate unit vectors with numpy, on as many turns as it takes; the edge is inside, to a thousandth."""
    low, high = source.lower[0] - 1e-3 * source.spacing, source.upper[-1] + 1e-3 * source.spacing
    turns = np.arange(-6, 7) * 360.0 if source.kind == "longitude" else np.zeros(1)
    out = np.zeros((target.size, source.size))
    for i, at in enumerate(target.centres):
        inside = [turn for turn in turns if low + turn <= at <= high + turn]
        if inside:
            laps = turns if source.periodic else inside[:1]
            points = np.concatenate([source.centres + lap for lap in laps])
            for j in range(source.size):
                unit = np.tile(np.arange(source.size) == j, len(laps)).astype(float)
                out[i, j] = np.interp(at, points, unit)
    return out


def oracle_regrid(values: np.ndarray, source: Grid, target: Grid, fraction: float) -> np.ndarray:
    """Average one canonical plane over target cells, from the areas shared by pairs of cells."""
    wy, wx = oracle_overlap(source.y, target.y), oracle_overlap(source.x, target.x)
    out = np.full(target.shape, np.nan)
    for row, column in np.ndindex(*target.shape):
        shared = np.outer(wy[row], wx[column])
        valid = np.isfinite(values) & (shared > 1e-12)
        if valid.any() and shared[valid].sum() >= fraction * shared.sum() - 1e-9:
            out[row, column] = (shared[valid] * values[valid]).sum() / shared[valid].sum()
    return out


def steps(rng: np.random.Generator, count: int, span: float) -> np.ndarray:
    """Return edges from 0 to `span` whose neighbouring cells differ by less than a factor of 1.4."""
    widths = rng.uniform(1.0, 1.4, count)
    return np.concatenate([[0.0], np.cumsum(widths)]) * span / widths.sum()


def random_axes(seed: int, kind: str) -> tuple[Axis, Axis]:
    """Return uneven axes, the target partly outside where the source is no circle."""
    rng = np.random.default_rng(seed)
    at = rng.uniform(0.2, 0.8)
    ny, nx = rng.integers(2, 12, 2)
    periodic = kind == "longitude" and bool(rng.random() < 0.6)
    span = 360.0 if periodic else rng.uniform(20.0, 80.0)
    start = rng.choice([0.0, -180.0, 350.0, -0.125, 720.0]) if kind == "longitude" else -rng.uniform(0.0, 70.0)
    source = axis(start + steps(rng, ny, span), kind, at=at, periodic=periodic)
    west = start + rng.uniform(-0.2, 1.0) * span
    width = min(rng.uniform(0.1, 1.0) * span, 85.0 - west if kind == "latitude" else np.inf)
    lap = 360.0 * rng.integers(-2, 3) if kind == "longitude" else 0.0
    return source, axis(west + lap + steps(rng, nx, width), kind, at=at)


kinds = st.sampled_from(["latitude", "longitude", "longitude", "other"])


class TestOverlap:
    @given(st.integers(0, 10**6), kinds)
    def test_against_brute_force(self, seed, kind):
        source, target = random_axes(seed, kind)
        got, expected = overlap_weights(source, target), oracle_overlap(source, target)
        assert got.shape == (target.size, source.size)
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-9)
        if source.periodic:
            np.testing.assert_allclose(got.sum(axis=1), 1.0, rtol=1e-12)
        assert got.sum(axis=1).max() <= 1.0 + 1e-12

    @given(st.integers(0, 10**6))
    def test_lengths_are_conserved(self, seed):
        """Over a whole circle the weights, times the target's lengths, give each source cell's length."""
        rng = np.random.default_rng(seed)
        west = rng.choice([0.0, -180.0, 350.0, 123.4], 2)
        source, target = (
            axis(start + steps(rng, n, 360.0), "longitude", periodic=True)
            for start, n in zip(west, rng.integers(2, 20, 2), strict=True)
        )
        np.testing.assert_allclose(target.lengths() @ overlap_weights(source, target), source.lengths(), rtol=1e-9)

    def test_latitudes_are_measured_by_their_sine(self):
        got = overlap_weights(axis([0.0, 30.0, 90.0], "latitude"), axis([0.0, 90.0], "latitude"))
        np.testing.assert_allclose(got, [[0.5, 0.5]])

    @pytest.mark.parametrize("west", [-10.0, 350.0, 710.0])
    def test_across_the_seam(self, west):
        got = overlap_weights(
            axis(np.arange(0, 361, 90.0), "longitude", periodic=True), axis([west, west + 20], "longitude")
        )
        np.testing.assert_allclose(got, [[0.5, 0, 0, 0.5]])

    def test_rows_sum_to_what_is_covered(self):
        got = overlap_weights(axis([0, 1, 2, 3.0]), axis([-3.0, -1, 1, 2, 6]))
        np.testing.assert_allclose(got.sum(axis=1), [0, 0.5, 1, 0.25])

    @pytest.mark.parametrize("short", [0.006, -0.006])
    def test_a_circle_has_no_seam(self, short):
        """Of float32 longitudes the ends do not quite meet; a cell that lies across is covered all the same."""
        lon = np.arange(0.0, 360.0)
        lon[0] += short
        da = field(np.arange(0.0, 9), lon.astype(np.float32))
        assert grid_of(da).x.periodic
        seam = axis([-0.6, -0.4, 359.45, 359.55], "longitude")
        np.testing.assert_allclose(overlap_weights(grid_of(da).x, seam).sum(axis=1), 1.0, rtol=1e-12)
        assert regrid(da, grid(np.arange(1.0, 8), np.arange(-180, 180) * 1.0 + 0.5)).notnull().all()

    def test_rounding_leaves_no_weight_on_a_neighbour(self):
        """The same edges, each computed in its own way."""
        source = axis(0.1 * np.arange(3601), "longitude", periodic=True)
        for edges in (np.linspace(-360.0, 0.0, 901), np.linspace(0.0, 360.0, 901), np.cumsum([-720.0] + [0.4] * 900)):
            weights = overlap_weights(source, axis(edges, "longitude"))
            assert (np.count_nonzero(weights, axis=1) == 4).all()

    def test_cells_that_overlap_each_other_are_no_more_than_the_cell(self):
        """Of an uneven circle, bounds half-way between centres may overlap at the ends."""
        source = axis(np.linspace(0.0, 361.0, 20), "longitude")
        np.testing.assert_allclose(overlap_weights(source, axis([0.0, 1.0, 2.0], "longitude")).sum(axis=1), 1.0)


class TestLinear:
    @given(st.integers(0, 10**6), kinds)
    def test_against_numpy(self, seed, kind):
        source, target = random_axes(seed, kind)
        np.testing.assert_allclose(linear_weights(source, target), oracle_linear(source, target), rtol=0, atol=1e-9)

    def test_nearest_in_the_outermost_half_cell_and_nothing_beyond(self):
        points = np.array([-0.2, 0.0, 0.4, 0.5, 1.0, 2.9, 3.0, 3.2])
        target = Axis("x", "x", "other", points, points - 0.01, points + 0.01)
        expected = [[0, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0], [0.5, 0.5, 0], [0, 0, 1], [0, 0, 1], [0, 0, 0]]
        np.testing.assert_allclose(linear_weights(axis([0, 1, 2, 3.0]), target), expected)

    @pytest.mark.parametrize("at", [0.0, 360.0, -360.0])
    def test_wraps(self, at):
        source = axis(np.arange(0, 361, 90.0), "longitude", periodic=True)
        got = linear_weights(source, axis([at - 9, at + 9], "longitude"))
        np.testing.assert_allclose(got, [[0.5, 0, 0, 0.5]])

    def test_nothing_is_interpolated_across_a_gap(self):
        lon = np.r_[0.5:5, 20.5:25]
        source = grid_of(field([0.0, 1.0], lon), gaps=True).x
        points = np.array([4.9, 10.0, 20.1, 20.75])
        got = linear_weights(source, Axis("x", "x", "longitude", points, points - 0.1, points + 0.1))
        expected = np.zeros((4, 10))
        expected[0, 4], expected[2, 5], expected[3, 5:7] = 1.0, 1.0, (0.75, 0.25)
        np.testing.assert_allclose(got, expected, atol=1e-12)

    def test_a_lone_cell(self):
        np.testing.assert_allclose(linear_weights(axis([0, 4.0]), axis([0.0, 1.0, 2.0, 8.0])), [[1], [1], [0]])


def mean_of(da: xr.DataArray, south: float = -90.0) -> np.ndarray:
    """Return the area-weighted mean north of `south`, areas written down anew."""
    lat = da.lat.values
    inner = (lat[1:] + lat[:-1]) / 2
    edges = np.concatenate([[1.5 * lat[0] - 0.5 * lat[1]], inner, [1.5 * lat[-1] - 0.5 * lat[-2]]])
    band = np.abs(np.diff(np.sin(np.radians(np.clip(edges, south, 90.0)))))
    zonal = da.transpose(..., "lat", "lon").values.astype(np.float64).mean(axis=-1)
    return (zonal * band).sum(axis=-1) / band.sum()


class TestConservation:
    @pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-7), ("float64", 1e-13)])
    @pytest.mark.parametrize("west", [0.0, -180.0, 350.0])
    def test_a_forecast_on_whole_degrees_to_blocks_of_quarter_degrees(self, dtype, rtol, west):
        fine = grid(QUARTER[0], (QUARTER[1] + west + 180.0) % 360.0 - 180.0 if west < 0 else QUARTER[1] + west)
        da = field(*WHOLE, time=2, dtype=dtype)
        got = regrid(da, fine.coarsen(4))
        assert got.shape == (2, 180, 360)
        assert got.dtype == dtype
        assert got.notnull().all()
        np.testing.assert_allclose(mean_of(got), mean_of(da), rtol=rtol)

    @pytest.mark.parametrize("rows", [slice(0, 720), slice(1, 721)])
    def test_to_blocks_of_a_globe_of_721_rows_less_one(self, rows):
        lat = (90.0 - 0.25 * np.arange(721))[rows]
        target = grid(lat, QUARTER[1]).coarsen(4)
        da = field(*WHOLE)
        if rows.start == 1:  # the other way up, so that one mean serves both
            da, target = da.assign_coords(lat=-da.lat), grid(-lat, QUARTER[1]).coarsen(4)
        got = regrid(da, target)
        bands = target.area.mean(axis=1)[::-1] if got.lat[0] > got.lat[1] else target.area.mean(axis=1)
        mean = (got.values.mean(axis=-1) * bands).sum() / bands.sum()
        np.testing.assert_allclose(mean, mean_of(da, south=-89.875), rtol=1e-12)

    def test_gaussian_latitudes(self):
        """Cells are uneven, and the outermost reach the pole though half-way bounds do not."""
        lat = np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(32)[0]))
        da = field(lat, np.arange(0.0, 360.0, 5.625))
        source, target = grid_of(da), grid(np.arange(-87.5, 90, 5.0), np.arange(2.5, 360, 5.0))
        assert source.y.upper[-1] < 90.0
        assert covered(source, target)
        got = regrid(da, target, method="conservative")
        edges = np.concatenate([[-90.0], source.y.upper[:-1], [90.0]])
        zonal = da.values.mean(axis=1)
        expected = (zonal * np.diff(np.sin(np.radians(edges)))).sum() / 2.0
        np.testing.assert_allclose(mean_of(got), expected, rtol=1e-12)
        assert regrid(da, target, method="linear").notnull().all()
        back = regrid(got, source)
        assert back.notnull().all()
        assert back.shape == source.shape

    def test_a_region_that_stops_short_of_the_pole_does_not_reach_it(self):
        lon = np.arange(0.0, 360.0, 10.0)
        assert not covered(grid(np.arange(40.0, 90.0), lon), grid(np.arange(60.5, 90.0), lon))
        assert covered(grid(np.arange(40.0, 91.0), lon), grid(np.arange(60.5, 90.0), lon))


@settings(max_examples=40)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["0..360", "-180..180", "350..370"]),
    st.booleans(),
    st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]),
    st.sampled_from([0.0, 0.3, 0.8]),
)
def test_fields_against_brute_force(seed, convention, globe, fraction, missing):
    """Uneven axes, either way up, in three conventions of longitude on each side, wrapping or not, with gaps."""
    rng = np.random.default_rng(seed)

    def told(lon, convention):
        start = {"0..360": 0.0, "-180..180": -180.0}.get(convention)
        return lon if start is None else (lon - start) % 360.0 + start

    ny, nx = rng.integers(4, 9, 2)
    centres = lambda count, span: steps(rng, 2 * count, span)[1::2]  # noqa: E731
    west = 350.0 if convention == "350..370" else rng.uniform(-170.0, 170.0)
    lon = west + (np.arange(nx) * 360.0 / nx if globe else centres(nx, 60.0))
    da = field(centres(ny, 80.0) - rng.uniform(0.0, 70.0), told(lon, convention), seed=seed)
    da.values[rng.random(da.shape) < missing] = np.nan
    source = grid_of(da)
    assert source.x.periodic == globe
    inner = rng.uniform(0.3, 0.9)
    south, east = source.y.centres[0], west if globe else source.x.centres[0]
    lat = south + inner * centres(3, source.y.centres[-1] - south)
    span = rng.uniform(100.0, 300.0) if globe else inner * (source.x.centres[-1] - east)
    start = east - (rng.uniform(0.0, 360.0) if globe else 0.0)
    target = grid(lat, told(start + 0.02 * span + 0.9 * centres(4, span), rng.choice(["0..360", "-180..180", "any"])))
    if rng.random() < 0.5:
        da = da.isel(lat=slice(None, None, -1))
    got = regrid(da, target, method="conservative", minimum_valid_fraction=fraction)
    expected = oracle_regrid(source.canonical(da.sortby("lat")).values, source, target, fraction)
    np.testing.assert_allclose(got.values, expected, rtol=1e-9)


class TestMissing:
    @pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 0.75, 1.0])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("lat", [np.linspace(-90, 90, 24), np.linspace(60, -31, 24)])
    def test_equals_coarsening_on_its_own_grid(self, fraction, dtype, lat):
        da = toy_field(time=3, y=24, x=36, periodic=True, dtype=dtype).drop_vars(["elevation", "land_fraction"])
        da = da.assign_coords(lat=da.lat.copy(data=lat))
        da.values[np.random.default_rng(0).random(da.shape) < 0.5] = np.nan
        da.values[0] = 280.0
        da.values[1, :4, :4] = np.nan
        expected = da.sr.coarsen(4, minimum_valid_fraction=fraction)
        got = regrid(da, grid_of(da).coarsen(4), minimum_valid_fraction=fraction)
        assert expected.isnull().any()
        xr.testing.assert_allclose(got, expected, rtol=2e-7 if dtype == "float32" else 1e-13)
        assert got.dims == expected.dims
        xr.testing.assert_identical(got.coords.to_dataset(), expected.coords.to_dataset())

    @pytest.mark.parametrize("method", ["conservative", "linear"])
    @pytest.mark.parametrize(("dtype", "rtol"), [("float32", 0.0), ("float64", 1e-15)])
    def test_a_constant_survives(self, method, dtype, rtol):
        da = field(*WHOLE, dtype=dtype)
        da.values[:] = 287.123
        holes = np.random.default_rng(0).random(da.shape) < 0.3
        for missing in (False, holes):
            got = regrid(
                da.where(~np.asarray(missing)), grid(np.arange(-88.0, 89, 1.6), np.arange(0.3, 360, 1.6)), method=method
            )
            assert got.isnull().any() == np.any(missing)
            np.testing.assert_allclose(got.values[got.notnull().values], da.values[0, 0], rtol=rtol)

    @pytest.mark.parametrize("method", ["conservative", "linear"])
    def test_a_missing_cell_is_felt_by_its_neighbours_alone(self, method):
        da = field(np.arange(0.0, 10), np.arange(0.0, 10))
        holed = da.copy(deep=True)
        holed[4, 6] = np.nan
        target = grid(np.arange(0.25, 9), np.arange(0.25, 9))
        before, after = (regrid(each, target, method=method) for each in (da, holed))
        changed = np.argwhere(before.values != after.values)
        assert {tuple(cell) for cell in changed.tolist()} == set(itertools.product((3, 4), (5, 6)))

    def test_linear_wants_half_the_weight(self):
        da = field(np.arange(0.0, 4), np.arange(0.0, 4))
        da.values[:, 1] = np.nan
        target = grid([1.0, 2.0], [0.4, 0.5, 0.6], names=("lat", "lon"))
        got = regrid(da, target, method="linear")
        np.testing.assert_allclose(got[:, :2], np.repeat(da.values[1:3, :1], 2, axis=1))
        assert got[:, 2].isnull().all()
        assert got.identical(regrid(da, target, method="linear", minimum_valid_fraction=1.0))

    def test_all_missing_stays_missing(self):
        da = field(*WHOLE) * np.nan
        with np.errstate(all="raise"):
            assert regrid(da, grid(*QUARTER).coarsen(8), minimum_valid_fraction=0.0).isnull().all()


class TestMethod:
    def test_linear_reproduces_a_plane(self):
        lat, lon = np.linspace(-30, 30, 21), np.linspace(340, 380, 15)
        da = field(lat, lon % 360.0)
        da.values[:] = 3.0 + 2.0 * lat[:, None] - 0.5 * lon[None, :]
        target = grid(np.sort(np.r_[-28.0, 3.3 * np.arange(-8, 9)]), np.linspace(341.5, 378, 30) - 360.0)
        got = regrid(da, target, method="linear")
        expected = (
            3.0
            + 2.0 * target.y.centres[:, None]
            - 0.5 * (target.x.centres % 360 + 360 * (target.x.centres % 360 < 180))[None, :]
        )
        np.testing.assert_allclose(got, expected, rtol=1e-12)

    @pytest.mark.parametrize(
        ("lat", "lon", "expected"),
        [
            (1.0, 1.0, "conservative"),
            (2.0, 2.0, "conservative"),
            (0.5, 0.5, "conservative"),
            (0.4, 2.0, "linear"),
            (2.0, 0.4, "linear"),
            (0.4, 0.4, "linear"),
        ],
    )
    def test_by_default_the_coarser_side_decides(self, lat, lon, expected):
        """Up to twice as coarse is averaged, as fields given to `downscale` are."""
        da = field(np.arange(0.0, 20), np.arange(0.0, 20).astype(np.float32))
        target = grid(np.arange(2.3, 15, lat), np.arange(2.3, 15, lon))
        got = regrid(da, target)
        assert got.identical(regrid(da, target, method=expected))
        assert got.attrs["history"] == f"made\nxsuperres {xsr.__version__}: regridding, {expected}"

    def test_choices(self):
        da = field(np.arange(0.0, 20), np.arange(0.0, 20))
        with pytest.raises(UnknownNameError, match="method of regridding 'cubic'"):
            regrid(da, grid_of(da).coarsen(2), method="cubic")
        with pytest.raises(ConfigError, match="minimum_valid_fraction"):
            regrid(da, grid_of(da).coarsen(2), minimum_valid_fraction=1.5)
        with pytest.raises(DataError, match="integer"):
            regrid(da.astype(int), grid_of(da).coarsen(2))

    def test_sums_are_float64(self):
        da = field(np.arange(64) * 0.5, np.arange(64) * 0.5, dtype="float32")
        exact = regrid(da.astype("float64"), grid_of(da).coarsen(64), method="conservative")
        got = regrid(da, grid_of(da).coarsen(64))
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, exact.astype("float32"))


class TestSameCells:
    @pytest.mark.parametrize("west", [0.5, -179.5, 348.5])
    @pytest.mark.parametrize("flips", [(), ("lat",), ("lat", "lon")])
    @pytest.mark.parametrize("lazy", [False, True])
    def test_values_are_taken_bit_for_bit(self, west, flips, lazy):
        """Centres may be off by less than a thousandth of a cell; arithmetic would be seen then."""
        da = field(np.arange(-59.5, 60, 3), np.arange(0.5, 360, 3), time=2, dtype="float32")
        da.values[0, 3, 5], da.values[1, 2, 2] = np.nan, np.inf
        lon = np.arange(120) * 3.0 + west + 0.002
        target = field(da.lat.values - 0.002, lon).isel({dim: slice(None, None, -1) for dim in flips})
        got = regrid(da.chunk(time=1) if lazy else da, grid_of(target))
        assert (got.chunks is not None) == lazy
        assert "selection of cells" in got.attrs["history"]
        for dim in ("lat", "lon"):
            xr.testing.assert_identical(got[dim], target[dim])
        columns = (np.round((target.lon.values - 0.5) / 3) % 120).astype(int)
        rows = slice(None, None, -1) if "lat" in flips else slice(None)
        np.testing.assert_array_equal(got.values, da.values[:, rows][..., columns])

    def test_a_crop_is_selected_and_shares_no_memory(self):
        da = field(np.arange(10.0, 30), np.arange(10.0, 30))
        got = regrid(da, grid(np.arange(12.0, 20), np.arange(11.0, 29)))
        np.testing.assert_array_equal(got, da.values[2:10, 1:19])
        assert not np.shares_memory(got.values, da.values)

    def test_a_lone_wide_cell_is_not_the_narrow_one_at_its_centre(self):
        da = field(np.arange(1.0, 6), np.arange(1.0, 6))
        target = grid_of(da).coarsen(5)
        assert target.shape == (1, 1)
        expected = da.sr.coarsen(5).item()
        assert regrid(da, target).item() == pytest.approx(expected, rel=1e-12)
        assert expected != pytest.approx(float(da[2, 2]), abs=1e-3)


class TestLabels:
    target = grid([10.0, 12.0, 14.0], [20.0, 22.0, 24.0, 26.0])
    source = field(np.arange(0.5, 25), np.arange(10.5, 40), time=2, dtype="float32")

    @pytest.mark.parametrize("order", list(itertools.permutations(["time", "member", "lat", "lon"])))
    def test_any_order_of_dims(self, order):
        da = self.source.expand_dims(member=[3, 7]) + xr.DataArray([0.0, 5.0], dims="member").astype("float32")
        expected = regrid(da, self.target)
        got = regrid(da.transpose(*order), self.target)
        assert got.dims == order
        xr.testing.assert_identical(got.transpose(*expected.dims), expected)
        np.testing.assert_array_equal(expected[:, :].sel(member=3), regrid(self.source, self.target))

    @pytest.mark.parametrize("flips", [("lat",), ("lon",), ("lat", "lon")])
    def test_orientation_is_the_targets(self, flips):
        flip = {dim: slice(None, None, -1) for dim in flips}
        expected = regrid(self.source, self.target)
        xr.testing.assert_identical(regrid(self.source.isel(flip), self.target), expected)
        turned = grid_of(field([10.0, 12.0, 14.0], [20.0, 22.0, 24.0, 26.0]).isel(flip))
        xr.testing.assert_identical(regrid(self.source, turned), expected.isel(flip))

    def test_names_and_coordinates_of_the_target(self):
        da = self.source.assign_coords(
            lead=3,
            kind=("time", ["a", "b"]),
            elevation=(("lat", "lon"), np.zeros((25, 30))),
            band=("lat", np.arange(25)),
        )
        da.encoding = {"scale_factor": 0.01, "dtype": "int16"}
        target = field([10.0, 12.0, 14.0], [-340.0, -338.0], names=("latitude", "longitude"))
        target = target.assign_coords(orography=(("latitude", "longitude"), np.ones((3, 2))))
        got = regrid(da, grid_of(target))
        assert got.dims == ("time", "latitude", "longitude")
        assert set(got.coords) == {"latitude", "longitude", "orography", "lead", "kind"}
        for name in ("latitude", "longitude", "orography"):
            xr.testing.assert_identical(got[name].variable, target[name].variable)
        assert got.kind.values.tolist() == ["a", "b"]
        assert (got.name, got.dtype, got.attrs["units"]) == ("tas", np.float32, "K")
        assert got.attrs["history"].startswith(f"made\nxsuperres {xsr.__version__}: regridding")
        assert not got.encoding
        assert da.attrs["history"] == "made"

    def test_coordinates_under_another_name_than_the_dim(self):
        lines = {
            name: (dim, self.source[name].values, self.source[name].attrs) for name, dim in (("lat", "j"), ("lon", "i"))
        }
        da = self.source.drop_vars(["lat", "lon"]).rename(lat="j", lon="i").assign_coords(lines)
        xr.testing.assert_identical(regrid(da, self.target), regrid(self.source, self.target))
        got = regrid(self.source, grid_of(da).coarsen(5))
        assert got.dims == ("time", "j", "i")
        assert got.lat.dims == ("j",)

    def test_rotated_and_projected_axes(self, rotated_field):
        target = grid_of(rotated_field).coarsen(2)
        got = regrid(rotated_field, target)
        xr.testing.assert_allclose(got, rotated_field.sr.coarsen(2), rtol=1e-6)
        assert {"lat", "lon", "rlat", "rlon", "rotated_pole"} == set(got.coords) - {"time"}
        assert got.attrs["grid_mapping"] == "rotated_pole"
        metres = xr.DataArray(
            np.arange(48.0).reshape(6, 8), dims=("y", "x"), coords={"y": 1e3 * np.arange(6), "x": 1e3 * np.arange(8)}
        )
        xr.testing.assert_allclose(regrid(metres, grid_of(metres).coarsen(2)), metres.sr.coarsen(2))

    def test_big_endian_and_empty(self):
        swapped = self.source.astype(">f4", keep_attrs=True)
        xr.testing.assert_identical(regrid(swapped, self.target), regrid(self.source, self.target))
        assert regrid(self.source[:0], self.target).shape == (0, 3, 4)


class TestRefusals:
    region = field(np.arange(0.5, 20), np.arange(350.5, 380))

    @pytest.mark.parametrize(
        ("lat", "lon", "words"),
        [
            ([15.0, 17.0, 19.0, 21.0], [355.0, 357.0], "'lat'.*from 14 to 22, those of the data from 0 to 20"),
            ([5.0, 7.0], [340.0, 350.0, 360.0], "'lon'.*from 335 to 365, those of the data from 350 to 380"),
            ([5.0, 7.0], np.arange(0.0, 360.0, 5.0), "'lon'"),
            ([0.4, 1.4, 2.4], [355.0, 357.0], "'lat'"),
        ],
    )
    @pytest.mark.parametrize("method", [None, "conservative", "linear"])
    def test_extrapolation(self, lat, lon, words, method):
        target = grid(lat, lon)
        assert not covered(grid_of(self.region), target)
        with pytest.raises(GridError, match=words + ".*extrapolated.*crop the target"):
            regrid(self.region, target, method=method)

    def test_the_edge_itself_is_inside(self):
        for west in (350.5, -9.5):
            for off in (0.0, 4e-4, -4e-4):
                target = grid(np.arange(0.5, 20) + off, np.arange(west, west + 29.5) + 0.5 - 0.5).coarsen(2)
                assert covered(grid_of(self.region), target)

    def test_other_kinds_of_axes(self, rotated_field):
        metres = xr.DataArray(np.zeros((9, 9)), dims=("y", "x"), coords={"y": np.arange(9.0), "x": np.arange(9.0)})
        inside = grid(np.arange(-2.0, 3), np.arange(-2.0, 3))
        renamed = rotated_field.drop_vars(["lat", "lon"]).rename(rlat="lat", rlon="lon")
        turned = "rotated latitude x rotated longitude"
        for da, told in ((metres, "other x other"), (rotated_field, turned), (renamed, turned)):
            assert not covered(grid_of(da), inside)
            with pytest.raises(
                GridError, match=f"expected axes that are latitude x longitude, got {told}.*[Aa]nnotate"
            ):
                regrid(da, inside)

    def test_a_name_that_is_taken(self):
        da = self.region.expand_dims(y=2)
        metres = grid([5.0, 7.0, 9.0], [355.0, 357.0], names=("y", "x"))
        with pytest.raises(GridError, match=r"\['y'\].*rename"):
            regrid(da, metres)
        with pytest.raises(GridError, match=r"\['x'\].*rename"):
            regrid(self.region.assign_coords(x=3), metres)


class Refuses:
    """A scheduler that refuses to compute."""

    def __call__(self, graph, keys, **options):
        raise AssertionError("computed while building")


class TestLazy:
    source = field(*WHOLE, time=7, dtype="float32")[..., ::5, ::5].copy()
    source.values[3, 5:9, 10:20] = np.nan
    source.values[6, 0] = np.nan
    targets = {
        "conservative": grid(np.arange(-84.0, 85, 13.1), np.arange(-176.0, 180, 12.7)[:-1]),
        "linear": grid(np.arange(-84.0, 85, 2), np.arange(-176.0, 180, 2)),
        "selection": grid(np.arange(-85.0, 86, 5), np.arange(-175.0, 181, 5)),
    }

    @pytest.mark.parametrize("which", targets)
    def test_nothing_is_computed_when_building(self, which):
        da = self.source.chunk(time=(3, 4), lat=10, lon=24)
        with dask.config.set(scheduler=Refuses()):
            got = regrid(da, self.targets[which])
            repr(got)
            with pytest.raises(AssertionError, match="while building"):
                got.compute()
        assert got.chunks[0] == (3, 4)
        assert got.dtype == np.float32
        if which != "selection":
            assert [len(sizes) for sizes in got.chunks] == [2, 1, 1]

    @pytest.mark.parametrize("which", targets)
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_chunks_and_layout_change_no_bit(self, which, dtype):
        da = self.source.astype(dtype)
        expected = regrid(da, self.targets[which])
        turned = da.copy(data=np.asfortranarray(da.values))
        for chunks in ({"time": 1}, {"time": 2, "lat": 7}, {"time": -1, "lon": 13}, {"time": (1, 5, 1)}):
            got = regrid(turned.chunk(chunks), self.targets[which])
            xr.testing.assert_identical(got.compute(scheduler="threads"), expected)
        for slab in (self.source[3:4], self.source[3:5]):
            np.testing.assert_array_equal(regrid(slab.astype(dtype), self.targets[which]), expected[3 : 3 + len(slab)])

    def test_slabs_change_no_bit(self, monkeypatch):
        expected = regrid(self.source, self.targets["conservative"])
        for cells in (1, 5000):
            monkeypatch.setattr("xsuperres.fields.regrid._SLAB", cells)
            xr.testing.assert_identical(regrid(self.source, self.targets["conservative"]), expected)

    def test_keys_are_those_of_the_content(self):
        da = self.source.chunk(time=2)
        first, again = (regrid(da, self.targets["linear"]) for _ in range(2))
        assert first.data.name == again.data.name
        assert regrid(da, self.targets["linear"], method="conservative").data.name != first.data.name
