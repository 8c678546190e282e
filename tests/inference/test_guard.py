"""The guard of the input's range: a +4 K world does not pass silently, the model's own climate does."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import dask
import numpy as np
import pytest
import xarray as xr

import xsuperres as xsr
from xsuperres.errors import DataError, UnknownNameError, XSuperResWarning
from xsuperres.fields.grid import Location
from xsuperres.inference import guard as module
from xsuperres.inference import store, tally
from xsuperres.inference import tile as tile_module
from xsuperres.inference.tally import Limits
from xsuperres.model.file import model_from_bytes, model_to_bytes
from xsuperres.samples.holdout import cut_band
from xsuperres.testing import toy_field
from xsuperres.tiles import AxisPlan, windows

QUICK = {
    "network": {"width": 4, "depth": 1, "head_width": 4},
    "optimization": {"max_steps": 1, "validations": 1},
    "validation": None,
    "progress": False,
    "activate": False,
}
BAND = (180.0, 288.0)
FAR = 200.0  # K: outside whatever a few toy fields leave open


def moved(da: xr.DataArray, by: float) -> xr.DataArray:
    return (da + by).assign_attrs(da.attrs)


def verdict(coarse: xr.DataArray, model, **options) -> str | None:
    """Return what is said of data, None for nothing; it is said once, and lazy data say nothing before computing."""
    lazy = coarse.chunks is not None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = coarse.sr.downscale(model, **options)
        if lazy:
            assert not about_range(caught), "said while building"
            result.compute(scheduler="synchronous")
    said = about_range(caught)
    assert len(said) <= 1, said
    return said[0] if said else None


def about_range(caught) -> list[str]:
    return [str(w.message) for w in caught if w.category is XSuperResWarning and "in training" in str(w.message)]


def assert_guarded(coarse: xr.DataArray, model, by: float) -> None:
    """The model's own climate is silent, a world that is warmer by `by` is not; in memory or lazily."""
    for part in (coarse, coarse.chunk(time=1)):
        said = verdict(part, model)
        assert said is None, said
        said = verdict(moved(part, by), model)
        assert said is not None and "% above" in said, "nothing was said of a warmer world"


@pytest.fixture(scope="module")
def era5() -> xr.DataArray:
    return xsr.tutorial.open_dataset("era5_global_1deg").tas.load()


@pytest.fixture(scope="module")
def coarse(era5) -> xr.DataArray:
    return era5.sr.coarsen(4)


@pytest.fixture(scope="module")
def fixed(era5):
    """Return a model of every second time."""
    return era5.isel(time=slice(0, None, 2)).sr.fit(4, **QUICK)


@pytest.fixture(scope="module")
def opened(era5):
    """Return an open model of the globe less a band, of every second time, without static fields."""
    globe, _ = cut_band(era5.isel(time=slice(0, None, 2)), *BAND)
    return globe.sr.fit(4, **(QUICK | {"static": [], "data": {"domain": "open"}}))


# Real data.


@pytest.mark.parametrize("held_out", [False, True], ids=["trained on", "held out"])
def test_four_kelvin_on_a_fixed_domain(fixed, coarse, held_out):
    assert_guarded(coarse.isel(time=slice(int(held_out), None, 2)), fixed, 4)


@pytest.mark.parametrize("held_out", [False, True], ids=["trained on", "held out"])
@pytest.mark.parametrize("elsewhere", [False, True], ids=["its domain", "elsewhere"])
def test_four_kelvin_on_an_open_domain(opened, coarse, held_out, elsewhere):
    part = cut_band(coarse.drop_vars(["elevation", "land_fraction"]), *BAND)[int(elsewhere)]
    part = part.isel(time=slice(int(held_out), None, 2)).sortby((part.lon - BAND[1]) % 360)
    assert opened.ranges[0].lowest.shape == (45, 1)
    assert_guarded(part, opened, 4)


def test_a_cold_world_is_said_to_be_below(fixed, coarse):
    said = verdict(moved(coarse, -4), fixed)
    assert said.index("% below") and "(0" in said


def test_later_days_of_the_same_week_are_silent(era5, coarse):
    """As in the README: most of the later values of two days were near those of the five before."""
    model = era5.isel(time=slice(0, 16)).sr.fit(4, **(QUICK | {"validation": 0.2}))
    assert_guarded(coarse.isel(time=slice(17, None)), model, 4)


@pytest.fixture(scope="module")
def week() -> xr.Dataset:
    return xsr.tutorial.open_dataset("era5_global_1deg")[["tas", "pr", "psl", "uas", "vas"]].load()


