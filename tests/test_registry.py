"""The registry: atomic, with aliases; a miss lists the choices and the closest one."""

from __future__ import annotations

import pytest

from xsuperres.errors import ConfigError, UnknownNameError
from xsuperres.nn.backbones import BACKBONES
from xsuperres.nn.discriminator import DISCRIMINATORS
from xsuperres.nn.layers import ACTIVATIONS, ATTENTION, DROPOUT, NORMALIZATION
from xsuperres.nn.losses import LOSSES
from xsuperres.nn.resample import KERNELS
from xsuperres.nn.upsamplers import UPSAMPLERS
from xsuperres.registry import Registry
from xsuperres.training.adversarial import GAMES
from xsuperres.verify.metrics import METRICS

LAYERS = (ACTIVATIONS, NORMALIZATION, ATTENTION, DROPOUT)
ALL = {r.kind: r for r in (BACKBONES, UPSAMPLERS, *LAYERS, DISCRIMINATORS, LOSSES, GAMES, KERNELS, METRICS)}


@pytest.fixture
def animals() -> Registry:
    registry: Registry[object] = Registry("animal")
    registry.add("cat", aliases=("felis", "puss"))("CAT")
    registry.add("dog")("DOG")
    return registry


def state(registry: Registry) -> tuple:
    return dict(registry._parts), dict(registry._aliases)


def test_names_and_aliases(animals):
    assert animals.get("cat") == animals.get("felis") == animals.get("puss") == "CAT"
    assert animals.canonical("puss") == animals.canonical("cat") == "cat"
    assert list(animals) == ["cat", "dog"]
    assert len(animals) == 2
    assert "felis" in animals
    assert "cow" not in animals


def test_the_decorator_hands_back_what_it_registers(animals):
    class Cow: ...

    assert animals.add("cow")(Cow) is Cow
    assert animals.get("cow") is Cow


@pytest.mark.parametrize(
    ("name", "aliases"),
    [("cat", ()), ("felis", ()), ("cow", ("dog",)), ("cow", ("bos", "puss")), ("cow", ("bos", "bos")), ("x", ("x",))],
)
def test_a_failed_add_changes_nothing(animals, name, aliases):
    before = state(animals)
    with pytest.raises(ConfigError, match=r"animal name .* is registered already; choose another") as caught:
        animals.add(name, aliases=aliases)("NEW")
    assert state(animals) == before
    assert animals.get("cat") == "CAT"
    assert isinstance(caught.value, ValueError)


def test_adding_the_same_again_is_a_duplicate(animals):
    with pytest.raises(ConfigError):
        animals.add("dog")("DOG")


def test_nothing_is_registered_before_the_decorator_is_used(animals):
    animals.add("cow")
    assert "cow" not in animals


def test_an_alias_is_no_string_of_letters(animals):
    """`aliases="bos"` must not register b, o and s."""
    before = state(animals)
    with pytest.raises((ConfigError, TypeError)):
        animals.add("cow", aliases="bos")("COW")
    assert state(animals) == before


@pytest.mark.parametrize("look", ["get", "canonical"])
def test_a_miss_lists_choices_and_the_closest(animals, look):
    with pytest.raises(UnknownNameError) as caught:
        getattr(animals, look)("dgo")
    assert str(caught.value) == (
        "Unknown animal 'dgo'. Choose from: 'cat', 'dog', 'felis', 'puss'. Did you mean 'dog'?"
    )
    assert isinstance(caught.value, KeyError)


def test_a_miss_far_off_suggests_nothing(animals):
    with pytest.raises(UnknownNameError) as caught:
        animals.get("hippopotamus")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("name", [None, 3, ["cat"], {"cat"}, ""], ids=repr)
def test_what_is_no_name_misses_too(animals, name):
    assert not (isinstance(name, str) and name in animals)
    with pytest.raises(UnknownNameError, match="Unknown animal"):
        animals.get(name)


def test_an_empty_registry():
    with pytest.raises(UnknownNameError, match="Choose from: nothing"):
        Registry("ghost").get("casper")


def test_registries_do_not_share(animals):
    assert not len(Registry("animal"))


@pytest.mark.parametrize("registry", ALL.values(), ids=ALL.keys())
def test_every_part_has_a_plain_name(registry):
    assert len(registry) >= 1
    for name in registry:
        assert name == name.lower()
        assert name.isidentifier()
        assert registry.canonical(name) == name
        assert callable(registry.get(name)) or registry.get(name) is not None


@pytest.mark.parametrize(
    ("registry", "names", "aliases"),
    [
        (
            BACKBONES,
            ["conv", "residual", "dense", "convnext", "unet"],
            {"convnet": "conv", "resnet": "residual", "densenet": "dense"},
        ),
        (
            UPSAMPLERS,
            ["interpolation", "subpixel", "resize", "deconvolution", "resize_bilinear", "resize_bicubic"],
            {"pin": "interpolation", "spc": "subpixel", "rc": "resize", "dc": "deconvolution"},
        ),
        (LOSSES, ["mse", "mae", "huber", "dssim", "msdssim", "spectral", "gradient"], {}),
        (ACTIVATIONS, ["relu", "leaky_relu", "elu", "selu", "gelu", "silu", "softplus", "sigmoid", "tanh"], {}),
        (NORMALIZATION, ["batch", "layer", "group"], {}),
        (ATTENTION, ["channel", "local"], {}),
        (DROPOUT, ["vanilla", "spatial", "gaussian"], {}),
        (DISCRIMINATORS, ["residual"], {}),
        (GAMES, ["bce", "hinge", "wasserstein_gp"], {}),
    ],
    ids=lambda value: value.kind if isinstance(value, Registry) else "",
)
def test_the_matrix(registry, names, aliases):
    assert set(registry) >= set(names)
    assert {alias: registry.canonical(alias) for alias in aliases} == aliases


def test_a_part_added_in_a_notebook_is_there():
    """What CONTRIBUTING promises; taken out again here."""
    try:
        BACKBONES.add("notebook", aliases=("nb",))(BACKBONES.get("conv"))
        assert BACKBONES.canonical("nb") == "notebook"
    finally:
        BACKBONES._parts.pop("notebook", None)
        BACKBONES._aliases.pop("nb", None)
