"""The table of active models: the last wins, the log says so, lookups by name and scale; digests are weak."""

from __future__ import annotations

import copy
import gc
import logging
import threading
from dataclasses import replace

import pytest
import torch

import xsuperres as xsr
from xsuperres.errors import NoModelError, XSuperResError
from xsuperres.model import table
from xsuperres.model.table import active_model, known_model, remember
from xsuperres.testing import toy_field


@pytest.fixture(autouse=True)
def empty_table():
    xsr.deactivate()
    yield
    xsr.deactivate()


@pytest.fixture
def named(retarget):
    """Return the function that gives a model another name."""
    return lambda model, name: retarget(model, variable=replace(model.variable, name=name))


@pytest.fixture
def models(make_model, named):
    """Return two models of tas at x2, one at x3, one of pr."""
    first, second = make_model().model, make_model(seed=1).model
    third = make_model(scale=3, coarse=(10, 12)).model
    return first, second, third, named(first, "pr")


def test_empty_at_first():
    assert xsr.active_models() == {}


def test_activating_returns_the_model(models):
    assert xsr.activate(models[0]) is models[0]
    assert active_model(["tas"], 2) is models[0]


def test_the_key_is_name_and_scale(models):
    first, _, third, rain = models
    for model in (first, third, rain):
        xsr.activate(model)
    assert set(xsr.active_models()) == {("tas", 2), ("tas", 3), ("pr", 2)}
    assert active_model(["tas"], 3) is third
    assert active_model(["pr"], 2) is rain
    assert active_model(["tas"], 2) is first


def test_the_last_wins_and_the_log_says_what_it_replaced(models, caplog):
    first, second, *_ = models
    with caplog.at_level(logging.INFO, logger="xsuperres"):
        xsr.activate(first)
        assert not caplog.records
        xsr.activate(second)
    assert active_model(["tas"], 2) is second
    (record,) = caplog.records
    message = record.getMessage()
    assert record.levelno == logging.INFO
    for part in (first.digest[:8], second.digest[:8], "'tas'", "2", "replaces"):
        assert part in message


def test_activating_again_is_silent(models, caplog):
    with caplog.at_level(logging.INFO, logger="xsuperres"):
        xsr.activate(models[0])
        xsr.activate(models[0])
    assert not caplog.records


def test_the_table_that_is_shown_is_a_copy(models):
    xsr.activate(models[0])
    xsr.active_models().clear()
    assert list(xsr.active_models()) == [("tas", 2)]


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        ({}, set()),
        ({"name": "tas"}, {("pr", 2)}),
        ({"scale": 2}, {("tas", 3)}),
        ({"name": "tas", "scale": 3}, {("tas", 2), ("pr", 2)}),
        ({"name": "pr", "scale": 3}, {("tas", 2), ("tas", 3), ("pr", 2)}),
        ({"name": "psl"}, {("tas", 2), ("tas", 3), ("pr", 2)}),
    ],
    ids=["all", "name", "scale", "one", "no such pair", "no such name"],
)
def test_deactivating(models, arguments, left):
    for model in (models[0], models[2], models[3]):
        xsr.activate(model)
    xsr.deactivate(**arguments)
    assert set(xsr.active_models()) == left


def test_a_miss_lists_what_there_is(models):
    with pytest.raises(NoModelError, match=r"'tas' at scale 4 \(active: none\)"):
        active_model(["tas"], 4)
    xsr.activate(models[0])
    xsr.activate(models[2])
    with pytest.raises(NoModelError, match="active: 'tas' at scale 2, 'tas' at scale 3"):
        active_model(["tas"], 4)


def test_a_variable_without_a_name(models, named):
    nameless = xsr.activate(named(models[0], None))
    assert active_model([None], 2) is nameless
    with pytest.raises(NoModelError):
        active_model(["tas"], 2)


