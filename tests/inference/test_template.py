"""What cannot be written is told before anything is; how fields are stored."""

from __future__ import annotations

import datetime
import warnings
from types import SimpleNamespace

import dask.array
import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.codecs import BloscCodec

from xsuperres.errors import ConfigError, DataError, StoreError, UnknownNameError, XSuperResWarning
from xsuperres.inference import store
from xsuperres.inference.template import blocks_of, check_size, fields_of, loaded, template_of
from xsuperres.testing import toy_field

FIELD = 28 * 36 * 4  # bytes of a fine field


@pytest.fixture(autouse=True)
def _small_regions(monkeypatch):
    """Blocks of one field, regions of eight."""
    monkeypatch.setattr(store, "region_budget", lambda memory_budget: memory_budget or 8 * FIELD)


@pytest.fixture
def toy(make_model):
    """A model and 24 coarse fields."""
    return SimpleNamespace(model=make_model().model, coarse=toy_field(time=24, y=28, x=36).sr.coarsen(2))


def stored(coarse, place, model, **options):
    return coarse.sr.downscale_to_zarr(place, model, **{"progress": False} | options)


# tried in memory


MIXED = np.array([1, "a", None] * 8, dtype=object)
UNWRITABLE = {
    "a date in an attribute": (
        lambda c: c.assign_attrs(created=datetime.datetime(2020, 1, 1)),
        "The attribute 'created' of 'tas' cannot be written to Zarr: .*datetime.*Convert or drop it",
    ),
    "an attribute of a coordinate": (
        lambda c: c.assign_coords(lat=c.lat.assign_attrs(axis_object=object())),
        None,  # the model's own coordinates are stored
    ),
    "an attribute of another coordinate": (
        lambda c: c.assign_coords(time=c.time.assign_attrs(seen={1, 2})),
        "The attribute 'seen' of 'time' cannot be written",
    ),
    "a MultiIndex": (
        lambda c: c.expand_dims(a=[0, 1], b=[0, 1]).stack(member=("a", "b")),
        "The variable 'member' cannot be written to Zarr: .*MultiIndex.*reset_index",
    ),
    "objects of several kinds": (
        lambda c: c.assign_coords(note=("time", MIXED)),
        "The variable 'note' cannot be written to Zarr: .*mixed native types",
    ),
    "a leftover of undecoded data": (lambda c: c.assign_attrs(_FillValue=-999.0), "'_FillValue' already exists"),
    "a number as a name": (lambda c: c.rename(3), "Invalid name 3"),
}


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize(("change", "told"), UNWRITABLE.values(), ids=UNWRITABLE.keys())
@pytest.mark.filterwarnings("ignore:The variable's name:xsuperres.errors.XSuperResWarning")
def test_data_that_cannot_be_written(toy, tmp_path, change, told, resume):
    if told is None:
        assert stored(change(toy.coarse), tmp_path / "fine.zarr", toy.model).shape == (24, 28, 36)
        return
    with pytest.raises(DataError, match=told):
        stored(change(toy.coarse).chunk(time=4), tmp_path / "fine.zarr", toy.model, resume=resume)
    assert not list(tmp_path.iterdir())
    stored(toy.coarse, tmp_path / "fine.zarr", toy.model, resume=resume)


def test_attributes_that_say_how_data_were_packed(toy, tmp_path):
    """They hold of what is stored then, and come back as numbers."""
    left = toy.coarse.assign_attrs(scale_factor=0.5, add_offset=100.0)
    fine = stored(left, tmp_path / "fine.zarr", toy.model)
    np.testing.assert_allclose(fine, toy.coarse.sr.downscale(toy.model), rtol=1e-6)
    np.testing.assert_allclose(zarr.open_group(tmp_path / "fine.zarr")["tas"][:] * 0.5 + 100.0, fine, rtol=1e-6)


def test_names_that_are_taken(toy, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XSuperResWarning)  # another name than the model's
        with pytest.raises(DataError, match=r"bounds under the names \['lat_bnds'\]; rename"):
            stored(toy.coarse.rename("lat_bnds"), tmp_path / "fine.zarr", toy.model)
    with pytest.raises(DataError, match="without a name are stored as 'field', but a coordinate has that name"):
        stored(toy.coarse.rename(None).assign_coords(field=3), tmp_path / "fine.zarr", toy.model)
    assert not list(tmp_path.iterdir())


