"""Layers chosen by name: what they compute, what they depend on, and that none breaks the tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from covering import covering
from torch.nn import functional as F

import xsuperres as xsr
from xsuperres.config import NetworkConfig
from xsuperres.errors import ConfigError, ModelFileError, UnknownNameError, XSuperResWarning
from xsuperres.nn.backbones import BACKBONES
from xsuperres.nn.geometry import Block, Chain
from xsuperres.nn.layers import (
    ACTIVATIONS,
    ATTENTION,
    DROPOUT,
    NORMALIZATION,
    ChannelNorm,
    attention,
    dropout,
    normalization,
    output_activations,
)
from xsuperres.nn.network import NetworkSpec, build_network
from xsuperres.nn.place import Place, at, here
from xsuperres.settings import FitSettings
from xsuperres.testing import toy_field
from xsuperres.training.averaging import estimate_statistics

OPTIONS = {
    "sampling": {"batch_size": 2, "patch_size": 6},
    "optimization": {"max_steps": 4, "validations": 1, "learning_rate": 1e-2},
    "progress": False,
    "activate": False,
}

WHOLE = OPTIONS | {"sampling": {"batch_size": 2, "patch_size": None}}
SETTINGS = {"scale": 2, "training": "supervised", "backbone": "conv", "upsampling": "subpixel", "network": None}
SETTINGS |= {"data": None, "sampling": None, "optimization": None, "validation": None, "seed": 0}


def fit(da, *, upsampling="subpixel", **network):
    tiny = {"width": 8, "depth": 1, "head_width": 4} | network
    return da.sr.fit(2, upsampling=upsampling, network=tiny, **OPTIONS)


@pytest.fixture(scope="module")
def globe():
    return toy_field(time=6, y=48, x=72, periodic=True)


# each by itself


@pytest.mark.parametrize(("groups", "width"), [(1, 6), (2, 6), (4, 8), (4, 6), (4, 3)])
def test_channel_norm_against_a_loop(groups, width):
    norm = ChannelNorm(width, groups).double()
    torch.nn.init.normal_(norm.scale)
    torch.nn.init.normal_(norm.shift)
    x = torch.randn(2, width, 3, 4, dtype=torch.float64)
    got, size = norm(x), width // norm.groups
    assert size > 1 or width == 1
    for first in range(0, width, size):
        part = x[:, first : first + size]
        mean, var = part.mean(dim=1, keepdim=True), part.var(dim=1, keepdim=True, unbiased=False)
        own = slice(first, first + size)
        expected = (part - mean) / (var + 1e-5).sqrt() * norm.scale[own, None, None] + norm.shift[own, None, None]
        torch.testing.assert_close(got[:, own], expected)


def test_a_layer_norm_does_not_make_a_constant_of_everything():
    """As DL4DS's does: each cell keeps what tells its channels apart."""
    out = NORMALIZATION.get("layer")(6)(torch.randn(1, 6, 5, 5))
    assert float(out.std(dim=(2, 3)).min()) > 0.1


@pytest.mark.parametrize("name", ["layer", "group"])
def test_normalisation_per_cell_looks_at_no_other_cell(name):
    norm, x = normalization(name, 8), torch.randn(1, 8, 6, 6)
    other = x.clone()
    other[..., 2, 3] += 5
    changed = (norm(x) != norm(other)).any(dim=1)[0]
    assert changed.sum() == 1 and changed[2, 3]


def test_channel_attention_is_squeeze_and_excitation():
    block, x = ATTENTION.get("channel")(8), torch.randn(2, 8, 5, 6)
    weight = torch.sigmoid(block.excite(F.relu(block.squeeze(x.mean(dim=(2, 3), keepdim=True)))))
    torch.testing.assert_close(block(x), x * weight)
    core = Place(torch.arange(5), torch.arange(6), core=(slice(0, 5), slice(1, 5)))
    with at(core):
        inner = torch.sigmoid(block.excite(F.relu(block.squeeze(x[..., 1:5].mean(dim=(2, 3), keepdim=True)))))
        torch.testing.assert_close(block(x), x * inner)


