"""How archives are cut: every cell once, whole stored chunks, sizes within the budget."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xsuperres.config import SamplingConfig
from xsuperres.errors import XSuperResWarning
from xsuperres.fields.field import Field
from xsuperres.inference import regions
from xsuperres.inference.regions import region_from, stored_chunk, with_blocks
from xsuperres.testing import toy_field


def in_blocks(fields, model, *, budget):
    """Return the arrays of coarse fields in blocks."""
    return [field.array for field in regions.in_blocks([Field(da) for da in fields], model, budget=budget)]


MIB = 2**20


@given(
    counts=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    limits=st.lists(st.integers(0, 60), min_size=1, max_size=8),
)
def test_regions_cover_every_block_once_in_order(counts, limits):
    """Also when the budget changes on the way, as between two calls."""
    seen, done, step = np.zeros(counts, int), 0, 0
    while done < seen.size:
        most = limits[step % len(limits)]
        boxes = region_from(done, counts, most)
        size = math.prod(box.stop - box.start for box in boxes)
        assert 1 <= size <= max(1, most)
        seen[boxes] += 1
        done, step = done + size, step + 1
        assert seen.ravel()[:done].all() and not seen.ravel()[done:].any()
    assert (seen == 1).all()


def test_regions_are_as_large_as_they_may_be():
    assert region_from(0, (10, 2, 3), 60) == (slice(0, 10), slice(0, 2), slice(0, 3))
    assert region_from(6, (10, 2, 3), 13) == (slice(1, 3), slice(0, 2), slice(0, 3))
    assert region_from(3, (10, 2, 3), 60) == (slice(0, 1), slice(1, 2), slice(0, 3))


@given(block=st.lists(st.integers(1, 3000), min_size=1, max_size=3), itemsize=st.sampled_from([2, 4, 8]))
def test_stored_chunks_divide_blocks(block, itemsize):
    chunk = stored_chunk(block, itemsize)
    assert all(size % part == 0 for size, part in zip(block, chunk, strict=True))
    size, whole = math.prod(chunk) * itemsize, math.prod(block) * itemsize
    assert size >= min(MIB, whole)
    powers = stored_chunk([2 ** int(math.log2(n)) for n in block], itemsize)
    assert math.prod(powers) * itemsize <= 32 * MIB


@pytest.mark.parametrize(
    ("block", "chunk"),
    [
        ((24, 720, 1440), (8, 720, 1440)),
        ((31, 100, 100), (31, 100, 100)),
        ((367, 180, 180), (367, 180, 180)),  # a prime: 45 MiB are better than 128 KiB
        ((2, 10000, 8000), (1, 1000, 8000)),
        ((0, 4, 4), (1, 4, 4)),
    ],
)
def test_stored_chunks_of_usual_fields(block, chunk):
    assert stored_chunk(block, 4) == chunk


@pytest.fixture(scope="module")
def coarse():
    return toy_field(time=96, y=32, x=32)


@pytest.fixture
def model(make_model):
    return make_model(scale=4).model


def sizes(fields, dim="time"):
    return fields[0].chunksizes[dim]


FIELD = 128 * 128 * 4


@pytest.mark.parametrize(
    ("chunks", "budget", "expected"),
    [
        ({"time": 16}, 8 * MIB, (16,) * 6),  # as given
        ({"time": 1}, 64 * MIB, (16,) * 6),  # merged, to 1 MiB
        ({"time": 3}, 64 * MIB, (18,) * 5 + (6,)),  # merged, in multiples of the chunks that are read
        ({"time": -1}, 8 * MIB, (16,) * 6),  # cut, to an eighth of the budget
        ({"time": (31, 28, 31, 6)}, 64 * MIB, (31, 31, 31, 3)),  # made regular
        (None, 16 * MIB, (32,) * 3),
        (None, 1024 * MIB, (96,)),
    ],
)
def test_blocks(coarse, model, chunks, budget, expected):
    given = coarse if chunks is None else coarse.chunk(chunks)
    fields = in_blocks([given], model, budget=budget)
    assert sizes(fields) == expected
    assert all(fields[0].chunksizes[dim] == (32,) for dim in ("lat", "lon"))
    assert chunks is not None or fields[0].elevation.chunks is None
    np.testing.assert_array_equal(fields[0], coarse)


def test_what_is_good_as_it_is_stays(coarse, model):
    given = coarse.chunk(time=16, lat=16, lon=20)
    (same,) = in_blocks([given], model, budget=16 * MIB)
    assert same.data.name == given.data.name


def test_variables_count(coarse, model):
    assert sizes(in_blocks([coarse, coarse], model, budget=16 * MIB)) == (16,) * 6
    assert sizes(in_blocks([coarse, coarse.astype("f8")], model, budget=24 * MIB)) == (16,) * 6


def test_other_leading_dims_are_cut_before_time(coarse, model):
    runs = coarse.expand_dims(run=3)
    (cut,) = in_blocks([runs], model, budget=16 * MIB)
    assert cut.chunksizes["run"] == (1, 1, 1) and sizes([cut]) == (32, 32, 32)


def test_frames_of_windows_stay_together(make_model):
    windowed = make_model(options=(("time_window", 4),)).model
    coarse = toy_field(time=60, y=14, x=18)
    assert sizes(in_blocks([coarse], windowed, budget=5000)) == (24, 24, 12)
    assert sizes(in_blocks([coarse.chunk(time=1)], windowed, budget=5000)) == (24, 24, 12)


def test_windows_of_a_forecast_run_along_its_leads(make_model):
    windowed = make_model(options=(("time_window", 4),)).model
    forecast = toy_field(time=60, y=14, x=18).rename(time="step").expand_dims(time=3).drop_vars("time", errors="ignore")
    hours = np.arange(60) * np.timedelta64(6, "h")
    forecast = forecast.assign_coords(step=("step", hours, {"standard_name": "forecast_period"}))
    (cut,) = in_blocks([forecast], windowed, budget=5000)
    assert cut.chunksizes["time"] == (1, 1, 1) and cut.chunksizes["step"] == (24, 24, 12)


def test_rows_are_cut_where_one_field_is_too_much(coarse, model, make_model):
    (cut,) = in_blocks([coarse], model, budget=FIELD // 2)
    rows = cut.chunksizes["lat"]
    assert sizes([cut]) == (1,) * 96 and cut.chunksizes["lon"] == (32,)
    assert max(rows) == max(4 * model.halo, 4) or len(rows) == 1
    sampling = SamplingConfig(batch_size=1, patch_size=None)
    whole = make_model(network=(("attention", "channel"),), options=(("sampling", sampling),)).model
    assert whole.halo is None
    assert in_blocks([coarse], whole, budget=1000)[0].chunksizes["lat"] == (32,)


def test_chunks_that_many_regions_read_again_are_told(make_model):
    """The number that is told is that of the regions in which a chunk is read, counted."""
    model = make_model().model  # scale 2
    coarse = toy_field(time=400, y=16, x=16).chunk(time=-1, lat=4, lon=4)
    field, budget = 32 * 32 * 4, 40 * 32 * 32 * 4
    with pytest.warns(XSuperResWarning, match=r"reach over 10 regions along \['time'\].* up to 2 MiB"):
        (cut,) = in_blocks([coarse], model, budget=budget)
    counts = [len(sizes) for sizes in cut.chunks]
    block = math.prod(sizes[0] for sizes in cut.chunks) * 4 * 4
    done, regions = 0, 0
    while done < math.prod(counts):
        boxes = region_from(done, counts, budget // block)
        done, regions = done + math.prod(box.stop - box.start for box in boxes), regions + 1
    assert regions == 10 and field * 400 / budget == 10


@pytest.mark.parametrize(
    ("chunks", "budget"),
    [
        ({"time": -1}, 128 * 32 * 32 * 4),  # four times: less than is written
        ({"time": 40, "lat": 4}, 40 * 32 * 32 * 4),
        ({"time": 1}, 40 * 32 * 32 * 4),
        (None, 4 * 32 * 32 * 4),  # in memory
    ],
)
def test_chunks_that_few_regions_read_are_not(make_model, chunks, budget):
    coarse = toy_field(time=400, y=16, x=16)
    in_blocks([coarse if chunks is None else coarse.chunk(chunks)], make_model().model, budget=budget)


def test_only_fields_are_brought_into_blocks(coarse):
    ds = coarse.chunk(time=5).to_dataset().assign(bounds=("lat", np.arange(32)))
    blocks = {"time": 10, "lat": 16, "lon": 32}
    cut = with_blocks(ds, blocks)
    assert cut.bounds.chunks is None and cut.tas.chunks == ((10,) * 9 + (6,), (16, 16), (32,))
    assert with_blocks(cut, blocks).tas.data.name == cut.tas.data.name
