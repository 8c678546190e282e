"""The model file: everything comes back, the digest stays, bytes are deterministic, nothing is pickled."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
import xarray as xr

import xsuperres as xsr
from xsuperres.config import SamplingConfig
from xsuperres.errors import ModelFileError
from xsuperres.fields.baselines import LinearBaselines
from xsuperres.model.file import FORMAT_VERSION, digest_of, model_from_bytes, model_to_bytes
from xsuperres.testing import toy_field

FULL_FIELDS = SamplingConfig(batch_size=1, patch_size=None)
KINDS = {
    "fixed": {},
    "open": {"domain": "open"},
    "missing": {"missing": True},
    "periodic": {"periodic": True, "scale": 3, "coarse": (10, 12)},
    "location": {"network": (("location_features", 2),)},
    "bicubic skip": {"network": (("skip", "bicubic"),)},
    "no skip": {"network": (("skip", None),)},
    "dense": {"backbone": "dense", "upsampling": "deconvolution"},
    "conv": {"backbone": "conv", "upsampling": "interpolation", "dtype": "float64"},
    "convnext": {"backbone": "convnext", "upsampling": "resize_bicubic", "network": (("attention", "local"),)},
    "unet": {"backbone": "unet", "network": (("normalization", "batch"), ("separable", True), ("dropout", "vanilla"))},
    "whole domain": {"network": (("attention", "channel"),), "options": (("sampling", FULL_FIELDS),)},
    "time window": {"options": (("time_window", 2),), "data": (("calendar", True),)},
    "anomaly": {"data": (("transform", "anomaly"), ("valid_min", 200))},
    "logarithm": {"data": (("transform", "log1p"),), "missing": True},
}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def toy(request, make_model):
    return make_model(**request.param)


@pytest.fixture
def trained():
    """Return a model with a validation, a history of several entries and odd settings."""
    return toy_field(time=8, y=16, x=20).sr.fit(
        2,
        network={"width": 4, "depth": 1, "head_width": 4},
        sampling={"batch_size": 2, "flip": ["x", "y"], "patch_size": 4},
        optimization={"max_steps": 6, "validations": 3, "loss": "huber"},
        progress=False,
        activate=False,
        seed=11,
    )


def through_a_file(model):
    return model_from_bytes(model_to_bytes(model))


def assert_same_model(got, expected) -> None:
    """Every part of the artefact is equal."""
    names = ("spec", "variable", "scaling", "static_scaling", "data", "origin", "halo", "scale", "fixed_domain")
    for name in (*names, "predictors", "names", "reach", "time_halo", "residual_sd"):
        assert getattr(got, name) == getattr(expected, name), name
    assert type(got.spec.config) is type(expected.spec.config)
    for ours, theirs in zip(got.targets, expected.targets, strict=True):
        assert_same_target(ours, theirs)
    states = got.network.state_dict(), expected.network.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
        assert tensor.dtype == states[1][name].dtype
    assert not got.network.training
    assert (got.fine_mask is None) == (expected.fine_mask is None)
    if got.fine_mask is not None:
        assert got.fine_mask.dtype == bool
        np.testing.assert_array_equal(got.fine_mask, expected.fine_mask)
    assert_same_grid(got.grid, expected.grid)
    assert_same_grid(got.coarse_grid, expected.coarse_grid)
    xr.testing.assert_identical(got.static, expected.static)
    np.testing.assert_array_equal(got.static_anomaly, expected.static_anomaly)


def assert_same_target(got, expected) -> None:
    """Every part of a variable is equal."""
    for name in ("variable", "scaling", "transform", "bounds"):
        assert getattr(got, name) == getattr(expected, name), name
    assert (got.climatology is None) == (expected.climatology is None)
    for ours, theirs in zip(got.climatology or (), expected.climatology or (), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    for field in fields(LinearBaselines):
        ours, theirs = getattr(got.baselines, field.name), getattr(expected.baselines, field.name)
        if field.name == "residual_sd":
            assert ours == theirs
        else:
            np.testing.assert_array_equal(ours, theirs)
            assert ours.dtype == theirs.dtype


def assert_same_grid(got, expected) -> None:
    for ours, theirs in ((got.y, expected.y), (got.x, expected.x)):
        for name in ("dim", "name", "kind", "periodic", "breaks"):
            assert getattr(ours, name) == getattr(theirs, name), name
        for name in ("centres", "lower", "upper"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    xr.testing.assert_identical(xr.Dataset(coords=got.coords), xr.Dataset(coords=expected.coords))
    np.testing.assert_array_equal(got.area, expected.area)


def test_every_part_comes_back(toy):
    assert_same_model(through_a_file(toy.model), toy.model)


def test_the_training_record_comes_back(trained):
    again = through_a_file(trained)
    assert again.training == trained.training
    assert again.training.seed == 11
    assert again.training.period == ("2001-01-01T00:00:00", "2001-01-06T00:00:00")
    assert again.training.versions["torch"] == torch.__version__
    assert again.training.settings["optimization"]["loss"] == "huber"
    xr.testing.assert_identical(again.history, trained.history)


def test_the_output_is_bit_equal(toy):
    again = through_a_file(toy.model)
    expected = toy.coarse.sr.downscale(toy.model)
    xr.testing.assert_identical(toy.coarse.sr.downscale(again), expected)
    part = toy.coarse.isel(lat=slice(1, 9), lon=slice(2, 10))
    xr.testing.assert_identical(part.sr.downscale(again), part.sr.downscale(toy.model))


def test_memory_format_comes_back(toy):
    """Convolution picks its kernel, and so its rounding, by the strides of the weights."""
    for ours, theirs in zip(
        through_a_file(toy.model).network.parameters(), toy.model.network.parameters(), strict=True
    ):
        assert ours.stride() == theirs.stride()


@pytest.mark.parametrize("turn", ["descending", "transposed", "westward", "gap"])
def test_orientations_come_back(turn):
    """A model of data stored in another order knows its grid after loading as before."""
    field = toy_field(time=2, y=12, x=20)
    field = {
        "descending": lambda da: da.isel(lat=slice(None, None, -1)),
        "transposed": lambda da: da.transpose("lon", "time", "lat"),
        "westward": lambda da: da.isel(lon=slice(None, None, -1)),
        "gap": lambda da: da.isel(lon=[*range(8), *range(12, 20)]),
    }[turn](field)
    quick = {"sampling": {"batch_size": 1, "patch_size": 3}, "optimization": {"max_steps": 1}, "validation": None}
    model = field.sr.fit(2, network={"width": 4, "depth": 1}, progress=False, activate=False, **quick)
    again = through_a_file(model)
    assert_same_model(again, model)
    assert again.digest == model.digest
    coarse = (field if turn != "gap" else field.isel(lon=slice(0, 8))).sr.coarsen(2)
    xr.testing.assert_identical(coarse.sr.downscale(again), coarse.sr.downscale(model))


def test_2d_coordinates_come_back(rotated_field):
    field = rotated_field.assign_coords(basin=(("rlat", "rlon"), np.full((12, 16), "sea")), land=("rlon", ["x"] * 16))
    quick = {"sampling": {"batch_size": 1}, "optimization": {"max_steps": 1}, "validation": None}
    model = field.sr.fit(2, network={"width": 4, "depth": 1}, progress=False, activate=False, **quick)
    again = through_a_file(model)
    assert_same_model(again, model)
    fine = field.sr.coarsen(2).sr.downscale(again)
    for name in ("lat", "lon", "rlat", "rlon"):
        xr.testing.assert_equal(fine[name].variable, field[name].variable)
        assert fine[name].attrs == field[name].attrs


# Digest.


def test_digest_is_stable(trained, tmp_path):
    digest = trained.digest
    assert re.fullmatch("[0-9a-f]{64}", digest)
    trained.save(tmp_path / "a.safetensors")
    others = {
        "loaded": xsr.load_model(tmp_path / "a.safetensors"),
        "loaded twice": through_a_file(through_a_file(trained)),
        "replaced": replace(trained),
        "copied": copy.copy(trained),
        "deeply copied": copy.deepcopy(trained),
        "pickled": pickle.loads(pickle.dumps(trained)),
    }
    for name, other in others.items():
        assert digest_of(other) == digest, name
        assert other.digest == other.identity == digest, name


def test_digest_leaves_out_seconds_that_the_file_checks(trained):
    """What differs between identical trainings tells no models apart, and is guarded all the same."""
    history = {**trained.training.history, "seconds": [99.0] * len(trained.training.history["step"])}
    slower = replace(trained, training=replace(trained.training, cpu_seconds=99.0, history=history))
    assert slower.digest == trained.digest
    first, second = model_to_bytes(trained), model_to_bytes(slower)
    assert header_of(first)["sha256"] != header_of(second)["sha256"]
    assert through_a_file(slower).training.cpu_seconds == 99.0
    told = f'cpu_seconds\\": {trained.training.cpu_seconds}'.encode()
    assert first.count(told) == 1
    with pytest.raises(ModelFileError, match="altered"):
        model_from_bytes(first.replace(told, told[:-1] + (b"1" if told[-1:] != b"1" else b"2")))


def test_digest_does_not_depend_on_the_version_that_reads(trained, monkeypatch):
    """Fields that were made by it bear the digest; after an upgrade `score` must still find their model."""
    content = model_to_bytes(trained)
    monkeypatch.setattr("xsuperres._version.__version__", "99.0")
    again = model_from_bytes(content)
    assert again.digest == trained.digest
    assert model_to_bytes(again) == content


@pytest.mark.parametrize(
    "change",
    [
        lambda m: {"targets": (replace(m.targets[0], scaling=replace(m.scaling, mean=m.scaling.mean + 1e-9)),)},
        lambda m: {"training": replace(m.training, seed=12)},
        lambda m: {"targets": (replace(m.targets[0], variable=replace(m.variable, units="degC")),)},
        lambda m: {"static": m.static + 1e-3},
        lambda m: {"origin": "abc"},
        lambda m: {"fine_mask": np.ones((1, *m.grid.shape), bool)},
    ],
)
def test_digest_tells_models_apart(trained, change):
    assert replace(trained, **change(trained)).digest != trained.digest


def test_digest_feels_the_smallest_weight(trained):
    other = copy.deepcopy(replace(trained))
    with torch.no_grad():
        parameter = next(other.network.parameters())
        flat = parameter.detach().reshape(-1)
        flat[0] = torch.nextafter(flat[0], flat[0] + 1)
        parameter.copy_(flat.reshape(parameter.shape))
    assert replace(other).digest != trained.digest


# Bytes.


def header_of(content: bytes) -> dict:
    size = int.from_bytes(content[:8], "little")
    return json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["xsuperres"])


def test_bytes_are_deterministic(toy):
    content = model_to_bytes(toy.model)
    assert model_to_bytes(toy.model) == content
    assert model_to_bytes(through_a_file(toy.model)) == content


def test_digest_and_bytes_are_those_of_another_process(trained, tmp_path):
    """Dicts and sets are ordered alike under another hash seed."""
    path, copied = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    trained.save(path)
    code = "import sys, xsuperres as xsr; m = xsr.load_model(sys.argv[1]); m.save(sys.argv[2]); print(m.digest)"
    command = [sys.executable, "-c", code, str(path), str(copied)]
    environment = os.environ | {"PYTHONHASHSEED": "77"}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.strip() == trained.digest
    assert copied.read_bytes() == path.read_bytes()


def test_the_header_says_what_the_model_is(trained):
    header = header_of(model_to_bytes(trained))
    assert header["format"] == FORMAT_VERSION
    assert header["package"] == f"xsuperres {xsr.__version__}"
    (target,) = header["targets"]
    assert target["variable"]["units"] == "K"
    assert target["variable"]["standard_name"] == "air_temperature"
    assert header["spec"]["scale"] == 2
    assert header["halo"] == trained.halo
    assert header["stride"] == 1
    assert header["dims"] == ["lat", "lon"]
    assert header["training"]["period"] == ["2001-01-01T00:00:00", "2001-01-06T00:00:00"]
    assert header["training"]["seed"] == 11


def test_safetensors_can_read_it(trained, tmp_path):
    """The container is the public one: any tool opens it."""
    path = tmp_path / "a.safetensors"
    trained.save(path)
    with safetensors.safe_open(path, "np") as file:
        assert list(file.metadata()) == ["xsuperres"]
        names = set(file.keys())
        assert {"coords.lat", "coords.lon", "static.elevation", "targets.0.delta"} <= names
        assert any(name.startswith("network.") for name in names)
        np.testing.assert_array_equal(file.get_tensor("static.elevation"), trained.static.elevation)


def test_nothing_is_pickled(trained, tmp_path, monkeypatch):
    """Neither written nor read: there is no pickle in the bytes, and no unpickler is called."""

    def forbidden(*args, **kwargs):
        raise AssertionError("pickle was used")

    for target in ("pickle.dump", "pickle.dumps", "pickle.load", "pickle.loads", "pickle.Unpickler", "pickle.Pickler"):
        monkeypatch.setattr(target, forbidden)
    monkeypatch.setattr(torch, "load", forbidden)
    monkeypatch.setattr(torch, "save", forbidden)
    path = tmp_path / "a.safetensors"
    trained.save(path)
    xsr.load_model(path)
    content = path.read_bytes()
    assert content[8:9] == b"{"
    for sign in (
        b"ctorch",
        b"torch._utils",
        b"cnumpy",
        b"c__builtin__",
        b"\x80\x04\x95",
        b"\x80\x05\x95",
        b"PK\x03\x04",
    ):
        assert sign not in content


# Paths.


@pytest.mark.parametrize("kind", [str, Path])
def test_paths(trained, tmp_path, kind):
    path = kind(tmp_path / "a model.safetensors")
    trained.save(path)
    assert xsr.load_model(path).digest == trained.digest
    assert [p.name for p in tmp_path.iterdir()] == ["a model.safetensors"]


def test_any_path_like(trained, tmp_path):
    class Somewhere:
        def __fspath__(self):
            return str(tmp_path / "a")

    trained.save(Somewhere())
    assert xsr.load_model(Somewhere()).digest == trained.digest
    coarse = toy_field(time=1, y=16, x=20).sr.coarsen(2)
    coarse.sr.downscale(Somewhere())


def test_home_folder(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    trained.save("~/a.safetensors")
    assert (tmp_path / "a.safetensors").exists()
    assert xsr.load_model("~/a.safetensors").digest == trained.digest


def test_relative_path(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained.save("a.safetensors")
    assert xsr.load_model("a.safetensors").digest == trained.digest


def test_overwriting(trained, make_model, tmp_path):
    path = tmp_path / "a.safetensors"
    make_model().model.save(path)
    trained.save(path)
    assert xsr.load_model(path).digest == trained.digest
    assert len(list(tmp_path.iterdir())) == 1


def test_permissions_are_the_usual_ones(trained, tmp_path):
    """Not those of a private temporary file: colleagues can read it."""
    trained.save(tmp_path / "a.safetensors")
    (tmp_path / "b").write_text("")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_saving_does_not_change_the_model(trained, tmp_path):
    before = {name: tensor.clone() for name, tensor in trained.network.state_dict().items()}
    strides = [p.stride() for p in trained.network.parameters()]
    trained.save(tmp_path / "a.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.network.state_dict().items())
    assert [p.stride() for p in trained.network.parameters()] == strides


def test_a_loaded_model_does_not_share_memory_with_the_bytes(trained):
    """Training goes on from it (init=); the arrays can be written."""
    content = bytearray(model_to_bytes(trained))
    again = model_from_bytes(bytes(content))
    with torch.no_grad():
        for parameter in again.network.parameters():
            parameter.add_(1)
    assert model_from_bytes(bytes(content)).digest == trained.digest


# Identical trainings.


def again_and_again(**options):
    """Return two models of the same call."""
    field = toy_field(time=8, y=16, x=20)
    options = {"network": {"width": 4, "depth": 1, "head_width": 4}, "progress": False, "activate": False} | options
    return [field.sr.fit(2, optimization={"max_steps": 4, "validations": 2}, **options) for _ in range(2)]


@pytest.mark.parametrize("options", [{}, {"validation": None}, {"training": "adversarial"}, {"time_window": 2}])
def test_identical_trainings_have_one_digest(options):
    first, second = again_and_again(**options)
    assert first.digest == second.digest
    assert first.training.history.get("seconds") != second.training.history.get("seconds")
    other = replace(first, training=replace(first.training, steps=5))
    assert other.digest != first.digest


@pytest.mark.parametrize(
    "validation", [0.5, 0.2, slice("2001-01-03", "2001-01-04"), None], ids=["half", "fifth", "period", "none"]
)
def test_held_out_stretches_come_back(validation):
    """Tuples of tuples, not lists of JSON; none where nothing was held out."""
    field = toy_field(time=32, y=8, x=12)
    quick = {"sampling": {"batch_size": 1}, "optimization": {"max_steps": 1}, "validation": validation}
    model = field.sr.fit(2, network={"width": 4, "depth": 1}, progress=False, activate=False, **quick)
    record = through_a_file(model).training
    assert record == model.training
    assert isinstance(record.held_out, tuple) and all(isinstance(ends, tuple) for ends in record.held_out)
    expected = {0.5: 4, 0.2: 1, None: 0}.get(validation if not isinstance(validation, slice) else 0.2)
    assert len(record.held_out) == expected
    if isinstance(validation, slice):
        assert record.held_out == (("2001-01-03T00:00:00", "2001-01-04T00:00:00"),)
        assert record.period == ("2001-01-01T00:00:00", "2001-02-01T00:00:00")
