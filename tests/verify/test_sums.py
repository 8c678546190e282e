"""Sums over blocks: chunks, slabs and trees change nothing; lazy data are computed once, at the end."""

from __future__ import annotations

from types import SimpleNamespace

import cloudpickle
import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xsuperres.fields.field import Field
from xsuperres.testing import toy_field
from xsuperres.verify import sums
from xsuperres.verify.metrics import METRICS, Moments
from xsuperres.verify.sums import AreaMean, CoarseBlock, Domain, Summation

TIMES, ROWS, COLUMNS, SCALE = 5, 12, 16, 4
few = settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])


def fields(seed: int, *, missing: bool, members: int, dtype: str) -> SimpleNamespace:
    """Return a scored field, a truth and coarse data of noise over a large mean."""
    rng = np.random.default_rng(seed)
    truth = toy_field(time=TIMES, y=ROWS, x=COLUMNS, dtype=dtype, periodic=bool(seed % 2))
    coarse = truth.sr.coarsen(SCALE)
    shape = (members, *truth.shape) if members else truth.shape
    noise = xr.DataArray(rng.normal(size=shape).astype(dtype), dims=("member", *truth.dims)[-len(shape) :])
    fine = (truth + noise).assign_attrs(truth.attrs)
    if missing:
        fine, truth, coarse = (da.where(rng.random(da.shape) > 0.1) for da in (fine, truth, coarse))
    return SimpleNamespace(fine=fine, truth=truth, coarse=coarse)


def scored(data: SimpleNamespace, left: list[str], **options) -> xr.Dataset:
    dims = [dim for dim in data.fine.dims if dim not in left]
    names = ["bilinear", "lapse"]
    return data.fine.sr.score(data.truth, coarse=data.coarse, baselines=names, dim=dims, **options)


def check_same(found: xr.Dataset, wanted: xr.Dataset) -> None:
    """To 1e-12; but variances of a few cells each, in maps and profiles, lose digits to the spread of the block."""
    few_cells = {"lat", "lon"} & set(wanted.dims)
    assert found.attrs == wanted.attrs and dict(found.sizes) == dict(wanted.sizes)
    for name in wanted.data_vars:
        np.testing.assert_array_equal(np.isnan(found[name]), np.isnan(wanted[name]), err_msg=str(name))
        rtol = 1e-9 if few_cells and name in ("correlation", "sd_ratio") else 1e-12
        np.testing.assert_allclose(found[name], wanted[name], rtol=rtol, atol=1e-13, err_msg=str(name))


@st.composite
def partitions(draw, size: int) -> tuple[int, ...]:
    """Return any way to cut `size` cells into chunks."""
    edges = [0, *sorted(draw(st.sets(st.integers(1, size - 1), max_size=4))), size]
    return tuple(np.diff(edges).tolist())


def chunkings(rows: int, columns: int):
    return st.fixed_dictionaries({"time": partitions(TIMES), "lat": partitions(rows), "lon": partitions(columns)})


cases = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 1000),
        "missing": st.booleans(),
        "members": st.sampled_from([0, 3]),
        "dtype": st.sampled_from(["float32", "float64"]),
    }
)
lefts = st.sampled_from([[], ["time"], ["member"], ["lat", "lon"], ["time", "lon"], ["member", "time"]])


@few
@given(
    cases,
    lefts,
    chunkings(ROWS, COLUMNS),
    chunkings(ROWS, COLUMNS),
    chunkings(ROWS // SCALE, COLUMNS // SCALE),
    st.sampled_from([1, 150, 400, 2**17]),
    st.sampled_from([2, 8]),
)
def test_chunks_change_nothing(case, left, fine, truth, coarse, slab, fan):
    data = fields(**case)
    left = [dim for dim in left if dim in data.fine.dims]
    wanted = scored(data, left)
    lazy = SimpleNamespace(fine=data.fine.chunk(fine), truth=data.truth.chunk(truth), coarse=data.coarse.chunk(coarse))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums, "_SLAB", slab)
        patch.setattr(sums, "_FAN", fan)
        with dask.config.set(scheduler="synchronous"):
            check_same(scored(lazy, left), wanted)
        check_same(scored(data, left), wanted)


def test_control_a_tree_that_loses_the_differences_between_blocks(monkeypatch):
    data = fields(2, missing=False, members=0, dtype="float64")
    wanted, lazy = scored(data, []), SimpleNamespace(**{name: da.chunk(time=2) for name, da in vars(data).items()})
    check_same(scored(lazy, []), wanted)
    monkeypatch.setattr(Moments, "combine", lambda self, one, other: one + other)
    with pytest.raises(AssertionError):
        check_same(scored(lazy, []), wanted)


@pytest.mark.parametrize("which", ["fine", "truth", "coarse"])
def test_one_lazy_array_among_others_in_memory(which):
    data = fields(1, missing=True, members=3, dtype="float32")
    lazy = SimpleNamespace(**(vars(data) | {which: getattr(data, which).chunk(time=2)}))
    check_same(scored(lazy, ["time"]), scored(data, ["time"]))


def test_a_single_lazy_plane():
    data = fields(1, missing=True, members=0, dtype="float32")
    plane = SimpleNamespace(**{name: da.isel(time=0) for name, da in vars(data).items()})
    lazy = SimpleNamespace(**{name: da.chunk(lat=2) for name, da in vars(plane).items()})
    check_same(scored(lazy, []), scored(plane, []))
    check_same(scored(lazy, ["lon"]), scored(plane, ["lon"]))


