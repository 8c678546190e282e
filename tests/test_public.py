"""What a user sees of the package's names: `dir`, `help`, and errors that name functions."""

from __future__ import annotations

import inspect
import pydoc

import pytest

import xsuperres as xsr
from xsuperres.errors import NoModelError
from xsuperres.testing import toy_field


def test_dir_lists_public_names_only():
    assert dir(xsr) == sorted(xsr.__all__)
    assert not [name for name in dir(xsr) if name.startswith("_") and name != "__version__"]
    assert not {"annotations", "importlib", "Any"} & set(dir(xsr))
    assert all(getattr(xsr, name) is not None for name in dir(xsr))


@pytest.mark.parametrize("name", [n for n in xsr.__all__ if callable(getattr(xsr, n))])
def test_help_shows_the_name_that_was_asked_for(name):
    thing = getattr(xsr, name)
    if inspect.isfunction(thing) or inspect.isclass(thing):
        assert thing.__name__ == thing.__qualname__ == name
        text = pydoc.plain(pydoc.render_doc(thing))
        assert f"{name}(" in text.split("\n", 3)[2]


@pytest.mark.parametrize("name", ["plot_maps", "plot_history", "score_table"])
def test_examples_use_the_public_name(name):
    assert f"{name}(" in getattr(xsr, name).__doc__


def test_no_model_says_how_to_activate_one():
    xsr.deactivate()
    with pytest.raises(NoModelError, match=r"load_model\(path\).*xsuperres.activate\(model\)"):
        toy_field(time=1, y=8, x=8).sr.downscale(scale=2)
