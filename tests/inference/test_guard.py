"""The guard of the input's range: a +4 K world does not pass silently, the model's own climate does."""

from __future__ import annotations

import os
import time
import warnings

import dask
import numpy as np
import pytest
import xarray as xr

import xsuperres as xsr
from xsuperres.errors import DataError, UnknownNameError, XSuperResWarning
from xsuperres.inference import guard as module
from xsuperres.inference import tile as tile_module
from xsuperres.model.file import model_from_bytes, model_to_bytes
from xsuperres.samples.holdout import cut_band
from xsuperres.testing import toy_field

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


def test_a_warmer_century():
    years = xsr.tutorial.open_dataset("hadgem2_north_america").tas.load()
    model = years.isel(time=slice(0, 100)).sr.fit(4, **QUICK)
    later = years.sr.coarsen(4)
    assert verdict(later.isel(time=slice(100, 130)), model) is None
    assert "% above" in verdict(later.isel(time=slice(210, None), scenario=0), model)


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
    from dataclasses import replace

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


def with_share(coarse: xr.DataArray, share: float, seed: int = 0) -> xr.DataArray:
    """Return data of which that share of the values is far off, those at the beginning."""
    values = coarse.values.copy()
    values.reshape(-1)[: round(share * values.size)] += FAR
    return coarse.copy(data=values)


CHUNKS = [{"time": 1}, {"time": 2, "lat": 6, "lon": 9}, {"lat": 12}, {"lon": 9}, {}]


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize("share", [0.0, 0.045, 0.055, 0.3])
def test_chunked_and_whole_agree(trained, chunks, share):
    """Also where all that is outside is in the first chunk, of which it is a quarter or more."""
    model, coarse = trained
    data = with_share(coarse, share)
    whole, parts = verdict(data, model), verdict(data.chunk(chunks), model)
    assert (whole is None) == (parts is None) == (share <= 0.05)
    if whole is not None:
        assert float(whole.split()[1]) == pytest.approx(100 * share, abs=0.05)


@pytest.mark.parametrize("share", [0.045, 0.055])
def test_missing_cells_count_nowhere(make_model, share):
    """Half of the cells are: of the others, less or more than 5 % are outside."""
    toy = make_model(missing=True)
    known = np.isfinite(toy.coarse.values)
    values = toy.coarse.values.copy()
    values[:, ::2] = np.nan
    there = np.flatnonzero(np.isfinite(values))
    values.reshape(-1)[there[: round(share * len(there))]] += FAR
    data = toy.coarse.copy(data=values)
    assert 0.3 < len(there) / known.size < 0.5
    for part in (data, data.chunk(time=1)):
        assert (verdict(part, toy.model) is None) == (share < 0.05)


def test_an_odd_step_of_many_does_not_alarm(trained):
    """Of one field a third, with which the first chunk begins, in a hundred."""
    model, coarse = trained
    many = xr.concat([coarse] * 17, "time").assign_coords(time=np.arange(102))
    assert verdict(with_share(many, 0.33 / 102).chunk(time=1), model) is None
    assert "computed so far" in verdict(with_share(many, 0.5).chunk(time=1), model)


def test_a_part_is_enough(trained):
    """One step of a long archive of another world."""
    model, coarse = trained
    many = xr.concat([coarse] * 17, "time").assign_coords(time=np.arange(102))
    lazy = moved(many, FAR).chunk(time=1).sr.downscale(model)
    with pytest.warns(XSuperResWarning, match="100 % of the coarse values computed so far"):
        lazy.isel(time=50).compute(scheduler="synchronous")


def test_once_per_result(trained):
    """Computed again it is silent; asked for again, or of other data, it is not."""
    model, coarse = trained
    far = moved(coarse, FAR).chunk(time=1)
    for data in (far, far, moved(far, 1)):
        lazy = data.sr.downscale(model)
        with pytest.warns(XSuperResWarning, match="in training") as caught:
            lazy.compute(scheduler="threads", num_workers=2)
        assert len(caught) == 1
        lazy.compute(scheduler="synchronous")


