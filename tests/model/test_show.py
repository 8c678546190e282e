"""The text and HTML of a model: what a scientist wants to know, escaped."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from xsuperres.model.show import as_html, as_text
from xsuperres.testing import toy_field


@pytest.fixture(scope="module")
def model():
    return toy_field(time=8, y=16, x=20).sr.fit(
        2,
        network={"width": 4, "depth": 1},
        sampling={"batch_size": 2},
        optimization={"max_steps": 4, "validations": 2},
        progress=False,
        activate=False,
        seed=5,
    )


@pytest.fixture(params=[as_text, as_html], ids=["text", "html"])
def show(request):
    return request.param


def test_what_a_scientist_needs(model, show):
    text = show(model)
    expected = [
        "SRModel tas x2",
        "Air temperature [K]",
        f"halo {model.halo} coarse cells",
        "residual backbone, interpolation upsampling",
        f"{sum(p.numel() for p in model.network.parameters()):,} parameters",
        "lat 16 x lon 20",
        "fixed domain",
        "elevation, land_fraction",
        "2001-01-01T00:00:00 to 2001-01-06T00:00:00",
        "6 samples",
        "4 steps",
        "seed 5",
        f"RMSE {model.training.validation['rmse']:.4g} [K]",
        "of bicubic",
        "of the linear baseline",
        "0.2 of time",
        model.digest[:16],
    ]
    assert not [part for part in expected if part not in text], text


def test_repr_is_the_text(model):
    assert repr(model) == str(model) == as_text(model)
    assert model._repr_html_() == as_html(model)


def test_text_is_a_few_aligned_lines(model):
    title, *rows = as_text(model).splitlines()
    assert title == "<xsuperres.SRModel tas x2>"
    assert 6 <= len(rows) <= 12
    starts = {re.match(r"  \S.*?\s{2,}(?=\S)", row).end() for row in rows}
    assert len(starts) == 1
    assert max(map(len, rows)) <= 130
    assert not any(row != row.rstrip() for row in rows)


def test_html_is_well_formed(model):
    root = ElementTree.fromstring(as_html(model))
    assert root.tag == "div"
    assert len(root.findall(".//tr")) == len(as_text(model).splitlines()) - 1
    for row in root.iter("tr"):
        assert [cell.tag for cell in row] == ["th", "td"]


@pytest.mark.parametrize("part", ["name", "long_name", "units", "standard_name"])
def test_html_is_escaped(model, retarget, part):
    """Attributes come from files of strangers."""
    evil = "<script>alert('a & b')</script>"
    variable = replace(model.variable, **{"long_name": None, part: evil} if part == "standard_name" else {part: evil})
    text = as_html(retarget(model, variable=variable))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "a &amp; b" in text
    ElementTree.fromstring(text)


def test_html_escapes_static_names_and_dims(model):
    names = ("<img src=x>", "land_fraction")
    evil = replace(model, static_scaling=replace(model.static_scaling, names=names))
    axis = replace(model.grid.x, dim="<i>")
    evil = replace(evil, grid=replace(model.grid, x=axis))
    vars(evil).update(digest="0" * 64, reach=3)
    ElementTree.fromstring(as_html(evil))
    assert "<img" not in as_html(evil)
    assert "<i>" not in as_html(evil)


def test_what_is_unknown_is_left_out_or_said(model, retarget, show):
    bare = retarget(
        replace(model, training=replace(model.training, period=None, validation={})),
        variable=replace(model.variable, name=None, units=None, standard_name=None, long_name=None),
    )
    text = show(bare)
    assert "None" not in text
    assert "[" not in text.split("trained on")[0].replace("style='text-align:left'", "")
    assert "validation" not in text
    assert "no time" in text


def test_names_in_order_of_how_much_they_say(model, retarget):
    variable = model.variable
    assert "Air temperature" in as_text(model)
    assert "air_temperature" in as_text(retarget(model, variable=replace(variable, long_name=None)))
    nameless = replace(variable, long_name=None, standard_name=None)
    assert "variable       tas [K]" in as_text(retarget(model, variable=nameless))


def test_an_open_model_says_so(make_model, show):
    text = show(make_model(domain="open").model)
    assert "open domain" in text
    assert "static fields" in text


def test_a_model_without_static_fields(show):
    field = toy_field(time=2, y=12, x=16).drop_vars(["elevation", "land_fraction"])
    model = field.sr.fit(
        2,
        network={"width": 4, "depth": 1},
        sampling={"batch_size": 1},
        optimization={"max_steps": 1},
        validation=None,
        progress=False,
        activate=False,
    )
    assert re.search(r"static fields\W.*none", show(model))