def test_local_attention_reads_what_it_says():
    block = ATTENTION.get("local")(4)
    x, other = torch.randn(1, 4, 15, 15), None
    other = x.clone()
    other[..., 7, 7] += 5
    changed = (block(x) != block(other)).any(dim=1)[0]
    assert changed.sum() == (2 * block.reach + 1) ** 2


@pytest.mark.parametrize("name", list(DROPOUT))
def test_dropout_keeps_the_mean_and_is_off_at_inference(name):
    torch.manual_seed(0)
    layer, x = dropout(name, 0.3), torch.ones(64, 32, 8, 8)
    layer.train()
    assert float(layer(x).mean()) == pytest.approx(1, abs=0.02)
    assert float(layer(x).var()) == pytest.approx(0.3 / 0.7, rel=0.05)
    if name == "spatial":
        assert float(layer(x).var(dim=(2, 3)).max()) == 0
    layer.eval()
    assert torch.equal(layer(x), x)


def test_no_name_is_no_layer():
    for block in (normalization(None, 4), attention(None, 4), dropout(None, 0.5), dropout("vanilla", 0.0)):
        assert isinstance(block, Chain) and not list(block.parameters())
        assert torch.equal(block(torch.ones(1, 4, 2, 2)), torch.ones(1, 4, 2, 2))


# in networks


@pytest.mark.parametrize(
    ("backbone", "normal", "focus", "drop", "separable"),
    covering(list(BACKBONES), [None, *NORMALIZATION], [None, "local"], [None, *DROPOUT], [False, True]),
)
def test_parts_tile_and_are_saved(check, tmp_path, backbone, normal, focus, drop, separable):
    """On a globe that two tiles go around, each larger than the halo."""
    parts = {"normalization": normal, "attention": focus, "dropout": drop, "separable": separable}
    tiny = {"width": 8, "depth": 1, "head_width": 4, "activation": "leaky_relu"} | parts
    spec = NetworkSpec(
        backbone=backbone, upsampling="subpixel", scale=2, inputs=2, statics=2, config=NetworkConfig(**tiny)
    )
    halo = build_network(spec).reach
    globe = toy_field(time=4, y=24, x=4 * (halo + 1), periodic=True)
    model = globe.sr.fit(2, backbone=backbone, upsampling="subpixel", network=tiny, **OPTIONS)
    coarse = globe.sr.coarsen(2)
    assert model.halo == halo
    out = check.chunked_equals_whole(model, coarse, {"time": 2, "lon": halo + 1})
    model.save(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(coarse.sr.downscale(tmp_path / "model.safetensors"), out)
    check.rolling_commutes(model, coarse, 7)


@pytest.mark.parametrize("upsampling", ["interpolation", "subpixel"])
def test_a_network_that_looks_at_the_whole_domain(globe, check, upsampling, tmp_path):
    """No halo makes its tiles exact: chunks in y and x are merged, with a warning that names the memory."""
    tiny = {"width": 8, "depth": 1, "head_width": 4, "attention": "channel"}
    model, coarse = globe.sr.fit(2, upsampling=upsampling, network=tiny, **WHOLE), globe.sr.coarsen(2)
    assert model.halo is None and "whole domain" in repr(model)
    whole = coarse.sr.downscale(model)
    check.same_numbers(coarse.chunk(time=1).sr.downscale(model), whole, model.scaling.sd)
    with pytest.warns(XSuperResWarning, match=r"whole domain.*MiB"):
        merged = coarse.chunk(lat=12, lon=12).sr.downscale(model)
    check.same_numbers(merged, whole, model.scaling.sd)
    assert merged.chunks[1:] == ((48,), (72,))
    check.rolling_commutes(model, coarse, 5)
    with xsr.set_options(memory_budget=2**20):
        check.same_numbers(coarse.sr.downscale(model), whole, model.scaling.sd)
    model.save(tmp_path / "model.safetensors")
    assert xsr.load_model(tmp_path / "model.safetensors").halo is None


def test_statistics_of_batch_normalisation_belong_to_the_averaged_weights(globe, monkeypatch):
    """They are estimated anew for the weights that are kept, always on the same batches."""
    from xsuperres import fitting

    kept = {}
    true_loop = fitting.Loop

    def spy(network, reader, *args, **options):
        kept["reader"] = reader
        return true_loop(network, reader, *args, **options)

    monkeypatch.setattr(fitting, "Loop", spy)
    model = fit(globe, normalization="batch")
    layers = [m for m in model.network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    before = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in layers]
    assert layers and all(float(var.sub(1).abs().max()) > 1e-3 for _, var in before)
    estimate_statistics(model.network, kept["reader"], torch.device("cpu"))
    for layer, (mean, var) in zip(layers, before, strict=True):
        torch.testing.assert_close(layer.running_mean, mean)
        torch.testing.assert_close(layer.running_var, var)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"normalization": "bath"}, "Did you mean 'batch'"),
        ({"attention": "chanel"}, "Did you mean 'channel'"),
        ({"dropout": "spatal"}, "Did you mean 'spatial'"),
        ({"output_activation": "softmax"}, "softplus"),
    ],
)
def test_unknown_parts_list_the_choices(globe, settings, message):
    with pytest.raises(UnknownNameError, match=message):
        fit(globe, **settings)
    with pytest.raises(ConfigError, match="dropout_rate"):
        NetworkConfig(dropout_rate=1.0)
    with pytest.raises(ConfigError, match="True or False"):
        NetworkConfig(separable="yes")


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_an_output_with_an_upper_limit_is_refused(globe, name):
    """It would keep the field within one training error of 0."""
    with pytest.raises(ConfigError, match=f"output_activation='{name}' has an upper limit.*'relu'.*'softplus', or"):
        fit(globe, output_activation=name)


