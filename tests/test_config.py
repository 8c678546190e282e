"""Settings: frozen, keyword-only, checked when made; dicts and None are resolved."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re

import numpy as np
import pytest

import xsuperres as xsr
from xsuperres.config import (
    AdversarialConfig,
    DataConfig,
    NetworkConfig,
    OptimizationConfig,
    SamplingConfig,
    check_choice,
    resolve,
)
from xsuperres.errors import ConfigError, UnknownNameError

KINDS = (NetworkConfig, DataConfig, SamplingConfig, AdversarialConfig, OptimizationConfig)
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_they_are_frozen_and_keyword_only(kind):
    config = kind()
    name = dataclasses.fields(kind)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, name, 3)
    with pytest.raises(TypeError, match="positional"):
        kind(3)
    assert all(field.kw_only for field in dataclasses.fields(kind))
    assert getattr(xsr, kind.__name__) is kind


@every_kind
def test_they_have_values(kind):
    assert kind() == kind()
    assert hash(kind()) == hash(kind())
    assert len(dataclasses.fields(kind)) <= 12


@every_kind
def test_every_field_is_documented(kind):
    """In the order in which they are declared."""
    section = inspect.getdoc(kind).split("Parameters\n----------\n")[1]
    told = [n.strip() for line in re.findall(r"^(\w[\w, ]*) : ", section, re.M) for n in line.split(",")]
    assert sorted(told) == sorted(field.name for field in dataclasses.fields(kind))


@every_kind
def test_they_fit_into_a_model_file(kind):
    values = json.loads(json.dumps(dataclasses.asdict(kind())))
    assert kind(**values) == kind()


@every_kind
def test_resolve(kind):
    assert resolve(kind, None) == kind()
    config = kind()
    assert resolve(kind, config) is config
    assert resolve(kind, {}) == kind()
    assert resolve(kind, dataclasses.asdict(kind())) == kind()


def test_resolve_takes_some_fields():
    assert resolve(SamplingConfig, {"batch_size": 9}) == SamplingConfig(batch_size=9)


@every_kind
@pytest.mark.parametrize("given", ["small", 3, [("width", 3)], ()], ids=repr)
def test_resolve_refuses_other_things(kind, given):
    with pytest.raises(ConfigError, match=f"Expected {kind.__name__}, a dict .* got {type(given).__name__}"):
        resolve(kind, given)


def test_resolve_refuses_other_settings():
    with pytest.raises(ConfigError, match="Expected NetworkConfig.*got SamplingConfig"):
        resolve(NetworkConfig, SamplingConfig())


@pytest.mark.parametrize(
    ("kind", "name", "meant"),
    [
        (NetworkConfig, "widht", "width"),
        (DataConfig, "domian", "domain"),
        (SamplingConfig, "patchsize", "patch_size"),
        (AdversarialConfig, "noize", "noise"),
        (OptimizationConfig, "max_step", "max_steps"),
    ],
)
def test_an_unknown_field_names_the_closest(kind, name, meant):
    with pytest.raises(UnknownNameError) as caught:
        resolve(kind, {name: 1})
    message = str(caught.value)
    assert message.startswith(f"Unknown field of {kind.__name__} {name!r}.")
    assert message.endswith(f"Did you mean {meant!r}?")
    assert all(repr(field.name) in message for field in dataclasses.fields(kind))


def test_a_key_that_is_no_string():
    with pytest.raises(UnknownNameError):
        resolve(NetworkConfig, {3: 1})


INTEGERS = [
    *[(NetworkConfig, name, 1) for name in ("width", "depth", "head_width")],
    (NetworkConfig, "location_features", 0),
    (DataConfig, "contrast_radius", 0),
    (SamplingConfig, "patch_size", 2),
    (SamplingConfig, "batch_size", 1),
    (SamplingConfig, "memory_budget", 1),
    *[(AdversarialConfig, name, least) for name, least in (("width", 1), ("depth", 1), ("noise", 0))],
    *[(OptimizationConfig, name, 1) for name in ("max_steps", "max_epochs", "validations", "patience")],
]


@pytest.mark.parametrize(("kind", "name", "least"), INTEGERS, ids=[f"{k.__name__}.{n}" for k, n, _ in INTEGERS])
def test_integers(kind, name, least):
    assert getattr(kind(**{name: least}), name) == least
    assert getattr(kind(**{name: np.int64(least)}), name) == least
    for wrong in (least - 1, -5, 2.5, float(least) + 0.5, "3", True, np.nan):
        with pytest.raises(ConfigError, match=rf"{kind.__name__}\.{name} must be an integer of at least {least}"):
            kind(**{name: wrong})


OPTIONAL = [
    *[(NetworkConfig, n) for n in ("output_activation", "normalization", "attention", "skip")],
    *[(NetworkConfig, n) for n in ("dropout", "dropout_rate")],
    *[(DataConfig, n) for n in ("transform", "valid_min", "valid_max")],
    (SamplingConfig, "patch_size"),
    *[(OptimizationConfig, n) for n in ("max_steps", "max_epochs", "max_seconds", "max_cpu_seconds", "patience")],
]


NAMES = [
    (NetworkConfig, "activation"),
    (AdversarialConfig, "discriminator"),
    (AdversarialConfig, "loss"),
    (OptimizationConfig, "loss"),
    (OptimizationConfig, "device"),
]


def test_what_may_be_none_and_what_may_not():
    """Every other field refuses None with the clear error, not with a TypeError from a comparison."""
    for kind in KINDS:
        for field in dataclasses.fields(kind):
            if (kind, field.name) in OPTIONAL:
                assert getattr(kind(**{field.name: None}), field.name) is None
            elif (kind, field.name) not in NAMES:  # names are resolved where they are built
                with pytest.raises((ConfigError, UnknownNameError)):
                    kind(**{field.name: None})


@pytest.mark.parametrize("name", ["max_seconds", "max_cpu_seconds", "learning_rate", "gradient_clip"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), "fast"], ids=repr)
def test_positive_numbers(name, value):
    with pytest.raises(ConfigError, match=rf"{name} must be .*positive.*, got {value!r}"):
        OptimizationConfig(**{name: value})


@pytest.mark.parametrize("name", ["learning_rate", "max_seconds"])
def test_infinite_numbers(name):
    """JSON of a model file has no infinity, and an infinite rate or budget is a mistake."""
    with pytest.raises(ConfigError):
        OptimizationConfig(**{name: float("inf")})


@pytest.mark.parametrize(
    ("kind", "name"),
    [(DataConfig, "minimum_valid_fraction"), (OptimizationConfig, "weight_decay"), (OptimizationConfig, "averaging")],
)
def test_fractions(kind, name):
    for right in (0, 0.5, 1, np.float32(0.25)):
        assert getattr(kind(**{name: right}), name) == right
    for wrong in (-0.1, 1.5, float("nan"), "half"):
        with pytest.raises(ConfigError, match=rf"{kind.__name__}\.{name} must .*between 0.* and 1.*, got"):
            kind(**{name: wrong})


@pytest.mark.parametrize("skip", ["linear", "bicubic", None])
def test_skips(skip):
    assert NetworkConfig(skip=skip).skip == skip


@pytest.mark.parametrize(("kind", "values"), [(NetworkConfig, {"skip": "linea"}), (DataConfig, {"domain": "opn"})])
def test_choices(kind, values):
    with pytest.raises(UnknownNameError, match=r"Choose from: .* Did you mean"):
        kind(**values)


def test_flips_become_tuples():
    assert SamplingConfig(flip=["y", "x"], flip_sign=["y"]).flip == ("y", "x")
    assert hash(SamplingConfig(flip=["x"])) == hash(SamplingConfig(flip=("x",)))


@pytest.mark.parametrize("values", [{"flip": ("z",)}, {"flip": "xz"}, {"flip": ("x",), "flip_sign": ("t",)}])
def test_flip_axes(values):
    with pytest.raises(UnknownNameError, match=r"flip(_sign)? axis .* Choose from: 'x', 'y'"):
        SamplingConfig(**values)


def test_a_sign_goes_with_its_flip():
    with pytest.raises(ConfigError, match=r"flip_sign=\('y',\) must be among the axes of flip=\('x',\)"):
        SamplingConfig(flip=("x",), flip_sign=("y",))


def test_names_of_parts_are_resolved_where_they_are_built():
    """So that a part registered later can be named."""
    assert NetworkConfig(activation="mine").activation == "mine"
    assert OptimizationConfig(loss="mine").loss == "mine"


def test_a_rate_of_dropout_goes_with_a_kind():
    assert NetworkConfig().dropout_rate is None
    assert NetworkConfig(dropout="vanilla").dropout_rate == 0.1
    assert NetworkConfig(dropout="vanilla", dropout_rate=0).dropout_rate == 0.0
    for rate in (0, 0.1, 0.3):
        with pytest.raises(ConfigError, match=rf"dropout_rate={rate:g}.* needs a kind of dropout, got dropout=None"):
            NetworkConfig(dropout_rate=rate)
    config = NetworkConfig(dropout="spatial")
    assert resolve(NetworkConfig, dataclasses.asdict(config)) == config


@pytest.mark.parametrize(
    ("low", "high"),
    [(300, 200), (5, 5), ({"a": 2.0}, 1), (0, {"b": -1}), ({"a": 0, "b": 3}, {"a": 1, "b": 2})],
)
def test_bounds_are_in_order(low, high):
    with pytest.raises(ConfigError, match=r"valid_min.* must be below valid_max, got .* and "):
        DataConfig(valid_min=low, valid_max=high)


def test_bounds_of_other_variables_have_no_order():
    DataConfig(valid_min={"a": 3}, valid_max={"b": 2})
    DataConfig(valid_min={"a": None}, valid_max=-1)
    DataConfig(valid_min=-1, valid_max={"a": 0})
    with pytest.raises(ConfigError, match="valid_min of 'b' must be below valid_max, got 3 and 2"):
        DataConfig(valid_min={"a": 0, "b": 3}, valid_max={"b": 2})


def test_reach():
    assert DataConfig(domain="open", contrast_radius=3).reach == 3
    assert DataConfig(domain="fixed", contrast_radius=3).reach == 0


def test_check_choice():
    check_choice("colour", "red", ("red", "blue"))
    with pytest.raises(UnknownNameError, match="Unknown colour 'rd'.*Did you mean 'red'"):
        check_choice("colour", "rd", ("red", "blue"))
    with pytest.raises(UnknownNameError):
        check_choice("colour", ["red"], ("red",))
