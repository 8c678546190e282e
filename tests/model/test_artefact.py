"""`SRModel`: what is derived from its parts, `on()` copies, and the history as a Dataset."""

from __future__ import annotations

import dataclasses
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import xarray as xr

from xsuperres.model.file import model_from_bytes, model_to_bytes
from xsuperres.testing import toy_field


def elsewhere(toy) -> tuple[xr.DataArray, xr.Dataset]:
    """Return another fine field of another size, elsewhere, and its static fields."""
    fine = toy_field(time=2, y=20, x=24, seed=4)
    fine = fine.assign_coords(lon=("lon", fine.lon.values + 100, fine.lon.attrs))
    return fine, fine.coords.to_dataset()[["elevation", "land_fraction"]].reset_coords()


@pytest.fixture
def moved(make_model, grid):
    """Return an open model, its copy on another domain, and that domain's field and static fields."""
    toy = make_model(domain="open")
    fine, static = elsewhere(toy)
    planes = static.drop_vars(["lat", "lon"])
    return toy.model, toy.model.on(grid(fine), planes), fine, planes


def test_a_copy_on_another_domain(moved, grid):
    model, copied, _fine, planes = moved
    assert copied.grid.shape == (20, 24)
    assert copied.coarse_grid.shape == (10, 12)
    assert copied.static_anomaly.shape == (2, 20, 24)
    assert copied.correction.shape == (1, 20, 24)
    assert copied.fine_mask is None
    assert copied.halo == model.halo
    assert copied.scaling is model.scaling
    assert copied.network is model.network
    xr.testing.assert_identical(copied.static, planes[["elevation", "land_fraction"]])


def test_a_copy_remembers_where_it_came_from(moved, grid):
    model, copied, _fine, _planes = moved
    assert copied.origin == copied.identity == model.digest
    assert copied.digest != model.digest
    again = copied.on(model.grid, model.static)
    assert again.identity == model.digest
    assert model_from_bytes(model_to_bytes(copied)).identity == model.digest


def test_a_copy_leaves_the_model_alone(moved):
    model = moved[0]
    assert model.origin is None
    assert model.grid.shape == (28, 36)
    assert replace(model).digest == model.digest
    assert model.static_anomaly.shape == (2, 28, 36)


def test_a_copy_takes_static_fields_in_its_own_order(make_model, grid):
    model = make_model(domain="open").model
    fine, static = elsewhere(None)
    planes = static.drop_vars(["lat", "lon"]).astype("float32")
    turned = planes[["land_fraction", "elevation"]].assign(slope=planes.elevation)
    first, second = model.on(grid(fine), planes), model.on(grid(fine), turned)
    assert list(second.static.data_vars) == ["elevation", "land_fraction"]
    assert first.digest == second.digest


def test_what_a_copy_downscales_is_what_downscale_does(moved):
    """`downscale(static=...)` makes such a copy; its saved file needs no static fields there."""
    model, copied, fine, _ = moved
    coarse = fine.sr.coarsen(2)
    expected = coarse.sr.downscale(
        model, static=fine.coords.to_dataset()[["elevation", "land_fraction"]].reset_coords()
    )
    got = coarse.sr.downscale(model_from_bytes(model_to_bytes(copied)))
    np.testing.assert_array_equal(got, expected)
    assert got.attrs["xsuperres_model"] == expected.attrs["xsuperres_model"] == model.digest


def test_a_model_cannot_be_changed(make_model):
    model = make_model().model
    with pytest.raises(FrozenInstanceError):
        model.scaling = None
    with pytest.raises(FrozenInstanceError):
        model.variable.units = "degC"


def test_models_are_told_apart_by_identity(make_model):
    """No comparison of arrays hides behind ==; a model can be a key."""
    first, second = make_model().model, make_model(seed=1).model
    assert first != second
    assert first == first
    assert len({first, second}) == 2


def test_it_has_no_predict(make_model):
    model = make_model().model
    public = {name for name in dir(model) if not name.startswith("_")}
    assert not public & {"predict", "fit", "downscale", "forward"}
    assert {field.name for field in dataclasses.fields(model)} <= public


def test_history_is_a_dataset():
    field = toy_field(time=6, y=12, x=16)
    model = field.sr.fit(
        2,
        network={"width": 4, "depth": 1},
        sampling={"batch_size": 2},
        optimization={"max_steps": 9, "validations": 3},
        progress=False,
        activate=False,
    )
    history = model.history
    assert isinstance(history, xr.Dataset)
    assert history.step.values.tolist() == [3, 6, 9]
    expected = {"loss", "learning_rate", "rmse", "ratio_to_bicubic", "ratio_to_linear", "seconds"}
    assert set(history.data_vars) == expected
    for name, values in history.data_vars.items():
        assert values.dims == ("step",)
        assert np.isfinite(values).all(), name
    assert (history.seconds.diff("step") > 0).all()
    assert (history.learning_rate.diff("step") < 0).all()
    # What is kept is the best of what was seen.
    assert model.training.validation["rmse"] == float(history.rmse.min())
    history["loss"][:] = 0
    assert (model.history.loss != 0).all()


def test_history_without_validation(make_model):
    history = make_model().model.history
    assert history.sizes["step"] == 1
    assert set(history.data_vars) == {"loss", "learning_rate", "seconds"}


def test_an_empty_history(make_model):
    model = make_model().model
    empty = replace(model, training=replace(model.training, history={}))
    assert empty.history.sizes == {"step": 0}
    assert model_from_bytes(model_to_bytes(empty)).digest == empty.digest


@pytest.mark.parametrize("skip", ["linear", "bicubic", None])
def test_the_skip_and_its_unit(make_model, skip):
    model = make_model(network=(("skip", skip),)).model
    sd = model.baselines.residual_sd
    assert model.residual_sd == ({"linear": sd["linear_fixed"], "bicubic": sd["bicubic"], None: sd["none"]}[skip],)
    assert (model.correction is None) == (skip != "linear")
    # A closed form fits no worse than what it contains.
    assert sd["linear_fixed"] <= sd["bicubic"] <= sd["none"]


def test_the_skip_of_an_open_model(make_model):
    model = make_model(domain="open").model
    assert model.residual_sd == (model.baselines.residual_sd["linear_open"],)
    expected = sum(c * a for c, a in zip(model.baselines.coefficients, model.static_anomaly, strict=True))
    np.testing.assert_allclose(model.correction, expected[None], rtol=1e-12)
    assert not model.fixed_domain


def test_halo_is_at_least_the_skips(make_model):
    model = make_model().model
    assert model.halo >= model.network.reach
    assert model.halo >= 2


def test_the_fine_mask_says_where_the_target_ever_was(make_model):
    toy = make_model(missing=True)
    inside = toy.coarse.notnull().values.repeat(2, axis=1).repeat(2, axis=2)  # where the input was valid too
    np.testing.assert_array_equal(toy.model.fine_mask, (toy.fine.notnull().values & inside).any(axis=0)[None])
    assert make_model().model.fine_mask is None