def test_outputs_without_an_upper_limit():
    """What grows without end may be an output; a part of one's own too."""
    assert output_activations() == ["relu", "leaky_relu", "elu", "selu", "gelu", "silu", "softplus"]
    FitSettings.of(SETTINGS | {"network": {"output_activation": "swish"}})  # an alias
    ACTIVATIONS.add("hard")(torch.nn.Hardtanh)
    ACTIVATIONS.add("learnt")(torch.nn.PReLU)
    try:
        assert "hard" not in output_activations() and "learnt" in output_activations()
    finally:
        ACTIVATIONS._parts.pop("hard"), ACTIVATIONS._parts.pop("learnt")


# parts of one's own


@pytest.mark.parametrize(
    "module",
    [
        torch.nn.InstanceNorm2d,
        lambda width: torch.nn.GroupNorm(2, width),
        lambda width: torch.nn.Sequential(torch.nn.Identity(), torch.nn.InstanceNorm2d(width, affine=True)),
    ],
)
def test_a_normalisation_over_cells_that_does_not_say_so_is_refused(globe, module):
    """Chunked would differ from whole."""
    NORMALIZATION.add("mine")(module)
    try:
        with pytest.raises(ConfigError, match=r"'mine' is torch's \w+Norm.*'layer' or 'group'.*global_context=True"):
            fit(globe, normalization="mine")
    finally:
        NORMALIZATION._parts.pop("mine")


def test_a_normalisation_over_the_domain_that_says_so(globe, check):
    """A block with global context: the domain is seen whole, and chunks are merged."""

    @NORMALIZATION.add("mine")
    class Mine(Block):
        global_context = True

        def __init__(self, width: int) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(width, 1, 1))

        def forward(self, x):
            domain = x if here() is None else here().domain(x)
            mean, sd = (f(domain, dim=(-2, -1), keepdim=True) for f in (torch.mean, torch.std))
            return (x - mean) / (sd + 1e-5) * self.scale

        def needs(self, out):
            return out

    try:
        model = globe.sr.fit(2, network={"width": 8, "depth": 1, "normalization": "mine"}, **WHOLE)
        assert model.halo is None
        coarse = globe.sr.coarsen(2)
        whole = coarse.sr.downscale(model)
        with pytest.warns(XSuperResWarning, match="whole domain"):
            check.same_numbers(coarse.chunk(lat=12, lon=12).sr.downscale(model), whole, model.scaling.sd)
    finally:
        NORMALIZATION._parts.pop("mine")