def test_fields_of_object_dtype(toy, tmp_path):
    with pytest.raises(DataError, match="dtype object; expected float32 or float64"):
        stored(toy.coarse.astype(object), tmp_path / "fine.zarr", toy.model)
    assert not list(tmp_path.iterdir())


def test_what_goes_along_is_computed_once(toy, tmp_path):
    computed = []

    def counted(block):
        computed.append(block.shape)
        return block

    ones = dask.array.ones((24, 10), chunks=(1, 10)).map_blocks(counted, dtype=float, meta=np.empty((0, 0)))
    ds = toy.coarse.to_dataset().assign(stations=(("time", "station"), ones))
    fine = stored(ds, tmp_path / "fine.zarr", toy.model)
    assert computed == [(1, 10)] * 24
    computed.clear()
    np.testing.assert_array_equal(xr.open_zarr(tmp_path / "fine.zarr").stations, np.ones((24, 10)))
    assert list(fine.data_vars) == ["tas", "stations"]


def test_fields_are_what_is_lazy(toy, tmp_path):
    """Also where another variable bears the attribute of a model's result."""
    ds = toy.coarse.chunk(time=4).to_dataset()
    mean = ds.sr.downscale(toy.model).tas.mean(("lat", "lon"), keep_attrs=True)
    ds["mean"] = mean
    assert [da.name for da in fields_of(loaded(ds, ["tas"]))] == ["tas"]
    fine = stored(ds, tmp_path / "fine.zarr", toy.model)
    np.testing.assert_allclose(fine["mean"], mean, rtol=1e-6)
    assert "xsuperres_model" in xr.open_zarr(tmp_path / "fine.zarr")["mean"].attrs


# encodings


@pytest.mark.parametrize(
    ("encoding", "error", "told"),
    [
        ({"pr": {}}, UnknownNameError, "variable in encoding 'pr'"),
        ({"tas": {"chunks": 4}}, ConfigError, "must be 3 whole numbers.*got 4"),
        ({"tas": {"chunks": (4, 0, 4)}}, ConfigError, "must be 3 whole numbers"),
        ({"tas": {"zlib": True}}, ConfigError, "encoding cannot be written to Zarr.*zlib"),
        ({"lat": {"zlib": True}}, ConfigError, "encoding cannot be written to Zarr.*zlib"),
        ({"tas": {"dtype": "nonsense"}}, ConfigError, "encoding cannot be written to Zarr"),
        ({"tas": {"filters": object()}}, ConfigError, "holds <object.*another process could not tell from others"),
    ],
)
def test_encodings_that_cannot_be(toy, tmp_path, encoding, error, told):
    with pytest.raises(error, match=told):
        stored(toy.coarse, tmp_path / "fine.zarr", toy.model, encoding=encoding)
    assert not list(tmp_path.iterdir())


def test_by_default_fields_are_shuffled_and_compressed(toy, tmp_path):
    stored(toy.coarse, tmp_path / "fine.zarr", toy.model)
    (codec,) = zarr.open_group(tmp_path / "fine.zarr")["tas"].compressors
    assert isinstance(codec, BloscCodec) and codec.cname.value == "zstd" and codec.shuffle.value == "shuffle"
    stored(toy.coarse, tmp_path / "plain.zarr", toy.model, encoding={"tas": {"compressors": None}})
    assert zarr.open_group(tmp_path / "plain.zarr")["tas"].compressors == ()


def test_encodings_of_coordinates_and_bounds(toy, tmp_path):
    encoding = {"lat_bnds": {"dtype": "float32"}, "elevation": {"dtype": "int16", "_FillValue": -1}}
    coarse = toy.coarse.assign_coords(height=2.0)
    stored(coarse, tmp_path / "fine.zarr", toy.model, encoding=encoding)
    with xr.open_zarr(tmp_path / "fine.zarr", decode_cf=False) as raw:
        assert (
            "height" in raw.tas.attrs["coordinates"]
            and raw.lat_bnds.dtype == np.float32
            and raw.elevation.dtype == np.int16
        )
        assert "coordinates" not in raw.lat_bnds.attrs, "bounds have none by CF"


