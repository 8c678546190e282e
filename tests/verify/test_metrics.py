"""Metrics against an oracle in plain loops, written independently of the package."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from xsuperres.errors import UnknownNameError
from xsuperres.fields.grid import Grid, grid_of
from xsuperres.testing import toy_field
from xsuperres.verify import metrics, sums
from xsuperres.verify.metrics import METRICS, Metric, gradient_amplitude
from xsuperres.verify.sums import AreaMean, Partial

UNITS = ["rmse", "mae", "bias", "consistency"]
REGIONS = ["all", "land", "sea", "0-500 m", "500-1500 m", ">1500 m"]
SCALE = 4


def score(fine: xr.DataArray, truth: xr.DataArray, **options) -> xr.Dataset:
    return fine.sr.score(truth, **options)


def sines(lat):
    """Return |sin north - sin south| of rows whose bounds lie half-way, ends clipped at the poles."""
    middle = (lat[1:] + lat[:-1]) / 2
    edges = np.concatenate([[lat[0] - (lat[1] - lat[0]) / 2], middle, [lat[-1] + (lat[-1] - lat[-2]) / 2]])
    return np.diff(np.sin(np.deg2rad(np.clip(edges, -90, 90))))


# The oracle.


def geometry(truth: xr.DataArray) -> SimpleNamespace:
    """Return area, lengths and whether x is a circle, of a field in canonical order."""
    y, x = (truth[dim].values.astype(float) for dim in truth.dims[-2:])
    if truth.dims[-2:] == ("lat", "lon"):
        width = np.diff(x).mean()
        row = sines(y)
        edges = np.diff(np.clip(np.append(y - np.diff(y).mean() / 2, y[-1] + np.diff(y).mean() / 2), -90, 90))
        return SimpleNamespace(
            area=row[:, None] * np.ones(len(x)),
            east=np.deg2rad(width) * row / np.deg2rad(edges),
            north=np.deg2rad(np.diff(y).mean()),
            circle=abs(width * len(x) - 360) < 1e-6,
        )
    return SimpleNamespace(
        area=np.ones((len(y), len(x))), east=np.full(len(y), np.diff(x).mean()), north=np.diff(y).mean(), circle=False
    )


def masks(truth: xr.DataArray) -> dict[str, np.ndarray]:
    height, land = truth.elevation.values, truth.land_fraction.values >= 0.5
    return {
        "all": np.ones(land.shape, bool),
        "land": land,
        "sea": ~land,
        "0-500 m": land & (height < 500),
        "500-1500 m": land & (height >= 500) & (height < 1500),
        ">1500 m": land & (height >= 1500),
    }


def slopes(field: np.ndarray, where: SimpleNamespace) -> np.ndarray:
    """Return the gradient's amplitude, cell by cell."""
    out = np.full(field.shape, np.nan)
    rows, columns = field.shape[-2:]
    for index in np.ndindex(field.shape):
        *lead, row, column = index
        across, along = [], []
        for step in (-1, 1):
            beside = (column + step) % columns if where.circle else column + step
            if 0 <= beside < columns:
                across.append((field[(*lead, row, beside)] - field[index]) / where.east[row])
            if 0 <= row + step < rows:
                along.append((field[(*lead, row + step, column)] - field[index]) / where.north)
        parts = [np.array(part)[np.isfinite(part)] for part in (across, along)]
        if all(len(part) for part in parts):
            out[index] = np.sqrt(sum((part**2).mean() for part in parts))
    return out