def test_a_normalisation_per_cell_of_ones_own(globe, check):
    NORMALIZATION.add("mine")(lambda width: torch.nn.Conv2d(width, width, 1, groups=width))
    try:
        model = fit(globe, normalization="mine")
        check.chunked_equals_whole(model, globe.sr.coarsen(2), {"lat": 12, "lon": 12})
    finally:
        NORMALIZATION._parts.pop("mine")


def test_attention_over_the_domain_learnt_on_patches_is_warned_about(globe):
    """Means over patches are other numbers than means over the domain."""
    tiny = {"width": 8, "depth": 1, "head_width": 4, "attention": "channel"}
    with pytest.warns(XSuperResWarning, match=r"patches of 6 x 6 .*domain of 24 x 36,.*'patch_size': None.*'local'"):
        globe.sr.fit(2, network=tiny, **OPTIONS)
    square = toy_field(time=6, y=16, x=16)
    square.sr.fit(2, network=tiny, **(OPTIONS | {"sampling": {"batch_size": 2, "patch_size": 8}}))
    with pytest.warns(XSuperResWarning, match=r"patches of 7 x 7 .*domain of 8 x 8"):
        square.sr.fit(2, network=tiny, **(OPTIONS | {"sampling": {"batch_size": 2, "patch_size": 7}}))


def test_a_part_registered_in_a_notebook_is_as_good_as_ours(globe, check, tmp_path):
    """Backbone, loss, discriminator, upsampling: a few lines each, saved by name, missed by name."""
    from xsuperres.nn.blocks import Conv
    from xsuperres.nn.layers import activation
    from xsuperres.nn.upsamplers import SubPixel

    @xsr.BACKBONES.add("single")
    def single(config):
        return Chain(Conv(config.width, config.width, size=5), activation(config.activation))

    @xsr.LOSSES.add("quartic")
    def quartic(prediction, target, weight):
        return ((prediction - target) ** 4 * weight).sum() / weight.sum()

    @xsr.UPSAMPLERS.add("mine")
    class Mine(SubPixel):
        """Sub-pixel convolution by another name."""

    @xsr.DISCRIMINATORS.add("pixel")
    class Pixel(xsr.DISCRIMINATORS.get("residual")):
        """Residual by another name."""

    options = OPTIONS | {"optimization": OPTIONS["optimization"] | {"loss": {"quartic": 1.0, "mae": 0.5}}}
    try:
        model = globe.sr.fit(
            2, backbone="single", upsampling="mine", training="adversarial",
            adversarial={"discriminator": "pixel", "width": 4, "depth": 1}, **options,
        )  # fmt: skip
        coarse = globe.sr.coarsen(2)
        out = check.chunked_equals_whole(model, coarse, {"lat": 12, "lon": 18})
        model.save(tmp_path / "mine.safetensors")
        np.testing.assert_array_equal(coarse.sr.downscale(tmp_path / "mine.safetensors"), out)
    finally:
        for registry, name in (
            (xsr.BACKBONES, "single"),
            (xsr.LOSSES, "quartic"),
            (xsr.UPSAMPLERS, "mine"),
            (xsr.DISCRIMINATORS, "pixel"),
        ):
            registry._parts.pop(name)
    with pytest.raises(ModelFileError, match=r"not registered in this process.*(single|mine).*Import the module"):
        xsr.load_model(tmp_path / "mine.safetensors")


# in bfloat16


@pytest.mark.parametrize("inplace", [False, True])
def test_relu_of_bfloat16_is_that_of_torch(inplace):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    numbers = every[~every.isnan()]  # both infinities, both zeros, the subnormal ones
    module = ACTIVATIONS.get("relu")()
    module.inplace = inplace
    expected = F.relu(numbers.double())
    with torch.inference_mode():
        given = numbers.clone()
        got = module(given)
    assert got.dtype == torch.bfloat16 and torch.equal(got.double(), expected)
    assert torch.equal(given, got if inplace else numbers)
    field = numbers[: 4 * 3 * 5 * 7].reshape(4, 3, 5, 7).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(module(field.clone()).double(), F.relu(field.double()))


def test_relu_has_its_gradient_in_bfloat16():
    x = torch.tensor([-1.0, 2.0], dtype=torch.bfloat16, requires_grad=True)
    ACTIVATIONS.get("relu")()(x).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0]