PACKED = {"scale_factor": 0.01, "add_offset": 280.0}


@pytest.mark.parametrize(
    ("given", "fill"),
    [
        ({"dtype": "int16", **PACKED}, -(2**15)),
        ({"dtype": np.int16, "_FillValue": None, **PACKED}, -(2**15)),
        ({"dtype": "uint16", "scale_factor": 0.01, "add_offset": 100.0}, 2**16 - 1),
        ({"dtype": "int16", "_FillValue": -1000, **PACKED}, -1000),
        ({"dtype": "int16", "missing_value": -999, **PACKED}, -999),
        ({"_FillValue": np.float32(-9999)}, -9999),
        ({"dtype": "float32"}, np.nan),
    ],
)
def test_missing_values_stay_missing(make_model, tmp_path, given, fill):
    toy = make_model(missing=True)
    whole = toy.coarse.sr.downscale(toy.model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fine = stored(toy.coarse, tmp_path / "fine.zarr", toy.model, encoding={"tas": given}).load()
    assert whole.isnull().any()
    np.testing.assert_array_equal(fine.isnull(), whole.isnull())
    np.testing.assert_allclose(fine, whole, atol=0.0051)
    np.testing.assert_equal(float(zarr.open_group(tmp_path / "fine.zarr")["tas"].fill_value), float(fill))


def test_chunks_of_two_variables_that_make_large_blocks(tmp_path):
    fine = toy_field(time=240, y=8, x=8).chunk(time=1).to_dataset()
    fine["ts"] = fine.tas + 1
    encoding = {"tas": {"chunks": (13, 8, 8)}, "ts": {"chunks": (17, 8, 8)}}
    blocks = blocks_of(fine, encoding)
    assert blocks["time"] == 221
    with pytest.warns(XSuperResWarning, match="at least {'time': 221.*108 times the memory_budget.*equal or smaller"):
        check_size(fine, encoding, blocks, 1050)
    encoding["ts"] = {"chunks": (26, 8, 8)}
    check_size(fine, encoding, blocks_of(fine, encoding), 2**20)


def test_a_template_is_all_but_the_fields(tmp_path):
    """The objects are those that xarray writes, whatever the number of chunks, of which none is computed."""
    fine = toy_field(time=24, y=8, x=8).assign_attrs(units="K")
    lazy = fine.copy(data=dask.array.from_delayed(dask.delayed(lambda: 1 / 0)(), fine.shape, fine.dtype))
    lazy = loaded(lazy.chunk(time=1).to_dataset().assign_attrs(title="toy"), ["tas"])
    objects = template_of(lazy, {}, {"time": 6, "lat": 8, "lon": 8}, {"mark": "m"})
    assert {key for key in objects if key.startswith("tas/")} == {"tas/zarr.json"}
    for key, content in objects.items():
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(content)
    with xr.open_zarr(tmp_path, consolidated=False) as opened:
        assert opened.attrs == {"title": "toy", "mark": "m"} and opened.tas.isnull().all()
        assert opened.tas.encoding["chunks"] == (6, 8, 8) and opened.tas.attrs == fine.attrs
        for name, coordinate in lazy.coords.items():
            xr.testing.assert_identical(opened[name].variable, coordinate.variable)


def test_the_warning_points_at_the_line_of_the_user(toy, tmp_path):
    with pytest.warns(XSuperResWarning, match="times the memory_budget") as caught:
        toy.coarse.sr.downscale_to_zarr(
            tmp_path / "fine.zarr", toy.model, encoding={"tas": {"chunks": (24, 28, 36)}}, progress=False
        )
    assert caught[0].filename == __file__


def test_stores_that_cannot_replace_what_they_hold(toy, tmp_path):
    from zarr.storage import ZipStore

    with pytest.raises(StoreError, match="is a ZipStore, in which nothing can be replaced.*pack that when"):
        stored(toy.coarse, ZipStore(tmp_path / "fine.zip", mode="w"), toy.model)
    assert not list(tmp_path.iterdir())