def excesses(field: np.ndarray, coarse: np.ndarray, area: np.ndarray) -> np.ndarray:
    """Return the re-coarsened field less the coarse one on the fine cells; half of a coarse cell must be valid."""
    out = np.full(field.shape, np.nan)
    for index in np.ndindex(*field.shape[:-2], field.shape[-2] // SCALE, field.shape[-1] // SCALE):
        *lead, row, column = index
        group = (slice(row * SCALE, (row + 1) * SCALE), slice(column * SCALE, (column + 1) * SCALE))
        values, weights = field[(*lead, *group)], area[group]
        valid = np.isfinite(values)
        if weights[valid].sum() >= 0.5 * weights.sum() * (1 - 1e-9) and valid.any():
            out[(*lead, *group)] = np.average(values[valid], weights=weights[valid]) - coarse[index]
    return out


def oracle(products: dict[str, np.ndarray], truth: xr.DataArray, coarse: np.ndarray):
    """Return a function of product and chosen cells (*lead, y, x) that gives all metrics."""
    where, true = geometry(truth), truth.values.astype(float)
    shape = next(iter(products.values())).shape
    fields = {name: np.broadcast_to(np.asarray(values, float), shape) for name, values in products.items()}
    true, coarse = np.broadcast_to(true, shape), np.broadcast_to(coarse, (*shape[:-2], *coarse.shape[-2:]))
    valid = np.isfinite(true) & np.all([np.isfinite(values) for values in fields.values()], axis=0)
    fields = {name: np.where(valid, values, np.nan) for name, values in fields.items()}
    true = np.where(valid, true, np.nan)
    amplitudes = {name: slopes(values, where) for name, values in fields.items()} | {"": slopes(true, where)}
    excess = {name: excesses(values, np.asarray(coarse, float), where.area) for name, values in fields.items()}

    def of(name: str, chosen: np.ndarray) -> dict[str, float]:
        def mean(values: np.ndarray) -> np.floating:
            known = chosen & valid & np.isfinite(values)
            weights = np.broadcast_to(where.area, shape)[known].astype(np.longdouble)
            return (values[known] * weights).sum() / weights.sum() if known.any() else np.longdouble(np.nan)

        error = fields[name] - true
        anomalies = fields[name] - mean(fields[name]), true - mean(true)
        variances = [mean(anomaly**2) for anomaly in anomalies]
        with np.errstate(invalid="ignore", divide="ignore"):  # of a lone cell
            deviations = np.sqrt(variances)
            return {
                "rmse": np.sqrt(mean(error**2)),
                "mae": mean(np.abs(error)),
                "bias": mean(error),
                "correlation": mean(anomalies[0] * anomalies[1]) / deviations.prod(),
                "sd_ratio": deviations[0] / deviations[1],
                "gradient_ratio": mean(amplitudes[name]) / mean(amplitudes[""]),
                "consistency": np.sqrt(mean(excess[name] ** 2)),
            }

    return of


# The cases.


def projected(da: xr.DataArray) -> xr.DataArray:
    names = {"y": ("lat", "projection_y_coordinate"), "x": ("lon", "projection_x_coordinate")}
    lines = {
        new: (new, 25.0 * np.arange(da.sizes[old]), {"standard_name": name, "units": "km"})
        for new, (old, name) in names.items()
    }
    return da.drop_vars(["lat", "lon"]).rename(lat="y", lon="x").assign_coords(lines)


def holed(da: xr.DataArray, share: float, seed: int) -> xr.DataArray:
    hole = np.random.default_rng(seed).random(da.shape) < share
    return da.copy(data=np.where(hole, np.nan, da.values).astype(da.dtype))


def noisy(da: xr.DataArray, seed: int = 0) -> xr.DataArray:
    noise = np.random.default_rng(seed).normal(0, 1, da.shape).astype(da.dtype)
    return (0.8 * da + 60 + noise).astype(da.dtype).assign_attrs(da.attrs)


def with_members(da: xr.DataArray) -> xr.DataArray:
    return xr.concat([noisy(da), noisy(da, 1) + 1, holed(noisy(da, 2), 0.1, 3)], "member").transpose("time", ...)


def case(kind: str, dtype: str = "float64") -> SimpleNamespace:
    """Return field, truth and coarse data of one kind; truth in canonical order."""
    truth = toy_field(time=3, y=12, x=16, dtype=dtype, periodic=kind == "periodic")
    if kind == "pole":
        truth = truth.assign_coords(lat=("lat", np.linspace(35.0, 90.0, 12), truth.lat.attrs))
    truth = projected(truth) if kind == "projected" else truth
    coarse = truth.sr.coarsen(SCALE) + np.linspace(-1, 1, 3, dtype=dtype)[:, None, None]
    coarse = coarse.transpose(*truth.dims).assign_attrs(truth.attrs)
    field = with_members(truth) if kind == "members" else noisy(truth)
    if kind == "missing":
        truth, field, coarse = holed(truth, 0.35, 1), holed(field, 0.1, 2), holed(coarse, 0.1, 3)
    return SimpleNamespace(field=field.assign_attrs(truth.attrs), truth=truth, coarse=coarse)


@cache
def oracle_of(kind: str, dtype: str = "float64"):
    """Return the oracle of a case, with bicubic as another product."""
    given = case(kind, dtype)
    lead = tuple(given.field.dims[:-2])
    bicubic = given.coarse.sr.interpolate(SCALE, like=given.truth)
    values = {"prediction": given.field.values, "bicubic": bicubic.transpose(*given.truth.dims).values}
    axes = tuple(at for at, dim in enumerate(lead) if dim not in given.truth.dims)
    values["bicubic"] = np.expand_dims(values["bicubic"], axes)
    truth = given.truth.copy() if not axes else given.truth.expand_dims(dict.fromkeys(lead[1:], 1), 1)
    return oracle(values, truth, np.expand_dims(given.coarse.values, axes))


@cache
def expected(kind: str, left: tuple[str, ...], dtype: str = "float64") -> xr.Dataset:
    """Return the oracle's table, with the dims of the field in `left`."""
    given, of, products = case(kind, dtype), oracle_of(kind, dtype), ("prediction", "bicubic")
    sizes = {dim: given.field.sizes[dim] for dim in left}
    table = {name: np.full((2, len(REGIONS), *sizes.values()), np.nan) for name in METRICS}
    for at in np.ndindex(*sizes.values()):
        here = np.zeros(given.field.shape, bool)
        here[tuple(dict(zip(left, at, strict=True)).get(dim, slice(None)) for dim in given.field.dims)] = True
        for (row, product), (column, cells) in (
            (p, r) for p in enumerate(products) for r in enumerate(masks(given.truth).values())
        ):
            for name, value in of(product, here & cells).items():
                table[name][(row, column, *at)] = value
    coords = {"product": list(products), "region": REGIONS}
    return xr.Dataset({name: (("product", "region", *left), values) for name, values in table.items()}, coords)


def check(table: xr.Dataset, wanted: xr.Dataset, rtol: float = 1e-9) -> None:
    """Compare tables; what is no more than rounding of the field is not compared in relative terms."""
    known = wanted.to_array().notnull().any([dim for dim in wanted.to_array().dims if dim != "region"])
    assert table.region.values.tolist() == [name for name in REGIONS if name == "all" or known.sel(region=name)]
    wanted = wanted.sel(region=table.region)
    for name in table.data_vars:
        found, right = table[name].transpose(*wanted[name].dims).values, wanted[name].values
        enough = np.isfinite(found) | ~np.isfinite(right)  # a lone cell has no variance to speak of
        assert enough.all() or name in ("correlation", "sd_ratio"), name
        assert not np.isfinite(found[~np.isfinite(right)]).any(), name
        both = np.isfinite(found) & np.isfinite(right)
        np.testing.assert_allclose(found[both], right[both], rtol=rtol, atol=1e-11, err_msg=str(name))


KINDS = ["complete", "missing", "periodic", "pole", "projected", "members"]
LEFT = [(), ("time",), ("time", "member"), ("y", "x"), ("y",), ("x", "time")]


def table_of(given: SimpleNamespace, left: tuple[str, ...] = ()) -> xr.Dataset:
    dims = [dim for dim in given.field.dims if dim not in left]
    return score(given.field, given.truth, coarse=given.coarse, baselines="bicubic", dim=dims)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("left", LEFT, ids=" ".join)
@pytest.mark.parametrize("kind", KINDS)
def test_all_metrics_equal_the_oracle(kind, left, lazy):
    given = case(kind)
    plane = dict(zip(("y", "x"), given.field.dims[-2:], strict=True))
    left = tuple(plane.get(dim, dim) for dim in left if plane.get(dim, dim) in given.field.dims)
    wanted = expected(kind, left)
    if lazy:
        chunks = ({"time": 2, plane["y"]: 5}, {"time": 1, plane["x"]: 7}, {plane["y"]: 2})
        data = zip((given.field, given.truth, given.coarse), chunks, strict=True)
        given = SimpleNamespace(
            **dict(zip(("field", "truth", "coarse"), (da.chunk(cut) for da, cut in data), strict=True))
        )
    check(table_of(given, left), wanted)


@pytest.mark.parametrize("slab", [1, 500, 2**17])
def test_slabs_of_any_size_are_the_same(monkeypatch, slab):
    monkeypatch.setattr(sums, "_SLAB", slab)
    for kind in ("missing", "members"):
        given = case(kind)
        check(table_of(given, ("time",)), expected(kind, ("time",)))


def test_products_in_single_precision_are_summed_in_double():
    given = case("complete", "float32")
    check(table_of(given), expected("complete", (), "float32"))


BROKEN = {
    "cells without their area": (Grid, "area", property(lambda grid: np.ones(grid.shape)), "missing"),
    "no wrap": (
        metrics,
        "_mean_square_slope",
        lambda values, steps, *, periodic, right=metrics._mean_square_slope: right(
            values, steps[: values.shape[-1] - 1], periodic=False
        ),
        "periodic",
    ),
    "no valid fraction": (
        metrics,
        "coarsen_array",
        lambda values, area, scale, right=metrics.coarsen_array: right(values, area, scale, minimum_valid_fraction=0.0),
        "missing",
    ),
    "blocks without what lies between them": (
        metrics.Moments,
        "combine",
        lambda self, one, other: np.concatenate([one[:3], one[3:] + other[3:]]),
        "complete",
    ),
    "missing cells as zeros": (
        sums.ScoredCells,
        "sums",
        lambda self, values: np.stack([self.domain.sums(v) for v in (np.nan_to_num(values), np.ones(values.shape))]),
        "missing",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_the_oracle_sees_what_is_broken(monkeypatch, how):
    module, name, wrong, kind = BROKEN[how]
    monkeypatch.setattr(sums, "_SLAB", 192)  # three slabs
    given = case(kind)
    wanted = expected(kind, ())
    check(table_of(given), wanted)
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(AssertionError):
        check(table_of(given), wanted)


# One by one.


def test_unweighted_gives_another_number():
    given = case("pole")
    flat = np.sqrt(((given.field - given.truth) ** 2).mean())
    found = table_of(given).rmse.sel(product="prediction", region="all")
    assert abs(float(found) / float(flat) - 1) > 1e-3


def test_no_valid_cell_gives_nan():
    given = case("complete")
    given.truth = given.truth.where(given.truth.time != given.truth.time[0])
    found = table_of(given, ("time",)).to_array()
    assert np.isnan(found.isel(time=0)).all()
    assert np.isfinite(found.isel(time=slice(1, None))).all()


def test_a_constant_field_has_no_correlation():
    given = case("complete")
    given.field = given.field * 0 + 288.1
    found = table_of(given).sel(product="prediction")
    assert np.isnan(found.correlation).all() and np.isnan(found.sd_ratio).all()
    assert np.isfinite(found.rmse).all()


def test_a_small_variance_about_a_large_mean():
    """Of values with few digits left over, which sums of squares would lose."""
    given = case("complete")
    given.truth, given.field, given.coarse = (
        (da - 288.0) * 0.1 + 1e5 for da in (given.truth, given.field, given.coarse)
    )
    exact = {}
    for name, da in (("p", given.field), ("t", given.truth)):
        weights = np.broadcast_to(geometry(given.truth).area, da.shape).astype(np.longdouble)
        anomaly = da.values.astype(np.longdouble) - np.average(da.values.astype(np.longdouble), weights=weights)
        exact[name] = np.sqrt(np.average(anomaly**2, weights=weights))
    found = table_of(given, ()).sd_ratio.sel(product="prediction", region="all")
    assert float(found) == pytest.approx(float(exact["p"] / exact["t"]), rel=1e-10)


def test_gradient_of_a_plane_slope():
    """A field that rises by 2 per metre of a unit sphere northward has a gradient of 2 everywhere."""
    field = toy_field(time=1, y=10, x=20, periodic=True, dtype="float64")
    northward = 2 * np.deg2rad(field.lat) + 0 * field
    grid = grid_of(field)
    found = gradient_amplitude(grid.canonical(northward).values, grid)
    np.testing.assert_allclose(found, 2.0, rtol=1e-9)


def test_gradient_sees_a_checkerboard_and_not_across_nan():
    field = toy_field(time=1, y=4, x=6, dtype="float64").isel(time=0)
    grid = grid_of(field)
    board = (np.indices((4, 6)).sum(axis=0) % 2).astype(float)
    assert gradient_amplitude(board, grid).min() > 0
    board[:, 3] = np.nan
    found = gradient_amplitude(board + np.array([0, 0, 0, 0, 1e6, 1e6]), grid)
    assert np.isfinite(found[:, [0, 1, 2, 4, 5]]).all()
    assert np.nanmax(found) < 1e3  # a difference over the hole would be about 1e7
    assert np.isnan(found[:, 3]).all()


def test_gradient_ratio_of_a_scaled_field():
    given = case("complete")
    given.field = (0.5 * given.truth + 100).assign_attrs(given.truth.attrs)
    found = table_of(given).gradient_ratio.sel(product="prediction")
    np.testing.assert_allclose(found, 0.5, rtol=1e-9)


def test_names():
    with pytest.raises(UnknownNameError, match="Did you mean 'rmse'"):
        METRICS.get("rsme")
    assert METRICS.canonical("pearson") == "correlation"
    assert [name for name in METRICS if METRICS.get(name).has_units] == UNITS


# Metrics of others.


@pytest.fixture
def registered():
    """Return a function that registers a metric, which is taken out again."""
    names = []

    def add(name: str, metric: Metric) -> None:
        METRICS.add(name)(metric)
        names.append(name)

    yield add
    for name in names:
        del METRICS._parts[name]


def crps(cells):
    axis = cells.domain.dims.index("member")
    members = np.moveaxis(cells.prediction, axis, 0)
    spread = np.abs(members[:, None] - members[None]).mean((0, 1)) / 2
    return np.expand_dims(np.abs(members - np.moveaxis(cells.truth, axis, 0)).mean(0) - spread, axis)


class Ranks(Partial):
    """How many members lie below the truth, counted cell by cell: a sum with an axis of its own."""

    def chunk(self, cells):
        axis = cells.domain.dims.index("member")
        ranks = (cells.prediction < cells.truth).sum(axis, keepdims=True)
        count = cells.prediction.shape[axis] + 1
        return np.stack([cells.sums((ranks == rank).astype(float))[0] for rank in range(count)])


@pytest.mark.parametrize("lazy", [False, True])
def test_a_metric_of_members_sees_all_of_them(registered, lazy, monkeypatch):
    monkeypatch.setattr(sums, "_SLAB", 200)
    registered("crps", Metric("CRPS", (AreaMean(of=crps, whole=("member",)),), lambda mean: mean, has_units=True))
    counts = Ranks(whole=("member",))
    registered("outside", Metric("outermost ranks", (counts,), lambda n: (n[0] + n[-1]) / n.sum(axis=0)))
    truth = toy_field(time=3, y=12, x=16, dtype="float64")
    field = xr.concat([noisy(truth), noisy(truth, 1), noisy(truth, 2)], "member").assign_attrs(truth.attrs)
    values, area = field.values, np.broadcast_to(sines(truth.lat.values)[:, None], truth.shape)
    pairs = np.mean([np.abs(a - b) for a in values for b in values], axis=0)
    cells = np.mean([np.abs(a - truth.values) for a in values], axis=0) - pairs / 2
    ranks = (values < truth.values).sum(axis=0)
    given = field.chunk(member=1, time=2) if lazy else field
    options = {"coarse": truth.sr.coarsen(SCALE), "baselines": [], "metrics": ["crps", "outside"]}
    table = score(given, truth, **options).sel(region="all", product="prediction")
    assert float(table.crps) == pytest.approx(np.average(cells, weights=area), rel=1e-9)
    assert float(table.outside) == pytest.approx(np.average((ranks == 0) | (ranks == 3), weights=area), rel=1e-9)
    by_time = score(given, truth, dim=["member", "lat", "lon"], **options).sel(region="all", product="prediction")
    for at in range(3):
        assert float(by_time.crps[at]) == pytest.approx(np.average(cells[at], weights=area[at]), rel=1e-9)


def test_cells_that_do_not_count_are_left_out_whatever_a_metric_makes_of_them(registered):
    """A comparison with NaN is False, no missing value."""
    warm = AreaMean(of=lambda cells: (cells.prediction > 285.0).astype(float))
    registered("warm_share", Metric("share of warm cells", (warm,), lambda mean: mean))
    given = case("missing")
    found = score(given.field, given.truth, coarse=given.coarse, baselines=[], metrics="warm_share")
    valid = np.isfinite(given.field.values) & np.isfinite(given.truth.values)
    area = np.broadcast_to(sines(given.truth.lat.values)[:, None], valid.shape)
    wanted = np.average(given.field.values[valid] > 285.0, weights=area[valid])
    assert float(found.warm_share.sel(region="all").squeeze()) == pytest.approx(wanted, rel=1e-9)
    assert found.warm_share.attrs == {"long_name": "share of warm cells", "units": "1"}


def test_partials_of_several_metrics_are_computed_once(registered):
    calls = []

    def counted(cells):
        calls.append(cells.prediction.shape)
        return cells.error

    shared = AreaMean(of=counted)
    truth_only = AreaMean(of=lambda cells: calls.append("truth") or cells.truth, of_truth=True)
    registered("one", Metric("one", (shared,), lambda mean: mean))
    registered("two", Metric("two", (shared, truth_only), lambda mean, true: mean / true))
    given = case("complete")
    score(given.field, given.truth, coarse=given.coarse, baselines=["bicubic", "bilinear"], metrics=["one", "two"])
    assert calls.count("truth") == 1
    assert len(calls) - 1 == 3, "once for each product"