TIMES = np.arange(24)
SPLITS = {
    "first half": (TIMES[:12], TIMES[12:]),
    "as in the README": (TIMES[:16], TIMES[17:]),
    "alternate": (TIMES[::2], TIMES[1::2]),
    "last third first": (TIMES[16:], TIMES[:16]),
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("domain", ["fixed", "open"])
def test_held_out_weather_is_silent_and_four_kelvin_are_not(week, domain, split):
    """Of five variables, near the limit on neither side: the measured shares are beside it."""
    trained, held_out = (week.isel(time=times) for times in SPLITS[split])
    riding = [] if domain == "fixed" else ["elevation", "land_fraction"]
    options = {"data": {"domain": domain}} | ({"static": []} if riding else {})
    model = trained.drop_vars(riding).sr.fit(4, **(QUICK | options))
    held_out = held_out.drop_vars(riding).sr.coarsen(4)
    limit, sides = Limits.of(model).share, []
    for by in (0, 4, -4):
        data = held_out.assign(tas=moved(held_out.tas, by))
        if by:
            with pytest.raises(DataError, match="^'tas': [^']* The network extrapolates there"):
                data.sr.downscale(model, check_range="raise")
        else:
            assert verdict(data, model) is None
        values = np.stack([data[name].values[:, ::-1] for name in model.names], axis=1)
        counts = tally.tallied(Limits.of(model).planes, values, Location.whole(model.coarse_grid))
        sides.append(np.maximum(counts.above, counts.below) / counts.known)
    assert sides[0].max() < 0.9 * limit
    assert min(side[0] for side in sides[1:]) > 1.1 * limit


@pytest.mark.parametrize("domain", ["fixed", "open"])
def test_a_warmer_century(domain):
    """The next thirty years and the other scenario are within the range; the end of the century is not."""
    years = xsr.tutorial.open_dataset("hadgem2_north_america").tas.load()
    model = years.isel(time=slice(0, 100)).sr.fit(4, **(QUICK | {"data": {"domain": domain}}))
    later = years.sr.coarsen(4)
    for scenario in range(2):
        near = later.isel(time=slice(100, 130), scenario=scenario)
        assert_guarded(near, model, 4)
        assert "% below" in verdict(moved(near, -4), model)
        assert "% above" in verdict(later.isel(time=slice(210, None), scenario=scenario), model)
    both = years.isel(scenario=0).sr.fit(4, **(QUICK | {"data": {"domain": domain}}))
    assert_guarded(later.isel(scenario=1), both, 4)


def test_it_says_how_many_of_what_and_what_to_do(fixed, coarse):
    warm = moved(coarse, 4)
    low, high = fixed.ranges[0].limits()
    share = 100 * float(((warm.values[:, ::-1] < low) | (warm.values[:, ::-1] > high)).mean())
    said = verdict(warm, fixed)
    assert said.startswith(f"'tas': {share:.3g} % of the coarse values lie outside the range of their cell in training")
    trained = coarse.isel(time=slice(0, None, 2))
    for da in (warm, trained):
        assert f"{float(da.min()):.4g} to {float(da.max()):.4g} K" in said
    assert said.endswith("train on such data too, or pass check_range='ignore'.")


def test_the_warning_points_at_the_call(fixed, coarse):
    with pytest.warns(XSuperResWarning, match="in training") as caught:
        moved(coarse, 4).sr.downscale(fixed)
    assert caught[0].filename == __file__


def test_a_model_from_a_file_guards_too(fixed, opened, coarse):
    for model in (fixed, opened):
        again = model_from_bytes(model_to_bytes(model))
        assert again.digest == model.digest
        for ours, theirs in zip(again.ranges, model.ranges, strict=True):
            for name in ("lowest", "highest", "count"):
                np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert verdict(moved(coarse, 4), model_from_bytes(model_to_bytes(fixed))) == verdict(moved(coarse, 4), fixed)


def test_ranges_are_part_of_the_digest(fixed):
    (part,) = fixed.ranges
    wider = replace(part, highest=part.highest + np.float32(1))
    assert replace(fixed, ranges=(wider,)).digest != fixed.digest


# What to do.


def test_raise(fixed, coarse, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("the network ran")

    monkeypatch.setattr(tile_module, "apply", never)
    warm = moved(coarse, 4)
    with pytest.raises(DataError, match=r"'tas': .* in training .*check_range='warn' or 'ignore'"):
        warm.sr.downscale(fixed, check_range="raise")
    monkeypatch.undo()
    lazy = warm.chunk(time=1).sr.downscale(fixed, check_range="raise")
    for _ in range(2):
        with pytest.raises(DataError, match="computed so far"):
            lazy.compute(scheduler="synchronous")


def test_raise_lets_its_own_climate_pass(fixed, coarse):
    part = coarse.isel(time=slice(1, 4))
    np.testing.assert_array_equal(part.sr.downscale(fixed, check_range="raise"), part.sr.downscale(fixed))


@pytest.mark.parametrize("chunks", [None, {"time": 1, "lat": 20}])
def test_results_do_not_depend_on_it(make_model, chunks):
    toy = make_model()
    far = moved(toy.coarse, FAR)
    far = far if chunks is None else far.chunk({"time": 1})
    with pytest.warns(XSuperResWarning, match="in training"):
        warned = far.sr.downscale(toy.model).compute()
    ignored = far.sr.downscale(toy.model, check_range="ignore").compute()
    xr.testing.assert_identical(warned.drop_attrs(), ignored.drop_attrs())


@pytest.mark.parametrize("lazy", [False, True])
def test_ignore(make_model, lazy):
    toy = make_model()
    far = moved(toy.coarse, FAR)
    assert verdict(far.chunk(time=1) if lazy else far, toy.model, check_range="ignore") is None


@pytest.mark.parametrize("way", ["warning", None, True, "RAISE"])
def test_anything_else_is_refused(make_model, way):
    toy = make_model()
    with pytest.raises(UnknownNameError, match=r"Unknown check_range .* 'ignore', 'raise', 'warn'"):
        toy.coarse.sr.downscale(toy.model, check_range=way)


# Lazy data.


@pytest.fixture(scope="module")
def trained():
    """Return a model of a globe, and six coarse fields of which the range is known to a millikelvin."""
    field = toy_field(time=6, y=24, x=36, periodic=True)
    return field.sr.fit(2, **QUICK), field.sr.coarsen(2)


def with_share(coarse: xr.DataArray, share: float, begin: float = 0.0) -> xr.DataArray:
    """Return data of which that share of the values is far off, one after the other from a share of them on."""
    values = coarse.values.copy()
    first = round(begin * (1 - share) * values.size)
    values.reshape(-1)[first : first + round(share * values.size)] += FAR
    return coarse.copy(data=values)


def near_limit(model) -> dict[bool, float]:
    """Return shares above and below the limit, by whether they alarm."""
    return {alarms: (1.1 if alarms else 0.9) * Limits.of(model).share for alarms in (False, True)}


CHUNKS = [{"time": 1}, {"time": 2, "lat": 6, "lon": 9}, {"lat": 12}, {"lon": 9}, {}]


@pytest.fixture(scope="module")
def many(trained):
    """Return thirty fields as they were in training."""
    _, coarse = trained
    return xr.concat([coarse] * 5, "time").assign_coords(time=np.arange(30))


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize("begin", [0.0, 0.5, 1.0], ids=["first", "in the middle", "last"])
@pytest.mark.parametrize("alarms", [False, True])
def test_chunked_and_whole_agree(trained, many, chunks, begin, alarms):
    """Wherever what is outside lies, most of it in a few chunks."""
    model, _ = trained
    share = near_limit(model)[alarms]
    data = with_share(many, share, begin)
    whole, parts = verdict(data, model), verdict(data.chunk(chunks), model)
    assert (whole is not None) == (parts is not None) == alarms
    if alarms:
        assert float(whole.split()[1]) == pytest.approx(100 * share, abs=0.05)
        assert whole == parts or "computed so far" in parts


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
@pytest.mark.parametrize("begin", [0.0, 0.5, 1.0], ids=["first", "in the middle", "last"])
@pytest.mark.parametrize("alarms", [False, True])
def test_raise_is_the_same_in_any_order(trained, many, scheduler, begin, alarms):
    model, _ = trained
    data = with_share(many, near_limit(model)[alarms], begin)
    for part in (data, data.chunk(time=1), data.chunk(time=7), data.isel(time=slice(None, None, -1)).chunk(time=1)):
        lazy = part.chunks is not None
        try:
            result = part.sr.downscale(model, check_range="raise")
            if lazy:
                result.compute(scheduler=scheduler, num_workers=3)
        except DataError:
            assert alarms
        else:
            assert not alarms


@pytest.mark.parametrize("alarms", [False, True])
def test_missing_cells_count_nowhere(make_model, alarms):
    """Half of the cells are: of the others, less or more than the limit are outside."""
    toy = make_model(missing=True)
    known = np.isfinite(toy.coarse.values)
    values = toy.coarse.values.copy()
    values[:, ::2] = np.nan
    there = np.flatnonzero(np.isfinite(values))
    values.reshape(-1)[there[: round(near_limit(toy.model)[alarms] * len(there))]] += FAR
    data = toy.coarse.copy(data=values)
    assert 0.3 < len(there) / known.size < 0.5
    for part in (data, data.chunk(time=1)):
        assert (verdict(part, toy.model) is not None) == alarms


def said_by(compute) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compute()
    return about_range(caught)


def test_a_part_counts_against_the_whole(trained, many):
    """Parts alarm as soon as they hold too many of all cells, together and in any order."""
    model, _ = trained
    lazy = moved(many, FAR).chunk(time=1).sr.downscale(model)
    needed = int(Limits.of(model).share * 30) + 1
    steps = np.random.default_rng(0).permutation(30)
    told = [len(said_by(lazy.isel(time=step).compute)) for step in steps]
    assert told == [0] * (needed - 1) + [1] + [0] * (30 - needed)


def test_what_is_computed_again_counts_once(trained, many):
    """Neither do odd steps add up, nor are they drowned by others."""
    model, _ = trained
    data = with_share(many, near_limit(model)[False]).chunk(time=1).sr.downscale(model, check_range="raise")
    for _ in range(12):
        data.isel(time=slice(0, 3)).compute(scheduler="synchronous")
    data.compute()
    lazy = with_share(many, near_limit(model)[True]).chunk(time=1).sr.downscale(model)
    for _ in range(12):
        assert not said_by(lazy.isel(time=slice(10, None)).compute)
    assert len(said_by(lazy.compute)) == 1


def test_once_per_request(trained, many):
    """Computed again it is silent; asked for again, or of other data, it is not; with Python's own filter, too."""
    model, _ = trained
    far = moved(many, FAR).chunk(time=1)
    for data in (far, far, moved(far, 1)):
        lazy = data.sr.downscale(model)
        for expected in (1, 0):
            assert len(said_by(lambda lazy=lazy: lazy.compute(scheduler="threads", num_workers=2))) == expected
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            far.sr.downscale(model).compute()
    assert len(about_range(caught)) == 2


def test_the_warning_of_lazy_data_points_at_the_request(trained, coarse, fixed):
    lazy = moved(coarse, 4).chunk(time=6).sr.downscale(fixed)
    with pytest.warns(XSuperResWarning, match="in training") as caught:
        lazy.compute()
    assert caught[0].filename == __file__
    assert ".sr.downscale(fixed)" in Path(__file__).read_text().splitlines()[caught[0].lineno - 1]


def test_the_same_call_gives_the_same_keys_another_way_others(trained):
    model, coarse = trained
    lazy = coarse.chunk(time=1)
    keys = [set(lazy.sr.downscale(model).data.dask.to_dict()) for _ in range(2)]
    assert keys[0] == keys[1]
    names = [lazy.sr.downscale(model, check_range=way).data.name for way in ("warn", "warn", "raise", "ignore")]
    assert names[0] == names[1]
    assert len(set(names)) == 3


def test_memory_of_requests_is_bounded(trained, monkeypatch):
    """One that was forgotten is judged by what is computed from then on."""
    model, coarse = trained
    monkeypatch.setattr(module, "_KEPT", 3)
    first = moved(coarse, FAR).chunk(time=1).sr.downscale(model)
    for index in range(6):
        moved(coarse, 1e-3 * index).chunk(time=1).sr.downscale(model).compute()
        assert len(module._SO_FAR) <= 3
    assert said_by(lambda: first.compute(scheduler="synchronous"))


@pytest.mark.parametrize("chunks", [{"time": 1}, {"time": 2, "lat": 6, "lon": 9}], ids=str)
def test_memory_of_a_request_is_a_bit_per_field_and_chunk_of_cells(trained, many, chunks):
    model, _ = trained
    many.chunk(chunks).sr.downscale(model).compute()
    progress = next(reversed(module._SO_FAR.values()))
    assert len(progress.counted) == (1 if "lat" not in chunks else 4)
    assert {len(bits) for bits in progress.counted.values()} == {4}


# Where the data lie.


@pytest.mark.parametrize("lazy", [False, True])
def test_crops_are_judged_by_their_own_cells(fixed, coarse, lazy):
    """Rows and columns, across the seam too; values of elsewhere are found out."""
    globe = coarse.roll(lon=45, roll_coords=True)
    for rows, columns in ((slice(0, 15), slice(10, 40)), (slice(20, 40), slice(38, 60))):
        crop = globe.isel(lat=rows, lon=columns)
        other_rows = crop.copy(data=globe.isel(lat=slice(20, 20 + crop.lat.size), lon=columns).values[:, ::-1])
        other_columns = crop.copy(data=globe.isel(lat=rows).roll(lon=30).isel(lon=columns).values)
        crop, other_rows, other_columns = (
            da.chunk(time=3, lat=8, lon=11) if lazy else da for da in (crop, other_rows, other_columns)
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Chunks of")  # smaller than the halo
            assert verdict(crop, fixed) is None
            assert verdict(other_rows, fixed) is not None
            assert verdict(other_columns, fixed) is not None


@pytest.mark.parametrize("lazy", [False, True])
def test_orientation_and_dim_order(fixed, coarse, lazy):
    straight = coarse.isel(time=slice(0, 3))
    for data in (straight, moved(straight, 4)):
        turned = data.isel(lat=slice(None, None, -1)).transpose("lon", "time", "lat")
        said = [verdict(da.chunk(time=1) if lazy else da, fixed) for da in (data, turned)]
        assert said[0] == said[1]


def test_other_latitudes_of_an_open_domain(era5):
    """A model of the tropics, shown its own rows on other longitudes, and the pole."""
    bare = era5.drop_vars(["elevation", "land_fraction"])
    tropics = bare.sel(lat=slice(30.5, -29.5))
    model = tropics.isel(lon=slice(0, 180)).sr.fit(4, **(QUICK | {"data": {"domain": "open"}}))
    assert verdict(tropics.isel(lon=slice(180, None)).sr.coarsen(4), model) is None
    said = verdict(bare.sel(lat=slice(90.5, 62.5)).sr.coarsen(4), model)
    assert "range of their latitude in training (0 % above" in said


def test_without_latitudes_all_cells_are_one(rotated_field):
    model = rotated_field.sr.fit(2, **(QUICK | {"sampling": {"batch_size": 1}, "data": {"domain": "open"}}))
    coarse = rotated_field.sr.coarsen(2)
    assert model.ranges[0].lowest.shape == (1, 1)
    assert verdict(coarse, model) is None
    assert verdict(coarse.isel(rlat=slice(None, None, -1)).assign_coords(coarse.coords), model) is None
    assert "range of their domain in training" in verdict(moved(coarse, FAR), model)


@pytest.mark.parametrize("alarms", [False, True])
@pytest.mark.parametrize("what", ["cropped", "regridded"])
def test_what_is_brought_onto_the_models_cells_is_judged_there(what, alarms):
    """Of a larger area the part that is used, of shifted cells what they become."""
    field = toy_field(time=6, y=24, x=36)
    inner = field.isel(lat=slice(8, 20))
    model, coarse = inner.sr.fit(2, **QUICK), field.sr.coarsen(2).drop_vars(["elevation", "land_fraction"])
    share = (1.5 if alarms else 0.5) * Limits.of(model).share
    data = with_share(coarse.isel(lat=slice(4, 10)), share, 0.5)
    if what == "cropped":
        given = moved(coarse, FAR)
        given[:, 4:10] = data.values
    else:
        given = data.assign_coords(lon=data.lon + 0.25 * float(data.lon[1] - data.lon[0]))
    for part in (given, given.chunk(time=1), given.chunk(time=4)):
        assert (verdict(part, model) is not None) == alarms


# What is looked at.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equal_values_never_alarm(dtype):
    """Cells that never changed, and have no width, in either precision."""
    fine = toy_field(time=4, y=16, x=24, dtype=dtype)
    fine = fine.where(fine.lat > fine.lat[8], 271.35).assign_attrs(fine.attrs)
    model = fine.sr.fit(2, **QUICK)
    coarse = fine.sr.coarsen(2)
    low, high = model.ranges[0].lowest, model.ranges[0].highest
    assert (low == high).mean() > 0.4
    for data in (coarse, coarse.astype("float64", keep_attrs=True), coarse.astype("float32", keep_attrs=True)):
        assert verdict(data, model) is None
        assert verdict(moved(data, FAR), model) is not None


@pytest.fixture
def several():
    """Return a Dataset of two variables, one predictor, and a model of them with a window."""
    tas = toy_field(time=6, y=16, x=24)
    other = toy_field(time=6, y=16, x=24, seed=1).reset_coords(drop=True)
    other = other.rename("psl").assign_attrs(units="Pa", standard_name="air_pressure_at_mean_sea_level")
    ds = xr.Dataset({"tas": tas, "tos": (tas / 2).assign_attrs(units="K")})
    return ds, other, ds.sr.fit(2, **(QUICK | {"predictors": other, "time_window": 3}))


@pytest.mark.parametrize("chunks", [None, {"time": 2}])
@pytest.mark.parametrize("odd", [(), ("tos",), ("psl",), ("tas", "psl")])
def test_each_variable_is_judged_for_itself(several, odd, chunks):
    """Targets and predictors, in windows; the others are not named."""
    ds, other, model = several
    assert len(model.ranges) == 3
    coarse, beside = ds.sr.coarsen(2), other.sr.coarsen(2)
    coarse = coarse.assign({name: moved(coarse[name], FAR) for name in odd if name in coarse})
    beside = moved(beside, FAR) if "psl" in odd else beside
    coarse, beside = (da if chunks is None else da.chunk(chunks) for da in (coarse, beside))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        coarse.sr.downscale(model, predictors=beside).compute(scheduler="synchronous")
    said = "".join(about_range(caught))
    assert len(about_range(caught)) == bool(odd)
    assert [name for name in ("tas", "tos", "psl") if f"{name!r}: 100 %" in said] == list(odd)


@pytest.mark.parametrize("chunks", [None, {"time": 2}, {"time": 5, "lon": 9}])
@pytest.mark.parametrize("alarms", [False, True])
def test_frames_beside_a_chunk_count_once(chunks, alarms):
    """A window's frames, and the halo, belong to the chunks beside."""
    field = toy_field(time=7, y=24, x=36)
    model = field.sr.fit(2, **(QUICK | {"time_window": 3}))
    data = with_share(field.sr.coarsen(2), near_limit(model)[alarms])
    assert (verdict(data if chunks is None else data.chunk(chunks), model) is not None) == alarms


@pytest.mark.parametrize("lazy", [False, True])
def test_members(make_model, lazy):
    toy = make_model(network=(("dropout", "spatial"),))
    for alarms, share in near_limit(toy.model).items():  # each cell counts once, whatever the number of members
        data = with_share(toy.coarse, share)
        said = verdict(data.chunk(time=1) if lazy else data, toy.model, members=3)
        assert (said is not None) == alarms


def test_members_of_the_data(make_model):
    """A batch dim is as good as time."""
    toy = make_model()
    both = xr.concat([toy.coarse, moved(toy.coarse, FAR)], "scenario")
    assert "50 % of" in verdict(both, toy.model)
    assert verdict(both.chunk(time=1, scenario=2), toy.model).startswith("'tas': 50 % of the coarse values computed so")


def test_data_larger_than_a_piece_are_counted_in_full(trained, monkeypatch):
    model, coarse = trained
    expected = verdict(with_share(coarse, 0.3), model)
    monkeypatch.setattr(tally, "_PIECE", 1)
    assert verdict(with_share(coarse, 0.3), model) == expected


def test_nothing_to_look_at(trained):
    model, coarse = trained
    assert verdict(coarse.isel(time=slice(0, 0)), model) is None
    nothing = coarse.where(False).assign_attrs(coarse.attrs).chunk(time=1)
    with pytest.warns(XSuperResWarning, match="NaN cells") as caught:
        assert nothing.sr.downscale(model).compute().isnull().all()
    assert not about_range(caught)


# Describe.


def told(text: str) -> str | None:
    return next((line.split("  ", 1)[1].strip() for line in text.splitlines() if line.startswith("range ")), None)


def test_describe(fixed, opened, coarse, several):
    assert told(coarse.isel(time=slice(0, None, 2)).sr.describe(model=fixed)).startswith("0 % of the cells outside")
    warm = moved(coarse, 4)
    share = verdict(warm, fixed).split()[1]
    assert told(warm.sr.describe(model=fixed)) == f"{share} % of the cells outside that of the training"
    turned = warm.isel(lat=slice(None, None, -1)).transpose("lon", "lat", "time")
    assert told(turned.sr.describe(model=fixed)) == told(warm.sr.describe(model=fixed))
    elsewhere = cut_band(coarse, *BAND)[1]
    assert float(told(elsewhere.sr.describe(model=opened)).split()[0]) < 1
    ds, _, model = several
    mixed = ds.sr.coarsen(2).assign(tos=moved(ds.tos.sr.coarsen(2), FAR))
    assert told(mixed.sr.describe(model=model)).startswith("0 % (tas), 100 % (tos) of the cells")


def test_describe_computes_nothing(fixed, coarse, several):
    with dask.config.set(scheduler="not one"):
        assert told(coarse.chunk(time=1).sr.describe(model=fixed)) is None
    ds, _, model = several
    assert told(ds.tas.sr.coarsen(2).sr.describe(model=model)) is None, "a variable is not there"
    file = xsr.tutorial.open_dataset("era5_global_1deg").tas.isel(lat=slice(0, 60, 4), lon=slice(0, 60, 4))
    assert told(file.sr.describe(model=fixed)) is None


# Negative controls: the checker notices a guard that never alarms, always does, or forgets the halo.


def test_a_guard_that_sleeps_is_found_out(fixed, coarse, monkeypatch):
    monkeypatch.setattr(tally, "_MANY", 1.0)
    with pytest.raises(AssertionError, match="nothing was said"):
        assert_guarded(coarse.isel(time=slice(0, 4)), fixed, 4)


def test_a_guard_that_sleeps_over_lazy_data_is_found_out(fixed, coarse, monkeypatch):
    monkeypatch.setattr(module.Guard, "watch", lambda *args: None)
    with pytest.raises(AssertionError, match="nothing was said"):
        assert_guarded(coarse.isel(time=slice(0, 4)), fixed, 4)


def test_a_guard_that_cries_wolf_is_found_out(fixed, coarse, monkeypatch):
    monkeypatch.setattr(tally, "_MANY", -1.0)
    with pytest.raises(AssertionError, match="'tas'"):
        assert_guarded(coarse.isel(time=slice(0, 4)), fixed, 4)


# Archives.


def killed(monkeypatch, after: int):
    """Let the writer of an archive die after some regions, and its process be another one from then on."""
    true_note, notes = store.ArchiveRecord.note, []

    def note(self, *entries):
        true_note(self, *entries)
        notes.append(entries)
        if len(notes) == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(store.ArchiveRecord, "note", note)


@pytest.fixture
def archive(monkeypatch):
    """Return the function that writes an archive in regions of four fields, and returns what was said."""
    monkeypatch.setattr(store, "region_budget", lambda memory_budget: 4 * 24 * 36 * 4)
    return lambda da, place, model, **options: said_by(
        lambda: da.sr.downscale_to_zarr(place, model, progress=False, **options)
    )


@pytest.mark.parametrize("begin", [0.0, 0.5, 1.0], ids=["first", "in the middle", "last"])
@pytest.mark.parametrize("way", ["warn", "raise"])
@pytest.mark.parametrize("alarms", [False, True])
def test_archives_are_judged_as_one(trained, many, archive, tmp_path, monkeypatch, alarms, way, begin):
    """Region by region, in memory or lazily; and by all of its runs together where one is killed."""
    model, _ = trained
    data = with_share(many, near_limit(model)[alarms], begin)
    for name, part in (("memory", data), ("lazy", data.chunk(time=3)), ("killed", data.chunk(time=3))):
        said, stopped = [], False
        try:
            if name == "killed":
                with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
                    killed(context, after=4)
                    archive(part, tmp_path / name, model, check_range=way)
                module._SO_FAR.clear()
            said = archive(part, tmp_path / name, model, check_range=way)
        except DataError:
            stopped = True
        assert (len(said), stopped) == (alarms and way == "warn", alarms and way == "raise"), name


# Other processes.


def spread(da: xr.DataArray, share: float) -> xr.DataArray:
    """Return lazy data of which that share of the values is far off, at random."""
    values = da.values.copy()
    values.reshape(-1)[np.random.default_rng(0).permutation(da.size)[: round(share * da.size)]] += FAR
    return da.copy(data=values).chunk(time=1)


@pytest.mark.slow
def test_scheduler_processes(trained, many, capfd):
    """Each judges by its own share, and says so where its own messages go; raise is heard here."""
    model, _ = trained
    far = moved(many, FAR).chunk(time=1)
    far.sr.downscale(model).compute(scheduler="processes", num_workers=2)
    assert "in training" in capfd.readouterr().err
    with pytest.raises(DataError, match="in training"):
        far.sr.downscale(model, check_range="raise").compute(scheduler="processes", num_workers=2)
    many.chunk(time=1).sr.downscale(model, check_range="raise").compute(scheduler="processes", num_workers=2)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Return a cluster of two processes."""
    from distributed import LocalCluster

    home = str(tmp_path_factory.mktemp("workers"))
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "local_directory": home}
    with LocalCluster(**options) as cluster:
        yield cluster


@pytest.mark.slow
def test_a_cluster_tells_its_client_once_per_request(trained, many, cluster):
    """Of the whole, however it is shared out; again when it is asked for again, with Python's own filter too."""
    from distributed import Client

    model, _ = trained
    with Client(cluster) as client:
        assert os.getpid() not in client.run(os.getpid).values()
        for alarms, share in near_limit(model).items():
            data = spread(many, share)
            for part in (data, data, data.chunk(time=5, lat=6)):
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("default")
                    warnings.filterwarnings("ignore", "Chunks of")
                    lazy = part.sr.downscale(model)
                    assert not about_range(caught)
                    lazy.isel(time=slice(0, 2)).compute()
                    lazy.compute()
                    lazy.compute()
                assert len(about_range(caught)) == alarms
                if alarms:
                    assert caught[0].filename == __file__


@pytest.mark.slow
def test_raise_on_a_cluster(trained, many, cluster):
    """By the whole too: what is far off in a worker's first fields is not enough, a quarter of all of them is."""
    from distributed import Client

    model, _ = trained
    with Client(cluster):
        for begin in (0.0, 1.0):
            odd = with_share(many, near_limit(model)[False], begin).chunk(time=1)
            odd.sr.downscale(model, check_range="raise").compute()
        with pytest.raises(DataError, match="in training"):
            moved(many, FAR).chunk(time=1).sr.downscale(model, check_range="raise").compute()
        longer = xr.concat([many] * 10, "time").assign_coords(time=np.arange(300))
        share = 1.5 * Limits.of(model).share  # so that neither worker alone can see enough
        with pytest.raises(DataError, match="in training"), pytest.warns(XSuperResWarning, match="in training"):
            spread(longer, share).sr.downscale(model, check_range="raise").compute()


def test_a_worker_asks_before_it_stops(trained, many, monkeypatch):
    """Its client, and only if its own share has too many; what is enough of the whole stops it at once."""
    model, coarse = trained
    reports, asked, stops = [], [], []
    monkeypatch.setattr(module, "_worker", lambda: SimpleNamespace(log_event=lambda topic, told: reports.append(told)))
    monkeypatch.setattr(module, "_stopped", lambda request: asked.append(request) or next(iter(stops), None))
    guard = module.Guard("raise", many.shape, "a request of another process", heard=True)
    place = windows([12], AxisPlan())[0], windows([18], AxisPlan())[0]

    def watch(step: int, by: float) -> None:
        block = moved(coarse.isel(time=[0]), by).values[:, None]
        parts = (windows([1] * 30, AxisPlan())[step], *place)
        guard.watch(Limits.of(model), block, parts, Location.whole(model.coarse_grid))

    watch(0, 0.0)
    assert len(reports) == 1 and not asked
    watch(1, FAR)
    watch(1, FAR)
    assert len(reports) == 2 and len(asked) == 2, "a block is reported once"
    stops.append("Too many. ")
    with pytest.raises(DataError, match="Too many"):
        watch(2, 0.0)
    stops.clear()
    needed = int(Limits.of(model).share * 30) + 1
    for step in range(3, 1 + needed):
        watch(step, FAR)
    assert len(reports) == 1 + needed
    with pytest.raises(DataError, match="in training"):
        watch(1 + needed, FAR)
    assert len(reports) == 1 + needed, "what it raises itself it does not report"


@pytest.mark.slow
def test_a_client_that_comes_late_is_told_by_the_workers(trained, many, cluster):
    """There is nobody to hear them all, so each judges by its own share."""
    from distributed import Client

    model, _ = trained
    for _ in range(2):
        lazy = moved(many, FAR).chunk(time=1).sr.downscale(model)
        with Client(cluster):
            assert 1 <= len(said_by(lazy.compute)) <= 2


@pytest.mark.slow
def test_workers_in_the_clients_process(trained, many):
    from distributed import Client, LocalCluster

    model, _ = trained
    options = {"n_workers": 2, "threads_per_worker": 2, "dashboard_address": None, "processes": False}
    with LocalCluster(**options) as cluster, Client(cluster):
        for alarms, share in near_limit(model).items():
            data = spread(many, share)
            assert len(said_by(data.sr.downscale(model).compute)) == alarms


@pytest.mark.slow
def test_an_archive_of_a_cluster(trained, many, cluster, archive, tmp_path, monkeypatch):
    """What its workers counted is kept for who goes on."""
    from distributed import Client

    model, _ = trained
    data = spread(many, near_limit(model)[True])
    with Client(cluster):
        with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
            killed(context, after=4)
            archive(data, tmp_path / "fine.zarr", model)
        module._SO_FAR.clear()
        assert len(archive(data, tmp_path / "fine.zarr", model)) == 1