def test_a_model_that_cannot_be_digested_does_not_enter(models, retarget):
    """Half an activation would poison the table: whatever is activated after it fails."""
    broken = retarget(models[0], scaling=None)
    with pytest.raises((TypeError, XSuperResError)):
        xsr.activate(broken)
    assert xsr.active_models() == {}
    xsr.activate(models[1])
    with pytest.raises((TypeError, XSuperResError)):
        xsr.activate(broken)
    assert active_model(["tas"], 2) is models[1]


def test_fit_activates_unless_told_not_to():
    settings = {"network": {"width": 4, "depth": 1}, "optimization": {"max_steps": 1}, "validation": None}
    settings |= {"sampling": {"batch_size": 1}, "progress": False}
    da = toy_field(time=2, y=12, x=16)
    model = da.sr.fit(2, **settings, activate=False)
    assert xsr.active_models() == {}
    assert known_model(model.digest) is model
    model = da.sr.fit(2, **settings)
    assert active_model(["tas"], 2) is model


def test_threads_can_activate(models):
    def work():
        for _ in range(50):
            xsr.activate(models[0])
            xsr.active_models()
            xsr.deactivate()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert xsr.active_models() == {}


# Models known by digest.


def fresh(model, value: float):
    """Return a model that no one else holds."""
    model = copy.deepcopy(replace(model))
    with torch.no_grad():
        next(model.network.parameters()).fill_(value)
    return replace(model)


def displace(model) -> None:
    """Remember so many others that none before is among the last few any more."""
    for seed in range(1000, 1000 + (table._LATEST.maxlen or 0)):
        remember(replace(model, training=replace(model.training, seed=seed)))
    gc.collect()


def test_known_as_long_as_it_lives(models):
    model = remember(fresh(models[0], 0.125))
    digest = model.digest
    displace(models[0])
    assert known_model(digest) is model
    del model
    gc.collect()
    assert known_model(digest) is None


def test_known_for_a_while_after(models):
    """A model that was loaded for one call is there for the next: `downscale(path)`, then `score`."""
    digest = remember(fresh(models[0], 0.1875)).digest
    gc.collect()
    assert known_model(digest) is not None
    displace(models[0])
    assert known_model(digest) is None


def test_an_active_model_lives(models):
    digest = xsr.activate(fresh(models[0], 0.25)).digest
    displace(models[0])
    assert known_model(digest) is not None
    xsr.deactivate()
    gc.collect()
    assert known_model(digest) is None


def test_unknown_digest():
    assert known_model("0" * 64) is None


def test_a_loaded_model_is_known(models, tmp_path):
    """`score` finds the model by its digest among those loaded in this process."""
    model = fresh(models[0], 0.375)
    model.save(tmp_path / "a.safetensors")
    digest = model.digest
    del model
    displace(models[0])
    assert known_model(digest) is None
    loaded = xsr.load_model(tmp_path / "a.safetensors")
    assert known_model(digest) is loaded


def test_a_short_lived_twin_does_not_make_it_unknown(models, tmp_path):
    """`downscale(path)` loads the same model a second time, and drops it."""
    model = remember(fresh(models[0], 0.5))
    model.save(tmp_path / "a.safetensors")
    twin = remember(xsr.load_model(tmp_path / "a.safetensors"))
    assert twin.digest == model.digest
    del twin
    displace(models[0])
    found = known_model(model.digest)
    assert found is not None
    assert found is model


def test_score_finds_an_open_model_that_was_loaded(make_model, tmp_path):
    """Downscaling elsewhere applies a copy; the field bears the digest of the model itself."""
    toy = make_model(domain="open")
    model = fresh(toy.model, 0.625)
    model.save(tmp_path / "a.safetensors")
    del model
    displace(toy.model)
    loaded = xsr.load_model(tmp_path / "a.safetensors")
    static = toy.fine.coords.to_dataset()[["elevation", "land_fraction"]].reset_coords()
    fine = toy.coarse.sr.downscale(loaded, static=static)
    assert known_model(fine.attrs["xsuperres_model"]) is loaded


def test_nothing_private_is_needed(models):
    """The table is one per process: the module's functions are its only doors."""
    assert set(table.__all__) >= {"activate", "active_models", "deactivate", "known_model"}