def test_the_same_call_gives_the_same_keys_another_way_others(trained):
    model, coarse = trained
    lazy = coarse.chunk(time=1)
    names = [lazy.sr.downscale(model, check_range=way).data.name for way in ("warn", "warn", "raise", "ignore")]
    assert names[0] == names[1]
    assert len(set(names)) == 3


def test_memory_of_results_is_bounded(trained):
    model, coarse = trained
    for index in range(module._KEPT + 3):
        coarse.isel(time=[0]).chunk().copy().pipe(moved, 1e-3 * index).sr.downscale(model).compute()
    assert len(module._SO_FAR) <= module._KEPT


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
@pytest.mark.parametrize("share", [0.045, 0.055])
def test_frames_beside_a_chunk_count_once(chunks, share):
    """A window's frames, and the halo, belong to the chunks beside."""
    field = toy_field(time=7, y=24, x=36)
    model = field.sr.fit(2, **(QUICK | {"time_window": 3}))
    data = with_share(field.sr.coarsen(2), share)
    assert (verdict(data if chunks is None else data.chunk(chunks), model) is None) == (share < 0.05)


@pytest.mark.parametrize("lazy", [False, True])
def test_members(make_model, lazy):
    toy = make_model(network=(("dropout", "spatial"),))
    for data, alarms in ((toy.coarse, False), (moved(toy.coarse, FAR), True)):
        said = verdict(data.chunk(time=1) if lazy else data, toy.model, members=2)
        assert (said is not None) == alarms


def test_members_of_the_data(make_model):
    """A batch dim is as good as time."""
    toy = make_model()
    both = xr.concat([toy.coarse, moved(toy.coarse, FAR)], "scenario")
    assert "50 % of" in verdict(both, toy.model)
    assert "50 % of" in verdict(both.chunk(time=1, scenario=2), toy.model)


def test_data_larger_than_a_piece_are_counted_in_full(trained, monkeypatch):
    model, coarse = trained
    expected = verdict(with_share(coarse, 0.3), model)
    monkeypatch.setattr(module, "_PIECE", 1)
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
    monkeypatch.setattr(module, "_LIMIT", 1.0)
    with pytest.raises(AssertionError, match="nothing was said"):
        assert_guarded(coarse.isel(time=slice(0, 4)), fixed, 4)


def test_a_guard_that_sleeps_over_lazy_data_is_found_out(fixed, coarse, monkeypatch):
    monkeypatch.setattr(module.Guard, "watch", lambda *args: None)
    with pytest.raises(AssertionError, match="nothing was said"):
        assert_guarded(coarse.isel(time=slice(0, 4)), fixed, 4)


def test_a_guard_that_cries_wolf_is_found_out(fixed, coarse, monkeypatch):
    monkeypatch.setattr(module, "_LIMIT", -1.0)
    with pytest.raises(AssertionError, match="'tas'"):
        assert_guarded(coarse.isel(time=slice(0, 4)), fixed, 4)


# A cluster.


@pytest.mark.slow
@pytest.mark.parametrize("way", ["warn", "raise"])
def test_a_cluster_tells_its_client(trained, tmp_path, way):
    """The warning is raised in another process, and heard in this one."""
    from distributed import Client, LocalCluster

    model, coarse = trained
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None, "local_directory": str(tmp_path)}
    with LocalCluster(**options) as cluster, Client(cluster) as client, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert client.submit(os.getpid).result() != os.getpid()
        coarse.chunk(time=1).sr.downscale(model, check_range=way).compute()
        far = moved(coarse, FAR).chunk(time=1).sr.downscale(model, check_range=way)
        time.sleep(0.5)
        assert not about_range(caught)
        if way == "raise":
            with pytest.raises(DataError, match="in training"):
                far.compute()
            return
        far.compute()
        deadline = time.time() + 20
        while not about_range(caught) and time.time() < deadline:
            time.sleep(0.05)
        assert len(about_range(caught)) == 1
        assert "'tas': 100 %" in about_range(caught)[0]