def test_no_steps_at_all():
    """Nothing to score is no number, and no failure."""
    data = fields(1, missing=False, members=0, dtype="float32")
    none = SimpleNamespace(**{name: da.isel(time=slice(0, 0)) for name, da in vars(data).items()})
    table = scored(none, [])
    assert np.isnan(table.to_array()).all() and table.region.values.tolist() == ["all"]


class Counts:
    """A scheduler that counts computations and the tasks that make states."""

    def __init__(self) -> None:
        self.computed = 0

    def __call__(self, graph, keys, **options):
        self.computed += 1
        return dask.get(graph, keys, **options)


def test_lazy_data_are_computed_once_by_one_task_a_block(monkeypatch):
    data = fields(1, missing=True, members=3, dtype="float32")
    chunks = {"fine": {"member": 1, "time": 2, "lat": 5}, "truth": {"time": 1}, "coarse": {"lat": 1}}
    lazy = SimpleNamespace(  # but for the coordinates, which are loaded at the door
        **{name: da.copy(data=da.variable.chunk(chunks[name]).data) for name, da in vars(data).items()}
    )
    states, state, scheduler = [], Summation.state, Counts()

    def counted(self, arrays):
        states.append(arrays[0].shape)
        return state(self, arrays)

    monkeypatch.setattr(Summation, "state", counted)
    with dask.config.set(scheduler=scheduler):
        scored(lazy, [])
    assert scheduler.computed == 1
    assert states == [(1, 1, ROWS, COLUMNS)] * 3 * TIMES, "blocks are cut where any of the data is"


def test_joined_planes_stay_small(monkeypatch):
    """Chunks along y and x that are joined are cut in time instead; whole planes are left as they are."""
    data = fields(1, missing=False, members=0, dtype="float32")
    shapes, state = [], Summation.state

    def counted(self, arrays):
        shapes.append(arrays[0].shape)
        return state(self, arrays)

    monkeypatch.setattr(Summation, "state", counted)
    monkeypatch.setattr(sums, "_BLOCK", ROWS * COLUMNS)
    for chunks, steps in (({"time": TIMES, "lat": 4}, 1), ({"time": TIMES}, TIMES)):
        shapes.clear()
        lazy = SimpleNamespace(fine=data.fine.chunk(chunks), truth=data.truth, coarse=data.coarse)
        check_same(scored(lazy, []), scored(data, []))
        assert shapes[0] == (steps, ROWS, COLUMNS)


def test_a_summation_travels_to_other_processes(make_model):
    """Baselines and metrics are functions made at run time; cloudpickle takes them by value."""
    model = make_model(coarse=(6, 8), scale=2, data=(("transform", "anomaly"),)).model
    fine = toy_field(time=2, y=12, x=16)
    later = fine.time + np.timedelta64(9999, "D")
    fine = fine.assign_coords(lat=model.grid.y.centres, lon=model.grid.x.centres, time=later)
    plans, state = [], Summation.state

    def kept(self, arrays):
        plans.append((self, arrays))
        return state(self, arrays)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Summation, "state", kept)
        fine.sr.score((fine + 1).assign_attrs(fine.attrs), model=model)
    plan, arrays = plans[0]
    assert len(plan.baselines) == 6
    again = cloudpickle.loads(cloudpickle.dumps(plan))
    for one, other in zip(plan.state(arrays), again.state(arrays), strict=True):
        np.testing.assert_array_equal(one, other)


# The parts alone.


def domain(reduced: tuple[bool, ...]) -> Domain:
    field = Field(toy_field(time=2, y=4, x=6))
    areas = [np.ones((4, 6)), np.where(np.arange(6) < 3, 2.0, 0.0) * np.ones((4, 1))]
    return Domain.of(
        field, 2, areas, [dim for dim, gone in zip(("time", "lat", "lon"), reduced, strict=True) if not gone]
    )


@pytest.mark.parametrize("reduced", list(np.ndindex(2, 2, 2)))
def test_sums_over_any_dims(reduced):
    values = np.random.default_rng(0).normal(size=(2, 4, 6))
    axes = tuple(axis for axis, gone in enumerate(reduced) if gone)
    where = domain(tuple(map(bool, reduced)))
    found = where.sums(values)
    if any(reduced[1:]):
        wanted = np.stack([(values * areas).sum(axis=axes) for areas in where.regions])
    else:
        wanted = values.sum(axis=axes)[None]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_each_interpolation_is_made_once(monkeypatch):
    calls, right = [], sums.interpolate_array
    monkeypatch.setattr(sums, "interpolate_array", lambda *args, **more: calls.append(args[2]) or right(*args, **more))
    data = fields(1, missing=False, members=0, dtype="float32")
    data.fine.sr.score(data.truth, coarse=data.coarse)
    assert sorted(calls) == ["bicubic", "bilinear"]
    block = CoarseBlock(data.coarse.values, SCALE, periodic=True)

    def warmer(values):
        return values + 1

    assert block.interpolated("bicubic", warmer) is block.interpolated("bicubic", warmer)
    np.testing.assert_allclose(block.interpolated("bicubic", warmer), block.interpolated("bicubic") + 1, rtol=1e-6)


def test_only_what_the_chosen_metrics_need_is_summed(monkeypatch):
    chunks, right = [], AreaMean.chunk
    monkeypatch.setattr(AreaMean, "chunk", lambda self, cells: chunks.append(self) or right(self, cells))
    monkeypatch.setattr(Moments, "chunk", lambda self, cells: pytest.fail("not asked for"))
    data = fields(1, missing=False, members=0, dtype="float32")
    scored(data, [], metrics=["rmse", "bias"])
    assert set(chunks) == {*METRICS.get("rmse").partials, *METRICS.get("bias").partials}
